"""Tables as people bring them: CSV files, parquet, save_to_disk; which columns, which labels."""

from __future__ import annotations

import io
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_folders import load, make_folder, picture, sizes

from proxylessnas.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "hf")
    )


def refusal(spec: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        load(spec, workers=0, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, "png")
    return buffer.getvalue()


# --- parquet, as pandas or another tool writes it ---


def parquet(root: Path, name: str = "train.parquet", **columns: list[Any]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir(exist_ok=True)
    (rows,) = {len(cells) for cells in columns.values()}
    pq.write_table(pa.table({"img": [png(i) for i in range(rows)], **columns}), root / name)
    return root


CYCLE = [i % 3 for i in range(21)]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([float(i) for i in CYCLE], ("0", "1", "2")),
        ([[int(i == k) for k in range(3)] for i in CYCLE], ("0", "1", "2")),
        ([[float(i == k) for k in range(3)] for i in CYCLE], ("0", "1", "2")),
        ([[i] for i in CYCLE], ("0", "1", "2")),
        ([["abc"[i]] for i in CYCLE], ("a", "b", "c")),
        ([str(9 + i) for i in CYCLE], ("9", "10", "11")),
        ([b"abc"[i : i + 1] for i in CYCLE], ("a", "b", "c")),
        ([i > 1 for i in CYCLE], ("False", "True")),
        ([-1 if i else 1 for i in CYCLE], ("-1", "1")),
        ([(" café", "cafe\u0301", "x")[i] for i in CYCLE], ("café", "x")),
    ],
)
def test_labels_of_any_plain_kind(tmp_path: Path, labels: list[Any], classes: Any) -> None:
    summary = load(parquet(tmp_path / "x", label=labels)).summary
    assert tuple(summary.classes) == classes
    if len(classes) == 3:
        assert set(summary.classes.values()) == {7}


def test_labels_that_are_missing(tmp_path: Path) -> None:
    labels = [float("nan"), None, *map(float, CYCLE)]
    summary = load(parquet(tmp_path / "x", label=labels)).summary
    assert sum(summary.classes.values()) == 21
    assert summary.left_out == {"train image without a label": 2}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.37 * i for i in CYCLE], "a label is one number or name an image, not 0.37"),
        ([[1, int(i > 1)] for i in CYCLE], "not several ([1, 0])"),
        ([[0, 1], [2], *[[1]] * 19], "not several ([0, 1])"),
        ([[], *[[1]] * 20], "not several ([])"),
        ([{"a": i} for i in CYCLE], "a label is one number or name an image, not {'a': 0}"),
    ],
)
def test_labels_that_are_not_one_class_an_image(
    tmp_path: Path, labels: list[Any], message: str
) -> None:
    assert message in refusal(parquet(tmp_path / "x", label=labels))


def test_two_label_columns(tmp_path: Path) -> None:
    root = parquet(tmp_path / "x", fine_label=CYCLE, category=[i > 0 for i in CYCLE])
    assert "has 2 label columns: fine_label, category; choose with --loading.label-column" in (
        refusal(root)
    )
    assert load(root, label_column="fine_label").info.classes == ("0", "1", "2")
    assert load(root, label_column="category").info.classes == ("False", "True")
    assert "no column 'categroy'; did you mean category?" in refusal(root, label_column="categroy")


def test_a_column_called_label_beside_others(tmp_path: Path) -> None:
    summary = load(parquet(tmp_path / "x", label=CYCLE, category=CYCLE)).summary
    assert "image column img; label column label; columns not used: category" in str(summary)


def test_columns_of_other_names(tmp_path: Path) -> None:
    root = parquet(tmp_path / "x", what=CYCLE, scan=[png(50 + i) for i in range(21)])
    assert "no label column" in refusal(root)
    data = load(root, label_column="what", image_column="scan")
    assert "image column scan; label column what" in str(data.summary)


def test_pixels_as_nested_lists(tmp_path: Path) -> None:
    pixels = [np.array(picture(i)) for i in range(21)]
    lists, files = parquet(tmp_path / "x", label=CYCLE), parquet(tmp_path / "y", label=CYCLE)
    parquet(lists, label=CYCLE, pixels=[p.tolist() for p in pixels])
    a, b = load(lists, image_column="pixels"), load(files)
    assert a.info == b.info
    parquet(lists, label=CYCLE, pixels=[(p / 255).tolist() for p in pixels])
    scaled = load(lists, image_column="pixels")  # by the set's own range, which is 0 to 1
    assert scaled.info == replace(a.info, value_range=(0, 1))


def test_which_split_is_said(tmp_path: Path) -> None:
    root = parquet(tmp_path / "x", label=CYCLE)
    parquet(root, "eval.parquet", label=CYCLE[:6])
    data = load(root)
    assert sizes(data)[0] == 21 and data.size("test") == 6
    assert "train from split train" in str(data.summary)


def test_one_parquet_file(tmp_path: Path) -> None:
    root = parquet(tmp_path / "x", "things.parquet", label=CYCLE)
    assert load(root / "things.parquet").info == load(root).info


# --- Hugging Face ---


def hugging_face(names: list[str], labels: list[int], first: int = 0) -> Any:
    import datasets

    kinds = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=names)})
    cells = [{"bytes": png(first + i), "path": None} for i in range(len(labels))]
    return datasets.Dataset.from_dict({"photo": cells, "kind": labels}, features=kinds)


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    hugging_face(["cat", "dog"], [0, 1] * 10).save_to_disk(str(tmp_path / "one"))
    assert load(tmp_path / "one").summary.classes == {"cat": 10, "dog": 10}
    (tmp_path / "one" / "state.json").write_text("{")
    assert "what save_to_disk wrote to" in refusal(tmp_path / "one")


def test_splits_that_number_their_classes_otherwise(tmp_path: Path) -> None:
    import datasets

    parts = {
        "train": hugging_face(["cat", "dog"], [0, 1] * 10),
        "test": hugging_face(["dog", "cat"], [0, 0, 0, 0, 1], first=50),
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "both"))
    assert load(tmp_path / "both").summary.classes == {"cat": 11, "dog": 14}


def test_two_columns_of_classes(tmp_path: Path) -> None:
    import datasets

    made = hugging_face(["cat", "dog"], [0, 1] * 10)
    breed = datasets.ClassLabel(names=["a", "b", "c", "d"])
    made = made.add_column("breed", [i % 4 for i in range(20)]).cast_column("breed", breed)
    made.to_parquet(str(tmp_path / "train.parquet"))
    assert "has 2 label columns: kind, breed; choose" in refusal(tmp_path)
    assert load(tmp_path, label_column="breed").info.classes == ("a", "b", "c", "d")


def test_class_names_in_two_unicode_forms(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    hugging_face([*names, "tea"], [0, 1, 2] * 7).to_parquet(str(tmp_path / "train.parquet"))
    assert load(tmp_path).summary.classes == {names[0]: 14, "tea": 7}


# --- CSV ---


def csv_of(
    root: Path, row: str, header: str = "", name: str = "labels.csv", count: int = 10
) -> Path:
    """A table of two classes of images in root/images; the row is filled for each image."""
    make_folder(root / "images", count=count)
    lines = [header] if header else []
    for i, path in enumerate(sorted((root / "images").rglob("*.png"))):
        facts = {"path": path.relative_to(root), "name": path.name, "stem": path.stem, "i": i}
        lines.append(
            row.format(label=path.parent.name, part=("train", "test")[i % 5 == 0], **facts)
        )
    (root / name).write_text("\n".join(lines) + "\n")
    return root / name


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("file,label", "{path},{label}"),
        ("", "{path},{label}"),
        ("", "{path} {label}"),
        ("filename;class", "{name};{label}"),
        ("label\tfile_name", "{label}\t{name}"),
        ("id,breed", "{stem},{label}"),
        ("image_id,filepath,class_name", "{stem},{path},{label}"),
        ("index,path,label", "{i},/elsewhere/{name},{label}"),
        ("file,label,weight", '{name},"{label}",1.5'),
        ("\ufefffile,label", "images\\{label}\\{name},{label}"),
    ],
)
def test_a_csv_of_file_and_label(tmp_path: Path, header: str, row: str) -> None:
    data = load(csv_of(tmp_path, row, header))
    assert data.summary.classes == {"cat": 10, "dog": 10}
    assert data.info == load(tmp_path / "images").info  # the same images in the same parts
    assert not data.summary.left_out


def test_a_csv_with_a_column_of_parts(tmp_path: Path) -> None:
    data = load(csv_of(tmp_path, "{name},{label},{part}", "file,label,data set"))
    assert sizes(data) == [16, 14, 2, 4]
    assert "image column file; label column label; parts from column data set" in str(data.summary)


def test_columns_of_folds_are_not_used_and_said(tmp_path: Path) -> None:
    path = csv_of(tmp_path, "{name},{label},{i},{i}", "file,label,fold,")
    assert "columns not used: fold, (without a name)" in str(load(path).summary)


@pytest.mark.parametrize(
    ("header", "train", "test"),
    [
        ("is_train", "yes", "no"),
        ("is_train", "1", "0"),
        ("is_test", "False", "True"),
        ("is_valid", "FALSE", "TRUE"),
        ("Usage", "Training", "PublicTest"),
        ("subset", "my_train", "my_dev"),
    ],
)
def test_columns_that_say_the_part_in_their_name(
    tmp_path: Path, header: str, train: str, test: str
) -> None:
    path = csv_of(tmp_path, "{name},{label},<{part}>", f"file,label,{header}")
    path.write_text(path.read_text().replace("<train>", train).replace("<test>", test))
    data = load(path)
    assert sizes(data) == [16, 14, 2, 4] and f"parts from column {header}" in str(data.summary)


# --- a column a class ---


@pytest.mark.parametrize(("one", "zero"), [("1", "0"), ("1.0", "0.0")])
def test_one_hot_columns_of_a_csv(tmp_path: Path, one: str, zero: str) -> None:
    path = csv_of(tmp_path, "{stem},<{label}>,7", "id,dog,cat,weight")
    text = path.read_text().replace("<cat>", f"{zero},{one}").replace("<dog>", f"{one},{zero}")
    path.write_text(text)
    data = load(path)
    assert data.info.classes == ("dog", "cat")  # in the order of the columns
    assert data.summary.classes == {"dog": 10, "cat": 10}
    assert "a column a class: dog, cat; columns not used: weight" in str(data.summary)


@pytest.mark.parametrize("kind", [int, float, bool])
def test_one_hot_columns_of_parquet(tmp_path: Path, kind: type) -> None:
    rows = [i % 3 for i in range(30)]
    columns = {name: [kind(row == c) for row in rows] for c, name in enumerate("bac")}
    data = load(parquet(tmp_path / "x", **columns))
    assert data.info.classes == ("b", "a", "c") and set(data.summary.classes.values()) == {10}


def test_columns_of_0_and_1_that_are_no_class(tmp_path: Path) -> None:
    path = csv_of(tmp_path, "{name},1,<{label}>", "file,male,cat,dog")
    path.write_text(path.read_text().replace("<cat>", "1,0").replace("<dog>", "0,1"))
    message = refusal(path)
    assert "(male, cat, dog) are no classes: row 1 has 2 of 1" in message
    path.write_text(path.read_text().replace("male", "label"))
    assert "training images of 1 class (1)" in refusal(path)


def test_numbers_as_tables_with_empty_cells_write_them(tmp_path: Path) -> None:
    path = csv_of(tmp_path, "{name},<{label}>", "file,label")
    text = path.read_text().replace("<cat>", "0.0").replace("<dog>", "1.0")
    path.write_text(text.replace("1.0", "nan", 1))
    data = load(path)
    assert data.summary.classes == {"0": 10, "1": 9}
    assert data.summary.left_out == {"train image without a label": 1}


def test_numbers_as_names_of_files_beside_numbers_as_labels(tmp_path: Path) -> None:
    for i in range(20):
        picture(i).save(tmp_path / f"{i}.png")
    rows = "".join(f"{i},{i % 2}\n" for i in range(20))
    (tmp_path / "t.csv").write_text(f"id,label\n{rows}")
    assert load(tmp_path / "t.csv").summary.classes == {"0": 10, "1": 10}


def test_numbers_as_classes_are_in_their_order(tmp_path: Path) -> None:
    make_folder(tmp_path, classes=("8", "9", "10"))
    rows = [f"{p.relative_to(tmp_path)},{p.parent.name}" for p in tmp_path.rglob("*.png")]
    (tmp_path / "t.csv").write_text("file,label\n" + "\n".join(rows))
    assert load(tmp_path / "t.csv").info.classes == ("8", "9", "10")


def test_a_csv_and_its_folder_do_not_agree(tmp_path: Path) -> None:
    path = csv_of(tmp_path, "{path},{label}", "file,label", count=120)
    picture(1).save(tmp_path / "images" / "unlisted.png")
    (tmp_path / "images" / "cat" / "00003.png").unlink()
    text = path.read_text()
    path.write_text(text + text.splitlines()[-1])
    assert load(path).summary.left_out == {
        "row of a file that is missing": 1,
        "row that stands there twice": 1,
        "image that is not in the table": 1,
    }
    for i in range(5):
        (tmp_path / "images" / "dog" / f"0101{i}.png").unlink()
    assert "6 of 241 rows name no image file under" in refusal(path)


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("file,label", "{path}", "row 2 has 1 cells, the first has 2"),
        ("file", "{path}", "expected columns of file names and of labels"),
        ("file,a,b", "{path},x,0", "no label column (expected: label, or --loading.label-column)"),
        ("file,a,b", "{path},1,0", "training images of 1 class (a)"),
        ("file,a,b", "{path},0,0", "are no classes: row 1 has 0 of 1"),
        ("file,label,class_id", "{path},x,1", "training images of 1 class"),
        ("file,class,species", "{path},x,y", "has 2 label columns: class, species; choose"),
        ("file,label", "{path},{i}", "has 20 different labels for 20 training images (0, 1, 2"),
        ("file,age", "{path},{i}.5", "numbers to predict or names of images"),
        ("file,label,split", "{path},{label},{i}", "split is called like one of parts, and holds"),
        ("file,label,subset", "{path},{label},{label}", "and holds cat, dog: call the parts train"),
        ("file,label", "gone/{i}.png,{label}", "20 of 20 rows name no image file"),
        ("file,label", "images/cat/00001.png,{label}", "stands there twice"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, header: str, row: str, message: str) -> None:
    assert message in refusal(csv_of(tmp_path, row, header))


def test_labels_that_are_several_in_one_text(tmp_path: Path) -> None:
    path = csv_of(tmp_path, "{path},{label}", "file,label")
    path.write_text(path.read_text().replace(",dog", ",cat|dog"))
    assert "not several ('cat|dog')" in refusal(path)


def test_names_that_differ_in_case_alone_are_said(tmp_path: Path) -> None:
    path = csv_of(tmp_path, "{path},{label}", "file,label")
    path.write_text(path.read_text().replace(",dog", ",CAT"))
    assert "names differ in case alone: CAT, cat" in str(load(path).summary)
    path.write_text(path.read_text().replace(",CAT", ",C").replace(",cat", ",c"))
    assert "case" not in str(load(path).summary)  # letters


def test_a_name_that_several_files_have(tmp_path: Path) -> None:
    make_folder(tmp_path / "a")
    make_folder(tmp_path / "b")
    (tmp_path / "t.csv").write_text("file,label\n00001.png,x\n00002.png,y\n")
    assert "the name '00001.png' is of several files: a/cat/00001.png, b/cat/00001.png" in (
        refusal(tmp_path / "t.csv")
    )


def test_an_empty_csv(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\n")
    assert "is empty" in refusal(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("file,label\n")
    assert "has a header and no rows" in refusal(tmp_path / "t.csv")


# --- data that change ---


def change_image(root: Path) -> None:
    picture(4321, size=(13, 12)).save(next((root / "images").rglob("*.png")))


def change_label(root: Path) -> None:
    path = root / "labels.csv"
    path.write_text(path.read_text().replace(",dog", ",cat", 1))


def same(root: Path) -> None:
    pass


@pytest.mark.parametrize("change", [same, change_image, change_label])
@pytest.mark.parametrize("kind", ["csv", "zip", "parquet"])
def test_changes_of_every_kind_of_data_are_seen(
    tmp_path: Path, kind: str, change: Callable[[Path], None]
) -> None:
    """The digests are of the labels as well as of the images."""
    table = csv_of(tmp_path, "{path},{label}", "file,label")

    def read() -> Any:
        if kind == "csv":
            return load(table, workers=0).digests
        rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
        if kind == "parquet":
            images = [(tmp_path / name).read_bytes() for name, _ in rows]
            root = parquet(tmp_path / "x", label=[label for _, label in rows], image=images)
            return load(root, workers=0, image_column="image").digests
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for name, label in rows:
                archive.write(tmp_path / name, f"{label}/{Path(name).name}")
        return load(tmp_path / "x.zip", workers=0).digests

    before = read()
    change(tmp_path)
    after = read()
    names = [{part: facts[1] for part, facts in digests.items()} for digests in (before, after)]
    assert (names[0] == names[1]) == (change is same)


@pytest.mark.parametrize("header", ["path,label,fold", "filename, fold, label", None])
def test_numbers_of_another_column_are_files_by_accident(
    tmp_path: Path, header: str | None
) -> None:
    """A fold, or a class, called 0 to 4 beside files called 0.png to 19.png."""
    files = {f"img/{i}.png": picture(i) for i in range(20)}
    for name, image in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.save(tmp_path / name)
    cells = [{"label": "ab"[i % 2], "fold": str(i % 5)} for i in range(20)]
    columns = [c.strip() for c in (header or "path,label").split(",")]
    lines = [",".join(row.get(c, f"img/{i}.png") for c in columns) for i, row in enumerate(cells)]
    (tmp_path / "t.csv").write_text("\n".join([header, *lines] if header else lines))
    summary = load(tmp_path / "t.csv").summary
    assert summary.classes == {"a": 10, "b": 10} and "image column" in " ".join(summary.notes)


def test_several_labels_by_spaces_or_commas_are_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "img", classes=("x",), count=12)
    for several in ("clear haze", "clear, haze", "haze,clear"):
        rows = [f'{i:05},"{("clear", "haze", several)[i % 3]}"' for i in range(12)]
        (tmp_path / "t.csv").write_text("image,tags\n" + "\n".join(rows))
        assert "one label an image is expected, not several" in refusal(tmp_path / "t.csv")
        rows = [f'{i:05},"{("new york", "york, old", "new")[i % 3]}"' for i in range(12)]
        (tmp_path / "t.csv").write_text("image,tags\n" + "\n".join(rows))
        assert len(load(tmp_path / "t.csv").summary.classes) == 3


@pytest.mark.parametrize(
    ("labels", "warned"),
    [
        # As in "Planet: Understanding the Amazon": no word is ever a label alone.
        (
            [
                *("clear primary", "clear water", "haze primary", "haze water", "clear road"),
                *("haze road primary", "haze primary water", "clear cloudy", "haze cloudy"),
            ],
            True,
        ),
        (
            [
                *("golden retriever", "labrador retriever", "border collie", "great dane"),
                *("german shepherd", "basset hound", "afghan hound"),
            ],
            False,
        ),
        (["cat", "dog", "bird", "red fox", "grey fox", "horse"], False),
    ],
)
def test_labels_that_are_combinations_of_words_are_said(
    tmp_path: Path, labels: list[str], warned: bool, recwarn: pytest.WarningsRecorder
) -> None:
    make_folder(tmp_path, classes=(".",), count=4 * len(labels))
    rows = [f"{i:05},{labels[i % len(labels)]}" for i in range(4 * len(labels))]
    (tmp_path / "x.csv").write_text("\n".join(["file,label", *rows]))
    assert load(tmp_path / "x.csv").info.classes == tuple(sorted(labels))
    said = [w for w in recwarn if "several labels of an image" in str(w.message)]
    assert len(said) == warned
