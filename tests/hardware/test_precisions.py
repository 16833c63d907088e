"""Precisions of a runtime: named, never exchanged, and compared in paired rounds."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from proxylessnas.cli.main import main
from proxylessnas.config import MeasureSettings
from proxylessnas.errors import MeasurementError, UserError
from proxylessnas.export.compare import eager_outputs
from proxylessnas.export.executorch import to_executorch
from proxylessnas.export.onnx import to_onnx
from proxylessnas.export.onnx_blocks import block_files
from proxylessnas.export.onnx_session import open_session
from proxylessnas.export.precision import noisy_inputs
from proxylessnas.export.tflite import to_tflite
from proxylessnas.hardware.measure import earlier_table
from proxylessnas.hardware.precisions import WHOLE, blocks_of, compare_precisions, paired_ratio
from proxylessnas.hardware.runtimes import make
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.timing import Measurement
from proxylessnas.report.precisions import float_lines, processor_lines, verdicts
from proxylessnas.session.deploying import SUFFIXES
from proxylessnas.spaces.blocks import ConvBN, Head, MBConv, Network

SETTINGS = MeasureSettings(network_rounds=4, runs=1, warmup=0)
IMAGE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network() -> Network:
    torch.manual_seed(0)
    blocks = [MBConv(8, 8, kernel=3, expansion=3), nn.Identity(), MBConv(8, 8, kernel=5)]
    return Network(ConvBN(3, 8, 3, 2), blocks, Head(8, 16, 5)).eval()


NEEDS = {
    "onnxruntime": (),
    "openvino": ("openvino",),
    "litert": ("ai_edge_litert", "litert_torch", "ai_edge_quantizer"),
    "executorch": ("executorch", "torchao"),
}


def skip_without(name: str) -> None:
    for package in NEEDS[name]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} of an optional extra is not installed")


@pytest.mark.parametrize("name", NEEDS)
def test_int8_computes_nearly_what_eager_computes(name: str, tmp_path: Path) -> None:
    """The contract of every runtime that has int8: of a module and of a file."""
    skip_without(name)
    runtime, module = make(name, precision="int8"), network()
    assert runtime.describe()["precision"] == "int8" and runtime.name == name
    expected = eager_outputs(module, (IMAGE,))[0]
    session = runtime.load(module, (IMAGE,))
    error = abs(session.outputs()[0] - expected).max()
    assert 0 < error < 0.1 * abs(expected).max() and session.timed(1) > 0
    plain = tmp_path / f"net{SUFFIXES.get(name, '.onnx')}"
    if name == "executorch":  # a .pte cannot be quantised afterwards
        plain.write_bytes(to_executorch(module, (IMAGE,), noisy_inputs((IMAGE,))))
    elif name == "litert":
        plain.write_bytes(to_tflite(module, (IMAGE,)))
    else:
        to_onnx(module, (IMAGE,), plain)
    file = runtime.load_file(plain)
    assert file.precision == "int8" or name == "openvino"
    assert "weights int8" in file.file
    other = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    (got,) = file.run([other.numpy()])
    wanted = eager_outputs(module, (other,))[0]
    assert abs(got - wanted).max() < 0.15 * abs(wanted).max()


class Wave(nn.Module):
    """Convolution, sine, mean, linear: no runtime has a sine of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sin(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "floats"),
    [
        ("onnxruntime", {"Sin": 1, "ReduceMean": 1}),
        ("litert", {"SIN": 1}),
        ("executorch", {"Sin": 1, "mean": 1}),
    ],
)
def test_what_stays_in_float_is_read_from_the_network(name: str, floats: dict[str, int]) -> None:
    skip_without(name)
    shares = make(name, precision="int8").load(Wave().eval(), (IMAGE,)).float_share()
    assert shares is not None and {op: count for op, (count, _) in shares.items()} == floats
    assert make(name, precision="int8").load(network(), (IMAGE,)).float_share() == {}
    plain = make(name).load(network(), (IMAGE,)).float_share() or {}
    assert sum(count for op, (count, _) in plain.items() if "conv" in op.lower()) >= 6


def test_what_stays_in_float_is_said() -> None:
    floats = {"Sin": (1, 0.25), "Pad": (2, 0.5)}
    assert list(float_lines(floats)) == ["stays in float: 1 Sin, 2 Pad, 75 % of the time"]
    assert list(float_lines({"SIN": (1, None)})) == ["stays in float: 1 SIN"]
    assert list(float_lines({})) == ["stays in float: nothing"]
    assert list(float_lines(None)) == []  # a runtime that does not tell


@pytest.mark.parametrize("name", ["litert", "executorch"])
def test_a_file_of_another_precision_is_refused(name: str, tmp_path: Path) -> None:
    skip_without(name)
    linear, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.ones(1, 4)
    path = tmp_path / f"net{SUFFIXES[name]}"
    if name == "executorch":
        path.write_bytes(to_executorch(linear, (x,)))
        with pytest.raises(MeasurementError, match="does not say that it is in int8"):
            make(name, precision="int8").load_file(path)
        return
    path.write_bytes(to_tflite(linear, (x,), noisy_inputs((x,))))
    runtimes = {p: make(name, precision=p) for p in ("f32", "int8")}
    with pytest.raises(MeasurementError, match="a file of int8, which cannot be measured in f32"):
        compare_precisions(path, (x,), runtimes, SETTINGS, seed=0)


@pytest.mark.parametrize(
    ("name", "precision", "words"),
    [
        ("torch", "int8", "the runtime torch computes in f32 alone"),
        ("onnxruntime", "int7", "there is no precision 'int7'; did you mean int8"),
        ("onnxruntime", "int8,int8", "there is no precision 'int8,int8'"),
        ("onnxruntime", "bf16", "no bf16 kernels on CPU"),
        ("onnxruntime", "fp16", "no fp16 kernels on CPU"),
        ("fake", "bf16", "f32 and int8, not in bf16"),
        ("litert", "fp16", "f32 and int8, not in fp16|needs the package"),
        ("executorch", "bf16", "f32 and int8, not in bf16|needs the package"),
    ],
)
def test_a_precision_that_would_be_another_is_refused(
    name: str, precision: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        make(name, precision=precision)
    if importlib.util.find_spec({"litert": "ai_edge_litert"}.get(name, "torch")) is None:
        return
    if name == "executorch" and importlib.util.find_spec(name) is None:
        return
    assert make(name, precision="f32").describe()["precision"] == "f32"


# --- tables ---


def table(precision: str) -> LatencyTable:
    return LatencyTable(
        device={**make("fake", precision=precision).describe(), "batch": 1}, entries={}
    )


def test_tables_of_different_precisions_are_never_exchanged(tmp_path: Path) -> None:
    int8 = make("fake", precision="int8").describe()
    for force in (False, True):
        with pytest.raises(MeasurementError, match="precision 'f32', not 'int8'"):
            table("f32").check(int8, 1, force=force)
    with pytest.raises(MeasurementError, match="table is of f32, and int8 is asked for"):
        table("f32").check_precision("int8")
    with pytest.raises(MeasurementError, match="table is of int8, and f32 is asked for"):
        table("int8").check_precision(None)
    table("int8").check_precision("int8")
    table("f32").check_precision(None)
    path = tmp_path / "table.json"
    table("f32").save(path)
    with pytest.raises(MeasurementError, match="precision 'f32', not 'int8'"):
        earlier_table(path, {**int8, "batch": 1})
    with pytest.raises(MeasurementError, match="different precision"):
        table("f32").merge(table("int8"))


# --- pairs ---


def test_a_ratio_is_of_the_same_rounds() -> None:
    slow = Measurement(samples_ms=(10.0, 20.0, 40.0, 10.0))  # one machine, slower and faster
    ratio = paired_ratio(Measurement(samples_ms=(5.0, 10.0, 20.0, 5.0)), slow)
    assert (ratio.value, ratio.low, ratio.high) == (0.5, 0.5, 0.5)
    noisy = paired_ratio(Measurement(samples_ms=(4.0, 10.0, 24.0, 5.0)), slow)
    assert noisy.low < noisy.value == 0.5 < noisy.high
    with pytest.raises(MeasurementError, match="other rounds"):
        paired_ratio(slow, Measurement(samples_ms=(1.0,)))


class Odd(nn.Module):
    """A part that runs twice, and one that takes no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.scale, self.once = nn.Linear(4, 4), Scale(), nn.Linear(4, 4)
        self.deep = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.deep(self.scale(self.once(self.twice(self.twice(x))), 2.0))


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, by: float) -> Tensor:
        return self.weight * x * by


def test_blocks_are_those_that_can_be_measured_alone() -> None:
    names = ["stem", "blocks.0", "blocks.2", "head"]
    blocks = blocks_of(network(), (IMAGE,))
    assert list(blocks) == names
    assert [x.shape for x in blocks["blocks.2"].inputs] == [(1, 8, 8, 8)]
    assert list(blocks_of(Odd().eval(), (torch.ones(1, 4),))) == ["once", "deep.0", "deep.1"]


def test_the_whole_and_its_blocks_in_both_precisions() -> None:
    runtimes = {p: make("fake", precision=p) for p in ("f32", "int8")}
    whole, *blocks = compare_precisions(network(), (IMAGE,), runtimes, SETTINGS, seed=0)
    assert whole.name == WHOLE and len(blocks) == 4
    assert {row.ratio("int8", "f32").value for row in (whole, *blocks)} == {0.5}
    lines = list(verdicts([whole, *blocks]))
    assert lines[0].startswith("int8 pays here: 0.50")
    runtimes["int8"].slowdown = 3.0
    lines = list(verdicts(compare_precisions(network(), (IMAGE,), runtimes, SETTINGS, seed=0)))
    assert lines[0].startswith("warning: int8 does not pay here: 1.50")
    assert lines[1] == "slower in int8: stem, blocks.0, blocks.2, head"


def test_the_blocks_of_an_onnx_file(tmp_path: Path) -> None:
    module, path = network(), tmp_path / "net.onnx"
    to_onnx(module, (IMAGE,), path)
    files = block_files(path, tmp_path)
    assert list(files) == ["stem.0", "blocks.0", "blocks.2", "head.0", "head.4"]
    x = IMAGE.numpy()
    for file in files.values():  # one after the other they are the network
        session = open_session(str(file))
        (x,) = session.run(None, {session.get_inputs()[0].name: x})
    assert abs(x - eager_outputs(module, (IMAGE,))[0]).max() < 1e-5
    runtimes = {p: make("fake", precision=p) for p in ("f32", "int8")}
    whole, *blocks = compare_precisions(path, (IMAGE,), runtimes, SETTINGS, seed=0)
    assert [row.name for row in blocks] == list(files)
    assert {row.ratio("int8", "f32").value for row in (whole, *blocks)} == {0.5}
    model = onnx.load(path)
    for i, node in enumerate(model.graph.node):  # as an exporter that names no modules
        node.name = f"node_{i}"
    onnx.save(model, path)
    assert block_files(path, tmp_path) == {}


def test_a_processor_without_integer_instructions_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    where = "proxylessnas.report.precisions"
    monkeypatch.setattr(f"{where}.integer_instructions", lambda: ())
    monkeypatch.setattr(f"{where}.needs_reduced_range", lambda: True)
    (line,) = processor_lines()
    assert "avx512_vnni" in line and "7 bits" in line
    monkeypatch.setattr(f"{where}.integer_instructions", lambda: ("avx_vnni",))
    assert list(processor_lines()) == []


# --- the command ---

FEW = ["--measure.network-rounds=3", "--measure.runs=1", "--quiet"]


def test_the_command_says_whether_int8_pays(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["measure", "proxyless_cpu", "--runtime=fake", "--precision=f32,int8", *FEW]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert re.search(r"the whole network +[\d.]+ +[\d.]+ +0\.50 \(0\.50 to 0\.50\)", said)
    assert "blocks.3" in said and "int8 pays here" in said and "f32 and int8" in said
    path = tmp_path / "net.onnx"
    to_onnx(network(), (IMAGE,), path)
    assert main(["measure", str(path), "--precision=f32,int8", *FEW]) == 0
    assert WHOLE in capsys.readouterr().out
    for said_twice in ("int8", "int8,int8"):
        assert main(["measure", str(path), f"--precision={said_twice}", *FEW]) == 0
        said = capsys.readouterr().out
        assert "int8, 1 thread" in said and "weights int8\n" in said
    assert main(["measure", str(path), "--runtime=onnxruntime,fake", *FEW]) == 0
    assert re.search(r"network +onnxruntime +fake", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["proxyless_cpu", "--precision=int7"], "no precision 'int7'; did you mean int8?"),
        (["proxyless_cpu", "--precision="], "no precision ''"),
        (["--out=t.json", "--precision=f32,int8"], "a table is of one precision"),
        (["--data=digits", "--precision=f32,int8"], "a network is found for one precision"),
        (["proxyless_cpu", "--runtime=torch", "--precision=int8"], "torch computes in f32 alone"),
        (["proxyless_cpu", "--precision=fp16"], "no fp16 kernels on CPU"),
    ],
)
def test_bad_precisions_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], expected: str
) -> None:
    words = [word.replace("t.json", str(tmp_path / "t.json")) for word in words]
    assert main(["measure", *words, "--quiet"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert expected in line


def test_an_int8_file_is_of_int8_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from proxylessnas.export.precision import noisy_feeds, quantised

    path = tmp_path / "net.int8.onnx"
    plain = to_onnx(network(), (IMAGE,))
    path.write_bytes(quantised(plain, noisy_feeds({"input": IMAGE.numpy()}), reduce_range=True))
    assert main(["measure", str(path), "--precision=f32,int8", *FEW]) == 2
    assert "is a file of int8" in capsys.readouterr().err
    assert main(["measure", str(path), *FEW]) == 0
    assert "weights int8" in capsys.readouterr().out
