"""Invariant 2: in an architecture step no weight and no buffer changes, whoever owns it."""

from __future__ import annotations

import pytest
import torch
from diverging import MovingMean
from torch import Tensor, nn
from torch.nn.utils import spectral_norm
from torch.nn.utils.parametrizations import spectral_norm as parametrized_spectral_norm
from toys import changed, snapshot

from proxylessnas.core.supernet import MixedOp, Supernet
from proxylessnas.core.tensors import collect_tensors
from proxylessnas.training.freezing import frozen


class Writes(nn.Module):
    """Counts its calls in a buffer, in place; another buffer is empty until it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("first", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.first is None:
            self.first = x.detach().clone()
        return x * 1.0


class MyBatchNorm(nn.BatchNorm1d):
    """A subclass with a forward of its own, which moves its statistics however it likes."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.running_mean += x.mean(0)
        return x - x.mean(0)


def batch_norm_of(momentum: float | None = 0.1) -> nn.Module:
    return nn.BatchNorm1d(4, momentum=momentum)


LAYERS = {
    "batch norm": batch_norm_of,
    "cumulative batch norm": lambda: batch_norm_of(None),
    "own batch norm": lambda: MyBatchNorm(4),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (4, 1)),
        nn.Conv1d(4, 4, 3, padding=2),
        nn.InstanceNorm1d(4, track_running_stats=True),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
    ),
    "spectral norm": lambda: spectral_norm(nn.Linear(4, 4)),
    "parametrized spectral norm": lambda: parametrized_spectral_norm(nn.Linear(4, 4)),
    "replaces its buffer": MovingMean,
    "writes into its buffer": Writes,
    "dropout": lambda: nn.Dropout(0.5),
    "linear": lambda: nn.Linear(4, 4),
}


def model_with(layer: str) -> nn.Module:
    """The layer outside of the mixed operation, and in one of its candidates."""
    mixed = MixedOp([LAYERS[layer](), nn.Identity()])
    return nn.Sequential(LAYERS[layer](), mixed, nn.Linear(4, 4))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_frozen_changes_nothing_and_computes_the_same(layer: str, training: bool) -> None:
    model = model_with(layer).train(training)
    supernet, x = Supernet(model), torch.randn(6, 4)
    model(x)  # some state to keep
    if layer == "writes into its buffer":
        model[0].first = model[1].candidates["0"].first = None
    before, twin = snapshot(model), model_with(layer).train(training)
    twin.load_state_dict(before)
    identities = {k: id(b) for k, b in model.named_buffers()}
    with frozen(collect_tensors(supernet).of([[0, 1]])):
        torch.manual_seed(1)
        y = model(x)
        assert not y.requires_grad
    torch.manual_seed(1)
    assert torch.equal(y, twin(x))
    assert changed(model, before) == set()
    assert {k: id(b) for k, b in model.named_buffers()} == identities


@pytest.mark.parametrize("layer", ["batch norm", "replaces its buffer", "writes into its buffer"])
def test_outside_of_frozen_the_same_layers_do_change(layer: str) -> None:
    """The test above can fail."""
    model = model_with(layer).train()
    before = snapshot(model)
    model(torch.randn(6, 4))
    after = model.state_dict()
    assert before.keys() != after.keys() or changed(model, before)


def test_everything_is_put_back_after_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), Writes(), MixedOp([nn.Linear(4, 4)]))
    before = snapshot(model)
    with pytest.raises(RuntimeError), frozen(collect_tensors(Supernet(model)).of([[0]])):
        model(torch.randn(3, 4))
        raise RuntimeError
    assert changed(model, before) == set()
    assert model[0].track_running_stats
    assert all(p.requires_grad for p in model.parameters())


def test_what_did_not_learn_before_does_not_learn_after() -> None:
    model = nn.Sequential(nn.Linear(4, 4), MixedOp([nn.Linear(4, 4)]))
    model[0].weight.requires_grad_(False)
    untracked = nn.BatchNorm1d(4, track_running_stats=False)
    model.append(untracked)
    with frozen(collect_tensors(Supernet(model)).of([[0]])):
        pass
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["0.weight"]
    assert not untracked.track_running_stats


def test_parts_tell_the_fixed_modules_from_each_candidate() -> None:
    model = nn.Sequential(nn.Linear(4, 4), MixedOp([nn.Linear(4, 4), nn.Linear(4, 4)]))
    tensors = collect_tensors(Supernet(model))
    names = {id(p): n for n, p in model.named_parameters()}
    found = [{names[id(p)] for p in part.parameters} for part in tensors.of([[1]])]
    assert found == [
        {"0.weight", "0.bias"},
        {"1.candidates.1.weight", "1.candidates.1.bias"},
    ]


def test_a_module_shared_by_a_candidate_and_the_fixed_part_is_in_both() -> None:
    """It always runs, so it is always protected."""
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(norm, MixedOp([nn.Sequential(norm), nn.Identity()]))
    before = snapshot(model)
    with frozen(collect_tensors(Supernet(model)).of([[1]])):
        model(torch.randn(6, 4))
    assert changed(model, before) == set()
