"""The settings of the stages, in the order of the stages.

The fields are the command line's options and the keys of `config.yaml`; the text under a field is
the option's help and the description in the JSON Schema. A range stands in the field's type, a rule
about several fields in `__post_init__`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from proxylessnas.config.amounts import (
    RENAMED,
    Count,
    CountOrZero,
    Epochs,
    EpochsOrZero,
    Fraction,
    Rate,
    RateOrZero,
    Share,
    ShareBelowOne,
    Threads,
)
from proxylessnas.errors import ConfigError, did_you_mean
from proxylessnas.schema import checked

REGULARISERS = ("dropout", "path_drop", "cell_drop")  # of a space; they shape no weight


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
    zero_cost: CountOrZero = 0
    """Random networks that are scored besides, so that two figures of untrained networks (zero-cost
    proxies: progressivity and MACs) count beside a score, each as much as it. With shared
    weights of few epochs that finds better networks; 64 are enough, each of which takes the time of
    a score, and every network that of its figures (a second or two). 0 leaves the figures out."""


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
