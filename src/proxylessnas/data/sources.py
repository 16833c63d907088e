"""Where images come from: a data spec to a `Source`, which opens any image by its number.

mnist5k, digits                   arrays that a package carries
a folder                          one folder a class, with or without train/ val/ test/
a folder holding *.parquet        Hugging Face layout, read by `datasets`
owner/name[:config]               the Hugging Face hub
torchvision:NAME                  a class of torchvision.datasets
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from proxylessnas.data.folders import folder_source
from proxylessnas.data.huggingface import holds_parquet, hub_source, parquet_source
from proxylessnas.data.packaged import TORCHVISION, digits, mnist5k, torchvision_source
from proxylessnas.data.source import Source
from proxylessnas.errors import DataError, did_you_mean

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")


def open_source(spec: str) -> Source:
    """The data set a spec names, not yet decoded; DataError says what is wrong with it."""
    if spec == "mnist5k":
        return mnist5k()
    if spec == "digits":
        return digits()
    if spec.startswith("torchvision:"):
        return torchvision_source(spec)
    path = Path(spec).expanduser()
    if path.is_dir():
        return parquet_source(path) if holds_parquet(path) else folder_source(path)
    if path.exists():
        raise DataError(f"{spec} is a file; --data takes a folder of images or of parquet files")
    if path.is_symlink():
        raise DataError(f"{spec} is a link that leads nowhere; give the folder itself")
    if _HUB_NAME.fullmatch(spec):
        return hub_source(spec)
    if "/" in spec or os.sep in spec or spec.startswith((".", "~")):
        raise DataError(f"there is no folder {spec} (looked for {path.absolute()})")
    raise DataError(f"unknown data set {spec!r}: {_suggest(spec)}")


def _suggest(word: str) -> str:
    near = {name.lower(): f"torchvision:{name}" for name in TORCHVISION}
    if word.lower() in near:
        return f"did you mean {near[word.lower()]}?"
    return (
        f"{did_you_mean(word, ['mnist5k', 'digits'])} Or give a folder that exists, "
        "a Hugging Face name (owner/name) or torchvision:NAME"
    )
