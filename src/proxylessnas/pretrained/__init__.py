"""Trained networks, and the search for a network of one's own around them.

networks.py     the family: networks of inverted bottlenecks as a value, and as modules
any_model.py    names to models of any kind; headed.py: their last layer
loading.py      names to trained networks: packages, torchvision, timm, files, runs
least_squares.py  channels by elimination, weights in closed form
candidates.py   per block: narrower, a smaller kernel, left out; refitted by least squares
scores.py       what a candidate is worth: KL of the outputs when it alone is replaced
space.py        the supernet around the network, its prior, and what it is compared with
teach.py        the teacher: its linear classifier in closed form (classifier.py), fine-tuned
distil.py       fine-tuning with the teacher's outputs
any_model.py    names to models of any kind, which `surgery/` narrows
"""

from proxylessnas.pretrained.loading import load_pretrained
from proxylessnas.pretrained.networks import Pretrained

__all__ = ["Pretrained", "load_pretrained"]
