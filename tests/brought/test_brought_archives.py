"""K3. Archives as people bring them: tar files of folders, WebDataset shards, tables within."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_folders import load, picture

from proxylessnas.data import ImageData
from proxylessnas.data.stores import PixelsInMemory
from proxylessnas.errors import DataError


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, "png")
    return buffer.getvalue()


def archive(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for name, content in files.items():
                zipped.writestr(name, content)
        return path
    with tarfile.open(path, "w") as tarred:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tarred.addfile(member, io.BytesIO(content))
    return path


def labelled(spec: Path, **settings: Any) -> dict[str, dict[bytes, str]]:
    """Part -> the pixels of an image -> its class."""
    data = load(spec, **settings)
    assert isinstance(data.store, PixelsInMemory)
    return {
        part: {
            data.store.pixels[row].numpy().tobytes(): data.info.classes[data.store.labels[row]]
            for row in data.rows[part].tolist()
        }
        for part in ("train", "test")
    }


def of(number: int) -> bytes:
    """The pixels of a picture, as a batch holds them."""
    return np.asarray(picture(number)).transpose(2, 0, 1).tobytes()


def refusal(spec: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        load(spec, workers=0, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- tar files of folders ---

TREE = {
    f"photos/{c}/{i}.png": png(1000 * k + i) for k, c in enumerate(("a", "b")) for i in range(9)
}


@pytest.mark.parametrize("suffix", ["zip", "tar"])
@pytest.mark.parametrize("prefix", ["", "./", "data/x/"])
def test_an_archive_of_class_folders(tmp_path: Path, suffix: str, prefix: str) -> None:
    files = {prefix + name: content for name, content in TREE.items()}
    read = labelled(archive(tmp_path / f"x.{suffix}", files))
    both = read["train"] | read["test"]
    assert both == {of(1000 * k + i): c for k, c in enumerate("ab") for i in range(9)}


def test_an_archive_with_parts(tmp_path: Path) -> None:
    files = {name.replace("photos", "train"): content for name, content in TREE.items()}
    files |= {
        f"val/{c}/{i}.png": png(7000 + 10 * k + i) for k, c in enumerate("ab") for i in (1, 2)
    }
    read = labelled(archive(tmp_path / "x.tar", files))
    assert read["test"] == {of(7001): "a", of(7002): "a", of(7011): "b", of(7012): "b"}
    assert len(read["train"]) == 18


def test_a_tar_file_holds_links_devices_and_two_versions_of_a_file(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar", TREE)
    with tarfile.open(path, "a") as tarred:
        link = tarfile.TarInfo("photos/a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tarred.addfile(link)
        later = tarfile.TarInfo("photos/a/0.png")
        later.size = len(png(5555))
        tarred.addfile(later, io.BytesIO(png(5555)))
    read = labelled(path)
    both = read["train"] | read["test"]
    assert len(both) == 18 and both[of(5555)] == "a" and of(0) not in both


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar.zst", "x.7z", "x.rar"])
def test_archives_that_are_compressed_as_a_whole_are_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"whatever")
    assert "unpack it, and give the folder" in refusal(tmp_path / name)


@pytest.mark.parametrize("content", [b"no tar file", b"\x1f\x8b\x08\0" + bytes(600)])
def test_what_is_no_tar_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    assert "x.tar is no whole tar file" in refusal(tmp_path / "x.tar")


@pytest.mark.parametrize("left", [0.3, 0.5, 0.7, 0.71, 0.75])
def test_a_tar_file_that_was_cut_short(tmp_path: Path, left: float) -> None:
    """As a download leaves it: what it still holds is not silently a smaller data set."""
    content = archive(tmp_path / "x.tar", TREE).read_bytes().rstrip(b"\0")
    (tmp_path / "x.tar").write_bytes(content[: round(left * len(content))])
    assert "x.tar is no whole tar file" in refusal(tmp_path / "x.tar")


# --- WebDataset ---


def shard(path: Path, numbers: range, **more: bytes) -> Path:
    files: dict[str, bytes] = {}
    for i in numbers:
        files |= {f"{i:05}.png": png(i), f"{i:05}.cls": str(i % 3).encode()}
        files |= {f"{i:05}.{kind}": content for kind, content in more.items()}
    return archive(path, files)


def test_shards_of_one_part(tmp_path: Path) -> None:
    shard(tmp_path / "w" / "000000.tar", range(12), json=b"{}")
    shard(tmp_path / "w" / "000001.tar", range(12, 30), txt=b"a caption")
    read = labelled(tmp_path / "w")
    assert read["train"] | read["test"] == {of(i): str(i % 3) for i in range(30)}
    assert labelled(shard(tmp_path / "one.tar", range(30))) == read


@pytest.mark.parametrize("name", ["{}-000000.tar", "imagenet1k-{}-0000.tar", "{}/00000.tar"])
def test_the_shards_names_or_folders_say_the_parts(tmp_path: Path, name: str) -> None:
    shard(tmp_path / name.format("train"), range(18))
    shard(tmp_path / name.format("validation"), range(18, 24))
    shard(tmp_path / name.format("test"), range(24, 30))
    data = load(tmp_path)
    assert data.summary.parts == {"train": 24, "search": 18, "valid": 6, "test": 6}
    assert labelled(tmp_path)["test"] == {of(i): str(i % 3) for i in range(24, 30)}


def test_labels_are_numbers_in_their_order_or_names(tmp_path: Path) -> None:
    files = {}
    for i in range(36):
        files |= {f"{i}.JPEG": png(i), f"{i}.cls": f"{i % 12}\n".encode()}
    assert load(archive(tmp_path / "x.tar", files)).info.classes == tuple(map(str, range(12)))
    files = {
        k: (v if k[-1] == "G" else b"cat" if len(k) == 5 else b"dog") for k, v in files.items()
    }
    assert load(archive(tmp_path / "y.tar", files)).info.classes == ("cat", "dog")


def test_samples_without_a_label_are_counted_and_masks_are_no_images(tmp_path: Path) -> None:
    files = {f"{i}.seg.png": png(900 + i) for i in range(24)}
    for i in range(24):
        files |= {f"{i}.png": png(i)} | ({} if i == 5 else {f"{i}.cls": str(i % 2).encode()})
    data = load(archive(tmp_path / "x.tar", files))
    assert sum(data.summary.classes.values()) == 23
    assert data.summary.left_out == {"train image without a label": 1}


def test_several_images_a_sample_are_refused(tmp_path: Path) -> None:
    files = {"0.png": png(0), "0.jpg": png(1), "0.cls": b"1"}
    assert "the sample 0 has several images" in refusal(archive(tmp_path / "x.tar", files))


def test_shards_of_captions_are_no_class_folders(tmp_path: Path) -> None:
    """As img2dataset writes them; nothing says a class."""
    files: dict[str, bytes] = {}
    for i in range(9):
        files |= {f"{i}.png": png(i), f"{i}.txt": b"a cat", f"{i}.json": b"{}"}
    archive(tmp_path / "w" / "00000.tar", files)
    archive(tmp_path / "w" / "00001.tar", files)
    assert "holds no images" in refusal(tmp_path / "w")
    assert "holds images but no folders" in refusal(tmp_path / "w" / "00000.tar")


# --- a table in an archive ---


@pytest.mark.parametrize("suffix", ["zip", "tar"])
@pytest.mark.parametrize("folder", ["", "set/"])
def test_a_table_within_an_archive(tmp_path: Path, suffix: str, folder: str) -> None:
    rows = "".join(f"images/{i}.png,{'ab'[i % 2]}\n" for i in range(20))
    files = {f"{folder}images/{i}.png": png(i) for i in range(21)}
    files[f"{folder}labels.csv"] = f"file,label\n{rows}".encode()
    path = archive(tmp_path / f"x.{suffix}", files)
    read = labelled(path / folder / "labels.csv")
    assert read["train"] | read["test"] == {of(i): "ab"[i % 2] for i in range(20)}
    left_out = load(path / folder / "labels.csv").summary.left_out
    assert left_out == {"image that is not in the table": 1}
    assert f"did you mean {path}/{folder}labels.csv?" in refusal(path)
    assert "holds no other.csv; its tables:" in refusal(path / "other.csv")


# --- pixels in tables ---

RAMP = np.stack([np.roll(np.linspace(-2.0, 3.0, 64), 3 * i).reshape(8, 8) for i in range(20)])
SCALED = [np.round(51 * (image + 2)).astype(np.uint8) for image in RAMP]


def expect_scaled(data: ImageData, channels: int = 1) -> None:
    """Every image once, its values in 0 to 255 by the set's range."""
    assert isinstance(data.store, PixelsInMemory)
    read = {image.numpy().tobytes() for image in data.store.pixels}
    assert read == {np.stack([image] * channels).tobytes() for image in SCALED}
    assert data.info.value_range == (-2, 3)
    assert data.summary.classes == {"a": 10, "b": 10}


@pytest.mark.parametrize("form", ["wide", "a list", "in brackets"])
def test_float_pixels_in_a_csv_file(tmp_path: Path, form: str) -> None:
    lines = ["label," + (",".join(f"pixel{k}" for k in range(64)) if form == "wide" else "pixels")]
    for i, image in enumerate(RAMP):
        cells = list(map(repr, map(float, image.ravel())))
        text = ",".join(cells) if form == "wide" else " ".join(cells)
        lines.append(f"{'ab'[i % 2]}," + (f"[{text}]" if form == "in brackets" else text))
    (tmp_path / "x.csv").write_text("\n".join(lines))
    expect_scaled(load(tmp_path / "x.csv"))


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (3, 8, 8), (64,)])
def test_float_pixels_in_parquet(tmp_path: Path, shape: tuple[int, ...]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    colours = np.stack([RAMP] * 3, 1 if shape[0] == 3 else 3) if 3 in shape else RAMP
    images = colours.reshape(20, *shape).astype(np.float32).tolist()
    table = pa.table({"image": images, "label": ["ab"[i % 2] for i in range(20)]})
    (tmp_path / "w").mkdir()
    pq.write_table(table, tmp_path / "w" / "train.parquet")
    expect_scaled(load(tmp_path / "w"), 3 if 3 in shape else 1)


def test_whole_pixels_of_a_csv_file_stay_as_they_are(tmp_path: Path) -> None:
    """As MNIST and FER2013 are exported, with the parts that the latter names."""
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8))
    lines = ["emotion,pixels,Usage"]
    for i, image in enumerate(images):
        usage = ("Training", "Training", "PublicTest", "PrivateTest")[i % 4]
        lines.append(f"{i // 4 % 2},{' '.join(map(str, image.ravel()))},{usage}")
    (tmp_path / "fer.csv").write_text("\n".join(lines))
    read = labelled(tmp_path / "fer.csv", label_column="emotion")
    expected = {image.astype(np.uint8).tobytes(): str(i // 4 % 2) for i, image in enumerate(images)}
    assert read["train"] | read["test"] == expected and len(read["test"]) == 12


def test_numbers_without_a_header_say_their_label_only_if_asked(tmp_path: Path) -> None:
    """The label is the first column in some exports and the last in others."""
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8))
    rows = [f"{','.join(map(str, m.ravel()))},{i % 2}" for i, m in enumerate(images)]
    (tmp_path / "x.csv").write_text("\n".join(rows))
    assert "--loading.label-column 1 (the first) or 65 (the last)" in refusal(tmp_path / "x.csv")
    read = labelled(tmp_path / "x.csv", label_column="65")
    assert read["train"] | read["test"] == {
        m.astype(np.uint8).tobytes(): str(i % 2) for i, m in enumerate(images)
    }


def test_pixels_that_are_no_square_or_not_as_many_are_refused(tmp_path: Path) -> None:
    row = " ".join(map(str, range(70)))
    (tmp_path / "x.csv").write_text("label,pixels\n" + f"a,{row}\nb,{row}\n" * 9)
    assert "70 numbers are no square image" in refusal(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text(f"label,pixels\na,{row}\nb,{row} 1\n" + f"a,{row}\n" * 9)
    assert "as many a row" in refusal(tmp_path / "x.csv")


def test_a_folder_of_archives_is_named_as_such(tmp_path: Path) -> None:
    for name in ("cats.zip", "dogs.zip", "birds.tar"):
        archive(tmp_path / name, {"1.png": png(1)})
    with pytest.raises(DataError, match="holds no images but 3 archives: give one as --data"):
        load(tmp_path)
