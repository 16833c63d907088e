"""The stage `export`: the trained network as files, compared with eager and measured."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from proxylessnas.architecture import InputInfo
from proxylessnas.data.decode import preprocessing
from proxylessnas.errors import ConfigError, RunError
from proxylessnas.export.coreml import UNTESTED, export_coreml
from proxylessnas.export.onnx import compare, to_onnx
from proxylessnas.export.write import export_network
from proxylessnas.hardware.precisions import compare_precisions
from proxylessnas.hardware.runtimes import make
from proxylessnas.hardware.timing import TAILS, disturbance
from proxylessnas.report.precisions import float_lines
from proxylessnas.report.verdict import accuracy_words
from proxylessnas.session.deploying import SUFFIXES, int8_file, int8_name, running, scored
from proxylessnas.session.finishing import trained_network
from proxylessnas.session.records import BASELINES
from proxylessnas.session.session import Session

ONNX, ONNX_FORMAT = "model.onnx", "onnx"
FILES = {
    **{"torch": "network.pt2", "tflite": "network.tflite", "executorch": "network.pte"},
    **{"coreml": "network.mlpackage", "python": "python"},
}
# Formats in int8, and the runtime that each is of.
IN_INT8 = {"onnx-int8": "onnxruntime", "tflite-int8": "litert", "executorch-int8": "executorch"}
FORMATS = (ONNX_FORMAT, *FILES, *IN_INT8)
NOT_MEASURED: dict[str, Any] = {
    "measured_ms": None,
    "measured_raw_ms": None,
    "canary_drift": None,
    "noise_pct": None,
    "baselines_ms": {},
}


def export(session: Session) -> None:
    """ONNX, compared with eager, and measured as the file it is; in int8 that of `evaluate` too."""
    session.records.require("evaluate" if session.is_int8 else "train")
    with session.records.stage("export", "ONNX, compared, measured", session.callbacks) as facts:
        facts |= session.ranks.of_main(lambda: _export_onnx(session))
        facts["files"] = [ONNX, *([int8_name(session.runtime.name)] if session.is_int8 else [])]


def _export_onnx(session: Session) -> dict[str, Any]:
    network = trained_network(session).cpu()
    data = to_onnx(network, session.inputs, metadata=metadata_of(session.problem.input()))
    session.store.write(ONNX, data)
    difference = compare(network, data, session.inputs)
    report = _measured(session, network) if session.is_local else NOT_MEASURED
    if session.is_int8 and session.is_local and session.runtime_object is None:
        report = {**report, "int8": _beside_float(session, network)}
    return {"largest_difference": difference.relative, **report}


def _beside_float(session: Session, network: nn.Module) -> dict[str, Any]:
    """The int8 latency beside float's, in paired rounds, and what stays in float."""
    measure = session.config.measure
    plain = make(session.config.runtime, threads=measure.threads, precision="f32")
    with session.reporter.bar("measuring beside float") as update:
        (both,) = compare_precisions(
            network,
            session.inputs,
            {"f32": plain, "int8": session.runtime},
            measure,
            seed=session.config.seed,
            progress=update,
            blocks=False,
        )
    return {
        "int8_ms": both.measured["int8"].median_ms,
        "float_ms": both.measured["f32"].median_ms,
        "ratio": asdict(both.ratio("int8", "f32")),
        "in_float": None if both.floats is None else {n: list(s) for n, s in both.floats.items()},
    }


def metadata_of(info: InputInfo | None) -> dict[str, Any]:
    """What whoever uses the file elsewhere must know of its inputs and outputs."""
    made_by = {"made_by": "proxylessnas"}
    with contextlib.suppress(PackageNotFoundError):  # a tree that is not installed
        made_by = {"made_by": f"proxylessnas {version('proxylessnas')}"}
    if info is None:
        return made_by
    outputs = {"output": "logits in the order of classes; their softmax is the probabilities"}
    return {**asdict(info), **preprocessing(info), **outputs, **made_by}


def _measured(session: Session, network: nn.Module) -> dict[str, Any]:
    """The exported file beside the baselines and the table's canary, in the same rounds."""
    others: dict[str, nn.Module] = {}
    if session.config.baselines and not session.config.is_specialised:
        others = {name: trained_network(session, name).cpu() for name in BASELINES}
    subject = exported_file(session) or network
    with session.reporter.bar("measuring") as update:
        report = session.measure_networks({"derived": subject, **others}, progress=update)
    derived = report.networks["derived"]
    return {
        "measured_ms": derived.corrected_ms,
        "measured_raw_ms": derived.raw_ms,
        "canary_drift": report.drift,
        "noise_pct": derived.noise_pct,
        "interval_ms": list(derived.interval_ms),
        **{f"{name}_ms": derived.raw.tail_ms(share) for name, share in TAILS.items()},
        "disturbance": disturbance([derived.raw]),
        "baselines_ms": {name: report.networks[name].corrected_ms for name in others},
    }


def exported_file(session: Session) -> Path | None:
    """The file that ships, where it lies in a directory and the runtime reads it as it is."""
    base = session.runtime.name.partition(":")[0]
    reads = base in ("onnxruntime", "openvino") or (session.is_int8 and base in SUFFIXES)
    if session.store.path is None or not reads:
        return None
    return session.store.file(int8_name(base) if session.is_int8 else ONNX)


def export_as(session: Session, form: str) -> None:
    """The trained network as `network.pt2` (torch.export), or another one of `FORMATS`."""
    if form not in FORMATS:
        raise ConfigError(f"there is no export format {form!r}; allowed: {', '.join(FORMATS)}")
    session.records.require("train")
    if session.store.path is None:
        raise RunError("there is no directory to export to: give the search an `out`")
    write = _write_int8 if form in IN_INT8 else _write
    session.ranks.of_main(lambda: write(session, form))


def _write_int8(session: Session, form: str) -> None:
    """A file of other integers than eager's floats is judged by its accuracy."""
    base, network = IN_INT8[form], trained_network(session).cpu()
    name = int8_name(base)
    if session.is_int8 and name == int8_name(session.runtime.name):
        raise ConfigError(f"{name} is the file that this run ships: it is there already")
    runtime = make(base, precision="int8")  # refused before the conversion where it is not here
    content = int8_file(session, network, runtime=base)
    session.store.write(name, content)
    with running(runtime, content, session.config.measure.batch) as deployed:
        score = scored(session, deployed, "test")
        in_float_after_all = list(float_lines(deployed.loaded.float_share()))
    in_float = scored(session, session.machine.place(network), "test")
    words = f"  {session.store.file(name)}"
    if score.accuracy is not None and in_float.accuracy is not None:
        words += f": test accuracy {accuracy_words(score.accuracy, score.examples)} on {base}, "
        words += f"{100 * in_float.accuracy:.2f} % in float"
    for line in [words, *(f"    {line}" for line in in_float_after_all)]:
        session.reporter.say(line)


def _write(session: Session, form: str) -> None:
    network = trained_network(session).cpu()
    path = session.store.file(FILES[form])
    if form == "coreml":
        export_coreml(network, session.inputs, path)
        session.reporter.say(f"  {path}: {UNTESTED}")
        return
    architecture = session.load_architecture("architecture.json")
    difference = export_network(architecture, network, session.inputs, path)
    session.reporter.say(f"  {path}: differs from eager by {difference.relative:.1e} at most")
