"""JSON of strangers: decoded without surprises, and validated against a declared type.

A number that JSON does not have, a key that is there twice or nesting without end is refused before
the type is looked at; `schema` then names the place of whatever the type does not allow.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from proxylessnas import schema
from proxylessnas.errors import UserError, one_line
from proxylessnas.io.files import read_bytes


def decode_json(text: str | bytes, error: type[UserError]) -> Any:
    """The plain value of a JSON text.

    Raises:
        error: the text is not JSON in UTF-8, has NaN or an infinity, or a key twice.
    """
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(decoded, parse_constant=_no_number, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as problem:
        raise error(f"it is not JSON: {one_line(problem)}") from None


def parse_json(hint: schema.Hint, text: str | bytes, error: type[UserError]) -> Any:
    """A value of the type from JSON text.

    Raises:
        error: as `decode_json`, or the value is not of the type; the message names the place.
    """
    decode_json(text, error)
    return schema.from_json(hint, text, error=error)


def read_json(path: str | Path, hint: schema.Hint, limit: int, error: type[UserError]) -> Any:
    """A value of the type from a JSON file of at most `limit` bytes.

    Raises:
        error: the file cannot be read, or as `parse_json`; the message names the file.
    """
    text = read_bytes(path, limit, error)
    try:
        return parse_json(hint, text, error)
    except error as problem:
        raise error(f"{path}: {problem}") from None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return values
