"""The commands that show a run as pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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


def browse(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="DIR DIR...", help="run folders on the same inputs; the first one is listed"),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="port of this machine; 0 takes a free one")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="do not open the page in a browser")] = False,
) -> None:
    """Look through all samples of a run in a browser: filter, sort, compare; until Ctrl-C.

    The pages are served to this machine alone, at an address with a secret part. Nothing is written.
    """
    import secrets
    import socket
    import webbrowser

    import uvicorn

    from flows.browser import HOSTS, browser
    from storage.run import Run
    from tasks.results.same_images import names_of

    with refusals(), socket.socket() as listening:
        runs = [Run.open(directory) for directory in directories]
        token = secrets.token_urlsafe(16)
        app = browser(dict(zip(names_of(runs), runs, strict=True)), token)
        listening.bind((HOSTS[0], port))
        address = f"http://{HOSTS[0]}:{listening.getsockname()[1]}/{token}/"
        tell(f"{address} (Ctrl-C ends it)")
        if not no_open:
            webbrowser.open(address)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run([listening])
