"""Datasets of Hugging Face's library ``datasets``: a repository, or a folder of this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import LONGEST, one_line

_SAVED = ("dataset_info.json", "dataset_dict.json")  # one of which save_to_disk writes
_MOST_TOLD = 20  # names that a message lists


@dataclass(frozen=True)
class Source:
    """Where a dataset is, in the words of the job: a repository or a folder, a subset and a split."""

    key: str
    where: str
    subset: str | None
    split: str | None
    revision: str | None = None


def open_split(source: Source) -> tuple[Any, str]:
    """Open one split of a dataset; return the ``datasets.Dataset`` and the name of the split.

    A folder is read without the network. A repository is taken from the local cache, or downloaded to it.

    Raises
    ------
    ValueError
        If the library is missing, if the subset or the split is none, or has to be named, or if the dataset
        cannot be opened. The message is one line that begins with the key.
    """
    if find_spec("datasets") is None:
        raise ValueError("dataset.kind: huggingface needs an extra: pip install 'floodlit[huggingface]'")
    import datasets  # imported late, because it takes seconds and only this kind needs it

    datasets.disable_progress_bars()
    try:
        if source.key == "path" and any((Path(source.where) / name).is_file() for name in _SAVED):
            return _saved(datasets, source)
        return _loaded(datasets, source)
    except _RefusedError as error:
        raise ValueError(str(error)) from error
    except (Exception, SystemExit) as error:  # the library, and the files that it reads, may raise anything
        told = one_line(error.__cause__ or error, LONGEST)
        raise ValueError(f"dataset.{source.key}: {source.where} cannot be opened: {told}") from error


class _RefusedError(Exception):
    """A key of the job is missing or names what is not there."""


def _saved(datasets: Any, source: Source) -> tuple[Any, str]:
    """Open what ``save_to_disk`` wrote: one dataset, or several splits."""
    if source.subset is not None:
        raise _RefusedError(f"dataset.subset: {source.where} was written by save_to_disk and has no subsets")
    data = datasets.load_from_disk(source.where)
    if not isinstance(data, datasets.DatasetDict):
        own = str(data.split or "")
        if source.split not in {None, own}:
            raise _RefusedError(f"dataset.split: {source.where} holds one split, {own or 'without a name'}")
        return data, own
    split = _one("split", source.split, data, source.where)
    return data[split], split


def _loaded(datasets: Any, source: Source) -> tuple[Any, str]:
    options = {} if source.revision is None else {"revision": source.revision}
    subsets = datasets.get_dataset_config_names(source.where, **options)
    default = "default" if source.subset is None and "default" in subsets else source.subset
    subset = _one("subset", default, subsets, source.where)
    split = source.split
    if split is None or re.fullmatch(r"\w+", split):  # others are parts, such as train[:10%]
        builder = datasets.load_dataset_builder(source.where, subset, **options)
        names = list(builder.info.splits or builder.config.data_files or ())
        split = _one("split", split, map(str, names), source.where) if names else split
    if split is None:
        raise _RefusedError(f"dataset.split: name the split of {source.where}, e.g. train")
    return datasets.load_dataset(source.where, subset, split=split, **options), split


def _one(key: str, wanted: str | None, names: Iterable[str], where: str) -> str:
    """The name that the job gives, or the only one."""
    known = list(names)
    if wanted in known:
        return wanted
    if wanted is None and len(known) == 1:
        return known[0]
    shown = ", ".join(known[:_MOST_TOLD]) + (", ..." if len(known) > _MOST_TOLD else "")
    told = f"has the {key}s {shown}; name one" if wanted is None else f"has no {key} {wanted}, but {shown}"
    raise _RefusedError(f"dataset.{key}: {where} {told}")


def columns_of(data: Any, names: Sequence[str]) -> pa.Table:
    """Return some columns of a dataset, of which nothing is decoded."""
    if not names:
        return pa.table({"": pa.nulls(len(data))})
    table: pa.Table = data.select_columns(list(names)).with_format("arrow")[:]
    return table.replace_schema_metadata(None)


class EncodedImages:
    """The encoded images in a column of a dataset, one at a time."""

    def __init__(self, data: Any, column: str) -> None:
        import datasets

        self._column = column
        self._data = data.select_columns([column])
        if isinstance(data.features[column], datasets.Image):
            self._data = self._data.cast_column(column, datasets.Image(decode=False))

    def cell(self, row: int) -> Any:
        """The bytes of an image, or a dict of ``bytes`` and ``path``."""
        return self._data[row][self._column]

    def sizes(self) -> list[int | None]:
        """The number of bytes of each image; -1 for one that is not there."""
        cells = self._data.with_format("arrow")[:][self._column]
        if not pa.types.is_struct(cells.type):
            return list(pc.binary_length(cells).to_pylist())
        sizes = pc.binary_length(pc.struct_field(cells, "bytes")).to_pylist()
        if None not in sizes:
            return list(sizes)
        paths = pc.struct_field(cells, "path").to_pylist()
        return [_size(path) if size is None else size for size, path in zip(sizes, paths, strict=True)]


def _size(path: str | None) -> int:
    return Path(path).stat().st_size if path and Path(path).is_file() else -1
