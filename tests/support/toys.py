"""Tiny searchable models, tasks and problems for the tests of the core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import proxylessnas
from proxylessnas.api import Result
from proxylessnas.config import SearchSettings
from proxylessnas.core.costs import Costs
from proxylessnas.core.estimators import Estimator, make_estimator
from proxylessnas.core.gradients import StepContext
from proxylessnas.core.objective import Alone, Constraint, Linear, Objective
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import MixedOp, Supernet
from proxylessnas.core.tensors import collect_tensors
from proxylessnas.data.batches import LoaderBatches
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.training.callbacks import Callback, StepMetrics
from proxylessnas.training.ranks import ALONE, Ranks
from proxylessnas.training.task import Task

ESTIMATORS = ("two_path", "full_path", "reinforce", "darts", "gumbel", "random")
LEARNING = ESTIMATORS[:-1]
REINMAX = ("two_path, both ends", "full_path, both ends")


class Scale(nn.Module):
    """factor·x, without a parameter."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Recorder(nn.Module):
    """A candidate that tells when it runs, and whether autograd was recording."""

    def __init__(self, inner: nn.Module, name: Any, log: list[tuple[Any, bool]]) -> None:
        super().__init__()
        self.inner, self.name, self.log = inner, name, log

    def forward(self, x: Tensor) -> Tensor:
        self.log.append((self.name, torch.is_grad_enabled()))
        return self.inner(x)


class After(Callback):
    """Calls a function of the job after each of its steps."""

    def __init__(self, job: Any, function: Callable[[Any], object]) -> None:
        self.job, self.function = job, function

    def on_step(self, metrics: StepMetrics) -> None:
        self.function(self.job)


class Chain(nn.Module):
    """Mixed operations one after the other, a tanh after each; float64.

    choices: the choice of each, where they share some.
    """

    def __init__(
        self, sizes: Sequence[int], width: int = 3, choices: Sequence[str | None] | None = None
    ) -> None:
        super().__init__()
        self.ops = nn.ModuleList(
            MixedOp([nn.Linear(width, width) for _ in range(n)], choice=choice)
            for n, choice in zip(sizes, choices or [None] * len(sizes), strict=True)
        )
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for op in self.ops:
            x = torch.tanh(op(x))
        return x


class Planted(nn.Module):
    """Two mixed operations; only candidate "right" of both lets the target through."""

    def __init__(self) -> None:
        super().__init__()
        self.first = MixedOp({"wrong": Scale(-1.0), "right": Scale(1.0), "none": Scale(0.0)})
        self.scale = nn.Parameter(torch.ones(()))
        self.second = MixedOp({"none": Scale(0.0), "right": Scale(1.0)})

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.scale * self.first(x))


def supernet_with(model: nn.Module, alpha: Sequence[Sequence[float]] | None = None) -> Supernet:
    """A supernet whose rows of α begin with the given values."""
    supernet = Supernet(model)
    with torch.no_grad():
        for row, values in zip(supernet.alpha, alpha or [], strict=bool(alpha)):
            row[: len(values)] = torch.tensor(values, dtype=torch.float64)
    return supernet


def row_of(supernet: Supernet, mixed: MixedOp) -> int:
    """The row of α that a mixed operation follows."""
    return next(m for m, positions in enumerate(supernet.positions) if mixed in positions)


def log_of(p: Sequence[float]) -> list[float]:
    return torch.tensor(p, dtype=torch.float64).log().tolist()


def free(supernet: Supernet) -> Costs:
    return Costs.free(*supernet.mask.shape)


def priced(supernet: Supernet, costs: Sequence[Sequence[float]], fixed: float = 0.0) -> Costs:
    """One cost, "latency", without a limit."""
    matrix = torch.zeros(supernet.mask.shape, dtype=torch.float64)
    for m, row in enumerate(costs):
        matrix[m, : len(row)] = torch.tensor(row, dtype=torch.float64)
    return Costs.one("latency", matrix, fixed=fixed, unit="ms")


def problem(
    supernet: Supernet,
    loss: Callable[[nn.Module], Tensor],
    *,
    costs: Costs | None = None,
    objective: Objective | None = None,
    accuracy: Callable[[nn.Module], Tensor] | None = None,
) -> StepContext:
    """An architecture step's problem on a loss of the model."""

    def evaluate() -> tuple[Tensor, Tensor | None]:
        return loss(supernet.model), accuracy(supernet.model) if accuracy else None

    return StepContext(
        supernet=supernet,
        tensors=collect_tensors(supernet),
        costs=costs or free(supernet),
        objective=objective or (Linear(1.0) if costs else Constraint([], rate=1.0)),
        evaluate=evaluate,
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def regression(width: int = 4, batches: int = 4, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    """Batches whose target is the input."""
    inputs = [torch.randn(size, width, generator=seeded(i)) for i in range(batches)]
    return [(x, x) for x in inputs]


def make_search(
    model: nn.Module,
    estimator: str | Estimator = "two_path",
    *,
    data: Any = None,
    task: Task | None = None,
    costs: Costs | None = None,
    objective: Objective | None = None,
    seed: int = 0,
    machine: Any = None,
    ranks: Ranks = ALONE,
    **settings: Any,
) -> Search:
    """A search over a list of batches; by default 2 epochs of warm-up and 3 of search."""
    data = regression() if data is None else data
    supernet = Supernet(model)
    costs = free(supernet) if costs is None else costs
    if isinstance(estimator, str):
        reinmax = estimator in REINMAX
        name = estimator.partition(",")[0]
        settings |= {"estimator": name, "reinmax": reinmax}
        estimator = make_estimator(name, samples=4, reinmax=reinmax)
    given = SearchSettings(**{"warmup_epochs": 2, "epochs": 3, "learning_rate": 0.01, **settings})
    return Search(
        supernet=supernet,
        task=task or Task(loss=nn.functional.mse_loss),
        train=LoaderBatches(data, name="train"),
        valid=LoaderBatches(data, name="valid"),
        costs=costs,
        objective=objective or Constraint([], rate=1.0),
        estimator=estimator,
        settings=given,
        schedule=Schedule.of(given, len(data)),
        seed=seed,
        ranks=ranks,
        **({"machine": machine} if machine else {}),
    )


def image_search(
    make_model: Callable[[], nn.Module], machine: Any, estimator: str | Estimator = "two_path"
) -> Search:
    """A short search of two classes of images [8, 3, 8, 8]; model and images are of seed 0."""
    torch.manual_seed(0)
    model = make_model()
    batches = [(torch.randn(8, 3, 8, 8), torch.randint(2, (8,))) for _ in range(6)]
    return make_search(
        model,
        estimator,
        data=batches,
        task=Task.classification(),
        objective=Alone(),
        machine=machine,
        warmup_epochs=1,
        epochs=2,
        learning_rate=SearchSettings().learning_rate,
        arch_every=2,
    )


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, copied."""
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Names of what is not bit-identical to a snapshot."""
    after = module.state_dict()
    assert after.keys() == before.keys()
    return {k for k, v in after.items() if not torch.equal(v, before[k])}


def search_of_vectors(model: nn.Module, **options: Any) -> Result:
    """A search of two epochs on four numbers an example, with the fake runtime unless given."""
    batches = [(torch.randn(8, 4), torch.randn(8, 4)) for _ in range(2)]
    settings: dict[str, Any] = {
        "train": batches,
        "valid": batches,
        "loss": nn.functional.mse_loss,
        "example_inputs": (torch.zeros(1, 4),),
        "runtime": FakeRuntime(),
        "settings": SearchSettings(warmup_epochs=1, epochs=1),
        "quiet": True,
    }
    return proxylessnas.search(model, **{**settings, **options})
