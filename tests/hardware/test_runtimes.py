"""One contract for every runtime: what it computes, what it says of itself, how it fails."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from proxylessnas.core.supernet import Residual
from proxylessnas.errors import MeasurementError, MissingDependency, UserError
from proxylessnas.export.compare import eager_outputs
from proxylessnas.export.executorch import to_executorch
from proxylessnas.export.onnx import compare, to_onnx
from proxylessnas.export.tflite import to_tflite
from proxylessnas.hardware import kit_main, runtimes
from proxylessnas.hardware.networks import Reordering
from proxylessnas.hardware.runtimes import Runtime, executorch, make
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.spaces.blocks import ConvBN, Head, MBConv

NEEDS = {
    **{"litert": ("ai_edge_litert", "litert_torch"), "openvino": ("openvino",)},
    "executorch": ("executorch",),
}
SUFFIXES = {"litert": ".tflite", "executorch": ".pte"}
PLUGIN = "plugin"  # a runtime of another package, by its entry point
NAMES = ("onnxruntime", "torch", "torch:channels_last", "litert", "openvino", "fake", PLUGIN)
NAMES += ("executorch",)  # an export takes tens of seconds


class PluginRuntime(FakeRuntime):
    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads=threads)
        self.name = PLUGIN


class EntryPoint:
    name = PLUGIN

    def load(self) -> Callable[..., Runtime]:
        return PluginRuntime


def entry_points(*, group: str, name: str = PLUGIN) -> list[EntryPoint]:
    return [EntryPoint()] if (group, name) == ("proxylessnas.runtimes", PLUGIN) else []


@pytest.fixture(params=NAMES)
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    monkeypatch.setattr(runtimes, "entry_points", entry_points)
    for module in NEEDS.get(request.param.partition(":")[0], ()):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"the package {module} of an optional extra is not installed")
    return make(request.param)


class Sum(nn.Module):
    """Two inputs, two outputs, one of them not an image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = self.conv(x) + y
        return z, z.mean((2, 3))


class Refuses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such kernel\nand a second line")


def network() -> nn.Module:
    return nn.Sequential(
        ConvBN(3, 8, 3, 2), Residual(MBConv(8, 8, kernel=5, expansion=3)), Head(8, 16, 5)
    ).eval()


CASES: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "network": lambda: (network(), (torch.randn(2, 3, 16, 16),)),
    "strided block": lambda: (
        MBConv(4, 8, kernel=7, expansion=6, stride=2).eval(),
        (torch.randn(1, 4, 12, 10),),
    ),
    "two inputs": lambda: (Sum().eval(), (torch.randn(1, 4, 6, 6), torch.randn(1, 4, 6, 6))),
}


@pytest.mark.parametrize("case", CASES)
def test_computes_what_eager_computes(runtime: Runtime, case: str) -> None:
    torch.manual_seed(0)
    module, inputs = CASES[case]()
    session = runtime.load(module, inputs)
    session()
    expected, got = eager_outputs(module, inputs), session.outputs()
    assert len(expected) == len(got)
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4 * np.abs(a).max())
    session.close()


def test_other_inputs_leave_the_own_ones_alone(runtime: Runtime) -> None:
    """A runtime that keeps a view of the caller's memory writes into it, or reads it when freed."""
    module, inputs = CASES["network"]()
    own = inputs[0].clone()
    session = runtime.load(module, inputs)
    other = torch.randn(2, 3, 16, 16)
    try:
        (got,) = session.run([other.numpy()])
    except MeasurementError as error:
        assert "this runtime measures networks" in str(error)
        return
    expected = eager_outputs(module, (other,))[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert torch.equal(inputs[0], own)


def test_loading_leaves_the_module_alone(runtime: Runtime) -> None:
    module = network()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    session = runtime.load(module, (torch.randn(1, 3, 16, 16),))
    session()
    assert not module.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_time_is_positive_and_in_seconds(runtime: Runtime) -> None:
    session = runtime.load(network(), (torch.randn(1, 3, 16, 16),))
    session()
    assert 0 < session.timed(1) < 60
    assert 0 < session.timed(3) < 60


def test_describes_the_device(runtime: Runtime) -> None:
    described = runtime.describe()
    assert set(described) == {"runtime", "version", "precision", "threads", "device"}
    assert described["runtime"] == runtime.name
    assert described["threads"] == 1
    assert all(isinstance(v, str | int) and v for v in described.values())


def test_a_module_that_cannot_run_is_one_line(runtime: Runtime) -> None:
    if isinstance(runtime, FakeRuntime):
        runtime.fails = "Refuses"
    with pytest.raises(UserError) as caught:
        runtime.load(Refuses(), (torch.randn(1, 3, 4, 4),))
    assert "\n" not in str(caught.value)


def test_says_nothing_on_the_terminal(runtime: Runtime, capfd: pytest.CaptureFixture[str]) -> None:
    runtime.load(network(), (torch.randn(1, 3, 16, 16),))()
    assert capfd.readouterr() == ("", "")


def test_runs_an_exported_file(runtime: Runtime, tmp_path: Path) -> None:
    module, inputs = network(), (torch.randn(2, 3, 16, 16),)
    file = tmp_path / f"net{SUFFIXES.get(runtime.name, '.onnx')}"
    if runtime.name.startswith("torch"):
        with pytest.raises(MeasurementError, match=r"net\.onnx"):
            runtime.load_file(file)
        return
    if runtime.name == "litert":
        file.write_bytes(to_tflite(module, inputs))
    elif runtime.name == "executorch":
        file.write_bytes(to_executorch(module, inputs))
    else:
        model = onnx.load_model_from_string(to_onnx(module, inputs))
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"  # left open
        onnx.save(model, file)
    session = runtime.load_file(file, batch=2)
    assert session.timed(1) > 0
    if isinstance(runtime, FakeRuntime):
        assert session.timed(1) == pytest.approx(runtime.load(module, inputs).timed(1))
    else:
        assert session.outputs()[0].shape == (2, 5)


@pytest.mark.parametrize("content", [b"", b"not a network", b"\x00" * 64])
def test_a_file_of_something_else_is_an_error(
    runtime: Runtime, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / f"broken{SUFFIXES.get(runtime.name, '.onnx')}"
    path.write_bytes(content)
    with pytest.raises(MeasurementError, match="broken"):
        runtime.load_file(path)
    with pytest.raises(MeasurementError, match="missing"):
        runtime.load_file(path.with_stem("missing"))
    with pytest.raises(MeasurementError, match=r"broken\.txt"):
        runtime.load_file(path.with_suffix(".txt"))


# --- by name ---


def test_unknown_names_and_options() -> None:
    with pytest.raises(MeasurementError, match="did you mean onnxruntime"):
        make("onnxruntim")
    with pytest.raises(MeasurementError, match="channels_last"):
        make("torch:channels_first")
    with pytest.raises(MeasurementError, match="execution provider 'quantum'"):
        make("onnxruntime:quantum")
    with pytest.raises(MeasurementError, match="threads is 0"):
        make("torch", threads=0)
    if not torch.cuda.is_available():
        with pytest.raises(MeasurementError, match="no CUDA device"):
            make("torch:cuda")


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "coreml", "qnn", "xnnpack"])
def test_a_known_provider_that_is_not_here_says_where_it_is(name: str) -> None:
    import onnxruntime as ort

    if any(name in provider.lower() for provider in ort.get_available_providers()):
        pytest.skip("this onnxruntime has it")
    with pytest.raises(MeasurementError, match=f"built without the execution provider {name}.*cpu"):
        make(f"onnxruntime:{name}")


def test_openvino_refuses_a_device_that_is_not_here() -> None:
    pytest.importorskip("openvino")
    for device in ("gpu", "NPU"):
        with contextlib.suppress(MeasurementError):
            assert make(f"openvino:{device}").name == f"openvino:{device.lower()}"
            continue
        with pytest.raises(MeasurementError, match=f"finds no {device.upper()} here; .*CPU"):
            make(f"openvino:{device}")
    with pytest.raises(MeasurementError, match="one precision and one device"):
        make("openvino:gpu,npu")
    with pytest.raises(MeasurementError, match="has no option 'tpu'"):
        make("openvino:tpu")


def test_a_provider_that_does_not_start_is_not_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as ort

    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    monkeypatch.setattr(ort, "get_available_providers", lambda: [cuda, cpu])

    class Session:
        """As ONNX Runtime's own where CUDA's libraries are not found."""

        def __init__(self, *_: object, **__: object) -> None: ...

        def get_providers(self) -> list[str]:
            return [cpu]

    monkeypatch.setattr(ort, "InferenceSession", Session)
    assert make("onnxruntime").open(b"") is not None  # type: ignore[attr-defined]
    with pytest.raises(MeasurementError, match=f"could not start {cuda} .* on {cpu}"):
        make("onnxruntime:cuda").open(b"")  # type: ignore[attr-defined]


def options_of(options: Any, keys: Sequence[str]) -> dict[str, object]:
    plain = [n for n in dir(options) if not n.startswith("_") and not callable(getattr(options, n))]
    values = {name: getattr(options, name) for name in plain}
    for key in keys:
        with contextlib.suppress(RuntimeError):  # not set
            values[key] = options.get_session_config_entry(key)
    return values


@pytest.mark.parametrize("threads", [1, 2])
def test_every_session_of_onnxruntime_has_the_same_options(
    threads: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Here, in a kit and where an export is compared: other options would be other latencies."""
    import onnxruntime as ort

    opened: dict[str, ort.SessionOptions] = {}
    where, session = "", ort.InferenceSession

    def recorded(content: bytes, options: ort.SessionOptions, **more: Any) -> Any:
        if not options.enable_profiling:
            opened[where] = options
        return session(content, options, **more)

    monkeypatch.setattr(ort, "InferenceSession", recorded)
    module, inputs = network(), (torch.randn(1, 3, 16, 16),)
    where, content = "here", to_onnx(module, inputs)
    make("onnxruntime", threads=threads).load(module, inputs)
    where = "file"
    (tmp_path / "net.onnx").write_bytes(content)
    make("onnxruntime", threads=threads).load_file(tmp_path / "net.onnx")
    where = "kit"
    entry = {"file": "net.onnx", "inputs": [[[1, 3, 16, 16], "float32"]], "block": False}
    manifest = {"runtime": "onnxruntime", "threads": threads, "precision": "f32"}
    manifest["files"] = {"net": entry}
    kit_main.load(str(tmp_path), manifest, "net")
    if threads == 1:
        where = "compare"
        compare(module, content, inputs)
    keys = ["session.set_denormal_as_zero", "session.intra_op.allow_spinning"]
    keys += ["session.force_spinning_stop"]
    options = {name: options_of(o, keys) for name, o in opened.items()}
    assert set(options) == {"here", "file", "kit", *(["compare"] if threads == 1 else [])}
    assert options["here"]["session.set_denormal_as_zero"] == "1"
    assert options["here"]["intra_op_num_threads"] == threads
    assert all(other == options["here"] for other in options.values())


FIRST = """
import sys, torch
from proxylessnas.export.executorch import to_executorch
from proxylessnas.export.onnx import compare, to_onnx
from proxylessnas.hardware.runtimes import make
module, inputs = torch.nn.Linear(2, 2).eval(), (torch.randn(1, 2),)
if sys.argv[1] == "load":
    make("onnxruntime").load(module, inputs)()
else:
    compare(module, to_onnx(module, inputs), inputs)
assert (torch.tensor([1e-40]) * 1.0).item() != 0
"""


@pytest.mark.parametrize("how", ["load", "compare"])
def test_the_first_session_of_a_process_leaves_denormals_to_the_training(how: str) -> None:
    done = subprocess.run([sys.executable, "-c", FIRST, how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["litert", "openvino"])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(MissingDependency, match=rf"pip install 'proxylessnas\[{name}\]'"):
        make(name)


def test_a_plugin_adds_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MeasurementError, match="there is no runtime 'plugin'"):
        make(PLUGIN)
    monkeypatch.setattr(runtimes, "entry_points", entry_points)
    assert make(PLUGIN, threads=2).describe()["threads"] == 2
    assert PLUGIN in runtimes.names()
    assert runtimes.split("onnxruntime,plugin") == ["onnxruntime", PLUGIN]


def test_openvino_refuses_a_precision_it_would_ignore() -> None:
    openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")
    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" in able:
        assert make("openvino:bf16").describe()["precision"] == "bf16"
    else:
        with pytest.raises(MeasurementError, match="does not compute in bf16"):
            make("openvino:bf16")


def test_several_threads(runtime: Runtime) -> None:
    several = make(runtime.name, threads=2)
    session = several.load(network(), (torch.randn(1, 3, 16, 16),))
    assert session.timed(2) > 0
    assert several.describe()["threads"] == 2


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_the_reorders_of_a_block_alone_are_not_timed(name: str) -> None:
    """A block's activations come in the runtime's own layout within a network."""
    if name == "openvino":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
    block = make(name).load(ConvBN(16, 16, 3).eval(), (torch.randn(1, 16, 24, 24),))
    image = make(name).load(ConvBN(3, 16, 3).eval(), (torch.randn(1, 3, 24, 24),))
    block()
    image()
    if name == "onnxruntime":
        assert 0 <= block.reordering.seconds < 1e-2  # type: ignore[attr-defined]
        assert image.reordering == (0.0, 0.0)  # type: ignore[attr-defined]
    else:
        assert 0 <= block._reordering().seconds < 1e-2  # type: ignore[attr-defined]
        assert image.timed(1) > 0
    assert block.timed(3) > 0


def test_of_a_tiny_layer_profiling_is_not_believed() -> None:
    """Its reorders take no longer than itself, however long a profile says that they take."""
    tiny = Reordering(seconds=5e-6, share=0.5)  # of an inference of 6 microseconds
    assert tiny.taken_out(60e-6, 10) == pytest.approx(30e-6)
    large = Reordering(seconds=20e-6, share=0.07)
    assert large.taken_out(3000e-6, 10) == pytest.approx(2800e-6)


SHARED_POOL = """
import torch
from proxylessnas.export.compare import eager_outputs
from proxylessnas.hardware.runtimes import make
torch.manual_seed(0)
module, inputs = torch.nn.Conv2d(3, 8, 3).eval(), (torch.randn(1, 3, 8, 8),)
sessions = [make("executorch", threads=n).load(module, inputs) for n in (1, 2)]
for session in 3 * sessions:
    session.timed(1)
    assert abs(session.outputs()[0] - eager_outputs(module, inputs)[0]).max() < 1e-4
"""


def test_executorch_does_not_use_a_pool_of_threads_that_is_gone() -> None:
    """What is freed is overwritten here, as it is by chance where other runtimes are at work."""
    pytest.importorskip("executorch", reason="the extra executorch is not installed")
    environment = {**os.environ, "MALLOC_PERTURB_": "165"}
    done = subprocess.run(
        [sys.executable, "-c", SHARED_POOL], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_method_is_loaded_again_where_the_pool_of_threads_is_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would go on with a pointer to the one that is gone."""
    pools = [2]  # by their threads; the last one is there

    class Method:
        def __init__(self) -> None:
            self.pool = len(pools)

        def execute(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            assert self.pool == len(pools)
            return inputs

    portable_lib = SimpleNamespace(_unsafe_reset_threadpool=pools.append)
    for name, value in (
        ("executorch", SimpleNamespace()),
        ("executorch.extension", SimpleNamespace()),
        ("executorch.extension.pybindings", SimpleNamespace(portable_lib=portable_lib)),
    ):
        monkeypatch.setitem(sys.modules, name, value)
    monkeypatch.setattr(executorch, "loaded", lambda content: Method())
    monkeypatch.setattr(executorch, "_POOL", executorch._Pool())
    inputs = (torch.ones(2),)
    one, other = (executorch._Session(b"", inputs, threads) for threads in (1, 2))
    for session in (one, one, other, one):
        session.timed(1)
        session.outputs()
    assert pools == [2, 1, 2, 1, 2, 1]
