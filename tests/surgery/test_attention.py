"""torch's attention with its layers as modules: the same numbers, and fewer heads."""

from __future__ import annotations

import copy
from contextlib import closing
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from proxylessnas.hardware.runtimes import make
from proxylessnas.surgery.attention import Attention, opened
from proxylessnas.surgery.finding import find_pairs
from proxylessnas.surgery.graph import Graph
from proxylessnas.surgery.narrow import Narrowed, narrowed
from proxylessnas.surgery.proof import outputs, proven

BATCH, PLACES, OTHERS, WIDE = 3, 5, 7, 12


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 8, "vdim": 6}])
@pytest.mark.parametrize("inputs", ["self", "cross", "unbatched"])
@pytest.mark.parametrize("masks", ["none", "padding", "causal", "of heads"])
def test_it_computes_what_torchs_does(
    batch_first: bool, options: dict[str, Any], inputs: str, masks: str
) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(WIDE, 4, batch_first=batch_first, **options).eval()
    if theirs.in_proj_bias is not None:
        nn.init.normal_(theirs.in_proj_bias)
    ours = Attention(copy.deepcopy(theirs))
    batch = () if inputs == "unbatched" else (BATCH,)
    kdim, vdim = options.get("kdim", WIDE), options.get("vdim", WIDE)
    query = torch.randn(*batch, PLACES, WIDE)
    same = inputs == "self" and kdim == WIDE
    key, value = (torch.randn(*batch, OTHERS, d) for d in (kdim, vdim))
    length = PLACES if same else OTHERS
    given: dict[str, Any] = {}
    if masks == "padding":
        given["key_padding_mask"] = torch.arange(length).expand(*batch, length) > 3
    elif masks == "causal":
        given["attn_mask"] = torch.randn(PLACES, length)
    elif masks == "of heads":
        given["attn_mask"] = torch.rand(4 * (BATCH if batch else 1), PLACES, length) > 0.9
    if batch and not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    args = (query, query, query) if same else (query, key, value)
    for need_weights in (True, False):
        expected = theirs(*args, need_weights=need_weights, **given)
        actual = ours(*args, need_weights=need_weights, **given)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def models() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(24, 4, 32, norm_first=True, batch_first=True)
    vit = VisionTransformer(16, 4, 2, 4, 24, 32, num_classes=3)
    nn.init.normal_(vit.heads.head.weight)
    return {
        "encoder": (
            nn.Sequential(
                nn.Linear(6, 24),
                nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
                nn.Linear(24, 3),
            ),
            torch.randn(2, 5, 6),
        ),
        "vision transformer": (vit, torch.randn(2, 3, 16, 16)),
    }


@pytest.mark.parametrize("name", models())
def test_heads_and_the_stream_are_narrowed(name: str) -> None:
    model, x = models()[name]
    model.eval()
    (before,) = outputs(model, (x,))
    model = opened(model)
    torch.testing.assert_close(outputs(model, (x,))[0], before, atol=1e-5, rtol=1e-5)
    pairs, refused = find_pairs(model, Graph(model, (x,)))
    assert proven(model, pairs, (x,)) == (pairs, [])
    heads = [pair for pair in pairs if pair.name.endswith("in_proj")]
    assert [(pair.width, pair.unit) for pair in heads] == [(4, 18)] * 2
    assert len(pairs) == 5  # with the stream, and two hidden layers
    assert len(refused) == 1  # the last
    cuts = [(pair, Narrowed(torch.arange(pair.width // 2), {})) for pair in pairs]
    small = narrowed(model, cuts).eval()
    with torch.no_grad():
        assert small(x).shape == before.shape
    assert all(m.num_heads == 2 for m in small.modules() if isinstance(m, Attention))
    with (
        torch.no_grad(),
        closing(make("onnxruntime").load(small, (x,))) as session,
    ):  # its export runs
        assert session.timed(1) > 0
