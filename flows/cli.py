"""The command ``floodlit``."""

from __future__ import annotations

import typer

from flows import reading, running

app = typer.Typer(
    help="Explain a vision model over a whole dataset.\n\n"
    "Exit codes: 0 done and sound; 1 incomplete, failed or damaged; 2 the request itself is wrong.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
for command in (
    running.run,
    running.train,
    reading.status,
    reading.query,
    reading.compare,
    reading.verify,
    reading.components,
    reading.doctor,
    reading.explainers,
    reading.metrics,
):
    app.command()(command)


if __name__ == "__main__":
    app()
