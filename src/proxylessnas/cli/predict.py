"""The verb `predict`: classify images with the network of a run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from proxylessnas.runs.predict import predict


def main(options: Any) -> None:
    """One line an image, as text or as JSON."""
    directory = Path(options.directory)
    for path, classes in predict(directory, options.images, options.top, options.space):
        if options.json:
            print(json.dumps({"image": str(path), "classes": dict(classes)}))
        else:
            print(f"{path}: " + ", ".join(f"{name} {100 * p:.1f} %" for name, p in classes))
