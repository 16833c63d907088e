"""K8. What deepcopy cannot copy, lazy layers, and what is no candidate at all."""

from __future__ import annotations

import io
import logging
import queue
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, weight_norm
from toys import search_of_vectors

import proxylessnas
from proxylessnas import MixedOp
from proxylessnas.config import MeasureSettings
from proxylessnas.core.supernet import Supernet, Zero
from proxylessnas.errors import MeasurementError, SupernetError
from proxylessnas.hardware.count import count_macs
from proxylessnas.hardware.runtimes.fake import FakeRuntime, FakeSession
from proxylessnas.hardware.timing import MEND, measure_sessions
from proxylessnas.training.copying import copied
from proxylessnas.training.task import Task


class Writer:
    """As TensorBoard's: a file, a queue and a thread with its lock."""

    def __init__(self, path: Path | None = None) -> None:
        self.file = io.StringIO() if path is None else path.open("w")
        self.queue: queue.Queue[int] = queue.Queue()
        self.thread = threading.Thread(target=print)

    def add_scalar(self, value: float) -> None:
        self.file.write(f"{value}\n")


class Telling(nn.Module):
    """A linear layer beside something that cannot be copied."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.linear, self.held = nn.Linear(4, 4), held

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


class Remembering(Telling):
    """Keeps what it last computed, with its history."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = [super().forward(x)]
        return self.last[0]


class Entangled:
    """An object that cannot be copied, and whose weights must be."""

    def __init__(self) -> None:
        self.weights = nn.Linear(4, 4)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot pickle 'Entangled' object")


def bound_hook() -> nn.Module:
    module = Telling(threading.Lock())
    module.register_forward_hook(module_hook)
    return module


def module_hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output + 0


def pruned() -> nn.Module:
    module = nn.Linear(4, 4)
    prune.l1_unstructured(module, "weight", amount=0.5)
    module(torch.zeros(1, 4))
    return module


HELD: dict[str, Any] = {
    "weight_norm": lambda: weight_norm(nn.Linear(4, 4)),
    "a parametrisation": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "pruning": pruned,
    "a scripted module": lambda: torch.jit.script(nn.Linear(4, 4)),
    "a traced module": lambda: torch.jit.trace(nn.Linear(4, 4), torch.zeros(1, 4)),
    "a lock": lambda: Telling(threading.RLock()),
    "a lock in a list": lambda: Telling([threading.Lock(), {"again": threading.Lock()}]),
    "a logger": lambda: Telling(logging.getLogger("candidate")),
    "a writer": lambda: Telling(Writer()),
    "a generator": lambda: Telling(i for i in range(3)),
    "a hook beside a lock": bound_hook,
    "a tensor with its history": lambda: Remembering(None),
}


class Net(nn.Module):
    def __init__(self, candidate: nn.Module) -> None:
        super().__init__()
        self.first = MixedOp({"plain": nn.Linear(4, 4), "special": candidate})
        self.second = MixedOp([nn.Linear(4, 4), nn.Identity()])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return out


@pytest.mark.filterwarnings("ignore")  # torch's own, of what is old
@pytest.mark.parametrize("what", HELD)
def test_derived_without_copying_what_need_not_be_copied(what: str) -> None:
    model = Net(HELD[what]())
    x = torch.randn(3, 4)
    model.first.gate = type(model.first.gate)(1)
    model(x).sum().backward()  # as after a step: computed weights have a history
    supernet = Supernet(model)
    network = supernet.derive([1, 0]).eval()
    expected = model.first.candidates["special"].eval()(x)
    assert torch.equal(network.first(x), expected)
    for parameter in network.parameters():
        assert all(parameter is not other for other in model.parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
@pytest.mark.parametrize("what", ["weight_norm", "pruning", "a scripted module", "a writer"])
def test_a_whole_search_with_it_on_a_real_runtime(what: str, runtime: str) -> None:
    quick = proxylessnas.MeasureSettings(
        rounds=1, network_rounds=1, runs=1, warmup=0, networks=3, validation=0
    )
    model = Net(HELD[what]())
    # Of networks of microseconds one round of measuring says little: any network keeps this limit.
    result = search_of_vectors(model, target_latency="10x", runtime=runtime, measure=quick)
    assert isinstance(result.derive(), nn.Module)


def test_what_holds_weights_and_cannot_be_copied_is_named() -> None:
    with pytest.raises(SupernetError, match=r"attribute 'held' of the module 'first.*special' \(T"):
        Supernet(Net(Telling(Entangled()))).derive([1, 0])


def test_a_copy_with_its_loss_keeps_what_belongs_together() -> None:
    """A loss that holds the model, a parent, a method of one's own; a lock in each of them."""

    class Parent(Telling):
        def __init__(self) -> None:
            super().__init__(threading.Lock())
            self.parent, self.method = [self], self.forward

    class Loss(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.centres, self.model = nn.Parameter(torch.ones(3)), [model]
            self.lock = threading.Lock()

    model = Parent()
    loss = Loss(model)
    copy, task = copied((model, Task(loss=loss)))
    assert copy.parent[0] is copy and copy.method.__self__ is copy and copy.held is model.held
    assert task.loss is not loss and task.loss.centres is not loss.centres
    assert task.loss.model[0] is copy and task.loss.lock is loss.lock


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (None, r"use nn.Identity\(\).* or Zero\(\)"),
        (nn.ReLU, r"the class ReLU: make a module of it, ReLU\("),
        (torch.relu, "not a torch module: put it into the forward of an nn.Module"),
    ],
)
def test_what_is_no_candidate_is_refused_with_what_to_use(candidate: Any, words: str) -> None:
    for candidates in ({"a": nn.Identity(), "b": candidate}, [nn.Identity(), candidate]):
        with pytest.raises(SupernetError, match=words):
            MixedOp(candidates)


def lazy_net() -> nn.Module:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(4))
    return Net(wide)


def test_lazy_layers_take_their_shapes_from_the_example_inputs(tmp_path: Path) -> None:
    result = search_of_vectors(lazy_net(), out=tmp_path / "run", target_latency="1x")
    shapes = [tuple(p.shape) for p in result.supernet.model.first.candidates.parameters()]
    assert shapes == [(4, 4), (4,), (6, 4), (6,), (6,), (6,), (4, 6), (4,)]
    again = proxylessnas.load(tmp_path / "run", model=lazy_net(), runtime=FakeRuntime())
    x = torch.randn(2, 4)
    assert torch.equal(again.derive().eval()(x), result.derive().eval()(x))


def test_a_lazy_layer_that_is_never_reached_is_named() -> None:
    model = Net(nn.LazyLinear(4))
    model.idle = nn.LazyLinear(3)  # type: ignore[assignment]
    with pytest.raises(SupernetError, match=r"'idle.weight' is of a lazy layer that the example"):
        search_of_vectors(model)


def test_zero_beside_lazy_layers() -> None:
    model = Net(Zero())
    model.first.candidates["plain"] = nn.LazyLinear(4)
    assert search_of_vectors(model).architecture.choices["first"] in ("plain", "special")


# --- a candidate that breaks when it is measured ---


class Breaking(Telling):
    """Cannot be exported; as many of its passes outside of an export as `held` says succeed."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            raise RuntimeError("only for training")
        self.held -= 1
        if self.held < 0:
            raise LookupError("my queue is empty")
        return super().forward(x)


def test_a_candidate_that_cannot_be_exported_is_named_with_its_own_words() -> None:
    with pytest.raises(MeasurementError) as error:
        search_of_vectors(Net(Breaking(1000)), target_latency="0.9x", runtime="onnxruntime")
    assert str(error.value) == (
        "the candidate 'special' of 'first' (Breaking 4>4) cannot be measured on onnxruntime: "
        f"Breaking cannot be exported to ONNX: only for training; {MEND}"
    )


def test_what_fails_while_it_is_measured_is_named_with_its_own_words() -> None:
    """Of two networks in turns the one that fails, not the one before."""

    class Failing(FakeSession):
        def timed(self, repeat: int) -> float:
            if self.runtime.timed_runs > 40:
                raise LookupError("my queue is empty")
            return super().timed(repeat)

    runtime = FakeRuntime()
    sessions = {"a": FakeSession(runtime, 1.0), "b": Failing(runtime, 2.0)}
    sessions["a"].label, sessions["b"].label = "the candidate 'a'", "the candidate 'b'"
    with pytest.raises(MeasurementError) as error:
        measure_sessions(sessions, {"a": 9, "b": 9}, MeasureSettings(), seed=0)
    assert str(error.value).startswith(
        "the candidate 'b' ran when it was loaded, and fails while it is measured: LookupError: "
        "my queue is empty; mend this module"
    )


def test_what_fails_where_it_is_counted_is_one_line() -> None:
    module = Breaking(0)
    with pytest.raises(SupernetError, match=r"Breaking ran before, and fails .*: LookupError"):
        count_macs(module, (torch.zeros(2, 4),))
