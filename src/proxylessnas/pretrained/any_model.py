"""Names to models of any kind.

    timm:NAME, torchvision:NAME    with the library's trained weights, a file's, or random ones
    module:factory                 a function of one's own, without arguments, to a model

No code of a file of weights is run: it is read as tensors and nothing else. A factory is code that
the user names.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from proxylessnas.architecture import InputInfo
from proxylessnas.errors import ConfigError, did_you_mean, in_words, one_line
from proxylessnas.io.importing import imported, optional
from proxylessnas.pretrained.loading import IMAGENET_MEAN, IMAGENET_STD, NEEDED_BY, tensors_of
from proxylessnas.zoo.weights import copy_weights, read_weights

LIBRARIES = ("timm", "torchvision")
RANDOM = "none"  # weights
FALLBACK = InputInfo(shape=(3, 224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A model as it came.

    input: the input that it was trained for, as far as that is known. weights: what they are, in
    words. is_trained: whether they are not random, as far as that is known.
    """

    model: nn.Module
    input: InputInfo
    name: str
    weights: str
    is_trained: bool


def load_model(name: str, weights: str | None = None) -> Loaded:
    """A model by its name.

    weights: a file of them, `none` for random ones; None: the library's, or the factory's.

    Raises:
        ConfigError: there is no such model; the nearest are named. Or its weights cannot be had.
        MissingDependency: a package is not installed.
        ArchitectureError: the file cannot be read, or is of another model; the first keys that
            differ are named.
    """
    library, colon, rest = name.partition(":")
    if not colon or not rest:
        raise ConfigError(
            f"there is no model {name!r}: write timm:{name or 'resnet18'}, "
            f"torchvision:{name or 'resnet18'}, or module:factory for your own"
        )
    state = None if weights in (None, RANDOM) else read_weights(Path(weights or ""))
    if library not in LIBRARIES:
        return _own(name, weights, state)
    make, info = (_timm if library == "timm" else _torchvision)(rest, name)
    if weights is None:
        try:
            with _without_notes():
                model = make(True).eval()
            return Loaded(model=model, input=info, name=name, weights="trained", is_trained=True)
        except Exception as error:  # of the library's own download, of whatever kind
            raise ConfigError(
                f"the weights of {name} cannot be downloaded ({one_line(error)}); give a file of "
                "them, --weights FILE, or --weights none for random ones"
            ) from None
    with _without_notes():
        model = make(False)
    if state is not None:
        bare = _bare(state, model)
        classes = _classes(model, bare)
        model = model if classes is None else make(False, num_classes=classes)
        copy_weights(bare, tensors_of(model), str(weights))
    words = "random" if state is None else f"of {weights}"
    return Loaded(
        model=model.eval(), input=info, name=name, weights=words, is_trained=state is not None
    )


@contextmanager
def _without_notes() -> Iterator[None]:
    """Libraries' warnings and log lines say nothing to a user of ours; bars of downloads stay."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


Make = Callable[..., nn.Module]  # (with the library's weights or not, **options)


def _timm(model: str, name: str) -> tuple[Make, InputInfo]:
    timm = optional("timm", "timm", NEEDED_BY.format(name))
    _known(model.partition(".")[0], timm.list_models(), name, f"timm {timm.__version__}")
    facts: Any = getattr(timm.get_pretrained_cfg(model), "__dict__", {})
    info = InputInfo(
        shape=tuple(facts.get("input_size") or FALLBACK.shape),
        mean=tuple(facts.get("mean") or IMAGENET_MEAN),
        std=tuple(facts.get("std") or IMAGENET_STD),
    )
    return lambda trained, **more: timm.create_model(model, pretrained=trained, **more), info


def _torchvision(model: str, name: str) -> tuple[Make, InputInfo]:
    models = optional("torchvision.models", "torchvision", NEEDED_BY.format(name))
    _known(model, models.list_models(module=models), name, "torchvision")
    trained_weights = models.get_model_weights(model)
    info = FALLBACK
    if len(trained_weights):
        preset = trained_weights.DEFAULT.transforms()
        size = getattr(preset, "crop_size", None) or [224]
        info = replace(
            FALLBACK,
            shape=(3, size[0], size[0]),
            mean=tuple(getattr(preset, "mean", IMAGENET_MEAN)),
            std=tuple(getattr(preset, "std", IMAGENET_STD)),
        )

    def make(trained: bool, **more: Any) -> nn.Module:
        made: nn.Module = models.get_model(model, weights="DEFAULT" if trained else None, **more)
        return made

    return make, info


def _own(name: str, weights: str | None, state: Mapping[str, Tensor] | None) -> Loaded:
    factory = imported(name, "the model")
    try:
        model = factory()
    except Exception as error:  # whatever the user's function does
        raise ConfigError(
            f"{name} cannot be called without arguments: {in_words(error)}; give a function that "
            "returns the model, as lambda: Net(10)"
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name} returned {type(model).__name__}, not a torch module")
    if state is not None:
        copy_weights(_bare(state, model), tensors_of(model), str(weights))
    facts: Any = getattr(model, "pretrained_cfg", None) or {}
    info = replace(
        FALLBACK,
        mean=tuple(facts.get("mean", IMAGENET_MEAN)),
        std=tuple(facts.get("std", IMAGENET_STD)),
    )
    conv = first_convolution(model)
    if "mean" not in facts and (conv is None or conv.in_channels != len(info.mean)):
        info = plain_input(0 if conv is None else conv.in_channels)
    words = f"as {name} returns them" if state is None else f"of {weights}"
    return Loaded(
        model=model.cpu().eval(),
        input=info,
        name=name,
        weights="random" if weights == RANDOM else words,
        is_trained=weights != RANDOM,
    )


def plain_input(channels: int) -> InputInfo:
    """Of a model of which nothing is known; without channels, as many as the images have."""
    shape = (channels or 1, *FALLBACK.shape[1:])
    return InputInfo(shape=shape, mean=(0.5,) * channels, std=(0.25,) * channels)


def first_convolution(model: nn.Module) -> nn.Conv2d | None:
    """By the order in which the model holds its layers."""
    return next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)


def _known(model: str, names: list[str], name: str, library: str) -> None:
    if model not in names:
        near = did_you_mean(model, names)
        words = near if len(near) < 200 else f"{library} has {len(names)}"
        raise ConfigError(f"{library} has no model {model!r} ({name}); {words}")


def _bare(state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Without the prefixes of wrappers (data parallelism, torch.compile) that were saved too."""
    while state:
        prefix = f"{next(iter(state)).partition('.')[0]}."
        own = any(key.startswith(prefix) for key in model.state_dict())
        if own or not all(key.startswith(prefix) for key in state):
            break
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _classes(model: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """The classes of a file's last layer, where only that differs from the model's."""
    tensors = tensors_of(model)
    other = [k for k in tensors if k in state and state[k].shape != tensors[k].shape]
    counts = {state[key].shape[0] for key in other if state[key].dim()}
    layers = {key.rpartition(".")[0] for key in other}
    return counts.pop() if len(counts) == 1 and len(layers) == 1 else None
