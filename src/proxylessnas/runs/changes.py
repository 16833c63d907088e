"""Whether the data of a run are those that it began with: `data.json` in its directory."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from proxylessnas.data import Images
from proxylessnas.errors import RunError
from proxylessnas.schema import checked, from_json
from proxylessnas.session.session import Session
from proxylessnas.session.store import MAX_JSON_BYTES, Store

DATA = "data.json"


@checked(RunError)
@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The classes, and the digests of `data.Images`."""

    classes: tuple[str, ...]
    parts: dict[str, tuple[int, str, str]]


def record_data(store: Store, data: Images) -> None:
    store.write_json(DATA, asdict(_record(data)))


def check_data(session: Session, accept: bool, data: Images) -> None:
    """Of a run that goes on: refuse other data than it began with.

    accept: `--accept-changed-data`.

    Raises:
        RunError: files were added, removed or replaced, or the classes are others.
    """
    store, now = session.store, _record(data)
    if not store.has(DATA):  # a run of an earlier version
        record_data(store, data)
        return
    text = store.read(DATA, MAX_JSON_BYTES)
    before = from_json(DataRecord, text, str(store.file(DATA)), RunError)
    if before.classes != now.classes:
        differing = ", ".join(sorted(set(before.classes) ^ set(now.classes))[:5])
        raise RunError(
            f"the data of {store.path} have other classes than when it began (not in both: "
            f"{differing}): put them back, or begin again in another --out"
        )
    changes = _changes(before, now)
    if changes and not accept:
        raise RunError(
            f"the data have changed since {store.path} began: {changes}; put them back, begin "
            "again in another --out, or go on with --accept-changed-data (in Python: "
            "accept_changed_data=True)"
        )
    if changes:
        session.reporter.say(
            f"  accepted: {changes}; a test or validation part that is held out of train is drawn "
            "anew, with images that were trained on before"
        )
        record_data(store, data)


def _record(data: Images) -> DataRecord:
    return DataRecord(classes=data.info.classes, parts=dict(data.digests))


def _changes(before: DataRecord, now: DataRecord) -> str:
    """The parts that are not as they were, in words; "" where all are."""
    words = []
    for part in sorted(before.parts.keys() | now.parts.keys()):
        count, names, times = now.parts.get(part, (0, "", ""))
        old_count, old_names, old_times = before.parts.get(part, (0, "", ""))
        if count != old_count:
            words.append(f"{part} has {count:,} images, {old_count:,} before")
        elif names != old_names:
            words.append(f"{part} has {count:,} images as before, of other names, sizes or labels")
        elif times != old_times:
            words.append(f"{part} has the same {count:,} names and sizes, of other times")
    return ", ".join(words)
