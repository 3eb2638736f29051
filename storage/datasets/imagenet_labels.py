"""The classes of ImageNet-1k, and the files that say of which class an image is.

A class is a number from 0 to 999 in the order of the sorted synsets, as in torchvision and timm. ImageNet's
own development kit numbers the classes otherwise, from 1 to 1000.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from storage.datasets.annotations import lines_of, text_of
from storage.errors import one_line

VALIDATION = 50_000  # images of the validation set
SYNSET = re.compile(r"n\d{8}")
_NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})")
_PAIR = re.compile(r"(?:(n\d{8})[\s,]+(\d{1,4})|(\d{1,4})[\s,]+(n\d{8}))(?:[\s,].*)?")
KAGGLE = "ImageId,PredictionString"  # the header of LOC_train_solution.csv and LOC_val_solution.csv
# The first images of the validation set, by which labels in another numbering are noticed.
_FIRST = {
    f"ILSVRC2012_val_{number:08d}": synset
    for number, synset in enumerate(
        ("n01751748", "n09193705", "n02105855", "n04263257", "n03125729"), start=1
    )
}


@cache
def synsets() -> tuple[str, ...]:
    """The synsets of ImageNet-1k by class."""
    return tuple(_info().label_names())


def class_names() -> list[str]:
    """The synsets and names of ImageNet-1k by class, such as "n01440764 tench, Tinca tinca"."""
    return [f"{synset} {_info().label_name_to_description(synset)}" for synset in synsets()]


@cache
def _info() -> Any:
    from timm.data import ImageNetInfo  # imported late, because it takes seconds and only this kind needs it

    return ImageNetInfo("imagenet-1k")


@cache
def _classes() -> Mapping[str, int]:
    return {synset: number for number, synset in enumerate(synsets())}


def class_of(synset: str, what: str) -> int:
    """Return the class of a synset; raise ValueError, which begins with ``what``, if there is none."""
    number = _classes().get(synset)
    if number is None:
        raise ValueError(f"{what} is none of the 1,000 classes of ImageNet-1k")
    return number


def stem(name: str) -> str:
    """The name of an image in the files that speak of it, without folders and suffix."""
    last = name.rpartition("/")[2]  # PurePath takes seconds for a million names
    return last.rpartition(".")[0] or last


def labels_of(path: Path, numbering: Path | None, names: Sequence[str]) -> list[int]:
    """Read the classes of images from a file.

    The file is the development kit's ground truth, one number per line; Kaggle's ``LOC_val_solution.csv``; or
    a list with an image and its class in each line, which is a synset or a number from 0 to 999.

    Parameters
    ----------
    path
        The file.
    numbering
        ``meta.mat`` of the development kit, or a text with a synset and its number in each line; only the
        kit's ground truth needs it.
    names
        The images' files.

    Raises
    ------
    ValueError
        If the file is none of these, or does not say of which class an image is. The message is one line that
        names the key.
    """
    lines = lines_of(path, "labels")
    of_kit = bool(lines) and all(line.isdecimal() for line in lines)
    if not of_kit and numbering is not None:
        raise ValueError(
            f"dataset.synsets: {path} has one image per line and needs no numbering; leave the key out"
        )
    if of_kit:
        found = _of_kit(path, lines, numbering, names)
    elif lines and lines[0] == KAGGLE:
        found = {name: _of_boxes(path, name, told) for name, told in kaggle_rows(lines)}
    else:
        found = _of_list(path, lines)
    lost = [name for name in names if stem(name) not in found]
    if lost:
        raise ValueError(
            f"dataset.labels: {path} has no class of {lost[0]}, nor of {len(lost) - 1} other images of "
            f"{len(names)}; give the file of these images"
        )
    return [found[stem(name)] for name in names]


def check_first(names: Iterable[str], labels: Iterable[int], where: str) -> None:
    """Raise ValueError if one of the first images of the validation set has another class than its own."""
    for name, label in zip(names, labels, strict=True):
        known = _FIRST.get(stem(name))
        if known is not None and synsets()[label] != known:
            raise ValueError(
                f"{where} says that {name} is of class {label}, {synsets()[label]}, and it is {known}; give "
                "the classes in torchvision's order, of the sorted synsets"
            )


def kaggle_rows(lines: Sequence[str]) -> Iterable[tuple[str, list[str]]]:
    """Yield the image and the words of each row of Kaggle's file: a synset and four numbers for each box."""
    for line in lines[1:]:
        name, _, told = line.partition(",")
        yield name.strip(), told.split()


def _of_boxes(path: Path, name: str, words: Sequence[str]) -> int:
    """Return the class that all boxes of a row have."""
    found = set(words[::5])
    if len(found) != 1 or len(words) % 5:
        raise ValueError(
            f"dataset.labels: {path} does not have boxes of one class for {name}: {' '.join(words)[:80]}"
        )
    return class_of(words[0], f"dataset.labels: {path}: {words[0]!r} of {name}")


def _of_list(path: Path, lines: Sequence[str]) -> dict[str, int]:
    """Read a list with an image and its class in each line, with a blank or a comma between them."""
    found: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        words = re.split(r"[\s,]+", line)
        where = f"dataset.labels: {path}, line {number}"
        if len(words) != 2:
            raise ValueError(f"{where} is not an image and its class: {line[:80]}")
        name, label = stem(words[0]), _class(words[1], where)
        if found.setdefault(name, label) != label:
            raise ValueError(f"{where} gives {words[0]} the class {label}, and an earlier one {found[name]}")
    return found


def _class(told: str, where: str) -> int:
    if not told.isdecimal():
        return class_of(told, f"{where}: {told[:80]!r}")
    if int(told) >= len(synsets()):
        raise ValueError(f"{where}: class {told[:20]} is not in torchvision's order, from 0 to 999")
    return int(told)


def _of_kit(path: Path, lines: Sequence[str], numbering: Path | None, names: Sequence[str]) -> dict[str, int]:
    """Read the ground truth of the development kit, whose line n is the number of the n-th image's class."""
    if len(lines) != VALIDATION:
        raise ValueError(
            f"dataset.labels: {path} has {len(lines)} numbers, one per line, and the validation set has "
            f"{VALIDATION:,} images; give ILSVRC2012_validation_ground_truth.txt, or a list of files and "
            "classes"
        )
    if numbering is None:
        raise ValueError(
            f"dataset.labels: {path} has ImageNet's own numbers, which are not torchvision's; name the "
            "development kit's meta.mat in dataset.synsets, or a text with a synset and its number in each "
            "line"
        )
    classes = _kit_classes(numbering)
    found: dict[str, int] = {}
    for name in names:
        known = _NUMBERED.fullmatch(stem(name))
        if known is None or not 1 <= int(known[1]) <= VALIDATION:
            raise ValueError(
                f"dataset.labels: {path} has the classes of ILSVRC2012_val_00000001 and so on, and {name} "
                "has another name"
            )
        number = int(lines[int(known[1]) - 1])
        if number not in classes:
            raise ValueError(f"dataset.labels: {path}, line {int(known[1])}: {number} is not within 1..1000")
        found[stem(name)] = classes[number]
    return found


def _kit_classes(path: Path) -> dict[int, int]:
    """Return the class by the number that the development kit gives it, from its file of synsets."""
    pairs = _of_matlab(path) if path.suffix.lower() == ".mat" else _of_map(path)
    leaves = [(number, synset) for number, synset in pairs if number <= len(synsets())]
    named = dict(leaves)
    if sorted(number for number, _ in leaves) != list(range(1, 1001)) or set(named.values()) != set(
        synsets()
    ):
        raise ValueError(
            f"dataset.synsets: {path} does not give each of the 1,000 synsets of ImageNet-1k one number from "
            "1 to 1000"
        )
    return {number: _classes()[synset] for number, synset in named.items()}


def _of_map(path: Path) -> list[tuple[int, str]]:
    pairs = []
    for number, line in enumerate(text_of(path, "synsets").splitlines(), start=1):
        if not line.strip():
            continue
        found = _PAIR.fullmatch(line.strip())
        if found is None:
            raise ValueError(
                f"dataset.synsets: {path}, line {number} is not a synset and its number: {line[:80]}"
            )
        pairs.append((int(found[2] or found[3]), found[1] or found[4]))
    return pairs


def _of_matlab(path: Path) -> list[tuple[int, str]]:
    from scipy.io import loadmat  # imported late, because only this file needs it

    try:
        table = loadmat(BytesIO(path.read_bytes()), squeeze_me=True)["synsets"]
        return [
            (int(number), str(synset))
            for number, synset in zip(table["ILSVRC2012_ID"], table["WNID"], strict=True)
        ]
    except Exception as error:  # SciPy raises many kinds of errors for what is no such file
        raise ValueError(
            f"dataset.synsets: {path} is not the development kit's meta.mat: {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error
