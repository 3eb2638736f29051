"""The hostile suite: inputs that are drawn from a grammar and meant to go wrong.

    python -m pytest tests/hostile                  # a short form, part of the usual tests
    HOSTILE=400 python -m pytest tests/hostile      # 400 inputs of each of the five kinds

An input passes if the answer is right, or a refusal of one line. It fails at a traceback, if there is no
answer within 30 seconds, and if a second, independent check calls the answer wrong. The counts by kind and
answer are printed at the end.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from attempts import counts

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.hostile)
            item.add_marker(pytest.mark.timeout(7200))  # for the long form; every attempt has its own limit


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for (kind, answer), number in sorted(counts.items()):
        terminalreporter.write_line(f"hostile {kind}: {number} {answer}")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder in which every attempt makes a folder of its own."""
    import timm  # noqa: F401  # a first import takes long on a busy machine, whatever an attempt does
    import transformers  # noqa: F401

    with TemporaryDirectory(prefix="hostile-") as made:
        yield Path(made)
