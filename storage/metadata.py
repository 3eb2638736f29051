"""The metadata of a run's arrays: created, signed, and written again where it is damaged.

An array's metadata says how its shards are decoded. It follows from the manifest. The record ``ARRAYS`` keeps
its checksum, so that a later version of Floodlit or Zarr, which may write it in another way, still knows the
metadata with which the shards were written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from storage import coordinates, maps
from storage.files import UnreadableError, regular, write_bytes
from storage.layout import Layout
from storage.places import is_remote
from storage.records import ARRAYS, DamagedRecordError, drop_record, finished, read_record, write_record


def expected(layout: Layout) -> dict[str, bytes]:
    """Return the content of the ``zarr.json`` of every group and array, by path from the run folder."""
    found = {
        path: maps.array_metadata(
            array.rows, array.shape, array.dtype, array.shard_rows, array.names, array.attributes
        )
        for path, array in layout.arrays.items()
    }
    found |= {path: coordinates.metadata(array) for path, array in layout.coordinates.items()}
    for path in sorted(layout.groups, reverse=True):  # the groups within a group come first
        inside = {} if path == "saliency.zarr" else _below(path, found)
        found[path] = maps.group_metadata(layout.groups[path], inside)
    return {f"{path}/zarr.json": text for path, text in found.items()}


def earlier(layout: Layout) -> dict[str, bytes]:
    """Return the same as earlier versions wrote it: without names of axes and without coordinates."""
    found = {path: maps.group_metadata(attributes) for path, attributes in layout.groups.items()}
    for path, array in layout.arrays.items():
        found[path] = maps.array_metadata(array.rows, array.shape, array.dtype, array.shard_rows)
    return {f"{path}/zarr.json": text for path, text in found.items()}


def create_arrays(root: Path, layout: Layout) -> None:
    """Create the arrays and groups that are missing, and write damaged metadata again.

    If it is not certain that an array's shards were written with this metadata, the steps that wrote them are
    repeated. This is so if the metadata was never signed, or if another version signed it. Metadata of an
    earlier version gets the names of axes; its shards are the same.
    """
    signed, known, unsure = _signed(root), {}, []
    before = earlier(layout)
    for path, wanted in expected(layout).items():
        found, plain = content(root / path), before.get(path)
        kept = found is not None and found != plain and _sha256(found) == signed.get(path)
        known[path] = _sha256(found if kept and found is not None else wanted)
        if found == wanted or kept:
            continue
        array = path.removesuffix("/zarr.json")
        sure = found == plain or signed.get(path) in {_sha256(wanted), _sha256(plain or wanted)}
        if array in layout.arrays and not sure and (root / array / "c").exists():
            unsure.append(array)
        write_bytes(root / path, wanted)
    if unsure:
        _drop_records(root, unsure)
    if known != signed or _is_link(root / ARRAYS.path):  # repair would remove a link
        sign_arrays(root, layout)


def _below(group: str, found: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return what lies below a group, by path from the group."""
    return {path[len(group) + 1 :]: text for path, text in found.items() if path.startswith(f"{group}/")}


def sign_arrays(root: Path, layout: Layout, without: str | None = None) -> None:
    """Write the record of the metadata of all arrays and groups; ``without`` names an array to leave out."""
    files = [Path(path) for path in layout.metadata if path != f"{without}/zarr.json"]
    rows = layout.manifest.rows
    write_record(root, ARRAYS, rows=rows, statuses={}, files=files, seconds=0.0, worker="")


def _is_link(path: Path) -> bool:
    return not is_remote(path) and path.is_symlink()


def content(path: Path) -> bytes | None:
    """Return the content of a metadata file; None if it cannot be read, is missing or is a link.

    A link is replaced, also if it leads to the right content: :func:`storage.verify.repair` would remove it.
    """
    try:
        if _is_link(path):
            return None
        if path.exists() and regular(path).stat().st_size <= maps.MOST_METADATA_BYTES:
            return path.read_bytes()
    except (UnreadableError, FileNotFoundError, NotADirectoryError):
        pass
    return None


def _signed(root: Path) -> dict[str, str]:
    """Return the SHA-256 of the metadata files that were signed; nothing if the record is damaged."""
    try:
        record = read_record(root, ARRAYS)
    except DamagedRecordError:
        return {}
    return {} if record is None else {file.path: file.sha256 for file in record.files}


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _drop_records(root: Path, arrays: Iterable[str]) -> None:
    """Delete the record of every step that wrote into one of these arrays."""
    for step in finished(root):
        try:
            record = read_record(root, step)
        except DamagedRecordError:
            continue  # verify drops it
        if record and any(file.path.startswith(f"{array}/c/") for file in record.files for array in arrays):
            drop_record(root, step)
