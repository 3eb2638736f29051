"""Fixtures that many tests share: a Prefect server, an S3 server, and small jobs on the demo's digits."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# These are set before torch and Prefect are imported anywhere. Threads of many small networks slow each other
# down on a busy machine, and tests must not write to the user's Prefect database.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="floodlit-prefect-")
os.environ.pop("PREFECT_API_URL", None)
os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "WARNING"
os.environ["PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS"] = "3"  # instead of 30

import hypothesis
import pytest

from object_store import ObjectStore, serving
from runs import SLOW, tiny_job

# A busy machine is slow at times, which says nothing about a property, so examples have no deadline.
hypothesis.settings.register_profile("floodlit", deadline=None)
hypothesis.settings.load_profile("floodlit")


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The API address of a Prefect server that runs for this test session."""
    from flows.server import prefect_server

    with prefect_server() as address:
        yield address()


@pytest.fixture(scope="session")
def s3() -> Iterator[ObjectStore]:
    """An S3 server that runs for this test session."""
    with serving() as server:
        yield server


@pytest.fixture
def digits_job(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """:func:`tiny_job` with a store in the test's own folder."""
    return lambda **changes: tiny_job(**{"store": tmp_path / "run"} | changes)


@pytest.fixture
def slow_job(
    digits_job: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """A job that is slow enough to stop it halfway; its plug-in ``slow_plugin.py`` is in ``tmp_path``."""
    (tmp_path / "slow_plugin.py").write_text(SLOW)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return digits_job(
        explainers=[{"name": "slow_plugin:Slow"}, {"name": "gradcam"}],
        dataset={"kind": "digits", "limit": 64},
        batch={"shard": 16, "images": 2},
        controls=False,
    )


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser that reaches no network."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("no Chromium: install Debian's package chromium to test the pages")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()
