"""Findings in a run folder: what was suspected of each class, and the tables and arrays of the whole run.

The suspicions of a part of the classes lie in two small files, which one step writes. The tables are written
from all of them, since the correction for many tests goes over the whole run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.files import make_room, write_bytes
from storage.layout import FOUND, FOUND_ARRAYS, Layout, cluster_file, suspicion_file
from storage.maps import array_metadata, group_metadata, write_shard
from storage.parquet import read_table, write_table
from storage.places import remove_tree
from storage.records import FINDINGS, SUSPICIONS, Step, drop_failure, drop_record, write_record
from storage.stage_facts import StageFacts

_MAP = pa.list_(pa.float32())
_SUSPECTED = pa.schema(
    [
        ("class", pa.int64()),
        ("class_images", pa.int64()),  # how many images the network takes for the class
        ("reading", pa.int64()),  # in how many of them it reads the region
        ("mean_map", _MAP),  # of the exemplars, row by row
        ("outcome", pa.binary()),  # see tasks.findings.stored
    ]
)
_CLUSTERED = pa.schema(
    [
        ("class", pa.int64()),
        ("view", pa.string()),
        ("cluster", pa.int64()),  # from 1, the largest first; of units, the unit's number, from 0
        ("images", pa.int64()),
        ("share", pa.float64()),  # of the images of the class
        ("accuracy", pa.float64()),  # share of the images with a label whose label is the class
        ("confidence", pa.float64()),  # mean probability of the class
        ("on_object", pa.float64()),  # mean share of the maps on the object
        ("exemplars", pa.list_(pa.string())),  # sample_ids
        ("told", pa.string()),  # in words
        ("mean_map", _MAP),  # empty if there is none
    ]
)
FINDING_COLUMNS = pa.schema(
    [
        ("explainer", pa.string()),
        ("class", pa.int64()),
        ("class_name", pa.string()),
        ("view", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("strength", pa.float64()),
        ("images", pa.int64()),
        ("share", pa.float64()),
        *(
            (f"{name}{end}", pa.float64())
            for name in ("removal", "transplant", "flips")
            for end in ("", "_control", "_difference", "_low", "_high", "_p")
        ),
        ("p_value", pa.float64()),
        ("p_holm", pa.float64()),
        ("array_row", pa.int64()),  # in the arrays of the explainer in findings.zarr
        ("exemplars", pa.list_(pa.string())),
        ("passes", pa.int64()),
        ("told", pa.string()),
    ]
)
CLUSTER_COLUMNS = pa.schema(
    [
        ("explainer", pa.string()),
        _CLUSTERED.field("class"),
        ("class_name", pa.string()),
        *(_CLUSTERED.field(name) for name in _CLUSTERED.names[1:-1]),
        ("array_row", pa.int64()),  # in cluster_maps of the explainer in findings.zarr; null without a map
    ]
)


def write_part(
    root: Path,
    explainer: str,
    part: int,
    suspected: Sequence[Mapping[str, Any]],
    clustered: Sequence[Mapping[str, Any]],
) -> list[Path]:
    """Write what is suspected of the classes of a part, and their clusters; return the files."""
    files = [root / suspicion_file(explainer, part), root / cluster_file(explainer, part)]
    write_table(pa.Table.from_pylist(list(suspected), _SUSPECTED), files[0])
    write_table(pa.Table.from_pylist(list(clustered), _CLUSTERED), files[1])
    return files


def read_suspected(root: Path, explainer: str, part: int) -> list[dict[str, Any]]:
    """Read what is suspected of the classes of a part."""
    rows: list[dict[str, Any]] = read_table(
        root / suspicion_file(explainer, part), schema=_SUSPECTED
    ).to_pylist()
    return rows


def read_clustered(root: Path, explainer: str, part: int) -> list[dict[str, Any]]:
    """Read the clusters of the classes of a part."""
    rows: list[dict[str, Any]] = read_table(
        root / cluster_file(explainer, part), schema=_CLUSTERED
    ).to_pylist()
    return rows


def write_found(
    root: Path,
    findings: Sequence[Mapping[str, Any]],
    clusters: Sequence[Mapping[str, Any]],
    arrays: Mapping[str, Mapping[str, NDArray[Any]]],
) -> None:
    """Write the tables and arrays of the whole run, and last the record that signs them.

    Parameters
    ----------
    findings, clusters
        The rows of the tables.
    arrays
        For each explainer, the arrays of :data:`storage.layout.FOUND_ARRAYS`.
        Arrays without rows are not stored.
    """
    drop_found(root)  # the record first, so that it never signs files that are just being replaced
    write_table(finding_table(findings), root / FOUND[0])
    write_table(pa.Table.from_pylist(list(clusters), CLUSTER_COLUMNS), root / FOUND[1])
    files = [root / name for name in FOUND]
    files.append(write_bytes(root / "findings.zarr" / "zarr.json", group_metadata({})))
    for explainer, each in arrays.items():
        folder = root / "findings.zarr" / explainer
        files.append(write_bytes(folder / "zarr.json", group_metadata({})))
        for name in FOUND_ARRAYS:
            files += _write_array(folder / name, each[name], FOUND_ARRAYS[name])
    write_record(
        root,
        FINDINGS,
        rows=len(findings),
        statuses={},
        files=files,
        seconds=0.0,
        worker="",
        facts=StageFacts(explainers=tuple(arrays)),
    )


def finding_table(findings: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return the rows of findings as a table."""
    return pa.Table.from_pylist(list(findings), FINDING_COLUMNS)


def drop_suspicions(root: Path, layout: Layout, explainers: Iterable[str]) -> None:
    """Forget what is suspected with some explainers, so that it is looked for again."""
    for explainer in explainers:
        for part in range(layout.parts):
            drop_record(root, Step(SUSPICIONS, part, explainer))
            drop_failure(root, Step(SUSPICIONS, part, explainer))


def drop_found(root: Path) -> None:
    """Remove the tables of findings, which are not those of the run any more."""
    drop_record(root, FINDINGS)
    for name in FOUND:
        make_room(root / name)
    remove_tree(root / "findings.zarr")


def _write_array(path: Path, values: NDArray[Any], names: tuple[str, ...]) -> list[Path]:
    """Write an array as one shard; return its files, none without rows."""
    if not len(values):
        return []
    metadata = array_metadata(len(values), values.shape[1:], values.dtype.name, len(values), names)
    written = write_bytes(path / "zarr.json", metadata)
    return [written, *write_shard(path, 0, np.ascontiguousarray(values))]
