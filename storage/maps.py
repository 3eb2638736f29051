"""Arrays of the run: Zarr v3, one shard object per pipeline shard, written whole or not at all.

Creating, reading and writing are three functions. Arrays are created once, before any worker starts. Workers
open them and write whole shards, so that two workers never write the same object.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec
from zarr.storage import FsspecStore, LocalStore, MemoryStore, WrapperStore

from storage.errors import LONGEST, FloodlitError, one_line
from storage.files import UnreadableError, memory_bytes, regular
from storage.layout import ArrayLayout
from storage.places import OPTIONS, is_away, is_remote

zarr.config.set(
    {
        # The network needs the worker's cores, and with two threads Zarr is as fast as with ten.
        "async.concurrency": 2,
        "threading.max_workers": 2,
        # Otherwise a chunk that equals the fill value is not stored, and a finished shard looks missing. The
        # option is set here because zarr.open_array ignores it for an existing array.
        "array.write_empty_chunks": True,
    }
)

# Measured on two cores with 16-row chunks of float32 activations after a ReLU (50-80 % zeros): zstd at level
# -1 keeps 26-60 % of the bytes, writes 500-700 MB/s and reads 1,000-1,300 MB/s. Level 1 saves hardly more and
# is a quarter slower. lz4 is as fast and keeps 40-80 %. No compression is not faster to a disk. Photographs
# as uint8 keep 94 % with any of them. The checksum makes a flipped bit an error instead of a wrong number.
CODEC = ZstdCodec(level=-1, checksum=True)
# A chunk costs a third of a millisecond however small it is, so a chunk of small rows holds more rows.
CHUNK_ROWS, CHUNK_BYTES = 16, 1024 * 1024


MOST_METADATA_BYTES = 1 << 20  # of a zarr.json, which has 1 to 2 kB and the parameters of an explainer
# Whatever Zarr raises for metadata that it does not understand. Its own errors are ValueErrors.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)


class DamagedShardError(FloodlitError, ValueError):
    """A shard is missing or cannot be decoded."""


class _ChunksUnread(WrapperStore[Store]):
    """A store whose chunks are written but never read.

    Zarr merges every write with the shard on disk. This fails if that shard is damaged, which is exactly when
    it has to be replaced.
    """

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        return None if key.startswith("c/") else await super().get(key, *args, **kwargs)


def _store(path: Path) -> Store:
    """Return Zarr's store for a folder or an address on S3."""
    if not is_remote(path):
        return LocalStore(path)
    return FsspecStore.from_url(str(path), storage_options=OPTIONS)


def group_metadata(attributes: Mapping[str, Any], members: Mapping[str, bytes] | None = None) -> bytes:
    """Return the content of the ``zarr.json`` of a group.

    Parameters
    ----------
    attributes
        The group's attributes.
    members
        The ``zarr.json`` of all arrays and groups below it, by path. If they are given, the group's metadata
        repeats them ("consolidated metadata"), so that a reader needs no listing.
    """
    held: dict[str, Any] = {}
    zarr.create_group(MemoryStore(held), attributes=dict(attributes), zarr_format=3)
    metadata: bytes = held["zarr.json"].to_bytes()
    if not members:
        return metadata
    repeated = {path: json.loads(text) for path, text in sorted(members.items())}
    for told in repeated.values():
        if told["node_type"] == "group":  # its own members are listed by their paths already
            told["consolidated_metadata"] = _inline({})
    told = json.loads(metadata) | {"consolidated_metadata": _inline(repeated)}
    return json.dumps(told, indent=2).encode()


def _inline(members: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of the members of a group as the group repeats them."""
    return {"kind": "inline", "must_understand": False, "metadata": members}


def array_metadata(
    rows: int,
    shape: tuple[int, ...],
    dtype: str,
    shard_rows: int,
    names: tuple[str, ...] = (),
    attributes: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the content of the ``zarr.json`` of an array.

    The array is filled with NaN for floats and with -1 for signed integers, because zero may be a result.
    Other types are filled with zero.

    Parameters
    ----------
    rows
        Number of rows.
    shape
        Shape of one row.
    dtype
        NumPy type name.
    shard_rows
        Rows per shard.
    names
        Names of the axes; none if they are left out.
    attributes
        The array's attributes.
    """
    held: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(held),
        shape=(rows, *shape),
        chunks=(_chunk_rows(shard_rows, _bytes(shape, dtype)), *shape),
        shards=(shard_rows, *shape),
        dtype=dtype,
        compressors=CODEC,
        fill_value={"f": np.nan, "i": -1}.get(np.dtype(dtype).kind, 0),
        attributes=dict(attributes or {}),
        dimension_names=names or None,
        zarr_format=3,
    )
    metadata: bytes = held["zarr.json"].to_bytes()
    return metadata


def open_array(path: Path) -> Any:
    """Open the :class:`zarr.Array` at ``path``, read-only.

    Raises
    ------
    DamagedShardError
        If there is no readable array, or none that :func:`array_metadata` describes.
    """
    try:
        _check_metadata(path / "zarr.json")
        array = zarr.open_array(_store(path), mode="r", zarr_format=3)
        if array.shards is None or array.shards[1:] != array.shape[1:]:
            raise UnreadableError("it is not divided into shards of rows")
        return array
    except _UNREADABLE as error:
        if is_away(error):  # the array may exist on a server that does not answer now
            raise
        raise DamagedShardError(
            f"there is no readable Zarr array at {path}: {one_line(error, LONGEST)}; run the job again"
        ) from error


def check_layout(path: Path, layout: ArrayLayout) -> None:
    """Raise DamagedShardError if the array at ``path`` has another layout."""
    array = open_array(path)
    found = (array.shape, array.shards, array.dtype)
    wanted = (layout.rows, *layout.shape), (layout.shard_rows, *layout.shape), np.dtype(layout.dtype)
    if found != wanted:
        raise DamagedShardError(
            f"{path} has (shape, shards, type) {_described(found)}, but {_described(wanted)} is in run.json; "
            "run the job again to repair it"
        )


def _check_metadata(file: Path) -> None:
    """Raise UnreadableError if an array's metadata is no file, or too large to be metadata."""
    if not is_remote(file) and file.exists() and regular(file).stat().st_size > MOST_METADATA_BYTES:
        raise UnreadableError(f"{file.name} has more than {MOST_METADATA_BYTES:,} bytes")


def write_shard(path: Path, start: int, values: NDArray[Any]) -> list[Path]:
    """Write whole shards from row ``start`` on; return their files, for the done-record.

    The old content is neither read nor kept, so that a damaged shard is replaced.

    Parameters
    ----------
    start
        First row.
    values
        (rows, \\*shape). Floats of another width are converted.

    Raises
    ------
    ValueError
        If the rows are not whole shards (only the array's last shard may be short), or if the values have
        another shape or kind or are too large for the array's type.
    """
    array = zarr.open_array(_ChunksUnread(_store(path)), mode="r+", zarr_format=3)
    stop, shard_rows = start + len(values), array.shards[0]
    aligned = start % shard_rows == 0 and (stop % shard_rows == 0 or stop == array.shape[0])
    if not aligned or not 0 <= start < stop:
        raise ValueError(
            f"rows {start} to {stop} of {path} are not whole shards of {shard_rows} rows "
            f"(the array has {array.shape[0]}): unaligned writers lose each other's rows"
        )
    if stop > array.shape[0] or values.shape[1:] != array.shape[1:]:
        raise ValueError(f"{path} has shape {array.shape}; {values.shape} from row {start} does not fit")
    array[start:stop] = _converted(values, array.dtype, path)
    return [_object(path, array, shard) for shard in range(start // shard_rows, -(-stop // shard_rows))]


def read(path: Path, start: int, stop: int) -> NDArray[Any]:
    """Read the rows from ``start`` to ``stop`` (exclusive).

    Raises
    ------
    DamagedShardError
        If a shard is missing or damaged. Zarr itself returns fill values for a missing or empty file.
    ValueError
        If the rows are not in the array.
    """
    array = open_array(path)
    if not 0 <= start <= stop <= array.shape[0]:
        raise ValueError(f"rows {start} to {stop} are not in {path}, which has {array.shape[0]}")
    size = (stop - start) * _bytes(array.shape[1:], array.dtype)
    if size > memory_bytes():
        raise DamagedShardError(
            f"rows {start} to {stop} of {path} claim {size:,} bytes: more than the memory"
        )
    _check_shards(path, array, range(start // array.shards[0], -(-stop // array.shards[0])))
    try:
        return np.asarray(array[start:stop])
    except (ValueError, RuntimeError) as error:
        raise DamagedShardError(
            f"rows {start} to {stop} of {path} cannot be read: {one_line(error, LONGEST)}"
        ) from error


def read_rows(path: Path, rows: Sequence[int]) -> NDArray[Any]:
    """Read single rows, in the given order; every chunk that holds some of them is read once.

    Raises
    ------
    DamagedShardError
        As :func:`read`.
    ValueError
        If a row is not in the array.
    """
    array = open_array(path)
    if not all(0 <= row < array.shape[0] for row in rows):
        raise ValueError(f"rows {min(rows)} to {max(rows)} are not in {path}, which has {array.shape[0]}")
    _check_shards(path, array, sorted({row // array.shards[0] for row in rows}))
    wanted = np.asarray(rows, np.int64)
    found = np.empty((len(wanted), *array.shape[1:]), array.dtype)
    try:
        # Zarr's own selection of single rows takes twice this time where rows are large.
        for chunk in np.unique(wanted // array.chunks[0]):
            places = np.flatnonzero(wanted // array.chunks[0] == chunk)
            first = wanted[places].min()
            found[places] = array[first : wanted[places].max() + 1][wanted[places] - first]
        return found
    except (ValueError, RuntimeError) as error:
        raise DamagedShardError(
            f"{len(rows)} rows of {path} cannot be read: {one_line(error, LONGEST)}"
        ) from error


def _check_shards(path: Path, array: Any, shards: Iterable[int]) -> None:
    """Raise DamagedShardError if the file of a shard of an open array is missing or empty, or is no file."""
    for shard in shards:
        _check_there(_object(path, array, shard))


def _check_there(file: Path) -> None:
    """Raise DamagedShardError if a shard's file is missing or empty, or is no file."""
    try:
        size = regular(file).stat().st_size
    except UnreadableError as error:
        raise DamagedShardError(str(error)) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedShardError(f"{file} is missing") from error
    if not size:
        raise DamagedShardError(f"{file} is empty")


def shard_file(path: Path, shard: int) -> Path:
    """Return the one file that holds a shard, e.g. ``inputs.zarr/c/12/0/0/0``."""
    return _object(path, open_array(path), shard)


def _object(path: Path, array: Any, shard: int) -> Path:
    """Return the file of a shard of an open array."""
    # Arrays are divided along the rows only, so every further index is 0.
    return path.joinpath("c", str(shard), *["0"] * (array.ndim - 1))


def chunk_of(path: Path) -> tuple[int, int]:
    """Return the size of an array's chunks, which are stored and read as a whole.

    Returns
    -------
    rows
        Rows per chunk.
    size
        Bytes of one row in memory, at least 1.

    Raises
    ------
    ValueError
        If there is no array.
    """
    array = open_array(path)
    return int(array.chunks[0]), _bytes(array.shape[1:], array.dtype)


def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
    """Return the bytes of one row in memory, at least 1."""
    return max(1, math.prod(shape) * np.dtype(dtype).itemsize)


def _chunk_rows(shard_rows: int, each: int) -> int:
    """Return the rows per chunk, for rows of ``each`` bytes.

    The number divides ``shard_rows`` and is, by ratio, nearest to the wanted number of rows. Of two equally
    near numbers it is the smaller one.
    """
    wanted = max(CHUNK_ROWS, CHUNK_BYTES // each)
    small = [d for d in range(1, math.isqrt(shard_rows) + 1) if shard_rows % d == 0]
    divisors = sorted({*small, *(shard_rows // d for d in small)})
    return min(divisors, key=lambda d: max(d, wanted) / min(d, wanted))


def _converted(values: NDArray[Any], dtype: np.dtype[Any], path: Path) -> NDArray[Any]:
    """Convert values to the array's type; raise ValueError if a finite value would become infinite."""
    if not np.can_cast(values.dtype, dtype, "same_kind"):
        raise ValueError(f"{path} holds {dtype}; {values.dtype} does not fit")
    try:
        with np.errstate(over="raise"):
            return values.astype(dtype, copy=False)
    except FloatingPointError as error:
        largest = np.abs(values[np.isfinite(values)]).max()
        raise ValueError(f"{path} holds {dtype}, which cannot hold {largest:g}; use float32") from error


def _described(layout: tuple[Any, ...]) -> str:
    """Return shape, shards and type as text."""
    return ", ".join(map(str, layout))
