"""Models of torchvision and timm as strangers bring them, small enough for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

SIDE = 64

_VISION = torchvision.models
TORCHVISION = {
    name: (getattr(_VISION, name), {})
    for name in (
        *("resnet18", "resnet50", "resnext50_32x4d", "alexnet", "vgg11_bn", "squeezenet1_1"),
        *("densenet121", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "efficientnet_b0"),
        *("shufflenet_v2_x0_5", "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny", "swin_t"),
    )
}
TORCHVISION |= {
    "googlenet": (_VISION.googlenet, {"aux_logits": False, "init_weights": False}),
    "inception_v3": (_VISION.inception_v3, {"aux_logits": False, "init_weights": False}),
    "lraspp_mobilenet_v3": (
        _VISION.segmentation.lraspp_mobilenet_v3_large,
        {"weights_backbone": None},
    ),
    "fcn_resnet50": (_VISION.segmentation.fcn_resnet50, {"weights_backbone": None}),
    "vision_transformer": (
        _VISION.VisionTransformer,
        {
            **{"image_size": SIDE, "patch_size": 16, "num_layers": 3, "num_heads": 4},
            **{"hidden_dim": 64, "mlp_dim": 128},
        },
    ),
}
TIMM: dict[str, dict[str, Any]] = {
    "convnext_atto": {},
    "vit_tiny_patch16_224": {"img_size": SIDE, "depth": 4},
    "swin_tiny_patch4_window7_224": {"img_size": SIDE, "window_size": 4},
    "mixer_s32_224": {"img_size": SIDE},
    "poolformer_s12": {},
    "res2net50_14w_8s": {},
    "ghostnet_100": {},
    "hrnet_w18_small": {},
    "mobilenetv4_conv_small": {},
    "repvgg_a0": {},
    "efficientvit_b0": {},
    "cspdarknet53": {},
    "mobilevit_xxs": {},
    "levit_128s": {"img_size": SIDE},
    "edgenext_xx_small": {},
}
NAMES = (*TORCHVISION, *(f"timm:{name}" for name in TIMM))


def trained(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A model with lively weights in evaluation mode, and images for it."""
    torch.manual_seed(0)
    if name.startswith("timm:"):
        name = name.removeprefix("timm:")
        timm = pytest.importorskip("timm")
        model = timm.create_model(name, num_classes=10, **TIMM[name])
    else:
        make, options = TORCHVISION[name]
        model = make(num_classes=10, **options)
    side = 96 if name == "inception_v3" else SIDE
    return lively(model, (3, side, side)), torch.randn(2, 3, side, side)


def lively(model: nn.Module, image: tuple[int, ...]) -> nn.Module:
    """Random weights and statistics whose activations neither vanish nor grow.

    Fresh models leave branches out, by scales of 0 or 1e-6: what is cut there would change nothing.
    """
    for p in model.parameters():
        if p.dim() > 1 and p.shape[0] > 1:
            nn.init.kaiming_normal_(p, nonlinearity="linear")
        else:  # scales and shifts
            nn.init.uniform_(p, 0.3, 1.0)
    _norms(model, lambda norm: setattr(norm, "momentum", None))
    model.train()
    with torch.no_grad():
        model(torch.randn(4, *image))  # statistics of the model's own activations
    return model.eval()


def _norms(model: nn.Module, change: Callable[[Any], None]) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            change(module)
