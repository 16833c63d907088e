"""The benchmark of the cell space, on a table that is made here."""

from __future__ import annotations

import importlib
import itertools
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from proxylessnas.selection.explore import Score
from proxylessnas.spaces.cell import function

WORTH = {"0": 0.0, "1": 0.4, "2": 0.7, "3": 1.0, "4": 0.1}  # points of an edge's operation
MS = {"0": 0.0, "1": 0.05, "2": 0.6, "3": 1.0, "4": 0.4}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("nas_bench_201")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Functions' accuracies and codes' latencies, on a device that the real table lacks."""
    rows = ["code,function,test_accuracy,toaster_ms"]
    for digits in itertools.product("01234", repeat=6):
        code = "".join(digits)
        expression = function(code)
        worth = sum(WORTH.get(sign, 0.0) for sign in expression) / (1 + expression.count("x"))
        accuracy = 85 + worth if expression else 10.0
        rows.append(f"{code},0,{accuracy:.4f},{1 + sum(MS[d] for d in code):.4f}")
    file = tmp_path / "table.csv"
    file.write_text("\n".join(rows) + "\n")
    return file


@pytest.mark.slow
@pytest.mark.parametrize("untrained", [False, True])
def test_true_scores_find_good_networks_within_the_limits(
    bench: ModuleType, table: Path, untrained: bool
) -> None:
    truth = bench.Truth.load(table)

    def score(network: tuple[int, ...]) -> Score:
        value = float(truth.accuracy[truth.row[bench.code_of(network)]]) / 100
        return value, (value,)

    figures = (lambda n: np.array([score(n)[0]])) if untrained else None
    search = bench.Search(score, figures, 0, set(bench.as_they_run().values()))
    search.begin(40)
    device = bench.Device(partial(truth.measure, "toaster"), list(search.function))
    device.know(30, search.generator)
    for limit in (2.0, 3.0):
        search.explore(device, limit, 24, "scoring")
        found = search.best(device, limit)
        assert truth.measure("toaster", found) <= limit
        accuracy = 100 * score(found)[0]
        assert accuracy > truth.best_of_random("toaster", limit)
        assert truth.best("toaster", limit) - accuracy < 0.3


def test_a_table_without_accuracies_is_refused(bench: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("code,toaster_ms\n000000,1.0\n")
    with pytest.raises(SystemExit, match="no column test_accuracy"):
        bench.Truth.load(file)


def test_further_supernets_are_trained_where_none_was_and_used_where_they_are(
    bench: ModuleType, tmp_path: Path
) -> None:
    before = tmp_path / "before.safetensors"
    before.touch()  # by itself: two more are not trained for it
    assert bench.weights_files(before, 3) == [before]
    file = tmp_path / "weights.safetensors"
    files = [tmp_path / f"weights{end}.safetensors" for end in ("", "-1", "-2")]
    assert bench.weights_files(file, 3) == files
    file.touch()  # stopped after the first one
    assert bench.weights_files(file, 3) == files
    assert bench.weights_files(file, 1) == [file]
