"""K4: a loss with parameters of its own. They learn with the weights, are saved and resumed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from toys import LEARNING, Chain, make_search, regression, seeded

from proxylessnas import MixedOp, Result, SearchSettings, load, search
from proxylessnas.config import DeriveSettings, MachineSettings, TrainSettings
from proxylessnas.data.batches import LoaderBatches
from proxylessnas.errors import RunError, UserError
from proxylessnas.session import checkpoints
from proxylessnas.training.callbacks import Callback, StepMetrics
from proxylessnas.training.evaluate import evaluate
from proxylessnas.training.holding import held_modules
from proxylessnas.training.loop import run_loop
from proxylessnas.training.task import Task
from proxylessnas.training.train import Training

BATCHES = 3
SHORT = SearchSettings(warmup_epochs=1, epochs=2, learning_rate=0.05)


class Uncertain(nn.Module):
    """Kendall's log-variance of a task, a centre that learns, and a count of what was seen."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(()))
        self.centre = nn.Parameter(torch.zeros(width))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.seen += len(target)
        loss = mse_loss(output + self.centre, target)
        return loss * torch.exp(-self.log_variance) + self.log_variance


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.op = MixedOp([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())])
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.op(x))
        return out


def batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = seeded(seed)
    inputs = [torch.randn(8, 4, generator=generator) for _ in range(BATCHES)]
    return [(x, x.flip(1)) for x in inputs]


def searched(loss: Any, *, model: nn.Module | None = None, **changes: Any) -> Result:
    given = {
        **{"train": batches(1), "valid": batches(2), "example_inputs": (torch.zeros(1, 4),)},
        **{"limits": {"parameters": "1x"}, "settings": SHORT, "quiet": True},
        "derive": DeriveSettings(arch_steps=2),
        **changes,
    }
    return search(Net() if model is None else model, loss=loss, **given)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


@pytest.fixture(scope="module")
def learned() -> dict[str, Tensor]:
    """What the tensors of the loss become in a short search."""
    loss = Uncertain()
    searched(loss)
    return tensors_of(loss)


# --- they learn ---


def test_the_parameters_of_the_loss_learn(learned: dict[str, Tensor]) -> None:
    assert learned["log_variance"] != 0 and bool((learned["centre"] != 0).all())
    # Three weight steps an epoch see their batch; trials, architecture steps and scores leave it.
    assert learned["seen"] == 3 * BATCHES * 8


def test_a_weight_step_is_that_of_torch() -> None:
    """SGD with Nesterov momentum at the weights' rate, and no weight decay."""
    loss = Uncertain().double()
    job = make_search(Chain([2, 2], width=4).double(), data=_doubles(), task=Task(loss=loss))
    model, copied = copy.deepcopy((job.model, loss))
    rate, momentum = job.weight_rate(), job.settings.momentum
    choice = job.weight_gates()
    for op, j in zip(model.ops, choice, strict=True):
        op.gate = type(op.gate)(j)
    (x, y), *_ = _doubles()
    copied(model(x), y).backward()
    optimizer = torch.optim.SGD(copied.parameters(), lr=rate, momentum=momentum, nesterov=True)
    optimizer.step()
    job.weight_step()
    assert all(p.grad is None for p in loss.parameters())
    torch.testing.assert_close(loss.log_variance, copied.log_variance, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.centre, copied.centre, rtol=1e-12, atol=0)


def _doubles() -> list[tuple[Tensor, Tensor]]:
    return [(x.double(), y.double()) for x, y in regression()]


@pytest.mark.parametrize("estimator", LEARNING)
def test_an_architecture_step_leaves_the_loss_alone(estimator: str) -> None:
    loss = Uncertain().double()
    job = make_search(Chain([2, 3], width=4), estimator, data=_doubles(), task=Task(loss=loss))
    job.weight_step()
    before, alpha = tensors_of(loss), job.supernet.alpha.detach().clone()
    for _ in range(2):  # the first one of `reinforce` sets its baseline
        job.architecture_step()
        job.step += 1
    assert equal(tensors_of(loss), before)
    assert all(p.grad is None and p.requires_grad for p in loss.parameters())
    assert not torch.equal(job.supernet.alpha, alpha)


class Module(nn.Module):
    """As people write training: the model, the criterion and the loss of a step in one module."""

    def __init__(self, criterion: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion

    def compute_loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.criterion(output, target)
        return loss


class Caller:
    """A plain object that is called, with its criteria in a dict."""

    def __init__(self, criterion: nn.Module) -> None:
        self.criteria = {"one": [criterion]}

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.criteria["one"][0](output, target)
        return loss


def weighted(criterion: Any, weight: float, output: Tensor, target: Tensor) -> Tensor:
    loss: Tensor = weight * criterion(output, target)
    return loss


def closed(criterion: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    def inner(output: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = criterion(output, target)
        return loss

    return lambda output, target: inner(output, target)


GLOBAL = Uncertain()


def of_a_global(output: Tensor, target: Tensor) -> Tensor:
    return _helper(output, target)


def _helper(output: Tensor, target: Tensor) -> Tensor:
    loss: Tensor = GLOBAL(output, target)
    return loss


def _reset_global(_: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    GLOBAL.load_state_dict(Uncertain().state_dict())
    return of_a_global


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda criterion: criterion.forward,
        lambda criterion: partial(weighted, criterion, 1.0),
        lambda criterion: partial(criterion),
        Caller,
        closed,
        lambda criterion: lambda output, target, c=criterion: c(output, target),
        lambda criterion: nn.ModuleList([criterion])[0],
        _reset_global,
    ],
)
def test_wherever_the_loss_holds_its_module(wrapped: Any, learned: dict[str, Tensor]) -> None:
    """A bound method, a partial, an object, a closure, a default, a global: all learn alike."""
    criterion = Uncertain()
    loss = wrapped(criterion)
    searched(loss)
    assert equal(tensors_of(GLOBAL if loss is of_a_global else criterion), learned)


def test_a_module_that_holds_the_model_too(learned: dict[str, Tensor]) -> None:
    """The model stays the model: its candidates learn on their paths alone."""
    model = Net()
    module = Module(Uncertain(), model)
    result = searched(module.compute_loss, model=model)
    assert equal(tensors_of(module.criterion), learned)
    assert result.session.problem.task.modules_beside(model) == {"0.criterion": module.criterion}


def test_a_train_loss_of_its_own() -> None:
    train_loss, valid_loss = Uncertain(), Uncertain()
    searched(valid_loss, train_loss=train_loss)
    assert train_loss.log_variance != 0 and valid_loss.log_variance == 0


def test_a_lazy_layer_in_the_loss_is_refused() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LazyLinear(4)

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return mse_loss(self.layer(output), target)

    loss = Lazy()
    with pytest.raises(UserError, match=r"the loss holds a lazy layer \(LazyLinear 0\.layer\)"):
        searched(loss)
    loss(torch.zeros(1, 4), torch.zeros(1, 4))
    before = tensors_of(loss)
    searched(loss)
    assert not equal(tensors_of(loss), before)


def test_parameters_that_are_frozen_stay() -> None:
    loss = Uncertain()
    loss.centre.requires_grad_(False)
    searched(loss)
    assert loss.log_variance != 0 and bool((loss.centre == 0).all())


def test_a_parameter_that_model_and_loss_share_learns_once() -> None:
    class Tied(nn.Module):
        def __init__(self, weight: nn.Parameter) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return mse_loss(output, target) + 0.1 * self.weight.square().sum()

    def tied(model: Net) -> nn.Module:
        return Tied(model.last.weight)

    def plain(model: Net) -> Callable[[Tensor, Tensor], Tensor]:
        weight = [model.last]
        return lambda o, t: mse_loss(o, t) + 0.1 * weight[0].weight.square().sum()

    models = Net(), Net()
    for model, loss in zip(models, (tied, plain), strict=True):
        searched(loss(model), model=model)
    assert equal(tensors_of(models[0]), tensors_of(models[1]))


def test_that_the_loss_learns_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    searched(Uncertain(), quiet=False)
    said = " ".join(capsys.readouterr().err.split()) or " ".join(capsys.readouterr().out.split())
    assert "the loss has 5 parameters of its own (Uncertain)" in said
    assert "requires_grad_(False)" in said


def test_trials_of_memory_formats_teach_the_loss_nothing() -> None:
    """What tries how steps are fastest takes steps of copies, past which a closure reaches."""

    class Images(Net):
        def __init__(self) -> None:
            super().__init__()
            self.op = MixedOp([nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 3, padding=1)])

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.op(x).mean((2, 3)))
            return out

    generator = seeded(1)
    data = [(torch.randn(4, 1, 4, 4, generator=generator), torch.zeros(4, 4)) for _ in range(20)]
    given = {"train": data, "valid": data[:2], "example_inputs": (torch.zeros(1, 1, 4, 4),)}
    long = SearchSettings(warmup_epochs=0, epochs=32, arch_every=200)
    losses = [Uncertain() for _ in range(2)]
    tried = searched(closed(losses[0]), model=Images(), settings=long, **given)
    plain = MachineSettings(memory_format=tried.machine.memory_format)
    searched(closed(losses[1]), model=Images(), settings=long, machine=plain, **given)
    assert equal(tensors_of(losses[0]), tensors_of(losses[1]))


# --- they are saved ---


class Stop(Callback):
    def on_step(self, metrics: StepMetrics) -> None:
        if metrics.step == 5:
            raise KeyboardInterrupt


def test_a_search_that_was_stopped_goes_on_to_the_same_bits(
    tmp_path: Path, learned: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", -1.0)  # one after every step
    with pytest.raises(KeyboardInterrupt):
        searched(Uncertain(), out=tmp_path / "run", callbacks=[Stop()])
    assert any((tmp_path / "run").rglob("*search*4.safetensors"))
    again = Uncertain()
    searched(again, out=tmp_path / "run")
    assert equal(tensors_of(again), learned)


class Counts:
    """A loss that counts its calls and gathers features, in no buffer."""

    def __init__(self) -> None:
        self.calls, self.centre, self.rows = 0, torch.zeros(4), [0.0]

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        self.centre = 0.9 * self.centre + 0.1 * output.detach().mean(0)
        self.rows.append(float(output.detach().mean()))
        return mse_loss(output, target) * min(1.0, self.calls / 5)


@pytest.mark.parametrize("wrapped", [lambda c: c, lambda c: lambda o, t: c(o, t)])
def test_what_a_loss_keeps_beside_buffers_is_said_and_trials_leave_it(
    wrapped: Any, tmp_path: Path
) -> None:
    first: list[int] = []

    class Sees(Callback):
        def on_step(self, metrics: StepMetrics) -> None:
            first.append(loss.calls)

    loss = Counts()
    with pytest.warns(UserWarning, match=r"changes calls of Counts, centre of Counts, rows of Cou"):
        searched(wrapped(loss), out=tmp_path / "run", callbacks=[Sees()])
    assert first[0] == 1  # the first step is the first call


def test_the_state_holds_the_loss_and_its_momentum() -> None:
    def job() -> Any:
        torch.manual_seed(0)
        model = Chain([2, 2], width=4)
        return make_search(model, data=_doubles(), task=Task(loss=Uncertain().double()))

    whole, first, second = job(), job(), job()
    run_loop(whole)
    first.total = 7
    run_loop(first)
    tensors, values = first.state()
    assert "loss:0.centre" in tensors and "loss:0.seen" in tensors
    assert any("loss:0.centre:momentum" in name for name in tensors)
    second.load({k: v.clone() for k, v in tensors.items()}, values)
    run_loop(second)
    assert equal(tensors_of(second.task.loss), tensors_of(whole.task.loss))
    assert equal(tensors_of(second.model), tensors_of(whole.model))


def test_a_memory_that_grows_is_resumed() -> None:
    class Growing(Uncertain):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            self.seen = torch.cat([self.seen.reshape(-1), torch.ones(1).to(self.seen)])
            return mse_loss(output, target) * torch.exp(-self.log_variance)

    def job() -> Any:
        return make_search(Chain([2], width=4), data=_doubles(), task=Task(loss=Growing().double()))

    first, second = job(), job()
    for _ in range(3):
        first.weight_step()
        first.step += 1
    second.load(*first.state())
    assert second.task.loss.seen.shape == (4,)


def test_a_finished_search_is_loaded_with_its_loss(
    tmp_path: Path, learned: dict[str, Tensor]
) -> None:
    first = searched(Uncertain(), out=tmp_path / "run")
    loss, data = Uncertain(), {"train": batches(1), "valid": batches(2)}
    loaded = load(tmp_path / "run", model=Net(), loss=loss, quiet=True, **data)
    others = {"parameters": 1000}
    one, other = (r.derive(limits=others).state_dict() for r in (loaded, first))
    assert equal(one, other) and equal(tensors_of(loss), learned)
    assert load(tmp_path / "run", model=Net(), quiet=True).derive()  # which needs no loss
    for wrong, said in (
        (Uncertain(1), r"centre.* is now \(1\), and was \(4\)"),
        (mse_loss, "missing"),
    ):
        with pytest.raises(RunError, match=f"this is not the loss of the search: .*{said}"):
            searched(wrong, out=tmp_path / "run")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_score_that_is_no_number_ends_no_search(tmp_path: Path) -> None:
    """A validation batch, not the first, on which the loss overflows: it was a damaged record."""
    valid = batches(2)
    valid[1][1][0, 0] = float("inf")
    result = searched(mse_loss, valid=valid, out=tmp_path / "run")
    assert result.session.records.require("derive")["score"] is None
    assert load(tmp_path / "run", model=Net(), quiet=True).derive()


# --- other loops ---


def test_retraining_trains_the_loss_and_goes_on_to_the_same_bits() -> None:
    def job() -> Training:
        torch.manual_seed(0)
        data = LoaderBatches(regression(), name="train")
        settings = TrainSettings(epochs=3, learning_rate=0.05, optimizer="adamw")
        return Training(nn.Linear(4, 4), Task(loss=Uncertain()), data, settings)

    whole, first, second = job(), job(), job()
    run_loop(whole)
    assert isinstance(whole.task.loss, Uncertain) and whole.task.loss.log_variance != 0
    for _ in range(5):
        first.take_step()
        first.step += 1
    second.load(*first.state())
    run_loop(second)
    assert isinstance(second.task.loss, Uncertain)
    assert equal(tensors_of(second.task.loss), tensors_of(whole.task.loss))


def test_an_evaluation_teaches_the_loss_nothing() -> None:
    class Modes(Uncertain):
        modes: ClassVar[list[bool]] = []

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            self.modes.append(self.training)
            return super().forward(output, target)

    loss = Modes()
    evaluate(nn.Linear(4, 4), Task(loss=loss), LoaderBatches(regression(), name="valid"))
    assert loss.seen == 0 and loss.training and not any(loss.modes)


def test_what_a_function_holds() -> None:
    """Modules of torch itself are none of a loss's."""
    assert list(held_modules(mse_loss)) == []
    assert list(held_modules(torch.nn.functional.cross_entropy)) == []
    loss = nn.CrossEntropyLoss()
    assert list(held_modules(loss)) == [loss]
    assert Task(loss=loss).modules_beside(nn.Linear(1, 1)) == {}
