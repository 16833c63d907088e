"""How torch.compile is asked: each thing by itself, with graphs enough."""

from __future__ import annotations

import inspect
from typing import Any

import torch

# Each since some release. Else all functions or modules that share their code would share a
# handful of graphs too, and the rest be eager.
APART: dict[str, Any] = {"isolate_recompiles": True, "recompile_limit": 64}


def apart() -> dict[str, Any]:
    """The options that this torch.compile knows, for static shapes."""
    known = inspect.signature(torch.compile).parameters
    return {"dynamic": False, **{k: v for k, v in APART.items() if k in known}}
