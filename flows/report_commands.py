"""The commands that show a run as pages."""

from __future__ import annotations

from flows.inspect_commands import Store, refusals
from flows.terminal import tell


def report(directory: Store) -> None:
    """Write the report of a run, DIR/report/index.html, which opens in a browser without a network.

    A job writes it when it ends. This command writes it again, also while a job runs and for older runs.
    """
    from storage.run import Run
    from tasks.page.report import write_report

    with refusals():
        page = write_report(Run.open(directory))
    tell(page)
