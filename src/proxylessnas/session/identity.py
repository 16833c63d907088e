"""Whether a model is the one that a stored search began with: `model.json` in its store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import nn

from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import RunError
from proxylessnas.schema import checked, from_json
from proxylessnas.session.store import MAX_JSON_BYTES, Store

MODEL = "model.json"


@checked(RunError)
@dataclass(frozen=True)
class Identity:
    """Candidates of every choice, in their order, and the shape of every parameter."""

    choices: dict[str, tuple[str, ...]]
    parameters: dict[str, tuple[int, ...]]


def save_identity(store: Store, model: nn.Module) -> None:
    store.write_json(MODEL, asdict(identity(model)))


def check_identity(store: Store, model: nn.Module) -> None:
    """Rows of α belong to candidates by their order alone: another order would go unnoticed.

    Raises:
        RunError: the model has other choices, candidates or parameters than the stored one.
    """
    if not store.has(MODEL):
        return  # a search of an earlier version
    text = store.read(MODEL, MAX_JSON_BYTES)
    before = from_json(Identity, text, str(store.file(MODEL)), RunError)
    now = identity(model)
    _compare("candidates of the choice", before.choices, now.choices)
    _compare("shape of the parameter", before.parameters, now.parameters)


def identity(model: nn.Module) -> Identity:
    supernet = Supernet(model)
    return Identity(
        choices=dict(zip(supernet.names, supernet.candidates, strict=True)),
        parameters={name: tuple(p.shape) for name, p in model.named_parameters()},
    )


def _compare(
    what: str, before: Mapping[str, tuple[object, ...]], now: Mapping[str, tuple[object, ...]]
) -> None:
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise RunError(
                f"this is not the model that was searched: the {what} {name!r} is now "
                f"{_words(now.get(name))}, and was {_words(before.get(name))}; give the same "
                "model, or search in another `out`"
            )


def _words(values: tuple[object, ...] | None) -> str:
    return "missing" if values is None else f"({', '.join(map(str, values))})"
