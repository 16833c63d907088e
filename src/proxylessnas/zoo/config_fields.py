"""A value of a stranger's JSON and where it lies: typed reads whose errors name the place."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from proxylessnas.errors import ArchitectureError, did_you_mean

MAX_INTEGER = 1 << 20  # no width, kernel or number of classes is larger


def root(value: object) -> Place:
    """The whole document."""
    return Place(value, "")


@dataclass(frozen=True)
class Place:
    """value: as decoded from JSON. name: its path, as `blocks[3].cell.edges[0]`."""

    value: object
    name: str

    def fail(self, problem: str) -> NoReturn:
        raise ArchitectureError(f"{self.name or 'the config'} {problem}")

    def _object(self) -> Mapping[str, object]:
        if not isinstance(self.value, dict):
            self.fail(f"is {reprlib.repr(self.value)}, not an object")
        return self.value

    def has(self, field: str) -> bool:
        return field in self._object()

    def get(self, field: str) -> Place:
        fields = self._object()
        if field not in fields:
            self.fail(f"has no field {field!r}")
        return Place(fields[field], f"{self.name}.{field}" if self.name else field)

    def items(self, field: str, count: int | None = None) -> list[Place]:
        """The elements of a list; `count` of them, if given."""
        place = self.get(field)
        if not isinstance(place.value, list):
            place.fail(f"is {reprlib.repr(place.value)}, not a list")
        if count is not None and len(place.value) != count:
            place.fail(f"has {len(place.value)} elements; {count} are expected")
        return [Place(v, f"{place.name}[{i}]") for i, v in enumerate(place.value)]

    def text(self, field: str) -> str:
        place = self.get(field)
        if not isinstance(place.value, str):
            place.fail(f"is {reprlib.repr(place.value)}, not a string")
        return place.value

    def integer(self, field: str) -> int:
        """A whole number, 1 to 2^20."""
        place, value = self.get(field), self.get(field).value
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_INTEGER:
            place.fail(f"is {reprlib.repr(value)}, not a whole number of 1 to {MAX_INTEGER}")
        return value

    def rate(self, field: str) -> float:
        """A number in [0, 1)."""
        place, value = self.get(field), self.get(field).value
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
            place.fail(f"is {reprlib.repr(value)}, not a rate in [0, 1)")
        return float(value)

    def only(self, *required: str, optional: tuple[str, ...] = ()) -> None:
        """Every required field is there, and no other but the optional ones."""
        for field in self._object():
            if field not in required and field not in optional:
                known = (*required, *optional)
                self.fail(f"has the unknown field {field!r}; {did_you_mean(field, known)}")
        for field in required:
            self.get(field)

    def expect_field(self, field: str, expected: object) -> None:
        place = self.get(field)
        if not _same(place.value, expected):
            place.fail(f"is {reprlib.repr(place.value)}; {expected!r} is expected")

    def expect(self, fields: Mapping[str, object], *others: str) -> None:
        """These fields have these values; `others` are there too, and nothing else is."""
        self.only(*fields, *others)
        for field, expected in fields.items():
            self.expect_field(field, expected)

    def one_of(self, options: Mapping[str, Mapping[str, object]]) -> str:
        """The name of the option that this object equals; the nearest tells what differs."""
        found = self._object()
        for name, fields in options.items():
            if _equal(found, fields) == len(fields) == len(found):
                return name
        layer = self.text("name")
        near = [fields for fields in options.values() if fields["name"] == layer]
        if not near:
            layers = {str(fields["name"]) for fields in options.values()}
            self.get("name").fail(f"is the unknown layer {layer!r}; {did_you_mean(layer, layers)}")
        self.expect(max(near, key=lambda fields: _equal(found, fields)))
        raise AssertionError("unequal objects have a field that differs")


def _same(found: object, expected: object) -> bool:
    return found == expected and isinstance(found, bool) == isinstance(expected, bool)


def _equal(found: Mapping[str, object], fields: Mapping[str, object]) -> int:
    return sum(field in found and _same(found[field], v) for field, v in fields.items())
