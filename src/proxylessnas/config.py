"""Every stage's settings: frozen, checked where they are constructed, complete. No torch here.

The fields are the command line's options and the keys of `config.yaml`; the text under a field is
the option's help and the description in the JSON Schema. A range stands in the field's type, a rule
about several fields in `__post_init__`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt

from proxylessnas import schema
from proxylessnas.errors import ConfigError, did_you_mean
from proxylessnas.limits import all_limits, parse_latency
from proxylessnas.schema import Parsed, checked

T = TypeVar("T")

# Settings that had another name -> their dotted names now.
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


HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")  # a data set: owner/name:split
REGULARISERS = ("dropout", "path_drop", "cell_drop")  # of a space; they shape no weight


# --- amounts that are written with a unit ---


def parse_minutes(text: str, what: str = "the budget") -> float:
    """Minutes of `60m`, `2h` or `90s`.

    Raises:
        ConfigError: another form, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*(s|m|h)\s*", text)
    if match is None or not 0 < float(match[1]) < 1e9:
        raise ConfigError(f"{what} {text!r} is not understood: write 60m or 2h")
    return float(match[1]) * {"s": 1 / 60, "m": 1.0, "h": 60.0}[match[2]]


def parse_bytes(text: str) -> float:
    """Bytes of `6GB` or `800MB`; GB and MB are of 1000, GiB and MiB of 1024.

    Raises:
        ConfigError: another form, or not positive.
    """
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d*)?)\s*([kmgt])(i?)b?\s*", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise ConfigError(f"the memory {text!r} is not understood: write 6GB or 800MB")
    thousand = 1024 if match[3] else 1000
    return float(match[1]) * float(thousand ** ("kmgt".index(match[2].lower()) + 1))


def parse_sizes(text: str) -> tuple[int, ...] | None:
    """Sides in pixels of `96,128,160`, the largest first; None for `auto`.

    Raises:
        ConfigError: another form, or a size is out of range.
    """
    if text.strip() == "auto":
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"\d{1,4}", word) and 1 <= int(word) <= 4096 for word in words):
        raise ConfigError(
            f"the image size {text!r} is not understood: write 128, 96,128,160 or auto"
        )
    return tuple(sorted(set(map(int, words)), reverse=True))


PRECISIONS = ("f32", "fp16", "bf16", "int8")


def parse_precisions(text: str) -> tuple[str, ...]:
    """The precisions of `int8` or `f32,int8`, in their order.

    Raises:
        ConfigError: one is unknown, or none is given.
    """
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for word in words:
        if word not in PRECISIONS:
            raise ConfigError(f"there is no precision {word!r}; {did_you_mean(word, PRECISIONS)}")
    return words


def _parse_device(text: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise ConfigError(f"the device {text!r} is not one of auto, cpu, cuda and cuda:N")


Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
Threads = Annotated[int, Ge(1), Le(1024)]
Positive = Annotated[float, Gt(0)]
Rate = Annotated[float, Gt(0), Le(1000)]
RateOrZero = Annotated[float, Ge(0), Le(1000)]
Share = Annotated[float, Ge(0), Le(1)]
ShareBelowOne = Annotated[float, Ge(0), Lt(1)]
Fraction = Annotated[float, Gt(0), Lt(1)]
Epochs = Positive
EpochsOrZero = Annotated[float, Ge(0)]
Seed = Annotated[int, Ge(0), Lt(2**63)]
Latency = Annotated[str, Parsed(parse_latency, "a latency as 12ms, 800us or 0.6x")]
Side = Annotated[int, Ge(1), Le(4096)]
Sizes = Annotated[str, Parsed(parse_sizes, "sizes as 96,128,160, or auto")]
Budget = Annotated[str, Parsed(parse_minutes, "a time as 60m or 2h")]
Memory = Annotated[str, Parsed(parse_bytes, "an amount of memory as 6GB or 800MB")]
Precision = Annotated[str, Parsed(parse_precisions, "f32, fp16, bf16 or int8")]
Device = Annotated[str, Parsed(_parse_device, "auto, cpu, cuda or cuda:N")]


# --- the stages ---


@checked(place="loading")
@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How the data are read and split."""

    valid_fraction: Fraction = 0.1
    """Share of the training images that is held out for the architecture steps."""
    test_fraction: Fraction = 0.2
    """Share of the images that becomes the test part where the data have no test part."""
    workers: CountOrZero | None = None
    """Processes that decode large data sets; null is one a core. The result is the same."""
    limit: Count | None = None
    """Most images of each part that are read, for a quick trial; null reads all."""
    image_column: str | None = None
    """Column of the images, or of their file names, in a table; null finds it by type and name."""
    label_column: str | None = None
    """Column of the labels in a table; null finds it by type and name."""
    max_pixels: Count | None = None
    """Most pixels of an image file; null takes no more than 89 million, which guards against files
    that are made to fill the memory."""
    augment: str = "auto"
    """Augmentation: auto, none, or crop or shift, flip, randaugment, randaugmentN (magnitude 1 to
    30) or trivialaugment, jitter and cutoutN (N pixels) joined by +."""


@checked(place="measure")
@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """How latency is measured on the device."""

    threads: Threads = 1
    """Threads of the runtime."""
    batch: Annotated[int, Ge(1), Le(65536)] = 1
    """Images an inference."""
    rounds: Count = 10
    """Visits to every candidate."""
    network_rounds: Count = 20
    """Visits to every whole network."""
    runs: Count = 6
    """Timed inferences a visit."""
    warmup: CountOrZero = 2
    """Inferences before the timed ones of a visit."""
    networks: Annotated[int, Ge(3)] = 10
    """Whole networks that the cost model is fitted to."""
    validation: CountOrZero = 0
    """Further networks, predicted and measured, that tell the cost model's error."""
    energy: str | None = None
    """Meter of the energy of an inference, a column energy_mj of the table: rapl, nvml, or the .csv
    that a power meter goes on writing (time, watts); null measures none."""


@checked(place="search", renamed=RENAMED)
@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """The two alternating steps (paper, section 3.2 and appendix)."""

    warmup_epochs: EpochsOrZero = 4
    """Epochs of weight steps alone, with uniform gates, each candidate once a shuffled round; parts
    of an epoch are allowed here and in all settings of epochs."""
    epochs: Epochs = 8
    """Epochs of weight and architecture steps in turn, after the warm-up."""
    batch_size: Count = 64
    """Images of a weight step."""
    valid_batch_size: Count | None = None
    """Images of an architecture step; null is as many as of a weight step."""
    learning_rate: Rate = 0.05
    """Learning rate of the weights at the start of its cosine decay."""
    momentum: Share = 0.9
    """Nesterov momentum of the weights."""
    weight_decay: RateOrZero = 4e-5
    """Weight decay of the weights; none on batch normalisation and biases."""
    label_smoothing: Share = 0.1
    """Label smoothing of the weight steps' loss."""
    estimator: Literal["two_path", "full_path", "reinforce", "darts", "gumbel", "random"] = (
        "two_path"
    )
    """How alpha's gradient is estimated; two_path is the paper's."""
    reinmax: bool = False
    """Whether two_path and full_path take the mean of the loss's slopes at both candidates, exact
    to second order, instead of the slope at the active one as published."""
    arch_every: Count = 1
    """Weight steps to one architecture step."""
    arch_delay_epochs: EpochsOrZero = 0
    """Epochs after the warm-up without architecture steps."""
    warmup_learning_rate: Rate | None = None
    """Learning rate of a cosine decay of the warm-up alone; null is one cosine over both."""
    arch_learning_rate: Rate | None = None
    """Learning rate of alpha; null is 10 over the number of architecture steps."""
    arch_beta1: ShareBelowOne = 0.0
    """Adam's first beta for alpha: 0 as published, and always 0 for two_path."""
    uniform_share: Share = 0.0
    """Share of weight steps on uniform gates after the warm-up; it decays to 0."""
    objective: Literal["constraint", "linear", "mul_log", "add_linear", "reward"] = "constraint"
    """How loss and expected cost become one objective: constraint keeps the limits, linear is the
    paper's eq. 6, mul_log and add_linear are its published code's, reward is for reinforce."""
    cost_weight: RateOrZero | None = None
    """Weight of the expected latency in the objective; null is the published one."""
    multiplier_learning_rate: Rate | None = None
    """Step of the constraint's multiplier; null fits it to the number of architecture steps."""
    reinforce_samples: Count = 10
    """Networks that one update of reinforce samples."""

    def __post_init__(self) -> None:
        if self.reinmax and self.estimator not in ("two_path", "full_path"):
            raise ConfigError(
                f"reinmax is for the estimators two_path and full_path, not {self.estimator}: "
                "the others take no slope at a gate"
            )
        if self.arch_delay_epochs >= self.epochs:
            raise ConfigError(
                f"arch_delay_epochs is {self.arch_delay_epochs:g}; it must be less than epochs "
                f"({self.epochs:g}), or alpha would never learn"
            )


@checked(place="derive", renamed=RENAMED)
@dataclass(frozen=True, kw_only=True)
class DeriveSettings:
    """From alpha to one network within the limits."""

    top_k: Count = 10
    """Networks within the limits that are scored on the validation part: half of them the most
    probable, the others those that the scores so far predict to be the best."""
    measure_best: Count = 3
    """Best-scored networks that are measured on the device."""
    rounds: Count = 3
    """Corrections of the cost model by measurements that miss the limit."""
    min_limit_share: ShareBelowOne = 0.98
    """Least share of a latency limit that the network should take where one can; 0 leaves the share
    to the scores. Of another limit, networks that take any share of it are proposed, unless 0."""
    arch_steps: CountOrZero = 200
    """Architecture steps in which alpha learns on under a further limit, from where the search left
    it, before networks within that limit are decoded (objective constraint); at most as many as
    the search took."""
    recalibrate_images: CountOrZero = 2000
    """Training images that renew the statistics of batch normalisation before a score; 0 keeps the
    statistics that the weights came with."""
    score_images: Count | None = None
    """Validation images of a score; null takes all."""


@checked(place="train")
@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Training of the derived network."""

    epochs: Epochs = 20
    """Epochs over all training images."""
    batch_size: Count = 64
    """Images of a step."""
    learning_rate: Rate = 0.05
    """Learning rate at the start of its cosine decay."""
    momentum: ShareBelowOne = 0.9
    """Nesterov momentum."""
    weight_decay: RateOrZero = 4e-5
    """Weight decay; none on batch normalisation and biases."""
    label_smoothing: ShareBelowOne = 0.1
    """Label smoothing of the loss."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser: SGD with momentum, or AdamW."""
    warmup_epochs: EpochsOrZero = 0.0
    """Epochs in which the learning rate grows from 0 in a line."""
    classifier_rate: Rate = 1.0
    """Learning rate of the last linear layer, as a multiple of the others'."""
    average_decay: ShareBelowOne = 0.0
    """Decay of a moving average of the weights, which is what training ends with; 0 takes none."""
    clip_norm: RateOrZero = 0.0
    """Norm that the gradient of all weights together is cut to where it is larger; 0 cuts none."""
    frozen_statistics: bool = False
    """Whether batch normalisation keeps its statistics, as trained weights and few images want."""
    keep_best: Literal["never", "end", "epochs"] = "never"
    """When the validation part is scored, to end with the best weights, those before the first step
    included: at the end, or after every epoch too, which suits a validation part of thousands. It
    is not trained on then."""
    patience: Count | None = None
    """Epochs without a better score that end the training, with keep_best epochs; null: none."""
    class_weights: Literal["images", "balanced"] = "images"
    """What a class counts in the loss: as its images, or as every other class."""
    mix: Literal["none", "mixup", "cutmix"] = "none"
    """Mixing of the images of a batch in pairs, labels included; needs torchvision."""
    mix_share: Rate = 0.2
    """Parameter of the Beta distribution that shares are drawn from; 1 is any share alike."""
    inherit: bool = False
    """Whether training starts from the supernet's weights instead of from scratch."""
    teacher_share: Share = 0.7
    """Share of the loss that is the distance to the teacher's outputs, where there is a teacher: in
    a run from trained weights."""
    augment: str | None = None
    """Augmentation of this training alone, as loading.augment; null is the search's."""
    space_settings: dict[str, Any] = field(default_factory=dict)
    """Regularisers of the derived network, as {dropout: 0.2}: dropout, path_drop or cell_drop."""
    sync_batch_norm: bool = False
    """Whether batch normalisation is over the images of all ranks; GPUs only."""

    def __post_init__(self) -> None:
        for name in self.space_settings:
            if name not in REGULARISERS:
                near = did_you_mean(name, REGULARISERS)
                raise ConfigError(f"space_settings has no {name!r}; {near}")
        if self.patience is not None and self.keep_best != "epochs":
            raise ConfigError("patience counts epochs without a better score: keep_best is epochs")

    @property
    def keeps_best(self) -> bool:
        """Whether the validation part chooses the weights, and so is not trained on."""
        return self.keep_best != "never"


@checked(place="teach", renamed=RENAMED)
@dataclass(frozen=True, kw_only=True)
class TeachSettings(TrainSettings):
    """Fine-tuning of a pretrained network that has its linear classifier."""

    epochs: Epochs = 6
    """Epochs over the training images without the validation part; unless it is given, as many as
    are 240 to 6,000 steps."""
    batch_size: Count = 32
    """Images of a step."""
    learning_rate: Rate = 0.001
    """Learning rate at the start of its cosine decay; unless it is given, 0.003, and less where
    there are fewer than 300 steps."""
    warmup_epochs: EpochsOrZero = 0.5
    """Epochs in which the learning rate grows from 0 in a line."""
    average_decay: ShareBelowOne = 0.99
    """Decay of a moving average of the weights, which is what training ends with; 0 takes none."""
    frozen_statistics: bool = True
    """Whether batch normalisation keeps its statistics, as trained weights and few images want."""
    keep_best: Literal["never", "end", "epochs"] = "end"
    """When the validation part is scored, to end with the best weights, those before the first step
    included: at the end, or after every epoch too, which suits a validation part of thousands."""
    augment: str | None = None
    """Augmentation of this training alone, as loading.augment; null is the search's, with shift in
    the place of crop."""


@checked(place="candidates")
@dataclass(frozen=True, kw_only=True)
class CandidateSettings:
    """How the candidates of a trained network are scored, before the search."""

    score_images: Count = 256
    """Images that candidates are scored on; a quarter of the training images at most."""
    score_rounds: CountOrZero = 2
    """Times that they are scored again in the networks which the scores choose under the limit."""
    ridge: Rate = 1e-3
    """How near what is refitted stays to the trained weights, as a share of the mean square of the
    activations; a very large one narrows by magnitude and refits nothing."""


@checked(place="quantise")
@dataclass(frozen=True, kw_only=True)
class QuantiseSettings:
    """Post-training quantisation of what ships, in the precision int8."""

    images: Count = 200
    """Training images that the ranges of activations are taken from."""
    float_blocks: CountOrZero = 0
    """Blocks that stay in float: those whose quantisation alone changes the outputs most; of
    onnxruntime and openvino."""
    aware_epochs: EpochsOrZero = 0
    """Epochs of quantisation-aware fine-tuning before the int8 file is made of the network; what
    scores higher on validation images is kept, the file with it or without."""


@checked(place="machine", renamed=RENAMED)
@dataclass(frozen=True, kw_only=True)
class MachineSettings:
    """How this machine computes; what is left open is tried at the start and recorded."""

    device: Device = "auto"
    """Device that trains."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """Memory format of images; auto takes the faster one."""
    threads: Threads | None = None
    """Threads of torch while training; null is torch's default."""
    autocast: bool | None = None
    """Whether steps compute in bfloat16 mixed precision; null: on a GPU where that is faster."""
    compile: bool | None = None
    """Whether torch.compile compiles the candidates, each by itself; null: on a GPU where a search
    without a budget is so long that compiling saves more time than it takes."""
    depthwise_strips: bool | None = None
    """Whether depthwise convolutions with wide kernels take their weight gradient in strips, CPU
    only; null: where that is faster."""
    fused_batch_norm: bool | None = None
    """Whether batch normalisation and its activation run as one kernel, which torch.compile makes
    in seconds, CPU and channels_last only; null: where that is faster in a search of minutes."""

    def __post_init__(self) -> None:
        if self.fused_batch_norm and self.memory_format == "contiguous":
            raise ConfigError(
                "fused_batch_norm is true, but memory_format is contiguous; it works in "
                "channels_last alone"
            )


@checked(renamed=RENAMED)
@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: data set and device in, specialised network out."""

    data: str = ""
    """Data set: a folder of images, a .zip of one, a .csv of file names and labels, a Hugging Face
    data set (owner/name, .parquet, save_to_disk), torchvision:NAME, mnist5k,
    digits, surfaces."""
    image_size: Side | Sizes | None = None
    """Height and width in pixels; null reads them from the data, 224 where sizes are mixed. With
    pretrained also several, as 96,128,160, or auto: the one that pays under the limit is taken."""
    pretrained: str | None = None
    """Trained network that is specialised: efficientnet_lite0, _lite1, _lite2,
    torchvision:mobilenet_v2, timm:NAME, a checkpoint or a run directory; null or none trains from
    scratch."""
    model: str | None = None
    """Model of any kind that is specialised: timm:NAME, torchvision:NAME, or module:factory for
    your own, a function without arguments; null is none."""
    weights: str | None = None
    """File of the model's weights (a state dict, .safetensors or of torch.save), or none for random
    ones; null takes the library's trained weights, or the factory's."""
    space: str = "mobile"
    """Search space: mobile, macro, cell, tree, or module:factory for your own model."""
    space_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the space, as {widths: [16, 24], depths: [2, 2]}."""
    target_latency: Latency | None = None
    """Latency limit; 0.6x is of the space's largest network, null is no limit."""
    limits: dict[str, Any] = field(default_factory=dict)
    """Limits by the cost's name, as {macs: 600M, parameters: 4e6, peak_memory: 1.5} (MiB), or of a
    column of the latency table or of costs; latency is target_latency."""
    costs: dict[str, str] = field(default_factory=dict)
    """Costs of your own, as {flash_kib: module:function}: of a candidate module and its inputs to a
    number."""
    runtime: str = "onnxruntime"
    """Runtime that the latency is measured on: onnxruntime, openvino, litert, executorch, tensorrt
    or torch."""
    precision: Precision | None = None
    """Precision that the network is measured, limited, exported and evaluated in: f32, fp16, bf16
    or int8; of measure NETWORK also several, as f32,int8. Null is the runtime's, which is f32."""
    table: str | None = None
    """Latency table of a device that is not here: one of ours, or a published one
    (mobile_trim.yaml, note10_*.yaml); null measures here."""
    device: str | None = None
    """Device that latencies are of, as pixel1: its table is looked for in the folder `tables`;
    null is this one."""
    tables: str | None = None
    """Folder of latency tables, or a URL with an index.json of their names; null is
    $PROXYLESSNAS_TABLES, or the user's own."""
    seed: Seed = 0
    """Seed of everything random."""
    budget: Budget | None = None
    """Time that the whole run may take, counted from the command; what is left fits the settings of
    every stage as it begins, and what is too short for any use is refused. Null keeps them."""
    memory: Memory | None = None
    """Most memory that training may take, as 6GB; null is what the machine or its control group has
    free. Batches are computed in parts where the result stays the same, or else refused."""
    baselines: bool = False
    """Whether the space's largest network and a random one of the same latency are trained too."""
    from_scratch: bool = False
    """Whether, beside the baselines of pretrained, the network that is found is also trained from
    fresh weights, for as long as everything up to its own training took."""
    loading: DataSettings = field(default_factory=DataSettings)
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    teach: TeachSettings = field(default_factory=TeachSettings)
    candidates: CandidateSettings = field(default_factory=CandidateSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    derive: DeriveSettings = field(default_factory=DeriveSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    quantise: QuantiseSettings = field(default_factory=QuantiseSettings)
    machine: MachineSettings = field(default_factory=MachineSettings)

    def __post_init__(self) -> None:
        all_limits(self.limits, self.target_latency)
        self._check_model()
        if isinstance(self.image_size, str) and not self.is_specialised:
            raise ConfigError(
                f"image_size is {self.image_size}: several sizes are compared with --pretrained "
                "alone; give one, as 128"
            )
        if isinstance(self.image_size, str) and self.budget is not None:
            raise ConfigError(
                f"image_size is {self.image_size}, and a budget is for one size: give one, as 128, "
                "or leave the budget out"
            )

    def _check_model(self) -> None:
        """ConfigError where settings are given that a model of any kind does not take."""
        if self.model is None:
            if self.weights is not None:
                raise ConfigError(
                    f"weights is {self.weights}, and there is no model to take them: give --model "
                    "(a checkpoint of --pretrained is written NAME@FILE)"
                )
            return
        unused = {
            "pretrained": self.pretrained not in (None, "none"),
            "table": self.table is not None,
            "costs": bool(self.costs),
            "precision": self.precision == "int8",
            "space_settings": bool(self.space_settings),
            "budget": self.budget is not None,
            "from_scratch": self.from_scratch,
            "limits": bool(set(self.limits) - {"latency"}),
            "image_size": isinstance(self.image_size, str),
        }
        for name in (name for name, given in unused.items() if given):
            value = getattr(self, name)
            raise ConfigError(
                f"{name} is {value}, which --model {self.model} does not take: a model is narrowed "
                "to a latency that is measured here, at one image size; leave it out"
            )

    @property
    def is_specialised(self) -> bool:
        """Whether the run begins with trained weights."""
        return self.pretrained not in (None, "none") or self.model is not None

    @property
    def teacher_name(self) -> str:
        """What the run begins with, as it was asked for."""
        return self.model or self.pretrained or "none"

    @property
    def side(self) -> int | None:
        """The image size where it is decided; None: that of the data."""
        assert not isinstance(self.image_size, str), "several sizes, of which none is chosen yet"
        return self.image_size


# --- from plain values to settings ---


def parse_settings(cls: type[T], values: Mapping[str, Any], source: str = "") -> T:
    """A settings class from plain values (of YAML, JSON or the command line).

    source: the file or the space that the values are of, for messages.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or is out of range.
    """
    try:
        settings: T = schema.from_plain(cls, dict(values))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}" if source else str(error)) from None
    return settings


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested plain values with others over them, group by group."""
    groups = {k: {**(base.get(k) or {}), **v} for k, v in over.items() if isinstance(v, Mapping)}
    return {**base, **over, **groups}


def pick(settings: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Of checked settings, the values of the keys that are in `values`, nested alike."""
    return {
        key: pick(getattr(settings, key), value)
        if dataclasses.is_dataclass(getattr(settings, key))
        else getattr(settings, key)
        for key, value in values.items()
    }


def _missing(settings: Any, values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the settings that plain values leave to their defaults."""
    missing = []
    for key in (f.name for f in dataclasses.fields(settings)):
        value = getattr(settings, key)
        if key not in values:
            missing.append(prefix + key)
        elif dataclasses.is_dataclass(value):
            missing += _missing(value, values[key], f"{prefix}{key}.")
    return missing


def read_config(path: Path, *, complete: bool = False) -> RunConfig:
    """A config file.

    complete: it is a run's, and must be whole: a file that was cut short lacks the last setting.
        Others may be missing, of a version before they came: so the default of a new setting is
        what that version did, and the last one stays the last.

    Raises:
        ConfigError: unreadable, not YAML, a setting is unknown or out of range, or missing.
    """
    from proxylessnas.io.yaml_files import read_yaml  # the help needs no YAML

    values = read_yaml(path)
    config = parse_settings(RunConfig, values, str(path))
    missing = _missing(config, values) if complete else []
    last = dataclasses.fields(config)[-1].name
    inner = dataclasses.fields(getattr(config, last))[-1].name
    if missing and missing[-1] in (last, f"{last}.{inner}"):
        raise ConfigError(
            f"{path} is not whole: {missing[0]} is missing; restore the file, or begin again in "
            "another directory"
        )
    return config


def left_to_defaults(path: Path) -> list[str]:
    """The settings that a run's file does not have, being of an earlier version."""
    from proxylessnas.io.yaml_files import read_yaml

    values = read_yaml(path)
    return _missing(parse_settings(RunConfig, values, str(path)), values)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `config.yaml`, for editors and for the documentation."""
    return schema.json_schema(RunConfig)
