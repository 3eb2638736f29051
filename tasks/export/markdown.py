"""Markdown: the tables of a paper for a page or an issue."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from storage.run import Run
from tasks.export.registry import EVERY, exports
from tasks.export.tables import MARK, Number, PaperTable, tables_of
from tasks.markdown import words


@exports.register
class Markdown:
    """``tables.md``: the leaderboard, and all ranked columns."""

    name: ClassVar[str] = "markdown"
    title: ClassVar[str] = "tables in Markdown"
    modalities: ClassVar[frozenset[str]] = EVERY

    def write(self, run: Run, folder: Path) -> list[str]:
        """Write the file."""
        parts = [_told(table) for table in tables_of(run)]
        (folder / "tables.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        return ["tables.md: the leaderboard, and all ranked metrics"]


def _told(table: PaperTable) -> str:
    """A table with its caption below; the names of controls are in italics."""
    lines = [[words(table.corner), *map(words, table.heads)], ["---", *["---:"] * len(table.heads)]]
    first = len(table.lines) - table.band
    for number, (name, cells) in enumerate(table.lines):
        control = table.band and number >= first
        lines.append([f"*{words(name)}*" if control else words(name), *map(_cell, cells)])
    told = words(table.title) + (" Controls are in italics." if table.band else "")
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{told}"


def _cell(cell: Number) -> str:
    mean = f"**{cell.mean}**" if cell.best else cell.mean
    between = "" if cell.interval is None else f" ({' to '.join(cell.interval)})"
    return f"{mean}{MARK if cell.mark else ''}{between}"
