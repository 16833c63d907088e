"""The settings of a run, those of its stages in it, and of the machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from proxylessnas.config.amounts import (
    RENAMED,
    Budget,
    Device,
    Latency,
    Memory,
    Precision,
    Seed,
    Side,
    Sizes,
    Threads,
)
from proxylessnas.config.stages import (
    CandidateSettings,
    DataSettings,
    DeriveSettings,
    MeasureSettings,
    QuantiseSettings,
    SearchSettings,
    TeachSettings,
    TrainSettings,
)
from proxylessnas.errors import ConfigError
from proxylessnas.limits import all_limits
from proxylessnas.schema import checked


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
    """Data set: a folder of images, a .zip or .tar of one, a .csv of file names and labels,
    WebDataset's shards, a Hugging Face data set (owner/name, .parquet, save_to_disk),
    torchvision:NAME, mnist5k, digits, surfaces."""
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
                "and --model; give one, as 128"
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
            "space_settings": bool(self.space_settings),
            "from_scratch": self.from_scratch,
            "limits": bool(set(self.limits) - {"latency"}),
        }
        for name in (name for name, given in unused.items() if given):
            value = getattr(self, name)
            raise ConfigError(
                f"{name} is {value}, which --model {self.model} does not take: a model is narrowed "
                "to a latency that is measured here; leave it out"
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
