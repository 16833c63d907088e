"""Several processes are one run: two ranks on gloo. Those that die are torchrun's to restart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks_worker as worker
import torch
from forked_runs import ForkServer
from tiny_run import TINY_RUN, assert_same_run

from proxylessnas.cli.main import main
from proxylessnas.config import DataSettings, RunConfig, TrainSettings
from proxylessnas.data import load_data
from proxylessnas.data.batches import LoaderBatches, portion
from proxylessnas.errors import ConfigError
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.training.ranks import ALONE, Ranks, open_ranks
from proxylessnas.training.train import Training

# --- the parts, in one process ---


@pytest.mark.parametrize("size", range(1, 20))
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_slices_of_a_batch_are_apart_and_of_one_size(size: int, ranks: int) -> None:
    slices = [range(size)[portion(size, (r, ranks))] for r in range(ranks)]
    assert len({len(s) for s in slices}) == 1
    if size < 2 * ranks:
        assert all(len(s) == size for s in slices)  # not cut
    else:
        assert len({i for s in slices for i in s}) == ranks * (size // ranks)


def test_ranks_see_together_what_one_sees() -> None:
    data = load_data("digits", DataSettings(limit=100, augment="shift"), seed=1)
    batches = data.batches("search", 16, augment=True, shuffle=True, seed=1)
    whole = list(batches.epoch(2, 1))
    shares = [list(batches.epoch(2, 1, share=(r, 2))) for r in range(2)]
    for n, (images, labels) in enumerate(whole):
        end = 2 * (len(labels) // 2)
        for i, full in enumerate((images, labels)):
            assert torch.equal(torch.cat([shares[r][n][i] for r in range(2)]), full[:end])
    every = [list(batches.epoch(2, r, step=3)) for r in range(3)]
    assert sum(map(len, every)) == len(batches)
    assert torch.equal(every[1][0][0], whole[0][0])
    assert not list(batches.epoch(0, len(batches) + 1, step=50))


def test_a_loader_is_shared_as_our_own_batches_are() -> None:
    made = [({"x": torch.arange(6.0), "scale": torch.tensor(2.0)}, torch.arange(6))] * 4
    batches = LoaderBatches(made, name="train")
    inputs, target = next(batches.epoch(0, share=(1, 2)))
    assert inputs["x"].tolist() == target.tolist() == [3, 4, 5] and float(inputs["scale"]) == 2
    assert len(list(batches.epoch(0, 1, step=2))) == 2


@pytest.mark.parametrize(("batch", "ranks", "fits"), [(64, 2, True), (64, 3, False), (2, 2, False)])
def test_a_batch_that_ranks_cannot_share_is_refused(batch: int, ranks: int, fits: bool) -> None:
    if fits:
        Ranks(0, ranks).check_divides("train.batch_size", batch)
        return
    with pytest.raises(ConfigError, match=r"train.batch_size is \d+, .* a multiple of") as caught:
        Ranks(0, ranks).check_divides("train.batch_size", batch)
    Ranks(0, ranks).check_divides("train.batch_size", int(str(caught.value).split()[-1]))


def test_one_process_is_alone() -> None:
    with open_ranks() as ranks:
        assert ranks is ALONE and ranks.is_main and ranks.share == (0, 1)
    tensor = torch.tensor([1.0])
    ranks.average([tensor]), ranks.sum([tensor]), ranks.copy_main([tensor])
    ranks.check_equal("alpha", tensor), ranks.check_agreed("the step", 1), ranks.wait()
    assert tensor.tolist() == [1.0] and ranks.of_main(lambda: (1, 2)) == [1, 2]
    module = torch.nn.Linear(1, 1)
    assert ranks.replicate(module, may_skip=False) is module


def test_only_the_main_rank_writes(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run", writes=False)
    directory.lock()
    directory.log(stage="search")
    directory.write_json("a.json", 1)
    directory.write_config(RunConfig())
    directory.save_checkpoint("search", 1, ({"a": torch.ones(1)}, {}))
    directory.cut_metrics_of("search")
    directory.unlock()
    directory.remove_if_unused()
    assert not (tmp_path / "run").exists()


def test_synchronised_batch_norm_is_refused_on_a_cpu() -> None:
    data = LoaderBatches(worker.doubles(8), name="train")
    with pytest.raises(ConfigError, match="sync_batch_norm needs a GPU"):
        Training(worker.normed(), worker.MSE, data, TrainSettings(sync_batch_norm=True))


# --- two ranks ---


@pytest.fixture(scope="module")
def two(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks answered."""
    out = tmp_path_factory.mktemp("answers")
    ended = server.run_ranks("answers", str(out))
    assert [code for code, _ in ended] == [0, 0], ended
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def close(a: list[float], b: list[float], tolerance: float = 1e-10) -> bool:
    return torch.allclose(
        torch.tensor(a).double(), torch.tensor(b).double(), rtol=0, atol=tolerance
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", ["two_path", "shared choices", "full_path", "reinforce", "reward"]
)
def test_two_ranks_with_half_the_batch_are_one_with_the_whole(
    two: list[dict[str, Any]], estimator: str
) -> None:
    one = worker.searched(estimator, ALONE)
    main, other = (answers["searched"][estimator] for answers in two)
    assert main == other  # to the bit: weights, α, the losses, the architecture
    assert close(main["weights"], one["weights"])
    assert close(main["alpha"], one["alpha"], 1e-7)  # Adam divides by a root
    assert main["most_probable"] == one["most_probable"]
    assert main["loss"] == pytest.approx(one["loss"], abs=1e-10)
    assert main["valid_loss"] == pytest.approx(one["valid_loss"], abs=1e-10)


@pytest.mark.slow
def test_bn_statistics_are_averages_over_the_ranks(two: list[dict[str, Any]]) -> None:
    assert two[0]["statistics"] == two[1]["statistics"]
    one = worker.statistics(ALONE)
    assert close(two[0]["statistics"]["mean"], one["mean"])
    # A variance over the whole batch holds the variance between the halves' means too.
    assert not close(two[0]["statistics"]["var"], one["var"])
    torch.manual_seed(0)
    model = worker.Normed()
    job = worker.make_search(model, data=worker.doubles(8, 8))
    layer = model.op.candidates[str(job.weight_gates()[0])][0]
    x = worker.doubles(8)[0][0]
    variances = torch.stack([layer(x[:4]).var(0), layer(x[4:]).var(0)]).mean(0)
    assert close(two[0]["statistics"]["var"], worker.numbers([0.9 + 0.1 * variances]))


@pytest.mark.slow
def test_training_on_two_ranks_is_training_on_one(two: list[dict[str, Any]]) -> None:
    assert two[0]["plain"] == two[1]["plain"]
    assert close(two[0]["plain"], worker.trained(ALONE, worker.plain()))
    assert two[0]["normed"] == two[1]["normed"]
    assert two[0]["skipping"] == two[1]["skipping"]  # layers that a rank's batch left out


@pytest.mark.slow
def test_scores_on_two_ranks_are_scores_on_one(two: list[dict[str, Any]]) -> None:
    one = worker.scored(ALONE)
    assert two[0]["scored"] == two[1]["scored"]
    assert two[0]["scored"]["examples"] == {"None": 36, "17": 24} == one["examples"]
    assert close(two[0]["scored"]["statistics"], one["statistics"])
    for n, loss in one["loss"].items():
        assert two[0]["scored"]["loss"][n] == pytest.approx(loss, abs=1e-12)


@pytest.mark.slow
def test_the_python_call_takes_ranks(two: list[dict[str, Any]]) -> None:
    one = worker.called(ALONE)
    main = two[0]["called"]
    assert main == two[1]["called"]
    assert main["choices"] == one["choices"] and main["measured_ms"] == one["measured_ms"]
    assert close(main["weights"], one["weights"])


@pytest.mark.slow
def test_what_they_tell_each_other(two: list[dict[str, Any]]) -> None:
    main, other = (answers["talk"] for answers in two)
    assert main["mean"] == [1.5, 1.5] and main["sum"] == [3]
    assert main["of_main"] == {"made by": 0, "ms": [0.1, None]} and main["any"] == [False, True]
    for key in ("mean", "sum", "of_main", "any"):
        assert main[key] == other[key]
    assert "alpha is not the same on all ranks" in main["said"][0] == other["said"][0]
    assert "do not agree on the step (rank 1: 8)" in other["said"][1]


@pytest.mark.slow
def test_a_rank_whose_alpha_drifts_ends_the_search(two: list[dict[str, Any]]) -> None:
    for answers in two:
        assert answers["drifting"].startswith("step 1: alpha is not the same on all ranks")


@pytest.mark.slow
def test_a_weight_step_sends_the_active_path_in_one_call(two: list[dict[str, Any]]) -> None:
    calls = two[0]["calls"]
    assert calls["weight"] == 1 and calls["both"] == 2
    # 3 x (linear 12, BN 6 and its statistics 6, 4 flags of parameters), and the loss.
    assert calls["numbers"] == 3 * (12 + 6 + 6 + 4) + 1


# --- a whole run on two ranks ---


@pytest.fixture(scope="module")
def undisturbed(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    ended = server.run_ranks("{}", "run", *TINY_RUN, f"--out={out}")
    assert [code for code, _ in ended] == [0, 0], ended
    return out


@pytest.mark.slow
def test_killed_ranks_are_restarted_and_end_the_same(
    server: ForkServer, undisturbed: Path, tmp_path: Path
) -> None:
    """kill -9 to a rank in the search, then to the main one in training: torchrun resumes."""
    out = tmp_path / "run"
    kills = {
        0: {"rank": 1, "job": "Search", "step": 9, "signal": "SIGKILL"},
        1: {"rank": 0, "job": "Training", "step": 5, "signal": "SIGKILL"},
    }
    words = [json.dumps(kills), "run", *TINY_RUN, f"--out={out}"]
    code, text = server.run_elastic(*words, restarts=len(kills))
    assert code == 0 and text.count("terminated with signal SIGKILL") == 2, text
    assert_same_run(out, undisturbed)


@pytest.mark.slow
def test_all_stop_at_one_step_and_another_number_goes_on(
    server: ForkServer, undisturbed: Path, tmp_path: Path
) -> None:
    """A stop that one rank is asked for; then one process goes on where two were."""
    out = tmp_path / "run"
    asked = {"rank": 1, "job": "Search", "step": 5, "signal": "SIGTERM"}
    ended = server.run_ranks(json.dumps({0: asked}), "run", *TINY_RUN, f"--out={out}")
    (main_code, main_text), (other_code, other_text) = ended
    assert (main_code, other_code) == (130, 130)
    assert main_text.count("stopped; what is done is saved") == 1 and not other_text.strip()
    assert (out / "checkpoints" / "search-00000006.safetensors").exists()
    assert not (out / "checkpoints" / "search-00000007.safetensors").exists()
    assert main(["run", "--resume", f"--out={out}", "--quiet"]) == 0
    # Batch normalisation sees whole batches now, so it need not be the same network.
    here, there = (json.loads((d / "summary.json").read_text()) for d in (out, undisturbed))
    assert [b["name"] for b in here["blocks"]] == [b["name"] for b in there["blocks"]]
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    logged = [line["step"] for line in steps if line["stage"] == "search"]
    assert logged == sorted(set(logged))  # no step twice, none forgotten


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_refused_before_anything_is_measured(
    server: ForkServer, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    ended = server.run_ranks("{}", "run", *TINY_RUN, "--search.batch-size=63", f"--out={out}")
    assert [code for code, _ in ended] == [2, 2]
    assert "search.batch_size is 63, the size over all ranks" in ended[0][1]
    assert not (out / "config.yaml").exists()


@pytest.mark.slow
def test_what_the_main_rank_refuses_ends_all(undisturbed: Path) -> None:
    """The real command, by torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = ["-m", "proxylessnas", "run", *TINY_RUN, f"--out={undisturbed}"]
    result = subprocess.run([*torchrun, *words], capture_output=True, text=True)
    assert result.returncode != 0
    assert "holds a run already: go on with --resume" in result.stderr
    assert "proxylessnas/cli/" not in result.stderr  # the only traceback is torchrun's
