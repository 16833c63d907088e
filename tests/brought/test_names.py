"""Mistakes in names: refused within a moment, before torch is imported or data are read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from proxylessnas.cli import names
from proxylessnas.cli.main import main
from proxylessnas.data.spec import _BUNDLED
from proxylessnas.errors import ConfigError
from proxylessnas.hardware.kit import FORMATS
from proxylessnas.hardware.runtimes import RUNTIMES
from proxylessnas.pretrained.loading import LITE
from proxylessnas.spaces import SPACES

MISTAKES = [
    (["--runtime=onnx"], "there is no runtime 'onnx'; did you mean onnxruntime"),
    (["--space=mobil"], "there is no space 'mobil'; did you mean mobile?"),
    (["--pretrained=efficientnet_lite9"], "did you mean efficientnet_lite"),
    (["--data=digit"], "there is no data set 'digit'; did you mean digits?"),
    (["--data=nosuchfolder"], "or give a folder that exists"),
]


@pytest.mark.parametrize(("words", "line"), MISTAKES, ids=lambda v: str(v))
def test_a_misspelt_name_is_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [] if words[0].startswith("--data") else ["--data=digits"]
    for verb in ("run", "measure"):
        assert main([verb, *data, *words, "--out=/nowhere/at/all"]) == 2
        (said,) = capsys.readouterr().err.strip().splitlines()
        assert line in said


def test_a_misspelt_name_in_a_config_file_is_refused_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("data: digits\nspace: tre\n")
    assert main(["run", f"--config={tmp_path}/c.yaml"]) == 2
    assert "there is no space 'tre'; did you mean tree?" in capsys.readouterr().err


def test_torch_is_not_imported_for_it() -> None:
    code = (
        "import sys; from proxylessnas.cli.main import main; "
        "assert main(['run', '--data=digits', '--runtime=onnx']) == 2; "
        "assert 'torch' not in sys.modules"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == 0 and "did you mean onnxruntime" in child.stderr


@pytest.mark.parametrize(
    "settings",
    [
        {"runtime": "torch:channels_last", "space": "my.module:factory"},
        {"runtime": "tensorrt"},
        {"data": "uoft-cs/cifar10", "pretrained": "timm:mobilenetv2_100"},
        {"data": "torchvision:CIFAR10", "pretrained": "none"},
        {"data": str(Path(__file__).parent), "pretrained": None},
        {"pretrained": "efficientnet_lite0@/weights.pth", "data": ""},
        {},
    ],
)
def test_a_name_of_something_else_is_left_to_those_who_know_it(settings: dict[str, str]) -> None:
    names.check_names(settings)


def test_the_lists_are_those_of_the_registries() -> None:
    assert {*names.SPACES, "inverted"} == set(SPACES)
    assert set(names.RUNTIMES) == set(RUNTIMES)
    assert set(names.DATA) == set(_BUNDLED)
    assert set(names.PRETRAINED) == set(LITE)
    assert set(names.KITS) == set(FORMATS) - set(RUNTIMES)


def test_the_help_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Texts of options are written by hand: a runtime that comes or goes changes them, too."""
    assert main(["run", "--help-all"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    said = re.search(r"--runtime \S+ Runtime that the latency is measured on: ([^.]*)\.", text)
    assert said is not None
    assert set(re.findall(r"\w+", said[1])) - {"or"} == set(RUNTIMES) - {"fake"}
    said = re.search(r"Trained network that is specialised: (.*?), torchvision:", text)
    assert said is not None
    first, *others = said[1].split(", ")
    assert {first, *(first[:-6] + other for other in others)} == set(names.PRETRAINED)


def test_a_directory_of_other_files_is_no_place_for_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `--out ~/photos`: `rm` of the run would be one of the photos as well."""
    (tmp_path / "holiday.txt").write_text("mine")
    assert main(["run", "--data=digits", f"--out={tmp_path}"]) == 2
    line = capsys.readouterr().err
    assert "is not empty and holds no run (holiday.txt)" in line and "Traceback" not in line
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["holiday.txt"]


def test_measuring_takes_several_runtimes_and_those_of_kits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for runtime in ("onnxruntime,openvino", "torch:cuda,graph", "coreml", "tensorrt"):
        names.check_names({"runtime": runtime}, measuring=True)
    for runtime, wrong in (("onnxruntime,openvin", "openvin"), ("corem", "corem")):
        with pytest.raises(ConfigError, match=f"there is no runtime '{wrong}'"):
            names.check_names({"runtime": runtime}, measuring=True)
    for runtime in ("onnxruntime,openvino", "coreml"):  # a run is on one, and on no kit's
        assert main(["run", "--data=digits", f"--runtime={runtime}"]) == 2
        assert f"there is no runtime '{runtime}'" in capsys.readouterr().err
    sizes = "--space-settings={widths: [8], depths: [1], head: 8}"
    words = ["--space=macro", sizes, "--image-size=32", "--runtime=tensorrt", "--precision=fp16"]
    few = ["--measure.networks=3", "--measure.rounds=1", "--measure.network-rounds=1", "--quiet"]
    assert main(["measure", *words, *few, f"--export-kit={tmp_path / 'kit.zip'}"]) == 0
    assert (tmp_path / "kit.zip").stat().st_size > 0
