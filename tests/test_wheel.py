"""The wheel that users install: its files, and its commands in an environment of their own."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import sysconfig
import time
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that sees nothing of the checkout."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout, without a network."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--no-input", "wheel", "--no-index", "--no-deps"]
    run(*pip, "--no-build-isolation", "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("proxylessnas-*.whl")
    return built


def test_wheel_holds_every_module_recipe_and_network(wheel: Path) -> None:
    files = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src"
    kinds = ("*.py", "recipes/*.yaml", "zoo/networks/*.json", "report/pages/*", "py.typed")
    expected = {
        path.relative_to(package).as_posix()
        for kind in kinds
        for path in (package / "proxylessnas").rglob(kind)
    }
    assert any(name.endswith(".yaml") for name in expected)
    assert any(name.endswith(".json") for name in expected)
    metadata = f"proxylessnas-{PROJECT['version']}.dist-info/"
    assert {name for name in files if not name.startswith(metadata)} == expected
    assert f"{metadata}licenses/LICENSE" in files


def test_wheel_and_sdist_are_the_same_every_time(tmp_path: Path) -> None:
    """Two builds at two moments: equal bytes, as whoever checks a release needs."""
    built: list[dict[str, bytes]] = []
    for place in ("first", "second"):
        folder = tmp_path / place
        run(sys.executable, "-m", "hatchling", "build", "--directory", folder, cwd=ROOT)
        built.append({path.name: path.read_bytes() for path in folder.iterdir()})
        time.sleep(2.1)  # longer than the resolution of times in a zip file
    assert {Path(name).suffix for name in built[0]} == {".whl", ".gz"}
    assert built[0] == built[1]


def test_the_metadata_is_complete(wheel: Path) -> None:
    name = f"proxylessnas-{PROJECT['version']}.dist-info/METADATA"
    metadata = email.message_from_bytes(zipfile.ZipFile(wheel).read(name))
    for field in ("Summary", "Author", "Keywords", "License-Expression", "License-File"):
        assert metadata[field], field
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).startswith("# proxylessnas")
    urls = {str(line).partition(",")[0] for line in metadata.get_all("Project-URL", [])}
    assert urls == set(PROJECT["urls"])
    python = PROJECT["requires-python"].removeprefix(">=")
    supported = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if ":: 3." in c]
    assert supported[0] == python and metadata["Requires-Python"] == f">={python}"


def test_installed_wheel_runs_from_another_directory(wheel: Path, tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    venv.create(home, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    # The dependencies are those of the running environment. Python reads .pth files in a
    # site-packages folder alone, so a checkout that is installed there as editable stays unseen.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps"]
    run(*pip, wheel, cwd=elsewhere)
    where = run(python, "-c", "import proxylessnas; print(proxylessnas.__file__)", cwd=elsewhere)
    assert Path(where.strip()).is_relative_to(home)
    command = home / "bin" / "proxylessnas"
    assert PROJECT["version"] in run(command, "--version", cwd=elsewhere)
    networks = run(command, "zoo", cwd=elsewhere)
    assert "proxyless_mobile" in networks and "mobilenet_v2" in networks
    assert list(elsewhere.iterdir()) == []
