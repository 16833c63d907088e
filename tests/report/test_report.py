"""The report: facts of the records, one page that needs nothing else, sentences that are computed.

In a browser: `tests/report/test_browser.py`.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from proxylessnas import zoo
from proxylessnas.cli.main import main
from proxylessnas.report.charts import Mark, lines, pareto, scatter, ticks
from proxylessnas.report.facts import Choice
from proxylessnas.report.findings import _dear_but_few_macs, _shape, limited_by
from proxylessnas.report.page import SECTIONS, _lead, page
from proxylessnas.report.records import Records, facts_of
from proxylessnas.report.shapes import Layer, layers
from proxylessnas.runs.reporting import facts_of_run, write_report
from proxylessnas.spaces import build_supernet

MOST = 3 << 20  # bytes of a report
HOSTILE = "<img src=x onerror=alert(1)></script>&\"'"


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


class Tags(HTMLParser):
    """Every opening tag with its attributes; complains of a tag that is not closed in order."""

    VOID = ("meta", "link", "img", "br", "hr")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_run_leaves_its_report(finished_run: Path) -> None:
    html = (finished_run / "report.html").read_text()
    tags = Tags(html).tags
    ids = {attributes.get("id") for _, attributes in tags}
    assert {f"r0-{name}" for name in SECTIONS} <= ids
    assert len(html) < MOST
    # Nothing is fetched: every address is inside the page.
    addresses = [v for _, a in tags for k, v in a.items() if k in ("src", "href")]
    assert addresses and all(v is not None and v.startswith(("#", "data:")) for v in addresses)
    assert not re.search(r"url\(|@import|\bfetch\(", html)
    summary = json.loads((finished_run / "summary.json").read_text())
    assert f"{100 * summary['test_accuracy']:.1f} %" in html
    assert "missing" not in {a.get("class") for _, a in tags}


def test_facts_are_those_of_the_records(finished_run: Path) -> None:
    facts = facts_of_run(finished_run)
    summary = json.loads((finished_run / "summary.json").read_text())
    assert facts.missing == ()
    assert facts.outcome is not None and facts.outcome.accuracy == summary["test_accuracy"]
    assert facts.latency.predicted == pytest.approx(summary["predicted_latency_ms"], rel=1e-12)
    assert facts.latency.target == summary["target_latency_ms"]
    assert sum(map(sum, facts.outcome.counts)) == facts.outcome.images
    # What the blocks and the fixed part cost is what the network was predicted to take.
    priced = sum(choice.cost("latency") or 0.0 for choice in facts.choices)
    assert priced + facts.fixed["latency"] == pytest.approx(facts.latency.predicted, rel=1e-9)
    for choice in facts.choices:
        assert len(choice.history) == len(facts.moments) >= 5
        assert sum(choice.probabilities) == pytest.approx(1)
        assert all(sum(row) == pytest.approx(1, abs=1e-3) for row in choice.history)
        assert choice.history[-1] == pytest.approx(choice.probabilities, abs=1e-4)
    wrong = [m for m in facts.outcome.mistakes if m["true"] == m["answer"]]
    assert facts.outcome.mistakes and wrong == []
    sure = [m["probability"] for m in facts.outcome.mistakes]
    assert sure == sorted(sure, reverse=True)
    assert len(facts.networks) >= 4 and {n["role"] for n in facts.networks} >= {"fit", "canary"}
    assert json.loads((finished_run / "report.json").read_text())["name"] == facts.name


STAGES = ("measure", "search", "derive", "train", "evaluate", "export")


@pytest.mark.parametrize("done", range(len(STAGES)))
def test_an_unfinished_run_says_what_is_not_there(run: Path, done: int) -> None:
    for name in STAGES[done:]:
        (run / "stages" / f"{name}.json").unlink()
    left = {"derive": ("architecture.json", "prices.json"), "evaluate": ("confusion.json",)}
    for name in ("summary.json", *(f for s in STAGES[done:] for f in left.get(s, ()))):
        (run / name).unlink()
    html = write_report([run]).read_text()
    Tags(html)
    assert f"Not finished: {', '.join(STAGES[done:])}." in html


def test_a_road_without_prices_shows_what_its_blocks_cost(run: Path) -> None:
    """As `run --model` leaves it."""
    priced = facts_of_run(run)
    (run / "prices.json").unlink()
    facts = facts_of_run(run)
    chosen = [(c.name, c.chosen, c.cost("latency")) for c in facts.choices]
    assert chosen == [(c.name, c.chosen, c.cost("latency")) for c in priced.choices]
    assert facts.fixed["latency"] == pytest.approx(priced.fixed["latency"])
    html = write_report([run]).read_text()
    Tags(html)
    assert "Block by block" in html and "Click a block" not in html


def test_where_a_run_began_is_said(finished_run: Path) -> None:
    facts = facts_of_run(finished_run)

    def lead(**settings: str) -> str:
        return _lead(replace(facts, settings={**facts.settings, **settings}))

    assert lead().startswith("Images of digits, from scratch, space macro. Latencies")
    assert lead(pretrained="none") == lead()
    assert "from trained weights (efficientnet_lite0). " in lead(pretrained="efficientnet_lite0")
    assert "from the model mycode:factory. " in lead(model="mycode:factory", space="model")
    records = Records(directory="a", settings={"space": "macro", "pretrained": "none"})
    assert "teach" not in facts_of(records).missing


def test_names_are_text_wherever_they_come_from(run: Path) -> None:
    confusion = json.loads((run / "confusion.json").read_text())
    confusion["classes"][0] = HOSTILE
    (run / "confusion.json").write_text(json.dumps(confusion))
    prices = json.loads((run / "prices.json").read_text())
    first = next(iter(prices["choices"].values()))
    first["candidates"][0] = HOSTILE
    (run / "prices.json").write_text(json.dumps(prices))
    html = page([replace(facts_of_run(run), name=HOSTILE)])
    tags = Tags(html).tags
    assert "onerror" not in {k for _, a in tags for k in a}
    assert [t for t, _ in tags].count("script") == 2
    assert "<img src=x" not in html


def test_several_runs_stand_side_by_side(
    finished_run: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "stages" / "export.json").unlink()
    out = run.parent / "both.html"
    assert main(["report", str(run), str(finished_run), "--out", str(out)]) == 0
    html = out.read_text()
    ids = {a.get("id") for _, a in Tags(html).tags}
    assert {"compare", "r0-result", "r1-result"} <= ids
    assert "choose the same candidate in" in html
    assert "both.html" in capsys.readouterr().out
    assert "not comparable" not in html
    confusion = json.loads((run / "confusion.json").read_text())
    (run / "confusion.json").write_text(json.dumps({**confusion, "classes": ["a"] * 10}))
    facts = facts_of_run(run)
    assert facts.architecture is not None
    other = replace(facts, architecture=replace(facts.architecture, space="mine"))
    html = page([other, facts_of_run(finished_run)])
    assert "of different classes" in html and "are of different spaces" in html
    assert "choose the same candidate in" not in html
    assert main(["report", str(run), str(run)]) == 2
    assert "given twice" in capsys.readouterr().err


def test_a_run_of_an_earlier_version_has_a_report(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["measure"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    Tags(write_report([run]).read_text())


def test_what_is_no_run_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path, words: str) -> None:
        assert main(["report", str(path)]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1

    refused(tmp_path / "nothing", "holds no run")
    refused(tmp_path, "holds no run")
    (run / "stages" / "evaluate.json").write_text('{"seconds": "long", "files": {}}')
    refused(run, "its records are damaged")
    (run / "prices.json").write_text("[]")
    refused(run, "prices.json is damaged")
    (run / "stages" / "derive.json").write_text("{")
    refused(run, "derive.json")


def test_load_drift_and_throttling_are_told_as_far_as_the_system_tells(run: Path) -> None:
    path = run / "latency_table.json"
    table = json.loads(path.read_text())
    table["environments"][0] |= {"canary_drift_pct": 7.25, "other_load_cores": 1.5}
    for name in ("clock_mhz", "throttled"):
        table["environments"][0].pop(name, None)
    path.write_text(json.dumps(table))
    html = write_report([run]).read_text()
    assert "<td>+7.2 %</td><td>1.50</td>" in html
    assert "<th>throttled</th>" not in html and "does not tell of throttling" in html
    table["environments"][0] |= {"clock_mhz": 2400, "throttled": 12}
    path.write_text(json.dumps(table))
    html = write_report([run]).read_text()
    assert "<th>clock, MHz</th><th>throttled</th>" in html
    assert "<td>2,400</td><td>12 times</td>" in html and "does not tell of throttling" not in html


def test_published_networks_are_priced_in_the_space_that_was_searched() -> None:
    names = ("proxyless_cpu", "proxyless_gpu", "proxyless_mobile")
    supernet = build_supernet("mobile", {"input_shape": [3, 32, 32], "classes": 4})
    rows = zip(supernet.names, supernet.candidates, strict=True)
    prices = {
        "costs": ["latency"],
        "fixed": {"latency": 0.5},
        # A kernel's milliseconds are its size, and nothing is free of charge but what is left out.
        "choices": {
            name: {
                "candidates": list(candidates),
                "probabilities": [1.0] * len(candidates),
                "latency": [0.0 if c == "zero" else float(c[1]) for c in candidates],
            }
            for name, candidates in rows
        },
    }
    own = zoo.load("proxyless_cpu")
    records = Records(directory="a", settings={"space": "mobile"}, prices=prices, architecture=own)
    peers = {peer.name: peer.predicted_ms for peer in facts_of(records).peers}
    kernels = {
        name: 0.5 + sum(int(c[1]) for c in zoo.load(name).choices.values() if c != "zero")
        for name in names
    }
    assert {name: peers[name] for name in names} == kernels
    other = replace(records, prices={**prices, "choices": {"a": prices["choices"]["blocks.1"]}})
    assert facts_of(other).peers == ()


# --- sentences ---


def test_the_papers_insights_are_read_off_the_papers_networks() -> None:
    """GPU: shallow, kernels large late. CPU: deep. Down-sampling blocks are larger."""
    words = {
        name: " ".join(_shape(layers(zoo.load(f"proxyless_{name}")))) for name in ("gpu", "cpu")
    }
    assert "13 of 21 searched blocks stay" in words["gpu"]
    assert "larger late (mean 5.3 in the first half, 5.9 after)" in words["gpu"]
    deep = {name: int(text.split()[0]) for name, text in words.items()}
    assert deep["cpu"] > deep["gpu"]
    assert "Blocks that halve the resolution are wider than the others" in words["cpu"]


def test_shapes_of_few_or_equal_blocks() -> None:
    block = Layer(choice="a", kernel=3, expansion=3, halves=False, channels=8)
    gone = replace(block, kernel=0)
    assert list(_shape([block])) == []
    assert list(_shape([block, gone, gone, block])) == [
        "2 of 4 searched blocks stay; 2 are left out, 1 of them in the first half.",
        "All kernels are 3 × 3.",
    ]


def test_macs_mislead_where_they_do() -> None:
    def choice(ms: tuple[float, ...], macs: tuple[float, ...]) -> Choice:
        names = ("a", "b", "c")
        costs = {"latency": ms, "macs": macs}
        return Choice(name="x", chosen="a", candidates=names, probabilities=(), costs=costs)

    assert _dear_but_few_macs([choice((1, 2, 3), (10, 20, 30))]) == ""
    words = _dear_but_few_macs([choice((1, 3, 2), (10, 20, 40))])
    assert words.endswith("in x, b has 50 % fewer MACs than c and takes 50 % longer.")


# --- charts ---


def test_the_front_is_what_nothing_beats() -> None:
    rng = random.Random(0)
    for _ in range(100):
        marks = [Mark(x=rng.randrange(9), y=rng.randrange(9)) for _ in range(rng.randrange(1, 12))]
        points = {(m.x, m.y) for m in marks}
        unbeaten = {
            (x, y) for x, y in points if not any(a <= x and b >= y for a, b in points - {(x, y)})
        }
        assert pareto(marks) == sorted(unbeaten)


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 7e4, 1e12])
def test_any_range_has_ticks_within_it(scale: float) -> None:
    for low, high in ((0.0, 1.0), (0.93, 0.931), (-3.0, 8.0)):
        values = ticks(low * scale, high * scale)
        assert 2 <= len(values) <= 11
        assert all(low * scale - 1e-9 * scale <= v <= high * scale * (1 + 1e-9) for v in values)


def test_charts_of_nothing_and_of_one() -> None:
    assert lines({}, "x", "y") == "" and scatter({"a": []}, "x", "y") == ""
    for value in (0.0, -1.0, 1e-12, 5e9):
        Tags(lines({HOSTILE: [(0, value)]}, HOSTILE, "y", level=value))
        Tags(scatter({HOSTILE: [Mark(x=value, y=value, words=HOSTILE, label=HOSTILE)]}, "x", "y"))


def test_labels_of_neighbours_do_not_overlap() -> None:
    marks = [Mark(x=x, y=50.0, label=f"network {x}") for x in (1.0, 1.02, 1.05, 3.0)]
    words = re.findall(r"class='label' x='([\d.]+)' y='([\d.]+)'", scatter({"a": marks}, "x", "y"))
    lines_of = [float(y) for _, y in words]
    assert len(words) == 4 and min(abs(a - b) for a, b in combinations(lines_of[:3], 2)) >= 12


def test_a_training_that_was_begun_anew_is_one_curve(run: Path) -> None:
    lines_of = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines_of if line["stage"] == "train"]
    again = [{**line, "loss": line["loss"] + 1} for line in training[:2]]
    text = "".join(json.dumps(line) + "\n" for line in [*lines_of, *again])
    (run / "metrics.jsonl").write_text(text)
    expected = [(line["step"], line["loss"]) for line in again]
    assert facts_of_run(run).curves["train"]["loss"] == expected


def test_a_network_that_is_no_better_than_chance_is_not_said_to_lack_data(
    finished_run: Path,
) -> None:
    facts = facts_of_run(finished_run)
    assert facts.verdict is not None and facts.verdict["problems"]
    assert not any("Data limit it" in line for line in limited_by(facts))
    assert facts.outcome is not None and facts.outcome.accuracy is not None
    learned = replace(facts.outcome, training_accuracy=facts.outcome.accuracy + 0.3)
    better = replace(facts, outcome=learned, verdict={**facts.verdict, "problems": ()})
    assert any("Data limit it" in line for line in limited_by(better))
