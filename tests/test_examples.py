"""The examples run as a user runs them; `--quick` keeps each to seconds."""

from __future__ import annotations

import itertools
import runpy
from pathlib import Path

import pytest
from forked_runs import ForkServer

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("audio1d", "test accuracy"),
        ("segmentation", "of the test pixels right"),
        ("specialise", "fine-tuned: test accuracy"),
        ("specialise_tasks", "text: "),
        ("transformer", "test accuracy"),
    ],
)
def test_example_runs(server: ForkServer, name: str, says: str, tmp_path: Path) -> None:
    code, text = server.run_script(EXAMPLES / f"{name}.py", "--quick", directory=tmp_path)
    assert code == 0, text
    assert says in text
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_minimal_search_beats_random_networks_of_its_cost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("sklearn")
    script = runpy.run_path(str(EXAMPLES / "minimal_search.py"))
    costs, limit, mask = script["costs"], script["limit"], script["mask"]
    for network in [script["searched"], *script["rivals"]]:
        assert 0.9 * limit <= costs.of(network)[0] <= limit
    searched, *rivals = script["accuracies"]
    assert searched > sum(rivals) / len(rivals)
    # α has learned: kernels that see one pixel alone are not the choice of all positions.
    assert (script["supernet"].probabilities().amax(1) > 0.5).sum() >= 2
    # The most probable of all 4,096 networks that use nine tenths of the limit, by enumeration.
    log_p = script["supernet"].log_probabilities()
    networks = itertools.product(*[range(int(n)) for n in mask.sum(1)])
    allowed = [n for n in networks if 0.9 * limit <= costs.of(n)[0] <= limit]
    best = max(allowed, key=lambda n: sum(float(log_p[m, j]) for m, j in enumerate(n)))
    assert script["searched"] == best
    assert "on average" in capsys.readouterr().out
