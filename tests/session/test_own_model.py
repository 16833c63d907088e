"""A search of a model of one's own: run directory, `load`, `save`, callbacks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import After, make_search, seeded

import proxylessnas
from proxylessnas import Callback, EarlyStopping, MixedOp, SearchSettings
from proxylessnas.api import Result
from proxylessnas.config import MeasureSettings
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import ConfigError, DataError, RunError
from proxylessnas.hardware.measure import measure_table
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.training.callbacks import (
    ArchitectureMetrics,
    EndMetrics,
    RunMetrics,
    StageMetrics,
    StepMetrics,
    StopStage,
)
from proxylessnas.training.loop import run_loop

QUICK = SearchSettings(warmup_epochs=1, epochs=3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        wide = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.first = MixedOp({"plain": nn.Linear(4, 4), "wide": wide})
        self.norm = nn.BatchNorm1d(4)
        self.second = MixedOp([nn.Linear(4, 4), nn.Identity()])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.norm(self.first(x)))
        return out


def batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = seeded(seed)
    inputs = [torch.randn(8, 4, generator=generator) for _ in range(6)]
    return [(x, x.flip(1)) for x in inputs]


def searched(out: Path | None = None, *, model: nn.Module | None = None, **options: Any) -> Result:
    return proxylessnas.search(
        model or Net(),
        train=batches(1),
        valid=batches(2),
        loss=nn.functional.mse_loss,
        example_inputs=(torch.randn(2, 4, generator=seeded()),),
        **{"settings": QUICK, "limits": {"parameters": "0.9x"}, "quiet": True, "out": out}
        | options,
    )


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    """From memory to a directory and back, with the search's α and other limits."""
    result = searched()
    result.save(tmp_path / "saved")
    loaded = proxylessnas.load(
        tmp_path / "saved",
        model=Net(),
        train=batches(1),
        valid=batches(2),
        loss=nn.functional.mse_loss,
        quiet=True,
    )
    assert loaded.architecture == result.architecture and loaded.predicted == result.predicted
    assert same_weights(loaded.derive(), result.derive())
    assert torch.equal(loaded.probabilities, result.probabilities)
    others = {"parameters": "0.8x"}
    assert same_weights(loaded.derive(limits=others), result.derive(limits=others))
    with pytest.raises(RunError, match="is not empty; choose a new directory"):
        result.save(tmp_path / "saved")


def test_a_search_with_a_directory_is_the_one_without(tmp_path: Path) -> None:
    kept, result = searched(tmp_path / "run"), searched()
    assert same_weights(kept.derive(), result.derive())
    again = searched(tmp_path / "run")  # the same call: everything is done
    assert same_weights(again.derive(), result.derive())
    with pytest.raises(RunError, match=r"holds another run: its seed is 0, not 1"):
        searched(tmp_path / "run", seed=1)


def test_load_says_what_it_needs(tmp_path: Path) -> None:
    searched(tmp_path / "run")
    with pytest.raises(RunError, match=r"a model of your own: load\(path, model=Net\(\)\)"):
        proxylessnas.load(tmp_path / "run")
    with pytest.raises(RunError, match="holds no run"):
        proxylessnas.load(tmp_path / "nothing")
    loaded = proxylessnas.load(tmp_path / "run", model=Net(), quiet=True)
    assert loaded.derive()(torch.randn(3, 4)).shape == (3, 4)
    with pytest.raises(DataError, match="no batches of `train`: give them to the call"):
        loaded.derive(limits={"parameters": "0.8x"})


def test_an_unfinished_search_does_not_load(tmp_path: Path) -> None:
    class Broken(Callback):
        def on_step(self, metrics: StepMetrics) -> None:
            if metrics.step == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "run", callbacks=[Broken()])
    with pytest.raises(RunError, match=r"the stage derive .* is not finished"):
        proxylessnas.load(tmp_path / "run", model=Net())
    assert same_weights(searched(tmp_path / "run").derive(), searched().derive())


# --- wrong input: our error, and nothing changed ---


@pytest.mark.parametrize("out", ["file", "file/below", "a\0b", "a" * 300])
def test_a_directory_that_cannot_be(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="cannot use"):
        searched(Path(out))
    with pytest.raises(RunError, match="cannot use"):
        searched().save(out)
    with pytest.raises(RunError, match="holds no run"):
        proxylessnas.load(out)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_result_is_saved_to_a_new_directory_alone(tmp_path: Path) -> None:
    result = searched()
    (tmp_path / "metrics.jsonl").write_text("mine")
    with pytest.raises(RunError, match="is not empty; choose a new directory"):
        result.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_text() == "mine"


def test_what_is_gone_is_not_saved(tmp_path: Path) -> None:
    result = searched(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunError, match=r"the stage search of .* is not finished"):
        result.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    searched(tmp_path / "run")
    with pytest.raises(ConfigError, match="model is the class Net itself"):
        proxylessnas.load(tmp_path / "run", model=Net)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="path is int, not a path"):
        proxylessnas.load(5)  # type: ignore[arg-type]


class Reordered(Net):
    """The same choices and weights; the candidates of one choice in another order."""

    def __init__(self) -> None:
        super().__init__()
        candidates = dict(reversed(list(self.first.candidates.items())))
        self.first = MixedOp(candidates)


class Wider(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 7)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Reordered(), r"choice 'first' is now \(wide, plain\), and was \(plain, wide\)"),
        (Wider(), r"parameter 'head.weight' is now \(7, 4\), and was missing"),
    ],
)
def test_another_model_than_the_one_that_was_searched(
    tmp_path: Path, model: nn.Module, said: str
) -> None:
    searched(tmp_path / "run")
    with pytest.raises(RunError, match=said):
        proxylessnas.load(tmp_path / "run", model=model)
    with pytest.raises(RunError, match=said):
        searched(tmp_path / "run", model=model)


def test_other_limits_of_the_wrong_form() -> None:
    result = searched()
    with pytest.raises(ConfigError, match="limits is a list of str, not limits by the cost's name"):
        result.derive(limits=["macs"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="peak_memory decides which candidates are searched"):
        result.derive(limits={"peak_memory": 1e-4})
    with pytest.raises(ConfigError, match=r"no cost 'nonsense' to limit.*its function \(costs\)"):
        result.derive(limits={"nonsense": 1})


def test_a_record_that_was_edited(tmp_path: Path) -> None:
    searched(tmp_path / "run")
    (tmp_path / "run" / "stages" / "derive.json").write_text('{"files": {}, "seconds": 1}')
    with pytest.raises(RunError, match=r"derive\.json is damaged: predicted is null"):
        proxylessnas.load(tmp_path / "run", model=Net())


def test_a_table_that_was_given_stays_with_the_run(tmp_path: Path) -> None:
    """`load` needs no table, and the same call with another one is another search."""
    measure = MeasureSettings(rounds=1, network_rounds=1, networks=3)
    inputs = (torch.randn(2, 4, generator=seeded()),)
    first, other = (
        measure_table(Supernet(Net()), FakeRuntime(device=name), inputs, measure, seed=0)
        for name in ("a phone", "another phone")
    )
    call = {"target_latency": "0.9x", "limits": None, "runtime": FakeRuntime()}
    result = searched(tmp_path / "run", table=first, **call)
    assert searched(tmp_path / "run", table=first, **call).predicted == result.predicted
    loaded = proxylessnas.load(
        tmp_path / "run",
        model=Net(),
        train=batches(1),
        valid=batches(2),
        loss=nn.functional.mse_loss,
        runtime=FakeRuntime(),
        quiet=True,
    )
    assert loaded.costs.of((0, 0)) == result.costs.of((0, 0))
    assert same_weights(loaded.derive("0.95x"), result.derive("0.95x"))
    with pytest.raises(RunError, match="it began with another latency table"):
        searched(tmp_path / "run", table=other, **call)
    with pytest.raises(RunError, match=r"its table is brought_table\.json, not None"):
        searched(tmp_path / "run", **call)


# --- callbacks ---


class Listening(Callback):
    """Every event as a line."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_start(self, metrics: RunMetrics) -> None:
        assert metrics.settings["space"] == "custom"
        self.events.append(f"start {metrics.directory}")

    def on_step(self, metrics: StepMetrics) -> None:
        assert metrics.loss is not None and metrics.total == 24
        self.events.append(f"{metrics.stage} {metrics.step} {metrics.phase}")

    def on_architecture_step(self, metrics: ArchitectureMetrics) -> None:
        assert metrics.expected.keys() == {"macs", "parameters"}
        assert 0 <= metrics.entropy <= 1 and metrics.probabilities.sum() == pytest.approx(2)
        self.events.append(f"architecture {metrics.step}")

    def on_stage_end(self, metrics: StageMetrics) -> None:
        assert metrics.seconds >= 0 and "files" not in metrics.facts
        self.events.append(f"end of {metrics.stage}")

    def on_end(self, metrics: EndMetrics) -> None:
        self.events.append(metrics.status)


def test_callbacks_hear_of_everything_in_order() -> None:
    listening = Listening()
    searched(callbacks=[listening])
    steps = [f"search {i} warm-up" for i in range(1, 7)]
    for i in range(7, 25):
        steps += [f"architecture {i}", f"search {i} search"]
    expected = ["start ", *steps, "end of search", "end of derive", "finished"]
    assert listening.events == expected


def test_callbacks_hear_of_a_failure() -> None:
    listening = Listening()

    def broken(output: Tensor, target: Tensor) -> Tensor:
        if listening.events:  # not yet where it is tried early
            raise ValueError("mine")
        return nn.functional.mse_loss(output, target)

    with pytest.raises(ValueError, match="mine"):
        proxylessnas.search(
            Net(),
            train=batches(1),
            valid=batches(2),
            loss=broken,
            example_inputs=(torch.randn(2, 4),),
            settings=QUICK,
            callbacks=[listening],
            quiet=True,
        )
    assert listening.events == ["start ", "failed"]


def test_callbacks_change_nothing() -> None:
    assert same_weights(searched(callbacks=[Listening()]).derive(), searched().derive())


def _stop_at(step: int) -> Callback:
    class Stop(Callback):
        def on_step(self, metrics: StepMetrics) -> None:
            if metrics.step == step:
                raise StopStage

    return Stop()


def test_a_stage_that_a_callback_ends_stays_ended(tmp_path: Path) -> None:
    """The search derives from where it was; going on does not take the other steps."""
    result = searched(tmp_path / "run", callbacks=[_stop_at(9)])
    assert result.search.step == 9
    loaded = proxylessnas.load(tmp_path / "run", model=Net(), train=batches(1), valid=batches(2))
    assert (loaded.search.step, loaded.search.total) == (9, 9)


@pytest.mark.parametrize(
    ("stopping", "step"),
    [
        (EarlyStopping("valid_loss", patience=1, every=2, min_delta=1e9), 10),
        (EarlyStopping("loss", patience=2, every=3, min_delta=1e9), 9),
        (EarlyStopping("entropy", every=1, below=1.1), 7),
        (EarlyStopping("valid_loss", patience=100), 24),
    ],
)
def test_early_stopping_ends_the_search(stopping: EarlyStopping, step: int) -> None:
    assert searched(callbacks=[stopping]).search.step == step


def test_early_stopping_forgets_what_another_stage_was() -> None:
    stopping = EarlyStopping("loss", patience=1, every=2, min_delta=1e9)
    for _ in range(2):
        job = make_search(Net(), warmup_epochs=1, epochs=1)
        stopping.on_step(StepMetrics(stage="other", step=1, total=1, phase="", loss=None))
        run_loop(job, callbacks=[stopping])
        assert job.step == 4 and job.stopped


def test_weights_alone_and_alpha_alone_are_ways_to_run_the_loop() -> None:
    from dataclasses import replace

    job = make_search(Net())
    job.schedule = job.schedule.weights_alone()
    before = job.supernet.alpha.detach().clone()
    looked: list[int] = []
    run_loop(job, callbacks=[After(job, lambda j: looked.append(j.step))])
    assert looked == list(range(1, job.total + 1)) and torch.equal(job.supernet.alpha, before)
    weights = {k: v.clone() for k, v in job.model.state_dict().items()}
    from proxylessnas.core.schedule import Schedule

    alone = replace(job, schedule=Schedule.architecture_alone(5))
    run_loop(alone)
    assert alone.step == 5 and not torch.equal(alone.supernet.alpha, before)
    assert all(torch.equal(v, job.model.state_dict()[k]) for k, v in weights.items())


@pytest.mark.parametrize(
    ("inputs", "restored"),
    [
        (lambda: (torch.ones(2, 4),), True),
        (lambda: (torch.ones(2, 4), {"mask": [torch.zeros(1), None, 3, "x"]}, (True, 1.5)), True),
        (lambda: (object(),), False),
    ],
)
def test_example_inputs_of_plain_kinds_are_kept(
    inputs: Callable[[], Any], restored: bool, tmp_path: Path
) -> None:
    from proxylessnas.session.inputs import load_inputs, save_inputs
    from proxylessnas.session.store import MemoryStore

    store = MemoryStore()
    save_inputs(store, inputs())
    if not restored:
        with pytest.raises(RunError, match="has no example inputs"):
            load_inputs(store)
        return
    assert str(load_inputs(store)) == str(inputs())


def test_other_limits_need_the_loss(tmp_path: Path) -> None:
    searched(tmp_path / "run")
    loaded = proxylessnas.load(
        tmp_path / "run", model=Net(), train=batches(1), valid=batches(2), quiet=True
    )
    with pytest.raises(ConfigError, match="this needs the loss of the search"):
        loaded.derive(limits={"parameters": "0.8x"})
