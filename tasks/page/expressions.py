"""Expressions in SQL that a search takes: which scores they name, and what is wrong with them, in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import duckdb

from plugins.registry import choices
from storage.query import QueryError, select

FIELDS = {"score": "score", "where": "condition in SQL", "sort": "sort by"}  # as the page calls them
_LONGEST = 4000  # characters of an expression
_QUOTED_AT_MOST = 80  # characters of an expression in a message
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
_SEVERAL = "looks at several samples, and a search looks at one at a time"
_LARGE = "makes values of any size, which could fill the memory"
# Functions with which a page would be wrong, or could not be stopped.
_REFUSED = {
    **dict.fromkeys(("over", "unnest", "generate_subscripts"), _SEVERAL),
    **dict.fromkeys(("random", "uuid", "gen_random_uuid"), "gives another order on every page"),
    **dict.fromkeys(("repeat", "lpad", "rpad", "range", "generate_series", "list_resize"), _LARGE),
}


@dataclass(frozen=True)
class Expression:
    """An expression for DuckDB, empty if nothing is asked, and the (source, score) of each column in it."""

    sql: str
    columns: frozenset[tuple[str, str]]


class Names:
    """What expressions may name beside the columns of samples: scores, as ``source.score``.

    In the table that DuckDB reads, each score is one column with a name of its own, so that sources and
    scores may be called as they like, also as a column of samples.

    Parameters
    ----------
    scores
        The scores of each source.
    without
        Why something like a score of a source has no value per sample.
    columns
        The columns of samples.
    """

    def __init__(
        self,
        scores: Mapping[str, Iterable[str]],
        without: Mapping[tuple[str, str], str],
        columns: Iterable[str],
    ) -> None:
        self._scores = {source: list(own) for source, own in scores.items()}
        self._without, self._columns = dict(without), list(columns)
        self.column: dict[tuple[str, str], str] = {}
        taken = set(self._columns)
        for source, own in self._scores.items():
            for score in own:
                name = reference(source, score)
                while name.lower() in taken:  # DuckDB does not tell capitals from other letters
                    name += "'"
                taken.add(name.lower())
                self.column[source, score] = name

    def read(self, field: str, text: str) -> Expression:
        """Read the expression in a field of the search.

        Raises
        ------
        QueryError
            In one line that begins with the field, if it is not one expression, or names a score that is not
            there.
        """
        if not text.strip():
            return Expression("", frozenset())
        if len(text) > _LONGEST:
            raise QueryError(f"{FIELDS[field]}: has more than {_LONGEST:,} characters")
        try:
            duckdb.SQLExpression(text)  # alone, so that no bracket or comment of it reaches the rest
            pieces = list(self._pieces(text))
        except duckdb.Error as error:
            raise QueryError(self.told(field, text, error)) from error
        except QueryError as error:
            raise QueryError(f"{FIELDS[field]}: {error}") from error
        named = frozenset(piece for piece in pieces if isinstance(piece, tuple))
        parts = [in_quotes(self.column[piece]) if isinstance(piece, tuple) else piece for piece in pieces]
        return Expression("".join(parts), named)

    def _pieces(self, text: str) -> Iterator[str | tuple[str, str]]:
        """The parts of an expression: text as it is, and the source and score of each column."""
        tokens, at = _tokens(text), 0
        while at < len(tokens):
            names = [_name(piece) if is_name else "" for is_name, piece in tokens[at : at + 3]]
            first, last = names[0], names[2] if len(names) == 3 else ""
            following = tokens[at + 1][1].strip() if at + 1 < len(tokens) else ""
            source = _matching(first, self._scores) if first and last and following == "." else None
            if source is not None:
                yield source, self._score(source, last)
                yield " "
                at += 3
                continue
            if following.startswith("(") and first.lower() in _REFUSED:
                raise QueryError(f"{first}() {_REFUSED[first.lower()]}; leave it out")
            yield tokens[at][1]
            at += 1

    def _score(self, source: str, name: str) -> str:
        """The score of a source that a text names."""
        own = self._scores[source]
        found = _matching(name, own)
        if found is not None:
            return found
        reason = self._without.get((source, name))
        if reason is not None:
            raise QueryError(f"{reference(source, name)} {reason}")
        raise QueryError(f"{source} has no score {name!r}; {choices(name, own, 'it has ')}")

    def told(self, field: str, text: str, error: BaseException) -> str:
        """Why DuckDB refuses the expression in a field, in one line."""
        message = " ".join(str(error).split("\nLINE ")[0].split())
        for pattern, words in _WORDS.items():
            if found := re.search(pattern, message):
                return f"{FIELDS[field]}: {words(self, *found.groups())}"
        quoted = " ".join(text.split())
        quoted = quoted if len(quoted) <= _QUOTED_AT_MOST else quoted[:_QUOTED_AT_MOST] + "..."
        return f"{FIELDS[field]}: {quoted!r} cannot be computed: {message.partition(': ')[2] or message}"

    @property
    def example(self) -> str:
        """How a score is written."""
        there = [name for (_, score), name in self.column.items() if score not in self._columns]
        return f"explainer.score, for example {there[0]}" if there else "explainer.score"

    def _no_column(self, name: str) -> str:
        """That there is no such column, and what there is."""
        close = choices(name, [*self._columns, *self.column.values()])
        if not close.startswith("close"):
            close = f"columns are {', '.join(self._columns)}; a score is written {self.example}"
        return f"there is no column {name!r}; {close}"

    def _no_source(self, name: str) -> str:
        """That there is no such explainer, and which there are."""
        return f"there is no explainer {name!r}; {choices(name, self._scores, 'there are ')}"

    def _no_table(self, name: str) -> str:
        """That a search reads one table."""
        return (
            f"{name!r} cannot be read here; a search reads the table samples alone, and a score is written "
            f"{self.example} (`floodlit query` reads every table)"
        )


def reference(source: str, score: str) -> str:
    """Return how an expression names a score, in SQL."""
    return f"{_quoted(source)}.{_quoted(score)}"


def _quoted(name: str) -> str:
    """Return a name in SQL, quoted if it must be."""
    return name if _PLAIN.fullmatch(name) and name not in _reserved() else in_quotes(name)


def in_quotes(name: str) -> str:
    """Return a name in SQL in quotes."""
    return '"' + name.replace('"', '""') + '"'


@cache
def _reserved() -> frozenset[str]:
    """Return the words that are names in SQL only in quotes."""
    told = (
        "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category IN ('reserved', 'type_function')"
    )
    return frozenset(select({}, told)["keyword_name"].to_pylist())


def _tokens(text: str) -> list[tuple[bool, str]]:
    """The tokens of a text in SQL, with the blanks behind them, and whether each may be a name."""
    data, found = text.encode(), duckdb.tokenize(text)  # which counts bytes
    ends = [start for start, _ in found[1:]] + [len(data)]
    names = {duckdb.token_type.identifier, duckdb.token_type.keyword}
    return [(kind in names, data[start:end].decode()) for (start, kind), end in zip(found, ends, strict=True)]


def _name(piece: str) -> str:
    """The name that a token stands for."""
    name = piece.strip()
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _matching(name: str, known: Iterable[str]) -> str | None:
    """What a name in SQL stands for, where capitals do not count, unless they make a difference."""
    close = [each for each in known if each.lower() == name.lower()]
    return name if name in close else close[0] if len(close) == 1 else None


# What DuckDB says, and the same in words that say what to do.
_WORDS: dict[str, Callable[..., str]] = {
    r'Referenced column "(.*?)" ': Names._no_column,
    r'Referenced table "(.*?)" not found': Names._no_source,
    r"Table with name (.*) does not exist": Names._no_table,
    r"file system operations are disabled": lambda own: own._no_table("a file"),
    r"Function with name (.*?) does not exist": lambda _, name: f"there is no function {name!r}",
    r'syntax error at or near "(.*)"': lambda _, at: (
        f"is no expression in SQL: it is wrong at {at!r} or before"
    ),
    r"unterminated": lambda _: "is no expression in SQL: a quote or a comment has no end",
    r"syntax error at end": lambda _: "is no expression in SQL: something is missing at its end",
    r"(?:is not an expression list|only a single expression)": lambda _: (
        "must be one expression, such as confidence > 0.9; a number has a point, not a comma"
    ),
    r"(?i)Max expression depth": lambda _: "has too many parts; make it shorter",
    r"""Could not convert string ['"](.*)['"] to""": lambda _, text: (
        f"{text!r} is compared with a number and is none; names of columns are written without such quotes"
    ),
    r"Cannot compare values of type (.*) and type (.*?) -": lambda _, one, other: (
        f"{_type_in_words(one)} cannot be compared with {_type_in_words(other)}; texts are in single quotes"
    ),
    r"No function matches .*? '(.*?)\((.*?)\)'\.": lambda _, name, types: (
        f"{name} does not take {' and '.join(_type_in_words(each) for each in types.split(', '))}"
    ),
    r"aggregates|GROUP BY|window functions|UNNEST": lambda _: (
        f"{_SEVERAL}: write for example (SELECT avg(confidence) FROM samples)"
    ),
    r"Values were not provided": lambda _: (
        "a ? or $ stands for a value that nobody gives; write the value itself"
    ),
    r"More than one row returned": lambda _: "a SELECT in brackets gives several rows; it must give one",
    r"Subquery returns": lambda _: "a SELECT in brackets gives several columns; it must give one",
}


def _type_in_words(name: str) -> str:
    """What a type of DuckDB is."""
    if name.endswith("]"):
        return "a list"
    words = {"VARCHAR": "a text", "STRING_LITERAL": "a text", "BOOLEAN": "true or false"}
    return words.get(name, "a number")
