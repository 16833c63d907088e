"""The call that narrows a trained model, and reads again what it finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxylessnas.api.arguments import batches_of, check_kinds, given
from proxylessnas.config import MeasureSettings
from proxylessnas.errors import DataError
from proxylessnas.hardware.runtimes import Runtime, make
from proxylessnas.io.console import Reporter
from proxylessnas.runs.directory import RunDirectory, begun
from proxylessnas.session.loaders import blamed
from proxylessnas.session.records import Records
from proxylessnas.surgery.brought import Trained
from proxylessnas.surgery.candidates import KINDS
from proxylessnas.surgery.saved import CALL
from proxylessnas.surgery.specialise import Specialised, specialise_model
from proxylessnas.training.ranks import ALONE
from proxylessnas.training.task import Task


@torch.inference_mode(False)
@torch.enable_grad()
def specialise(
    model: nn.Module,
    *,
    train: Any,
    valid: Any,
    loss: Callable[[Any, Any], Tensor],
    target_latency: str,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    blocks: Any = "auto",
    candidates: Any = KINDS,
    correct: Callable[[Any, Any], Tensor] | None = None,
    runtime: str | Runtime = "onnxruntime",
    measure: MeasureSettings | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    quiet: bool = False,
) -> Specialised:
    """Narrow a trained model, of whatever kind, to a latency; the model itself stays as it is.

    Layers whose channels can be taken out are found on the graph of `torch.export`, and printed
    with what may be chosen, or why they stay (see `surgery.pairs` for what is refused so far).
    What reads fewer channels is refitted by least squares, so that networks work from the first
    step on; the best one within the limit is chosen and measured. `Specialised.finetune` trains
    it with the model as its teacher, `Specialised.derive` returns it.

    train, valid, loss, example_inputs, example_kwargs, correct, runtime: as of `search`.
    target_latency: `12ms`, `800us`, or `0.5x` of the model's own, measured on `runtime`.
    blocks: which layers may be narrowed: `auto`, or names (`layer3.*`) and classes of modules.
    candidates: kinds of what takes a layer's or a block's place: `narrower`, `smaller_kernel`,
        `low_rank` (two thin layers for a wide one), `zero` (left out); all of them by default.
    out: a directory for `summary.json`, `layers.txt` and the weights, which
        `surgery.saved.restored` loads into the model. The same call, made again after it was
        killed, goes on from the stages that it finished, fine-tuning among them; made after it
        ended, it returns the same result.

    Raises:
        UserError: the model cannot be exported or narrowed, no network keeps the limit, or an
            argument is not usable; the message says what to do.
    """
    arguments = given(locals())
    check_kinds(arguments, "model", "loss", "example_inputs", "runtime")
    inputs = tuple(arguments["example_inputs"])
    batches = batches_of(seed, inputs, search=train, valid=valid)
    for part, name in (("search", "train"), ("valid", "valid")):
        if part not in batches:
            raise DataError(f"there are no batches of `{name}`: give them to the call")
    settings, reporter = measure or MeasureSettings(), Reporter(quiet=quiet)
    directory = None if out is None else RunDirectory(Path(out))
    if directory is not None:
        directory.check_free(CALL)
    with begun(directory) as store:
        brought = Trained(
            model=model,
            inputs=inputs,
            task=Task(loss=loss, correct=correct),
            train=batches["search"],
            valid=batches["valid"],
            runtime=make(runtime, threads=settings.threads)
            if isinstance(runtime, str)
            else runtime,
            measure=settings,
            seed=seed,
            reporter=reporter,
            records=Records(store, ALONE, reporter),
        )
        with blamed(batches.values()):
            return specialise_model(brought, target_latency, blocks, candidates)
