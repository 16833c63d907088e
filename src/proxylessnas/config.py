"""Every stage's settings: frozen, checked, complete. No torch here: `--help` is instant.

The fields below are the command line's options and the keys of `config.yaml`; a field's
help is its entry in the class docstring.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from jsonargparse import ArgumentParser

from proxylessnas.errors import ConfigError, did_you_mean, one_line
from proxylessnas.io.yaml_files import read_yaml
from proxylessnas.limits import all_limits

T = TypeVar("T")


def _positive(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise ConfigError(f"{name} is {value}; it must be positive")


def _at_most(settings: object, bound: float, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value <= bound:
            raise ConfigError(f"{name} is {value}; it must be at most {bound:g}")


def _not_negative(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value >= 0:
            raise ConfigError(f"{name} is {value}; it must not be negative")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How the data are read and split.

    valid_fraction: share of the training images held out for the architecture steps.
    test_fraction: share that becomes the test part where the data have none of their own.
    workers: processes that decode large sets; default: one a core. The result is the same.
    limit: read at most this many images of each part (for a quick trial).
    augment: auto, none, or crop or shift, flip, jitter and cutoutN (N pixels) joined by +.
    """

    valid_fraction: float = 0.1
    test_fraction: float = 0.2
    workers: int | None = None
    limit: int | None = None
    augment: str = "auto"

    def __post_init__(self) -> None:
        for name in ("valid_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be in (0, 1)")
        _positive(self, "limit")
        _not_negative(self, "workers")


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """How latency is measured on the device.

    threads: of the runtime. batch: images an inference.
    rounds: visits to every block. network_rounds: visits to every whole network.
    runs: timed inferences a visit. warmup: inferences before them.
    networks: whole networks measured to fit the cost model.
    validation: further networks, predicted and measured, that tell the cost model's error.
    """

    threads: int = 1
    batch: int = 1
    rounds: int = 10
    network_rounds: int = 20
    runs: int = 6
    warmup: int = 2
    networks: int = 10
    validation: int = 0

    def __post_init__(self) -> None:
        _positive(self, "threads", "batch", "rounds", "network_rounds", "runs")
        _at_most(self, 1024, "threads")
        _at_most(self, 65536, "batch")
        _not_negative(self, "warmup", "validation")
        if self.networks < 3:
            raise ConfigError(f"networks is {self.networks}; the cost model's fit needs 3 or more")


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """The two alternating steps (paper section 3.2 and appendix).

    warmup_epochs: weights alone, with uniform gates, each candidate once a shuffled round.
    epochs: weight and architecture steps in turn.
    batch_size: of the weight steps. valid_batch_size: of the architecture steps.
    learning_rate, momentum, weight_decay, label_smoothing: of the weight steps; cosine decay.
    estimator: how alpha learns.
    reinmax: two_path and full_path take what one candidate is worth more than another from the
        loss's slopes at both, not at the active one alone as published.
    arch_every: weight steps to one architecture step.
    arch_delay_epochs: epochs after the warm-up without architecture steps.
    warmup_learning_rate: of a cosine of the warm-up's own; default: one cosine over both.
    arch_learning_rate: default: so that rate x architecture steps is about 10.
    arch_beta1: Adam's first beta for alpha; 0 as published, and always 0 for two_path.
    uniform_share: share of weight steps on uniform gates after the warm-up, decaying to 0.
    objective: constraint keeps the limit; the others are the paper's and its code's.
    cost_weight: the objective's weight of the expected latency.
    multiplier_learning_rate: step of the constraint's multiplier; default: fitted to the number
        of steps.
    reinforce_samples: networks an update.
    """

    warmup_epochs: int = 4
    epochs: int = 8
    batch_size: int = 64
    valid_batch_size: int | None = None
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 4e-5
    label_smoothing: float = 0.1
    estimator: Literal["two_path", "full_path", "reinforce", "darts", "gumbel", "random"] = (
        "two_path"
    )
    reinmax: bool = False
    arch_every: int = 1
    arch_delay_epochs: int = 0
    warmup_learning_rate: float | None = None
    arch_learning_rate: float | None = None
    arch_beta1: float = 0.0
    uniform_share: float = 0.0
    objective: Literal["constraint", "linear", "mul_log", "add_linear", "reward"] = "constraint"
    cost_weight: float | None = None
    multiplier_learning_rate: float | None = None
    reinforce_samples: int = 10

    def __post_init__(self) -> None:
        _positive(self, "epochs", "batch_size", "valid_batch_size", "learning_rate", "arch_every")
        _positive(self, "warmup_learning_rate", "arch_learning_rate", "multiplier_learning_rate")
        _positive(self, "reinforce_samples")
        if self.reinmax and self.estimator not in ("two_path", "full_path"):
            raise ConfigError(
                f"reinmax is for the estimators two_path and full_path, not {self.estimator}: "
                "the others take no slope at a gate"
            )
        if not 0 <= self.arch_beta1 < 1:
            raise ConfigError(f"arch_beta1 is {self.arch_beta1}; it must be in [0, 1)")
        _not_negative(self, "warmup_epochs", "weight_decay", "cost_weight")
        if not 0 <= self.arch_delay_epochs < self.epochs:
            raise ConfigError(
                f"arch_delay_epochs is {self.arch_delay_epochs}; it must be at least 0 and less "
                f"than epochs ({self.epochs}): alpha would never learn"
            )
        _at_most(self, 1000, "learning_rate", "warmup_learning_rate", "weight_decay")
        _at_most(self, 1000, "arch_learning_rate", "multiplier_learning_rate", "cost_weight")
        for name in ("momentum", "label_smoothing", "uniform_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class DeriveSettings:
    """From alpha to one network within the limits.

    top_k: most probable networks within the limit that are scored on the validation part.
    measure_best: of those, how many of the best are measured on the device.
    rounds: corrections of the cost model by a measurement that misses the limit.
    min_limit_share: share of a latency limit that the network should take at least, where
        possible; of another limit, if it is the only one, 0.9 at most. 0 leaves it to the
        objective.
    arch_steps: architecture steps in which alpha learns on, from where the search left it, under
        a further limit, before that one's networks are decoded (objective constraint).
    recalibrate_images: training images that renew the BN statistics before a score; 0 keeps the
        statistics that the weights came with.
    score_images: validation images a score uses; default: all.
    """

    top_k: int = 10
    measure_best: int = 3
    rounds: int = 3
    min_limit_share: float = 0.98
    arch_steps: int = 200
    recalibrate_images: int = 2000
    score_images: int | None = None

    def __post_init__(self) -> None:
        _positive(self, "top_k", "measure_best", "rounds", "score_images")
        _not_negative(self, "recalibrate_images")
        if not isinstance(self.arch_steps, int) or self.arch_steps < 0:
            raise ConfigError(
                f"arch_steps is {self.arch_steps}; it must be a whole number, 0 or more"
            )
        if not 0 <= self.min_limit_share < 1:
            raise ConfigError(f"min_limit_share is {self.min_limit_share}; it must be in [0, 1)")


REGULARISERS = ("dropout", "path_drop", "cell_drop")  # of a space; they shape no weight


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Training of the derived network.

    epochs, batch_size, learning_rate, momentum, weight_decay, label_smoothing: SGD with
    Nesterov momentum and cosine decay; no weight decay on BN and biases.
    inherit: start from the supernet's weights instead of from scratch.
    augment: as loading.augment, for this training alone; default: the same.
    space_settings: of the network found: dropout, path_drop or cell_drop, as {name: value}.
    sync_batch_norm: batch normalisation over the images of all ranks; GPUs only.
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 4e-5
    label_smoothing: float = 0.1
    inherit: bool = False
    augment: str | None = None
    space_settings: dict[str, Any] = field(default_factory=dict)
    sync_batch_norm: bool = False

    def __post_init__(self) -> None:
        for name in self.space_settings:
            if name not in REGULARISERS:
                raise ConfigError(
                    f"train.space_settings has {name!r}; allowed: {', '.join(REGULARISERS)}"
                )
        _positive(self, "epochs", "batch_size", "learning_rate")
        _not_negative(self, "weight_decay")
        _at_most(self, 1000, "learning_rate", "weight_decay")
        for name in ("momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class MachineSettings:
    """How this machine computes; auto values are chosen by a short calibration and recorded.

    device: auto, cpu, cuda or cuda:N. memory_format: auto, contiguous or channels_last.
    threads: of torch while training; default: torch's own.
    autocast: bfloat16 mixed precision; default: on a GPU where it is faster, else float32.
    compile: search with candidates compiled by torch.compile, each by itself; default: on a GPU
        where a search without a budget is so long that it saves more than it takes, else not.
    depthwise_strips: depthwise convolutions with wide kernels take their weight gradient in strips;
        CPU only; default: where that is faster.
    fused_batch_norm: batch normalisation and the activation after it run as one kernel, which
        torch.compile makes in seconds; CPU and channels_last only; default: where it is
        faster and the search takes minutes.
    """

    device: str = "auto"
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    threads: int | None = None
    autocast: bool | None = None
    compile: bool | None = None
    depthwise_strips: bool | None = None
    fused_batch_norm: bool | None = None

    def __post_init__(self) -> None:
        _positive(self, "threads")
        _at_most(self, 1024, "threads")
        for name in ("autocast", "compile", "depthwise_strips", "fused_batch_norm"):
            if getattr(self, name) not in (None, True, False):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        if self.fused_batch_norm and self.memory_format == "contiguous":
            raise ConfigError(
                "fused_batch_norm is true, but memory_format is contiguous; it works in "
                "channels_last alone"
            )
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device is {self.device!r}; it must be auto, cpu, cuda or cuda:N")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: data set and device in, specialised network out.

    data: mnist5k, digits, a folder of images, a Hugging Face data set, torchvision:NAME.
    image_size: pixels; default: read from the data, 224 where sizes are mixed.
    space: mobile, macro, tree, or module:factory for your own model.
    space_settings: settings of the space, as {name: value}.
    target_latency: 12ms, 800us, or 0.6x of the space's largest network; default: no limit.
    limits: limits by the cost's name, as {macs: 600M, parameters: 4e6, peak_memory: 1.5 (MiB)}, or
        of a column of the latency table; latency is target_latency.
    runtime: what the latency is measured on: onnxruntime, torch, litert, openvino.
    table: latency table of a device that is not here, instead of measuring: one of ours, or a
        published one (mobile_trim.yaml, note10_*.yaml).
    seed: of everything random.
    budget: minutes the whole run may take, as 60m or 2h; fits the epochs once, at the start.
    baselines: also train the space's largest network and a random one of the same latency.
    """

    data: str = ""
    image_size: int | None = None
    space: str = "mobile"
    space_settings: dict[str, Any] = field(default_factory=dict)
    target_latency: str | None = None
    limits: dict[str, Any] = field(default_factory=dict)
    runtime: str = "onnxruntime"
    table: str | None = None
    seed: int = 0
    budget: str | None = None
    baselines: bool = False
    loading: DataSettings = DataSettings()
    measure: MeasureSettings = MeasureSettings()
    search: SearchSettings = SearchSettings()
    derive: DeriveSettings = DeriveSettings()
    train: TrainSettings = TrainSettings()
    machine: MachineSettings = MachineSettings()

    def __post_init__(self) -> None:
        _at_most(self, 4096, "image_size")
        _positive(self, "image_size")
        all_limits(self.limits, self.target_latency)
        if self.budget is not None:
            parse_minutes(self.budget)
        check_seed(self.seed)


# Settings that had another name: a leaf of the name -> its place now.
RENAMED = {
    "both_ends": "search.reinmax",
    "dual_rate": "search.multiplier_learning_rate",
    "use": "derive.min_limit_share",
    "split": "machine.depthwise_strips",
    "fuse": "machine.fused_batch_norm",
    "max_parameters": "limits.parameters",
    "max_macs": "limits.macs",
    "max_peak_memory": "limits.peak_memory",
}


def check_seed(seed: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed is {seed!r}; it must be a whole number in [0, 2^63)")


def parse_minutes(text: str) -> float:
    """Minutes of `60m`, `2h` or `90s`.

    Raises:
        ConfigError: another form, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*(s|m|h)\s*", text)
    if match is None or not 0 < float(match[1]) < 1e9:
        raise ConfigError(f"the budget {text!r} is not understood: write 60m or 2h")
    return float(match[1]) * {"s": 1 / 60, "m": 1.0, "h": 60.0}[match[2]]


# --- from text to settings ---


def add_options(parser: ArgumentParser, cls: type[Any], prefix: str = "") -> None:
    """An option for every field of a settings class, nested classes as --group.name."""
    hints, helps = typing.get_type_hints(cls), field_help(cls)
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            add_options(parser, typing.cast(type, hints[f.name]), f"{prefix}{f.name}.")
            continue
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        option = f"--{prefix}{f.name}".replace("_", "-")
        parser.add_argument(
            option, type=hints[f.name], default=default, help=helps.get(f.name, " ")
        )


def field_help(cls: type[Any]) -> dict[str, str]:
    """Field name -> its sentence(s) in the class docstring."""
    names = {f.name for f in dataclasses.fields(cls)}
    doc = re.sub(r"\s+", " ", cls.__doc__ or "")
    parts = re.split(r"(?:^|(?<=[.;]) )((?:\w+, )*\w+): ", doc)
    helps: dict[str, str] = {}
    for subject, text in zip(parts[1::2], parts[2::2], strict=False):
        helps |= {name: text.strip() for name in subject.split(", ") if name in names}
    return helps


def parse_settings(cls: type[T], given: Mapping[str, Any], what: str) -> T:
    """A settings class from plain values (of YAML, JSON or the command line).

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or is out of range.
    """
    _check_keys(cls, given, what, "")
    parser = ArgumentParser(exit_on_error=False, default_env=False)
    add_options(parser, cls)
    try:
        return from_namespace(cls, parser.parse_object(dict(given)).as_dict())
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None
    except Exception as error:  # the library raises its own, argparse's and Python's errors
        raise ConfigError(f"{what}: {one_line(error)}") from None


def _check_keys(cls: type[Any], given: Mapping[str, Any], what: str, prefix: str) -> None:
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    for key, value in given.items():
        if key in RENAMED and key not in names:
            group, _, name = RENAMED[key].partition(".")
            option = f" (--limit {name}=...)" if group == "limits" else ""
            raise ConfigError(f"{what}: {prefix + key} is now {RENAMED[key]}{option}")
        if key not in names:
            raise ConfigError(
                f"{what} has no setting {prefix + str(key)!r}; {did_you_mean(str(key), names)}"
            )
        if value is None and not _optional(hints[key]):
            raise ConfigError(f"{what}: {prefix + key} is empty; leave it out, or give a value")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{what}: {prefix + key} is {value!r}, not a group of settings")
            _check_keys(typing.cast(type, hints[key]), value, what, f"{prefix}{key}.")


def _optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def pick(settings: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of checked settings, the values of the keys that were given, nested alike."""
    return {
        key: pick(getattr(settings, key), value)
        if dataclasses.is_dataclass(getattr(settings, key))
        else getattr(settings, key)
        for key, value in given.items()
    }


def from_namespace(cls: type[T], values: Mapping[str, Any]) -> T:
    """Nested plain values, already of the right types, to the nested settings."""
    hints = typing.get_type_hints(cls)
    fields: dict[str, Any] = {}
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        if f.name not in values:
            continue
        value = values[f.name]
        nested = dataclasses.is_dataclass(hints[f.name])
        fields[f.name] = from_namespace(hints[f.name], value) if nested else value
    return cls(**fields)


def read_config(path: Path) -> RunConfig:
    """A complete or partial config file.

    Raises:
        ConfigError: unreadable, not YAML, or a setting is unknown or out of range.
    """
    return parse_settings(RunConfig, read_yaml(path), str(path))
