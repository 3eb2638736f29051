"""Map-style datasets, as PyTorch's: objects with a length and items by index.

What items may be is in :mod:`storage.datasets.map_items`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.datasets.dataset import Dataset, Drawn, Sample, known, spread
from storage.datasets.map_items import (
    Item,
    boxes_of,
    image_of,
    label_of,
    labels_of,
    mask_image,
    name_of,
    parsed,
)
from storage.datasets.notes import Notes
from storage.datasets.reading import Bands, Reading
from storage.errors import LONGEST, one_line
from storage.files import UnreadableError

_KEPT = 4  # items, because the facts, the image and the mask of an item are asked for one after another
_FIELDS = {"id": "name", "label": "label", "labels": "labels", "boxes": "boxes"}  # of an Item, by its part
# Attributes of a dataset that may hold a part of every item; the entries of samples are (path, label).
_LISTS: dict[str, tuple[str, ...]] = {
    "id": ("ids",),
    "label": ("targets", "labels", "_labels", "samples", "_samples"),
    "labels": ("labels", "targets"),
    "boxes": ("boxes",),
}


class MapStyle:
    """A map-style dataset, whose items are read one at a time.

    The facts about items come from lists of the dataset (``targets``, ``labels``, ``samples``, ``ids``,
    ``boxes``) where these agree with its first, middle and last item. Otherwise they are read from the items,
    each when it is asked for; whoever asks for all of them reads all items once.

    Parameters
    ----------
    data
        The dataset.
    name
        What it is called in places and messages.
    how
        How its images are read.
    limit
        Largest number of items that are used.
    origin
        What belongs to the fingerprint besides the facts: where the dataset comes from.

    Raises
    ------
    ValueError
        If none of the three items can be used, if they differ in form, or if one is another image each time
        it is read. The message is one line.
    """

    def __init__(self, data: Any, name: str, how: Reading, limit: int | None, origin: Sequence[Any]) -> None:
        self._data, self._name, self._how, self._origin = data, name, how, origin
        self._classes = class_names(data)
        self._lock = threading.Lock()  # the dataset may keep a file open
        self._read = lru_cache(maxsize=_KEPT)(self._read_anew)
        self._chosen = spread(range(len(data)), limit)
        self._looked = self._looked_at()
        self._form = next((item.form for item in self._looked.values()), frozenset[str]())
        self._lists = dict(self._agreeing_lists())
        self._samples: dict[int, Sample] = {}

    def dataset(self) -> Dataset:
        """The same as a dataset of this package."""
        return Dataset(
            Drawn(len(self._chosen), self._sample),
            self._classes,
            lambda place, notes: image_of(self._checked(place), self._how, notes),
            self._print,
            masks=self._mask if "mask" in self._form else None,
            reads_all=self._facts_are_in_items(),
        )

    def _facts_are_in_items(self) -> bool:
        """Whether the lists of the dataset do not say all that items say besides images and masks."""
        return self._lists.keys() < self._form - {"mask"}

    def _read_anew(self, index: int) -> Item:
        """Ask the dataset for an item; an UnreadableError says in one line why it cannot be used."""
        try:
            with self._lock:
                given = self._data[index]
            return parsed(given, self._classes)
        except UnreadableError:
            raise
        except (Exception, SystemExit) as error:  # foreign code may raise anything
            raise UnreadableError(f"raised {type(error).__name__}: {one_line(error, LONGEST)}") from error

    def _sample(self, place: int) -> Sample:
        if place not in self._samples:
            index = self._chosen[place]
            facts = self._facts(index)
            name = facts.get("name") or f"{index:06d}"
            self._samples[place] = Sample(
                name,
                f"{self._name}[{index}]",
                facts.get("label"),
                facts.get("boxes", ()),
                facts.get("labels", ()),
            )
        return self._samples[place]

    def _facts(self, index: int) -> dict[str, Any]:
        """What is known of an item; nothing if it cannot be read, which is said when it is loaded."""
        try:
            if self._facts_are_in_items():
                item = self._read(index)
                return {field: getattr(item, field) for field in _FIELDS.values()}
            return {_FIELDS[part]: of(index) for part, (_, of) in self._lists.items()}
        except Exception:
            return {}

    def _checked(self, place: int) -> Item:
        """An item that says the same as the other items, and as the lists of the dataset."""
        index = self._chosen[place]
        item = self._read(index)
        if item.form != self._form:
            raise UnreadableError(
                f"has {_told(item.form)}, and others {_told(self._form)}; give None for what is not there"
            )
        for part, (source, of) in self._lists.items():
            here, there = getattr(item, _FIELDS[part]), of(index)
            if here != there:
                raise UnreadableError(f"has the {part} {here}, and {source} of the dataset says {there}")
        return item

    def _mask(self, place: int, notes: Notes) -> Any:
        return mask_image(self._checked(place), notes)

    def _print(self) -> list[Any]:
        samples: Sequence[Sample] = Drawn(len(self._chosen), self._sample)
        seen: dict[str, str] = {}
        for sample in samples:
            other = seen.setdefault(sample.sample_id, sample.uri)
            if other != sample.uri:
                raise ValueError(
                    f"dataset.kind: {other} and {sample.uri} have the same id {sample.sample_id!r}"
                )
        # The plan may know the bands of the inputs, but not their type, which the workers know.
        how = replace(self._how, bands=Bands.of(self._how.bands.channels))
        pixels = [hashlib.sha256(_pixels(item, how).tobytes()).hexdigest() for item in self._looked.values()]
        return [*self._origin, len(self._data), *known(samples), pixels]

    # What is known of the items before they are read

    def _looked_at(self) -> dict[int, Item]:
        """The first, the middle and the last item, as far as they can be read."""
        count = len(self._chosen)
        found, problem = {}, ""
        for index in dict.fromkeys(self._chosen[place] for place in (0, count // 2, count - 1) if count):
            try:
                item = self._read(index)
                same = np.array_equal(_pixels(item, self._how), _pixels(self._read_anew(index), self._how))
            except UnreadableError as error:
                problem = problem or f"item {index} {error}"
                continue
            if not same:
                raise ValueError(
                    f"dataset.kind: item {index} of {self._name} is another image each time it is read; "
                    "leave out what is random, such as the transforms of a training"
                )
            found[index] = item
        if count and not found:
            raise ValueError(f"dataset.kind: no item of {self._name} that was tried can be used: {problem}")
        forms = {item.form: index for index, item in found.items()}
        if len(forms) > 1:
            told = "; ".join(f"item {index} has {_told(form)}" for form, index in forms.items())
            raise ValueError(
                f"dataset.kind: the items of {self._name} differ: {told}; give None for what is not there"
            )
        return found

    def _agreeing_lists(self) -> Iterable[tuple[str, tuple[str, Callable[[int], Any]]]]:
        """Yield a part, the attribute of the dataset that holds it, and what that says of an item."""
        for part in sorted(self._form & _LISTS.keys()):
            for source in _LISTS[part]:
                listed = _listed(self._data, source)
                if listed is not None and len(listed) == len(self._data):
                    of = self._reader(part, listed, pairs=source.endswith("samples"))
                    if _agrees(of, part, self._looked):
                        yield part, (source, of)
                        break

    def _reader(self, part: str, listed: Any, pairs: bool) -> Callable[[int], Any]:
        """A function that reads a part of an item in a list, by the item's index."""
        read: Callable[[Any], Any] = {
            "id": name_of,
            "label": lambda value: label_of(value, self._classes),
            "labels": lambda value: labels_of(value, self._classes),
            "boxes": boxes_of,
        }[part]
        return lambda index: read(listed[index][1] if pairs else listed[index])


def _pixels(item: Item, how: Reading) -> NDArray[Any]:
    return np.ascontiguousarray(np.asarray(image_of(item, how, [])))


def class_names(data: Any) -> list[str]:
    """Names of a set's classes. ImageNet has several per class, and their synsets, which come first then.

    They are empty for a dataset that says nothing about them, or something else than names.
    """
    listed = getattr(data, "classes", None)
    if listed is None:  # a Subset
        listed = getattr(getattr(data, "dataset", None), "classes", None)
    given = list(listed) if isinstance(listed, Sequence) and not isinstance(listed, str) else []
    if not all(isinstance(name, str | tuple | list) for name in given):
        return []
    names = [name if isinstance(name, str) else ", ".join(map(str, name)) for name in given]
    synsets = getattr(data, "wnids", None)
    return names if synsets is None else [" ".join(both) for both in zip(synsets, names, strict=True)]


def _listed(data: Any, source: str) -> Any:
    """A list of a dataset; that of a Subset is a part of the one of the dataset behind it."""
    listed = getattr(data, source, None)
    if listed is None and hasattr(data, "indices") and hasattr(data, "dataset"):
        behind = _listed(data.dataset, source)
        return None if behind is None else [behind[index] for index in data.indices]
    return listed if hasattr(listed, "__len__") and hasattr(listed, "__getitem__") else None


def _agrees(of: Callable[[int], Any], part: str, looked: Mapping[int, Item]) -> bool:
    try:
        return all(of(index) == getattr(item, _FIELDS[part]) for index, item in looked.items())
    except Exception:  # the list is one of other things
        return False


def _told(form: frozenset[str]) -> str:
    return ", ".join(["image", *sorted(form)])
