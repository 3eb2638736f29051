"""The samples in tar files: members whose names differ only in what follows the first dot.

Of ``cat/0007.jpg``, ``cat/0007.cls`` and ``cat/0007.json`` the first is the image of a sample, and the others
say what it shows. A field of a JSON member is called ``json.label``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from storage.datasets.column_cells import inside
from storage.datasets.column_choice import Choice, choose
from storage.datasets.column_keys import ColumnKeys
from storage.datasets.formats import is_hidden, suffixes
from storage.datasets.image_files import printable
from storage.datasets.tars import Member, members
from storage.errors import LONGEST, one_line
from storage.files import UnreadableError, parse_json

_TRIED = 100  # samples whose members say what the others have
_SAYING = ("cls", "txt", "json")  # endings of members that are looked at
_CHOICE, _LEFT_OUT = b"floodlit.choice", b"floodlit.left_out"

Parts = dict[str, Member]  # the members of a sample by what follows the first dot of their names


def scan(files: Sequence[Path], keys: ColumnKeys) -> pa.Table:
    """Pass over the headers of tar files; return one row per sample.

    Returns
    -------
    pyarrow.Table
        The columns ``tar`` (the number of the file), ``name``, ``offset``, ``size`` and ``changed`` of the
        image, and those that :func:`described` names.

    Raises
    ------
    ValueError
        If a file is no whole tar, or if a sample does not have what the job names or others have. The message
        is one line that begins with the key.
    """
    left_out: Counter[str] = Counter()
    choice: Choice | None = None
    columns: dict[str, list[Any]] = {name: [] for name in ("tar", "name", "offset", "size", "changed")}
    for number, path in enumerate(files):
        found = _samples(path, _SAYING if choice is None else _endings(choice), left_out)
        for key, parts in found.items():
            image = _image(path, key, parts, keys)
            if image is None:
                left_out["samples without an image"] += 1
                continue
            if choice is None:
                choice = _choice(path, found, keys)
                columns |= {name: [] for name in choice.facts}
            name, *numbers, _ = parts[image]
            said = _said(path, key, parts, choice)
            for cells, value in zip(
                columns.values(), (number, printable(name), *numbers, *said), strict=True
            ):
                cells.append(value)
    return _table(columns, choice or Choice(), left_out)


def described(table: pa.Table) -> tuple[Choice, dict[str, int]]:
    """Return the choice of columns with which a table was made, and what was left out."""
    about = table.schema.metadata
    chosen = json.loads(about[_CHOICE])
    tuples = {name: tuple(value) for name, value in chosen.items() if isinstance(value, list)}
    return Choice(**chosen | tuples), json.loads(about[_LEFT_OUT])


def _table(columns: Mapping[str, list[Any]], choice: Choice, left_out: Mapping[str, int]) -> pa.Table:
    made = {}
    for name, cells in columns.items():
        try:
            made[name] = pa.array(cells)
        except (pa.ArrowException, OverflowError) as error:
            raise ValueError(
                f"dataset.path: the values of {name} are of several types: {one_line(error, LONGEST)}"
            ) from error
    about = {_CHOICE: json.dumps(asdict(choice)).encode(), _LEFT_OUT: json.dumps(left_out).encode()}
    return pa.table(made).replace_schema_metadata(about)


# Members


def _samples(path: Path, said: Sequence[str], left_out: Counter[str]) -> dict[str, Parts]:
    """The samples of a tar by their keys, in the order of their first members."""
    found: dict[str, Parts] = {}
    links: list[str] = []
    for member in members(path, lambda name: _split(name)[1] in said, links):
        if is_hidden(PurePosixPath(member.name)):
            left_out["hidden members"] += 1
            continue
        key, ending = _split(member.name)
        parts = found.setdefault(key, {})
        if ending in parts:
            raise ValueError(
                f"dataset.path: {path} holds both {parts[ending].name} and {member.name}; leave one out"
            )
        parts[ending] = member
    if links:
        left_out["links and other members that are no files"] += len(links)
    return found


def _split(name: str) -> tuple[str, str]:
    """The name of a member up to the first dot behind its folders, and what follows, in lower case."""
    folder, slash, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def _image(path: Path, key: str, parts: Parts, keys: ColumnKeys) -> str | None:
    """The ending of the image of a sample; None if it has none."""
    if keys.image is not None:
        return keys.image.lower() if keys.image.lower() in parts else None
    images = [ending for ending in parts if f".{ending.rpartition('.')[2]}" in suffixes()]
    plain = [ending for ending in images if "." not in ending]
    found = plain or images
    if len(found) > 1:
        raise ValueError(
            f"dataset.image: {key} in {path} has the images {', '.join(found)}; name the ending of one. What "
            "follows the first dot of a name is its ending"
        )
    return found[0] if found else None


# What the members say


def _endings(choice: Choice) -> list[str]:
    return [_part(name)[0] for name in choice.facts]


def _part(name: str) -> tuple[str, list[str]]:
    """The ending of the member that a name stands for, and the names of the fields that lead into it."""
    ending, *fields = name.split(".") if name.startswith("json.") else [name]
    return ending, fields


def _choice(path: Path, found: Mapping[str, Parts], keys: ColumnKeys) -> Choice:
    """Choose what is read from the first samples of a tar."""
    tried = [(key, parts) for key, parts in found.items() if _image(path, key, parts, keys)][:_TRIED]
    fields: dict[str, pa.DataType] = {}
    for ending in dict.fromkeys(ending for _, parts in tried for ending in parts):
        if ending == "json":
            values = [_json(path, parts[ending]) for _, parts in tried if ending in parts]
            for name in dict.fromkeys(name for value in values for name in value):
                fields[f"json.{name}"] = _kind([value.get(name) for value in values])
        elif ending in _SAYING:
            fields[ending] = pa.string()
    image = keys.image or "the members of image formats"
    return choose(pa.schema(list(fields.items())), keys, str(path), image, "the names of the images")


def _kind(values: list[Any]) -> pa.DataType:
    """The type of the values of a field; that of the first one if they are of several, null if it is too."""
    for some in (values, values[:1]):  # the values of all samples are refused later if they are read
        try:
            return pa.array(some).type
        except (pa.ArrowException, OverflowError):
            continue
    return pa.null()


def _said(path: Path, key: str, parts: Parts, choice: Choice) -> list[Any]:
    """What a sample says: for each fact the text of a member, or the field of a JSON member."""
    read = {ending: _value(path, key, parts, ending) for ending in dict.fromkeys(_endings(choice))}
    found = []
    for name in choice.facts:
        ending, fields = _part(name)
        found.append(reduce(inside, fields, read[ending]))
    return found


def _value(path: Path, key: str, parts: Parts, ending: str) -> Any:
    """What a member holds: text, or in JSON an object."""
    if ending not in parts:
        raise ValueError(f"dataset.path: {key} in {path} has no member {ending}, which other samples have")
    if ending == "json":
        return _json(path, parts[ending])
    try:
        return parts[ending].data.decode().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"dataset.path: {parts[ending].name} in {path} is not text in UTF-8") from error


def _json(path: Path, member: Member) -> dict[str, Any]:
    try:
        value = parse_json(member.data, f"{member.name} in {path}")
    except UnreadableError as error:
        raise ValueError(f"dataset.path: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"dataset.path: {member.name} in {path} is no JSON object with fields")
    return value
