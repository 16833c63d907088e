"""The stages of the main job, each a function of a `Run`.

    measuring.py    measure: what the device says of every candidate
    searching.py    search, and derive: from the supernet to one network
    finishing.py    train, evaluate, baselines, export: from one network to what is deployed
    keeping.py      checkpoints, going on, stopping

A finished stage has a record in the run's `stages/` with its files' checksums, and is not
done again.
"""

from proxylessnas.runs.stages.finishing import baselines, evaluate_, export, export_as, train
from proxylessnas.runs.stages.measuring import measure
from proxylessnas.runs.stages.searching import derive, derive_limits, search, search_with

__all__ = [
    "baselines",
    "derive",
    "derive_limits",
    "evaluate_",
    "export",
    "export_as",
    "measure",
    "search",
    "search_with",
    "train",
]
