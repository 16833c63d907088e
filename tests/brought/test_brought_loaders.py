"""Loaders, losses and models of the Python call: right, or one line before anything is measured."""

from __future__ import annotations

import dataclasses
import random
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from small_search import (
    CLASSES,
    SIZE,
    Batch,
    Net,
    changed,
    data_set,
    images,
    refused,
    right,
    searched,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    random_split,
)

from proxylessnas import MixedOp, Result, SearchSettings, load
from proxylessnas.config import RunConfig
from proxylessnas.data import load_data
from proxylessnas.errors import ConfigError, RunError, UserError
from proxylessnas.hardware.runtimes.fake import FakeRuntime
from proxylessnas.session.early import first_batch
from proxylessnas.training.callbacks import Callback, StepMetrics
from proxylessnas.training.task import not_numbers

# --- K7: batches that the model or the loss does not take ---


@pytest.mark.parametrize("part", ["train", "valid"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x, y: (x.numpy(), y.numpy()), "convert them with torch.from_numpy"),
        (lambda x, y: (x, y.numpy()), "convert them with torch.from_numpy"),
        (lambda x, y: (x.double(), y), "the model computes in float32: convert the inputs"),
        (lambda x, y: (x.half(), y), "the model computes in float32: convert the inputs"),
        (lambda x, y: ((255 * x).byte(), y), r"inputs uint8\[8, 1, 6, 6\]"),
        (lambda x, y: (x, y + 1), "labels are 1 to 3, and the output has 3 classes"),
        (lambda x, y: (x, y - 1), "labels are -1 to 1, and the output has 3 classes"),
        (lambda x, y: (x, y.float()), r"target float32\[8\]"),
        (lambda x, y: (x, y.tolist()), "must be Tensor, not list"),
        (lambda x, y: (x.repeat(1, 3, 1, 1), y), "expected input.* to have 1 channels, but got 3"),
        (lambda x, y: (x[0], y[0]), r"of 3 dimensions, and the example inputs .* have 4"),
        (lambda x, y: (x[:0], y[:0]), "is empty: "),
        (lambda x, y: (x, y, y), "a batch must be a pair .*gave tuple of 3"),
        (lambda x, y: {"image": x, "kind": y}, "a dict of image, kind: the target must be one"),
        (lambda x, y: {"image": x, "label": y, "target": y}, "the target must be one"),
        (lambda x, y: {"label": y}, "a dict of label: the target must be one"),
    ],
)
def test_what_the_model_or_the_loss_does_not_take(part: str, change: Any, expected: str) -> None:
    """numpy, float64, labels out of range, channels, examples without a batch, dicts."""
    line = refused(**{part: changed(images(), change)})
    assert re.search(expected, line), line


def test_the_line_names_the_loader() -> None:
    wrong = changed(images(), lambda x, y: (x.double(), y))
    for part in ("train", "valid", "calibration"):
        assert f"the model fails on the first batch of {part} " in refused(**{part: wrong})
    assert "the first batch of scoring" in refused(scoring=wrong)


def test_a_label_that_only_a_later_batch_has() -> None:
    """Of lists, tensors in a data set and torchvision's `targets` all labels are known."""
    late = images()
    late[2][1][0] = CLASSES
    assert "labels are 0 to 3, and the output has 3 classes" in refused(train=late)
    tensors = data_set()
    tensors.tensors[1][16] = CLASSES
    loader = DataLoader(tensors, batch_size=4, drop_last=True)
    assert "lowest and the highest label" in refused(valid=loader)
    ignored = images()
    ignored[1][1][0] = -100  # which cross entropy leaves out
    searched(train=ignored)


def test_a_data_set_is_no_loader() -> None:
    line = refused(train=data_set())
    assert "train is a data set (TensorDataset), which gives one example at a time" in line


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_fails(workers: int) -> None:
    class Ragged(Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            return torch.zeros(1, SIZE, SIZE + index), 0

    line = refused(train=DataLoader(Ragged(), batch_size=4, num_workers=workers))
    assert "train fails on its first batch: RuntimeError: stack expects each tensor" in line


@pytest.mark.parametrize("as_list", [True, False])
@pytest.mark.parametrize("part", ["train", "valid", "calibration"])
def test_a_last_batch_of_one_example(part: str, as_list: bool) -> None:
    loader: Any = DataLoader(data_set(17), batch_size=8)
    line = refused(**{part: list(loader) if as_list else loader})
    words = f"batch 2 of {part} " if as_list else f"a batch of one example, as there is in {part}"
    assert words in line
    assert "DataLoader(drop_last=True)" in line


def test_a_last_batch_of_one_example_by_other_samplers() -> None:
    examples = data_set(17)
    sampler = BatchSampler(RandomSampler(examples), 8, drop_last=False)
    line = refused(train=DataLoader(examples, batch_sampler=sampler))
    assert "a batch of one example, as there is in train" in line
    assert "a batch of one example" in refused(valid=DataLoader(Rows(17), batch_size=8))
    sampler = BatchSampler(RandomSampler(examples), 8, drop_last=True)
    searched(train=DataLoader(examples, batch_sampler=sampler))


def test_last_batches_that_do_no_harm() -> None:
    results = [
        searched(train=DataLoader(data_set(17), batch_size=8, drop_last=True)),
        searched(train=DataLoader(data_set(18), batch_size=8)),
    ]

    class Plain(Net):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.Identity()  # type: ignore[assignment]

    results.append(searched(Plain(), train=DataLoader(data_set(17), batch_size=8)))
    results.append(searched(scoring=DataLoader(data_set(17), batch_size=8)))  # in evaluation mode
    assert all(result.architecture.choices.keys() == {"op"} for result in results)


def test_images_of_another_size() -> None:
    """Validation images of a size that nothing else has are refused; known practices are said."""
    line = refused(valid=images(size=9, seed=2))
    assert "the first batch of valid is 8 images of 9x9" in line and "of 6x6" in line
    with pytest.warns(UserWarning, match="the first batch of train is 8 images of 9x9"):
        searched(train=images(size=9))
    with pytest.warns(UserWarning, match="the first batch of scoring is 1 image of 9x9"):
        searched(scoring=images(batch=1, size=9))


# --- K7: losses, `correct`, rewards ---


@pytest.mark.parametrize(
    "loss",
    [
        lambda output, target: cross_entropy(output.detach(), target),
        lambda output, target: (output.argmax(1) != target).float().mean(),
        lambda output, target: torch.tensor(cross_entropy(output, target).item()),
        lambda output, target: torch.zeros((), requires_grad=True) + 0 * output.detach().sum(),
    ],
)
def test_a_loss_without_a_gradient(loss: Any) -> None:
    line = refused(loss=loss)
    assert "has no gradient" in line or "that requires a gradient" in line


def test_a_loss_that_broadcasts() -> None:
    """Outputs [8, 1] and targets [8]: torch compares each with each, and warns."""

    class Regression(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, :1]

    data = [(x, y.float()) for x, y in images()]
    given: dict[str, Any] = {"train": data, "valid": data[:2], "correct": None, "loss": mse_loss}
    line = refused(Regression(), **given)
    assert "compares every example with every other: the output is float32[8, 1]" in line
    searched(Regression(), **{**given, "loss": lambda o, t: mse_loss(o.squeeze(1), t)})


def test_functions_given_as_classes() -> None:
    line = refused(loss=nn.CrossEntropyLoss)
    assert "loss is the class CrossEntropyLoss itself" in line and "CrossEntropyLoss(...)" in line
    assert "correct is the class Identity itself" in refused(correct=nn.Identity)
    with pytest.raises(ConfigError, match=r"model is the class Net itself .*Net\(\.\.\.\)"):
        searched(Net)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("correct", "expected"),
    [
        (lambda o, t: o.argmax(1) == t, "`correct` returned bool[8]; it must be how many of the 8"),
        (lambda o, t: (o.argmax(1) == t).float().mean(), "returns a mean"),
        (lambda o, t: (o.argmax(1) == t).float().mean().item(), "returns a mean"),
        (lambda o, t: torch.tensor(64), "`correct` returned 64 on the first batch of valid"),
        (lambda o, t: -1, "`correct` returned -1"),
        (lambda o, t: float("nan"), "`correct` returned nan"),
        (lambda o, t: None, "`correct` returned None"),
        (lambda o, t: "3", "`correct` returned str"),
        (lambda o, t: o.missing, "`correct` fails on the first batch of valid"),
    ],
)
def test_a_correct_that_counts_nothing(correct: Any, expected: str) -> None:
    """A bool vector for want of `.sum()` failed after the whole search."""
    assert expected in refused(correct=correct)


@pytest.mark.parametrize(
    "correct",
    [
        right,
        lambda o, t: int(right(o, t)),
        lambda o, t: right(o, t).item(),
        lambda o, t: right(o, t).numpy(),
        lambda o, t: right(o, t).reshape(1).float(),
        lambda o, t: 0.5 * right(o, t),  # shares of examples, as of pixels
    ],
)
def test_a_correct_that_counts(correct: Any) -> None:
    accuracy = searched(correct=correct).session.records.require("derive")["validation_accuracy"]
    assert 0 <= accuracy <= 1


def test_a_reward_that_is_no_number() -> None:
    settings = SearchSettings(estimator="reinforce", warmup_epochs=0, epochs=1)
    line = refused(reward=lambda accuracy, indices: "good", settings=settings)
    assert "the reward returned str; it must be one number" in line
    line = refused(reward=lambda accuracy: accuracy, settings=settings)
    assert "the reward fails on the first batch of valid" in line
    assert "`correct`" in refused(
        reward=lambda accuracy, _: accuracy, settings=settings, correct=None
    )
    searched(reward=lambda accuracy, _: accuracy, settings=settings)


def test_an_objective_of_a_raw_parameter_would_never_learn() -> None:
    scale = nn.Parameter(torch.zeros(2))
    line = refused(loss=lambda o, t: cross_entropy(o, t) * (-scale[0]).exp() + scale.sum())
    assert "a tensor float32[2] that requires a gradient" in line and "nn.Parameter" in line


# --- K7: data that hold NaN ---


def test_data_that_hold_nan() -> None:
    """Which batch, which input: it is not the learning rate."""
    bad = images()
    bad[0][0][0, 0, :2] = float("nan")
    line = refused(train=bad)
    assert "the loss of the first batch of train is nan before any step" in line
    assert f"inputs holds NaN ({2 * SIZE} of {8 * SIZE * SIZE} numbers)" in line
    assert "its data are finite: look at the loss" in refused(
        loss=lambda o, t: cross_entropy(o, t) * float("nan")
    )


@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
def test_data_that_are_infinite(value: float) -> None:
    """As the logarithm of an empty channel is."""
    bad = images()
    bad[0][0][0, 0, :2] = value
    assert f"inputs holds infinite values ({2 * SIZE} of {8 * SIZE * SIZE} numb" in refused(
        train=bad
    )


def test_a_mask_of_minus_infinity_is_no_fault() -> None:
    mask = torch.zeros(2, 3)
    mask[0, 1] = -torch.inf
    assert not_numbers(((mask, torch.ones(2)), torch.ones(2)), "batch 0") == ""


@pytest.mark.parametrize("part", ["train", "valid"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_data_that_hold_nan_later(part: str) -> None:
    bad = images(8)
    for x, _ in bad[1:]:
        x[0, 0, 0, 0] = float("nan")
    settings = SearchSettings(warmup_epochs=0, epochs=2)
    with pytest.raises(UserError, match=r"because the data are not: batch \d of epoch \d") as error:
        searched(**{"train": images(8), "settings": settings, part: bad})
    assert f"of {part}: inputs holds NaN (1 of 288 numbers)" in str(error.value)


# --- loaders that are iterators, or share examples ---


class OnceOnly:
    """An iterator with a length, as of a file that is read once."""

    def __init__(self) -> None:
        self.rest = iter(images())

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self.rest)


class Again(OnceOnly):
    """An iterator that begins again."""

    def __iter__(self) -> Iterator[Batch]:
        self.rest = iter(images())
        return self


def test_an_iterator_that_is_gone_through_once() -> None:
    assert "train is an iterator (OnceOnly) that does not begin again" in refused(train=OnceOnly())
    assert same(searched(train=Again()), searched(train=images()))
    assert "the train loader has no length" in refused(train=(b for b in images()))
    assert "the data ended after 0 of 3 batches" in refused(train=_Nothing(range(3)))


class _Nothing(list):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        return iter(())


class Rows(IterableDataset[Any]):
    """Examples one after the other, with a length that is right."""

    def __init__(self, examples: int = 16) -> None:
        self.examples = data_set(examples)

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.examples)


def test_an_iterable_data_set_with_a_length() -> None:
    """`iterator or iter(loader)` called `len()` of the iterator, after measuring."""
    assert searched(train=DataLoader(Rows(), batch_size=8)).architecture


class Untrue:
    """What a user hands in, whose truth is nobody's business."""

    def __bool__(self) -> bool:
        raise AssertionError("asked for its truth")


class UntrueLoader(Untrue):
    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Batch]:
        return iter(images())


class UntrueLoss(Untrue):
    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(output, target)


class UntrueCorrect(Untrue):
    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return right(output, target)


class UntrueRuntime(FakeRuntime):
    def __bool__(self) -> bool:
        raise AssertionError("asked for its truth")


def test_the_truth_of_what_is_handed_in_is_never_asked_for(tmp_path: Path) -> None:
    parts = {part: UntrueLoader() for part in ("train", "valid", "calibration", "scoring")}
    loss = {"loss": UntrueLoss(), "correct": UntrueCorrect()}
    out, runtime = tmp_path / "run", UntrueRuntime()
    searched(
        **parts, **loss, train_loss=UntrueLoss(), runtime=runtime, limits={"latency": "1x"}, out=out
    )
    two = {part: parts[part] for part in ("train", "valid")}
    loaded = load(out, model=Net(), **two, **loss, runtime=runtime, quiet=True)
    assert loaded.derive(limits={"parameters": "1x"})


def test_train_and_valid_that_share_examples_are_said() -> None:
    same_list, examples = images(), data_set(16)
    with pytest.warns(UserWarning, match="train and valid are the same loader"):
        searched(train=same_list, valid=same_list)
    first, second = (DataLoader(examples, batch_size=8, shuffle=s) for s in (True, False))
    with pytest.warns(UserWarning, match="train and valid share 16 examples"):
        searched(train=first, valid=second)


@pytest.mark.filterwarnings("error::UserWarning")
def test_parts_of_one_data_set_are_no_fault() -> None:
    examples = data_set(16)
    one, other = random_split(examples, [8, 8])
    assert searched(train=DataLoader(one, batch_size=4), valid=DataLoader(other, batch_size=4))
    halves = [SubsetRandomSampler(range(8)), SubsetRandomSampler(range(8, 16))]
    first, second = (DataLoader(examples, batch_size=4, sampler=half) for half in halves)
    assert searched(train=first, valid=second).architecture.choices.keys() == {"op"}


# --- the trial is short, and leaves no trace ---


@pytest.mark.parametrize(("batch", "tried"), [(8, 2), (64, 2), (3, 3), (1, 1)])
def test_of_our_own_images_a_few_are_tried(batch: int, tried: int) -> None:
    """Also of a part that is smaller than a batch: a whole one took a minute of large photos."""
    pytest.importorskip("sklearn")
    config = RunConfig(data="digits", loading=replace(RunConfig().loading, limit=200))
    data = load_data(config.data, config.loading, seed=0)
    batches = data.batches("valid", batch, seed=0, shuffle=True)
    assert len(first_batch("valid", batches)[0]) == tried


def same(one: Result, other: Result) -> bool:
    pairs = one.supernet.model.state_dict(), other.supernet.model.state_dict()
    alike = all(torch.equal(v, pairs[1][k]) for k, v in pairs[0].items())
    return alike and torch.equal(one.probabilities, other.probabilities)


class Noisy(TensorDataset):
    """Augmentation that draws from every global generator."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        noise = torch.rand(()) + random.random() + float(np.random.rand())
        return x + noise, y


def noisy_loader(generator: torch.Generator | None = None) -> Any:
    return DataLoader(Noisy(*data_set(16).tensors), batch_size=8, shuffle=True, generator=generator)


def test_the_same_seed_gives_the_same_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the trial, without, and from whatever state the user's generators are in."""
    first = searched(train=noisy_loader())
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    assert same(first, searched(train=noisy_loader()))
    monkeypatch.setattr("proxylessnas.session.pipeline.try_early", lambda session: None)
    assert same(first, searched(train=noisy_loader()))


def test_a_loader_with_a_generator_of_its_own_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Its state was how often it drew; a run that was stopped drew fewer times."""

    class Stop(Callback):
        def on_step(self, metrics: StepMetrics) -> None:
            if metrics.step == 3:
                raise KeyboardInterrupt

    def call(**more: Any) -> Result:
        loader = noisy_loader(torch.Generator().manual_seed(5))
        return searched(train=loader, settings=SearchSettings(warmup_epochs=1, epochs=3), **more)

    with pytest.raises(KeyboardInterrupt):
        call(out=tmp_path / "run", callbacks=[Stop()])
    assert same(call(out=tmp_path / "run"), call())


def test_a_search_under_no_grad() -> None:
    plain = searched()
    with torch.no_grad():
        assert same(searched(), plain)
        result = searched()
        assert result.derive(limits={"parameters": "1x"})
    with torch.inference_mode():
        made = Net()
    with pytest.raises(UserError, match=r"made under torch\.inference_mode"):
        searched(made)


def test_the_trial_leaves_generators_and_models_alone() -> None:
    def trace(model: nn.Module) -> list[Any]:
        drawn = [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]
        modes = [module.training for module in model.modules()]
        return [*drawn, modes, [v.tolist() for v in model.state_dict().values()]]

    refused(train=data_set())  # imports draw, too
    model = Net().eval()
    model.op.train()
    before = trace(model)
    assert "has no gradient" in refused(
        model, train=noisy_loader(), loss=lambda o, t: (0 * o).sum().detach()
    )
    assert trace(model) == before


# --- K7: inputs of every kind ---


class Taking(nn.Module):
    """A searchable layer under a forward of any signature; `tensors` finds [batch, 4] in it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.op = MixedOp([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())])

    def take(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class Pair(NamedTuple):
    x: Tensor
    scale: Tensor


@dataclasses.dataclass
class Record:
    x: Tensor
    scale: float = 1.0


class WithOptions(Taking):
    def forward(
        self, x: Tensor, mask: Any = None, scale: float = 1.0, plain: bool = True
    ) -> Tensor:
        return self.take(x * scale if plain else x)


class OfPair(Taking):
    def forward(self, pair: Pair) -> Tensor:
        return self.take(pair.x * pair.scale)


class OfRecord(Taking):
    def forward(self, record: Record) -> Tensor:
        return self.take(record.x * record.scale)


class OfList(Taking):
    def forward(self, images: list[Tensor]) -> Tensor:
        return self.take(torch.stack([image.flatten()[:4] for image in images]))


class OfDict(Taking):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.take(batch["x"])


class Two(Taking):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.take(x * scale)


class OfPacked(Taking):
    def forward(self, packed: PackedSequence) -> Tensor:
        return self.take(packed.data)


X = torch.arange(32.0).reshape(8, 4) / 32
ONE = torch.ones(8, 1)


@pytest.mark.parametrize(
    ("model", "inputs", "example"),
    [
        (WithOptions, (X, None, 1.0, True), (X[:1], None, 1.0, True)),
        (WithOptions, [X, None, 1.0, False], (X[:1], None, 1.0, False)),
        (WithOptions, {"x": X}, (X[:1],)),
        (WithOptions, {"pixel_values": X}, (X[:1],)),
        (OfPair, Pair(X, ONE), (Pair(X[:1], ONE[:1]),)),
        (Two, Pair(X, ONE), (X[:1], ONE[:1])),
        (Two, [X, ONE], (X[:1], ONE[:1])),
        (Two, {"x": X, "scale": ONE}, (X[:1], ONE[:1])),
        (OfRecord, Record(X), (Record(X[:1]),)),
        (OfList, list(X), ([X[0], X[1]],)),
        (OfList, tuple(X), ([X[0]],)),
        (OfList, [X[0]], ([X[0]],)),
        (OfDict, {"x": X}, ({"x": X[:1]},)),
        (OfDict, ({"x": X},), ({"x": X[:1]},)),
        (OfPacked, pack_sequence([X[:5], X[5:]]), (pack_sequence([X[:5], X[5:]]),)),
    ],
)
def test_inputs_of_every_kind(model: type[Taking], inputs: Any, example: tuple[Any, ...]) -> None:
    """The example inputs say how a batch's are taken; all learn what a plain tensor would."""
    target = torch.zeros(1, 4) if model is OfList and len(inputs) == 1 else torch.zeros(8, 4)
    given = {"loss": mse_loss, "correct": None, "limits": {"parameters": "1x"}}
    result = searched(
        model(),
        train=[(inputs, target)] * 3,
        valid=[(inputs, target + 1)] * 3,
        example_inputs=example,
        **given,
    )

    class Plain(Taking):
        def forward(self, x: Tensor) -> Tensor:
            return self.take(x)

    x = inputs.data if model is OfPacked else X[: len(target)]  # packed in another order
    plain = searched(
        Plain(),
        train=[(x, target)] * 3,
        valid=[(x, target + 1)] * 3,
        example_inputs=(X[:1],),
        **given,
    )
    assert same(result, plain)


@pytest.mark.parametrize("targets", [list, tuple])
def test_images_with_lists_of_targets(targets: type) -> None:
    """Detection: a list of images of different sizes, and boxes of different numbers for each."""
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randn(1, 4 + i, 4, generator=generator) for i in range(4)]
    boxes = targets(
        {"boxes": torch.zeros(i + 1, 4), "labels": torch.zeros(i + 1)} for i in range(4)
    )

    def loss(output: Tensor, target: Any) -> Tensor:
        centres = torch.stack([t["boxes"].mean(0) for t in target])
        return mse_loss(output, centres)

    def all_right(output: Tensor, target: Any) -> int:
        return len(target)

    result = searched(
        OfList(),
        train=[(pictures, boxes)] * 3,
        valid=[(targets(pictures), boxes)] * 3,
        example_inputs=([pictures[0]],),
        loss=loss,
        correct=all_right,
    )
    assert result.session.records.require("derive")["validation_accuracy"] == 1.0


def test_batches_that_are_dicts() -> None:
    batches = [{"pixel_values": x, "labels": y} for x, y in images()]
    assert same(searched(train=batches), searched())


def test_a_target_of_none() -> None:
    """An autoencoder: the size of a batch is that of its inputs."""
    given = {"loss": lambda output, _: output.square().mean(), "correct": lambda o, _: len(o)}
    result = searched(
        train=[(x, None) for x, _ in images()], valid=[(x, None) for x, _ in images()], **given
    )
    assert result.session.records.require("derive")["validation_accuracy"] == 1.0


class Output(OrderedDict[str, Any]):
    """As Hugging Face's `ModelOutput`: a dict whose keys are fields of a dataclass as well."""


@dataclasses.dataclass
class Hidden(Output):
    x: Tensor

    def __post_init__(self) -> None:
        self["x"] = self.x


# What candidates take and return: how it is made of a tensor, mapped, and read again.
BETWEEN: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "dataclass": (Record, lambda v, f: Record(f(v.x), v.scale), lambda v: v.x),
    "ModelOutput": (Hidden, lambda v, f: Hidden(f(v.x)), lambda v: v["x"]),
    "named tuple": (lambda x: Pair(x, ONE), lambda v, f: Pair(f(v.x), v.scale), lambda v: v.x),
    "packed": (
        lambda x: pack_sequence([x]),
        lambda v, f: PackedSequence(f(v.data), v.batch_sizes),
        lambda v: v.data,
    ),
    "others": (
        lambda x: (x, None, 1.0, True),
        lambda v, f: (f(v[0]) * v[2] if v[3] else None, *v[1:]),
        lambda v: v[0],
    ),
    "nested": (
        lambda x: {"a": [x, None]},
        lambda v, f: {"a": [f(v["a"][0]), None]},
        lambda v: v["a"][0],
    ),
}


class Mapped(nn.Module):
    def __init__(self, layer: nn.Module, through: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.through = layer, through

    def forward(self, value: Any) -> Any:
        return self.through(value, self.layer)


class Between(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.make, through, self.read = BETWEEN[kind]
        layers = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.op = MixedOp([Mapped(layer, through) for layer in layers])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.read(self.op(self.make(x)))
        return out


@pytest.mark.parametrize("estimator", ["two_path", "full_path"])
@pytest.mark.parametrize("kind", BETWEEN)
def test_values_of_every_kind_between_layers(kind: str, estimator: str) -> None:
    """Candidates may take and return them; α learns what it does with plain tensors."""
    settings = SearchSettings(warmup_epochs=0, epochs=2, estimator=estimator)
    given = {"train": [(X, X)] * 3, "valid": [(X, X + 1)] * 3, "example_inputs": (X[:1],)}
    given |= {"loss": mse_loss, "correct": None, "settings": settings, "target_latency": "1x"}
    result = searched(Between(kind), runtime=FakeRuntime(), **given)
    BETWEEN["plain"] = lambda x: x, lambda v, f: f(v), lambda v: v
    plain = searched(Between("plain"), runtime=FakeRuntime(), **given)
    del BETWEEN["plain"]
    assert torch.equal(result.probabilities, plain.probabilities)


class KeywordsOnly(Taking):
    def forward(self, *, x: Tensor, mask: Any = None) -> Tensor:
        return self.take(x if mask is None else x * mask)


class Masked(Taking):
    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        return self.take(x * mask)


@pytest.mark.parametrize("mixed", [False, True])
def test_arguments_by_keyword_alone(mixed: bool, tmp_path: Path) -> None:
    """`example_kwargs`: traced, counted, measured, searched and loaded again."""
    example: dict[str, Any] = {
        "example_kwargs": {"x": X[:1], "mask": ONE[:1]},
        "example_inputs": None,
    }
    model: Callable[[], nn.Module] = KeywordsOnly
    if mixed:
        model, example = Masked, {"example_inputs": (X[:1],), "example_kwargs": {"mask": ONE[:1]}}
    data = [({"x": X, "mask": ONE}, torch.zeros(8, 4))] * 3
    more = {"train": data, "valid": [(x, y + 1) for x, y in data], "loss": mse_loss, "quiet": True}
    limits = {"limits": {"parameters": "1x", "macs": "1x", "peak_memory": 1}, "correct": None}
    runtime = FakeRuntime()
    first = searched(
        model(),
        out=tmp_path / "run",
        runtime=runtime,
        target_latency="1x",
        **more,
        **limits,
        **example,
    )
    assert runtime.loaded > 0 and first.predicted["macs"] == 16  # of one example
    loaded = load(tmp_path / "run", model=model(), runtime=FakeRuntime(), **more)
    assert same(first, loaded) and loaded.derive(limits={"parameters": 1000})
    plain = searched(
        Two(),
        train=[((X, ONE), torch.zeros(8, 4))] * 3,
        valid=[((X, ONE), torch.ones(8, 4))] * 3,
        example_inputs=(X[:1], ONE[:1]),
        loss=mse_loss,
        runtime=FakeRuntime(),
        target_latency="1x",
        **limits,
    )
    assert same(first, plain)


def test_example_kwargs_of_the_wrong_form() -> None:
    assert "example_kwargs is a list of str, not arguments by name" in refused(example_kwargs=["x"])
    assert "example_kwargs is a mapping with the keys 1" in refused(example_kwargs={1: X})
    line = refused(example_inputs=X, example_kwargs={"mask": ONE})
    assert "write (x,) for a single tensor" in line


def test_the_price_of_an_example_in_a_list_of_images() -> None:
    """A list of two images is two examples, whatever their channels."""
    one, two = (torch.randn(3, 4, 4) for _ in range(2))
    target = torch.zeros(2, 4)
    given = {"train": [([one, two], target)] * 3, "valid": [([one, two], target)] * 2}
    result = searched(OfList(), **given, example_inputs=([one, two],), loss=mse_loss, correct=None)
    assert result.predicted["macs"] == 16


# --- the call's own arguments ---


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"callbacks": [print]}, "callbacks is a list of builtin"),
        ({"callbacks": Callback()}, "callbacks is Callback, not a list of Callback objects"),
        ({"callbacks": [Callback]}, "callbacks is a list of type"),
        ({"limits": {3: "5M"}}, "limits is a mapping with the keys 3, not limits by the cost's"),
        ({"settings": {"epochs": 1}}, "settings is a mapping with the keys 'epochs', not Search"),
        ({"settings": SearchSettings}, "settings is the class SearchSettings itself"),
    ],
)
def test_arguments_of_another_kind(changes: dict[str, Any], expected: str) -> None:
    assert expected in refused(**changes)


def test_out_that_is_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    line = refused(out=tmp_path / "thesis")
    assert "is not empty and holds no run (chapter.tex): choose a new directory" in line
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]
    for line in (refused(out=tmp_path / "file"), refused(out=tmp_path / "file" / "below")):
        assert "cannot use" in line and "--out" not in line
    (tmp_path / "empty").mkdir()
    assert searched(out=tmp_path / "empty").architecture


def test_other_data_at_the_out_of_a_finished_search(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = searched(out=out)
    assert same(searched(out=out), first)
    with pytest.raises(RunError, match=r"not the data .*'train' is now \(4\), and was \(3\)"):
        searched(out=out, train=images(4))
    with pytest.raises(RunError, match=r"not the data .*'valid' is now \(2\), and was \(3\)"):
        load(out, model=Net(), valid=images(2), quiet=True)


def test_what_a_loaded_search_knows_without_its_data(tmp_path: Path) -> None:
    first = searched(out=tmp_path / "run")
    loaded = load(tmp_path / "run", model=Net(), quiet=True)
    assert torch.equal(loaded.probabilities, first.probabilities)
    assert same(first, loaded)


def test_a_run_of_the_command_line_is_not_gone_on_with(finished_run: Path) -> None:
    with pytest.raises(RunError, match=r"holds a run of the command line, of the data 'digits"):
        searched(out=finished_run)
