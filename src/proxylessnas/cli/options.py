"""What the verbs measure, predict and zoo take besides the settings; no torch here."""

from __future__ import annotations

from jsonargparse import ArgumentParser

MEASURE = """\
proxylessnas measure RUN_DIR, or --data DATA    the first stage of a run
       proxylessnas measure --space mobile --runtime litert --out table.json --plot fit.svg
                            a device's latency table, validated on networks it has not seen
       proxylessnas measure NETWORK ... --runtime onnxruntime,litert
                            now: architecture.json, .onnx, .tflite, or a name of the zoo
       proxylessnas measure --export-kit kit.zip --space mobile        for another device
       proxylessnas measure --import-kit results.json --out table.json    and back
       proxylessnas measure --merge a.json b.json --out table.json

A table that was broken off goes on with the same command. --measure.networks and
--measure.validation are 20 each for --out table.json, 10 in a kit, unless they are given."""


def add_measuring(parser: ArgumentParser) -> None:
    parser.usage = MEASURE
    parser.add_argument("directory", nargs="*", help="the run directory, or networks to measure")
    parser.add_argument(
        "--plot", help="write predicted against measured latency as this .svg, .png or .pdf file"
    )
    parser.add_argument("--export-kit", help="write a zip that measures --space on another device")
    parser.add_argument("--import-kit", help="what a kit wrote there, to become the table --out")
    parser.add_argument("--merge", nargs="+", help="tables of one device, to become one in --out")


def add_predicting(parser: ArgumentParser) -> None:
    parser.add_argument("directory", help="the run directory")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--top", type=int, default=3, help="classes to print")
    parser.add_argument("--space", help="module:factory, where the network is built by one")
    parser.add_argument("--json", action="store_true", help="one JSON object an image")


def add_zoo(parser: ArgumentParser) -> None:
    parser.add_argument("name", nargs="*", help="a network; without one, all are listed")
    parser.add_argument("--build", action="store_true", help="print the plain network")
    parser.add_argument("--draw", help="write the network as this SVG file")
    parser.add_argument("--export", help="write it as this .onnx or .pt2 file, or .py folder")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="its latency on --runtime; of several networks, or without a name of the GPU, the "
        "CPU and the mobile one",
    )
    parser.add_argument(
        "--runtime", default="", help="what --measure uses, as onnxruntime,openvino:bf16,litert"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the runtime")
    parser.add_argument("--batch", type=int, default=1, help="images an inference")
    parser.add_argument("--weights", help="the authors' state dict, to be loaded")
