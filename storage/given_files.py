"""Files of maps that another program made, in four forms; only what is asked for is read.

The forms are an ``.npy`` file, an ``.npz`` file, a Zarr array or group, and a folder of images and arrays.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path, PurePath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from storage.datasets.arrays import check_size, read_array_file, read_member
from storage.datasets.formats import ARRAY, is_hidden
from storage.errors import LONGEST, one_line
from storage.files import UnreadableError
from storage.given_images import IMAGES, header_of, read_map, shape_of_map
from storage.layout import COORDINATES
from storage.places import files_under

MOST_COMPRESSED = 1 << 30  # bytes of a compressed array of an .npz file, which is read as a whole
_BESIDES = ("ids", "targets")  # arrays that may stand beside the maps
_OF_RUNS = ("status", "details", *COORDINATES)  # what a run stores beside the maps of an explainer
_ZARR = ("zarr.json", ".zarray", ".zgroup")


class Entries(Protocol):
    """The maps in a file or a folder: one entry per sample."""

    @property
    def names(self) -> Sequence[str] | None:
        """What the entries are called; None if they have an order alone."""
        ...

    def __len__(self) -> int: ...

    def shape(self, place: int) -> tuple[int, ...] | None:
        """Return the shape of an entry, or None if it cannot be told."""
        ...

    def read(self, places: Sequence[int]) -> list[NDArray[Any] | str]:
        """Return some entries as they are in the file, or the reason why one cannot be read.

        Raises
        ------
        UnreadableError
            If several entries cannot be read, because a part of an array is damaged.
        """
        ...

    def files(self, places: Sequence[int]) -> list[Path] | None:
        """Return the files of some entries; None where every entry may be in any file."""
        ...


class Stacked:
    """The entries of one array, whose first axis they are."""

    def __init__(
        self, shape: tuple[int, ...], read: Callable[[NDArray[Any]], Any], names: Any = None
    ) -> None:
        if not shape:
            raise ValueError("maps are a single number; give an array with one map per sample")
        self._shape, self._read = shape, read
        self.names = None if names is None else _texts(names)

    def __len__(self) -> int:
        return self._shape[0]

    def shape(self, place: int) -> tuple[int, ...]:  # noqa: ARG002
        return self._shape[1:]

    def read(self, places: Sequence[int]) -> list[NDArray[Any] | str]:
        try:
            return list(np.asarray(self._read(np.asarray(places, np.int64))))
        except RuntimeError as error:  # a damaged chunk of a Zarr array
            raise UnreadableError(f"maps cannot be read: {one_line(error, LONGEST)}") from error

    def files(self, places: Sequence[int]) -> None:  # noqa: ARG002
        return None


class Members:
    """The arrays of an ``.npz`` file, one per sample."""

    def __init__(self, path: Path, members: Mapping[str, zipfile.ZipInfo]) -> None:
        self._path, self._members = path, list(members.values())
        self.names = list(members)

    def __len__(self) -> int:
        return len(self._members)

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self._path)

    def shape(self, place: int) -> tuple[int, ...] | None:
        return _or_none(partial(self._shape, place))

    def _shape(self, place: int) -> tuple[int, ...]:
        with self._archive.open(self._members[place]) as file:
            return header_of(file)[0]

    def read(self, places: Sequence[int]) -> list[NDArray[Any] | str]:
        return [_or_reason(partial(read_member, self._archive, self._members[at])) for at in places]

    def files(self, places: Sequence[int]) -> None:  # noqa: ARG002
        return None


class Folder:
    """The images and arrays below a folder, one file per sample."""

    def __init__(self, root: Path) -> None:
        self._files = [
            name
            for name in files_under(root)
            if PurePath(name).suffix.lower() in (*IMAGES, ARRAY) and not is_hidden(PurePath(name))
        ]
        self._root = root
        self.names = [PurePath(name).with_suffix("").as_posix() for name in self._files]

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, place: int) -> tuple[int, ...] | None:
        return _or_none(partial(shape_of_map, self._root / self._files[place]))

    def read(self, places: Sequence[int]) -> list[NDArray[Any] | str]:
        return [_or_reason(partial(read_map, file)) for file in self.files(places)]

    def files(self, places: Sequence[int]) -> list[Path]:
        return [self._root / self._files[place] for place in places]


def open_entries(path: Path) -> tuple[Entries, NDArray[np.int64] | None]:
    """Open the maps in a file or a folder.

    Returns
    -------
    entries
        The maps.
    targets
        The classes of the maps, (n,) or (n, m), where the file states them.

    Raises
    ------
    ValueError
        If there is nothing, or what is there has none of the four forms. The message is one line.
    """
    if path.is_dir():
        return _of_zarr(path) if any((path / name).exists() for name in _ZARR) else (Folder(path), None)
    if not path.is_file():
        raise ValueError(f"there is no file or folder {path}")
    match path.suffix.lower():
        case ".npy":
            array = read_array_file(path)
            return Stacked(_numbers(array, path), lambda places: array[places]), None
        case ".npz":
            return _of_archive(path)
    raise ValueError(f"{path} is no file of maps; give .npy, .npz, a Zarr array, or a folder of images")


def _of_archive(path: Path) -> tuple[Entries, NDArray[np.int64] | None]:
    """Open an ``.npz`` file: ``maps``, and if there are any ``ids`` and ``targets``; or one array per id."""
    try:
        with zipfile.ZipFile(path) as archive:
            listed = [(info.filename.removesuffix(".npy"), info) for info in archive.infolist()]
            members = dict(listed)
            if len(members) < len(listed):
                raise ValueError("holds two arrays of one name")
            if "maps" not in members:
                return Members(path, members), None
            _check_known(members)
            besides = {key: read_member(archive, members[key]) for key in _BESIDES if key in members}
            shape, read = _rows_of(path, archive, members["maps"])
    # The header of a damaged array is Python text, for which almost any error is raised.
    except Exception as error:
        raise ValueError(f"{path} is not an .npz file of maps: {one_line(error, LONGEST)}") from error
    return Stacked(shape, read, besides.get("ids")), _classes(besides.get("targets"), path)


def _rows_of(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[tuple[int, ...], Callable[[NDArray[Any]], Any]]:
    """Return the shape of an array of an archive and what reads its rows: it is mapped if it can be."""
    with archive.open(info) as file:
        check_size(file, info.file_size)
    with archive.open(info) as file:
        shape, fortran, dtype = header_of(file)
        offset = file.tell()
    if dtype.kind not in "biuf":
        raise ValueError(f"maps are of the type {dtype}, which holds no numbers")
    if info.compress_type == zipfile.ZIP_STORED:
        with path.open("rb") as raw:
            raw.seek(info.header_offset + 26)  # where the lengths of the name and of what follows it are
            lengths = raw.read(4)
        start = info.header_offset + 30 + int.from_bytes(lengths[:2], "little")
        start += int.from_bytes(lengths[2:], "little")
        order = "F" if fortran else "C"
        mapped = np.memmap(path, dtype, "r", start + offset, shape, order)  # type: ignore[call-overload]
        return shape, lambda places: mapped[places]
    if info.file_size > MOST_COMPRESSED:
        raise ValueError(
            f"maps are compressed and have {info.file_size:,} bytes, of which no part can be read alone; "
            "write them with numpy.savez, as .npy or as Zarr"
        )
    whole: list[NDArray[Any]] = []  # filled at the first use, because who checks the shape needs no values

    def read(places: NDArray[Any]) -> Any:
        if not whole:
            with zipfile.ZipFile(path) as again:
                whole.append(read_member(again, info))
        return whole[0][places]

    return shape, read


def _of_zarr(path: Path) -> tuple[Entries, NDArray[np.int64] | None]:
    """Open a Zarr array, or a group with ``maps``, and if there are any ``ids`` and ``targets``."""
    import zarr  # imported late, as most maps are in other files

    try:
        opened: Any = zarr.open(str(path), mode="r")
        group = {"maps": opened} if isinstance(opened, zarr.Array) else opened
        if "maps" not in group:
            raise ValueError(f"the group has no array maps; it has: {', '.join(group)}")
        array = group["maps"]
        _check_known(name for name in group if name not in _OF_RUNS)
        besides = {key: np.asarray(group[key][:]) for key in _BESIDES if key in group}
        shape = _numbers(array, path)
    except Exception as error:  # Zarr raises almost any error for damaged metadata
        raise ValueError(f"{path} is no Zarr array of maps: {one_line(error, LONGEST)}") from error
    stacked = Stacked(shape, lambda places: array.oindex[places], besides.get("ids"))
    return stacked, _classes(besides.get("targets"), path)


def _check_known(names: Iterable[str]) -> None:
    """Raise ValueError for an array besides the maps that is not read: it may say whose the maps are."""
    strange = next((name for name in names if name not in {"maps", *_BESIDES}), None)
    if strange is not None:
        raise ValueError(
            f"holds {strange[:60]!r} besides maps, where only {' and '.join(_BESIDES)} are read; call it "
            "one of these, or leave it out"
        )


def _or_reason(read: Callable[[], NDArray[Any]]) -> NDArray[Any] | str:
    """Return what ``read`` reads, or the reason why it cannot."""
    try:
        return read()
    except MemoryError:  # says something about this machine, not about the file
        raise
    except Exception as error:  # damaged files raise almost any error
        return one_line(error, LONGEST)


def _or_none(read: Callable[[], tuple[int, ...]]) -> tuple[int, ...] | None:
    """Return the shape that ``read`` reads; None for a damaged file, of which reading the map says more."""
    try:
        return read()
    except Exception:  # damaged files raise almost any error
        return None


def _numbers(array: Any, path: Path) -> tuple[int, ...]:
    """Return the shape of an array of numbers."""
    if np.dtype(array.dtype).kind not in "biuf":
        raise ValueError(f"{path} holds the type {array.dtype}, and maps are numbers")
    return tuple(array.shape)


def _texts(names: NDArray[Any]) -> list[str]:
    """Return ids as texts: of texts, bytes or whole numbers."""
    if names.ndim != 1 or names.dtype.kind not in "USTOiu":
        raise ValueError(f"ids are {names.dtype} {names.shape}; give one text per map")
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]


def _classes(targets: NDArray[Any] | None, path: Path) -> NDArray[np.int64] | None:
    """Return the classes that a file states."""
    if targets is None:
        return None
    if targets.dtype.kind not in "iu" or targets.ndim not in {1, 2}:
        raise ValueError(
            f"{path}: targets are {targets.dtype} {targets.shape}; give whole numbers, one per map"
        )
    return targets.astype(np.int64)
