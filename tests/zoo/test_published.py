"""The authors' configs and weights: read strictly, and numerically the same networks."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import reference_networks
import torch
from amounts import examples
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from reference_networks import NAMES, Reference, State
from safetensors.torch import save_file
from torch import nn

from proxylessnas.architecture import Architecture
from proxylessnas.errors import ArchitectureError
from proxylessnas.spaces import build, build_supernet
from proxylessnas.zoo import load_published_weights, read_published
from proxylessnas.zoo.config_reader import from_published
from proxylessnas.zoo.weights import published_keys

SIZES = {"cifar": 32}  # the ImageNet networks are compared at 64 pixels
quick = examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def checkpoint(state: State, path: Path) -> Path:
    torch.save({"state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def mobile() -> tuple[dict[str, Any], State]:
    config = reference_networks.load_config("mobile")
    return config, reference_networks.make_state(config, 64)


# --- the same function ---


@pytest.mark.parametrize("name", NAMES)
def test_same_function_as_the_authors(name: str, tmp_path: Path) -> None:
    """In eval mode and with batch statistics; float64, so that only a real difference counts."""
    config, size = reference_networks.load_config(name), SIZES.get(name, 64)
    state = reference_networks.make_state(config, size)
    network = build(read_published(reference_networks.config_path(name)))
    keys = published_keys(network)
    assert {k: v.shape for k, v in keys.items()} == {k: v.shape for k, v in state.items()}
    load_published_weights(network, checkpoint(state, tmp_path / "net.pth"))
    reference = Reference(config, {k: v.double() for k, v in state.items()})
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    network.double()
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), reference(x), rtol=0, atol=1e-9)
        reference.training = True
        torch.testing.assert_close(network.train()(x), reference(x), rtol=0, atol=1e-9)


def test_drop_rates_scale_in_evaluation(tmp_path: Path) -> None:
    """Rates of every level and block; the authors' network-wide fields say the same."""
    config = shortened(9)
    by_network = copy.deepcopy(config)
    by_network |= {"tree_node_config": {"path_drop_rate": 0.1}, "cell_drop_rate": 0.05}
    for i, block in enumerate(config["blocks"][1:-1], 1):
        block["cell_drop_rate"] = 2 * i * 0.05 / 10
        nodes = list(block["cell"]["child_nodes"])
        for node in nodes:
            node["path_drop_rate"] = 0.1
            nodes += [child for child in node["child_nodes"] if child]
    architecture = from_published(config)
    assert architecture.settings["path_drop"] == [0.1]
    assert from_published(by_network) == architecture
    for block in config["blocks"][1:-1]:
        block["cell"]["path_drop_rate"] = 0.2  # the whole cell's, after its convolution
    architecture = from_published(config)
    assert architecture.settings["path_drop"] == [0.2, 0.1, 0.1, 0.1]
    state = reference_networks.make_state(config, 32)
    network = build(architecture)
    load_published_weights(network, checkpoint(state, tmp_path / "net.pth"))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    reference = Reference(config, {k: v.double() for k, v in state.items()})
    with torch.no_grad():
        torch.testing.assert_close(network.double().eval()(x), reference(x), rtol=0, atol=1e-9)


def test_other_checkpoints(mobile: tuple[dict[str, Any], State], tmp_path: Path) -> None:
    """safetensors, a bare state dict, the pickle format of old PyTorch without BN counters."""
    config, state = mobile
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "net.safetensors")
    torch.save(state, tmp_path / "bare.pth")
    torch.save({"state_dict": old}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("net.safetensors", "bare.pth", "old.pth"):
        network = build(from_published(config))
        load_published_weights(network, tmp_path / name)
        for key, tensor in published_keys(network).items():
            if key in old:
                assert torch.equal(tensor, state[key])


# --- weights that do not fit ---


def test_a_bit_that_flipped_is_seen(mobile: tuple[dict[str, Any], State], tmp_path: Path) -> None:
    """torch reads past the checksums of its own files."""
    config, state = mobile
    path = checkpoint(state, tmp_path / "net.pth")
    data = bytearray(path.read_bytes())
    data[data.index(state["classifier.linear.weight"].numpy().tobytes()) + 2] ^= 0x40
    path.write_bytes(data)
    torch.load(path, weights_only=True)  # does not mind
    with pytest.raises(ArchitectureError, match=r"damaged: the checksum of .* does not agree"):
        load_published_weights(build(from_published(config)), path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_no_numbers(
    mobile: tuple[dict[str, Any], State], value: float, tmp_path: Path
) -> None:
    config, state = mobile
    wrong = state | {"classifier.linear.bias": torch.full((1000,), value, dtype=torch.float64)}
    with pytest.raises(
        ArchitectureError, match=r"classifier\.linear\.bias holds values that are no"
    ):
        load_published_weights(build(from_published(config)), checkpoint(wrong, tmp_path / "x.pth"))


def test_mismatch_names_the_keys_and_loads_nothing(
    mobile: tuple[dict[str, Any], State], tmp_path: Path
) -> None:
    config, state = mobile
    network = build(from_published(config))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    wrong = dict(state)
    first = "blocks.1.mobile_inverted_conv.depth_conv.conv.weight"
    wrong[first] = torch.zeros(48, 1, 3, 3)
    wrong["blocks.3.mobile_inverted_conv.point_linear.bn.bias"] = torch.zeros(32)
    del wrong["classifier.linear.bias"]
    with pytest.raises(ArchitectureError) as error:
        load_published_weights(network, checkpoint(wrong, tmp_path / "net.pth"))
    message = str(error.value)
    assert f"{first} is [48, 1, 3, 3] in the file and [48, 1, 5, 5] here" in message
    assert "classifier.linear.bias [1000] is missing from the file" in message
    assert "blocks.3.mobile_inverted_conv.point_linear.bn.bias [32] is not in the net" in message
    assert "\n" not in message
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[key])


def test_weights_of_another_network(mobile: tuple[dict[str, Any], State], tmp_path: Path) -> None:
    path = checkpoint(mobile[1], tmp_path / "net.pth")
    for name in ("cpu", "cifar"):
        network = build(read_published(reference_networks.config_path(name)))
        with pytest.raises(ArchitectureError, match="are not this network's"):
            load_published_weights(network, path)
    for other in (nn.Linear(2, 2), build_supernet("mobile", {"input_shape": [3, 32, 32]}).model):
        with pytest.raises(ArchitectureError, match="plain networks of the spaces mobile and"):
            load_published_weights(other, path)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code of a checkpoint was run",))


def test_no_code_is_run(tmp_path: Path) -> None:
    network = build(Architecture(space="tree", settings={"blocks": [1]}, choices=edges(1)))
    torch.save({"state_dict": {"a": Harmful()}}, tmp_path / "zip.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps({"state_dict": Harmful()}))
    for name in ("zip.pth", "raw.pth", "missing.pth"):
        with pytest.raises(ArchitectureError, match="cannot read the weights"):
            load_published_weights(network, tmp_path / name)
    for value in ([1], {"state_dict": 3}, {"state_dict": {"a": 1}}, {1: torch.zeros(1)}):
        torch.save(value, tmp_path / "odd.pth")
        with pytest.raises(ArchitectureError, match=r"odd\.pth"):
            load_published_weights(network, tmp_path / "odd.pth")


@quick
@given(st.data())
def test_damaged_checkpoints(tmp_path: Path, data: st.DataObject) -> None:
    network = build(Architecture(space="tree", settings={"blocks": [1]}, choices=edges(1)))
    zipped = data.draw(st.booleans())
    path = tmp_path / "net.pth"
    state = {"a": torch.zeros(3), "b": torch.ones(2, dtype=torch.int64)}
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=zipped)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(0, len(raw))) :]
    for suffix in (".pth", ".safetensors"):
        (path := path.with_suffix(suffix)).write_bytes(bytes(raw))
        with pytest.raises(ArchitectureError):
            load_published_weights(network, path)


def edges(blocks: int) -> dict[str, str]:
    supernet = build_supernet("tree", {"blocks": [blocks]})
    return dict.fromkeys(supernet.names, "identity")


# --- configs that do not fit ---

EDITS: list[tuple[str, list[Any], Any, str]] = [
    # file, place, value (... deletes), what the message says
    ("mobile", ["extra"], 1, "extra is 1; no space here has this field"),
    ("mobile", ["bn", "eps"], 1e-5, "bn.eps is 1e-05; 0.001 is expected"),
    ("mobile", ["bn"], None, "bn is null; {'eps': 0.001, 'momentum': 0.1} is expected"),
    ("mobile", ["name"], "ProxylessNASNet", "did you mean ProxylessNASNets"),
    ("mobile", ["blocks"], {}, "blocks is {}; it must be a list"),
    ("mobile", ["blocks"], [], "blocks[0] is missing"),
    ("mobile", ["first_conv", "use_bn"], 1, "first_conv.use_bn is 1; true is expected"),
    ("mobile", ["first_conv", "act_func"], "relu", "'relu6' is expected"),
    ("mobile", ["first_conv", "dilation"], ..., "first_conv.dilation is missing"),
    ("mobile", ["blocks", 1, "mobile_inverted_conv", "kernel_size"], 9, "is k9_e3"),
    ("mobile", ["blocks", 1, "mobile_inverted_conv", "stride"], True, "stride is true; it must"),
    (
        "mobile",
        ["blocks", 1, "mobile_inverted_conv", "mid_channels"],
        8,
        "mid_channels is 8; no space",
    ),
    ("mobile", ["blocks", 1, "mobile_inverted_conv", "name"], "X", "blocks[1].mobile"),
    ("mobile", ["blocks", 2, "shortcut"], None, "blocks[2].shortcut is null; {"),
    ("mobile", ["blocks", 3, "shortcut"], None, "blocks[3].shortcut is null; {"),
    ("mobile", ["blocks", 2, "shortcut", "in_channels"], 24, "blocks[2].shortcut.in_channels"),
    ("mobile", ["classifier", "out_features"], 1 << 40, "at least 1, at most 1,048,576"),
    ("mobile", ["classifier", "dropout_rate"], float("nan"), "NaN is no number in JSON"),
    ("cifar", ["blocks", 4, "final_bn"], False, "blocks[4].final_bn is false; true is expected"),
    ("cifar", ["blocks", 4, "in_bottle", "act_func"], "relu", "blocks[4].in_bottle.act_func"),
    ("cifar", ["blocks", 9, "cell", "edges"], [], "blocks[9].cell.edges has 0 elements"),
    ("cifar", ["blocks", 9, "cell", "child_nodes", 0], None, "child_nodes[0] is null; it must be"),
    (
        "cifar",
        ["blocks", 9, "cell", "edges", 0, "has_shuffle"],
        False,
        "has_shuffle is false; true",
    ),
    ("cifar", ["blocks", 55, "layers"], [], "blocks[55].layers has 0 elements"),
    ("cifar", ["cell_drop_rate"], 1.5, "cell_drop_rate is 1.5; it must be a number"),
    (
        "cifar",
        ["tree_node_config"],
        {"merge_type": "add"},
        "tree_node_config.merge_type is null; no space",
    ),
]
LEAF = ["blocks", 7, "cell", "child_nodes", 0, "child_nodes", 1, "child_nodes", 0, "edges", 1]
EDITS += [
    ("cifar", [*LEAF, "name"], "SqueezeLayer", "is the unknown layer 'SqueezeLayer'"),
    ("cifar", [*LEAF, "in_channels"], 5, "edges[1].in_channels is 5"),
    ("cifar", [*LEAF[:-2], "path_drop_rate"], 0.5, "path_drop_rate is 0.5; 0.0 is expected"),
    ("cifar", [*LEAF[:-2], "split_type"], "split", "split_type is 'split'; 'copy' is expected"),
    ("cifar", [*LEAF[:-2], "child_nodes", 0], {}, "child_nodes[0] is {}; null is expected"),
]


@pytest.mark.parametrize(("name", "place", "value", "says"), EDITS)
def test_another_field_is_an_error(
    name: str, place: list[Any], value: Any, says: str, tmp_path: Path
) -> None:
    config = reference_networks.load_config(name)
    edit(config, place, value)
    path = tmp_path / "edited.config"
    path.write_text(json.dumps(config))
    with pytest.raises(ArchitectureError) as error:
        read_published(path)
    assert says in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def edit(config: Any, place: list[Any], value: Any) -> None:
    for step in place[:-1]:
        config = config[step]
    if value is ...:
        del config[place[-1]]
    else:
        config[place[-1]] = value


# --- Once-for-All ---


def once_for_all(config: dict[str, Any], later: bool = False) -> dict[str, Any]:
    """A config in the form of Once-for-All, whose classes had other names later."""
    config = copy.deepcopy(config)
    config["bn"]["ws_eps"] = None
    for name in ("first_conv", "feature_mix_layer"):
        config[name]["use_se"] = False
    for block in config["blocks"]:
        conv = block["mobile_inverted_conv"]
        if conv["name"] == "ZeroLayer":
            del conv["stride"]
        else:
            width = conv["in_channels"] * conv["expand_ratio"]
            conv |= {"mid_channels": width if later else None, "act_func": "relu6"}
            conv |= {"use_se": False, "groups" if later else "channels_per_group": None}
            conv["name"] = "MBConvLayer" if later else conv["name"]
        if block["shortcut"]:
            for name in ("in_channels", "out_channels"):
                block["shortcut"][name] = [block["shortcut"][name]]
        if later:
            block["name"], block["conv"] = "ResidualBlock", block.pop("mobile_inverted_conv")
    return config


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("name", ["mobile", "gpu"])
def test_networks_of_once_for_all_are_read(name: str, later: bool) -> None:
    config = reference_networks.load_config(name)
    assert from_published(once_for_all(config, later)) == from_published(config)


def test_an_expansion_of_4_is_a_candidate() -> None:
    config = once_for_all(reference_networks.load_config("mobile"), later=True)
    conv = config["blocks"][1]["conv"]
    conv |= {"expand_ratio": 4, "mid_channels": 4 * conv["in_channels"]}
    network = from_published(config)
    assert network.choices["blocks.1"] == "k5_e4" and "k5_e4" in network.settings["candidates"]
    width = build(network).get_submodule("blocks.1")
    assert any(
        isinstance(m, nn.Conv2d) and m.groups == 4 * conv["in_channels"] for m in width.modules()
    )


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (
            ["name"],
            "MobileNetV3",
            "name is 'MobileNetV3', whose h_swish and squeeze-and-excitation",
        ),
        (["name"], "ResNets", "no space here has"),
        (["bn", "eps"], 1e-5, "bn.eps is 1e-05; 0.001 is expected"),
        (["blocks", 1, "conv", "use_se"], True, "use_se is true; no space here has this field"),
        (["blocks", 1, "conv", "act_func"], "h_swish", "act_func is 'h_swish'; no space here"),
        (["blocks", 1, "conv", "mid_channels"], 50, "mid_channels is 50; no space here"),
        (["blocks", 1, "conv", "expand_ratio"], 5, "is k5_e5; the space has k3_e3"),
        (["feature_mix_layer"], None, "feature_mix_layer is null; it must be"),
    ],
)
def test_what_no_space_has_is_refused_by_name(place: list[Any], value: Any, says: str) -> None:
    config = once_for_all(reference_networks.load_config("mobile"), later=True)
    edit(config, place, value)
    with pytest.raises(ArchitectureError) as error:
        from_published(config)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_widths_that_do_not_grow_evenly() -> None:
    config = shortened(2)
    config["blocks"][2:2] = [config["blocks"][2]] * 10  # 12 blocks of inner width 18
    with pytest.raises(ArchitectureError, match="18 to 18 of the blocks do not grow evenly"):
        from_published(config)


def shortened(last: int) -> dict[str, Any]:
    """The CIFAR config with blocks 1 to `last` of the first scale alone."""
    config = reference_networks.load_config("cifar")
    config["blocks"] = [*config["blocks"][: last + 1], head(config, last)]
    config["classifier"]["in_features"] = config["blocks"][last]["out_bottle"]["out_channels"]
    return config


def head(config: dict[str, Any], last: int) -> dict[str, Any]:
    """The final block for a network that ends after block `last` at the first scale."""
    width = config["blocks"][last]["out_bottle"]["out_channels"]
    pool = dict(config["blocks"][-1]["layers"][0])
    pool |= {"in_channels": width, "out_channels": width, "kernel_size": 32, "stride": 32}
    return {"name": "TransitionBlock", "layers": [pool]}


@pytest.mark.parametrize(
    "raw",
    [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"name": 1}', b'{"name": "a\\n"}',
     b'{"name": "PyramidTreeNet", "blocks": [1, 2, 3], "classifier": {}}', b"9" * 5000],
)  # fmt: skip
def test_not_a_config(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.config"
    path.write_bytes(raw)
    with pytest.raises(ArchitectureError, match="cannot read the published network") as error:
        read_published(path)
    assert "\n" not in str(error.value)


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b" " * ((16 << 20) + 1))
    for name in ("missing", ".", "large"):
        with pytest.raises(ArchitectureError, match="cannot read "):
            read_published(tmp_path / name)


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@quick
@given(data=st.data(), name=st.sampled_from(["gpu", "cifar"]))
def test_any_edit_is_read_or_a_user_error(data: st.DataObject, name: str) -> None:
    """One value anywhere in the file replaced, removed or moved."""
    # A short one, so that a draw reaches every kind of place.
    config = shortened(3) if name == "cifar" else reference_networks.load_config(name)
    here: Any = config
    place = None
    while isinstance(here, dict | list) and here and (place is None or data.draw(st.booleans())):
        step = data.draw(
            st.sampled_from(list(here) if isinstance(here, dict) else range(len(here)))
        )
        place = (here, step)
        here = here[step]
    assert place is not None
    holder, step = place
    if data.draw(st.booleans()):
        del holder[step]
    else:
        holder[step] = data.draw(junk)
    try:
        architecture = from_published(config)
    except ArchitectureError as error:
        assert "\n" not in str(error)
    else:
        assert Architecture.from_json(architecture.to_json()) == architecture
