"""What many tests share: a Prefect server of their own, and tiny jobs on the demo's digits."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch and Prefect are imported anywhere. Threads of many small networks get into each other's way
# on a busy machine, and Prefect's database is not the user's.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="floodlit-prefect-")
os.environ.pop("PREFECT_API_URL", None)
os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "WARNING"
os.environ["PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS"] = "3"  # instead of 30

import hypothesis
import pytest

from object_store import ObjectStore, serving
from runs import SLOW, tiny_job

# A busy machine is slow now and then, which no property is about.
hypothesis.settings.register_profile("floodlit", deadline=None)
hypothesis.settings.load_profile("floodlit")


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Address of a Prefect server's API for this test session."""
    from flows.server import prefect_server

    with prefect_server() as address:
        yield address()


@pytest.fixture(scope="session")
def s3() -> Iterator[ObjectStore]:
    """A server that speaks S3."""
    with serving() as server:
        yield server


@pytest.fixture
def digits_job(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """:func:`tiny_job` with a store of the test's own."""
    return lambda **changes: tiny_job(**{"store": tmp_path / "run"} | changes)


@pytest.fixture
def slow_job(
    digits_job: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """A job with a middle to stop it in; its plug-in ``slow_plugin.py`` lies in ``tmp_path``."""
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
