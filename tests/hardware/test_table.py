"""The table's file: round trip, refusals, and anything at all on reading."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxylessnas.errors import MeasurementError, MissingEntry
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.hardware.table_entries import Column, NetworkEntry, NetworkValue
from proxylessnas.hardware.timing import Measurement

DEVICE = {
    "runtime": "fake",
    "version": "1",
    "precision": "f32",
    "threads": 1,
    "device": "some processor",
    "batch": 1,
    "input_shapes": "1x3x8x8",
}


def measurement(*samples: float, **environment: str | int | float) -> Measurement:
    return Measurement(samples_ms=samples or (1.0,), environment=environment)


def table(**changes: Any) -> LatencyTable:
    network = NetworkEntry(
        choices={"a": "x"},
        role="canary",
        space="s",
        macs=10,
        measurement=measurement(3.5),
        repeat=measurement(3.6, date="later"),
    )
    fields: dict[str, Any] = {
        "device": DEVICE,
        "entries": {"MBConv k3 [1x8]": measurement(1.25, 1.5), "Conv k1": measurement(0.5)},
        "networks": (network,),
        "validation": {"bias_pct": 0.5, "macs_only": {"kendall": None}},
    }
    return LatencyTable(**{**fields, **changes})


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table().save(path)
    assert LatencyTable.load(path) == table()
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]
    empty = table(entries={}, networks=(), validation=None, complete=False)
    empty.save(path)
    assert LatencyTable.load(path) == empty


def test_a_missing_entry_names_key_device_and_nearest() -> None:
    assert table()["Conv k1"].median_ms == 0.5
    with pytest.raises(MissingEntry) as caught:
        table()["MBConv k5 [1x8]"]
    for word in ("MBConv k5 [1x8]", "some processor", "fake", "'MBConv k3 [1x8]'"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", "another"),
        ("runtime", "torch"),
        ("threads", 2),
        ("batch", 8),
    ],
)
def test_another_device_is_refused_unless_forced(field: str, value: str | int) -> None:
    description = {k: v for k, v in DEVICE.items() if k != "batch"}
    table().check(description, 1)
    batch = 1
    if field == "batch":
        assert isinstance(value, int)
        batch = value
    else:
        description[field] = value
    with pytest.raises(MeasurementError, match=f"with {field} "):
        table().check(description, batch)
    with pytest.warns(UserWarning, match=f"with {field} "):
        table().check(description, batch, force=True)


def test_another_version_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="fake 1, this is 2"):
        table().check({**DEVICE, "version": "2"}, 1)


def test_merge() -> None:
    other = table(
        entries={"Conv k1": measurement(9.0), "Conv k3": measurement(0.75, date="now")},
        networks=(replace(table().networks[0], choices={"a": "y"}), table().networks[0]),
    )
    both = table().merge(other)
    assert {k: m.median_ms for k, m in both.entries.items()} == {
        "MBConv k3 [1x8]": 1.375,
        "Conv k1": 0.5,
        "Conv k3": 0.75,
    }
    assert [n.choices["a"] for n in both.networks] == ["x", "y"]
    assert both.complete and not table().merge(replace(other, complete=False)).complete
    # The validation was of the networks there were.
    assert table().validation and both.validation is None
    elsewhere = tuple(replace(n, space="another") for n in other.networks)
    assert table().merge(replace(other, networks=elsewhere)).validation == table().validation
    assert table().merge(replace(other, networks=table().networks)).validation
    for name, value in (("batch", 4), ("version", "0.1")):
        with pytest.raises(MeasurementError, match=f"different {name}"):
            table().merge(replace(other, device={**DEVICE, name: value}))


# --- reading what a stranger wrote ---

BROKEN: dict[str, Callable[[dict[str, Any]], object]] = {
    "no object": lambda d: [d],
    "unknown schema": lambda d: d | {"schema": 99},
    "unknown field": lambda d: d | {"extra": 1},
    "missing field": lambda d: {k: v for k, v in d.items() if k != "entries"},
    "entries not an object": lambda d: d | {"entries": []},
    "no samples": lambda d: d | {"entries": {"a": {"samples_ms": [], "environment": 0}}},
    "negative": lambda d: d | {"entries": {"a": {"samples_ms": [-1], "environment": 0}}},
    "zero": lambda d: d | {"entries": {"a": {"samples_ms": [0], "environment": 0}}},
    "text": lambda d: d | {"entries": {"a": {"samples_ms": ["1"], "environment": 0}}},
    "true": lambda d: d | {"entries": {"a": {"samples_ms": [True], "environment": 0}}},
    "huge": lambda d: d | {"entries": {"a": {"samples_ms": [10**400], "environment": 0}}},
    "no environment": lambda d: d | {"entries": {"a": {"samples_ms": [1], "environment": 9}}},
    "odd environment": lambda d: d | {"entries": {"a": {"samples_ms": [1], "environment": True}}},
    "environments": lambda d: d | {"environments": [{"date": []}]},
    "complete": lambda d: d | {"complete": "yes"},
    "device": lambda d: d | {"device": {"runtime": None}},
    "validation": lambda d: d | {"validation": 3},
    "role": lambda d: d | {"networks": [d["networks"][0] | {"role": "boss"}]},
    "macs": lambda d: d | {"networks": [d["networks"][0] | {"macs": 1.5}]},
    "choices": lambda d: d | {"networks": [d["networks"][0] | {"choices": {"a": 1}}]},
    "space": lambda d: d | {"networks": [d["networks"][0] | {"space": None}]},
    "repeat": lambda d: d | {"networks": [d["networks"][0] | {"repeat": 0}]},
}


@pytest.mark.parametrize("how", BROKEN)
def test_malformed_tables_are_one_clear_line(how: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(BROKEN[how](json.loads(table().to_json()))))
    with pytest.raises(MeasurementError, match=r"bad\.json is not a latency table") as caught:
        LatencyTable.load(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "raw",
    [b"", b"nonsense", b"\xff\xfe", b'{"schema": NaN}', b"[" * 100_000, b'{"a": 1' + b"0" * 9000],
)
def test_what_is_not_json_is_one_clear_line(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(raw)
    with pytest.raises(MeasurementError, match="not a latency table"):
        LatencyTable.load(path)


def test_missing_and_oversized_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MeasurementError, match="cannot read"):
        LatencyTable.load(tmp_path / "none.json")
    with pytest.raises(MeasurementError, match="cannot read"):
        LatencyTable.load(tmp_path)
    monkeypatch.setattr("proxylessnas.hardware.table.MAX_FILE_BYTES", 100)
    table().save(tmp_path / "big.json")
    with pytest.raises(MeasurementError, match="no regular file of at most 100 bytes"):
        LatencyTable.load(tmp_path / "big.json")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.data())
def test_fuzz_one_value_replaced(data: st.DataObject) -> None:
    """Any one value of a table replaced by anything: a table again, or one MeasurementError."""
    root = json.loads(table().to_json())
    node: Any = root
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = data.draw(JSON)
    try:
        loaded = LatencyTable.from_json(json.dumps(root))
    except MeasurementError as error:
        assert str(error)
    else:
        assert LatencyTable.from_json(loaded.to_json()) == loaded


KEYS = st.text(st.characters(codec="utf-8"), max_size=20)
SAMPLES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=4)


@given(st.dictionaries(KEYS, SAMPLES, max_size=4), st.dictionaries(KEYS, KEYS, max_size=3))
def test_any_table_round_trips(entries: dict[str, list[float]], choices: dict[str, str]) -> None:
    made = table(
        entries={k: Measurement(samples_ms=tuple(v)) for k, v in entries.items()},
        networks=(replace(table().networks[0], choices=choices, repeat=None),),
    )
    assert LatencyTable.from_json(made.to_json()) == made


# --- columns ---


def column(unit: str = "mJ", **entries: float) -> Column:
    network = NetworkValue(choices={"a": "x"}, space="s", value=7.5)
    return Column(unit=unit, entries=entries, networks=(network,))


def test_columns_survive_a_round_trip_and_need_no_networks() -> None:
    before = table(columns={"energy_mj": column(conv=1.5), "flash_kib": column("KiB", conv=3.0)})
    assert LatencyTable.from_json(before.to_json()) == before
    assert "columns" not in json.loads(table().to_json())
    data = json.loads(before.to_json())
    del data["columns"]["energy_mj"]["networks"]
    assert LatencyTable.from_json(json.dumps(data)).columns["energy_mj"].networks == ()


def test_merged_columns_have_the_values_of_both() -> None:
    mine = table(columns={"energy_mj": column(a=1.0, b=2.0), "flash_kib": column("KiB")})
    other = replace(column(b=9.0, c=3.0), networks=(NetworkValue(choices={}, space="s", value=1),))
    merged = mine.merge(table(columns={"energy_mj": other})).columns
    assert merged["energy_mj"].entries == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert [n.value for n in merged["energy_mj"].networks] == [7.5, 1]
    assert merged["flash_kib"] == column("KiB")
    with pytest.raises(MeasurementError, match="energy_mj in mJ and in J cannot be merged"):
        mine.merge(table(columns={"energy_mj": column("J")}))


@pytest.mark.parametrize(
    "broken",
    [
        [],
        {"energy_mj": []},
        {"energy_mj": {"entries": {}}},
        {"energy_mj": {"unit": 1, "entries": {}}},
        {"energy_mj": {"unit": "mJ", "entries": {"a": "much"}}},
        {"energy_mj": {"unit": "mJ", "entries": {"a": True}}},
        {"energy_mj": {"unit": "mJ", "entries": {"a": 1e300}}},
        {"energy_mj": {"unit": "mJ", "entries": {}, "mean": 1}},
        {"energy_mj": {"unit": "mJ", "entries": {}, "networks": [{"value": 1, "space": "s"}]}},
        {
            "energy_mj": {
                "unit": "mJ",
                "entries": {},
                "networks": [{"value": 1, "space": "s", "choices": {"a": 1}}],
            }
        },
    ],
)
def test_broken_columns_are_refused(broken: object) -> None:
    data = json.loads(table().to_json())
    data["columns"] = broken
    with pytest.raises(MeasurementError, match="column"):
        LatencyTable.from_json(json.dumps(data))
