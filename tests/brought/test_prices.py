"""Costs of one's own, Zero on the trunk, tables and architectures of elsewhere, weights unsaid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from toys import search_of_vectors

import proxylessnas
from proxylessnas import MixedOp
from proxylessnas.api import Result
from proxylessnas.architecture import Architecture
from proxylessnas.cli.main import main
from proxylessnas.config import MeasureSettings
from proxylessnas.core.supernet import Residual, Supernet, Zero
from proxylessnas.errors import (
    ArchitectureError,
    ConfigError,
    LimitError,
    MeasurementError,
    RunError,
    SupernetError,
)
from proxylessnas.hardware.count import count_macs
from proxylessnas.hardware.plan import plan_measurement
from proxylessnas.hardware.published_table import (
    PublishedTable,
    published_cost,
    read_published_table,
)
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.spaces import build, build_supernet


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        wide = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
        self.first = MixedOp({"plain": nn.Linear(4, 4), "wide": wide})
        self.second = MixedOp([nn.Linear(4, 4), nn.Identity()])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return out


class NeverLoads(FakeRuntime):
    """Nothing may be measured on it."""

    def load(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
        raise AssertionError("something was measured")


def searched(model: nn.Module | None = None, **options: Any) -> Result:
    return search_of_vectors(model or Net(), **options)


# --- costs of one's own ---


def raising(module: nn.Module, inputs: tuple[Any, ...]) -> float:
    raise KeyError("energy")


@pytest.mark.parametrize(
    ("cost", "limit", "error", "words"),
    [
        (lambda m, i: 0, "0.8x", LimitError, "a share of the largest network's, which is 0"),
        (lambda m, i: -2, "0.8x", LimitError, "give the limit as a number"),
        (lambda m, i: 1e308, 5, ConfigError, r"is 1e\+308: not under 1e\+30"),
        (lambda m, i: float("nan"), 5, ConfigError, "not a finite number"),
        (count_macs, 5, LimitError, "no network of this space keeps a mine of 5"),
        (raising, 5, ConfigError, "the cost mine fails on the candidate 'Linear 4>4': KeyError"),
    ],
)
def test_a_cost_that_is_no_price_is_refused_before_anything_is_measured(
    cost: Callable[..., float], limit: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        searched(
            runtime=NeverLoads(),
            target_latency="0.8x",
            costs={"mine": cost},
            limits={"mine": limit},
        )


def test_a_cost_that_is_nothing_everywhere_may_have_a_number_as_its_limit() -> None:
    assert searched(costs={"mine": lambda m, i: 0}, limits={"mine": 5}).predicted["mine"] == 0


def test_a_cost_is_asked_once_for_each_candidate_and_for_two_networks() -> None:
    asked: list[nn.Module] = []

    def cost(module: nn.Module, inputs: tuple[Any, ...]) -> float:
        asked.append(module)
        return float(count_macs(module, inputs))

    searched(costs={"mine": cost}, limits={"mine": "0.9x"}, target_latency="2x")
    assert len(asked) == 2 + 2  # a linear layer stands in both choices


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def f(:\n", "SyntaxError"),
        ("undefined_name", "NameError: name 'undefined_name' is not defined"),
        ("import sys\nsys.exit('usage')", "SystemExit: usage"),
        ("1 / 0", "ZeroDivisionError"),
        ("import not_installed_at_all", "No module named 'not_installed_at_all'"),
    ],
)
def test_a_module_of_costs_that_fails_at_import(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"costs_{abs(hash(text))}"
    Path(f"{name}.py").write_text(text)
    command = ["run", "--data=digits", f"--costs={{energy: '{name}:energy'}}", "--out=run"]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot import '{name}' of the cost '{name}:energy': {words}" in line
    assert not Path("run/stages").exists()


def test_example_inputs_without_an_example() -> None:
    with pytest.raises(SupernetError, match=r"no example \(0x4 f32\)"):
        searched(example_inputs=(torch.zeros(3, 4)[:0],))


# --- Zero on the trunk ---


class Trunk(nn.Module):
    """A mixed operation with Zero; beside it a way past or none; after it more of the network."""

    def __init__(self, *, past: bool, operations: int = 1) -> None:
        super().__init__()
        self.past = past
        self.ops = nn.ModuleList(
            MixedOp({"none": Zero(), "one": nn.Linear(4, 4), "two": nn.Linear(4, 4, bias=False)})
            for _ in range(operations)
        )
        self.head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        edges = sum(op(x) for op in self.ops)
        out: Tensor = self.head(edges + x if self.past else edges)
        return out


def test_a_zero_that_leaves_a_constant_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(
        SupernetError, match=r"where 'ops.0' chooses 'none' \(Zero\), the output no"
    ):
        searched(Trunk(past=False), runtime=NeverLoads(), target_latency="0.8x")


def test_a_zero_that_a_keyword_alone_runs_into_is_refused() -> None:
    keywords = {"x": torch.zeros(1, 4)}
    batches = [({"x": torch.ones(8, 4)}, torch.ones(8, 4))] * 2
    options: dict[str, Any] = {"example_kwargs": keywords, "target_latency": "2x"}
    options |= {"example_inputs": None, "train": batches, "valid": batches}
    with pytest.raises(SupernetError, match=r"'ops.0' chooses 'none' \(Zero\)"):
        searched(Trunk(past=False), **options)
    assert searched(Trunk(past=True), **options).measured_ms is not None


def test_a_zero_that_integers_alone_run_into_is_refused() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.trunk = Trunk(past=False)

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.trunk(self.embedding(ids))
            return out

    plan = (torch.zeros(2, dtype=torch.int64),), MeasureSettings()
    with pytest.raises(SupernetError, match=r"'trunk.ops.0' chooses 'none'"):
        plan_measurement(Supernet(Text()), *plan, seed=0)


@pytest.mark.parametrize(
    "model",
    [
        Trunk(past=True),
        nn.Sequential(nn.Linear(4, 4), Residual(MixedOp([Zero(), nn.Linear(4, 4)]))),
    ],
    ids=["beside a sum", "in a residual block"],
)
def test_a_zero_beside_a_shortcut_is_measured(model: nn.Module) -> None:
    weights = {name: p.requires_grad for name, p in model.named_parameters()}
    planned = plan_measurement(Supernet(model), (torch.zeros(1, 4),), MeasureSettings(), seed=0)
    assert planned.plan.networks
    assert weights == {name: p.requires_grad for name, p in model.named_parameters()}


def test_of_edges_that_are_constant_only_together_no_constant_network_is_measured() -> None:
    """As cells have them: each edge may be left out, and the network of none is never fitted."""
    supernet = Supernet(Trunk(past=False, operations=3))
    plan = plan_measurement(supernet, (torch.zeros(1, 4),), MeasureSettings(), seed=0).plan
    assert len(plan.networks) > 3
    assert all(set(n.choices.values()) != {"none"} for n in plan.networks)


# --- tables and architectures of elsewhere ---


def pixel(tmp_path: Path) -> Path:
    """A table as published, of a space of one block, at 224 pixels and of 1,000 classes."""
    block = "-expand:{}-kernel:{}-stride:{}-idskip:0"
    sizes = "expanded_conv-input:112x112x32-output:112x112x16"
    stage = "expanded_conv-input:112x112x16-output:56x56x24"
    keys = ["Conv-input:224x224x3-output:112x112x32", sizes + block.format(1, 3, 1)]
    keys += [stage + block.format(e, k, 2) for e in (3, 6) for k in (3, 5, 7)]
    keys += ["Conv_1-input:56x56x24-output:56x56x1280", "Logits-input:56x56x1280-output:1000"]
    entries = {key: {"count": 9, "mean": 1.0 + i, "var": 0.1} for i, key in enumerate(keys)}
    path = tmp_path / "pixel.yaml"
    path.write_text(yaml.safe_dump(entries))
    return path


def one_block(**settings: Any) -> Supernet:
    sizes = {"widths": [24], "depths": [1], "strides": [2]}
    return build_supernet("mobile", {**sizes, **settings})


@pytest.fixture
def table(tmp_path: Path) -> PublishedTable:
    return read_published_table(pixel(tmp_path))


def test_other_classes_are_priced_by_their_published_neighbour(table: PublishedTable) -> None:
    thousand = published_cost(one_block(), table)
    with pytest.warns(
        UserWarning, match=r"no Logits.*output:10: it counts as .*output:1000, 10 ms"
    ):
        ten = published_cost(one_block(classes=10), table)
    assert torch.equal(ten.fixed, thousand.fixed)


def test_other_channels_of_the_image_are_priced_by_their_neighbour(table: PublishedTable) -> None:
    with pytest.warns(UserWarning, match="no Conv-input:224x224x1-output.*224x224x3"):
        published_cost(one_block(input_shape=[1, 224, 224]), table)


def test_other_pixels_are_refused_with_those_that_have_a_price(table: PublishedTable) -> None:
    with pytest.raises(MeasurementError, match="images of 224 pixels, not 96: --image-size 224"):
        published_cost(one_block(input_shape=[3, 96, 96]), table)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--image-size=96"], "prices images of 224 pixels, not 96"),
        (["--space-settings={input_shape: [3, 64, 64]}"], "not 64"),
        (["--space=macro"], "prices the space mobile, not macro"),
    ],
)
def test_a_table_of_other_images_is_refused_before_the_data_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    (tmp_path / "photos").mkdir()  # empty, which reading would refuse
    command = ["run", f"--data={tmp_path}/photos", f"--table={pixel(tmp_path)}", *options]
    assert main([*command, f"--out={tmp_path}/run"]) == 2
    assert words in capsys.readouterr().err


def test_a_table_that_is_none_is_refused_before_the_data_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.json").write_text("{")
    (tmp_path / "photos").mkdir()  # empty, which reading would refuse
    command = ["run", f"--data={tmp_path}/photos", f"--out={tmp_path}/run"]
    assert main([*command, f"--table={tmp_path}/table.json"]) == 2
    assert "table.json is not a latency table: it is not JSON" in capsys.readouterr().err


def test_a_table_of_this_machine_is_not_said_to_be_of_another() -> None:
    made = searched(target_latency="2x").session
    assert made.table is not None
    assert made.table.differs_from(FakeRuntime().describe()) == ""
    threads = made.table.differs_from(FakeRuntime(threads=2).describe())
    assert threads == "the table is of this device, but with threads 1, not 2"
    phone = made.table.differs_from(FakeRuntime(device="phone").describe())
    assert phone == "the table's device, fake device, is not here"


def test_the_architecture_of_a_model_of_ones_own_is_not_built_from_its_file(
    tmp_path: Path,
) -> None:
    result = searched(out=tmp_path / "run")
    architecture = Architecture.load(tmp_path / "run" / "architecture.json")
    with pytest.raises(
        ArchitectureError, match=r"a model of one's own: Supernet\(Net\(\)\).derive"
    ):
        build(architecture)
    assert isinstance(Supernet(Net()).derive(architecture), nn.Module)
    assert architecture == result.architecture


@pytest.mark.parametrize("change", ["cut", "emptied", "edited", "removed"])
@pytest.mark.parametrize("name", ["architecture.json", "latency_table.json"])
def test_a_damaged_file_of_a_run_of_ones_own_is_named(
    tmp_path: Path, name: str, change: str
) -> None:
    """With what to do in Python: such a run has no command."""
    searched(out=tmp_path / "run", target_latency="2x")
    file = tmp_path / "run" / name
    text = file.read_text()
    changed = {"cut": text[:40], "emptied": "", "edited": text.replace('"0"', '"7"') + " "}
    file.unlink()
    if change in changed:
        file.write_text(changed[change])
    with pytest.raises(RunError) as error:
        proxylessnas.load(tmp_path / "run", model=Net(), runtime=FakeRuntime())
    assert f"{file} is missing or was changed" in str(error.value)
    assert "make the same call of search(out=...) again" in str(error.value)
    assert "proxylessnas " not in str(error.value)


# --- weights unsaid ---


def test_a_published_network_is_not_exported_with_random_weights_unsaid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "net.pt2"
    command = ["zoo", "proxyless_cpu", "--export", str(file)]
    assert main(command) == 2
    line = capsys.readouterr().err
    assert "--weights FILE, with which it has 75.3 %, or say --random-weights" in line
    assert not file.exists()
    assert main([*command, "--random-weights"]) == 0
    assert file.exists()
