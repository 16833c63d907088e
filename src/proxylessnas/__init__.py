"""A neural network specialised to your data set and your device (ProxylessNAS, ICLR 2019).

    from proxylessnas import MixedOp, search

The names below are imported when they are first used, so that `import proxylessnas` (and
the command line's `--help`) does not wait for torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from proxylessnas.api import Result, Specialised, load, search, specialise
    from proxylessnas.architecture import Architecture
    from proxylessnas.config import DeriveSettings, MachineSettings, MeasureSettings, SearchSettings
    from proxylessnas.core.mixed import MixedOp, Residual, Zero
    from proxylessnas.core.supernet import Supernet
    from proxylessnas.hardware.space_table import measure_space
    from proxylessnas.report.latencies import measure_latencies
    from proxylessnas.spaces import build, build_supernet
    from proxylessnas.training.callbacks import Callback, EarlyStopping
    from proxylessnas.training.loggers import MLflow, TensorBoard, WandB
    from proxylessnas.training.ranks import open_ranks

SETTINGS = ("SearchSettings", "MeasureSettings", "DeriveSettings", "MachineSettings")
_HOME = {
    **dict.fromkeys(SETTINGS, "config"),
    "Architecture": "architecture",
    "MixedOp": "core.mixed",
    "Residual": "core.mixed",
    "Callback": "training.callbacks",
    "EarlyStopping": "training.callbacks",
    **dict.fromkeys(("MLflow", "TensorBoard", "WandB"), "training.loggers"),
    "Result": "api",
    "Specialised": "api",
    "Supernet": "core.supernet",
    "Zero": "core.mixed",
    "build": "spaces",
    "build_supernet": "spaces",
    "load": "api",
    "measure_latencies": "report.latencies",
    "measure_space": "hardware.space_table",
    "open_ranks": "training.ranks",
    "search": "api",
    "specialise": "api",
}

__all__ = [
    "Architecture",
    "Callback",
    "DeriveSettings",
    "EarlyStopping",
    "MLflow",
    "MachineSettings",
    "MeasureSettings",
    "MixedOp",
    "Residual",
    "Result",
    "SearchSettings",
    "Specialised",
    "Supernet",
    "TensorBoard",
    "WandB",
    "Zero",
    "__version__",
    "build",
    "build_supernet",
    "load",
    "measure_latencies",
    "measure_space",
    "open_ranks",
    "search",
    "specialise",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("proxylessnas")
    if name not in _HOME:
        raise AttributeError(f"module 'proxylessnas' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
