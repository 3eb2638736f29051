"""The registry of the targets of exports, by name, and what every target has."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol

from plugins.registry import Registry
from storage.run import Run


class Export(Protocol):
    """A target of exports: files in a form that another tool opens.

    Attributes
    ----------
    name
        What the command calls it.
    title
        What it writes and for what, in one line.
    modalities
        The kinds of inputs that it can hold.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    modalities: ClassVar[frozenset[str]]

    def write(self, run: Run, folder: Path) -> list[str]:
        """Write a complete run into an empty folder; return what was written, in lines.

        In the lines, ``FOLDER`` stands for the folder's name.
        """


EVERY = frozenset({"image", "text", "tensor"})
IMAGES = frozenset({"image"})
exports: Registry[type[Export]] = Registry(
    "export target",
    "tasks.export",
    "floodlit.exports",
    methods=("write",),
    attributes=("name", "title", "modalities"),
)
