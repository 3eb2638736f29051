"""The command line interface ``floodlit``."""

from __future__ import annotations

import typer

from flows import export_commands, inspect_commands, job_commands, list_commands, report_commands

app = typer.Typer(
    help="Explain a vision model over a whole dataset.\n\n"
    "Exit codes: 0 complete and undamaged; 1 incomplete, failed or damaged; 2 the request is invalid.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
for command in (
    job_commands.run,
    job_commands.train,
    job_commands.findings,
    inspect_commands.status,
    report_commands.report,
    report_commands.browse,
    inspect_commands.query,
    inspect_commands.compare,
    export_commands.export,
    inspect_commands.verify,
    inspect_commands.components,
    inspect_commands.doctor,
    inspect_commands.layers,
    inspect_commands.look,
    list_commands.explainers,
    list_commands.metrics,
    list_commands.datasets,
):
    app.command()(command)


if __name__ == "__main__":
    app()
