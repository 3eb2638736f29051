"""One run for the tests of findings and of their page, on images with a known fault of the network."""

from pathlib import Path

import pytest

from finding_toys import job, searched
from runs import completed
from storage.run import Run


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run in which findings were looked for; tests do not change it."""
    store: Path = tmp_path_factory.mktemp("found") / "run"
    return searched(completed(job(store)))
