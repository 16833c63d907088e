"""The ranks of test_ranks.py: the same calls on every rank, answers written to a file.

The functions take the ranks, so that a test can call them with `ALONE` and compare.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from toys import Chain, make_search, priced, regression

from proxylessnas.api import search
from proxylessnas.cli.main import main
from proxylessnas.config import SearchSettings, TrainSettings
from proxylessnas.core import search as loop
from proxylessnas.core.estimators import Reinforce
from proxylessnas.core.objective import MulLog
from proxylessnas.core.supernet import MixedOp
from proxylessnas.data.batches import LoaderBatches
from proxylessnas.errors import RankError
from proxylessnas.session import checkpoints
from proxylessnas.training.evaluate import evaluate, recalibrate
from proxylessnas.training.loop import run_loop
from proxylessnas.training.ranks import Ranks, open_ranks
from proxylessnas.training.task import Task
from proxylessnas.training.train import Training

MSE = Task(loss=nn.functional.mse_loss)


def doubles(*sizes: int, width: int = 3) -> list[tuple[Tensor, Tensor]]:
    made = [regression(width=width, batches=i + 1, size=n)[i] for i, n in enumerate(sizes)]
    return [(x.double(), y.double()) for x, y in made]


def numbers(tensors: Any) -> list[float]:
    return [float(v) for t in tensors for v in t.detach().flatten()]


# --- searches and trainings that do not know how many they are ---


def searched(estimator: str, ranks: Ranks) -> dict[str, Any]:
    """A few steps of a network without batch normalisation, in float64."""
    torch.manual_seed(ranks.rank)  # fresh weights of rank 0 are what counts
    shared = estimator == "shared choices"  # of the first and the last mixed operation
    model = Chain([3, 2, 3], choices=["edge", None, "edge"]) if shared else Chain([3, 2])
    kinds: dict[str, Any] = {
        "reward": Reinforce(4, reward=lambda accuracy, row: accuracy - row[0]),
        "shared choices": "two_path",
    }
    kind = kinds.get(estimator, estimator)
    task = Task(loss=nn.functional.mse_loss, correct=lambda out, y: (out * y > 0)[:, 0].sum())
    job = make_search(model, kind, data=doubles(8, 8, 4), task=task, ranks=ranks, epochs=2)
    if shared or estimator == "two_path":  # an objective whose slope in E holds the loss
        costs = priced(job.supernet, [[1.0, 2.0, 3.0], [1.0, 4.0]], fixed=1.0)
        job.costs, job.objective = costs, MulLog(4.0)
    run_loop(job)
    return {
        "alpha": numbers([job.supernet.alpha]),
        "weights": numbers(model.parameters()),
        "loss": float(job.latest.weight_loss),
        "valid_loss": job.latest.estimate.loss,
        "most_probable": job.most_probable(),
    }


class Normed(nn.Module):
    """Two candidates with batch normalisation each; float64."""

    def __init__(self) -> None:
        super().__init__()
        sides = [nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(2)]
        self.op = MixedOp(sides)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


def statistics(ranks: Ranks) -> dict[str, Any]:
    """BN statistics after one weight step and after several."""
    torch.manual_seed(0)
    model = Normed()
    job = make_search(model, data=doubles(8, 8), ranks=ranks)
    job.weight_step()
    active = job.weight_gates()[0]
    first = model.op.candidates[str(active)][1]
    one = {"mean": numbers([first.running_mean]), "var": numbers([first.running_var])}
    job.step = 1
    run_loop(job)
    return {**one, "all": numbers(b.double() for b in model.buffers())}


class Skipping(nn.Module):
    """Leaves a layer out where the batch's first input says so, which differs by rank."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.never = (nn.Linear(3, 3) for _ in range(3))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x) if float(x[0, 0]) > 0 else x


def trained(ranks: Ranks, network: nn.Module, may_skip: bool = False) -> list[float]:
    settings = TrainSettings(epochs=2, batch_size=8, learning_rate=0.1)
    data = LoaderBatches(doubles(8, 8, 4), name="train")
    job = Training(network, MSE, data, settings, ranks=ranks, may_skip=may_skip)
    run_loop(job)
    return [*numbers(network.parameters()), *numbers(b.double() for b in network.buffers())]


def plain() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()


def normed() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()


def scored(ranks: Ranks) -> dict[str, Any]:
    """Recalibration and evaluation over batches that do not divide by the ranks."""
    network, data = normed(), LoaderBatches(doubles(8, 8, 8, 8, 4), name="valid")
    recalibrate(network, data, 100, None, ranks)
    scores = {str(n): evaluate(network, MSE, data, examples=n, ranks=ranks) for n in (None, 17)}
    return {
        "statistics": numbers([network[1].running_mean, network[1].running_var]),
        "loss": {n: s.loss for n, s in scores.items()},
        "examples": {n: s.examples for n, s in scores.items()},
    }


def called(ranks: Ranks) -> dict[str, Any]:
    """The Python call: rank 0's weights, table and measurements are everyone's."""
    torch.manual_seed(ranks.rank)
    result = search(
        Chain([2, 2], width=4),
        train=doubles(8, 8, width=4),
        valid=doubles(8, 8, width=4),
        loss=nn.functional.mse_loss,
        example_inputs=(torch.zeros(1, 4, dtype=torch.float64),),
        target_latency="1x",
        runtime="fake",
        settings=SearchSettings(warmup_epochs=1, epochs=1),
        quiet=True,
        ranks=ranks,
    )
    return {
        "choices": dict(result.architecture.choices),
        "weights": numbers(result.derive().parameters()),
        "measured_ms": result.measured_ms,
    }


# --- what only several can do ---


def talk(ranks: Ranks) -> dict[str, Any]:
    single, other = torch.full((2,), 1.0 + ranks.rank), torch.full((3,), 2.0 * ranks.rank)
    ranks.average([single, other.double()])
    summed = torch.tensor([ranks.rank + 1])
    ranks.sum([summed])
    said = []
    alpha = torch.tensor([0.1 + 1e-9 * ranks.rank], dtype=torch.float64)
    for check in (
        lambda: ranks.check_equal("alpha", alpha),
        lambda: ranks.check_agreed("the step", 7 + ranks.rank),
    ):
        try:
            check()
        except RankError as error:
            said.append(str(error))
    ranks.check_equal("alpha", torch.tensor([0.1]))
    ranks.check_agreed("the step", 7)
    return {
        "mean": single.tolist(),
        "sum": summed.tolist(),
        "of_main": ranks.of_main(lambda: {"made by": ranks.rank, "ms": [0.1, None]}),
        "any": [ranks.any(False), ranks.any(ranks.rank == 1)],
        "said": said,
    }


def drifting(ranks: Ranks) -> str:
    """A rank whose α is another's no longer is noticed at the end of the epoch."""
    job = make_search(Chain([2]), data=doubles(8, 8), ranks=ranks)
    job.weight_step()
    job.supernet.alpha.data[0, 0] += 1e-12 * ranks.rank
    try:
        run_loop(job)
    except RankError as error:
        return f"step {job.step}: {error}"
    return ""


def calls_of_a_step(ranks: Ranks) -> dict[str, int]:
    """all_reduce calls of a weight step and of an architecture step."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Normed() for _ in range(3)))
    job = make_search(model, data=doubles(8, 8), ranks=ranks)
    sent: list[int] = []
    before = dist.all_reduce

    def counting(tensor: Tensor) -> Any:
        sent.append(tensor.numel())
        return before(tensor)

    dist.all_reduce = counting
    try:
        job.weight_step()
        weight = list(sent)
        job.architecture_step()
    finally:
        dist.all_reduce = before
    return {"weight": len(weight), "numbers": sum(weight), "both": len(sent)}


def answers(ranks: Ranks) -> dict[str, Any]:
    names = ("two_path", "shared choices", "full_path", "reinforce", "reward")
    torch.manual_seed(5)
    return {
        "searched": {name: searched(name, ranks) for name in names},
        "statistics": statistics(ranks),
        "plain": trained(ranks, plain()),
        "normed": trained(ranks, normed()),
        "skipping": trained(ranks, Skipping(), may_skip=True),
        "scored": scored(ranks),
        "called": called(ranks),
        "talk": talk(ranks),
        "drifting": drifting(ranks),
        "calls": calls_of_a_step(ranks),
    }


# --- the command line, disturbed ---


def disturb(signals: dict[str, dict[str, Any]]) -> None:
    """Send this process a signal at a step of its search or training.

    signals: start (0, 1 after the first restart, ...) -> rank, class name, step and signal.
    """
    now = signals.get(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if now is None or now["rank"] != int(os.environ["RANK"]):
        return
    job: Any = {"Search": loop.Search, "Training": Training}[now["job"]]
    name = "weight_step" if now["job"] == "Search" else "take_step"
    take = getattr(job, name)

    def dying(self: Any) -> None:
        if self.step == now["step"]:
            os.kill(os.getpid(), getattr(signal, now["signal"]))
        take(self)

    setattr(job, name, dying)


def start(words: list[str]) -> int:
    """`answers DIRECTORY`, or signals (see `disturb`) and the words of a command."""
    torch.set_num_threads(1)
    if words[0] == "answers":
        with open_ranks() as ranks:
            text = json.dumps(answers(ranks))
            Path(words[1], f"{ranks.rank}.json").write_text(text)
        return 0
    disturb(json.loads(words[0]))
    checkpoints.CHECKPOINT_SECONDS = -1.0
    return main(words[1:])


if __name__ == "__main__":
    sys.exit(start(sys.argv[1:]))
