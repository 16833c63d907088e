"""`search(pretrained=...)`: what `run --pretrained` does, from Python."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrained import WORDS, trained_run
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import proxylessnas
from proxylessnas import DeriveSettings, MachineSettings, MeasureSettings
from proxylessnas.cli.main import main
from proxylessnas.errors import ConfigError, DataError, RunError
from proxylessnas.runs.directory import RunDirectory

# WORDS, as arguments.
SETTINGS: dict[str, Any] = {
    "loading": {"limit": 240},
    "teach": {"epochs": 1},
    "train": {"epochs": 1},
    "derive": {"top_k": 3},
}
LOADED = {key: value for key, value in SETTINGS.items() if key != "loading"}
CALL: dict[str, Any] = {
    "data": "digits",
    "image_size": 32,
    "runtime": "fake",
    "target_latency": "0.8x",
    "measure": MeasureSettings(networks=4),
    "machine": MachineSettings(threads=1),
    "quiet": True,
}
FILES = ("architecture.json", "weights.safetensors", "teacher.safetensors", "model.onnx")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def called(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the Python call."""
    out = tmp_path_factory.mktemp("called") / "run"
    proxylessnas.search(pretrained=trained, out=out, settings=SETTINGS, **CALL)
    return out


def figures(directory: Path) -> dict[str, Any]:
    """A summary without times, what else ran, and the directory that its advice names."""
    text = (directory / "summary.json").read_text().replace(str(directory), "OUT")
    facts: dict[str, Any] = json.loads(text)
    return {k: v for k, v in facts.items() if k not in ("seconds", "versions", "disturbance")}


def test_both_doors_give_the_same_network(called: Path, trained: Path, tmp_path: Path) -> None:
    """To the bit: in a directory, in memory, and by the command line."""
    out = tmp_path / "run"
    assert main(["run", *WORDS, f"--pretrained={trained}", f"--out={out}"]) == 0
    for file in FILES:
        assert (called / file).read_bytes() == (out / file).read_bytes(), file
    assert figures(called) == figures(out)
    result = proxylessnas.search(pretrained=trained, settings=SETTINGS, **CALL)  # in memory
    weights, _ = RunDirectory(out).load_tensors("weights.safetensors")
    derived = result.derive().state_dict()
    assert all(torch.equal(derived[name], weights[name]) for name in weights)
    result.save(tmp_path / "saved")
    for file in FILES:
        assert (tmp_path / "saved" / file).read_bytes() == (out / file).read_bytes(), file


def test_the_result_has_the_figures_of_the_teacher_and_the_baselines(called: Path) -> None:
    result = proxylessnas.load(called, quiet=True)
    facts = result.summary
    for name in ("teacher", "linear", "majority", "test"):
        assert 0 <= facts[f"{name}_accuracy"] <= 1
    assert facts["baselines"]["teacher"]["measured_latency_ms"] > 0
    assert result.predicted["latency"] <= facts["target_latency_ms"] * 1.001
    assert result.probabilities.shape[0] == len(result.architecture.choices)
    assert result.derive("0.9x")(torch.randn(2, 1, 32, 32)).shape == (2, 10)


def test_the_derived_network_is_as_accurate_as_the_summary_says(called: Path) -> None:
    """`derive()` has the weights that the job ended with, not those from before fine-tuning."""
    result = proxylessnas.load(called, quiet=True)
    problem = result.session.problem
    network, right, total = result.derive(), 0, 0
    for images, labels in problem.batches("test", result.session.config).epoch(0):
        right += int((network(images).argmax(1) == labels).sum())
        total += len(labels)
    assert right / total == result.summary["test_accuracy"]


def test_the_same_call_goes_on_to_the_same_bits(
    called: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(called, out)
    for path in (out / "stages").glob("*.json"):
        if path.stem in ("train", "evaluate", "by-hand", "export"):
            path.unlink()
    (out / "weights.safetensors").unlink()
    shutil.rmtree(out / "checkpoints")
    (out / "stages" / "search.json").unlink()
    proxylessnas.search(pretrained=trained, out=out, settings=SETTINGS, **CALL)
    for file in FILES:
        assert (called / file).read_bytes() == (out / file).read_bytes(), file


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target_latency": "0.7x"}, r"its target_latency is 0\.8x, not 0\.7x"),
        ({"target_latency": None}, r"its target_latency is 0\.8x, not None"),
        ({"seed": 1}, "its seed is 0, not 1"),
        ({"image_size": 40}, "its image_size is 32, not 40"),
        ({"settings": {"teach": {"epochs": 2}}}, r"its teach\.epochs is 1(\.0)?, not 2"),
    ],
)
def test_another_call_is_another_run(
    changes: dict[str, Any], said: str, called: Path, trained: Path
) -> None:
    with pytest.raises(RunError, match=said):
        proxylessnas.search(
            **{"pretrained": trained, "out": called, "settings": SETTINGS, **CALL, **changes}
        )


# --- loaders ---

MEAN, STD = 0.5, 0.25  # of the trained network
SIDE = 48  # pixels; the smaller input of the baselines has 32 at least


def images_of(count: int, seed: int, classes: int = 4) -> TensorDataset:
    """Pixels in [0, 1], normalised as the weights want; a class is a colour."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    pixels = 0.3 * torch.rand(count, 3, SIDE, SIDE, generator=generator)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[0] += 0.6 * (label // 2)
        image[1] += 0.6 * (label % 2)
    return TensorDataset((pixels - MEAN) / STD, labels)


def loader(count: int, seed: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(images_of(count, seed), batch_size=16, **options)


def of_loaders(trained: Path, **changes: Any) -> Any:
    given: dict[str, Any] = {
        **{"pretrained": trained, "train": loader(160, 0, shuffle=True), "valid": loader(48, 1)},
        **{"runtime": "fake", "target_latency": "0.8x", "quiet": True},
        # Features of random weights differ so little that any step undoes their classifier.
        "settings": {**LOADED, "train": {"epochs": 1, "learning_rate": 1e-12}},
        **{"measure": CALL["measure"], "machine": CALL["machine"], **changes},
    }
    return proxylessnas.search(**given)


def test_loaders_of_images_and_labels(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network learns what the loaders show, and the run is used as any other."""
    call = {"test": loader(64, 2), "out": tmp_path / "run"}
    result = of_loaders(trained, **call)
    assert result.summary["test_accuracy"] >= 0.75 > result.summary["majority_accuracy"]
    assert result.summary["baselines"]["smaller_input"]["image_size"] < SIDE
    network = result.derive()
    images, labels = loader(64, 2).dataset.tensors
    right = float((network(images).argmax(1) == labels).float().mean())
    assert right == result.summary["test_accuracy"]
    again = of_loaders(trained, **call)  # nothing is left to do
    assert again.summary == result.summary
    loaded = proxylessnas.load(tmp_path / "run", quiet=True)
    state = loaded.derive().state_dict()
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    with pytest.raises(RunError, match="images came from loaders"):
        loaded.derive("0.9x")
    loaded = proxylessnas.load(
        tmp_path / "run", train=loader(160, 0, shuffle=True), valid=loader(48, 1), quiet=True
    )
    assert loaded.derive("0.9x")(images).shape == (64, 4)
    (tmp_path / "run" / "stages" / "export.json").unlink()
    assert main(["run", f"--out={tmp_path / 'run'}", "--resume", "--quiet"]) == 2
    assert "images came from loaders" in capsys.readouterr().err


def test_other_parts_are_left_to_valid(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = of_loaders(trained, quiet=False)
    said = capsys.readouterr().err
    assert "160 train, 48 valid images of 4 classes; 3 x 48 x 48 numbers an image" in said
    assert "no test batches: accuracies are of the validation images" in said
    assert result.summary["test_accuracy"] >= 0.75


def changed(change: Any, count: int = 48) -> list[tuple[Tensor, Tensor]]:
    return [change(images, labels) for images, labels in loader(count, 3)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"valid": changed(lambda x, y: (STD * x + MEAN, y))}, r"not normalised as the weights"),
        ({"valid": changed(lambda x, y: (4 * x, y))}, r"Normalize\(mean=\[0\.5, 0\.5, 0\.5\]"),
        ({"valid": changed(lambda x, y: (x.byte(), y))}, "images of torch.uint8 and labels of"),
        ({"train": changed(lambda x, y: (x, y.float()))}, "labels of torch.float32"),
        ({"train": changed(lambda x, y: (x, y + 1))}, "the label 0, of which the train loader"),
        (
            {part: changed(lambda x, y: (x, y + 1)) for part in ("train", "valid")},
            "labels up to 4, but no image of 0",
        ),
        ({"train": changed(lambda x, y: (x, -y))}, "labels from -3 to 0"),
        ({"train": changed(lambda x, y: (x, 0 * y))}, "the label 1, of which the train loader"),
        ({"train": changed(lambda x, y: (x[0], y))}, r"is tuple of \[3, 48, 48\], \[16\]"),
        ({"train": changed(lambda x, y: x)}, "a batch of the train loader is Tensor of"),
        ({"valid": changed(lambda x, y: (x[..., :24], y))}, r"images \[3, 48, 24\] beside"),
        ({"valid": None}, "there are no batches of `valid`"),
        ({"test": []}, "the test loader is empty"),
    ],
)
def test_loaders_of_something_else(trained: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        of_loaders(trained, **changes)


# --- arguments ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": nn.functional.cross_entropy}, "loss is for a model of your own"),
        ({"example_inputs": (torch.zeros(1, 3, 32, 32),)}, "example_inputs is for a model"),
        ({"data": None}, "give the images once"),
        ({"train": loader(16, 0)}, "give the images once"),
        ({"model": nn.Linear(2, 2)}, "pretrained is for trained weights"),
        ({"pretrained": "efficientnet_lit0"}, r"did you mean efficientnet_lite0"),
        ({"pretrained": 5}, "pretrained is int, not a name, as efficientnet_lite0"),
        ({"data": "/nowhere/photos"}, "there is no folder /nowhere/photos"),
        ({"data": 5}, "data is int, not a folder of images"),
        ({"image_size": "large"}, "image_size is 'large'"),
        ({"target_latency": 0.6}, "target_latency is 0.6; it must be a latency as 12ms"),
        ({"settings": {"teacher": {}}}, "there is no 'teacher'; did you mean teach"),
        ({"settings": {"teach": {"epoch": 3}}}, r"there is no 'teach\.epoch'"),
        ({"settings": {"seed": 3}, "seed": 4}, "seed is given twice"),
        ({"settings": {"measure": {"threads": 1}}}, "measure is given twice"),
        ({"derive": DeriveSettings(top_k=3)}, r"derive is DeriveSettings, whose defaults are"),
        ({"limits": {"mac": 5}}, "no cost 'mac' to limit"),
    ],
)
def test_arguments_that_do_not_fit(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    call = {"pretrained": "efficientnet_lite0", **CALL, "out": tmp_path / "run", **changes}
    with pytest.raises((ConfigError, DataError), match=said):
        proxylessnas.search(**call)
    assert not (tmp_path / "run").exists()


def test_settings_that_loaders_do_not_follow(trained: Path) -> None:
    for settings in (
        {"loading": {"limit": 100}},
        {"train": {"batch_size": 8}},
        {"teach": {"augment": "crop"}},
    ):
        with pytest.raises(ConfigError, match="does not reach your loaders"):
            of_loaders(trained, settings=settings)
