"""A search over samples: what it asks for, and how DuckDB answers, one page at a time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from storage.query import QueryError
from tasks.page.expressions import FIELDS, Expression, Names

SAMPLES = 48  # on a page
_TEXTS = ("uri", "sample_id", "text", "label_name", "prediction_name")
_CHOICES = {"correct": ("0", "1"), "status": ("ok", "failed"), "descending": ("1",)}
_NUMBER = r"DOUBLE|FLOAT|DECIMAL.*|U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|BIGNUM"
# What an expression in each field may be, besides null, and what to do otherwise.
_KINDS = {
    "score": (_NUMBER, "a range is one of numbers"),
    "where": ("BOOLEAN", "a condition is true or false, such as confidence > 0.9"),
    "sort": (f"{_NUMBER}|VARCHAR|BOOLEAN", "sort by a number or a text"),
}
_ROUNDED = ("DECIMAL", "HUGEINT", "UHUGEINT", "BIGNUM")  # types whose values do not come back unchanged
_LARGEST = 2**63  # of a whole number in a key


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

    def check(self) -> None:
        """Raise QueryError, in one line that says what to do, if parts do not go together."""
        for name, values in _CHOICES.items():
            if getattr(self, name) not in {"", *values}:
                raise QueryError(
                    f"{name}: is {' or '.join(values)} in the address, not {getattr(self, name)!r}"
                )
        low, high = (_number(name, end) for name, end in (("from", self.low), ("to", self.high)))
        if (low is not None or high is not None) and not self.score.strip():
            raise QueryError("from and to: are the range of a score; say which one in the field score")
        if low is not None and high is not None and low > high:
            raise QueryError(f"from and to: nothing is from {low:g} to {high:g}; exchange the two")
        if self.descending and not self.sort.strip():
            raise QueryError("largest first: needs an order; say in the field sort by what is to be largest")


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


class Asking:
    """A search on a table of samples.

    Parameters
    ----------
    search
        What is asked.
    expressions
        Its expressions by field, as :class:`Names` reads them.
    names
        What explains errors in them.
    ask
        Runs a statement on the table ``samples``, which has the columns that the expressions name.
    conditions
        More conditions in SQL, for :meth:`counts`.

    Raises
    ------
    QueryError
        Here and in every method: in one line that says which part cannot be understood, and why.
    """

    def __init__(
        self,
        search: Search,
        expressions: Mapping[str, Expression],
        names: Names,
        ask: Callable[[str, Mapping[str, Any]], pa.Table],
        conditions: Sequence[str] = (),
    ) -> None:
        self._search, self._names, self._run, self._counted = search, names, ask, conditions
        self._sql = {field: read.sql for field, read in expressions.items() if read.sql}
        kinds = self._kinds()
        self._key = f"({self._sql['sort']}\n)" if "sort" in self._sql else "0"
        if kinds.get("sort", "").startswith(_ROUNDED):
            self._key = f"CAST({self._key} AS DOUBLE)"
        self._condition, self._values = self._conditions()

    def find(self, most: int = SAMPLES, *, after: str | None = None, backwards: bool = False) -> Found:
        """Return the samples that the search finds after a key, or before it if ``backwards``.

        The key is that of the search by default.
        """
        down = (self._search.descending == "1") != backwards
        rows_down = "DESC" if backwards else ""
        key = self._search.after if after is None else after
        beyond, more = _after(key, down=down, backwards=backwards)
        order = f"key IS NULL {rows_down}, key {'DESC' if down else ''}, row {rows_down}"
        found = self._ask(
            f"SELECT row, key FROM (SELECT row, {self._key} AS key FROM samples WHERE {self._condition}) "
            f"WHERE {beyond} ORDER BY {order} LIMIT {most + 1}",
            self._values | more,
        )
        rows, keys = found["row"].to_pylist(), found["key"].to_pylist()
        encoded = [json.dumps([key, row]) for key, row in zip(keys, rows, strict=True)]
        return Found(rows[:most], encoded[:most], len(rows) > most)

    def count(self) -> int:
        """Return the number of samples that the search finds, whatever its key."""
        found = self._ask(f"SELECT count(*) AS n FROM samples WHERE {self._condition}", self._values)
        return int(found["n"][0].as_py())

    def counts(self) -> list[int]:
        """Return for how many of the samples that the search finds each of ``conditions`` is true."""
        counted = ", ".join(f"count(*) FILTER (({sql}\n))" for sql in self._counted)
        found = self._ask(f"SELECT {counted} FROM samples WHERE {self._condition}", self._values)
        return [int(column[0].as_py()) for column in found.columns]

    def values(self, field: str, rows: Sequence[int]) -> list[Any]:
        """Return the value of the expression in a field for each of some samples; nothing without one."""
        if field not in self._sql or not rows:
            return []
        wanted = ", ".join(map(str, rows))
        sql = f"SELECT row, ({self._sql[field]}\n) AS value FROM samples WHERE row IN ({wanted})"
        found = self._ask(sql, {})
        known = dict(zip(found["row"].to_pylist(), found["value"].to_pylist(), strict=True))
        return [known[row] for row in rows]

    def key_of(self, row: int) -> str:
        """Return the key of a sample in the order of the search."""
        found = self._ask(f"SELECT {self._key} AS key FROM samples WHERE row = $row", {"row": row})
        return json.dumps([found["key"][0].as_py(), row])

    def _kinds(self) -> dict[str, str]:
        """The types of the expressions, which are checked."""
        if not self._sql:
            return {}
        asked = ", ".join(f"typeof(({sql}\n)) AS {_own(field)}" for field, sql in self._sql.items())
        told = self._ask(f"SELECT {asked} FROM samples LIMIT 1", {})
        for field in self._sql:
            if told.column_names.count(_own(field)) != 1:  # as COLUMNS(...) makes them
                raise QueryError(f"{FIELDS[field]}: stands for several columns; name one")
        rows = told.to_pylist()
        kinds = {field: rows[0][_own(field)] for field in self._sql} if rows else {}
        ranged = self._search.low.strip() or self._search.high.strip()
        for field, kind in kinds.items():
            takes, do = _KINDS[field]
            if (field != "score" or ranged) and not re.fullmatch(f'{takes}|"NULL"', kind):
                raise QueryError(f"{FIELDS[field]}: is {_in_words(kind)}; {do}")
        return kinds

    def _conditions(self) -> tuple[str, dict[str, Any]]:
        """The condition of the search in SQL, and the values of its parameters."""
        search, parts, values = self._search, ["true"], {}
        of_several = (
            " OR list_contains(CAST(labels AS VARCHAR[]), $search_label)"
            " OR (label IS NULL AND list_contains(string_split(label_name, '; '), $search_label))"
        )
        for column, more in (("label", of_several), ("prediction", "")):
            if wanted := getattr(search, column).strip():
                name = f"$search_{column}"
                parts.append(f"(CAST({column} AS VARCHAR) = {name} OR {column}_name = {name}{more})")
                values[name[1:]] = wanted
        if search.correct:
            parts.append(f"correct IS {'TRUE' if search.correct == '1' else 'FALSE'}")
        if search.status:
            parts.append("status = $search_status")
            values["search_status"] = search.status
        for end, sign in (("low", ">="), ("high", "<=")):
            limit = _number(end, getattr(search, end))
            if limit is not None:
                parts.append(f"({self._sql['score']}\n) {sign} $search_{end}")
                values[f"search_{end}"] = limit
        if search.text.strip():
            inside = (f"contains(lower({name}), lower($search_text))" for name in _TEXTS)
            parts.append(f"({' OR '.join(inside)})")
            values["search_text"] = search.text.strip()
        if "where" in self._sql:
            parts.append(f"({self._sql['where']}\n)")  # the new line ends a comment
        return " AND ".join(parts), values

    def _ask(self, sql: str, values: Mapping[str, Any]) -> pa.Table:
        """Run a statement; if it fails, say in which part of the search the reason is."""
        try:
            return self._run(sql, values)
        except QueryError as error:
            raise QueryError(self._told(error)) from error

    def _told(self, error: QueryError) -> str:
        """Why the search cannot be answered, in one line."""
        if not isinstance(error.__cause__, duckdb.Error) or _is_too_much(error.__cause__):
            return f"the search {error}; make it simpler"
        for field, sql in self._sql.items():
            try:
                self._run(f"SELECT count(*) FROM samples WHERE ({sql}\n) IS NULL", {})
            except QueryError as own:
                if isinstance(own.__cause__, duckdb.Error):
                    text = getattr(self._search, field)
                    told = str(own) if _is_too_much(own.__cause__) else ""
                    return (
                        f"{FIELDS[field]}: {told}" if told else self._names.told(field, text, own.__cause__)
                    )
        if self._search.after:
            return "after: is not a key of this page; leave it out of the address"
        return f"the search cannot be answered: {error}"


def _own(field: str) -> str:
    """The name of a field's column in an answer; the fields' own names are no names in SQL."""
    return f"of_{field}"


def _is_too_much(error: BaseException) -> bool:
    return isinstance(error, duckdb.InterruptException | duckdb.OutOfMemoryException)


def _in_words(kind: str) -> str:
    """What a type of DuckDB is, in words."""
    words = {"VARCHAR": "a text", "BOOLEAN": "true or false"}
    return words.get(kind) or ("a number" if re.fullmatch(_NUMBER, kind) else f"of the type {kind}")


def _number(name: str, text: str) -> float | None:
    """The number in a field; None if it is empty."""
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise QueryError(f"{name}: the end of a range is a number such as 0.5, not {text[:40]!r}")
    return value


def _after(key: str, *, down: bool, backwards: bool) -> tuple[str, dict[str, Any]]:
    """Return the condition in SQL that a sample comes after a key in an order, and its values."""
    if not key:
        return "true", {}
    try:
        value, row = json.loads(key)
    except (ValueError, TypeError, RecursionError):
        value, row = None, None
    kinds = (str, bool, int, float, type(None))
    small = not isinstance(value, int) or abs(value) < _LARGEST
    if type(row) is not int or not 0 <= row < _LARGEST or type(value) not in kinds or not small:
        raise QueryError("after: is not a key of this page; leave it out of the address")
    beyond = "<" if backwards else ">"
    if value is None:
        rest = " OR key IS NOT NULL" if backwards else ""
        return f"((key IS NULL AND row {beyond} $after_row){rest})", {"after_row": row}
    rest = "" if backwards else " OR key IS NULL"
    passed = f"key {'<' if down else '>'} $after_key OR (key = $after_key AND row {beyond} $after_row)"
    return f"({passed}{rest})", {"after_key": value, "after_row": row}
