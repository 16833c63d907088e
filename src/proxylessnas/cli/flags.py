"""Options that are no settings: those of runs and their stages, and of the verbs beside these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Option = tuple[str, dict[str, Any]]


def option(name: str, words: str, **how: Any) -> Option:
    """An option as argparse takes it. words: its help."""
    return name, {"help": words, **how}


SWITCH = {"action": "store_true"}
OF_RUNS: tuple[Option, ...] = (
    option("--help-all", "show every setting of every stage", **SWITCH),
    option("--config", "settings from a YAML file; options go over them"),
    option("--out", "the run directory; default: runs/DATA-SPACE"),
    option("--resume", "go on with the run in the directory", **SWITCH),
    option(
        "--accept-changed-data",
        "go on although images were added, removed or replaced since the run began",
        **SWITCH,
    ),
    option(
        "--keep-checkpoints",
        "keep the checkpoints of stages that are done; without it only the search's last one "
        "stays, which derive --latencies needs",
        **SWITCH,
    ),
    option("--quiet", "no progress", **SWITCH),
    option(
        "--force",
        "use a latency table of another device, runtime or batch all the same; "
        "measure --out table.json replaces it",
        **SWITCH,
    ),
)
OF_STAGE: Mapping[str, tuple[Option, ...]] = {
    "run": (
        option(
            "--log",
            "trackers that are told every step's numbers: tensorboard, mlflow or wandb, or several "
            "with commas; they write into the run directory",
            metavar="NAMES",
        ),
    ),
    "measure": (
        option("directory", "the run directory, or networks to measure", nargs="*"),
        option(
            "--plot", "write predicted against measured latency as this .svg, .png or .pdf file"
        ),
        option(
            "--shape",
            "the shape of an input that an .onnx or .tflite file leaves open, once for each input: "
            "--shape images=1x3x224x224",
            metavar="NAME=SIZES",
            action="append",
        ),
        option(
            "--batch",
            "images an inference of networks, several in one table: 1,8,32",
            metavar="N,N",
        ),
        option(
            "--threads",
            "threads of the runtime of networks, several in one table: 1,8,32",
            metavar="N,N",
        ),
        option(
            "--sustained",
            "run networks without a pause for this long, as 10m: median a minute, drift, clocks",
            metavar="TIME",
        ),
        option("--export-kit", "write a zip that measures --space on another device"),
        option("--import-kit", "what a kit wrote there, to become the table --out"),
        option("--merge", "tables of one device, to become one in --out", nargs="+"),
    ),
    "derive": (option("--latencies", "one network for each of these latencies, as 8ms,10ms,12ms"),),
    "export": (
        option(
            "--format",
            "onnx (the default), torch (.pt2), tflite, executorch (.pte), coreml (.mlpackage, "
            "untested on a device) or python (network.py); onnx-int8, tflite-int8, executorch-int8",
        ),
    ),
}
RUN_DIRECTORY = option("directory", "the run directory")
# The verbs beside those of a run.
OPTIONS: Mapping[str, tuple[Option, ...]] = {
    "predict": (
        RUN_DIRECTORY,
        option("images", "image files", nargs="+"),
        option("--top", "classes to print", type=int, default=3),
        option("--space", "module:factory, where the network is built by one"),
        option("--json", "one JSON object an image", **SWITCH),
    ),
    "report": (
        option("directory", "a run directory; several side by side", nargs="+"),
        option(
            "--out",
            "the HTML file; default: report.html in the run directory, of several comparison.html "
            "in the first one's",
        ),
    ),
    "watch": (
        RUN_DIRECTORY,
        option("--every", "seconds between two looks", type=float, default=2.0),
        option("--once", "look once", **SWITCH),
    ),
    "tables": (
        option(
            "folder",
            "of tables, or a URL; default: $PROXYLESSNAS_TABLES, or the user's own",
            nargs="?",
        ),
        option("--device", "print the path of this device's table, as pixel1"),
        option("--precision", "that it is in: f32, fp16, bf16 or int8"),
        option("--runtime", "that it is of"),
    ),
    "zoo": (
        option("name", "a network; without one, all are listed", nargs="*"),
        option("--build", "print the plain network", **SWITCH),
        option("--draw", "write the network as this SVG file"),
        option("--export", "write it as this .onnx, .pt2, .tflite or .pte, or folder"),
        option(
            "--measure",
            "its latency on --runtime; of several networks, or without a name of the GPU, the CPU "
            "and the mobile one",
            **SWITCH,
        ),
        option("--runtime", "what --measure uses, as onnxruntime,openvino:bf16,litert", default=""),
        option("--threads", "of the runtime", type=int, default=1),
        option("--batch", "images an inference", type=int, default=1),
        option("--weights", "the authors' state dict, to be loaded"),
        option("--random-weights", "export the network without trained weights", **SWITCH),
    ),
    "completion": (option("shell", "the shell", choices=("bash", "zsh")),),
}
