"""The browser: pages over whole runs, served on this machine only and read from the runs' own files.

Every page's state is its address, so that it can be sent to somebody who has the run. Nothing is written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from threading import Thread
from typing import Any
from urllib.parse import urlencode

import pyarrow as pa
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route

from flows.browser_fence import REFUSALS, Fenced
from plugins.registry import choices
from storage.query import QueryError
from storage.run import Run
from tasks.page.beside import compared, differences, predictions, questions
from tasks.page.catalog import Catalog
from tasks.page.expressions import FIELDS, reference
from tasks.page.rendering import render
from tasks.page.search import SAMPLES, Asking, Search
from tasks.results.headline import headline
from tasks.results.leaderboard import is_control

HOSTS = ["127.0.0.1", "localhost"]
_SECONDS = 600  # for which a browser may keep a picture
_ROW = re.compile("[0-9]{1,9}")


def browser(runs: Mapping[str, Run], token: str) -> Starlette:
    """Make the application that serves runs below ``/token/``.

    Parameters
    ----------
    runs
        Runs on the same inputs by name. The samples of the first one are listed.
    token
        A secret part of the address, which pages of other servers cannot guess.

    Raises
    ------
    UnreadableError
        If a run has no ``samples.parquet`` yet, or it is damaged.
    ValueError
        In one line, if an id stands for different inputs in the runs.
    """
    pages = _Pages(runs)
    routes = [
        Route("/", _page(pages.samples)),
        Route("/sample/{row}", _page(pages.sample)),
        Route("/input/{row}.webp", pages.input),
        Route("/map/{source:path}/{row}.png", pages.map),
    ]
    # A page can give its own name this machine's address after it was loaded (DNS rebinding).
    guards = [Middleware(Fenced), Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)]
    return Starlette(
        routes=[Mount(f"/{token}", routes=routes)], middleware=guards, exception_handlers=REFUSALS
    )


def _page(made: Callable[[Request], tuple[str, int]]) -> Callable[[Request], Response]:
    """Make an endpoint of a function that returns HTML and a status."""

    def endpoint(request: Request) -> Response:
        return HTMLResponse(*made(request))

    return endpoint


class _Pages:
    """The pages and pictures of some runs."""

    def __init__(self, runs: Mapping[str, Run]) -> None:
        self.runs = dict(runs)
        self.catalog = Catalog(runs)
        self.first = next(iter(self.runs.values()))
        if len(self.runs) > 1:
            from tasks.results.same_images import check_same_images

            ids = set(self.catalog.samples["sample_id"].to_pylist())
            check_same_images(list(self.runs.values()), list(self.runs), ids)
        self.classes = _classes(self.catalog)
        self.expressions = _expressions(self.first, self.catalog)
        self.questions = questions(self.catalog)
        Thread(target=self._warm, daemon=True).start()

    def _warm(self) -> None:
        """Import what pages of samples need, and read the scores, so that the first of them is fast, too."""
        import tasks.page.sample  # noqa: F401

        for run in self.runs.values():
            columns = {name for name, column in run.columns.items() if not column.pooled}
            for explainer in run.explainers:
                with suppress(OSError, ValueError):  # the page that needs them says what is wrong
                    self.catalog.numbers(run, explainer, columns)

    def samples(self, request: Request) -> tuple[str, int]:
        """The page of samples that a search finds, or why there is none."""
        search, shown = _filled(request)
        told = dict.fromkeys(("cards", "following", "count"))
        error, against = "", []
        try:
            self._check(request)
            with self.catalog.asking(search, [condition for _, condition in self.questions]) as asking:
                found = asking.find()
                if self.questions:
                    counts = zip(self.questions, asking.counts(), strict=True)
                    against = [(words, n, _with_condition(search, sql, shown)) for (words, sql), n in counts]
                cards, following = self._cards(found.rows, asking), found.keys[-1] if found.more else ""
                told = {"cards": cards, "count": asking.count()}
                told["following"] = _query(replace(search, after=following), shown) if following else ""
        except QueryError as refusal:
            error = str(refusal)
        page = render(
            "browser.html",
            title=" and ".join(self.runs) if len(self.runs) > 1 else self.first.name,
            root=_root(request),
            search=search,
            against=against,
            query=_query(search, shown),
            error=error,
            total=self.first.rows,
            per_page=SAMPLES,
            classes=self.classes,
            expressions=self.expressions,
            sources=list(self.catalog.sources),
            shown=shown if shown in self.catalog.sources else "",
            modality=self.first.modality,
            size=self.first.input_size,
            **told,
        )
        return page, 400 if error else 200

    def _check(self, request: Request) -> None:
        """Raise QueryError if an address has parts that no search has, or names a map that is not there."""
        known = [*_PARTS, "map"]
        for name, times in Counter(name for name, _ in request.query_params.multi_items()).items():
            if name not in known:
                raise QueryError(
                    f"the address has an unknown part {name[:40]!r}; {choices(name[:40], known)}"
                )
            if times > 1:
                raise QueryError(f"the address has {name} {times} times; leave one")
        shown = request.query_params.get("map", "")
        if shown and (self.first.modality != "image" or shown not in self.catalog.sources):
            there = self.catalog.sources if self.first.modality == "image" else ()
            raise QueryError(f"map: there is no {shown[:40]!r}; {choices(shown[:40], there, 'there are ')}")

    def _cards(self, rows: list[int], asking: Asking) -> list[dict[str, Any]]:
        """What a page of samples says about each of them."""
        columns = ("sample_id", "uri", "label_name", "prediction_name", "prediction", "label", "confidence")
        chosen = self.catalog.samples.select([*columns, "text", "status", "correct"])
        chosen = chosen.take(pa.array(rows, pa.int64())).to_pylist()
        predicted = predictions(self.catalog, rows)
        told = {field: values for field in ("sort", "score") if (values := asking.values(field, rows))}
        return [
            {
                **sample,
                "row": row,
                "told": {FIELDS[field]: values[i] for field, values in told.items()},
                "others": predicted[i][1:],
            }
            for i, (row, sample) in enumerate(zip(rows, chosen, strict=True))
        ]

    def sample(self, request: Request) -> tuple[str, int]:
        """The page of one sample, with the ones before and after it in the order of the search."""
        from tasks.page.gallery import colours_of
        from tasks.page.picture_data import inline
        from tasks.page.sample import samples_of
        from tasks.page.shown_maps import named

        row, (search, of_map) = self._row(request), _filled(request)
        neighbours = self._neighbours(request, search, row)
        shown = []
        for number, (name, run) in enumerate(self.runs.items()):
            place = self.catalog.row_in(name, row)
            if place is not None:
                (found,) = samples_of(run, [place], inline, self.catalog.numbers)
                shown.append((name, replace(found, key=f"run{number}-{found.key}"), named(run)))
        page = render(
            "browser_sample.html",
            title=self.catalog.samples["sample_id"][row].as_py(),
            root=_root(request),
            query=_query(search, of_map),
            shown=shown,
            several=len(self.runs) > 1,
            predictions=predictions(self.catalog, [row])[0],
            differences=differences(self.catalog, row),
            palette=colours_of(self.first.modality),
            of={
                "modality": self.first.modality,
                "boxes": any(target.boxes for _, sample, _ in shown for target in sample.targets),
                "masks": any(target.mask for _, sample, _ in shown for target in sample.targets),
            },
            **neighbours,
        )
        return page, 400 if neighbours["error"] else 200

    def _row(self, request: Request) -> int:
        """The row in an address."""
        told = request.path_params["row"]
        if not _ROW.fullmatch(told) or int(told) >= self.first.rows:
            raise HTTPException(404)
        return int(told)

    def _neighbours(self, request: Request, search: Search, row: int) -> dict[str, Any]:
        """The samples before and after one in the order of a search, or why they are not known."""
        try:
            self._check(request)
            with self.catalog.asking(search) as asking:
                key = asking.key_of(row)
                after = asking.find(1, after=key).rows
                before = asking.find(1, after=key, backwards=True).rows
        except QueryError as refusal:
            return {"before": None, "after": None, "error": str(refusal)}
        return {"before": next(iter(before), None), "after": next(iter(after), None), "error": ""}

    def input(self, request: Request) -> Response:
        """The picture of an input."""
        from tasks.page.picture_data import webp
        from tasks.pictures.drawing import pixels_of

        row = self._row(request)
        if self.first.modality != "image":
            raise HTTPException(404)
        return _picture(webp(pixels_of(self.first, row), 224), "image/webp")

    def map(self, request: Request) -> Response:
        """The picture of a map of the first explained class."""
        from tasks.page.picture_data import INFERNO, map_png
        from tasks.page.stored_maps import stored_maps

        source, row = request.path_params["source"], self._row(request)
        if source not in self.catalog.sources:
            raise HTTPException(404)
        name, explainer = self.catalog.sources[source]
        run, place = self.runs[name], self.catalog.row_in(name, row)
        found = [] if place is None else stored_maps(run, explainer, [place * run.targets_per_image])
        if not found or found[0].levels is None:
            raise HTTPException(404)
        return _picture(map_png(found[0].levels, INFERNO), "image/png")


def _picture(data: bytes, kind: str) -> Response:
    return Response(data, media_type=kind, headers={"Cache-Control": f"private, max-age={_SECONDS}"})


def _root(request: Request) -> str:
    """The address below which all pages lie."""
    return str(request.scope["root_path"])


_PARTS = [field.name for field in fields(Search)]


def _filled(request: Request) -> tuple[Search, str]:
    """The search, and the map that is shown, as an address has them."""
    given = request.query_params
    return Search(**{name: given.get(name, "") for name in _PARTS}), given.get("map", "")


def _query(search: Search, shown: str) -> str:
    """Write a search, and the map that is shown, into an address."""
    parts = {name: value for name, value in (vars(search) | {"map": shown}).items() if value}
    return f"?{urlencode(parts)}" if parts else ""


def _with_condition(search: Search, condition: str, shown: str) -> str:
    """The address of a search with one more condition in SQL."""
    where = f"({search.where.strip()}) AND {condition}" if search.where.strip() else condition
    return _query(replace(search, where=where, after=""), shown)


def _classes(catalog: Catalog) -> list[str]:
    """The names of classes that samples have or are predicted to have; their numbers without names."""
    found = set()
    for column in ("label", "prediction"):
        pairs = catalog.samples.group_by([f"{column}_name", column]).aggregate([]).to_pylist()
        found |= {pair[f"{column}_name"] or pair[column] for pair in pairs} - {None}
    return sorted(map(str, found))


def _expressions(run: Run, catalog: Catalog) -> dict[str, str]:
    """Expressions to sort by, and what they are: headline scores, differences and disagreement."""
    own = [name for name, entry in run.explainers.items() if not is_control(name, entry)]
    found = {"confidence": "the model's confidence"}
    for metric in headline(run.manifest):
        if run.columns[metric].pooled:
            continue
        columns = [reference(name, metric) for name in own]
        if len(columns) > 1:
            spread = ", ".join(columns)
            found[f"greatest({spread}) - least({spread})"] = f"how much explainers disagree in {metric}"
        there = {
            source: name
            for source, (of, name) in catalog.sources.items()
            if catalog.runs[of] is run or metric in compared(run, catalog.runs[of])
        }
        found |= {reference(source, metric): f"{metric} of {source}" for source in there}
        # The same explainer in another run.
        pairs = [
            (one, source) for source, one in there.items() if one in own and source not in run.explainers
        ]
        pairs += [(own[0], own[1])] if len(own) > 1 else []
        for one, other in pairs:
            less = f"{reference(one, metric)} - {reference(other, metric)}"
            found[less] = f"{metric}: {one} less {other}"
    return found
