"""What native code prints, past Python's streams."""

from __future__ import annotations

import os

import pytest
import scipy.optimize
import torch

from proxylessnas.core.costs import Costs
from proxylessnas.core.decode import decode
from proxylessnas.io.native import native_away


def test_lines_of_the_integer_programme_do_not_reach_standard_output(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """HiGHS prints one of its debugging; what Python prints before and after stays."""
    solve = scipy.optimize.milp

    def talking(*args: object, **options: object) -> object:
        os.write(1, b"HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();\n")
        return solve(*args, **options)

    monkeypatch.setattr(scipy.optimize, "milp", talking)
    p = torch.tensor([[0.7, 0.3], [0.6, 0.4]])
    costs = Costs.one("macs", torch.tensor([[5.0, 1.0], [4.0, 2.0]]), limit=7.0)
    print("before")
    assert next(decode(p.log(), p > 0, costs)) == (0, 1)
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"


def test_a_process_without_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `proxylessnas ... >&-` leaves it."""

    def closed(number: int) -> int:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(os, "dup", closed)
    with native_away(1):
        pass
