"""Every stage's settings: frozen, checked where they are constructed, complete. No torch here.

amounts.py  how settings are written: earlier names, units, lists, ranges
stages.py   the settings of the stages
run.py      those of a run and of the machine
reading.py  from plain values (of YAML, JSON or the command line) to settings
"""

from proxylessnas.config.amounts import (
    HUB_NAME,
    PRECISIONS,
    RENAMED,
    Positive,
    ShareBelowOne,
    parse_bytes,
    parse_minutes,
    parse_precisions,
    parse_sizes,
)
from proxylessnas.config.reading import (
    json_schema,
    left_to_defaults,
    merged,
    parse_settings,
    pick,
    read_config,
)
from proxylessnas.config.run import MachineSettings, RunConfig
from proxylessnas.config.stages import (
    REGULARISERS,
    CandidateSettings,
    DataSettings,
    DeriveSettings,
    MeasureSettings,
    QuantiseSettings,
    SearchSettings,
    TeachSettings,
    TrainSettings,
)

__all__ = [
    "HUB_NAME",
    "PRECISIONS",
    "REGULARISERS",
    "RENAMED",
    "CandidateSettings",
    "DataSettings",
    "DeriveSettings",
    "MachineSettings",
    "MeasureSettings",
    "Positive",
    "QuantiseSettings",
    "RunConfig",
    "SearchSettings",
    "ShareBelowOne",
    "TeachSettings",
    "TrainSettings",
    "json_schema",
    "left_to_defaults",
    "merged",
    "parse_bytes",
    "parse_minutes",
    "parse_precisions",
    "parse_settings",
    "parse_sizes",
    "pick",
    "read_config",
]
