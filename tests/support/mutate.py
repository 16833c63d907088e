"""Hostile versions of good files: bytes that are damaged, values that are absurd."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

EVIL: list[Any] = [
    *(None, True, False, [], {}, "", -1, 0, 1e308, -1e308, 10**40, float("nan"), float("inf")),
    *(
        "x" * 5000,
        "../../etc/passwd",
        "/dev/zero",
        "a\0b",
        "\ud800",
        "os:system",
        "<script>",
        "1e9",
    ),
    *([[[[[]]]]], {"a": {"b": {"c": {}}}}, [0] * 3000, {str(i): i for i in range(500)}, 1 << 62),
]
TOKENS = (
    *(b"NaN", b"Infinity", b"1e999", b"[" * 3000, b'{"a":' * 2000, b"\xff\xfe", b"\0" * 64),
    *(
        b"!!python/object/apply:os.system ['true']",
        b"&a [*a]",
        b"\n---\n",
        b"<<: ",
        b"999999999999",
    ),
)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A few of: bits flipped, cut off, parts doubled, removed or replaced."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, end = sorted(chance.randrange(len(out) + 1) for _ in range(2))
        end = min(end, at + chance.choice((1, 8, 200)))
        kind = chance.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            out[at:at] = out[at:end] * chance.choice((1, 2, 50))
        elif kind == 3:
            del out[at:end]
        elif kind == 4:
            out[at:end] = chance.choice(TOKENS)
        else:
            out[at:end] = chance.randbytes(end - at)
    return bytes(out)


def absurd(value: Any, chance: random.Random) -> Any:
    """The same value with one to three of its parts replaced, doubled or taken away."""
    root = [copy.deepcopy(value)]
    for _ in range(chance.randint(1, 3)):
        places = _places(root)
        holder, key = chance.choice(places)
        if isinstance(holder, dict) and chance.random() < 0.3:
            held = holder.pop(key)
            if chance.random() < 0.5:
                holder[f"{key}x"] = held
        else:
            holder[key] = copy.deepcopy(chance.choice(EVIL))
    return root[0]


def _places(holder: Any) -> list[tuple[Any, Any]]:
    keys = holder.keys() if isinstance(holder, dict) else range(len(holder))
    found = []
    for key in keys:
        found.append((holder, key))
        if isinstance(holder[key], dict | list):
            found += _places(holder[key])
    return found


def hostile(text: str, chance: random.Random) -> bytes:
    """A JSON document, damaged in one of the two ways."""
    if chance.random() < 0.4:
        return damaged(text.encode(), chance)
    value = absurd(json.loads(text), chance)
    return json.dumps(value).encode("utf-8", "surrogatepass")
