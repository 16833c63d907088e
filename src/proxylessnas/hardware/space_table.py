"""A space's latency table as a whole: measured here or brought back by a kit, then validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxylessnas.config import MeasureSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import ConfigError, MeasurementError
from proxylessnas.hardware.costs import latency_costs
from proxylessnas.hardware.kit_results import KitResults
from proxylessnas.hardware.measure import measure_table
from proxylessnas.hardware.runtimes import DEFAULT, Runtime, make
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.table_entries import NetworkEntry
from proxylessnas.hardware.timing import ProgressCallback, disturbance
from proxylessnas.hardware.trace import Trace, trace
from proxylessnas.hardware.validate import validate
from proxylessnas.seeds import derive_seed
from proxylessnas.spaces import build_supernet

# Whole networks to fit and to validate, unless it is said; a kit carries each as a file.
TABLE_SETTINGS = MeasureSettings(networks=20, validation=20)
KIT_SETTINGS = MeasureSettings(networks=10, validation=10)


@dataclass(frozen=True, kw_only=True, eq=False)
class SpaceTable:
    """A space's latency table with its validation, and the cost model that was validated.

    costs: the latency of every candidate of the supernet, fitted to whole networks.
    keys: of the space's distinct candidates in the table.
    """

    table: LatencyTable
    supernet: Supernet
    costs: Costs
    keys: tuple[str, ...]

    @property
    def networks(self) -> tuple[NetworkEntry, ...]:
        """The whole networks of this space that were measured."""
        return self.table.of_role("fit", "canary", "validation", space=self.costs.space)

    @property
    def range_ms(self) -> tuple[float, float]:
        """The latencies of the fastest and of the slowest network of the space."""
        return self.costs.range(self.supernet.mask)[0]

    @property
    def disturbance(self) -> str:
        """What else the machine did meanwhile, in words; empty where it was at rest."""
        measured = [
            *(self.table[key] for key in self.keys),
            *(n.measurement for n in self.networks),
        ]
        return disturbance(measured)


def measure_space(
    space: str = "mobile",
    space_settings: Mapping[str, Any] | None = None,
    *,
    image_size: int | None = None,
    runtime: str | Runtime = DEFAULT,
    precision: str | None = None,
    settings: MeasureSettings = TABLE_SETTINGS,
    seed: int = 0,
    path: Path | None = None,
    force: bool = False,
    progress: ProgressCallback | None = None,
) -> SpaceTable:
    """Measure a space's latency table on a runtime and validate it.

    space, space_settings, image_size: see `supernet_to_measure`.
    precision: of a runtime that is named, see `runtimes.make`.
    path, force, progress: see `measure_table`; the file gets the validation too.

    Raises:
        ConfigError, MeasurementError, MissingDependency: the space or the runtime is unknown, its
            package is missing, or a candidate cannot run on it.
    """
    if isinstance(runtime, str):
        runtime = make(runtime, threads=settings.threads, precision=precision)
    supernet, inputs = supernet_to_measure(
        space, space_settings, image_size=image_size, batch=settings.batch, seed=seed
    )
    traced = trace(supernet, inputs)
    table = measure_table(
        supernet,
        runtime,
        inputs,
        settings,
        seed=seed,
        progress=progress,
        path=path,
        force=force,
        traced=traced,
    )
    return _validated(supernet, traced, table, path)


def space_table_of_kit(
    results: KitResults, *, space: str | None = None, path: Path | None = None
) -> SpaceTable:
    """The validated table of a kit's results.

    space: the name of the space, which must be said where it names code. path: see `measure_space`.

    Raises:
        MeasurementError: the kit has not finished.
        ConfigError: the results name code, and the caller does not.
    """
    if not results.table.complete:
        raise MeasurementError(
            "the kit's results are not complete: start the kit again beside them"
        )
    model = results.manifest.model
    if ":" in model.space and space != model.space:
        raise ConfigError(
            f"the kit is of {model.space}, code that a file names; to import it: "
            f"--space {model.space}"
        )
    supernet = build_supernet(model.space, model.settings)
    traced = trace(supernet, tuple(map(noise, results.input_shapes)))
    return _validated(supernet, traced, results.table, path)


def supernet_to_measure(
    space: str,
    space_settings: Mapping[str, Any] | None = None,
    *,
    image_size: int | None = None,
    batch: int = 1,
    seed: int = 0,
) -> tuple[Supernet, tuple[Tensor, ...]]:
    """A space's supernet, and noise of the shape that it is measured with.

    image_size: height and width in pixels of three channels, in place of `input_shape`.

    Raises:
        ConfigError: the space or a setting is unknown, or the input's shape is not said once.
    """
    settings = dict(space_settings or {})
    if image_size is not None:
        if "input_shape" in settings:
            raise ConfigError("--image-size and the input_shape of --space-settings: give one")
        settings["input_shape"] = [3, image_size, image_size]
    torch.manual_seed(derive_seed(seed, "weights"))
    supernet = build_supernet(space, settings)
    shape = supernet.settings.get("input_shape")
    if shape is None:
        raise ConfigError(f"the space {supernet.space} does not say its input: give --image-size")
    return supernet, (noise((batch, *shape)),)


def noise(shape: tuple[int, ...]) -> Tensor:
    """An input to measure with: the same noise at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _validated(
    supernet: Supernet, traced: Trace, table: LatencyTable, path: Path | None
) -> SpaceTable:
    costs = latency_costs(supernet, traced, table)
    table = replace(table, validation=validate(costs, supernet, table))
    if path is not None:
        table.save(path)
    return SpaceTable(table=table, supernet=supernet, costs=costs, keys=tuple(traced.units))
