"""Finds samples of runs by what is known of them and by their scores, one page at a time.

The samples are held in memory as one Arrow table. A column of scores is read when it is first asked for.
DuckDB filters and sorts behind the same fence as ``floodlit query``.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.query import QueryError, select
from storage.run import Run
from storage.samples import SAMPLE_COLUMNS, sample_table
from storage.scores import read_numbers
from tasks.results.accuracy import are_right

SAMPLES = 48  # on a page
_HELD = 200 * 2**20  # bytes of scores in memory, at most
_COLUMNS = [name for name in SAMPLE_COLUMNS if name not in {"tokens", "notes", "boxes", "box_labels"}]
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
_SORTABLE = re.compile(r"VARCHAR|DOUBLE|FLOAT|BOOLEAN|U?(TINY|SMALL|BIG)?INT(EGER)?")
_ROUNDED = ("DECIMAL", "HUGEINT", "UHUGEINT")  # types of DuckDB whose values do not come back unchanged


@dataclass(frozen=True)
class Search:
    """What is looked for. Everything is a part of a page's address.

    Attributes
    ----------
    label, prediction
        Number or name of a class.
    correct
        "1" for inputs whose prediction is a label, "0" for the others.
    status
        "ok" or "failed".
    score, low, high
        An expression in SQL, for example ``gradcam.insertion``, and the ends of the range of its value.
    text
        What the file's name, the id, the text or the name of a class contains.
    where
        A condition in SQL over the columns of the view ``samples``, ``correct``, and the scores of the first
        explained class as ``explainer.metric``.
    sort
        An expression in SQL, in the same columns; the order of the dataset without one.
    descending
        "1" for the largest values first.
    after
        The key of the last sample of the page before, see :class:`Found`.
    """

    label: str = ""
    prediction: str = ""
    correct: str = ""
    status: str = ""
    score: str = ""
    low: str = ""
    high: str = ""
    text: str = ""
    where: str = ""
    sort: str = ""
    descending: str = ""
    after: str = ""


@dataclass(frozen=True)
class Found:
    """The samples of one page.

    Attributes
    ----------
    rows
        Rows of the samples in the run, in order.
    keys
        The key of each: what it is sorted by and its row, as JSON. ``Search.after`` takes one.
    more
        Whether samples follow.
    """

    rows: list[int]
    keys: list[str]
    more: bool


class Catalog:
    """The samples of one run or of several on the same inputs; those of the first run are looked through.

    Parameters
    ----------
    runs
        The runs by name. The scores of the first one are columns ``explainer.metric``, those of the others
        ``"run/explainer".metric``, joined by the sample's id.
    """

    def __init__(self, runs: Mapping[str, Run]) -> None:
        self.runs = dict(runs)
        first = next(iter(runs.values()))
        table = sample_table(first.root, _COLUMNS)
        table = table.append_column("correct", pa.array(are_right(table), pa.bool_()))
        self.samples = table.append_column("row", pa.array(np.arange(len(table))))
        # The explainers of all runs by what a search calls them: the name of the run, and their own.
        self.sources = {
            own if run is first else f"{name}/{own}": (name, own)
            for name, run in runs.items()
            for own in run.explainers
        }
        ids = self.samples["sample_id"].to_pylist()
        self._rows = {name: None if run is first else _places(ids, run) for name, run in runs.items()}
        self._held: OrderedDict[tuple[Path, str, str], NDArray[np.float64]] = OrderedDict()
        self._lock = Lock()

    def numbers(self, run: Run, explainer: str, columns: Set[str]) -> dict[str, NDArray[np.float64]]:
        """Return columns of scores as :func:`storage.scores.read_numbers` does, and keep them in memory."""
        with self._lock:
            keys = {column: (run.root, explainer, column) for column in columns}
            lacking = {column for column, key in keys.items() if key not in self._held}
            read = read_numbers(run, explainer, lacking) if lacking else {}
            self._held |= {keys[column]: values for column, values in read.items()}
            found = {column: self._held[key] for column, key in keys.items()}
            for key in keys.values():
                self._held.move_to_end(key)
            while len(self._held) > 1 and sum(values.nbytes for values in self._held.values()) > _HELD:
                self._held.popitem(last=False)
            return found

    def scores(self, source: str, metric: str) -> pa.Array:
        """Return a metric of an explainer for the first explained class of each sample; null without a value.

        Parameters
        ----------
        source
            A key of ``sources``.
        """
        name, explainer = self.sources[source]
        run, places = self.runs[name], self._rows[name]
        values = self.numbers(run, explainer, {metric})[metric][:: run.targets_per_image]
        if places is not None:
            values = np.where(places >= 0, values[places], np.nan)
        return pa.array(values, from_pandas=True)

    def find(self, search: Search, most: int = SAMPLES, *, backwards: bool = False) -> Found:
        """Return the samples that a search finds after its key, or before it if ``backwards``.

        Raises
        ------
        QueryError
            If a part of the search cannot be understood; the message is one line in words.
        """
        condition, values = self._condition(search)
        key = self._key(search)
        down = (search.descending == "1") != backwards
        rows_down = "DESC" if backwards else ""
        after, more_values = _after(search.after, down=down, backwards=backwards)
        order = f"key IS NULL {rows_down}, key {'DESC' if down else ''}, row {rows_down}"
        found = self._select(
            f"SELECT row, key FROM (SELECT row, ({key}\n) AS key FROM samples WHERE {condition}) "
            f"WHERE {after} ORDER BY {order} LIMIT {most + 1}",
            [*values, *more_values],
            search,
        )
        rows, keys = found["row"].to_pylist(), found["key"].to_pylist()
        encoded = [json.dumps([key, row]) for key, row in zip(keys, rows, strict=True)]
        return Found(rows[:most], encoded[:most], len(rows) > most)

    def values(self, expression: str, rows: Sequence[int]) -> list[Any]:
        """Return the value of an expression in SQL for each of some samples."""
        wanted = ", ".join(map(str, rows)) or "NULL"
        sql = f"SELECT row, ({expression}\n) AS value FROM samples WHERE row IN ({wanted})"
        found = self._select(sql, [], Search(sort=expression))
        known = dict(zip(found["row"].to_pylist(), found["value"].to_pylist(), strict=True))
        return [known[row] for row in rows]

    def row_in(self, name: str, row: int) -> int | None:
        """Return the row of a sample of the first run in a run; None if that run does not have it."""
        places = self._rows[name]
        found = row if places is None else int(places[row])
        return None if found < 0 else found

    def count(self, search: Search) -> int:
        """Return the number of samples that a search finds, whatever its key."""
        condition, values = self._condition(search)
        found = self._select(f"SELECT count(*) AS n FROM samples WHERE {condition}", values, search)
        return int(found["n"][0].as_py())

    def key_of(self, search: Search, row: int) -> str:
        """Return the key of a sample in the order of a search."""
        found = self._select(
            f"SELECT ({self._key(search)}\n) AS key FROM samples WHERE row = ?", [row], search
        )
        return json.dumps([found["key"][0].as_py(), row])

    def _key(self, search: Search) -> str:
        """Return what samples are sorted by, in SQL."""
        if not search.sort.strip():
            return "0"
        kind = self._select(f"SELECT typeof(({search.sort}\n)) AS kind FROM samples LIMIT 1", [], search)
        name = kind["kind"][0].as_py() if len(kind) else "INTEGER"
        if name.startswith(_ROUNDED):
            return f"CAST(({search.sort}\n) AS DOUBLE)"
        if not _SORTABLE.fullmatch(name):
            raise QueryError(f"sort: is {name}; sort by a number or a text")
        return search.sort

    @staticmethod
    def _condition(search: Search) -> tuple[str, list[Any]]:
        """Return the condition of a search in SQL, and the values of its parameters."""
        parts, values = ["true"], []
        of_several = (
            " OR list_contains(CAST(labels AS VARCHAR[]), ?)"
            " OR (label IS NULL AND list_contains(string_split(label_name, '; '), ?))"
        )
        for column, more in (("label", of_several), ("prediction", "")):
            if wanted := getattr(search, column).strip():
                parts.append(f"(CAST({column} AS VARCHAR) = ? OR {column}_name = ?{more})")
                values += [wanted] * (4 if more else 2)
        if search.correct in {"0", "1"}:
            parts.append(f"correct IS {'TRUE' if search.correct == '1' else 'FALSE'}")
        if search.status:
            parts.append("status = ?")
            values.append(search.status)
        for end, sign in ((search.low, ">="), (search.high, "<=")):
            if search.score.strip() and end.strip():
                parts.append(f"({search.score}\n) {sign} ?")
                values.append(_number(end))
        if search.text.strip():
            columns = ("uri", "sample_id", "text", "label_name", "prediction_name")
            parts.append("(" + " OR ".join(f"contains(lower({name}), lower(?))" for name in columns) + ")")
            values += [search.text.strip()] * len(columns)
        if search.where.strip():
            parts.append(f"({search.where}\n)")  # the new line ends a comment
        return " AND ".join(parts), values

    def _select(self, sql: str, values: Sequence[Any], search: Search) -> pa.Table:
        """Run a statement on the samples and the columns of scores that the search names."""
        asked = " ".join((search.score, search.where, search.sort))
        table = self.samples
        for source, (name, _) in self.sources.items():
            named = [metric for metric in self.runs[name].columns if _names(asked, source, metric)]
            if named:
                columns = [self.scores(source, metric) for metric in named]
                table = table.append_column(source, pa.StructArray.from_arrays(columns, named))
        return select({"samples": table}, sql, values)


def reference(source: str, metric: str) -> str:
    """Return how a search names a column of scores, in SQL."""
    return f"{_quoted(source)}.{_quoted(metric)}"


def _quoted(name: str) -> str:
    """Return a name in SQL, quoted if it must be."""
    return name if _PLAIN.fullmatch(name) and name not in _reserved() else '"' + name.replace('"', '""') + '"'


@cache
def _reserved() -> frozenset[str]:
    """Return the words that are names in SQL only in quotes."""
    told = (
        "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category IN ('reserved', 'type_function')"
    )
    return frozenset(select({}, told)["keyword_name"].to_pylist())


def _names(asked: str, source: str, metric: str) -> bool:
    """Whether a text in SQL may name a column of scores."""
    one, other = (re.escape('"' + name.replace('"', '""') + '"') for name in (source, metric))
    plain = [rf"\b{re.escape(name)}\b" for name in (source, metric)]
    return bool(re.search(rf"(?:{one}|{plain[0]})\s*\.\s*(?:{other}|{plain[1]})", asked, re.IGNORECASE))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise QueryError(f"the end of a range is a number, not {text!r}") from error


def _after(key: str, *, down: bool, backwards: bool) -> tuple[str, list[Any]]:
    """Return the condition in SQL that a sample comes after a key in an order, and its values."""
    if not key:
        return "true", []
    try:
        value, row = json.loads(key)
        row = int(row)
    except (ValueError, TypeError, OverflowError) as error:
        raise QueryError("after: is not a key of this page; leave it out") from error
    beyond = "<" if backwards else ">"
    if value is None:
        rest = " OR key IS NOT NULL" if backwards else ""
        return f"((key IS NULL AND row {beyond} ?){rest})", [row]
    rest = "" if backwards else " OR key IS NULL"
    return f"(key {'<' if down else '>'} ? OR (key = ? AND row {beyond} ?){rest})", [value, value, row]


def _places(ids: Sequence[str], run: Run) -> np.ndarray:
    """Return the row of each sample in another run; -1 where that run has no such sample."""
    there = {
        name: row for row, name in enumerate(sample_table(run.root, ["sample_id"])["sample_id"].to_pylist())
    }
    return np.array([there.get(name, -1) for name in ids])
