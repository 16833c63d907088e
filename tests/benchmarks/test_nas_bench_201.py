"""The benchmark of the cell space, on a table that is made here."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from proxylessnas.core.decode import Indices
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


@pytest.fixture
def figures_of(bench: ModuleType, tmp_path: Path) -> Callable[..., Any]:
    """Figures by a function of the network, which stands in for those of untrained networks."""

    class ByHand:
        macs = staticmethod(lambda network: float(sum(network)))
        example, seed, blocks = torch.zeros(1, 3, 32, 32), 0, ("stage",)

        def __init__(self, value: Callable[[Indices], float]) -> None:
            self.value, self.asked = value, list[Indices]()

        def __call__(self, network: Indices) -> np.ndarray:
            self.asked.append(network)
            return np.array([self.value(network), self.macs(network)])

    return lambda value, name="figures.json": bench.Figures(ByHand(value), tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("untrained", [False, True])
def test_true_scores_find_good_networks_within_the_limits(
    bench: ModuleType, table: Path, figures_of: Callable[..., Any], untrained: bool
) -> None:
    truth = bench.Truth.load(table)

    def score(network: Indices) -> Score:
        value = float(truth.accuracy[truth.row[bench.code_of(network)]]) / 100
        return value, (value,)

    figures = figures_of(lambda n: score(n)[0]) if untrained else None
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


def test_a_network_that_nothing_but_its_own_figure_speaks_for_is_found(
    bench: ModuleType, table: Path, figures_of: Callable[..., Any]
) -> None:
    """A predictor of the figures would smooth it away."""
    truth, single = bench.Truth.load(table), bench.indices_of("203132")
    figures = figures_of(lambda n: 50.0 if n == single else hash(n) % 997 / 997)
    among = list(bench.as_they_run().values())[::20]
    search = bench.Search(lambda n: (0.0, ()), figures, 0, {*among, single})
    search.begin(20)
    device = bench.Device(partial(truth.measure, "toaster"), list(search.function))
    device.know(30, search.generator)
    limit = truth.measure("toaster", single)
    search.explore(device, limit, 4, "scoring")
    assert search.function[search.best(device, limit)] == single


def test_what_a_prediction_leaves_open_is_measured_and_what_it_does_not_is_believed(
    bench: ModuleType,
) -> None:
    far, near, slow, fast = networks = [(i, 0, 0, 0, 0, 0) for i in range(4)]
    truth, asked = {far: 0.9, near: 0.9, slow: 1.2, fast: 0.5}, []

    class Predicted(bench.Device):  # type: ignore[misc, name-defined]
        def predicted(self) -> tuple[np.ndarray, np.ndarray]:
            return np.array([1.4, 1.25, 0.9, 0.5]), np.full(4, 0.1)

    def measure(network: Indices) -> float:
        asked.append(network)
        return truth[network]

    device = Predicted(measure, networks)
    assert list(device.within(1.0, np.array([4.0, 3.0, 2.0, 1.0]))) == [near, fast]
    assert asked == [near, slow]


def test_strings_of_one_function_are_judged_together(bench: ModuleType, table: Path) -> None:
    loaded, function = bench.Truth.load(table), bench.as_they_run()
    truth = replace(loaded, accuracy=loaded.accuracy.copy())
    alike = [n for n in function if function[n] == function[bench.indices_of("301112")]]
    assert len(alike) > 1
    for i, network in enumerate(alike):  # as if they had been trained apart
        truth.accuracy[truth.row[bench.code_of(network)]] = 70 + i
    result = {"device": "toaster", "limit_ms": 9.0, "code": "301112"}
    judged = bench.judged(truth, result, function)
    assert judged["gap_of_function"] == pytest.approx(judged["best"] - 70 - (len(alike) - 1) / 2)
    assert judged["gap"] == pytest.approx(judged["best"] - truth.accuracy[truth.row["301112"]])


def test_every_level_of_macs_keeps_the_third_that_promises_most(
    bench: ModuleType, figures_of: Callable[..., Any]
) -> None:
    networks = list(dict.fromkeys(bench.as_they_run().values()))
    figures = figures_of(lambda n: math.fsum(j * math.sqrt(i + 2) for i, j in enumerate(n)))
    kept = bench.promising(bench.NAMES, networks, figures)
    assert len(kept) == len(set(kept)) == pytest.approx(len(networks) / 3, abs=10)
    assert len(figures.zero_cost.asked) == 300  # the others are predicted
    values = np.array([figures(n)[0] for n in networks])
    macs = np.array([figures.zero_cost.macs(n) for n in networks])
    for level in np.array_split(np.argsort(macs, kind="stable"), 10):
        best = level[np.argsort(-values[level])[: len(level) // 3]].tolist()
        assert np.mean([networks[i] in set(kept) for i in best]) > 0.9


def test_figures_are_computed_once_and_kept_when_interrupted(
    bench: ModuleType, figures_of: Callable[..., Any]
) -> None:
    networks = [(i,) for i in range(120)]

    def interrupted(network: Indices) -> float:
        if network == (110,):
            raise KeyboardInterrupt
        return network[0] / 7

    first = figures_of(interrupted)
    with pytest.raises(KeyboardInterrupt):
        first.compute(networks, "figures")
    again = figures_of(lambda n: n[0] / 7)
    again.compute(networks, "figures")
    assert again.zero_cost.asked == networks[100:]  # those that were not written yet
    for network in networks:
        assert again(network).tolist() == [network[0] / 7, network[0]]
    assert len(again.zero_cost.asked) == 20
    again.zero_cost.seed = 1
    assert not bench.Figures(again.zero_cost, again.file).known  # those were other networks


def test_searches_beside_each_other_add_to_the_same_figures(
    figures_of: Callable[..., Any],
) -> None:
    one, other = (figures_of(lambda n: n[0] / 7) for _ in range(2))
    one.compute([(1,), (2,)], "figures")
    other.compute([(2,), (3,)], "figures")
    assert other.zero_cost.asked == [(3,)]
    assert set(figures_of(float).known) == {(1,), (2,), (3,)}
    assert not list(one.file.parent.glob("*.tmp"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"figures": {"1 2": [0.5, 1.0]}}'])
def test_figures_that_are_damaged_or_others_are_computed_anew(
    bench: ModuleType, figures_of: Callable[..., Any], text: str
) -> None:
    figures = figures_of(lambda n: n[0] / 7)
    figures.file.write_text(text)
    again = bench.Figures(figures.zero_cost, figures.file)
    assert not again.known
    again.compute([(1,)], "figures")
    assert set(bench.Figures(figures.zero_cost, figures.file).known) == {(1,)}


def test_where_figures_cannot_be_kept_they_still_count(
    bench: ModuleType,
    figures_of: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "taken").touch()
    figures = figures_of(lambda network: 2.0, "taken/figures.json")
    figures.compute([(i,) for i in range(120)], "figures")
    assert figures((1,)).tolist() == [2.0, 1.0]
    assert capsys.readouterr().out.count("not kept") == 1


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
