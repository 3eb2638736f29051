"""A browser that looks at pages from files, and a finished run to make them of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runs import completed, tiny_job
from storage.run import Run
from tasks.page.report import write_report


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with controls; tests that change it work on a copy."""
    metrics = [{"name": "insertion", "steps": 4}, {"name": "pointing_game"}, {"name": "sparseness"}]
    run = completed(tiny_job(tmp_path_factory.mktemp("finished") / "run", metrics=metrics, controls=True))
    write_report(run)
    return run


@pytest.fixture
def look(chromium: Any) -> Callable[..., Any]:
    """Opens a page from a file; afterwards the test fails if it wrote an error or asked for another file."""

    @contextmanager
    def opened(page: Path, **context: Any) -> Iterator[Any]:
        told: list[str] = []
        with chromium.new_context(**context) as made:
            tab = made.new_page()
            tab.on("console", lambda message: told.append(message.text))
            tab.on("pageerror", lambda error: told.append(str(error)))
            tab.on("request", lambda request: told.append(request.url))
            tab.goto(page.as_uri())
            yield tab
        assert [line for line in told if not line.startswith("data:")] == [page.as_uri()]

    return opened
