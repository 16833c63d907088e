"""Trained networks, and the search for a network of one's own around them.

networks.py     the family: networks of inverted bottlenecks as a value, and as modules
loading.py      names to trained networks: packages, torchvision, timm, files, runs
"""

from proxylessnas.pretrained.loading import load_pretrained
from proxylessnas.pretrained.networks import Pretrained

__all__ = ["Pretrained", "load_pretrained"]
