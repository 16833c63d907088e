"""Models as people hold them: compiled, parallel, with several inputs and any outputs."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.parallel import DataParallel, DistributedDataParallel
from trained_model import batches, specialised, trained

from proxylessnas.surgery.brought import plain_copy
from proxylessnas.surgery.saved import restored
from proxylessnas.surgery.scores import distance_for, squared_distance
from proxylessnas.surgery.specialise import FINETUNE


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def of_a_part(model: nn.Module) -> nn.Module:
    model[5] = torch.compile(model[5], backend="eager")  # type: ignore[index,operator]
    return model


WRAPPERS: dict[str, Any] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled in place": in_place,
    "a compiled part": of_a_part,
    "data parallel": DataParallel,
    "both": lambda model: DataParallel(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_are_taken_off(name: str) -> None:
    model = WRAPPERS[name](copy.deepcopy(trained()))
    (images, _), *_ = batches(2)
    model(images)  # what is compiled is compiled now
    plain = plain_copy(model)
    assert [path for path, _ in plain.named_modules()] == [p for p, _ in trained().named_modules()]
    assert all(module._compiled_call_impl is None for module in plain.modules())
    with torch.no_grad():
        assert torch.equal(plain(images), trained()(images))


def test_a_model_of_distributed_training(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        model = DistributedDataParallel(copy.deepcopy(trained()))
        plain = plain_copy(model)
    finally:
        torch.distributed.destroy_process_group()
    (images, _), *_ = batches(2)
    with torch.no_grad():
        assert type(plain) is nn.Sequential and torch.equal(plain(images), trained()(images))


class Outputs(nn.Module):
    """Two inputs; outputs as a tuple, a dict, or both in one another."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 64), nn.Linear(6, 64)
        self.read, self.size = nn.Linear(64, 3), nn.Linear(64, 1)
        self.kind = kind

    def forward(self, a: Tensor, b: Tensor) -> Any:
        hidden = self.left(a).relu() + self.right(b).sigmoid()
        vector, size = self.read(hidden), self.size(hidden)
        kinds = {
            "tuple": (vector, size),
            "dict": {"vector": vector, "size": size},
            "nested": {"vector": vector, "more": [size, None, 3]},
        }
        return kinds[self.kind]


def vector_of(output: Any) -> Tensor:
    vector: Tensor = output["vector"] if isinstance(output, dict) else output[0]
    return vector


@pytest.mark.parametrize("kind", ["tuple", "dict", "nested"])
def test_outputs_of_any_kind_and_a_loss_of_ones_own(kind: str) -> None:
    """The teacher's share of the loss is the distance of all outputs, and it is learned from."""
    torch.manual_seed(1)
    model = Outputs(kind).eval()
    data = [((torch.randn(16, 6), torch.randn(16, 6)), torch.randn(16, 3)) for _ in range(4)]
    found = specialised(
        model,
        train=data,
        valid=data,
        loss=lambda output, target: mse_loss(vector_of(output), target),
        correct=None,
        example_inputs=data[0][0],
        target_latency="0.995x",
    )
    network = found.derive()
    assert network.left.out_features < 64 and type(network) is Outputs
    assert type(network(*data[0][0])) is type(model(*data[0][0]))
    before = network(*data[0][0])
    found.finetune(epochs=2)
    after = found.derive()(*data[0][0])
    assert not torch.equal(vector_of(before), vector_of(after))


def test_the_model_is_the_teacher_of_outputs_that_the_loss_does_not_see() -> None:
    torch.manual_seed(1)
    model = Outputs("tuple").eval()
    data = [((torch.randn(32, 6), torch.randn(32, 6)), torch.zeros(32, 3)) for _ in range(4)]
    found = specialised(
        model,
        train=data,
        valid=data,
        loss=lambda output, target: mse_loss(output[0], output[0].detach()),  # nothing to learn
        correct=None,
        example_inputs=data[0][0],
        target_latency="0.98x",
    )

    def distance(network: nn.Module) -> float:
        with torch.no_grad():
            pairs = [(network(*x)[1], model(*x)[1]) for x, _ in data]
            return float(sum(mse_loss(a, b) for a, b in pairs))

    before = distance(found.network)
    found.finetune(epochs=20, settings=replace(FINETUNE, epochs=20, keep_best="never"))
    assert distance(found.network) < 0.8 * before


def test_logits_are_compared_as_such_where_the_loss_is_cross_entropy() -> None:
    for loss in (cross_entropy, nn.CrossEntropyLoss()):
        output = torch.randn(4, 3)
        assert float(distance_for(loss)(output, output + 7)) == pytest.approx(0, abs=1e-5)
    assert distance_for(mse_loss) is squared_distance


class Tied(nn.Module):
    """Its embedding is its classifier, as language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inside = nn.Embedding(50, 16), nn.Linear(16, 64)
        self.back, self.out = nn.Linear(64, 16), nn.Linear(16, 50, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.back(self.inside(self.embed(x)).relu()))
        return out


def test_tied_weights_stay_tied_in_what_is_fine_tuned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = [(torch.randint(50, (8, 5)), torch.randint(50, (8, 5))) for _ in range(2)]
    result = specialised(
        Tied(),
        train=data,
        valid=data,
        loss=lambda output, target: cross_entropy(output.flatten(0, 1), target.flatten()),
        correct=None,
        example_inputs=(data[0][0],),
        target_latency="0.99x",
        out=tmp_path / "run",
    )
    result.finetune(epochs=1)
    network = result.derive()
    assert network.out.weight is network.embed.weight and network.inside.out_features < 64
    assert torch.equal(restored(Tied(), tmp_path / "run")(data[0][0]), network(data[0][0]))


def test_a_layer_that_is_dead_is_narrowed_too() -> None:
    """Whatever its readers see is constant: any channels do."""
    torch.manual_seed(0)
    first, second = nn.Linear(100, 64), nn.Linear(64, 64)
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), nn.Linear(64, 2))
    with torch.no_grad():
        first.weight.zero_()
        first.bias.fill_(-1.0)
    (images, _), *_ = batches(2)
    expected = model(images)
    result = specialised(model, target_latency="0.99x", blocks="1")
    assert result.derive()[1].out_features < 64
    torch.testing.assert_close(result.derive()(images), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_stay_what_they_are(dtype: torch.dtype) -> None:
    model = copy.deepcopy(trained()).to(dtype)
    before = copy.deepcopy(model.state_dict())
    data = [(x.to(dtype), y) for x, y in batches(0)]
    result = specialised(
        model, train=data, valid=data, example_inputs=(data[0][0][:1],), target_latency="0.7x"
    )
    own = result.around.space.network(result.around.space.own)
    assert torch.equal(own(data[0][0]), model.eval()(data[0][0]))
    assert result.derive()(data[0][0]).dtype is dtype
    assert result.before.accuracy is not None and result.before.accuracy > 0.8
    state = model.state_dict()
    assert all(torch.equal(v, state[k]) and v.dtype is state[k].dtype for k, v in before.items())
