"""Read-only SQL on a run folder: DuckDB in memory, with the run's Parquet files as views."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, Timer
from time import monotonic
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset

from plugins.registry import choices
from storage.errors import LONGEST, FloodlitError, one_line
from storage.files import regular
from storage.layout import FOUND, TABLES
from storage.places import for_arrow
from storage.run import Run
from storage.samples import with_added_columns
from storage.verify import check_results

_WHEN = {
    "samples": "samples.parquet is written when all shards are done",
    "scores": "no shard has been scored",
    "summary": "summary.parquet is written when all shards are done",
    "comparisons": "comparisons.parquet is written when all shards are done",
    "costs": "costs.parquet is written when all shards are done",
    "findings": "a job has findings if it has the table [[findings]], or after `floodlit findings`",
    "clusters": "a job has clusters if it has the table [[findings]], or after `floodlit findings`",
}
Views = Mapping[str, pa.Table | pa.dataset.Dataset]
Values = (
    Sequence[Any] | Mapping[str, Any]
)  # of a statement's parameters: of each ``?`` in order, or by ``$name``
# DuckDB parses PIVOT as several statements in one (MULTI). Neither kind can reach a file, see Fence.
_ALLOWED = {duckdb.StatementType.SELECT, duckdb.StatementType.MULTI}


class QueryError(FloodlitError, ValueError):
    """The query cannot be answered; the message is one line."""

    exit_code = 2


class DamagedViewError(QueryError):
    """A file that the query reads is damaged."""

    exit_code = 1


def query(store: str | Path, sql: str) -> pa.Table:
    """Run one SELECT on a run and return its rows.

    The views are ``samples``, ``scores``, ``summary``, ``comparisons`` and ``costs``, and those of a run with
    findings also ``findings`` and ``clusters``. ``scores`` has the column ``explainer`` in addition to those
    of the files. The query can neither write nor read any file.

    Parameters
    ----------
    store
        A run folder, or its address on S3.
    sql
        One SELECT, DESCRIBE, SUMMARIZE, PIVOT or similar statement in DuckDB's SQL.

    Raises
    ------
    QueryError
        If ``sql`` is not one such statement, asks for something that does not exist, or fails.
    ValueError
        If there is no run in ``store``.
    """
    run = Run.open(store)
    try:
        views = _views(run)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(run, error) from error
    try:
        return select(views, sql)
    except (pa.ArrowException, OSError) as error:  # a file of a view is damaged
        raise _damaged(run, error) from error


def select(views: Views, sql: str, values: Values = ()) -> pa.Table:
    """Run one SELECT on some tables and return its rows; it can reach nothing else.

    Parameters
    ----------
    views
        The tables by name.
    sql
        One statement, as for :func:`query`.
    values
        Values of the statement's parameters.

    Raises
    ------
    QueryError
        If ``sql`` is not one such statement, asks for something that does not exist, or fails.
    """
    with Fence().reading(views) as ask:
        return ask(sql, values)


class Fence:
    """A database in memory that can read tables given to it, but no files, extensions or Python variables.

    Arrow reads the files, so DuckDB's own access to the file system is switched off completely.

    Parameters
    ----------
    memory
        What all queries together may take, for example "256MB"; most of the machine's memory without it.
    seconds
        For which one :meth:`reading` may compute; as long as it takes without it.
    """

    def __init__(self, memory: str | None = None, seconds: float | None = None) -> None:
        fence = {"enable_external_access": "false", "python_enable_replacements": "false"}
        fence["temp_directory"] = (
            ""  # what does not fit into memory would be written to the working directory
        )
        fence |= {} if memory is None else {"memory_limit": memory}
        self._memory, self._seconds, self._lock = memory, seconds, Lock()
        self._database = duckdb.connect(":memory:", config=fence)
        self._database.execute("SET lock_configuration = true")  # so that no query can switch it on again

    @contextmanager
    def reading(self, views: Views) -> Iterator[Callable[[str, Values], pa.Table]]:
        """Give a function that runs statements on these tables, as :func:`select` does.

        Several threads may read at a time; none sees the tables of another.
        """
        with self._lock:  # DuckDB does not say that threads may do this at the same time
            connection = self._database.cursor()
        end = None if self._seconds is None else monotonic() + self._seconds

        def ask(sql: str, values: Values = ()) -> pa.Table:
            _check_statement(sql)
            try:
                with _ended_at(end, connection):
                    return connection.sql(sql, params=values).to_arrow_table()
            except duckdb.InterruptException as error:
                raise QueryError(f"takes more than {self._seconds:g} seconds and was stopped") from error
            except (duckdb.OutOfMemoryException, MemoryError) as error:
                most = "there is" if self._memory is None else f"the {self._memory} that it may take"
                raise QueryError(f"needs more memory than {most}") from error
            except duckdb.Error as error:
                raise QueryError(_explained(error, views)) from error

        with connection:
            for name, dataset in views.items():
                connection.register(name, dataset)
            yield ask


@contextmanager
def _ended_at(end: float | None, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Interrupt what the block computes on a connection at a time of the monotonic clock."""
    if end is None:
        yield
        return
    timer = Timer(max(0.0, end - monotonic()), connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check_statement(sql: str) -> None:
    """Raise QueryError if a text in SQL is not one statement that only reads."""
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise QueryError(_line(error)) from error
    if len(statements) != 1 or statements[0].type not in _ALLOWED:
        kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
        raise QueryError(f"a query must be one SELECT statement; this is: {kinds}")


def _damaged(run: Run, error: Exception) -> DamagedViewError:
    return DamagedViewError(f"{run.root}: {one_line(error, LONGEST)}; run the job again to repair it")


def _views(run: Run) -> dict[str, pa.dataset.Dataset]:
    """Return an Arrow dataset for each view whose files exist; files that are not the run's are left out."""
    root, views = run.root, {}
    check_results(root)
    for name in (*TABLES, *FOUND):
        if (root / name).exists():
            views[name.removesuffix(".parquet")] = _dataset([root / name])
    if (samples := views.get("samples")) is not None:
        views["samples"] = samples.replace_schema(with_added_columns(samples.schema))  # null in earlier runs
    there = sorted((root / "scores").glob("explainer=*/shard-*.parquet"))
    files = [regular(file) for file in there if run.layout.owner(file.relative_to(root).as_posix())]
    if files:
        # The explainer is in the name of the folder, not in the files.
        folders = pa.dataset.partitioning(pa.schema([("explainer", pa.string())]), flavor="hive")
        base = for_arrow(root / "scores")[0]
        views["scores"] = _dataset(files, partitioning=folders, partition_base_dir=base)
    return views


def _dataset(files: list[Path], **how: Any) -> pa.dataset.Dataset:
    """Return an Arrow dataset of some Parquet files, which lie on the same file system."""
    sources = [for_arrow(file) for file in files]
    return pa.dataset.dataset(
        [name for name, _ in sources], format="parquet", filesystem=sources[0][1], **how
    )


def _explained(error: duckdb.Error, views: Mapping[str, Any]) -> str:
    """Return the message of an error; for a view that does not exist yet, say when it will."""
    text = _line(error)
    for name, when in _WHEN.items():
        if name not in views and f"Table with name {name} does not exist" in text:
            there = ", ".join(sorted(views)) or "none"
            return f"there is no view {name} yet: {when} (existing views: {there})"
    if missing := re.search("Table with name (.*) does not exist", text):
        return f"there is no view {missing[1]}; {choices(missing[1], sorted(views), 'there are ')}"
    return text


def _line(error: duckdb.Error) -> str:
    """Return DuckDB's message on one line, without the part that shows the place in the query."""
    return " ".join(str(error).split("\nLINE ")[0].split())
