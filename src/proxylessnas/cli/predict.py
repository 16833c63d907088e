"""The verb `predict`: classify images with the network of a run directory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from proxylessnas.errors import DataError
from proxylessnas.runs.elsewhere import predict


def main(options: Any) -> int:
    """One line an image, as text or as JSON; 2 where one of them cannot be read."""
    code = 0
    facts: dict[str, Any]
    directory = Path(options.directory)
    for path, result in predict(directory, options.images, options.top, options.space):
        if isinstance(result, DataError):
            code, facts = 2, {"error": str(result)}
            print(f"proxylessnas: {result}", file=sys.stderr)
        else:
            facts = {"classes": dict(result)}
        if options.json:
            print(json.dumps({"image": str(path), **facts}))
        elif not isinstance(result, DataError):
            print(f"{path}: " + ", ".join(f"{name} {100 * p:.1f} %" for name, p in result))
    return code
