"""The command that writes a run in the form of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.inspect_commands import Store, refusals
from flows.terminal import tell

TARGETS = "huggingface, fiftyone, virelay, atlas, npz, latex, markdown or csv"


def export(
    directory: Store,
    to: Annotated[str, typer.Option("--to", metavar="TARGET", help=TARGETS)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="a new or empty folder; by default RUN-TARGET in the working directory",
        ),
    ] = None,
) -> None:
    """Write a complete run in the form of another tool; the run itself is not changed.

    huggingface writes Parquet files that datasets.load_dataset opens with images and maps as images. fiftyone
    writes a dataset folder with heatmaps, boxes and scores. virelay writes HDF5 files and projects. atlas
    writes one Parquet file with a row per sample for Embedding Atlas. npz writes the raw maps of each
    explainer. latex, markdown and csv write the tables of a paper.
    """
    from storage.run import Run
    from tasks.export.exporting import export as write

    with refusals():
        folder, lines = write(Run.open(directory), to, output)
    for line in lines:
        tell(line)
    tell(folder)
