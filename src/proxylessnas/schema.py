"""Values checked against their declared types: settings, options and every JSON file.

`@checked` on a frozen dataclass makes construction refuse whatever the field types do not allow.
The same declaration reads plain values (`from_plain`) and JSON (`from_json`), names what is allowed
(`describe`), and gives help (`docs_of`) and a JSON Schema. pydantic does the work; it is imported
with the first value that is checked, so that `--help` does not wait for it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

from proxylessnas.errors import ConfigError, UserError, did_you_mean

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
Hint = Any  # a type, or what `typing` makes of types
Path = tuple[int | str, ...]  # of field names and places in lists

# Whole numbers are no booleans and texts are no numbers; a list counts as a tuple in JSON alone.
STRICT: dict[str, Any] = {
    "extra": "forbid",
    "strict": True,
    "allow_inf_nan": False,
    "use_attribute_docstrings": True,
}
UNKNOWN = "unexpected_keyword_argument"
KINDS: dict[Hint, str] = {
    **{int: "a whole number", float: "a number", bool: "true or false", str: "a text"},
    **{dict: "a mapping", Mapping: "a mapping", type(None): "null"},
}
BOUNDS: dict[type, str] = {
    **{Gt: "above {0.gt:g}", Ge: "at least {0.ge:g}", Lt: "below {0.lt:g}"},
    **{Le: "at most {0.le:,}", MinLen: "of length at least {0.min_length}"},
    **{MaxLen: "of length at most {0.max_length:,}"},
}


@dataclasses.dataclass(frozen=True)
class Parsed:
    """Metadata of a text of a certain form.

    read: raises a ValueError, whose words the user sees, for a text of another form.
    words: what is allowed, as `a latency as 12ms`.
    """

    read: Callable[[str], object]
    words: str

    def __get_pydantic_core_schema__(self, source: Hint, handler: Any) -> Any:
        from pydantic_core import core_schema

        def check(text: str) -> str:
            self.read(text)
            return text

        return core_schema.no_info_after_validator_function(check, handler(source))


def checked(
    error: type[UserError] = ConfigError,
    *,
    place: str = "",
    renamed: Mapping[str, str] | None = None,
    others: Literal["forbid", "ignore"] = "forbid",
) -> Callable[[type[T]], type[T]]:
    """Let a keyword-only frozen dataclass validate its fields when it is constructed.

    error: what a refused value raises. place: the group that its messages name, as `search`.
    renamed: earlier names of fields -> their dotted names now. others: whether a decoded value may
    have fields besides.
    """

    def decorate(cls: type[T]) -> type[T]:
        hint: Hint = cls

        @wraps(cls.__init__)
        def __init__(self: T, /, **values: Any) -> None:
            _explained(
                lambda: adapter(hint).validator.validate_python(values, self_instance=self),
                cls,
                place,
                error,
            )

        cls.__init__ = __init__  # type: ignore[method-assign, assignment]
        cls.__pydantic_config__ = {**STRICT, "extra": others}  # type: ignore[attr-defined]
        cls.__renamed__ = renamed or {}  # type: ignore[attr-defined]
        return cls

    return decorate


@cache
def adapter(hint: Hint) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    own = hasattr(hint, "__pydantic_config__")
    return TypeAdapter(hint) if own else TypeAdapter(hint, config=STRICT)  # type: ignore[arg-type]


def check(hint: Hint, value: Any, place: str, error: type[UserError] = ConfigError) -> Any:
    """A Python value of the type.

    Raises:
        error: it is not; the message names the place, the value and what is allowed.
    """
    return _explained(lambda: adapter(hint).validate_python(value), hint, place, error)


def from_plain(
    hint: Hint, value: Any, place: str = "", error: type[UserError] = ConfigError
) -> Any:
    """A value of the type from what JSON or YAML decodes to.

    Raises:
        error: as `check`, or the value holds what JSON cannot say.
    """
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError) as problem:
        raise error(f"{place or 'the value'} is not plain JSON: {problem}") from None
    return from_json(hint, text, place, error)


def from_json(
    hint: Hint, text: str | bytes, place: str = "", error: type[UserError] = ConfigError
) -> Any:
    """A value of the type from JSON text.

    Raises:
        error: as `check`, or the text is not JSON.
    """
    return _explained(lambda: adapter(hint).validate_json(text), hint, place, error)


def json_schema(hint: Hint) -> dict[str, Any]:
    """The type's JSON Schema, with ranges, defaults and the docstring of every field."""
    return adapter(hint).json_schema()


# --- one shape of error ---


def _explained(
    validate: Callable[[], Any], hint: Hint, place: str, error: type[UserError] = ConfigError
) -> Any:
    from pydantic import ValidationError

    try:
        return validate()
    except ValidationError as problems:
        raise error(explain(problems, hint, place)) from None


def explain(problems: ValidationError, hint: Hint, place: str = "") -> str:
    """pydantic's error as one line: dotted name, value, what is allowed; a wrong name first."""
    problem = min(problems.errors(include_url=False), key=lambda p: p["type"] != UNKNOWN)
    kind, value = problem["type"], problem["input"]
    path, allowed = _walk(hint, problem["loc"])
    name = dotted(place, path)
    if kind == UNKNOWN:
        holder = unannotated(required(_walk(hint, path[:-1])[1]))
        return _unknown(holder, str(path[-1]), name)
    if kind == "value_error":
        words = str(problem["ctx"]["error"])
        return f"{name}: {words}" if name else words
    if kind == "missing":
        return f"{name} is missing"
    if kind == "json_invalid":
        return f"{name or 'the text'} is not JSON: {problem['ctx']['error']}"
    near = ""
    if kind == "literal_error" and isinstance(value, str):
        near = did_you_mean(value, map(str, typing.get_args(unannotated(required(allowed)))))
        near = f"; {near}" if near.startswith("did") else ""
    return f"{name or 'the value'} is {shown(value)}; it must be {describe(allowed)}{near}"


def _unknown(cls: Hint, last: str, name: str) -> str:
    if last in cls.__renamed__:
        return f"{name} is now {cls.__renamed__[last]}"
    names = [field.name for field in dataclasses.fields(cls)]
    return f"there is no {name!r}; {did_you_mean(last, names)}"


def dotted(place: str, path: Path) -> str:
    """`search.epochs`, `blocks[3].cell`: where a value stands."""
    for step in path:
        place += f"[{step}]" if isinstance(step, int) else f".{step}" if place else step
    return place


def shown(value: object) -> str:
    """A value as a config file writes it, of bounded length."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = reprlib.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


# --- types ---


def describe(hint: Hint) -> str:
    """What a type allows, as `a whole number, at least 1, or null`."""
    options = alternatives(hint)
    if len(options) > 1:
        return ", or ".join(map(describe, options))
    kind, arguments = bare(hint), typing.get_args(unannotated(hint))
    if kind is Literal:
        words = (
            f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(*arguments)
        )
    elif kind in (list, tuple):
        words = f"a list, each {describe(arguments[0])}"
    else:
        words = KINDS.get(kind, "a group of named values")
    for metadata in getattr(hint, "__metadata__", ()):
        if isinstance(metadata, Parsed):
            words = metadata.words
        elif type(metadata) in BOUNDS:
            words += ", " + BOUNDS[type(metadata)].format(metadata)
    return words


def alternatives(hint: Hint) -> tuple[Hint, ...]:
    """The members of a union; of any other type the type itself."""
    hint = hint if bare(hint) not in (typing.Union, types.UnionType) else unannotated(hint)
    return typing.get_args(hint) if bare(hint) in (typing.Union, types.UnionType) else (hint,)


def required(hint: Hint) -> Hint:
    """The type without null."""
    return next(h for h in alternatives(hint) if h is not type(None))


def unannotated(hint: Hint) -> Hint:
    return hint.__origin__ if hasattr(hint, "__metadata__") else hint


def bare(hint: Hint) -> Hint:
    """`tuple` of `Annotated[tuple[int, ...], ...]`."""
    hint = unannotated(hint)
    return typing.get_origin(hint) or hint


def _walk(hint: Hint, path: Path) -> tuple[Path, Hint]:
    """A path within a value of the type, as far as fields and items go, and the type there."""
    for i, step in enumerate(path):
        inner = unannotated(required(hint))
        arguments = typing.get_args(inner)
        if dataclasses.is_dataclass(inner):
            hint = hints_of(typing.cast(Hint, inner)).get(str(step))
        elif bare(inner) in (tuple, list) and isinstance(step, int):
            varied = bare(inner) is list or arguments[-1] is ...
            hint = arguments[0] if varied else arguments[step]
        elif bare(inner) in (dict, Mapping) and step != "[key]":
            hint = arguments[1]
        else:  # pydantic goes on with the member of a union, or with a key
            return path[:i], hint
    return path, hint


@cache
def hints_of(cls: Hint) -> dict[str, Hint]:
    """The types of a dataclass's fields, with their metadata."""
    return typing.get_type_hints(cls, include_extras=True)


@cache
def docs_of(cls: type) -> dict[str, str]:
    """The docstring under every field of a class and of those it inherits from, a line each."""
    body = _classes_of(cls.__module__)[cls.__name__].body
    docs: dict[str, str] = {}
    for base in reversed(cls.__bases__):
        docs |= docs_of(base) if dataclasses.is_dataclass(base) else {}
    for before, after in itertools.pairwise(body):
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr):
            assert isinstance(before.target, ast.Name) and isinstance(after.value, ast.Constant)
            docs[before.target.id] = " ".join(str(after.value.value).split())
    return docs


@cache
def _classes_of(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
