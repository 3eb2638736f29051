"""Encoded images in a column of Parquet files."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import pyarrow as pa
from pydantic import Field

from storage.datasets.column_choice import Choice, choose, declared_classes, holders
from storage.datasets.column_facts import bytes_in, facts_in, of_encoded
from storage.datasets.column_keys import ColumnKeys
from storage.datasets.columns import open_parquet
from storage.datasets.dataset import Dataset
from storage.datasets.reading import RGB, Bands
from storage.datasets.row_groups import Group, RowGroups
from storage.datasets.shard_files import shard_files
from storage.datasets.spec import register
from storage.errors import LONGEST, one_line
from storage.files import memory_bytes
from storage.places import Place

_ROW = 100  # bytes of memory that a row takes at least


@register
class Parquet(ColumnKeys):
    """Encoded images in a column of Parquet files, with labels, boxes and ids in others.

    The images are bytes, or the structs of bytes and a path that Hugging Face's datasets write, whose names
    of classes are read as well. Row groups are read when their images are asked for.
    """

    scanned: ClassVar[tuple[str, ...]] = ("path",)

    kind: Literal["parquet"] = "parquet"
    path: Place = Field(
        description="the file, a folder of them, or a pattern: part-*.parquet, part-{00..15}.parquet"
    )

    def open(self, bands: Bands = RGB) -> Dataset:
        """Read the footers of the files, and the columns of labels, boxes and ids."""
        files = shard_files(self.path, ".parquet")
        where = str(self.path)
        with _opened(files[0]) as first:
            schema = first.schema_arrow
        choice = choose(schema, self, where)
        parts = [_read(file, schema, choice) for file in files]
        images = RowGroups([group for part in parts for group in part.groups], choice.image)

        def place(row: int) -> str:
            file, number = images.place(row)
            return f"{file.name}#{number:06d}"

        table = pa.concat_tables([part.facts for part in parts], promote_options="default")
        facts = facts_in(table, choice, self, where, place)
        sizes = [part.sizes for part in parts]
        return of_encoded(facts, lambda row: bytes_in(images.cell(row)), place, lambda _: sizes, self, bands)


def _opened(path: Path) -> Any:
    try:
        return open_parquet(path)
    except ValueError as error:
        raise ValueError(f"dataset.path: {error}") from error


class _Part(NamedTuple):
    """What is known of a file: its row groups, the bytes of their images, and the columns besides them."""

    groups: list[Group]
    sizes: list[list[int]]
    facts: pa.Table


def _read(path: Path, schema: pa.Schema, choice: Choice) -> _Part:
    """Read what is known of a file without its images; its columns must be those of the first file."""
    with _opened(path) as file:
        rows = file.metadata.num_rows  # a few bytes of the file may stand for any number
        if rows * _ROW > memory_bytes():
            raise ValueError(f"dataset.path: {path} claims {rows:,} rows, which do not fit into memory")
        _check(path, file.schema_arrow, schema, choice)
        about = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        starts = accumulate((group.num_rows for group in about), initial=0)
        groups = [
            Group(path, at, group.num_rows, start)
            for at, (group, start) in enumerate(zip(about, starts, strict=False))
        ]
        try:
            names = holders(schema, choice.facts)
            facts = file.read(names) if names else pa.table({"": pa.nulls(rows)})
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"dataset.path: {path} cannot be read: {one_line(error, LONGEST)}") from error
    return _Part(
        groups, [_bytes(group, choice.image) for group in about], facts.replace_schema_metadata(None)
    )


def _check(path: Path, here: pa.Schema, schema: pa.Schema, choice: Choice) -> None:
    """Raise ValueError if a file has other columns than the first one."""
    for name in holders(schema, [choice.image, *choice.facts]):
        kind = schema.field(name).type
        theirs = here.field(name).type if name in here.names else None
        if theirs != kind:
            has = f"no column {name}" if theirs is None else f"the column {name} of type {theirs}"
            raise ValueError(
                f"dataset.path: {path} has {has}, which the first file has of type {kind}; name files of one "
                "kind"
            )
    label = choice.label or choice.labels
    if declared_classes(here, label) != choice.classes:
        raise ValueError(
            f"dataset.path: {path} does not declare the classes of {label} that the first file does, in "
            "their order; write all files with the same classes"
        )


def _bytes(group: Any, image: str) -> list[int]:
    """The rows of a row group, and the bytes that its images take, compressed and not."""
    columns = [group.column(at) for at in range(group.num_columns)]
    own = [each for each in columns if f"{each.path_in_schema}.".startswith(f"{image}.")]
    return [
        group.num_rows,
        *(n for each in own for n in (each.total_compressed_size, each.total_uncompressed_size)),
    ]
