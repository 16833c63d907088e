"""What fails late is tried early: a batch of each loader through everything that will see it.

Model, loss, `correct`, reward, a backward pass and an architecture step, in the modes that the
search uses, before anything is measured. Nothing learns, and nothing is left: buffers, gradients,
modes, random generators are as they were, and loaders are iterated anew by the search.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from proxylessnas.core.costs import Costs
from proxylessnas.core.estimators import estimator_of
from proxylessnas.core.objective import Alone
from proxylessnas.core.schedule import Schedule
from proxylessnas.core.search import Search
from proxylessnas.data import WHOLE, Batches, ImageBatches, LoaderBatches
from proxylessnas.data.arguments import describe, register_dataclasses
from proxylessnas.errors import DataError, UserError
from proxylessnas.session.batch_trial import Trial, placed
from proxylessnas.session.loaders import (
    check_repeats,
    label_range,
    last_line,
    single_example,
    try_examples,
    unlike_the_first,
    warn_of_sharing,
)
from proxylessnas.session.memory import fit_memory
from proxylessnas.session.problem import ModelProblem, Part
from proxylessnas.session.session import Session
from proxylessnas.training.evaluate import batch_norms
from proxylessnas.training.faults import explained
from proxylessnas.training.freezing import undisturbed
from proxylessnas.training.holding import plain_values_kept
from proxylessnas.training.optimizers import beside_parameters, unshared
from proxylessnas.training.task import batch_size, own_tensors, split

TRIED = 0.01  # of the batches of a search, that are drawn before it from loaders
NAMES: dict[Part, str] = {
    "search": "train",  # as the argument is called
    "valid": "valid",
    "calibration": "calibration",
    "scoring": "scoring",
    "train": "the final training",
}


def try_early(session: Session) -> None:
    """Take one batch of each loader through all that the search and deriving do with it.

    Raises:
        UserError: something fails, or returns what the search cannot use; one line says what, on
            which batch, and what to do.
    """
    job, device = _spoilable(session)
    modules = [*job.model.modules(), *job.losses.values()]
    parts = _loaders(session)
    warn_of_sharing({name: batches for name, batches in parts.values()})
    _say_learning_losses(session, job)
    other_sizes: dict[str, str] = {}
    said: list[str] = []
    try:
        losses = (job.task.loss, job.task.train_loss)
        with plain_values_kept(losses) as counted, undisturbed(modules), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the search gives them again
            for part, (name, batches) in parts.items():
                other_sizes |= _try_loader(session, job, part, name, batches, said)
            fit_memory(job, "search", session.config.memory)  # said when the search begins
    finally:
        job.model.to(device)
    if counted and session.store.path is not None:
        said.append(
            f"the loss changes {', '.join(counted)} at every call, which no checkpoint holds: "
            "after a stop the search would go on with what the loss begins with; where the loss "
            "depends on it, give a module as the loss and make it a buffer of that module"
        )
    for line in said:
        warnings.warn(line, stacklevel=2)
    _judge_sizes(other_sizes)


def _judge_sizes(others: dict[str, str]) -> None:
    """Images of another size than the example inputs, by the loader's name.

    Training on other sizes than the network is for is a known practice, and so are single images
    of any size; validation batches of a size that nothing else has are an accident.
    """
    for name, words in others.items():
        if name != "train" and "train" not in others and "1 image" not in words:
            raise DataError(
                f"{words}; train's are of the examples' size: resize those of {name}, or give "
                "example inputs of the size that is deployed"
            )
        warnings.warn(words, stacklevel=3)


def _spoilable(session: Session) -> tuple[Search, torch.device]:
    """A search that takes no step, on the session's own model; and where that was before.

    Copies would need more memory, and not every model can be copied.
    """
    supernet, config = session.supernet, session.config
    for name, module in session.problem.task.modules_beside(supernet.model).items():
        if any(is_lazy(tensor) for _, tensor in own_tensors(module)):
            raise UserError(
                f"the loss holds a lazy layer ({type(module).__name__} {name}), whose shape is not "
                "known yet: give the layer its sizes, or call the loss once before"
            )
    reward = session.problem.reward
    if reward is None and config.search.objective == "reward":  # its costs are not measured yet
        reward = lambda accuracy, _: accuracy  # noqa: E731
    settings = dataclasses.replace(config.search, objective="constraint", reinforce_samples=1)
    device = next((p.device for p in supernet.model.parameters()), torch.device("cpu"))
    train = session.problem.batches("search", config)
    costs = Costs.free(*supernet.mask.shape)
    job = Search(
        supernet=supernet,
        task=session.problem.task,
        train=train,
        valid=session.problem.batches("valid", config),
        costs=costs,
        objective=Alone(),
        estimator=estimator_of(settings, costs, reward),
        settings=settings,
        schedule=Schedule.of(settings, len(train)),
        seed=config.seed,
        # Weights laid out otherwise would be measured otherwise.
        machine=dataclasses.replace(session.machine, channels_last=False),
        alpha=supernet.alpha.detach().clone(),
    )
    return job, device


def _loaders(session: Session) -> dict[Part, tuple[str, Batches]]:
    """The name and the batches of each part that has batches of its own."""
    parts: dict[Part, tuple[str, Batches]] = {}
    for part, name in NAMES.items():
        if part == "train" and isinstance(session.problem, ModelProblem):
            continue  # it trains no network from scratch
        batches = session.problem.batches(part, session.config)
        own = part in ("search", "valid", "train") or isinstance(batches, LoaderBatches)
        if own and not any(batches is other for _, other in parts.values()):
            parts[part] = (name, batches)
    return parts


def _say_learning_losses(session: Session, job: Search) -> None:
    """What else than the model learns is said: a network inside the loss may be meant to stay."""
    losses = unshared(beside_parameters(job.losses).values(), job.model.parameters())
    if learning := [p for p in losses if p.requires_grad]:
        numbers = sum(p.numel() for p in learning)
        kinds = {type(m).__name__: None for m in job.losses.values() if m._parameters}
        session.reporter.say(
            f"the loss has {numbers} parameters of its own ({', '.join(kinds)}), which learn with "
            "the weights; what must stay takes requires_grad_(False)"
        )


def _try_loader(
    session: Session, job: Search, part: Part, name: str, batches: Batches, said: list[str]
) -> dict[str, str]:
    """Returns {name: words} where images are of another size than the example inputs.

    said: takes what else is to be said.
    """
    try_examples(name, batches)
    batch = first_batch(name, batches)
    inputs, target = split(batch)
    size = batch_size(target, inputs)
    if size == 0:
        raise DataError(f"the first batch of {name} is empty: {describe(batch)}")
    register_dataclasses(batch)
    words = f"the first batch of {name}"
    trial = Trial(job=job, name=name, words=words, batch=placed(job, words, batch), size=size)
    other_size = trial.other_size(session.inputs)
    _run(trial, part)
    for words, other in unlike_the_first(batches, int(TRIED * job.schedule.total), said):
        _run(trial.other(words, other), part)
    single = single_example(batches, trial.batch, size) if batch_norms(job.model) else None
    if part != "scoring" and single is not None:
        trial.other("a batch of one example, as there is in {name}", single).calibration()
    labels = label_range(batches)
    if part in ("search", "valid") and labels is not None:
        trial.labels(*labels)
    return {name: other_size} if other_size else {}


def _run(trial: Trial, part: Part) -> None:
    """Take the batch through all that batches of this part go through."""
    with explained(lambda: trial.batch, trial.retry):
        if part == "search":
            trial.weight_steps()
        elif part in ("calibration", "train"):
            trial.calibration()
        else:
            trial.score()
        if part == "valid":
            trial.architecture_step()


def first_batch(name: str, batches: Batches) -> Any:
    """The first of epoch 0; of our own images two, which are as good as all and cost less."""
    share = WHOLE
    if isinstance(batches, ImageBatches):  # of a batch that may be smaller than it was asked for
        share = (0, max(1, min(batches.batch_size, len(batches.rows)) // 2))
    try:
        with explained():
            batch = next(batches.epoch(0, share=share))
            check_repeats(name, batches, batch)
    except UserError:
        raise
    except StopIteration:
        raise DataError(
            f"the data ended after 0 of {len(batches)} batches: {name} must give them again and "
            "again, epoch after epoch"
        ) from None
    except Exception as error:  # whatever the user's own data set raises
        raise DataError(f"{name} fails on its first batch: {last_line(error)}") from error
    return batch
