"""Maps that another program made: whose they are, how they lie, and how they cover the network's input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.datasets.dataset import Sample
from storage.datasets.geometry import prepare_image
from storage.files import UnreadableError, sha256_of_path
from storage.given_files import Entries, open_entries
from storage.places import files_under

_NAMED = 3  # ids that a message names


class GivenMaps:
    """The maps in a file or a folder.

    Attributes
    ----------
    path
        The file or folder.
    entries
        The maps as they are there, one entry per sample.
    targets
        The classes of the maps, (n,), or (n, m) where an entry has the maps of m classes; -1 is no class.
        None where the file does not state them.
    """

    def __init__(self, path: Path, entries: Entries, targets: NDArray[np.int64] | None) -> None:
        self.path, self.entries, self.targets = path, entries, targets
        if targets is not None and len(targets) != len(entries):
            raise ValueError(f"{path} holds {len(entries)} maps and {len(targets)} targets")
        if entries.names is not None and len(entries.names) != len(entries):
            raise ValueError(f"{path} holds {len(entries)} maps and {len(entries.names)} ids")

    @property
    def several(self) -> int:
        """The number of axes of an entry that are classes: 0 or 1."""
        return 0 if self.targets is None else self.targets.ndim - 1

    @cached_property
    def _by_name(self) -> dict[str, int] | None:
        names = self.entries.names
        if names is None:
            return None
        found = {name: place for place, name in enumerate(names)}
        if len(found) < len(names):
            twice = next(name for place, name in enumerate(names) if found[name] != place)
            raise ValueError(f"{self.path} holds two maps of {twice!r}")
        return found

    def place(self, row: int, sample_id: str) -> int | None:
        """Return which entry is that of a sample: by its id, with or without its suffix, or by its row."""
        if self._by_name is None:
            return row if row < len(self.entries) else None
        found = self._by_name.get(sample_id)
        return self._by_name.get(without_suffix(sample_id)) if found is None else found

    def check_samples(self, samples: Sequence[Sample], partial: bool) -> list[int | None]:
        """Return the entry of every sample, None for a sample without a map.

        Parameters
        ----------
        samples
            All samples of the dataset, in its order. They are not looked at where the maps have no ids.
        partial
            Whether the maps may be those of further samples too, as where the dataset is limited.

        Raises
        ------
        ValueError
            In one line: there are not as many maps as samples and no ids, no sample has a map, a map is that
            of no sample, or of two.
        """
        count = len(self.entries)
        if self._by_name is None:
            if count != len(samples):
                raise ValueError(
                    f"{self.path} holds {count:,} maps without ids, and the dataset has {len(samples):,} "
                    "samples; give one map per sample in the dataset's order, or ids"
                )
            return list(range(count))
        ids = [sample.sample_id for sample in samples]
        places = [self.place(row, name) for row, name in enumerate(ids)]
        used: dict[int, str] = {}
        for place, name in zip(places, ids, strict=True):
            if place is not None and used.setdefault(place, name) != name:
                both = f"{used[place]!r} and {name!r}"
                raise ValueError(f"{self.path}: one map is that of the samples {both}; give it the whole id")
        if not used:
            seen = f"the maps are called {_some(self._by_name)}, the samples {_some(ids)}"
            raise ValueError(
                f"{self.path} holds no map of any sample: {seen if self._by_name else 'it is empty'}"
            )
        if len(used) < count and not partial:
            strangers = [name for name, place in self._by_name.items() if place not in used]
            raise ValueError(
                f"{self.path} holds {len(strangers):,} maps of no sample of the dataset: {_some(strangers)}"
            )
        return places


def without_suffix(sample_id: str) -> str:
    """Return an id without the suffix of a file."""
    return PurePath(sample_id).with_suffix("").as_posix() if "." in PurePath(sample_id).name else sample_id


def open_given(path: Path) -> GivenMaps:
    """Open the maps in a file or a folder; ValueError in one line if there are none."""
    return GivenMaps(path, *open_entries(path))


Stamp = tuple[int, int, int]  # what changes if somebody writes to a file: its size, its time and its inode


class Snapshot(NamedTuple):
    """Maps as they were when this process opened them: the SHA-256 of the contents, a stamp of each file."""

    given: GivenMaps
    sha256: str
    stamps: dict[Path, Stamp | None]

    def lasts(self, places: Sequence[int]) -> bool:
        """Whether nobody has written to the files of some entries since."""
        files = self.given.entries.files(places)
        if files is None:
            return _stamps(self.given.path) == self.stamps
        return all(self.stamps.get(file) == _stamp(file) for file in files)


def open_unchanged(path: Path, sha256: str, wanted: Sequence[tuple[int, str]] = ()) -> Snapshot:
    """Open maps whose contents have the SHA-256 that the run has recorded.

    The contents are read once per process, and again where somebody has written to a file that is wanted.

    Parameters
    ----------
    wanted
        The rows and ids of the samples whose maps are wanted.

    Raises
    ------
    UnreadableError
        If the contents have changed.
    """
    found = _snapshot(path)
    places = [place for row, name in wanted if (place := found.given.place(row, name)) is not None]
    if found.sha256 != sha256 or not found.lasts(places):
        _snapshot.cache_clear()
        found = _snapshot(path)
    if found.sha256 != sha256:
        raise UnreadableError(
            f"{path} has changed since the job was planned; restore it, or run the job again in a new store"
        )
    return found


@lru_cache(maxsize=4)
def _snapshot(path: Path) -> Snapshot:
    stamps = _stamps(path)  # first, so that what changes while it is read is noticed
    return Snapshot(open_given(path), sha256_of_path(path), stamps)


def _stamps(path: Path) -> dict[Path, Stamp | None]:
    files = [path / name for name in files_under(path)] if path.is_dir() else [path]
    return {file: _stamp(file) for file in files}


def _stamp(file: Path) -> Stamp | None:
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns, about.st_ino


def channel_axis(
    shape: tuple[int, ...], sites: int, several: int, grid: Sequence[int] | None = None
) -> int | None:
    """Return the axis of an entry that is a single channel and no axis of the map; None if there is none.

    Parameters
    ----------
    shape
        The shape of an entry.
    sites
        The number of axes of a map: 2 for images.
    several
        The number of axes in front of the map: 1 if an entry has maps of several classes.
    grid
        The shape of a map where the job says it.

    Raises
    ------
    ValueError
        If an entry is no map, or it is unclear which axis is the channel.
    """
    if len(shape) == sites + several:
        return None
    ends = sorted({several, len(shape) - 1}) if len(shape) == sites + several + 1 else []
    found = [axis for axis in ends if shape[axis] == 1]
    left = {axis: shape[several:axis] + shape[axis + 1 :] for axis in found}
    fits = [axis for axis in found if grid is None or left[axis] == tuple(grid)]
    if len(found) > 1 and len({left[axis] for axis in fits}) > 1:
        raise ValueError(
            f"maps are {_shape(shape)}, of which the first or the last axis may be a channel; set grid"
        )
    if not (fits or found):
        wanted = " of m classes" if several else ""
        raise ValueError(
            f"maps are {_shape(shape)}, and one map{wanted} has {sites + several} axes; add up its "
            "channels, or take their largest value, before you write it"
        )
    return (fits or found)[0]


def as_map(entry: NDArray[Any], axis: int | None) -> NDArray[np.float32]:
    """Return an entry without its channel as float32.

    Truth values and whole numbers of 8 and 16 bits without a sign, as images have, are divided by their
    largest value. A number that float32 does not hold becomes infinite.
    """
    values = entry if axis is None else entry.squeeze(axis)
    if values.dtype.kind not in "biuf":
        raise UnreadableError(f"its map is of the type {values.dtype}, which holds no numbers")
    with np.errstate(over="ignore"):
        plain = values.astype(np.float32, copy=False)
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        plain = plain / np.float32(np.iinfo(values.dtype).max)
    return plain


def in_view(values: NDArray[np.float32], geometry: Mapping[str, Any]) -> NDArray[np.float32]:
    """Resize and crop a map (h, w) of a whole image as the image was, to the network's input.

    Where the crop reaches beyond the image, the map is 0. A map that is not finite becomes NaN everywhere.
    """
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    finite = bool(np.isfinite([low, high]).all())
    span = (high - low or 1.0) if finite else np.nan
    # Images of floats are in [0, 1], and colours of what is padded in [0, 255].
    scaled = (values.astype(np.float64) - low) / span if finite else np.zeros(values.shape)
    filled = {**geometry, "fill": (-255 * low / span if finite else 0,)}
    pixels = prepare_image(scaled.astype(np.float32)[None], [], **filled)[0][0]
    return (pixels.astype(np.float64) * span + low).astype(np.float32)


def _some(names: Iterable[str]) -> str:
    """Return the first names for a message."""
    listed = list(names)
    more = ", ..." if len(listed) > _NAMED else ""
    return ", ".join(repr(name[:60]) for name in listed[:_NAMED]) + more


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "single numbers"
