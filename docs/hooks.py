"""Pages that are generated when the site is built, so that they cannot be out of date.

`<!-- settings -->` becomes every setting with its type, its default and its sentence, of the
classes in `config/`; `<!-- formats -->` the JSON schemas of the files that others may write. A
notebook becomes a page with the outputs that are stored in it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proxylessnas import schema
from proxylessnas.architecture import Architecture
from proxylessnas.config import RunConfig

SETTINGS, FORMATS = "<!-- settings -->", "<!-- formats -->"


def on_files(files: Any, config: Any) -> Any:
    """The hook of mkdocs: a page beside every notebook, with its pictures."""
    from mkdocs.structure.files import File  # what only `make docs` has
    from nbconvert import MarkdownExporter

    for notebook in [f for f in files if f.src_uri.endswith(".ipynb")]:
        name = Path(notebook.src_uri).stem
        names = {"unique_key": name, "output_files_dir": name}
        text, resources = MarkdownExporter().from_filename(notebook.abs_src_path, names)
        page = f"{text}\n[This page as a notebook]({name}.ipynb).\n"
        files.append(File.generated(config, f"notebooks/{name}.md", content=page))
        for file, content in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{file}", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The hook of mkdocs."""
    markdown = re.sub(r"\]\((notebooks/[\w-]+)\.ipynb\)", r"](\1.md)", markdown)
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
