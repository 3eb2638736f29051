"""Finds samples of runs by what is known of them and by their scores, one page at a time.

The samples are held in memory as one Arrow table. A column of scores is read when it is first asked for.
DuckDB filters and sorts behind the same fence as ``floodlit query``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.query import Fence
from storage.run import Run
from storage.samples import SAMPLE_COLUMNS, sample_table
from storage.scores import read_numbers
from tasks.page.expressions import FIELDS, Names
from tasks.page.search import Asking, Search
from tasks.results.accuracy import are_right

SECONDS, MEMORY = 10.0, "256MB"  # that one search may take; what all searches may take together
_HELD = 200 * 2**20  # bytes of scores in memory, at most
_COLUMNS = [name for name in SAMPLE_COLUMNS if name not in {"tokens", "notes", "boxes", "box_labels"}]
_FACTS = ("prediction", "prediction_name", "confidence", "status")  # of a sample in another run
_POOLED = "is one number for the whole dataset and none per sample; the report shows it"


class Catalog:
    """The samples of one run or of several on the same inputs; those of the first run are looked through.

    Parameters
    ----------
    runs
        The runs by name. The scores of the first one are columns ``explainer.metric``, those of the others
        ``"run/explainer".metric``, joined by the sample's id. What another model predicts is
        ``run.prediction`` and so on, unless an explainer of that name has such a score.
    """

    def __init__(self, runs: Mapping[str, Run]) -> None:
        self.runs = dict(runs)
        first = next(iter(runs.values()))
        table = _with_correct(sample_table(first.root, _COLUMNS))
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
        scores = {
            source: [score for score, column in runs[name].columns.items() if not column.pooled]
            for source, (name, _) in self.sources.items()
        }
        # What other models say of the samples, by the name of their run; null where it does not have one.
        self.facts = {
            name: _with_correct(sample_table(runs[name].root, [*_FACTS, "label", "labels"])).take(
                pa.array(places, mask=places < 0)
            )
            for name, places in self._rows.items()
            if places is not None
        }
        for name in self.facts:
            own = scores.get(name, [])
            scores[name] = own + [fact for fact in (*_FACTS, "correct") if fact not in own]
        without = {
            (source, score): _POOLED
            for source, (name, _) in self.sources.items()
            for score, column in runs[name].columns.items()
            if column.pooled
        }
        self.names = Names(scores, without, self.samples.column_names)
        self._fence = Fence(MEMORY, SECONDS)

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

    def row_in(self, name: str, row: int) -> int | None:
        """Return the row of a sample of the first run in a run; None if that run does not have it."""
        places = self._rows[name]
        found = row if places is None else int(places[row])
        return None if found < 0 else found

    @contextmanager
    def asking(self, search: Search, conditions: Sequence[str] = ()) -> Iterator[Asking]:
        """Give what answers a search, and counts how often more conditions in SQL are true.

        Raises
        ------
        QueryError
            In one line, if the search cannot be understood, or needs too much time or memory.
        """
        search.check()
        read = {field: self.names.read(field, getattr(search, field)) for field in FIELDS}
        more = [self.names.read("where", condition) for condition in conditions]
        table = self.samples
        for source, score in sorted(frozenset().union(*(each.columns for each in (*read.values(), *more)))):
            is_fact = source not in self.sources or score not in self.runs[self.sources[source][0]].columns
            column = self.facts[source][score] if is_fact else self.scores(source, score)
            table = table.append_column(self.names.column[source, score], column)
        with self._fence.reading({"samples": table}) as ask:
            yield Asking(search, read, self.names, ask, [each.sql for each in more])


def _places(ids: Sequence[str], run: Run) -> np.ndarray:
    """Return the row of each sample in another run; -1 where that run has no such sample."""
    there = {
        name: row for row, name in enumerate(sample_table(run.root, ["sample_id"])["sample_id"].to_pylist())
    }
    return np.array([there.get(name, -1) for name in ids])


def _with_correct(samples: pa.Table) -> pa.Table:
    """The samples, and whether their prediction is a label."""
    return samples.append_column("correct", pa.array(are_right(samples), pa.bool_()))
