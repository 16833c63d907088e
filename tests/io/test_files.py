"""Files of strangers: read up to a limit, decoded without surprises, validated by a type."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from annotated_types import Ge
from hypothesis import given
from hypothesis import strategies as st

from proxylessnas.errors import ConfigError, MeasurementError
from proxylessnas.io.files import read_bytes
from proxylessnas.io.json_files import decode_json, parse_json, read_json
from proxylessnas.io.yaml_files import decode_yaml, encode_yaml
from proxylessnas.schema import checked


@checked(MeasurementError)
@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a file."""

    name: str
    counts: tuple[Annotated[int, Ge(1)], ...] = ()
    next: Row | None = None


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(MeasurementError, match="no regular file of at most 4 bytes"):
        read_bytes(path, 4, MeasurementError)


@pytest.mark.parametrize("name", ["missing", ".", "/dev/zero", "x\0y", "fifo"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    if name == "fifo":
        os.mkfifo(tmp_path / name)
    with pytest.raises(MeasurementError, match="cannot read"):
        read_bytes(tmp_path / name, 10, MeasurementError)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": NaN}', "NaN is no number in JSON"),
        ('{"a": -Infinity}', "-Infinity is no number in JSON"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is there twice"),
        ('[{"b": {"a": 1, "a": 1}}]', "the key 'a' is there twice"),
        ("[" * 100_000, "not JSON"),
        ("9" * 5000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_json_without_surprises(text: str | bytes, says: str) -> None:
    with pytest.raises(MeasurementError, match=says) as error:
        decode_json(text, MeasurementError)
    assert "\n" not in str(error.value)


def test_a_file_of_a_type(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    path.write_text('{"name": "a", "counts": [1, 2], "next": {"name": "b"}}')
    row = read_json(path, Row, 1000, MeasurementError)
    assert row == Row(name="a", counts=(1, 2), next=Row(name="b"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", r"the value is \[\]; it must be a group of named values"),
        ("{}", "name is missing"),
        ('{"name": 1}', "name is 1; it must be a text"),
        ('{"nam": "a"}', "there is no 'nam'; did you mean name?"),
        (
            '{"name": "a", "counts": [1, 0]}',
            r"counts\[1\] is 0; it must be a whole number, at leas",
        ),
        ('{"name": "a", "counts": 3}', "counts is 3; it must be a list, each a whole number"),
        ('{"name": "a", "next": {"name": "b", "next": 3}}', "next.next is 3; it must be a group"),
        ('{"name": "a", "next": {"name": "b", "nex": 3}}', "no 'next.nex'; did you mean next?"),
    ],
)
def test_the_place_of_whatever_the_type_does_not_allow(
    tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "row.json"
    path.write_text(text)
    with pytest.raises(MeasurementError, match=says) as error:
        read_json(path, Row, 1000, MeasurementError)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(st.text(max_size=30) | st.binary(max_size=30))
def test_any_text_is_decoded_or_refused(text: str | bytes) -> None:
    for read in (
        lambda: decode_json(text, MeasurementError),
        lambda: parse_json(Row, text, MeasurementError),
        lambda: decode_yaml(text, "text"),
    ):
        try:
            read()
        except (MeasurementError, ConfigError) as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-2E5", -2e5),
        ("1.5e+3", 1500.0),
        ("1e", "1e"),
        ("e3", "e3"),
        ("0.5", 0.5),
        ("null", None),
        ("{a: [1, x]}", {"a": [1, "x"]}),
        # YAML 1.1 would say 8, 90, 1000, 31 and a date.
        ("010", 10),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
        ("2026-01-01", "2026-01-01"),
    ],
)
def test_yaml_values(text: str, value: Any) -> None:
    assert decode_yaml(text, "text") == value


@pytest.mark.parametrize("text", ["08", "010", "1e5", "1:30", "yes", "null", "1_0", ".5", "é: #"])
def test_texts_stay_texts(text: str) -> None:
    written = encode_yaml({"data": text})
    assert decode_yaml(written, "text") == yaml.safe_load(written) == {"data": text}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "the key 'a' is there twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("!!timestamp ''", "tags"),
        ("!!python/name:os.system x", "tags"),
        ("? [a]\n: b", "not YAML"),
    ],
)
def test_yaml_without_surprises(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        decode_yaml(text, "text")
    assert "\n" not in str(error.value)
