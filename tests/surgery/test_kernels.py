"""A smaller kernel takes over what the rest of it made, beside whatever else is narrowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trained_model import specialised

from proxylessnas.surgery.finding import find_pairs
from proxylessnas.surgery.graph import Graph
from proxylessnas.surgery.kernels import blanks, cropped
from proxylessnas.surgery.moments import read_rows
from proxylessnas.surgery.narrow import Narrowed, narrow, narrowed
from proxylessnas.surgery.proof import outputs
from proxylessnas.surgery.saved import restored
from proxylessnas.training.copying import copied


def depthwise(kernel: int = 7) -> nn.Sequential:
    """A dense kernel of 5, and a wide kernel of each channel."""
    torch.manual_seed(0)
    same = nn.Conv2d(24, 24, kernel, padding=kernel // 2, groups=24, bias=False)
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 5, padding=2), nn.ReLU(), same, nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Conv2d(24, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(32, 2),
    ).eval()


def images(count: int = 3) -> list[Tensor]:
    """Smooth ones, of which a number tells about those beside it."""
    noise = torch.randn(count, 16, 1, 10, 10, generator=torch.Generator().manual_seed(1))
    return [nn.functional.avg_pool2d(x, 3, 1, 1) for x in noise]


def test_the_fit_is_least_squares_by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a channel is read alone, of all kernels of this size the best, with a bias."""
    monkeypatch.setattr("proxylessnas.surgery.kernels.RIDGE", 1e-9)
    model, x = depthwise(), images()
    crop = cropped(model, blanks(model, ["2"]).values(), x)["2"]
    small = depthwise()
    crop.apply(small, {})
    assert small[2].weight.shape == (24, 1, 5, 5) and small[2].padding == (2, 2)
    rows, wanted, actual = [], [], []
    with torch.no_grad():
        for batch in x:
            hidden = model[:2](batch)
            inner = nn.Conv2d(24, 1, 5, padding=2)
            rows.append(read_rows(inner, hidden, 10**6, torch.Generator()).view(-1, 24, 25))
            wanted.append(model[2](hidden).movedim(1, -1).flatten(0, -2))
            actual.append(small[2](hidden).movedim(1, -1).flatten(0, -2))
    for channel in (0, 11, 23):
        a = torch.cat(rows)[:, channel].double().numpy()
        a, y = np.c_[a, np.ones(len(a))], torch.cat(wanted)[:, channel].double().numpy()
        best = a @ np.linalg.lstsq(a, y, rcond=None)[0]
        np.testing.assert_allclose(torch.cat(actual)[:, channel].numpy(), best, atol=2e-4)


def test_what_only_the_centre_sees_stays_the_same() -> None:
    model, x = depthwise(), images()
    with torch.no_grad():
        for weight in (model[0].weight, model[2].weight):
            weight[..., 0, :] = weight[..., -1, :] = 0
            weight[..., :, 0] = weight[..., :, -1] = 0
    small = depthwise()
    small.load_state_dict(model.state_dict())
    for crop in cropped(model, blanks(model, ["0", "2"]).values(), x).values():
        crop.apply(small, {})
    assert [small[k].kernel_size for k in (0, 2)] == [(3, 3), (5, 5)]
    (actual,), (expected,) = outputs(small, (x[0],)), outputs(model, (x[0],))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_smaller_and_narrower_at_once_is_exact() -> None:
    """Cropped and then narrowed, as narrowed and then cropped; dense and depthwise, float64."""
    torch.manual_seed(0)
    model, x = depthwise().double(), images()[0].double()
    model.insert(6, nn.Conv2d(32, 32, 5, padding=4, dilation=2).double())
    pairs, _ = find_pairs(model, Graph(model, (x,)))
    cuts = [(p, Narrowed(torch.arange(0, p.width, 2 + k), {})) for k, p in enumerate(pairs)]
    crops = blanks(model, ["0", "2", "6"])
    assert set(crops) == {"0", "2", "6"}
    crops = cropped(model.float(), crops.values(), [x.float()])
    model.double()
    whole = copied(model)
    for crop in crops.values():
        crop.apply(whole, {})
    expected = narrowed(whole, cuts)
    actual = copied(model)
    remaining = narrow(actual, cuts)
    for crop in crops.values():
        crop.apply(actual, remaining)
    with torch.no_grad():
        # Biases are of the channels that remain, and nothing else differs.
        for k in (0, 2, 6):
            torch.testing.assert_close(actual[k].weight, expected[k].weight, atol=1e-12, rtol=0)
            expected[k].bias = actual[k].bias
        torch.testing.assert_close(actual(x), expected(x), atol=1e-12, rtol=0)


def test_smaller_kernels_are_chosen_and_saved(tmp_path: Path) -> None:
    x = images(4)
    data = [(batch, batch.mean((1, 2, 3)).gt(0).long()) for batch in x]
    model = depthwise()
    found = specialised(
        model,
        train=data,
        valid=data,
        example_inputs=(x[0][:1],),
        target_latency="0.85x",
        out=tmp_path / "run",
    )
    assert "2 with a smaller kernel" in found.table
    space: Any = found.around.space
    index = space.candidates[0].index("smaller_kernel")
    alone = space.network((index, *space.own[1:]))
    assert alone[2].kernel_size == (5, 5) and alone[0].kernel_size == (3, 3)
    again = restored(model, tmp_path / "run")
    assert torch.equal(again(x[0]), found.derive()(x[0]))


def test_what_cannot_be_smaller() -> None:
    layers = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.Conv2d(8, 8, 5),  # without padding the output would be larger
        nn.Conv2d(8, 8, 5, padding="same"),
        nn.Conv2d(8, 8, 4, padding=2),
        nn.Conv2d(8, 8, 5, padding=2, padding_mode="circular"),
        nn.Conv2d(8, 8, 5, padding=2, groups=2),
    )
    names = [str(k) for k in range(6)]
    assert not blanks(layers, names)


def test_a_batch_that_fails_leaves_no_hook_on_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2))
    crops = blanks(model, ["0"])
    with pytest.raises(RuntimeError):
        cropped(model, crops.values(), [torch.randn(1, 2, 8, 8)])
    assert not model[0]._forward_pre_hooks
