"""The CIFAR-10 tree space: its structure, its paths, its settings, its memory."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from amounts import THOROUGH, examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from proxylessnas import zoo
from proxylessnas.core.gates import Binary, Path
from proxylessnas.core.supernet import Supernet
from proxylessnas.errors import ConfigError
from proxylessnas.spaces import build, build_supernet
from proxylessnas.spaces.tree import CANDIDATES, TreeSettings
from proxylessnas.spaces.tree_layers import Cell, Node, PreConv, TreeBlock

SMALL = {"blocks": [2, 2, 2], "growth": 12, "input_shape": [3, 16, 16]}


@pytest.fixture
def small() -> Supernet:
    return build_supernet("tree", SMALL)


def test_the_full_space() -> None:
    with torch.device("meta"):
        supernet = build_supernet("tree")
    assert len(supernet.names) == 648 == 12 * 54
    assert set(supernet.candidates) == {CANDIDATES} and len(CANDIDATES) == 7
    assert supernet.names[7] == "blocks.0.cell.branches.1.edges.1"
    assert supernet.names[-1] == "blocks.53.cell.branches.1.nodes.1.edges.1"
    published = dict(zoo.load("proxyless_cifar").settings)
    assert published == json.loads(json.dumps(supernet.settings))  # the defaults are its
    widths = [TreeSettings().inner(i) for i in range(1, 55)]
    assert widths[0] == 18 and widths[18] == 46 and widths[-1] == 100
    strides = [
        i
        for i, block in enumerate(supernet.model.get_submodule("blocks").children(), 1)
        if isinstance(block, TreeBlock) and isinstance(block.shortcut, nn.AvgPool2d)
    ]
    assert strides == [19, 37]


def test_a_fresh_network_computes_finite_numbers() -> None:
    """54 blocks in eval mode before any statistics: what an export or a measurement meets."""
    network = build(zoo.load("proxyless_cifar")).eval()
    with torch.no_grad():
        out = network(torch.randn(2, 3, 32, 32))
    assert out.isfinite().all() and 0 < out.abs().max() < 1e6


@pytest.mark.parametrize("seed", range(3))
def test_active_derived_and_built_compute_the_same(small: Supernet, seed: int) -> None:
    architecture = small.sample(torch.Generator().manual_seed(seed))
    x = torch.randn(3, 3, 16, 16)
    derived, built = small.derive(architecture), build(architecture)
    built.load_state_dict(derived.state_dict())
    for training in (False, True):
        with torch.no_grad(), small.active(architecture) as model:
            expected = model.train(training)(x)
            assert torch.equal(derived.train(training)(x), expected)
            assert torch.equal(built.train(training)(x), expected)


def test_a_step_of_each_kind(small: Supernet) -> None:
    """A weight step reaches the active path alone; an architecture step every pair's gates."""
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    row = list(small.indices(small.sample(torch.Generator().manual_seed(1))))
    with small.gated([Path(j) for j in row]) as model:
        functional.cross_entropy(model(x), y).backward()
    for mixed, j in zip(small.paths, row, strict=True):
        for k, candidate in enumerate(mixed.candidates.values()):
            assert all((p.grad is not None) == (k == j) for p in candidate.parameters())
    gates = [torch.zeros(7, requires_grad=True) for _ in row]
    pairs = [Binary(j, ((j + 3) % 7,), g) for j, g in zip(row, gates, strict=True)]
    with small.gated(pairs) as model:
        functional.cross_entropy(model(x), y).backward()
    for j, gate in zip(row, gates, strict=True):
        assert gate.grad is not None and gate.grad.isfinite().all()
        assert set(gate.grad.nonzero().flatten().tolist()) <= {j, (j + 3) % 7}
    assert sum(bool(g.grad.any()) for g in gates if g.grad is not None) > 0.9 * len(gates)


def test_no_candidate_changes_its_input(small: Supernet) -> None:
    for mixed in list(small.paths)[:12]:
        for candidate in mixed.candidates.values():
            x = torch.randn(2, 18, 8, 8)
            before = x.clone()
            candidate(x)
            assert torch.equal(x, before) and x._version == 0


def test_order_of_the_tree() -> None:
    """Σ over edges of node(edge(x)); a cell's branch is BN(branch(part)) + part."""

    class Scale(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * x

    leaves = [Node([Scale(2), Scale(3)]), Node([Scale(5), Scale(7)])]
    node = Node([Scale(11), Scale(13)], leaves)
    x = torch.randn(2, 4, 4, 4)
    torch.testing.assert_close(node(x), (11 * 5 + 13 * 12) * x)
    cell = Cell(4, [Node([Scale(2)]), Node([Scale(3)])]).eval()
    first, second = cell.conv(x).split(4, 1)
    bn = (1 + 1e-5) ** -0.5
    torch.testing.assert_close(cell(x), (2 * bn + 1) * first + (3 * bn + 1) * second)


def test_shuffle_interleaves_the_groups() -> None:
    layer = PreConv(4, 6, 1, groups=2).eval()
    x = torch.randn(1, 4, 2, 2)
    plain = layer.conv(layer.relu(layer.bn(x)))
    assert torch.equal(layer(x), plain[:, [0, 3, 1, 4, 2, 5]])


def test_shortcut_pads_after_its_own_channels() -> None:
    block = TreeBlock(4, 2, 8, nn.AvgPool2d(2), stride=2).eval()
    nn.init.zeros_(block.final_bn.weight)
    x = torch.randn(1, 4, 4, 4)
    assert torch.equal(block(x)[:, :4], functional.avg_pool2d(x, 2))
    assert not block(x)[:, 4:].any()


def test_drop_rates() -> None:
    """Left out at their rate in training, scaled by 1 - rate in evaluation."""
    node = Node([nn.Identity(), nn.Identity()], drop=0.25)
    one = torch.ones(1)
    assert node.eval()(one) == 1.5
    draws = [node.train()(one).item() for _ in range(2000)]
    assert set(draws) == {0.0, 1.0, 2.0}
    assert sum(draws) / 2000 == pytest.approx(1.5, abs=0.06)
    block = TreeBlock(4, 2, 4, nn.Identity(), drop=0.5)
    x = torch.randn(2, 4, 4, 4)
    block.eval()
    kept = block(x) - x
    block.drop = 0.0
    torch.testing.assert_close(block(x) - x, 2 * kept)
    block.drop = 1 - 1e-9
    assert torch.equal(block.train()(x), x)
    cell = Cell(2, [Node([nn.Identity()])], stride=2, drops=(1 - 1e-9, 0.0)).train()
    assert torch.equal(cell(torch.randn(1, 2, 4, 4)), torch.zeros(1, 2, 2, 2))


@examples(20)
@given(
    blocks=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    start=st.integers(4, 9),
    growth=st.integers(0, 40),
    bottleneck=st.integers(1, 4),
    shape=st.tuples(*[st.integers(1, 3)] * 3),
    groups=st.integers(1, 3),
)
def test_any_settings_build_or_say_why(
    blocks: list[int],
    start: int,
    growth: int,
    bottleneck: int,
    shape: tuple[int, int, int],
    groups: int,
) -> None:
    branches, depth, branching = shape
    given_settings = {
        "blocks": blocks,
        "start": start,
        "growth": growth,
        "bottleneck": bottleneck,
        "branches": branches,
        "depth": depth,
        "branching": branching,
        "groups": groups,
        "candidates": ["dw3", "identity"],
        "input_shape": [3, 8, 8],
    }
    with torch.device("meta"):
        try:
            supernet = build_supernet("tree", given_settings)
        except ConfigError as error:
            assert "wider than the first block" in str(error)
            return
        edges = sum(branching**level for level in range(1, depth + 1))
        assert len(supernet.names) == sum(blocks) * branches * edges
        assert supernet.model(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"blocks": []}, r"blocks is \[\]; .*of length at least 1"),
        ({"blocks": [1, 0]}, r"blocks\[1\] is 0; it must be a whole number, at least 1"),
        ({"growth": -2}, "growth is -2"),
        ({"groups": 0}, "groups is 0"),
        ({"start": 17, "growth": 0, "bottleneck": 1}, "start 17 is wider than the first block"),
        ({"input_shape": [3, 30, 32]}, "multiples of 4"),
        ({"candidates": ["dw9"]}, "did you mean dw7"),
        ({"candidates": ["dw3", "dw3"]}, "name each once"),
        ({"candidates": []}, "name each once"),
        ({"path_drop": [0.1, 0.1]}, "give one, or 4"),
        ({"cell_drop": [0.1, 0.1]}, "give one, or 54"),
        ({"path_drop": [1.0]}, r"path_drop\[0\] is 1.0; it must be a number, at least 0, below 1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"width": 3}, "there is no 'width'"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_supernet("tree", wrong)


STEP = """
import json, random, sys
import torch
from proxylessnas.core.gates import Binary, Path
from proxylessnas.spaces import build, build_supernet

def peak_gib():  # ru_maxrss would start at the parent's
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line[:5] == "VmHWM") / 2**20

torch.set_num_threads(1)
x, y = torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))
facts = {"start": peak_gib()}
settings = json.loads(sys.argv[2])

def choices(supernet):
    draws = random.Random(0)
    return [draws.randrange(7) for _ in supernet.names]

def step(model, name):
    torch.nn.functional.cross_entropy(model(x), y).backward()
    facts[name] = peak_gib()

if sys.argv[1] == "network":
    with torch.device("meta"):
        supernet = build_supernet("tree", settings)
    step(build(supernet.architecture(choices(supernet))), "weight")
else:
    supernet = build_supernet("tree", settings)
    facts["built"] = peak_gib()
    row = choices(supernet)
    with supernet.gated([Path(j) for j in row]) as model:
        step(model, "weight")
    gates = [torch.zeros(7, requires_grad=True) for _ in row]
    pairs = [Binary(j, ((j + 1) % 7,), g) for j, g in zip(row, gates)]
    with supernet.gated(pairs) as model:
        step(model, "architecture")
    assert all(g.grad is not None for g in gates)
print(json.dumps(facts))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_a_supernet_takes_a_step_in_the_memory_of_one_path() -> None:
    """Batch 8; what it needs beyond a plain network is its weights, not paths.

    All seven paths of every choice would need seven times the network's activations. The full
    space, in `make test-all`, stays within 24 GiB.
    """
    no_drops = {"path_drop": [0.0], "cell_drop": [0.0]}
    settings = no_drops if THOROUGH else {**no_drops, "blocks": [1, 1, 1]}

    def run(kind: str) -> dict[str, float]:
        """Peak memory after each step, in GiB."""
        command = [sys.executable, "-c", STEP, kind, json.dumps(settings)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        facts: dict[str, float] = json.loads(done.stdout)
        return facts

    network, supernet = run("network"), run("supernet")
    activations = network["weight"] - network["start"]
    assert activations > 0.1
    assert supernet["architecture"] < 24
    assert supernet["weight"] - supernet["built"] < 1.5 * activations + 0.1
    assert supernet["architecture"] - supernet["built"] < 2 * activations + 0.2
