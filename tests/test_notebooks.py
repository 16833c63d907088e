"""The guide's notebooks: executed with less to do; kept with the outputs of a whole run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from pretrained import trained_run

ROOT = Path(__file__).parent.parent
NOTEBOOKS = {p.stem: p for p in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))}
# What is replaced by less, and what the last outputs then say. The fake runtime knows no noise.
FAKE = {'target_latency="0.5x"': 'target_latency="0.8x", runtime="fake"'}
LESS = {
    "photos": {
        **{"efficientnet_lite0": "trained", "=64": "=32", "range(48)": "range(24)"},
        **{'{"epochs": 4}': '{"epochs": 1}', '{"epochs": 6}': '{"epochs": 1}', **FAKE},
    },
    "own-model": {"range(6)": "range(1)", "epochs=6": "epochs=1", **FAKE},
    "device": {"[32, 64]": "[8, 8]", "epochs 8": "epochs 1", "range(96)": "range(40)"},
}
SAYS = {"photos": "moon", "own-model": "fine-tuned: ", "device": "limit "}


def said(notebook: Any) -> str:
    """Everything that the cells printed."""
    return "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream"
    )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_pages_show_a_whole_execution(name: str) -> None:
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(output.output_type != "error" for cell in code for output in cell.outputs)
    assert SAYS[name] in said(notebook)
    assert "\x1b[" not in said(notebook)  # lines, neither colours nor a cursor


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, first in (("PATH", Path(sys.executable).parent), ("PYTHONPATH", ROOT / "src")):
        monkeypatch.setenv(variable, f"{first}{os.pathsep}{os.environ.get(variable, '')}")
    trained_run(tmp_path / "trained")
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    for much, less in LESS[name].items():
        assert any(much in cell.source for cell in notebook.cells), much
        for cell in notebook.cells:
            cell.source = cell.source.replace(much, less)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=place).execute()
    assert SAYS[name] in said(notebook)
