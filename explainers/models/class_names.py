"""The names of a model's classes, in the order of its logits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from explainers.models.model_spec import ModelSpec

_SYNSET = re.compile(r"(n\d{8})(?:[\s,]+(.*))?")
_LARGEST = 1 << 24  # bytes of a file of names; ImageNet's 21,841 classes take 1 MiB


@dataclass(frozen=True)
class ClassName:
    """The names of one class.

    Attributes
    ----------
    name
        The name that is shown.
    synonyms
        Further names.
    synset
        WordNet's identifier, such as n01440764; None if it is not known.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    synset: str | None = None


def class_names(spec: ModelSpec, classes: int) -> tuple[ClassName, ...] | None:
    """The names of the classes of a model table; None where nothing names them.

    They come from the first of these that there is:

    - the job's file ``class_names``;
    - the job's ``classes`` of a CLIP-like model;
    - torchvision's categories, or timm's ImageNet names, if the network has as many classes. That holds for
      weights from a file as well, because published networks are mostly trained again on the same classes.

    Parameters
    ----------
    spec
        The ``[model]`` table.
    classes
        The number of classes of the network.

    Raises
    ------
    ValueError
        In one line that begins with the key: the file of names cannot be read, or does not have one name per
        class.
    """
    if spec.class_names is not None:
        if spec.classes is not None:
            raise ValueError("model.class_names: model.classes names the classes already; leave one out")
        return read_names(Path(spec.class_names), classes)
    if spec.classes is not None:
        return tuple(ClassName(name) for name in spec.classes)
    if spec.source == "torchvision":
        return _torchvision(spec, classes)
    return _imagenet(classes) if spec.source == "timm" else None


def names_of_labels(labels: Mapping[int, str], classes: int) -> tuple[ClassName, ...] | None:
    """The names in a Hugging Face configuration's ``id2label``; None where it has none of its own."""
    names = [str(labels.get(number, "")) for number in range(classes)]
    # LABEL_0, LABEL_1, ... are the names that transformers makes up where a model has none.
    made_up = names == [f"LABEL_{number}" for number in range(classes)]
    return None if made_up or not all(name.strip() for name in names) else tuple(map(described, names))


def described(text: str, synset: str | None = None) -> ClassName:
    """A class from its names with commas between them, as ImageNet's are written: "tench, Tinca tinca"."""
    first, *others = [name.strip() for name in text.split(",") if name.strip()] or [text]
    return ClassName(first, tuple(others), synset)


def read_names(path: Path, classes: int) -> tuple[ClassName, ...]:
    """Read a file of names: one line per class, in the order of the logits.

    A line is a synset (n01440764), names with commas between them, or a synset, a blank and names.

    Raises
    ------
    ValueError
        In one line that begins with the key: there is no such file, it is no text in UTF-8, or it does not
        have one line per class.
    """
    if not path.is_file():  # neither a folder nor a pipe, whose reading may never end
        raise ValueError(f"model.class_names: there is no file {path}")
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"model.class_names: {path} is larger than 16 MiB; give one name per line")
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"model.class_names: {path} is not a text in UTF-8: {error}") from error
    if len(lines) != classes:
        raise ValueError(
            f"model.class_names: {path} has {len(lines)} lines, but the model has {classes} classes; write "
            "one line per class, in the order of the model's outputs"
        )
    return tuple(_of_line(path, number, line.strip()) for number, line in enumerate(lines, 1))


def _of_line(path: Path, number: int, line: str) -> ClassName:
    if not line.strip(", ") or not line.isprintable():
        wrong = "has a character that cannot be printed" if line.strip(", ") else "has no name"
        raise ValueError(f"model.class_names: {path}, line {number} {wrong}; write one name per line")
    found = _SYNSET.fullmatch(line)
    if found is None:
        return described(line)
    synset, names = found.groups()
    return described((names or "").strip(", ") or _lemmas(synset), synset)


@cache
def _wordnet() -> Any:
    """timm's list of WordNet's names, whose making reads two large files."""
    from timm.data import ImageNetInfo

    return ImageNetInfo()


def _lemmas(synset: str) -> str:
    """WordNet's names of a synset; the synset itself where timm's list does not have it."""
    try:
        return str(_wordnet().label_name_to_description(synset))
    except KeyError:
        return synset


def _torchvision(spec: ModelSpec, classes: int) -> tuple[ClassName, ...] | None:
    from torchvision import models

    lists = [entry.meta.get("categories") for entry in models.get_model_weights(spec.name)]
    categories = next((known for known in lists if known), None)
    if categories is None or len(categories) != classes:
        return None
    imagenet = _imagenet(classes)
    if imagenet is None:
        return tuple(ClassName(name) for name in categories)
    # torchvision's list has one name per class and no synsets. Its order is that of ImageNet-1k.
    return tuple(
        ClassName(name, (known.name, *known.synonyms), known.synset)
        for name, known in zip(categories, imagenet, strict=True)
    )


def _imagenet(classes: int) -> tuple[ClassName, ...] | None:
    """The classes of that part of ImageNet which has as many; None if none has."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": classes})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return tuple(described(info.label_name_to_description(synset), synset) for synset in info.label_names())
