"""From the data that a user brings to batches.

spec.py            a data spec, as of `--data`, to a `Source`
tree.py            the names in a folder or a zip file, and counts of what is no image
parts.py           which names mean training, validation and test parts
folders.py         how a tree of folders is meant
tables.py          a CSV file of file names and labels; huggingface.py, packaged.py: the others
surfaces.py        crops of photographs, the demo's data set
labels.py          the columns of a table, and its labels to class numbers
watching.py        progress of what takes long
source.py          `Source`, which every kind becomes: images opened by number, with labels
splits.py          how a split is made
decode.py          how an image is decoded
content.py         what is to be said of images: constant, of one colour, seen before
survey.py          all images looked at once: sizes, damage, mean and deviation
load.py            `load_data`: all of the above in order
dataset.py         `ImageData`, its result, and `DataSummary`, counts of everything that was read
stores.py          where pixels come from: memory, or workers that decode files
augment.py         what augmentation there is
image_batches.py   how batches are made of a data set
batches.py         `Batches`, as search and training see them; a user's own loader as such
loader_images.py   `LoaderImages`: loaders of images and labels in the place of a data set
arguments.py       how the model takes what a user's batch holds
"""

from proxylessnas.data.augment import Augmentation
from proxylessnas.data.batches import WHOLE, Batches, BatchStream, LoaderBatches, Share, portion
from proxylessnas.data.dataset import DataSummary, ImageData, Images
from proxylessnas.data.decode import read_image
from proxylessnas.data.image_batches import ImageBatches
from proxylessnas.data.load import load_data, load_for
from proxylessnas.data.loader_images import LoaderImages, look_at

__all__ = [
    "WHOLE",
    "Augmentation",
    "BatchStream",
    "Batches",
    "DataSummary",
    "ImageBatches",
    "ImageData",
    "Images",
    "LoaderBatches",
    "LoaderImages",
    "Share",
    "load_data",
    "load_for",
    "look_at",
    "portion",
    "read_image",
]
