"""What the documents name exists: files, options of commands, settings, golden figures."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from proxylessnas import zoo
from proxylessnas.cli.flags import OPTIONS
from proxylessnas.cli.main import main

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "proxylessnas"
PAGES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(p for p in PAGES if p != "docs/log.md")]
OF_A_RUN = ("runs/", "stages/", "checkpoints/", "within/", "by-hand/")
TEXTS = {name: (ROOT / name).read_text() for name in [*DOCUMENTS, "docs/log.md"]}
CODE = [
    p
    for folder in ("src", "tests", "examples", "benchmarks")
    for p in (ROOT / folder).rglob("*.py")
]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_files_exist(name: str) -> None:
    """Paths in backticks: from the root, from the package, or what a run makes."""
    paths = re.findall(r"`((?:[\w.-]+/)+(?:[\w.-]+\.(?:py|md|yaml))?)`", TEXTS[name])
    paths = [path for path in paths if not path.startswith((*OF_A_RUN, "published/"))]
    assert [p for p in paths if not (ROOT / p).exists() and not (PACKAGE / p).exists()] == []


def test_the_readme_has_every_folder_and_module() -> None:
    house = TEXTS["README.md"].partition("## The house")[2]
    there = {p.name + "/" for p in PACKAGE.iterdir() if p.is_dir() and p.name[0] != "_"}
    there |= {p.name for p in PACKAGE.glob("[a-z]*.py")}
    assert sorted(name for name in there if f"`{name}`" not in house) == []


def test_code_refers_to_documents_of_the_tree_alone() -> None:
    missing = {}
    for path in CODE:
        for document in re.findall(r"[\w/]*\b\w+\.md\b", path.read_text()):
            if path != Path(__file__) and not (ROOT / document).exists():
                missing[path.relative_to(ROOT).as_posix()] = document
    assert missing == {}


# --- commands ---


def commands(text: str) -> list[list[str]]:
    """The words of every indented `proxylessnas ...` command, comments and continuations joined."""
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^ {4}(?:.*-m )?(proxylessnas .*)$", joined, re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines if "..." not in line]


@cache
def help_of(verb: str) -> str:
    word = "--help" if verb in OPTIONS else "--help-all"
    done = subprocess.run(
        [sys.executable, "-m", "proxylessnas", verb, word], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_have_options_that_exist(name: str) -> None:
    for verb, *words in commands(TEXTS[name]):
        known = set(re.findall(r"--[\w.-]+", help_of(verb)))
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        assert options <= known, (verb, options - known)


def test_every_verb_is_shown() -> None:
    shown = {verb for text in TEXTS.values() for verb, *_ in commands(text)}
    assert {"run", "measure", "evaluate", "derive", "predict", "report", "watch", "zoo"} <= shown


def test_commands_that_are_cheap_run(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the pages that look at a run, on a finished one; and the zoo's table."""
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "photos", "photos-mobile", "other", "other-limit"):
        shutil.copytree(finished_run, tmp_path / "runs" / name)
    for name in ("image.png", "image.jpg"):
        Image.new("L", (8, 8), 90).save(tmp_path / name)
    done = set()
    for text in TEXTS.values():
        for verb, *words in commands(text):
            looks = verb in ("report", "watch", "predict") or [verb, *words] == ["zoo"]
            if looks and (verb, *words) not in done:
                assert main([verb, *words]) == 0, (verb, words)
                done.add((verb, *words))
    assert {verb for verb, *_ in done} == {"report", "watch", "zoo", "predict"}


def test_messages_that_are_explained_exist() -> None:
    """Every heading of the page of messages is written in some file of the package."""
    said = "\n".join(
        "".join(
            part.value if isinstance(part, ast.Constant) else "…"
            for part in (node.values if isinstance(node, ast.JoinedStr) else [node])
        )
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.JoinedStr)
        or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    )
    headings = re.findall(r"^### `(.*)`$", TEXTS["docs/troubleshooting.md"], re.M)
    assert len(headings) > 12
    assert [heading for heading in headings if heading not in said] == []


def test_pages_link_to_pages_and_are_in_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    for name in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", TEXTS[name]):
            assert (ROOT / "docs" / link).exists(), (name, link)
        assert name.removeprefix("docs/") in site
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXTS["README.md"]):
        assert (ROOT / link).exists(), link


def test_the_pages_of_settings_are_generated() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        hooks = importlib.import_module("hooks")
    finally:
        sys.path.remove(str(ROOT / "docs"))
    page = hooks.on_page_markdown(TEXTS["docs/settings.md"])
    named = set(re.findall(r"^\| `([\w.]+)` \|", page, re.M))
    options = {o.replace("-", "_") for o in re.findall(r"--(\w[\w.-]+)", help_of("run"))}
    assert len(named) > 60 and named - {"limits"} <= options
    assert '"choices"' in hooks.on_page_markdown(TEXTS["docs/files.md"])


def test_the_figures_are_what_the_tool_draws() -> None:
    folder = ROOT / "docs" / "figures"
    networks = runpy.run_path(str(folder / "networks.py"))
    concepts = runpy.run_path(str(folder / "concepts.py"))["FIGURES"]
    for name, make in {"networks": networks["figure"], **concepts}.items():
        assert (folder / f"{name}.svg").read_text() == make(), name
        assert f"figures/{name}.svg)" in TEXTS["docs/concepts.md"] + TEXTS["README.md"]


def test_named_settings_exist() -> None:
    """Such as `search.reinmax`, in every document."""
    known = set(re.findall(r"--(\w[\w.-]+)", help_of("run")))
    stages = {option.split(".")[0] for option in known if "." in option}
    for name, text in TEXTS.items():
        named = re.findall(rf"`((?:{'|'.join(stages)})\.\w+)`", text)
        assert {n for n in named if n.replace("_", "-") not in known} == set(), name


def test_python_blocks_compile() -> None:
    for text in TEXTS.values():
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            compile(block, "a document", "exec")


# --- figures ---


def test_golden_figures_are_those_of_the_zoo() -> None:
    rows = re.findall(
        r"^\| (proxyless_\w+) \| \S+ \| ([\d,]+) \| ([\d,]+) \|$", TEXTS["docs/paper.md"], re.M
    )
    figures = {name: (int(p.replace(",", "")), int(m.replace(",", ""))) for name, p, m in rows}
    published = {n.name: (n.parameters, n.macs) for n in zoo.list_networks()}
    published.pop("mobilenet_v2")
    assert figures == published


def test_recipes_of_the_guide_are_those_of_the_package() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", TEXTS["docs/recipes.md"], re.M)
    assert set(rows) == {path.stem for path in (PACKAGE / "recipes").glob("*.yaml")}
