"""The authors' networks once more, independently of ours: their config as a function.

Plain functional code on their JSON and a state dict under their keys, written from
docs/paper.md ("Spaces", "The authors' files") alone, to compare with. Nothing of
`proxylessnas` is imported here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

NAMES = ("cpu", "gpu", "mobile", "mobile_14", "cifar")
Config = dict[str, Any]
State = dict[str, Tensor]


def data_folder() -> Path:
    if "PROXYLESSNAS_DATA" not in os.environ:
        pytest.skip("PROXYLESSNAS_DATA is not set: the published files are not here")
    return Path(os.environ["PROXYLESSNAS_DATA"]) / "published"


def config_path(name: str) -> Path:
    return data_folder() / f"proxyless_{name}.config"


def load_config(name: str) -> Config:
    config: Config = json.loads(config_path(name).read_text())
    return config


class Reference:
    """config, state: the authors'. training: BN with the statistics of the batch.

    With `state=None` the forward pass makes up weights for every key it meets, so the keys
    and shapes are the reference's own too.
    """

    def __init__(self, config: Config, state: State | None = None, seed: int = 0) -> None:
        self.config, self.making = config, state is None
        self.state: State = {} if state is None else state
        self.training = False
        self.eps = config.get("bn", {}).get("eps", 1e-5)
        self.random = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        if self.config["name"] == "ProxylessNASNets":
            return self.imagenet(x)
        for i, block in enumerate(self.config["blocks"]):
            x = self.tree_block(f"blocks.{i}", block, x)
        return self.linear("classifier.linear", self.config["classifier"], x.flatten(1))

    def imagenet(self, x: Tensor) -> Tensor:
        x = self.layer("first_conv", self.config["first_conv"], x)
        for i, block in enumerate(self.config["blocks"]):
            c = block["mobile_inverted_conv"]
            if c["name"] == "ZeroLayer":
                continue
            y = self.inverted(f"blocks.{i}.mobile_inverted_conv", c, x)
            x = x + y if block["shortcut"] else y
        x = self.layer("feature_mix_layer", self.config["feature_mix_layer"], x)
        return self.linear("classifier.linear", self.config["classifier"], x.mean((2, 3)))

    def inverted(self, key: str, c: Config, x: Tensor) -> Tensor:
        wide = c["in_channels"] * c["expand_ratio"]
        if c["expand_ratio"] != 1:
            x = self.conv(f"{key}.inverted_bottleneck.conv", x, wide, 1)
            x = F.relu6(self.bn(f"{key}.inverted_bottleneck.bn", x))
        x = self.conv(f"{key}.depth_conv.conv", x, wide, c["kernel_size"], c["stride"], groups=wide)
        x = F.relu6(self.bn(f"{key}.depth_conv.bn", x))
        x = self.conv(f"{key}.point_linear.conv", x, c["out_channels"], 1)
        return self.bn(f"{key}.point_linear.bn", x)

    def tree_block(self, key: str, block: Config, x: Tensor) -> Tensor:
        if block["name"] == "TransitionBlock":
            for j, layer in enumerate(block["layers"]):
                x = self.layer(f"{key}.layers.{j}", layer, x)
            return x
        own = self.layer(f"{key}.shortcut", block["shortcut"], x)
        y = self.layer(f"{key}.in_bottle", block["in_bottle"], x)
        y = self.node(f"{key}.cell", block["cell"], y)
        y = self.bn(f"{key}.final_bn", self.layer(f"{key}.out_bottle", block["out_bottle"], y))
        y = y * (1 - block["cell_drop_rate"])
        missing = own.new_zeros(len(own), y.shape[1] - own.shape[1], *own.shape[2:])
        return torch.cat([own, missing], 1) + y

    def node(self, key: str, node: Config, x: Tensor) -> Tensor:
        n = len(node["edges"])
        inputs = x.chunk(n, 1) if node["split_type"] == "split" else [x] * n
        total = torch.zeros(())
        for j in range(n):
            edge, child = node["edges"][j], node["child_nodes"][j]
            e = y = self.layer(f"{key}.edges.{j}", edge, inputs[j])
            if child is not None:
                y = self.node(f"{key}.child_nodes.{j}", child, e)
            if node["has_branch_bn"]:
                y = self.bn(f"{key}.branch_bns.{j}", y) + e
            total = total + y * (1 - node["path_drop_rate"])
        return total

    def layer(self, key: str, c: Config, x: Tensor) -> Tensor:
        for op in c["ops_order"].split("_"):
            if op == "weight":
                x = self.weight(key, c, x)
            elif op == "bn" and c["use_bn"]:
                x = self.bn(f"{key}.bn", x)
            elif op == "act" and c["act_func"]:
                x = F.relu6(x) if c["act_func"] == "relu6" else F.relu(x)
        return x

    def weight(self, key: str, c: Config, x: Tensor) -> Tensor:
        if c["name"] == "IdentityLayer":
            return x
        k, stride, out = c["kernel_size"], c["stride"], c["out_channels"]
        if c["name"] == "PoolingLayer":
            pad = k // 2 if stride == 1 else 0
            if c["pool_type"] == "max":
                return F.max_pool2d(x, k, stride, pad)
            return F.avg_pool2d(x, k, stride, pad, count_include_pad=False)
        if c["name"] == "DepthConvLayer":
            wide, dilation = x.shape[1], c["dilation"]
            x = self.conv(f"{key}.depth_conv", x, wide, k, stride, groups=wide, dilation=dilation)
            return self.conv(f"{key}.point_conv", x, out, 1)
        x = self.conv(f"{key}.conv", x, out, k, stride, groups=c["groups"])
        if c["has_shuffle"]:
            n, channels, h, w = x.shape
            x = x.view(n, c["groups"], channels // c["groups"], h, w)
            x = x.transpose(1, 2).reshape(n, channels, h, w)
        return x

    # --- what has weights ---

    def make(self, key: str, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        if self.making:
            self.state[key] = shift + scale * torch.randn(shape, generator=self.random)
        return self.state[key]

    def conv(
        self,
        key: str,
        x: Tensor,
        out: int,
        k: int,
        stride: int = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
    ) -> Tensor:
        fan_in = x.shape[1] // groups
        scale = (fan_in * k * k) ** -0.5
        weight = self.make(f"{key}.weight", out, fan_in, k, k, scale=scale)
        return F.conv2d(x, weight, None, stride, dilation * (k // 2), dilation, groups)

    def bn(self, key: str, x: Tensor) -> Tensor:
        n = x.shape[1]
        weight = self.make(f"{key}.weight", n, scale=0.2, shift=1.0)
        bias = self.make(f"{key}.bias", n, scale=0.2)
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        if self.making:  # statistics near the batch's, as a trained network has
            noise = torch.rand(n, generator=self.random) - 0.5
            self.state[f"{key}.running_mean"] = mean + noise * var.sqrt() / 5
            self.state[f"{key}.running_var"] = var * (1 + noise / 2) + 1e-3
            self.state[f"{key}.num_batches_tracked"] = torch.tensor(7)
        running = self.state[f"{key}.running_mean"], self.state[f"{key}.running_var"]
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        else:
            mean, var = running
        scale = weight / (var + self.eps).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]

    def linear(self, key: str, c: Config, x: Tensor) -> Tensor:
        scale = c["in_features"] ** -0.5
        weight = self.make(f"{key}.weight", c["out_features"], c["in_features"], scale=scale)
        return F.linear(x, weight, self.make(f"{key}.bias", c["out_features"], scale=0.1))


def make_state(config: Config, size: int, seed: int = 0) -> State:
    """Weights under the authors' keys for every layer of `config`."""
    reference = Reference(config, seed=seed)
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        reference(x)
    return reference.state
