"""A small trained network made narrower within a limit, on the fake runtime."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import Block
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from trained_model import batches, latency, specialised, trained

import proxylessnas
from proxylessnas.errors import (
    ConfigError,
    DataError,
    LimitError,
    RunError,
    SupernetError,
    UserError,
)
from proxylessnas.surgery.finding import find_pairs
from proxylessnas.surgery.fits import narrow_fits
from proxylessnas.surgery.graph import Graph
from proxylessnas.surgery.moments import moments_of_readers, read_rows
from proxylessnas.surgery.narrow import Narrowed, narrowed
from proxylessnas.surgery.proof import outputs
from proxylessnas.surgery.saved import restored
from proxylessnas.surgery.specialise import FINETUNE

NAN = float("nan")


@pytest.fixture(scope="module")
def result() -> proxylessnas.Specialised:
    return specialised()


# --- a limit that is kept ---


def test_the_limit_is_kept_by_what_is_returned(result: proxylessnas.Specialised) -> None:
    assert latency(trained()) == pytest.approx(result.summary["model_latency_ms"], rel=1e-5)
    assert result.limit_ms == pytest.approx(0.6 * latency(trained()), rel=1e-5)
    network = result.derive()
    assert latency(network) == pytest.approx(result.measured_ms, rel=1e-4)
    assert latency(network) <= 1.02 * result.limit_ms
    assert {type(m).__module__.partition(".")[0] for m in network.modules()} <= {
        "torch",
        Block.__module__,
    }


def test_the_model_stays_as_it_was(result: proxylessnas.Specialised) -> None:
    model = copy.deepcopy(trained())
    before = copy.deepcopy(model.state_dict())
    model.train()
    specialised(model, target_latency="0.8x")
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_another_limit_and_the_same_call_again(result: proxylessnas.Specialised) -> None:
    wider = result.within("0.85x")
    assert result.measured_ms < wider.measured_ms <= 1.02 * wider.limit_ms
    assert -wider.chosen.score < -result.chosen.score  # nearer to the model
    again = specialised()
    assert again.architecture == result.architecture
    state = again.derive().state_dict()
    assert all(torch.equal(v, state[k]) for k, v in result.derive().state_dict().items())


def test_the_whole_limit_is_the_model_itself() -> None:
    whole = specialised(target_latency="1.0x")
    assert set(whole.architecture.values()) == {"own"}
    (images, _), *_ = batches(2)
    assert torch.equal(whole.derive()(images), trained()(images))


def test_finetuning_ends_no_worse_and_is_what_derive_returns() -> None:
    found = specialised()
    before = found.derive()
    score = found.finetune(epochs=2)
    assert score.accuracy is not None
    assert score.accuracy >= found.summary["score_before_finetuning"]
    after = found.derive()
    assert latency(after) == latency(before)
    assert found.summary["score"] == score.accuracy


def test_files_bring_the_network_back(tmp_path: Path) -> None:
    found = specialised(target_latency="0.45x", out=tmp_path / "run")
    assert "zero" in found.architecture.values()  # a block is left out
    network = restored(trained(), tmp_path / "run")
    (images, _), *_ = batches(2)
    assert torch.equal(network(images), found.derive()(images))
    assert "stays: its channels are an output" in (tmp_path / "run" / "layers.txt").read_text()
    with pytest.raises(RunError, match="another call: its target_latency differs"):
        specialised(out=tmp_path / "run")
    with pytest.raises(RunError, match="not an empty directory"):
        found.save(tmp_path / "run")
    with pytest.raises(RunError, match="not empty and holds no run"):
        specialised(out=tmp_path)
    with pytest.raises(RunError, match="of another model"):
        restored(nn.Linear(2, 2), tmp_path / "run")


# --- other models ---


class Two(nn.Module):
    """Two inputs, and a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 64), nn.Linear(6, 64)
        self.read, self.size = nn.Linear(64, 3), nn.Linear(64, 1)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        hidden = self.left(a).relu() * self.right(b).sigmoid()
        return {"vector": self.read(hidden), "size": self.size(hidden)}


def test_several_inputs_a_dict_of_outputs_and_a_loss_of_ones_own() -> None:
    torch.manual_seed(1)
    model = Two()
    data = [((torch.randn(8, 6), torch.randn(8, 6)), torch.randn(8, 3)) for _ in range(3)]
    found = specialised(
        torch.nn.DataParallel(model),
        train=data,
        valid=data,
        loss=lambda output, target: mse_loss(output["vector"], target),
        correct=None,
        example_inputs=data[0][0],
        target_latency="0.995x",
    )
    network = found.derive()
    assert network.left.out_features == network.right.out_features < 64
    assert network.read.in_features == network.size.in_features == network.left.out_features
    found.finetune(epochs=1)
    assert found.derive()(*data[0][0])["size"].shape == (8, 1)


def test_blocks_say_which_layers() -> None:
    found = specialised(blocks=[Block], target_latency="0.9x")
    assert set(found.architecture) == {"5", "6"}
    assert found.table.count("left out") == 2
    assert found.table.count("stays: its channels go with those of 3, which `blocks` leaves") == 2
    found = specialised(blocks=["0", nn.Conv2d], target_latency="0.9x")
    assert set(found.architecture) == {
        "0",
        "3",
        "5.first",
        "6.first",
    }  # layers alone, not their blocks


def test_candidates_say_of_which_kinds() -> None:
    """The same networks are scored alike, whether the others are never made or not offered."""
    alone = specialised(candidates="narrower", target_latency="0.9x")
    space = alone.around.space
    assert {c.kind for choice in space.choices for c in choice.candidates} == {"own", "narrower"}
    assert "left out" not in alone.table and "rank" not in alone.table
    whole = specialised(target_latency="0.9x")
    kinds = {c.kind for choice in whole.around.space.choices for c in choice.candidates}
    assert kinds == {"own", "narrower", "low_rank", "zero"}
    within = whole.within("0.9x", candidates=["narrower"])
    assert within.around.space.mask.sum() == space.mask.sum()
    assert within.measured_ms <= 1.001 * within.limit_ms
    assert all(c == "own" or c.startswith("w") for c in within.architecture.values())
    zero = specialised(candidates=("zero",), target_latency="0.9x")
    assert set(zero.architecture) == {"5", "6"}
    assert "24 channels; 5 left out" in zero.table
    assert "stays: 'narrower' is not among candidates=" in zero.table


# --- closed form ---


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 5, 3, padding=1, stride=2),
        nn.Conv2d(8, 5, 3, dilation=2, padding="same", padding_mode="circular", bias=False),
        nn.Conv1d(8, 5, 3),
    ],
)
def test_rows_are_what_a_convolution_multiplies(layer: Any) -> None:
    x = torch.randn(2, 8, *[9] * (layer.weight.dim() - 2))
    rows = read_rows(layer, x, 10_000, torch.Generator())
    expected = layer(x).movedim(1, -1).flatten(0, -2)
    actual = rows @ layer.weight.flatten(1).T + (0 if layer.bias is None else layer.bias)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_refits_are_least_squares_by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a convolution's kernel over the channels that remain, with a bias."""
    monkeypatch.setattr("proxylessnas.surgery.fits.RIDGE", 1e-9)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Tanh(), nn.Conv2d(16, 4, 3, bias=False)).eval()
    images = torch.randn(4, 3, 20, 20)
    pairs, _ = find_pairs(model, Graph(model, (images,)))
    (pair,) = pairs
    kept = narrow_fits(model, {pair: [8]}, [images])[pair][8]
    with torch.no_grad():
        hidden, target = model[:2](images)[:, kept.channels], model(images)
        rows = read_rows(nn.Conv2d(8, 1, 3), hidden, 10_000, torch.Generator()).double().numpy()
        y = target.movedim(1, -1).flatten(0, -2).double().numpy()
        design = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
        expected = design @ np.linalg.lstsq(design, y, rcond=None)[0]
        actual = narrowed(model, [(pair, kept)])(images).movedim(1, -1).flatten(0, -2)
    np.testing.assert_allclose(actual.numpy(), expected, atol=2e-4)


def test_redundant_channels_cost_nothing() -> None:
    """Half of the channels are sums of others: the narrow network computes the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = [torch.randn(512, 12) for _ in range(4)]
    pairs, _ = find_pairs(model, Graph(model, (x[0],)))
    kept = narrow_fits(model, {pairs[0]: [16]}, x)[pairs[0]][16]
    small = narrowed(model, [(pairs[0], kept)])
    (actual,), (expected,) = outputs(small, (x[0],)), outputs(model, (x[0],))
    assert (actual - expected).std() < 0.05 * expected.std()
    (cut,) = pairs[0].consumers
    moments = moments_of_readers(model, [cut], x)[cut]
    assert moments.gram.shape == (32, 32)


# --- what cannot be done ---


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"target_latency": "0.01x"}, LimitError, r"keeps 0.00.* ms: the reachable range is .*x"),
        ({"target_latency": "fast"}, ConfigError, "the latency 'fast' is not understood"),
        ({"blocks": "layer7.*"}, ConfigError, "the model has no module called 'layer7.\\*'"),
        ({"blocks": nn.LSTM}, ConfigError, "no module of the class LSTM"),
        ({"blocks": 3}, ConfigError, "blocks holds 3"),
        ({"candidates": "zeros"}, ConfigError, "no kind 'zeros'; did you mean zero"),
        ({"candidates": []}, ConfigError, r"candidates is \[\]: give one or several of narrower"),
        ({"candidates": [3]}, ConfigError, "no kind 3; allowed: low_rank, narrower, "),
        ({"candidates": "smaller_kernel"}, SupernetError, "'narrower' is not among candidates="),
        ({"blocks": "0", "target_latency": "0.9x"}, LimitError, "blocks='auto' where blocks="),
        ({"blocks": "11"}, SupernetError, "nothing to narrow .* an output of the model"),
        ({"blocks": "2"}, SupernetError, "`blocks` names none of its layers"),
        ({"blocks": []}, ConfigError, "blocks is empty"),
        ({"train": None}, DataError, "no batches of `train`"),
        ({"example_inputs": (torch.zeros(1, 7),)}, SupernetError, "fails on the example inputs"),
        ({"example_inputs": None}, ConfigError, "example_inputs is NoneType"),
        ({"loss": lambda o, t: o}, UserError, "the loss must return a tensor of one number"),
        ({"loss": lambda o, t: o.sum() * NAN}, DataError, "the loss is nan on the first batch of"),
        ({"correct": lambda o, t: o.argmax(1) == t}, UserError, "correct must return how many"),
        ({"correct": lambda o, t: o.logits}, DataError, "correct fails on the first batch"),
        ({"valid": [(torch.zeros(2, 7), torch.zeros(2))]}, DataError, "first batch of valid"),
        ({"model": nn.ReLU()}, SupernetError, "nothing to narrow in ReLU: it has no layer"),
    ],
)
def test_one_line_says_what_is_wrong(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    options = {"model": None, **options}
    if isinstance(options["model"], nn.ReLU):
        options |= {"loss": lambda output, target: output.mean(), "correct": None}
    with pytest.raises(error, match=words) as caught:
        specialised(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("3.weight", float("inf")), ("1.running_var", NAN)])
def test_a_weight_that_is_no_number_is_named(name: str, value: float) -> None:
    model = copy.deepcopy(trained())
    model.state_dict()[name].view(-1)[3] = value
    words = f"the model's {name} holds 1 of {model.state_dict()[name].numel()} numbers that are not"
    with pytest.raises(SupernetError, match=words):
        specialised(model)


def test_a_model_of_which_nothing_learns_is_fine_tuned_all_the_same() -> None:
    model = copy.deepcopy(trained()).requires_grad_(False)
    result = specialised(model)
    before = result.derive().state_dict()
    result.finetune(epochs=1, settings=replace(FINETUNE, keep_best="never"))
    assert not torch.equal(result.derive().state_dict()["0.weight"], before["0.weight"])
    assert not any(p.requires_grad for p in model.parameters())


def test_what_changes_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    same = batches(0)
    specialised(train=same, valid=same, target_latency="2x", quiet=False)
    said = " ".join(capsys.readouterr().err.split())
    assert "WARNING: `valid` is `train`" in said
    assert "the model itself keeps" in said


def test_outputs_that_are_no_numbers_are_told() -> None:
    with pytest.raises(DataError, match="output on the first batch of train is not a number"):
        specialised(nn.Sequential(*trained(), LogOfNegative()))


class LogOfNegative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (-x.abs()).log()


class Heads(nn.Module):
    """An attention whose code takes the number of heads from an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.embed, self.qkv = nn.Linear(6, 32), nn.Linear(32, 96)
        self.out, self.classify = nn.Linear(32, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*qkv.unbind(0))
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = self.classify(x.mean(1))
        return out


def test_heads_are_chosen_and_saved_with_their_number(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = [(torch.randn(16, 5, 6), torch.randint(2, (16,))) for _ in range(3)]
    model = Heads()
    found = specialised(
        model,
        train=data,
        valid=data,
        example_inputs=(data[0][0],),
        target_latency="0.8x",
        candidates="narrower",
        out=tmp_path / "run",
    )
    assert "4 groups of 24 channels, or 3, 2, 1" in found.table
    network = found.derive()
    assert network.heads == len(network.qkv.weight) // 24 < 4
    assert model.heads == 4
    again = restored(model, tmp_path / "run")
    assert torch.equal(again(data[0][0]), network(data[0][0]))


def test_transposed_convolutions_and_slices_are_fitted() -> None:
    """Half of the channels repeat others: fitted, the narrow decoder computes the same."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 8, 3, padding=1)
            self.up, self.last = nn.ConvTranspose2d(24, 8, 2, stride=2), nn.Conv2d(8, 2, 1)
            with torch.no_grad():
                for tensor in (self.left.weight, self.left.bias):
                    tensor[8:] = tensor[:8]

        def forward(self, x: Tensor) -> Tensor:
            both = torch.cat((self.right(x), self.left(x).relu()), 1)
            out: Tensor = self.last(self.up(both).relu())
            return out

    torch.manual_seed(0)
    model, x = Decoder().eval(), [torch.randn(4, 3, 12, 12) for _ in range(3)]
    pairs, _ = find_pairs(model, Graph(model, (x[0],)))
    left = next(pair for pair in pairs if pair.name == "left")
    kept = narrow_fits(model, {left: [8]}, x)[left][8]
    (own,) = outputs(model, (x[0],))

    def error(refits: Any) -> float:
        (actual,) = outputs(narrowed(model, [(left, Narrowed(kept.channels, refits))]), (x[0],))
        return float((actual - own).std() / own.std())

    assert error(kept.refits) < 0.05 < error({})


def test_kernels_over_too_many_numbers_are_fitted_place_by_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Better than the weights as they are; and with all channels the layer itself."""
    torch.manual_seed(0)
    # 16 channels that are sums of six.
    mix = nn.Conv2d(6, 16, 1)
    model = nn.Sequential(mix, nn.Conv2d(16, 8, 3, stride=2, padding=1), nn.Conv2d(8, 2, 1)).eval()
    x = [torch.randn(8, 6, 12, 12) for _ in range(3)]
    monkeypatch.setattr("proxylessnas.surgery.moments.LARGEST", 100)
    pair = next(p for p in find_pairs(model, Graph(model, (x[0],)))[0] if p.name == "0")
    fits = narrow_fits(model, {pair: [15, 8]}, x)[pair]
    expected = outputs(model, (x[0],))[0]

    def error(kept: Narrowed) -> float:
        actual = outputs(narrowed(model, [(pair, kept)]), (x[0],))[0]
        return float((actual - expected).square().mean() / expected.var())

    assert error(fits[8]) < 0.01 < 0.1 < error(Narrowed(fits[8].channels, {}))
    weight, _ = fits[15].refits["1.weight"]
    assert weight.shape == (8, 15, 3, 3)
