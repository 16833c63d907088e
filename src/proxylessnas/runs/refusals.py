"""What of a run's settings is refused before its data are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from proxylessnas.config import RunConfig
from proxylessnas.core.objective import check_objective
from proxylessnas.errors import ConfigError, RunError
from proxylessnas.hardware.published_table import check_suits, is_published, read_published_table
from proxylessnas.hardware.runtimes import make
from proxylessnas.hardware.shared_tables import default_folder, table_of_device
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.limits import all_limits
from proxylessnas.session.store import BROUGHT_TABLE
from proxylessnas.session.untrained import check_setting
from proxylessnas.training.ranks import Ranks


def check(config: RunConfig, ranks: Ranks, *, has_runtime: bool) -> None:
    """What can be refused before the data are read.

    has_runtime: whether the runtime is an object that is here.

    Raises:
        ConfigError: no data, an objective without what it needs, a runtime that is not here, or
            batches that the ranks cannot share evenly. MeasurementError: see `_check_table`.
    """
    if config.space == "custom":
        raise RunError(
            "the directory holds a search that Python began: make the same call again, or read it "
            "with proxylessnas.load"
        )
    if config.data == "":
        raise ConfigError(
            "--data is missing: a folder of images, a Hugging Face data set, torchvision:NAME, "
            "mnist5k, digits or surfaces"
        )
    _check_one_precision(config)
    limits = all_limits(config.limits, config.target_latency)
    check_objective(config.search, measured=True, limited="latency" in limits)
    if not has_runtime:
        make(config.runtime, threads=config.measure.threads, precision=config.precision)
    _check_table(config)
    if config.model is not None and "latency" not in limits:
        raise ConfigError(
            f"--model {config.model} is narrowed to a latency: give --target-latency, as 8ms or "
            "0.5x of its own"
        )
    if config.model is not None and ranks.world > 1:
        raise ConfigError(f"--model works in one process, and here are {ranks.world}: take one")
    check_setting(config, config.derive)
    s = config.search
    ranks.check_divides("search.batch_size", s.batch_size)
    ranks.check_divides("search.valid_batch_size", s.valid_batch_size or s.batch_size)
    ranks.check_divides("train.batch_size", config.train.batch_size)


def of_device(config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    """The settings with the table of the device that they name.

    Raises:
        ConfigError: a table is named too. MeasurementError: the folder has no such table.
    """
    if config.device is None:
        if config.tables is not None:
            raise ConfigError("tables is a folder to find a device's table in: give --device too")
        return config
    if config.table is not None:
        raise ConfigError(f"device is {config.device} and table is {config.table}: give one")
    path = table_of_device(
        config.device,
        config.tables or default_folder(),
        precision=config.precision,
        runtime=config.runtime if "runtime" in given else None,
    )
    return dataclasses.replace(config, table=str(path))


def _check_one_precision(config: RunConfig) -> None:
    if config.precision is not None and "," in config.precision:
        raise ConfigError(
            f"--precision {config.precision}: a network is found for one precision; several are "
            "compared by proxylessnas measure NETWORK"
        )


def _check_table(config: RunConfig) -> None:
    """Read the latency table that the settings name, for its error.

    Raises:
        MeasurementError: it cannot be read, or prices other networks.
    """
    if config.table is None or config.table == BROUGHT_TABLE:
        return
    if not is_published(config.table):
        LatencyTable.load(config.table).check_precision(config.precision)
        return
    if config.precision not in (None, "f32"):
        raise ConfigError(
            f"{config.table} is of networks in f32, and {config.precision} is asked for: leave "
            "--precision out, or measure that device with a kit"
        )
    shape = config.space_settings.get("input_shape")
    size = shape[1] if isinstance(shape, list | tuple) and len(shape) == 3 else config.image_size
    table = read_published_table(config.table)
    check_suits(table, config.space, size if isinstance(size, int) else None)
