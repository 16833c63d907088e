"""torch's attention with its layers as modules, so that heads can be taken out.

`nn.MultiheadAttention` has heads of as many numbers as its input has, divided by their number, and
fused kernels read its weights directly. `Attention` computes the same, of any number of heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.prune import remove as remove_mask
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


class Attention(nn.Module):
    """What an `nn.MultiheadAttention` computes, called like it; plain PyTorch.

    Args:
        attention: whose parameters it takes over.
    """

    in_proj_bias = None  # without one, and so, torch's layers and encoders do not look for weights
    _qkv_same_embed_dim = False
    q_proj: nn.Linear  # and so on, where keys and values have widths of their own; else `in_proj`
    k_proj: nn.Linear
    v_proj: nn.Linear

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.batch_first, self.dropout = attention.batch_first, attention.dropout
        self.num_heads = attention.num_heads
        bias = attention.in_proj_bias
        if attention.in_proj_weight is not None:
            self.in_proj = _layer(attention.in_proj_weight, bias)
        else:
            weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
            biases = (None, None, None) if bias is None else bias.detach().chunk(3)
            for name, weight, part in zip("qkv", weights, biases, strict=True):
                self.add_module(f"{name}_proj", _layer(weight, part))
        self.out_proj = _layer(attention.out_proj.weight, attention.out_proj.bias)
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As of `nn.MultiheadAttention`."""
        is_batch, swapped = query.dim() == 3, query.dim() == 3 and not self.batch_first
        q, k, v = (
            self._heads(x if is_batch else x[None])
            for x in self._projected(query, key, value, swapped)
        )
        mask = self._mask(q, key_padding_mask, attn_mask)
        weights = None
        p = self.dropout if self.training else 0.0
        if need_weights:
            scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), p)
            out = weights @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not is_batch:
            return out[0], None if weights is None else weights[0]
        return out.transpose(0, 1) if swapped else out, weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, swapped: bool) -> list[Tensor]:
        layer: Any = getattr(self, "in_proj", None)
        if layer is None:
            parts = [self.q_proj(query), self.k_proj(key), self.v_proj(value)]
        elif query is key and key is value:
            parts = list(layer(query).chunk(3, -1))
        else:
            weights, bias = layer.weight.chunk(3), layer.bias
            biases = (None, None, None) if bias is None else bias.chunk(3)
            each = zip((query, key, value), weights, biases, strict=True)
            parts = [F.linear(*one) for one in each]
        return [x.transpose(0, 1) for x in parts] if swapped else parts

    def _heads(self, x: Tensor) -> Tensor:
        """[batch, places, channels] as [batch, heads, places, numbers]."""
        batch, places, channels = x.shape
        return x.reshape(batch, places, self.num_heads, channels // self.num_heads).transpose(1, 2)

    def _mask(self, q: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """What is added to scores [batch, heads, places, places]."""
        masks = []
        if mask is not None:
            of_heads = mask.dim() == 3
            mask = mask.view(q.shape[0], q.shape[1], *mask.shape[1:]) if of_heads else mask
            masks.append(mask)
        if padding is not None:
            masks.append(padding.view(q.shape[0], 1, 1, -1))
        added = [
            torch.zeros_like(m, dtype=q.dtype).masked_fill(m, -torch.inf)
            if m.dtype == torch.bool
            else m
            for m in masks
        ]
        return sum(added[1:], start=added[0]) if added else None


def _layer(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with these parameters."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    if bias is not None:
        layer.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias)
    return layer


def opened(model: nn.Module) -> nn.Module:
    """The model, its attentions replaced by `Attention` where they can be, its weights plain.

    Not those with keys and values of their own (`add_bias_kv`, `add_zero_attn`). A weight that is
    computed, as by `weight_norm` or a mask, is what it is in evaluation mode from here on.
    """
    model.eval()
    for path, module in list(model.named_modules()):
        _take_parametrisations_off(module)
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        if type(module) is nn.MultiheadAttention and path:
            if module.bias_k is None and not module.add_zero_attn:
                model.set_submodule(path, Attention(module))
    return model


def _take_parametrisations_off(module: nn.Module) -> None:
    """As torch's own function, which takes them from a class that all copies of a model share."""
    names = [*getattr(module, "parametrizations", ())]
    tensors = {name: getattr(module, name).detach() for name in names}
    if names:
        module.__class__ = type_before_parametrizations(module)
        del module.parametrizations
    for name, tensor in tensors.items():
        setattr(module, name, nn.Parameter(tensor))
    for hook in list(module._forward_pre_hooks.values()):  # as torch had it before
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
        elif isinstance(hook, BasePruningMethod):
            remove_mask(module, hook._tensor_name)  # type: ignore[no-untyped-call]
