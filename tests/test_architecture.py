"""An architecture is a value: frozen, hashable, checked, and the same after JSON."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxylessnas.architecture import MAX_FILE_BYTES, Architecture, InputInfo
from proxylessnas.errors import ArchitectureError

INFO = InputInfo(
    shape=(3, 32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1), classes=("cat", "dog")
)
CHOICES = {"blocks.1": "k3_e3", "blocks.2.branch": "zero"}


def example(**changes: Any) -> Architecture:
    fields = {"space": "mobile", "choices": CHOICES, "settings": {"widths": [8, 16]}, "input": INFO}
    return Architecture(**{**fields, **changes})


def decoded(**changes: Any) -> dict[str, Any]:
    return {**json.loads(example().to_json()), **changes}


names = st.text(min_size=1, max_size=8)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1, 1) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


@given(names, st.dictionaries(names, names, max_size=5), st.dictionaries(names, plain, max_size=4))
def test_any_architecture_survives_json(
    space: str, choices: dict[str, str], settings: dict[str, Any]
) -> None:
    first = Architecture(space=space, choices=choices, settings=settings)
    second = Architecture.from_json(first.to_json())
    assert second == first and hash(second) == hash(first)
    assert list(second.choices) == list(choices)  # the order of the model


def test_input_survives_json_and_files(tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    path.write_text(example().to_json())
    assert Architecture.load(path) == example()
    assert Architecture.load(path).input == INFO


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_it_can_be_copied_and_pickled(copied: Any) -> None:
    assert copied(example()) == example()


def test_it_is_frozen() -> None:
    architecture, mine = example(), dict(CHOICES)
    with pytest.raises(AttributeError):
        architecture.space = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        architecture.choices["blocks.1"] = "zero"  # type: ignore[index]
    made = example(choices=mine)
    mine["blocks.1"] = "zero"
    assert made == architecture


def test_equal_architectures_have_equal_hashes_in_any_order() -> None:
    backwards = example(choices=dict(reversed(CHOICES.items())))
    assert backwards == example() and hash(backwards) == hash(example())
    assert example(choices={**CHOICES, "blocks.1": "zero"}) != example()


def test_tuples_become_lists_as_json_makes_them() -> None:
    assert example(settings={"widths": (8, 16)}) == example()


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), object()])
def test_settings_that_are_no_json_are_refused(value: Any) -> None:
    with pytest.raises(ArchitectureError, match="not plain JSON"):
        example(settings={"x": value})


NAN, INFINITE, HUGE = float("nan"), float("inf"), 10**400


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the value is \\[\\]; it must be a group of named values"),
        (decoded(schema=2), "schema is 2; it must be 1"),
        (decoded(extra=1), "there is no 'extra'"),
        (decoded(space=""), "space is ''; it must be a text, of length at least 1"),
        (decoded(space=7), "space is 7; it must be a text"),
        (decoded(choices=None), "choices is null; it must be a mapping"),
        (decoded(choices={"a": 1}), "choices.a is 1; it must be a text"),
        (decoded(settings=[]), "settings is \\[\\]; it must be a mapping"),
        (decoded(input={}), "input.shape is missing"),
        (decoded(input={"shape": []}), "input.shape is \\[\\]; .* of length at least 1"),
        (decoded(input={"shape": [3, 0, 4]}), "input.shape\\[1\\] is 0; it must be a whole number"),
        (
            decoded(input={"shape": [3, 2.5]}),
            "input.shape\\[1\\] is 2.5; it must be a whole number",
        ),
        (decoded(input={"shape": [3, True]}), "input.shape\\[1\\] is true"),
        (decoded(input={"shape": [NAN, 4, 4]}), "NaN is no number in JSON"),
        (decoded(input={"shape": [INFINITE]}), "Infinity is no number in JSON"),
        (decoded(input={"shape": [HUGE]}), "it must be a whole number, at least 1, at most"),
        (
            decoded(input={"shape": [1 << 20] * 2}),
            "input: shape is .*: more than 67,108,864 numbers",
        ),
        (decoded(input={"shape": [3], "classes": "cat"}), "classes is 'cat'; it must be a list"),
        (decoded(input={"shape": [3], "mean": [1.0], "std": [1.0]}), "do not fit"),
        (
            decoded(input={"shape": [1], "mean": [1.0], "std": [0.0]}),
            "std\\[0\\] is 0.0; .*above 0",
        ),
        (decoded(input={"shape": [1], "mean": [1e13], "std": [1.0]}), "mean\\[0\\] is 1.*at most"),
        (decoded(input={"shape": [1], "central_share": 1.5}), "central_share is 1.5; .*at most 1"),
        (decoded(input={"shape": [1], "central_share": "all"}), "central_share is 'all'"),
    ],
)
def test_a_damaged_value_is_refused_by_name(data: Any, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        Architecture.from_json(json.dumps(data))


def test_a_value_of_python_is_refused_in_the_same_words() -> None:
    with pytest.raises(
        ArchitectureError, match=r"input.shape\[1\] is 0; it must be a whole number"
    ):
        InputInfo(shape=(3, 0, 4))
    with pytest.raises(ArchitectureError, match=r"architecture.choices.a is 1; it must be a text"):
        example(choices={"a": 1})


def test_a_key_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ArchitectureError, match="the key 'space' is there twice"):
        Architecture.from_json('{"space": "mobile", "space": "tree", "choices": {}}')


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, json.dumps({"schema": 1}).encode()],
    ids=["empty", "cut", "binary", "deep", "bare"],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ArchitectureError, match=r"broken\.json"):
        Architecture.load(path)


def test_a_missing_or_oversized_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="cannot read"):
        Architecture.load(tmp_path / "none.json")
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (MAX_FILE_BYTES + 1))
    with pytest.raises(ArchitectureError, match="no regular file of at most 8,388,608 bytes"):
        Architecture.load(large)
