"""How a tree of folders is meant: one folder of images a class, with or without parts above.

What is ambiguous is refused: a wrong guess would train on the wrong images and say nothing.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from proxylessnas.data.archives import read_archive, reader_of, tables_in
from proxylessnas.data.formats import IMAGE_SUFFIXES
from proxylessnas.data.parts import part_of, parts_among
from proxylessnas.data.source import ImageFiles, ImageReader, Source, SplitPart, assemble, digest
from proxylessnas.data.tree import Folder, Scan, Stamp, read_folder, unwrapped
from proxylessnas.data.watching import Progress, silent, watched
from proxylessnas.errors import DataError, did_you_mean

# What is no class beside two others; "valid" may be one, and "train" as well.
LEFT_FOR_LATER = {"test", "testing", "val", "validation", "dev", "eval", "evaluation", "holdout"}

OF_OTHER_TASKS = {"images", "image", "imgs", "img", "labels", "annotations", "bboxes"}
OF_OTHER_TASKS |= {"masks", "mask", "segmentations", "groundtruth", "ground_truth", "gt"}

Images = dict[str, Stamp]  # path under the root -> stamp


def folder_source(root: Path, progress: Progress = silent) -> Source:
    """One folder a class, or train/ (val/, test/) with one folder a class in each.

    Raises:
        DataError: the layout is another, or can be meant in two ways.
    """
    scan = Scan(str(root), progress)
    tree = watched(lambda: read_folder(root, scan), scan.tell)

    def reader(names: tuple[str, ...]) -> ImageFiles:
        return ImageFiles(tuple(os.path.join(root, name) for name in names))

    return _source(tree, scan, reader)


def archive_source(path: Path, progress: Progress = silent) -> Source:
    """A zip or tar file of such a folder; images are read out of it, nothing is unpacked."""
    scan, reader = Scan(str(path), progress), reader_of(path)
    tree = watched(lambda: read_archive(path, scan), scan.tell)
    return _source(tree, scan, reader)


_ARCHIVES = {
    f".{kind} file"
    for kind in ["zip", "tar", "gz", "tgz", "bz2", "tbz2", "xz", "txz", "zst", "7z", "rar"]
}


def _source(tree: Folder, scan: Scan, reader: Callable[[tuple[str, ...]], ImageReader]) -> Source:
    left_out, layout, inner = scan.facts(), _Layout(scan.root), unwrapped(tree)
    archives = sum(n for reason, n in scan.left_out.items() if reason in _ARCHIVES)
    if archives and not scan.images:
        raise DataError(
            f"folder {scan.root} holds no images but {archives} archives: give one as --data (.zip "
            "or .tar), or unpack them, one folder of images a class"
        )
    folders = layout.parts(inner if "train" in parts_among(inner.folders) else tree)
    files = {role: layout.classes(folder, role) for role, folder in folders.items()}
    classes = sorted(files["train"])
    for role, folder in folders.items():
        for name in sorted(set(files[role]) - set(classes)):
            raise DataError(
                f"{layout.name(folder)}/{name} is not a class of the training part; "
                f"{did_you_mean(name, classes)}"
            )
    parts, digests = {}, {}
    for role, by_class in files.items():
        images = {
            path: stamp for name in sorted(by_class) for path, stamp in by_class[name].items()
        }
        counts = [len(by_class.get(name, ())) for name in classes]
        labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
        parts[role] = SplitPart(labels, reader(tuple(images)))
        digests[role] = digest(images)
    return assemble(
        scan.root,
        classes,
        {role: part for role, part in parts.items() if len(part.labels)},
        {**left_out, **layout.left_out},
        notes=[
            f"{role} from {folder.path}"
            for role, folder in folders.items()
            if folder.path and files[role]
        ]
        + layout.notes(folders["train"]),
        digests=digests,
    )


class _Layout:
    """The rules, with the name of the root for messages; `left_out` counts what they leave."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.left_out: dict[str, int] = {}

    def name(self, folder: Folder) -> str:
        return os.path.join(self.root, folder.path) if folder.path else self.root

    def parts(self, tree: Folder) -> dict[str, Folder]:
        """Part -> its folder; the root itself is the training part where it is not split.

        Raises:
            DataError: folders are named like parts and can be meant otherwise.
        """
        named = parts_among(tree.folders)
        of_parts = {name for names in named.values() for name in names}
        words = ", ".join(sorted(of_parts))
        others = [f for name, f in tree.folders.items() if name not in of_parts and f.has_images]
        split = any(tree.folders[name].folders for name in named.get("train", ()))
        if not split and (len(named) < 2 or others):
            return {"train": tree}  # a folder "train" that holds images is a class
        if len(of_parts) > len(named):
            raise DataError(
                f"{self.root} has two folders for one part among {words}; keep one of each"
            )
        if "train" not in named:
            raise DataError(
                f"{self.root} holds the parts {words} and no training part: call its folder train"
            )
        extra = ", ".join(folder.path for folder in others[:3])
        if len(named) == 1 and others:
            (train,) = named["train"]
            raise DataError(
                f"{self.root} holds {train}, which is called like a part, beside {extra}: give "
                f"{self.root}/{train} if that is the data set, or rename it if it is a class"
            )
        self._leave(f"image of no part ({extra})", sum(len(f.all_images()) for f in others))
        self._leave("image in no folder", len(tree.images))
        return {role: unwrapped(tree.folders[name]) for role, (name,) in named.items()}

    def classes(self, folder: Folder, role: str) -> dict[str, Images]:
        """Class name -> its images; one folder a class directly under `folder`.

        Names that differ only in how Unicode writes them are one class.

        Raises:
            DataError: there are no folders, an empty one, or folders that are no classes.
        """
        if not folder.folders:
            if folder.images and role != "train":  # as of a competition
                self._leave(f"{role} image without a class folder", len(folder.images))
                return {}
            holds = "images but no folders" if folder.images else "no images"
            raise DataError(
                f"folder {self.name(folder)} holds {holds}; expected one folder of images a class ("
                f"{self._table() or 'or a CSV file of file names and labels as --data'})"
            )
        if set(map(str.lower, folder.folders)) <= OF_OTHER_TASKS and len(folder.folders) > 1:
            raise DataError(
                f"{self.name(folder)} holds {' beside '.join(folder.folders)}, as for detection or "
                "segmentation: expected one folder of images a class"
            )
        self._leave("image in no class folder", len(folder.images))
        files: dict[str, Images] = {}
        for name, inner in folder.folders.items():
            images = inner.all_images()
            if not images:
                raise DataError(
                    f"class folder {self.name(inner)} holds no image (looked for "
                    f"{' '.join(IMAGE_SUFFIXES)}); remove it or fill it"
                )
            files.setdefault(_class_name(name), {}).update(images)
        self._refuse_parts_as_classes(folder)
        if len(files) == 1 and role == "train":
            only = unwrapped(next(iter(folder.folders.values())))
            hint = "one folder a class is expected"
            if len(only.folders) > 1:
                hint = f"did you mean {self.name(only)}?"
            raise DataError(
                f"folder {self.name(folder)} holds 1 class ({next(iter(files))}), at least 2 are "
                f"needed; {self._table() or hint}"
            )
        return files

    def notes(self, train: Folder) -> list[str]:
        """Folders within classes, whose images are the class's: they may be meant as classes."""
        inner = [f.path for c in train.folders.values() for f in c.folders.values() if f.has_images]
        if not inner:
            return []
        more = f" and {len(inner) - 3} more" if len(inner) > 3 else ""
        return [f"folders within classes are read as part of them: {', '.join(inner[:3])}{more}"]

    def _refuse_parts_as_classes(self, folder: Folder) -> None:
        """Folders that hold the same folders are parts of a name that is not known, or hold
        parts themselves; one called test beside two classes holds no class."""
        inner = {name: unwrapped(f) for name, f in folder.folders.items()}
        counts = Counter(_class_name(name) for f in inner.values() for name in f.folders)
        same = sorted(name for name, count in counts.items() if count > 1)
        only_folders = all(
            f.folders and 10 * len(f.images) <= len(f.all_images()) for f in inner.values()
        )
        if only_folders and (len(same) > 1 or any(part_of(name) for name in same)):
            outer = ", ".join(sorted(inner)[:3])
            raise DataError(
                f"{self.name(folder)}: the folders {outer} hold the same folders "
                f"({', '.join(same[:3])}), so that the classes can be either; parts are called "
                "train, val and test, and hold one folder of images a class"
            )
        names = {name.casefold() for name in folder.folders}
        for name, below in folder.folders.items():
            others = [n for n in below.folders if n.casefold() in names - {name.casefold()}]
            if others:
                raise DataError(
                    f"{self.name(folder)}: the folder {name} beside the classes holds folders of "
                    f"the same names ({', '.join(others[:3])}): move it out of the data set, or "
                    "move its images into the classes"
                )
        parts = [name for name in inner if name.lower() in LEFT_FOR_LATER]
        if parts and len(inner) > 2:
            raise DataError(
                f"{self.name(folder)} holds {parts[0]}, which is called like a part, beside class "
                "folders: rename it if it is a class, or put it and the classes under train/ and "
                "test/"
            )

    def _table(self) -> str:
        """A question after a table of labels, where there is one beside the images."""
        root = Path(self.root)
        if root.is_file():
            tables = [root / name for name in tables_in(root, (".csv",))]
        else:
            tables = sorted(root.glob("*.csv"))
        return f"did you mean {tables[0]}?" if tables else ""

    def _leave(self, reason: str, count: int) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + count


def _class_name(folder: str) -> str:
    """A folder's name in the composed form of Unicode; bytes that are none as \\xNN."""
    text = folder.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)
