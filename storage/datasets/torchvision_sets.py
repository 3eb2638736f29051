"""The datasets torchvision knows: constructed as their signatures allow, and what their labels are."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def open_set(name: str, root: Path | None, split: str | None) -> Any:
    """The set ``torchvision.datasets.<name>``; it is downloaded only if it is not there.

    Raises
    ------
    ValueError
        In one line, if there is no such set, it has other splits, or it cannot be opened.
    """
    import torchvision  # takes seconds, and only this kind needs it

    cls: Any = getattr(torchvision.datasets, name, None)
    if not inspect.isclass(cls):
        raise ValueError(f"dataset.name: torchvision.datasets has no {name}; names are like CIFAR10")
    own = inspect.signature(cls).parameters
    # EMNIST and others hand what they do not name on to their base class.
    inits = [vars(base)["__init__"] for base in inspect.getmro(cls) if "__init__" in vars(base)]
    taken = {key for init in inits for key in inspect.signature(init).parameters}
    arguments: dict[str, Any] = {"root": str(root)} if "root" in own else {}
    splitting = next((key for key in ("split", "train", "image_set") if key in taken), None)
    if (splitting is None) != (split is None):
        verb = "needs" if splitting else "does not take"
        raise ValueError(f"dataset.split: {name} {verb} a split")
    if splitting == "train" and split not in {"train", "test"}:
        raise ValueError(f"dataset.split: {name} has the splits train and test, not {split}")
    if splitting is not None:
        arguments[splitting] = split == "train" if splitting == "train" else split
    try:
        try:
            return cls(**arguments)
        except (RuntimeError, OSError):
            if "download" not in taken:
                raise
            arguments["download"] = True
            return cls(**arguments)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"dataset: {name} cannot be opened: {' '.join(str(error).split())}") from error


def labels_of(name: str, data: Any, chosen: Sequence[int]) -> list[int]:
    """Labels of the chosen items: from the set's own list where it has one, else by decoding them.

    Raises
    ------
    ValueError
        In one line, if its items are not (PIL image, class index).
    """
    if chosen:
        _check_item(name, data[chosen[0]])
    for attribute in ("targets", "labels", "_labels", "_samples"):
        known = getattr(data, attribute, None)
        if known is None or len(known) != len(data):
            continue
        labels = [known[i][1] if attribute == "_samples" else known[i] for i in chosen]
        ends = {0, len(chosen) - 1}
        if all(_is_index(v) for v in labels) and all(int(labels[i]) == int(data[chosen[i]][1]) for i in ends):
            return [int(v) for v in labels]
    return [int(data[i][1]) for i in chosen]


def _check_item(name: str, item: Any) -> None:
    ok = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Image.Image)
    if not ok or not _is_index(item[1]):
        raise ValueError(f"dataset.name: the items of {name} are not (image, class index)")


def _is_index(value: Any) -> bool:
    """Whether a label is one whole number, in whichever type a set keeps it."""
    return (
        getattr(value, "ndim", 0) == 0
        and not isinstance(value, (str, bytes, float))
        and hasattr(value, "__int__")
    )
