"""The Python call given what cannot be searched: our error, before anything is measured."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import regression

from proxylessnas import MixedOp, SearchSettings, search
from proxylessnas.config import DeriveSettings, MeasureSettings
from proxylessnas.core.gates import Mixture, run
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import ConfigError, LimitError, MeasurementError, SupernetError, UserError
from proxylessnas.hardware.measure import measure_table
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.hardware.table_entries import Column


def net(*candidates: nn.Module) -> nn.Module:
    chosen = candidates or (nn.Linear(4, 4), nn.Identity())
    return nn.Sequential(nn.Linear(4, 4), MixedOp({f"c{i}": c for i, c in enumerate(chosen)}))


def called(model: Any = None, **changes: Any) -> Any:
    given = {
        **{"train": regression(), "valid": regression(), "loss": nn.functional.mse_loss},
        **{"example_inputs": (torch.zeros(2, 4),), "quiet": True},
        "settings": SearchSettings(warmup_epochs=0, epochs=1),
        **changes,
    }
    return search(net() if model is None else model, **given)


def test_a_peak_memory_that_the_shared_layers_exceed() -> None:
    with pytest.raises(LimitError, match="layers that all share need"):
        called(limits={"peak_memory": 1e-5})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"example_inputs": torch.zeros(2, 4)}, r"example_inputs is Tensor.*write \(x,\)"),
        ({"example_inputs": ()}, "example_inputs is tuple"),
        ({"precision": "int7"}, "no precision 'int7'; did you mean int8"),
        ({"precision": "f32,int8"}, "precision is 'f32,int8': one"),
        ({"precision": 8}, "precision is int, not a name"),
        ({"precision": "int8", "runtime": FakeRuntime()}, "given with a runtime that has one"),
        ({"precision": "int8", "example_inputs": ([1.0],)}, "inputs are tensors alone"),
        ({"target_latency": 0.6}, "target_latency is 0.6; it must be a latency as 12ms"),
        ({"limits": {"macs": "1Q"}}, "the macs '1Q' is not understood"),
        ({"limits": {"parameters": -5}}, "the parameters -5 is not understood"),
        ({"limits": {"mac": 5}}, "no cost 'mac' to limit; there are latency, macs"),
        ({"limits": {"peak_memory": float("nan")}}, "the peak_memory nan is not understood"),
        ({"reward": lambda accuracy, _: accuracy}, "needs the estimator reinforce"),
        (
            {
                "reward": lambda accuracy, _: accuracy,
                "settings": SearchSettings(estimator="reinforce", objective="mul_log"),
                "target_latency": "12ms",
            },
            "mul_log multiplies a loss, not a reward",
        ),
        ({"runtime": None}, "runtime is None"),
        ({"table": 3}, "table is int"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"loss": "mse"}, "loss is 'mse', not a function"),
        ({"out": ""}, "out is '', not a path"),
        ({"model": "resnet"}, "model is 'resnet'"),
        ({"limits": ["macs"]}, "limits is a list of str, not limits by the cost's name"),
        ({"correct": "argmax"}, "correct is 'argmax', not a function"),
        ({"settings": {"epochs": 1}}, "settings is a mapping with the keys 'epochs', not Search"),
        (
            {"callbacks": [print]},
            "callbacks is a list of builtin.*, not a list of Callback objects",
        ),
        ({"out": 5}, "out is int, not a path"),
        ({"settings": SearchSettings(objective="linear")}, "linear needs cost_weight"),
        ({"settings": SearchSettings(objective="mul_log")}, "needs a target latency"),
        (
            {"settings": SearchSettings(objective="linear", cost_weight=1.0)},
            "give a target latency or a latency table",
        ),
    ],
)
def test_arguments_of_the_wrong_kind(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        called(changes.pop("model", None), **changes)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda output, target: (output - target) ** 2, r"one number.*not shape \(8, 4\)"),
        (lambda output, target: None, "one number.*not NoneType"),
        (lambda output, target: 0.5, "one number.*not float"),
    ],
)
def test_a_loss_that_is_no_number(loss: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        called(loss=loss)


@pytest.mark.parametrize(
    "candidates",
    [
        (nn.Linear(4, 4), nn.Linear(4, 1)),
        (nn.Linear(4, 1), nn.Identity()),
        (nn.Identity(), nn.Linear(4, 8)),
    ],
)
def test_candidates_of_different_shapes(candidates: tuple[nn.Module, ...]) -> None:
    with pytest.raises(SupernetError, match=r"c0.*c1.*return the shapes"):
        called(net(*candidates))


def test_a_candidate_that_fails_on_its_input_is_named() -> None:
    with pytest.raises(SupernetError, match="'c1' of '1' fails on its input"):
        called(net(nn.Linear(4, 4), nn.Linear(5, 4)))


def test_a_model_that_fails_on_the_example_inputs() -> None:
    with pytest.raises(SupernetError, match="fails on the example inputs"):
        called(example_inputs=(torch.zeros(2, 7),))


def test_a_model_without_parameters() -> None:
    model = nn.Sequential(MixedOp({"a": nn.ReLU(), "b": nn.Tanh()}))
    with pytest.raises(SupernetError, match="no parameter"):
        called(model)


def test_a_mixture_does_not_broadcast() -> None:
    candidates = [nn.Linear(4, 4), nn.Linear(4, 1)]
    with pytest.raises(SupernetError, match="shapes"):
        run(Mixture(torch.tensor([0.5, 0.5])), candidates, (torch.zeros(2, 4),), {})


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_advice_on_a_nan_names_the_setting() -> None:
    calls = iter(range(1000))

    def loss(output: Tensor, target: Tensor) -> Tensor:  # finite while it is tried early
        return output.sum() * (float("nan") if next(calls) > 6 else 1.0)

    with pytest.raises(UserError, match="the search's learning_rate") as error:
        called(loss=loss, settings=SearchSettings(warmup_epochs=0, epochs=3))
    assert "--" not in str(error.value)


@pytest.mark.parametrize(("device", "here"), [("fake device", True), ("a phone", False)])
def test_a_table_of_another_device_is_used_as_it_is(device: str, here: bool) -> None:
    inputs, measure = (torch.zeros(2, 4),), MeasureSettings(rounds=1, network_rounds=1, networks=3)
    model = nn.Sequential(*(MixedOp([nn.Linear(4, 4), nn.Identity()]) for _ in range(2)))
    there = FakeRuntime(device=device)
    table = measure_table(Supernet(model), there, inputs, measure, seed=0)
    runtime = FakeRuntime()
    given = {"table": table, "runtime": runtime, "measure": measure, "target_latency": "1x"}
    result = called(model, **given)
    assert result.predicted["latency"] == pytest.approx(
        result.costs.range(result.supernet.mask)[0][1], rel=0.5
    )
    assert (runtime.loaded > 0) == here
    assert (result.measured_ms is not None) == here
    with pytest.raises(MeasurementError, match="with batch 2, not 1"):
        called(model, **given, example_inputs=(torch.zeros(1, 4),))


def test_a_precision_that_the_runtime_lacks() -> None:
    with pytest.raises(MeasurementError, match="torch computes in f32 alone"):
        called(precision="int8", runtime="torch")


@pytest.mark.parametrize("named", [True, False])
def test_a_model_of_ones_own_in_int8(named: bool) -> None:
    how: dict[str, Any] = {"runtime": FakeRuntime(precision="int8")}
    how = {"runtime": "fake", "precision": "int8"} if named else how
    result = called(**how, target_latency="0.9x")
    assert result.session.table is not None
    assert result.session.table.device["precision"] == "int8"
    assert isinstance(result.derive(), nn.Module)
    plain = called(runtime="fake", target_latency="0.9x").session.scores
    assert set(result.session.scores.values()) != set(plain.values())  # of quantised networks


def test_another_latency_keeps_the_other_limits() -> None:
    """Each of the three operations has a layer of 20 parameters; 45 allow two of them."""
    inputs, measure = (torch.zeros(2, 4),), MeasureSettings(rounds=1, network_rounds=1, networks=3)
    model = nn.Sequential(*(MixedOp([nn.Linear(4, 4), nn.Identity()]) for _ in range(3)))
    table = measure_table(Supernet(model), FakeRuntime(device="x"), inputs, measure, seed=0)
    how = DeriveSettings(top_k=1, arch_steps=0)
    result = called(model, table=table, target_latency="1x", limits={"parameters": 45}, derive=how)
    with torch.no_grad():  # α asks for all three
        result.supernet.alpha.copy_(torch.tensor([[5.0, -5.0]] * 3))
    network = result.derive("2x")
    assert sum(p.numel() for p in network.parameters()) == 40


def test_own_costs_and_columns_are_limited_by_name() -> None:
    """Four layers may be chosen; the column allows three, the function two."""
    inputs, measure = (torch.zeros(2, 4),), MeasureSettings(rounds=1, network_rounds=1, networks=3)
    model = nn.Sequential(
        *(MixedOp({"wide": nn.Linear(4, 4), "none": nn.Identity()}) for _ in range(4))
    )
    table = measure_table(Supernet(model), FakeRuntime(device="x"), inputs, measure, seed=0)
    column = Column(unit="mJ", entries=dict.fromkeys(table.entries, 2.0))
    with pytest.warns(UserWarning, match="no energy_mj of a whole network"):
        result = called(
            model,
            table=replace(table, columns={"energy_mj": column}),
            costs={"layers": lambda module, _: sum(type(m) is nn.Linear for m in module.modules())},
            limits={"energy_mj": 6, "layers": 2.5, "macs": "1k", "latency": "1x"},
        )
    layers = sum(c == "wide" for c in result.architecture.choices.values())
    assert layers <= 2
    assert result.predicted["layers"] == layers and result.predicted["energy_mj"] == 2 * layers
    assert result.costs.names == ("latency", "macs", "parameters", "layers", "energy_mj")
    assert result.session.costs.limits.tolist()[1:] == [1000.0, math.inf, 2.5, 6.0]
    for limits, problem in (
        ({"layers": 0.5, "power": 1}, "there are latency, macs, parameters, peak_memory, layers"),
        ({"layers": "1x", "energy_mj": 6}, "energy_mj has a limit, and nothing has measured it"),
    ):
        with pytest.raises(ConfigError, match=problem):
            called(costs={"layers": lambda module, _: 1.0}, limits=limits)
    with pytest.raises(ConfigError, match="a cost 'macs' already"):
        called(costs={"macs": lambda module, _: 1.0})
