"""Whether a problem is the one that a stored search began with: `model.json` in its store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from torch import nn

from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import RunError
from proxylessnas.schema import checked, from_json
from proxylessnas.session.loaders import counts
from proxylessnas.session.problem import ModelProblem
from proxylessnas.session.store import MAX_JSON_BYTES, MODEL, Store
from proxylessnas.training.optimizers import beside_tensors


@checked(RunError)
@dataclass(frozen=True)
class Identity:
    """What a search of one's own model is of.

    Candidates of every choice, in their order; the shape of every parameter, the loss's too;
    numbers of batches (and of examples, where they are known) of every loader.
    """

    choices: dict[str, tuple[str, ...]]
    parameters: dict[str, tuple[int, ...]]
    loss: dict[str, tuple[int, ...]] = field(default_factory=dict)
    loaders: dict[str, tuple[int, ...]] = field(default_factory=dict)


def save_identity(store: Store, problem: ModelProblem) -> None:
    store.write_json(MODEL, asdict(identity(problem)))


def check_identity(
    store: Store, problem: ModelProblem, *, loss: bool = True, accept_changed_data: bool = False
) -> None:
    """Rows of α belong to candidates by their order alone: another order would go unnoticed.

    loss: whether the problem has the loss. Loaders that it has not are not compared, and none
    with `accept_changed_data`; the new lengths are written down then.

    Raises:
        RunError: the model has other choices, candidates or parameters than the stored one, or
            the loss other tensors, or a loader gives another number of batches or examples.
    """
    if not store.has(MODEL):
        return  # a search of an earlier version
    text = store.read(MODEL, MAX_JSON_BYTES)
    before = from_json(Identity, text, str(store.file(MODEL)), RunError)
    now = identity(problem)
    _compare("model", "candidates of the choice", before.choices, now.choices)
    _compare("model", "shape of the parameter", before.parameters, now.parameters)
    if loss:
        _compare("loss", "shape of its tensor", before.loss, now.loss)
    if accept_changed_data:
        store.write_json(MODEL, asdict(replace(before, loaders={**before.loaders, **now.loaders})))
        return
    known = {name: before.loaders[name] for name in now.loaders if name in before.loaders}
    compared = {name: now.loaders[name] for name in known}
    _compare("data", "number of batches (and examples) of", known, compared)


def identity(problem: ModelProblem) -> Identity:
    supernet, names = Supernet(problem.model), {"search": "train"}
    losses = beside_tensors(problem.task.modules_beside(problem.model))
    return Identity(
        choices=dict(zip(supernet.names, supernet.candidates, strict=True)),
        parameters={name: tuple(p.shape) for name, p in problem.model.named_parameters()},
        loss={name: tuple(t.shape) for name, t in losses.items() if isinstance(t, nn.Parameter)},
        loaders={names.get(part, part): counts(b) for part, b in problem.batches_of.items()},
    )


def _compare(
    whole: str,
    what: str,
    before: Mapping[str, tuple[object, ...]],
    now: Mapping[str, tuple[object, ...]],
) -> None:
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            verb = "these are not" if whole == "data" else "this is not"
            raise RunError(
                f"{verb} the {whole} of the search: the {what} {name!r} is now "
                f"{_words(now.get(name))}, and was {_words(before.get(name))}; give the same "
                f"{whole}, {'accept_changed_data=True, ' * (whole == 'data')}or search in another "
                "`out`"
            )


def _words(values: tuple[object, ...] | None) -> str:
    return "missing" if values is None else f"({', '.join(map(str, values))})"
