"""What folders and splits are called: which names mean the training, validation and test parts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "devel"), "valid"),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation", "holdout"), "test"),
}
_FILLERS = {"set", "sets", "data", "dataset", "images", "image", "imgs", "img"}
_FILLERS |= {"photos", "pictures", "pics", "folder", "split", "part", "samples"}


def part_of(name: str) -> tuple[str, str] | None:
    """The part that a name says, and the rest of the name; None for the name of something else.

    >>> part_of("Training_Set"), part_of("seg_test"), part_of("cats")
    (('train', ''), ('test', 'seg'), None)
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    words = [_bare(word) for word in re.findall(r"[^\W\d_]+", spaced.casefold())]
    words = [word for word in words if word and word not in _FILLERS]
    if words[:2] == ["train", "val"]:
        words[:2] = ["trainval"]
    for word in (words[-1:], words[:1]):  # seg_train, or train_seg
        if word and word[0] in _WORDS:
            words.remove(word[0])
            return _WORDS[word[0]], " ".join(words)
    return None


def _bare(word: str) -> str:
    """`trainset` and `testdata` as `train` and `test`."""
    stem = re.sub(r"(set|data|images|imgs)$", "", word)
    return stem if stem in _WORDS else word


def parts_among(names: Iterable[str]) -> dict[str, list[str]]:
    """Part -> the names that mean it.

    A name with a further word, such as `bullet_train`, means a part only if another part has
    the same further word (`seg_train`, `seg_test`), and no name is a part's alone.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for name in sorted(names):
        meaning = part_of(name)
        if meaning is not None:
            part, rest = meaning
            groups.setdefault(rest, {}).setdefault(part, []).append(name)
    plain = groups.pop("", {})
    if plain:
        return plain
    whole = [group for group in groups.values() if "train" in group and len(group) > 1]
    merged: dict[str, list[str]] = {}
    for group in whole:
        for part, members in group.items():
            merged.setdefault(part, []).extend(members)
    return merged
