"""LaTeX: tables with booktabs, the best in bold, marks of significance, and the controls in a band."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from storage.characters import shown
from storage.run import Run
from tasks.export.registry import EVERY, exports
from tasks.export.tables import MARK, Number, PaperTable, tables_of

PACKAGES = "booktabs, graphicx"
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    MARK: r"$^{\dagger}$",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


@exports.register
class Latex:
    """``leaderboard.tex`` and ``metrics.tex``, to be read by ``\\input``."""

    name: ClassVar[str] = "latex"
    title: ClassVar[str] = "tables for a paper in LaTeX, with booktabs"
    modalities: ClassVar[frozenset[str]] = EVERY

    def write(self, run: Run, folder: Path) -> list[str]:
        """Write the files."""
        for table in tables_of(run):
            (folder / f"{table.name}.tex").write_text("\n".join(_lines(table)) + "\n", encoding="utf-8")
        return [f"leaderboard.tex and metrics.tex; they need \\usepackage{{{PACKAGES}}}"]


def escaped(text: str) -> str:
    """A text in which no character is a command of LaTeX."""
    return re.sub("|".join(map(re.escape, _SPECIAL)), lambda found: _SPECIAL[found[0]], shown(text))


def _lines(table: PaperTable) -> Iterator[str]:
    yield f"% needs \\usepackage{{{PACKAGES}}}"
    yield from (r"\begin{table}", r"\centering", rf"\caption{{{escaped(table.title)}}}")
    yield r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    yield rf"\begin{{tabular}}{{l{'r' * len(table.heads)}}}"
    yield r"\toprule"
    yield _row(escaped(table.corner), [escaped(head) for head in table.heads])
    yield r"\midrule"
    first = len(table.lines) - table.band
    for number, (name, cells) in enumerate(table.lines):
        if table.band and number == first:
            yield r"\midrule"
            yield rf"\multicolumn{{{1 + len(table.heads)}}}{{l}}{{\textit{{controls}}}} \\"
        yield _row(escaped(name), [_cell(cell) for cell in cells])
    yield from (r"\bottomrule", r"\end{tabular}}", r"\end{table}")


def _row(name: str, cells: list[str]) -> str:
    return " & ".join([name, *cells]) + r" \\"


def _cell(cell: Number) -> str:
    told = escaped(cell.mean)
    told = rf"\textbf{{{told}}}" if cell.best else told
    told += escaped(MARK) if cell.mark else ""
    return told if cell.interval is None else rf"{told} {{\scriptsize [{', '.join(cell.interval)}]}}"
