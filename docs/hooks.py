"""Pages that are generated when the site is built, so that they cannot be out of date.

`<!-- settings -->` becomes every setting with its type, its default and its sentence, of the
classes in `config.py`; `<!-- formats -->` the JSON schemas of the files that others may write.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from proxylessnas import schema
from proxylessnas.architecture import Architecture
from proxylessnas.config import RunConfig

SETTINGS, FORMATS = "<!-- settings -->", "<!-- formats -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The hook of mkdocs."""
    for mark, made in ((SETTINGS, settings), (FORMATS, formats)):
        if mark in markdown:
            markdown = markdown.replace(mark, made())
    return markdown


def settings() -> str:
    """A table for the run, then one for each group."""
    return "\n".join(_tables(RunConfig, "", "The run"))


def _tables(cls: Any, prefix: str, title: str) -> Iterator[str]:
    docs, hints = schema.docs_of(cls), schema.hints_of(cls)
    yield f"\n## {title}\n"
    yield "| setting | allowed | default | |\n| --- | --- | --- | --- |"
    groups = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            groups.append((hint, f"{prefix}{field.name}."))
            continue
        default = field.default if field.default is not dataclasses.MISSING else {}
        cells = (
            f"`{prefix}{field.name}`",
            schema.describe(schema.required(hint)),
            f"`{schema.shown(default)}`",
            " ".join(docs[field.name].split()),
        )
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    for hint, name in groups:
        yield from _tables(hint, name, f"`{name[:-1]}`: {' '.join((hint.__doc__ or '').split())}")


def formats() -> str:
    """The schema of `architecture.json`."""
    text = json.dumps(schema.json_schema(Architecture), indent=2)
    return f"```json\n{text}\n```"
