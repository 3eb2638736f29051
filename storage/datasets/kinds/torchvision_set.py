"""Datasets of torchvision: their construction from their signatures, and their labels."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from storage.datasets.bands import as_image
from storage.datasets.dataset import Dataset, Sample, known, spread
from storage.datasets.map_style import class_names
from storage.datasets.notes import Notes
from storage.datasets.reading import RGB, Bands, Reading
from storage.datasets.spec import DatasetSpec, register
from storage.errors import one_line
from storage.files import UnreadableError
from storage.places import Place, is_remote


@register
class TorchvisionSet(DatasetSpec):
    """Images of one of torchvision's sets."""

    kind: Literal["torchvision"] = "torchvision"
    path: Place = Field(
        description="the folder of torchvision's sets, which are downloaded if they are missing"
    )
    name: str = Field(description="name of the set, e.g. CIFAR10")
    split: str | None = Field(None, description='split of the set, e.g. "train"')

    def open(self, bands: Bands = RGB) -> Dataset:
        """Open one of ``torchvision.datasets`` whose items are (PIL image, class index)."""
        if is_remote(self.path):
            raise ValueError("dataset.path: torchvision reads its sets from folders, not from S3")
        data = open_set(self.name, self.path, self.split)
        chosen = spread(range(len(data)), self.limit)
        labels = labels_of(self.name, data, chosen)
        split = self.split or "all"
        samples = [
            Sample(f"{split}/{index:06d}", f"torchvision:{self.name}/{split}/{index:06d}", label)
            for index, label in zip(chosen, labels, strict=True)
        ]

        def load(index: int, notes: Notes) -> Image.Image | NDArray[Any]:
            try:
                # torchvision's own loaders do not turn images, and published results are measured without.
                return as_image(data[chosen[index]][0], Reading(exif="ignore", bands=bands), notes)
            except OSError as error:
                raise UnreadableError(one_line(error)) from error

        classes = class_names(data)
        return Dataset(samples, classes, load, lambda: [self.name, *known(samples)], published=True)


def open_set(name: str, root: Path | None, split: str | None) -> Any:
    """Open the set ``torchvision.datasets.<name>``; it is downloaded if it is missing.

    Parameters
    ----------
    name
        Name of the class in ``torchvision.datasets``.
    root
        Folder of the sets.
    split
        Name of the split; None for a set without splits.

    Raises
    ------
    ValueError
        If there is no such set, if it has other splits, or if it cannot be opened. The message is one line.
    """
    import torchvision  # imported late, because it takes seconds and only this kind needs it

    cls: Any = getattr(torchvision.datasets, name, None)
    if not inspect.isclass(cls):
        raise ValueError(f"dataset.name: torchvision.datasets has no {name}; names are like CIFAR10")
    own = inspect.signature(cls).parameters
    # EMNIST and others pass arguments that they do not name on to their base class.
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
            return cls(**arguments)  # a download is tried only if this fails
        except (RuntimeError, OSError):
            if "download" not in taken:
                raise
            arguments["download"] = True
            return cls(**arguments)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"dataset.path: {name} cannot be opened: {one_line(error)}") from error


def labels_of(name: str, data: Any, chosen: Sequence[int]) -> list[int]:
    """Return the labels of the chosen items, from the set's own list or else by decoding the items.

    Raises
    ------
    ValueError
        If the items are not (PIL image, class index); the message is one line.
    """
    if chosen:
        _check_item(name, data[chosen[0]])
    for attribute in ("targets", "labels", "_labels", "_samples"):
        known = getattr(data, attribute, None)
        if known is None or len(known) != len(data):
            continue
        labels = [known[i][1] if attribute == "_samples" else known[i] for i in chosen]
        # The list may hold something else than labels, so two items are decoded and compared.
        ends = {0, len(chosen) - 1}
        if all(_is_index(v) for v in labels) and all(int(labels[i]) == int(data[chosen[i]][1]) for i in ends):
            return [int(v) for v in labels]
    return [int(data[i][1]) for i in chosen]


def _check_item(name: str, item: Any) -> None:
    """Raise ValueError if an item is not (PIL image, class index)."""
    ok = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Image.Image)
    if not ok or not _is_index(item[1]):
        raise ValueError(f"dataset.name: the items of {name} are not (image, class index)")


def _is_index(value: Any) -> bool:
    """Whether a label is one whole number, of any type."""
    return (
        getattr(value, "ndim", 0) == 0
        and not isinstance(value, (str, bytes, float))
        and hasattr(value, "__int__")
    )
