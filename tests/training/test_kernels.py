"""Faster layers compute what PyTorch's compute, and leave no trace."""

from __future__ import annotations

import copy
import io
import shutil
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from amounts import examples
from clock import Clock
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import After, image_search

from proxylessnas.config import MachineSettings
from proxylessnas.core.search import Search
from proxylessnas.core.supernet import MixedOp, Supernet
from proxylessnas.errors import ConfigError
from proxylessnas.session.tuning import _explicit
from proxylessnas.training.autotune import (
    WORTH_FUSING,
    WORTH_SPLITTING,
    layers,
    quickest,
    variants_of,
)
from proxylessnas.training.device import Machine, make_machine
from proxylessnas.training.kernels import gains, normalise, speed_up
from proxylessnas.training.loop import run_loop

CHANNELS_LAST, CHOSEN = torch.channels_last, torch.get_default_dtype()
compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels as eager PyTorch: the same computation, without the seconds of compiling."""
    monkeypatch.setattr(normalise, "_compiled", lambda kernel: kernel)
    normalise.kernels.cache_clear()
    yield
    normalise.kernels.cache_clear()


def outcome(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output, every gradient and the state after one step of training."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    module.zero_grad()
    y = module(x)
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    (y * weights + 0.1 * y.square()).sum().backward()
    assert x.grad is not None
    gradients = {f"grad {n}": p.grad for n, p in module.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "grad x": x.grad, **gradients, **module.state_dict()}


def assert_the_same(module: nn.Module, x: Tensor, *, tolerance: float = 1e-4) -> None:
    plain, fast = copy.deepcopy(module), module
    undo = speed_up(fast.modules(), depthwise_strips=True, fused_batch_norm=True)
    found, expected = outcome(fast, x), outcome(plain, x)
    undo()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        apart = float((found[name] - value).abs().max())
        assert apart <= tolerance * scale, f"{name}: {apart}"


# --- depthwise convolutions ---


@given(
    kernel=st.tuples(st.integers(1, 7), st.integers(4, 9)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    size=st.tuples(st.integers(1, 3), st.integers(2, 5), st.integers(1, 12), st.integers(1, 12)),
    bias=st.booleans(),
    channels_last=st.booleans(),
)
@example((7, 7), (1, 1), (3, 3), (2, 4, 2, 2), True, True)  # a kernel that is wider than the image
@examples(60)
def test_strips_give_the_weight_gradient(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    size: tuple[int, int, int, int],
    bias: bool,
    channels_last: bool,
) -> None:
    if any(s + 2 * p < k for s, p, k in zip(size[2:], padding, kernel, strict=True)):
        return  # no output
    torch.manual_seed(0)
    channels = size[1]
    conv = nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=bias)
    x = torch.randn(size)
    if channels_last:
        x = x.to(memory_format=CHANNELS_LAST)
    assert_the_same(conv, x)


def other_convolutions() -> list[nn.Module]:
    class Own(nn.Conv2d):
        pass

    return [
        nn.Conv2d(4, 4, 3, groups=4),  # narrow
        nn.Conv2d(4, 4, 5),
        nn.Conv2d(4, 8, 5, groups=4),
        nn.Conv2d(4, 4, 5, groups=4, dilation=2),
        nn.Conv2d(4, 4, 5, groups=4, padding=2, padding_mode="circular"),
        nn.Conv2d(4, 4, 5, groups=4, padding="same"),
        Own(4, 4, 5, groups=4),
    ]


@pytest.mark.parametrize("module", other_convolutions(), ids=str)
def test_other_convolutions_stay_as_they_are(module: nn.Module) -> None:
    assert gains([module]) == (False, False)
    undo = speed_up([module], depthwise_strips=True, fused_batch_norm=True)
    assert module._compiled_call_impl is None
    undo()


def test_double_precision_takes_its_own_way() -> None:
    conv = nn.Conv2d(3, 3, 5, padding=2, groups=3).double()
    assert_the_same(conv, torch.randn(2, 3, 6, 6, dtype=torch.float64), tolerance=0.0)


# --- normalisation and activation ---

ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    nn.ReLU6,
    lambda: nn.Hardtanh(-0.5, 0.75),
    nn.SiLU,
    nn.Identity,
]


def block(activation: nn.Module, channels: int = 6, **norm: Any) -> nn.Sequential:
    convolution = nn.Conv2d(4, channels, 1, bias=False)
    layer = nn.BatchNorm2d(channels, **norm)
    if layer.affine:
        nn.init.uniform_(layer.weight, 0.5, 3.0)
        nn.init.normal_(layer.bias, 1.0)
    return nn.Sequential(convolution, layer, activation, nn.Dropout(0.0))


@pytest.mark.parametrize("make", ACTIVATIONS, ids=lambda make: str(make()))
@pytest.mark.parametrize(
    "norm",
    [{}, {"momentum": None}, {"track_running_stats": False}, {"affine": False}, {"eps": 0.1}],
    ids=str,
)
def test_fused_is_what_eager_is(
    make: Callable[[], nn.Module], norm: dict[str, Any], uncompiled: None
) -> None:
    torch.manual_seed(0)
    assert_the_same(block(make(), **norm), images(5, 4, 7, 6))


@pytest.mark.parametrize(
    "shape", [(1, 4, 7, 6), (2, 4, 1, 6), (2, 4, 6, 1), (5, 4, 1, 1), (1, 4, 2, 2), (3, 4, 64, 40)]
)
def test_shapes(shape: tuple[int, int, int, int], uncompiled: None) -> None:
    torch.manual_seed(0)
    assert_the_same(block(nn.ReLU6()), images(*shape))


def images(*shape: int) -> Tensor:
    return torch.randn(shape).to(memory_format=CHANNELS_LAST)


@given(batch=st.integers(1, 300), height=st.integers(1, 300), width=st.integers(1, 300))
def test_rows_are_whole_lines_and_no_dimension_is_one(batch: int, height: int, width: int) -> None:
    found = normalise._rows(batch, height, width)
    if found is not None:
        rows, pixels = found
        assert rows * pixels == batch * height * width
        assert 1 < rows <= normalise.LONGEST and 1 < pixels <= normalise.LONGEST
        assert rows % batch == 0 and pixels % width == 0
    elif 1 < batch * height <= normalise.LONGEST and width > 1:
        pytest.fail("whole lines would have done")


def test_contiguous_images_evaluation_and_frozen_statistics_are_eager(uncompiled: None) -> None:
    torch.manual_seed(0)
    layer = block(nn.ReLU())
    assert_the_same(layer, torch.randn(5, 4, 7, 6), tolerance=0.0)
    layer.eval()
    assert_the_same(layer, images(5, 4, 7, 6), tolerance=0.0)


def test_a_mean_far_from_zero_does_not_drown_the_variance(uncompiled: None) -> None:
    norm = nn.BatchNorm2d(3)
    x = images(16, 3, 20, 20) + 1000.0
    speed_up([norm], depthwise_strips=False, fused_batch_norm=True)
    y = norm(x.to(memory_format=CHANNELS_LAST))
    wide = x.double()
    expected = (wide - wide.mean((0, 2, 3), keepdim=True)) / (
        wide.var((0, 2, 3), correction=0, keepdim=True) + norm.eps
    ).sqrt()
    torch.testing.assert_close(y.double(), expected, atol=2e-3, rtol=0.0)


def test_a_loss_that_is_not_finite_is_not_hidden(uncompiled: None) -> None:
    layer = block(nn.ReLU6())
    speed_up(layer.modules(), depthwise_strips=False, fused_batch_norm=True)
    x = images(2, 4, 5, 5)
    x[0, 0, 2, 2] = torch.inf
    assert not layer(x).isfinite().all()


@pytest.mark.parametrize("where", [(0, 0, 0, 0), (3, 1, 7, 9)])
def test_one_pixel_far_off_does_not_either(where: tuple[int, ...], uncompiled: None) -> None:
    """As where padding makes a corner of an image unlike the rest."""
    norm, x = nn.BatchNorm2d(3), images(16, 3, 20, 20) + 1000.0
    x[where] = 0.0
    wide = x.double()
    expected = nn.functional.batch_norm(wide, None, None, training=True, eps=norm.eps)
    speed_up([norm], depthwise_strips=False, fused_batch_norm=True)
    torch.testing.assert_close(norm(x).double(), expected, atol=1e-2, rtol=1e-3)


class InPlace(nn.Module):
    """What comes after a normalisation works on its output."""

    def __init__(self, after: nn.Module) -> None:
        super().__init__()
        self.norm, self.after = nn.BatchNorm2d(4), after

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        y += x
        out: Tensor = self.after(y)
        return out.mul_(2.0)


@pytest.mark.parametrize(
    "after", [nn.SiLU(inplace=True), nn.Hardswish(inplace=True), nn.Dropout(0.0, inplace=True)]
)
def test_what_follows_may_work_in_place(after: nn.Module, uncompiled: None) -> None:
    torch.manual_seed(0)
    assert_the_same(InPlace(after), images(3, 4, 6, 5))
    assert_the_same(nn.Sequential(nn.BatchNorm2d(4), after), images(3, 4, 6, 5))


def norms() -> list[nn.Module]:
    batch_alone, uncounted = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    batch_alone.running_mean = batch_alone.running_var = None
    uncounted.num_batches_tracked = None
    unbiased = nn.BatchNorm2d(4)
    unbiased.bias = None  # type: ignore[assignment]
    return [batch_alone, uncounted, unbiased]


@pytest.mark.parametrize("norm", norms())
def test_norms_that_lack_something(norm: nn.Module, uncompiled: None) -> None:
    assert_the_same(nn.Sequential(norm, nn.ReLU()), images(3, 4, 6, 5))


@pytest.mark.parametrize(
    "module", [nn.Conv2d(4, 4, 5, groups=4), nn.BatchNorm2d(4), block(nn.ReLU())]
)
def test_keyword_arguments(module: nn.Module, uncompiled: None) -> None:
    undo = speed_up(list(module.modules()), depthwise_strips=True, fused_batch_norm=True)
    x = images(3, 4, 6, 5)
    fast_one = module(input=x)
    undo()
    torch.testing.assert_close(fast_one, module(input=x))


# --- what it leaves alone ---


class Own(nn.Sequential):
    """Its parts in an order of its own: the activation is not always after the normalisation."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self[1](x) if float(x.detach().sum()) > 0 else self[0](x)
        return out


def test_a_sequence_with_a_forward_of_its_own_decides_itself(uncompiled: None) -> None:
    own = Own(nn.BatchNorm2d(4), nn.ReLU())
    assert_the_same(own, images(2, 4, 5, 5).abs())
    assert_the_same(own, -images(2, 4, 5, 5).abs())


def test_hooks_are_heard(uncompiled: None) -> None:
    layer, heard = nn.Sequential(*block(nn.ReLU()), nn.Conv2d(6, 6, 5, groups=6)), []
    speed_up(layer.modules(), depthwise_strips=True, fused_batch_norm=True)
    for module in layer:
        module.register_forward_hook(lambda m, _, out: heard.append((type(m).__name__, out.min())))
    layer(images(2, 4, 7, 7))
    names = [name for name, _ in heard]
    assert names == ["Conv2d", "BatchNorm2d", "ReLU", "Dropout", "Conv2d"]
    assert heard[1][1] < 0  # before the activation


def test_hooks_on_every_module_are_heard(uncompiled: None) -> None:
    layer, heard = block(nn.ReLU()), []
    speed_up(layer.modules(), depthwise_strips=True, fused_batch_norm=True)
    remove = nn.modules.module.register_module_forward_hook(lambda m, *_: heard.append(m))
    layer(images(2, 4, 7, 7))
    remove.remove()
    assert heard == [*layer, layer]


def test_copies_pickles_and_states_are_plain(uncompiled: None) -> None:
    layer = nn.Sequential(block(nn.ReLU()), nn.Conv2d(6, 6, 5, groups=6))
    keys = list(layer.state_dict())
    undo = speed_up(layer.modules(), depthwise_strips=True, fused_batch_norm=True)
    assert [fast(m) for m in layer] == [True, True]
    stored = io.BytesIO()
    torch.save(layer, stored)
    stored.seek(0)
    for other in (copy.deepcopy(layer), torch.load(stored, weights_only=False)):
        assert not any(map(fast, other.modules()))
    assert list(layer.state_dict()) == keys
    undo()
    assert not any(map(fast, layer.modules()))


def fast(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None


def test_a_kernel_that_cannot_be_built_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, uncompiled: None
) -> None:
    def broken(kernel: Any, **_: Any) -> Any:
        def call(*_: Any) -> Any:
            raise RuntimeError("no C++ compiler\nand a long story")

        return call

    monkeypatch.setattr(normalise, "_compiled", broken)
    with pytest.raises(
        ConfigError, match=r"fused_batch_norm is true.*\(no C\+\+ compiler\); install"
    ):
        speed_up([nn.BatchNorm2d(3)], depthwise_strips=False, fused_batch_norm=True)


# --- in a search ---


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def candidate(kernel: int) -> nn.Module:
            depthwise = nn.Conv2d(8, 8, kernel, padding=kernel // 2, groups=8, bias=False)
            project = nn.Conv2d(8, 4, 1, bias=False)
            return nn.Sequential(
                *(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU6()),
                *(depthwise, nn.BatchNorm2d(8), nn.ReLU6()),
                *(project, nn.BatchNorm2d(4)),
            )

        self.stem = nn.Conv2d(3, 4, 1)
        self.first = MixedOp({"3": candidate(3), "7": candidate(7)})
        self.second = MixedOp({"3": candidate(3), "5": candidate(5)})
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = y + self.first(y)
        out: Tensor = self.head((y + self.second(y)).mean((2, 3)))
        return out


def make(machine: Machine) -> Search:
    return image_search(Net, machine)


PLAIN = Machine(channels_last=True)
FAST = Machine(channels_last=True, depthwise_strips=True, fused_batch_norm=True)


@pytest.mark.slow
@compiler
def test_a_search_learns_the_same() -> None:
    """Compiled, by weights, running statistics and α; the model is the user's again afterwards."""
    plain, quick = make(PLAIN), make(FAST)
    seen = []
    for job in (plain, quick):
        run_loop(
            job,
            callbacks=[After(job, lambda job: seen.append(any(map(fast, job.model.modules()))))],
        )
    assert seen == [False] * 18 + [True] * 18
    assert not any(map(fast, quick.model.modules()))
    torch.testing.assert_close(plain.supernet.alpha, quick.supernet.alpha, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        dict(plain.model.state_dict()), dict(quick.model.state_dict()), rtol=1e-3, atol=1e-4
    )


@pytest.mark.slow
@compiler
def test_kernels_serve_every_shape_without_another_compilation() -> None:
    """What a run computes first decides nothing: it could not be repeated from the middle."""
    torch._dynamo.reset()
    normalise.kernels.cache_clear()
    layer = block(nn.ReLU6(), channels=24)
    layer[0] = nn.Identity()
    undo = speed_up(layer.modules(), depthwise_strips=False, fused_batch_norm=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in [(2, 24, 3, 2), (9, 24, 5, 7), (1, 24, 40, 40), (64, 24, 90, 8)]:
            outcome(layer, images(*shape))
            with torch.no_grad():
                layer(images(*shape))
    undo()
    assert_the_same(layer, images(33, 24, 19, 21))
    threads = torch.get_num_threads()
    for change, back in [
        (lambda: torch.set_num_threads(3 - threads % 2), lambda: torch.set_num_threads(threads)),
        (torch.compiler.reset, lambda: None),
        (lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(CHOSEN)),
    ]:
        change()
        try:
            undo = speed_up(
                layer.modules(), depthwise_strips=False, fused_batch_norm=True
            )  # compiles again
            with torch._dynamo.config.patch(error_on_recompile=True):
                outcome(layer, images(2, 24, 6, 5).float())
            undo()
        finally:
            back()


def test_an_architecture_step_changes_no_weight_and_no_statistic(uncompiled: None) -> None:
    job = make(FAST)
    job.model.train()
    job.prepare()
    job.weight_step()
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    alpha = job.supernet.alpha.detach().clone()
    job.architecture_step()
    for name, value in job.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(job.supernet.alpha, alpha)


def test_a_search_goes_on_to_the_last_bit(uncompiled: None) -> None:
    whole, half, rest = make(FAST), make(FAST), make(FAST)
    run_loop(whole)
    kept: list[Any] = []

    def keep(job: Search) -> None:
        if job.step == 9:
            kept.append(copy.deepcopy(job.state()))

    run_loop(half, callbacks=[After(half, keep)])
    rest.load(*kept[0])
    run_loop(rest)
    assert torch.equal(whole.supernet.alpha, rest.supernet.alpha)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name]), name


# --- when it is chosen ---


class Steps:
    """Weight steps of set lengths: eager, with strips, with fused layers."""

    def __init__(self, eager: float, strips: float, fused: float, *, fails: bool = False) -> None:
        self.eager, self.strips, self.fused, self.fails = eager, strips, fused, fails
        self.tried: set[tuple[bool | None, bool | None]] = set()
        self.clock = Clock()

    def __call__(self, on: MachineSettings) -> Any:
        self.tried.add((on.depthwise_strips, on.fused_batch_norm))

        def prepare() -> None:
            if on.fused_batch_norm and self.fails:
                raise ConfigError("no compiler")

        def step() -> None:
            strips = self.strips if on.depthwise_strips else self.eager
            self.clock.sleep(self.fused if on.fused_batch_norm else strips)

        return SimpleNamespace(step=0, weight_step=step, prepare=prepare)


OPEN = MachineSettings(device="cpu", memory_format="channels_last", autocast=False, compile=False)


@pytest.mark.parametrize(
    ("probe", "seconds", "chosen"),
    [
        (Steps(0.02, 0.01, 0.002), WORTH_FUSING, (True, True)),
        (Steps(0.01, 0.02, 0.002), WORTH_FUSING, (False, True)),
        (Steps(0.02, 0.01, 0.03), WORTH_FUSING, (True, False)),
        (Steps(0.02, 0.01, 0.002, fails=True), WORTH_FUSING, (True, False)),
        (Steps(0.02, 0.01, 0.002), WORTH_FUSING - 1, (True, False)),
        (Steps(0.02, 0.01, 0.002), WORTH_SPLITTING - 1, (False, False)),
    ],
)
def test_what_is_faster_is_chosen_where_the_search_is_long_enough(
    probe: Steps, seconds: float, chosen: tuple[bool, bool]
) -> None:
    found = layers(OPEN, probe, lasts=lambda _: seconds, clock=probe.clock)
    assert (found.depthwise_strips, found.fused_batch_norm) == chosen


def test_what_is_set_by_hand_is_not_tried() -> None:
    never = Steps(0.0, 0.0, 0.0)
    settings = MachineSettings(device="cpu", depthwise_strips=True, fused_batch_norm=False)
    assert layers(settings, never, lasts=lambda _: 1e9) == settings
    assert not never.tried


@pytest.mark.parametrize(
    ("given", "device", "model", "found"),
    [
        ({}, "cpu", Net(), (None, None)),
        ({}, "cuda", Net(), (False, False)),
        ({"fused_batch_norm": True}, "cpu", Net(), (None, True)),
        ({"memory_format": "contiguous"}, "cpu", Net(), (None, False)),
        ({"autocast": True}, "cpu", Net(), (False, False)),
        ({"compile": True}, "cpu", Net(), (False, False)),
        ({}, "cpu", nn.Sequential(MixedOp([nn.Linear(2, 2)])), (False, False)),
    ],
)
def test_what_has_nothing_to_work_on_is_off(
    given: dict[str, Any], device: str, model: nn.Module, found: tuple[bool | None, bool | None]
) -> None:
    settings = _explicit(MachineSettings(**given), torch.device(device), Supernet(model))
    assert (settings.depthwise_strips, settings.fused_batch_norm) == found


def test_fused_is_channels_last() -> None:
    with pytest.raises(ConfigError, match="is true, but memory_format is contiguous"):
        MachineSettings(fused_batch_norm=True, memory_format="contiguous")
    settings = MachineSettings(fused_batch_norm=True)
    assert make_machine(settings).channels_last
    assert [m.memory_format for m in variants_of(settings)] == ["channels_last"]


def test_trials_do_not_compile_candidates() -> None:
    seen = []

    def probe(on: MachineSettings) -> Any:
        seen.append(on.compile)
        return SimpleNamespace(step=0, weight_step=lambda: None, prepare=lambda: None)

    settings = MachineSettings(device="cpu", compile=True)
    assert layers(quickest(settings, probe, rounds=1), probe, lasts=lambda _: 1e9).compile is True
    assert seen and not any(seen)


@pytest.mark.parametrize("switch", ["depthwise_strips", "fused_batch_norm"])
def test_on_a_gpu_it_is_refused(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settings = MachineSettings(device="cuda", **{switch: True})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"machine\.{switch} is true.*CPUs alone.*cuda"):
        make_machine(settings)
