"""Data sets, splits, batches and augmentation.

sources.py   where images come from: a spec to something that opens image i
images.py    one image: decoding, cropping, conversion
decode.py    all images once: sizes, damage, pixels in memory, mean and deviation
splits.py    stratified choices
augment.py   augmentation of whole batches
info.py      ImageInfo, and reading one image as evaluation sees it
batches.py   the deterministic stream of batches
dataset.py   load_data, ImageData
"""

from proxylessnas.data.augment import Policy
from proxylessnas.data.dataset import ImageData, load_data
from proxylessnas.data.image_batches import Batches
from proxylessnas.data.info import ImageInfo, read_image

__all__ = ["Batches", "ImageData", "ImageInfo", "Policy", "load_data", "read_image"]
