"""Every reader of a stranger's file: our error or a value, never a traceback, a hang, gigabytes."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
import resource
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from amounts import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutate import absurd, damaged, hostile
from safetensors.torch import load, save
from toys import Planted, make_search

from proxylessnas import zoo
from proxylessnas.architecture import Architecture
from proxylessnas.config import RunConfig, parse_settings, read_config
from proxylessnas.errors import UserError
from proxylessnas.hardware.kit_results import import_kit
from proxylessnas.hardware.published_table import read_published_table
from proxylessnas.hardware.table import LatencyTable
from proxylessnas.io.console import Reporter
from proxylessnas.io.stopping import Signal
from proxylessnas.runs.directory import RunDirectory
from proxylessnas.session.checkpoints import StoreCheckpoints
from proxylessnas.session.records import Records
from proxylessnas.spaces import SPACES, build, build_supernet
from proxylessnas.training.ranks import ALONE
from proxylessnas.zoo.weights import published_keys

pytestmark = pytest.mark.slow
Seed = st.integers(0, 2**32 - 1)
GIB = 1 << 30


def many(most: int) -> settings:
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return examples(most, suppress_health_check=quiet)


@pytest.fixture(autouse=True)
def _no_gigabytes() -> Iterator[None]:
    """Whoever asks for a gigabyte more gets a MemoryError, which is no error of ours."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def survives(read: Callable[[], Any]) -> Any:
    """What was read, or None where it was refused in one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read()
        except UserError as error:
            assert str(error) and "\n" not in str(error)
            assert len(str(error)) < 2000
            return None


# --- JSON ---

DEVICE = {
    **{"runtime": "fake", "version": "1", "precision": "f32", "threads": 1, "device": "a phone"},
    **{"batch": 1, "input_shapes": "1x3x8x8", "cores": 2, "system": "Linux"},
}
TABLE = json.dumps(
    {
        **{"schema": 1, "complete": True, "device": DEVICE, "validation": None},
        "environments": [{"date": "2026-01-01", "pinned_core": 0}],
        "entries": {f"k{i}": {"samples_ms": [1.0 + i, 1.5], "environment": 0} for i in range(3)},
        "networks": [
            {
                **{"role": "canary", "space": "abc", "macs": 1000, "choices": {"a": "b"}},
                **{"samples_ms": [3.0], "environment": 0},
                "repeat": {"samples_ms": [3.1], "environment": 0},
            }
        ],
    }
)
MANIFEST = {
    **{"schema": 1, "runtime": "litert", "threads": 1, "batch": 1, "input_shapes": "1x3x8x8"},
    **{"runs": 2, "warmup": 1, "seed": 0, "canary": "network 0", "space": "abc"},
    "model": {"space": "macro", "settings": {}},
    "files": {
        "k": {"file": "networks/0.tflite", "visits": 2},
        "network 0": {"file": "networks/1.tflite", "visits": 1},
    },
    "networks": [{"name": "network 0", "choices": {"a": "b"}, "role": "canary", "macs": 5}],
}
RESULTS = json.dumps(
    {
        **{"schema": 1, "manifest": MANIFEST, "device": DEVICE, "environment": {"date": "x"}},
        "samples_ms": {"k": [1.0, 2.0], "network 0": [3.0]},
    }
)
LOG = (
    f"### manifest {json.dumps(MANIFEST)}\n### device A phone\n### system Android 14\n"
    "### date 2026-01-01\n### visit k\nINFO: Init: 5, Inference (avg): 10\n"
    "### visit network 0\nINFO: Inference (avg): 21.5e1\n"
)


def test_the_good_ones_are_read(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(TABLE)
    assert len(LatencyTable.load(tmp_path / "table.json").entries) == 3
    (tmp_path / "results.json").write_text(RESULTS)
    assert len(import_kit(tmp_path / "results.json").table.entries) == 1
    (tmp_path / "log").write_text(LOG)
    assert len(import_kit(tmp_path / "log").table.networks) == 1


@many(400)
@given(Seed, st.sampled_from(["proxyless_mobile", "proxyless_cifar"]))
def test_architectures(tmp_path: Path, seed: int, name: str) -> None:
    path = tmp_path / "architecture.json"
    path.write_bytes(hostile(zoo.load(name).to_json(), random.Random(seed)))
    read = survives(lambda: Architecture.load(path))
    if read is not None:
        hash(read)
        assert Architecture.from_json(read.to_json()) == read


@many(150)
@given(Seed, st.sampled_from(["mobile", "macro", "tree"]))
def test_networks_of_hostile_settings(seed: int, space: str) -> None:
    small: dict[str, Any] = {
        "mobile": {"widths": [8, 8], "depths": [1, 1], "stem": 8, "first": 8, "head": 8},
        "macro": {"widths": [8], "depths": [1], "stem": 8, "head": 8},
        "tree": {"blocks": [1], "start": 8, "growth": 2, "bottleneck": 1},
    }[space]
    plain = {**small, "input_shape": [3, 32, 32], "classes": 4}
    changed = absurd(plain, random.Random(seed))
    if isinstance(changed, dict):  # `Architecture` sees to that
        survives(lambda: build_supernet(space, changed))


@pytest.mark.parametrize(
    ("space", "settings"),
    [
        ("mobile", {"widths": [10**9], "depths": [1]}),
        ("mobile", {"width_mult": 1e6}),
        ("mobile", {"width_mult": float("nan")}),
        ("mobile", {"depths": [10**9] * 6}),
        ("mobile", {"head": 10**9}),
        ("mobile", {"classes": 10**12}),
        ("mobile", {"input_shape": [3, 10**6, 10**6]}),
        ("mobile", {"input_shape": [10**6, 32, 32]}),
        ("macro", {"widths": [10**7, 8, 8]}),
        ("macro", {"stem": 10**9}),
        ("tree", {"depth": 10**6}),
        ("tree", {"branching": 10**6}),
        ("tree", {"blocks": [10**9]}),
        ("tree", {"growth": 10**9}),
        ("tree", {"bottleneck": 10**9}),
    ],
)
def test_absurd_sizes_are_refused_at_once(space: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        parse_settings(SPACES[space].settings, settings, f"space {space}")
    assert "\n" not in str(caught.value)


@many(400)
@given(Seed)
def test_latency_tables(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(hostile(TABLE, random.Random(seed)))
    table = survives(lambda: LatencyTable.load(path))
    if table is not None:
        survives(lambda: table["no such key"])
        survives(lambda: table.check(DEVICE, 1))
        assert LatencyTable.from_json(table.to_json()) == table
        for measured in table.entries.values():
            assert all(0 <= ms < float("inf") for ms in measured.samples_ms)


@many(400)
@given(Seed, st.booleans())
def test_results_of_kits(tmp_path: Path, seed: int, android: bool) -> None:
    chance = random.Random(seed)
    path = tmp_path / "results"
    path.write_bytes(damaged(LOG.encode(), chance) if android else hostile(RESULTS, chance))
    read = survives(lambda: import_kit(path))
    if read is not None:  # of what the manifest asks for, and nothing else
        assert all(
            0 <= ms < float("inf")
            for entry in read.table.entries.values()
            for ms in entry.samples_ms
        )


@many(200)
@given(Seed)
def test_published_networks(tmp_path: Path, seed: int) -> None:
    reference_networks = pytest.importorskip("reference_networks")
    if not reference_networks.config_path("mobile").exists():
        pytest.skip("the published networks are not here")
    path = tmp_path / "net.config"
    path.write_bytes(
        hostile(reference_networks.config_path("mobile").read_text(), random.Random(seed))
    )
    survives(lambda: zoo.read_published(path))


# --- YAML ---

PUBLISHED = """\
Conv-input:224x224x3-output:112x112x32: {count: 10, mean: 1.5, var: 0.1}
expanded_conv-input:56x56x24-output:56x56x24-expand:3-kernel:5-stride:1-idskip:1:
  {count: 10, mean: 2.5, std: 0.1}
"""
CONFIG = yaml.safe_dump(
    {
        **{"data": "digits", "space": "macro", "target_latency": "0.7x", "seed": 3},
        "space_settings": {"widths": [8], "depths": [1]},
        "search": {"epochs": 2, "learning_rate": 0.1, "estimator": "two_path"},
        "measure": {"threads": 1},
    }
)


@many(300)
@given(Seed)
def test_published_tables(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "table.yaml"
    path.write_bytes(damaged(PUBLISHED.encode(), random.Random(seed)))
    read = survives(lambda: read_published_table(path))
    if read is not None:  # what the text says, by a reader that knows texts alone
        texts = yaml.load(path.read_bytes(), Loader=yaml.BaseLoader)
        assert read.entries == {key: float(entry["mean"]) for key, entry in texts.items()}
        assert all(0 < ms < float("inf") for ms in read.entries.values())
        assert read.channels == any("-se:" in key for key in texts)


@many(300)
@given(Seed)
def test_configs(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "config.yaml"
    if chance.random() < 0.6:
        path.write_bytes(damaged(CONFIG.encode(), chance))
    else:
        value = absurd(yaml.safe_load(CONFIG), chance)
        path.write_bytes(json.dumps(value).encode("utf-8", "surrogatepass"))
    read = survives(lambda: read_config(path))
    if read is not None:  # every value has its type and range, and comes back as it is
        assert isinstance(read, RunConfig)
        assert parse_settings(RunConfig, json.loads(json.dumps(dataclasses.asdict(read)))) == read


@pytest.mark.parametrize("reader", [read_config, read_published_table])
def test_a_billion_laughs(tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "laughs.yaml").write_text("\n".join(lines))
    assert survives(lambda: reader(tmp_path / "laughs.yaml")) is None


READERS: tuple[Callable[[Path], Any], ...] = (
    *(Architecture.load, LatencyTable.load, import_kit, read_config, read_published_table),
    *(zoo.read_published, lambda path: zoo.load_published_weights(small_network(), path)),
)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/mem", ".", "no/such/file", "x\0y"])
def test_what_is_no_file(reader: Callable[[Path], Any], path: str) -> None:
    try:
        assert survives(lambda: reader(Path(path))) is None
    except ValueError as error:  # a zero byte in a path never gets as far as the reader's own
        assert "null byte" in str(error)


# --- safetensors and zip ---


def small_network() -> torch.nn.Module:
    settings = {
        **{"widths": [8], "depths": [1], "stem": 8, "first": 8, "head": 8, "classes": 2},
        "input_shape": [3, 32, 32],
    }
    architecture = Architecture(
        space="mobile", settings=settings, choices={"blocks.1.branch": "k3_e3"}
    )
    return build(architecture)


@pytest.fixture(scope="module")
def weights() -> dict[str, bytes]:
    network = small_network()
    state = {k: v.detach().clone() for k, v in published_keys(network).items()}
    buffer = io.BytesIO()
    torch.save({"state_dict": state}, buffer)
    old = io.BytesIO()
    torch.save({"state_dict": state}, old, _use_new_zipfile_serialization=False)
    return {"w.safetensors": save(state), "w.pth": buffer.getvalue(), "old.pth": old.getvalue()}


@many(300)
@given(Seed, st.sampled_from(["w.safetensors", "w.pth", "old.pth"]))
def test_published_weights(tmp_path: Path, weights: dict[str, bytes], seed: int, name: str) -> None:
    chance = random.Random(seed)
    path = tmp_path / name
    head = weights[name][:3000] if chance.random() < 0.7 else weights[name]
    path.write_bytes(damaged(head, chance) + weights[name][len(head) :])
    network = small_network()
    keys = published_keys(network)
    with torch.no_grad():
        for tensor in keys.values():
            tensor.fill_(-7)
    if survives(lambda: zoo.load_published_weights(network, path) or True) is None:
        assert all((tensor == -7).all() for tensor in keys.values())  # not even a half
        return
    data = path.read_bytes()
    saved = {
        key: tensor.numpy().tobytes() for key, tensor in load(weights["w.safetensors"]).items()
    }
    for key, tensor in keys.items():
        values = tensor.detach().numpy().tobytes()
        assert torch.isfinite(tensor).all()
        if name == "w.pth":  # it has checksums: what is read is what was saved
            assert values == saved[key]
        # As a reader finds them that knows nothing of formats; a counter may have been absent.
        assert values in data or key.endswith("num_batches_tracked")


def test_a_zip_that_unpacks_into_gigabytes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(200 << 20))
    assert (
        survives(lambda: zoo.load_published_weights(small_network(), tmp_path / "bomb.pth")) is None
    )


@many(300)
@given(Seed, st.booleans())
def test_checkpoints(tmp_path: Path, seed: int, sums: bool) -> None:
    """With a checksum that agrees: a stranger can compute one."""
    chance = random.Random(seed)
    directory = RunDirectory(tmp_path)
    directory.save_tensors("w.safetensors", {"a": torch.ones(3), "b": torch.zeros(2, 2)}, {"s": 1})
    data = damaged((tmp_path / "w.safetensors").read_bytes(), chance)
    (tmp_path / "w.safetensors").write_bytes(data)
    if sums:
        (tmp_path / "w.safetensors.sha256").write_text(hashlib.sha256(data).hexdigest())
    read = survives(lambda: directory.load_tensors("w.safetensors"))
    if read is not None and not sums:  # what was damaged is refused, so it is what was saved
        tensors, values = read
        assert values == {"s": 1} and tensors.keys() == {"a", "b"}
        assert torch.equal(tensors["a"], torch.ones(3))
        assert torch.equal(tensors["b"], torch.zeros(2, 2))


@many(200)
@given(Seed)
def test_states_of_another_search(seed: int) -> None:
    """Tensors and values that are well formed, and wrong."""
    chance = random.Random(seed)
    job = make_search(Planted())
    job.weight_step()
    tensors, values = job.state()
    values = absurd({"metrics_size": 0, **json.loads(json.dumps(values))}, chance)
    for name in chance.sample(sorted(tensors), chance.randint(0, 2)):
        tensors[name] = chance.choice((torch.ones(7), torch.ones(()), torch.zeros(0)))
    saved, loaded = StoreCheckpoints(RunDirectory(Path("nowhere")), "search", Signal()), []

    def read() -> bool:
        loaded.append(make_search(Planted()))
        saved._load(loaded[0], (tensors, values))
        return True

    if survives(read):  # all of it, and nothing else
        again, plain = loaded[0].state()
        assert again.keys() == tensors.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
        assert repr({n: values.get(n, "missing") for n in plain}) == repr(plain)


@many(200)
@given(Seed)
def test_records_of_stages(tmp_path: Path, seed: int) -> None:
    (tmp_path / "stages").mkdir(exist_ok=True)
    (tmp_path / "a.json").write_bytes(b"{}")
    facts = {"seconds": 1.5, "entropy": 0.5, "straightness": None, "architecture_steps": 4}
    files = {"a.json": hashlib.sha256(b"{}").hexdigest()}
    record = tmp_path / "stages" / "search.json"
    record.write_bytes(hostile(json.dumps({"files": files, **facts}), random.Random(seed)))
    records = Records(RunDirectory(tmp_path), ALONE, Reporter(quiet=True))
    done = survives(lambda: records.done("search"))
    read = survives(lambda: records.require("search"))
    assert done or read is None
    if read is not None:  # what the text says, of a finished stage alone
        assert json.loads(record.read_bytes()).items() <= read.items()
        assert read["files"].items() <= files.items()
        assert 0 <= read["entropy"] <= 1 and read["architecture_steps"] >= 0 <= read["seconds"]
