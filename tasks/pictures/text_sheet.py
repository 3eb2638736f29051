"""Draws the contact sheet of texts: the tokens in reading order, coloured by the map of each explainer."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from storage.maps import read
from storage.run import Run
from tasks.pictures.drawing import BEHIND, DPI, SCALE, Picture, heading, map_of

COLUMNS = 110  # characters per line
LINES = 8  # lines per paragraph, at most
ACROSS, DOWN = 8, 17  # width and height of a character in pixels
POINTS = ACROSS / 0.602 * 72 / DPI  # a character of DejaVu Sans Mono is 0.602 of the font size wide
SPECIAL = (0.9, 0.9, 0.9, 1.0)  # background of a token that cannot be hidden
# Matplotlib contains the first font. The others have more letters and are used if they are installed.
FONTS = ("DejaVu Sans Mono", "Noto Sans Mono CJK SC", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "Unifont")


@dataclass(frozen=True)
class Piece:
    """The visible text of one token and its place: line, first column, and width in characters."""

    text: str
    line: int
    column: int
    width: int


def text_sheet(run: Run, chosen: dict[int, dict[str, Any]]) -> Figure:
    """The figure: a heading per text, and below it the tokens once for each explainer.

    Parameters
    ----------
    chosen
        The samples to draw, by their index in the run.
    """
    margin = 2 + max(map(len, run.explainers))
    page = _Page(margin + COLUMNS + 2)
    page.write(SCALE, 1, style="italic")
    for row, sample in chosen.items():
        page.line += 1.5
        seen, whole = len(sample["tokens"]), sample["width"]
        cut = f", {seen} of {whole} tokens read" if whole > seen else ""
        page.write(cut_to(readable(heading(sample)) + cut, margin + COLUMNS), 1, weight="bold")
        page.line += 1.25
        ids, words = read(run.inputs, row, row + 1)[0]
        pieces = laid_out(sample["tokens"], words[ids >= 0].tolist(), COLUMNS)
        for name in run.explainers:
            page.write(name, 1, color="0.35")
            page.paragraph(pieces, map_of(run, name, row * run.targets_per_image)[ids >= 0], margin)
    return page.finished()


def laid_out(tokens: Sequence[str], words: Sequence[int], columns: int) -> list[Piece]:
    """Place tokens one after another in lines, with a space between words.

    A word that does not fit into the current line begins a new one. A word that is longer than a line is
    split between its tokens.

    Parameters
    ----------
    words
        The number of the word that each token belongs to. Neighbours with the same number are joined; a token
        with -1 stands alone.
    columns
        Characters per line.
    """
    pieces: list[Piece] = []
    line = column = 0
    for start, stop in runs_of_words(words):
        texts = [cut_to(shown(tokens[i], joined=i > start), columns) for i in range(start, stop)]
        widths = [cells(text) for text in texts]
        column += column > 0
        if column + sum(widths) > columns and column:
            line, column = line + 1, 0
        for text, width in zip(texts, widths, strict=True):
            if column + width > columns:
                line, column = line + 1, 0
            pieces.append(Piece(text, line, column, width))
            column += width
    return pieces


def shown(token: str, *, joined: bool) -> str:
    """A token without the mark of its tokenizer: ``##`` inside a word, ``Ġ`` or ``▁`` at its beginning.

    ``joined`` says whether the token continues a word.
    """
    return readable(token.removeprefix("##") if joined else token.lstrip("Ġ▁")) or " "


def readable(text: str) -> str:
    """The text on one line, with a blank for every character that cannot be printed, such as a line end."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def cells(text: str) -> int:
    """The width of a text in columns: two for East Asian wide characters, none for combining ones."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


def cut_to(text: str, columns: int) -> str:
    """The text, or its beginning and an ellipsis if it is wider than ``columns``."""
    if cells(text) <= columns:
        return text
    while cells(text) >= columns:
        text = text[:-1]
    return f"{text}…"


def ink(behind: np.ndarray) -> list[str]:
    """Black or white for text on each of the RGBA colours (N, 4), whichever has more contrast.

    The contrast is that of WCAG 2, by relative luminance.
    """
    rgb = behind[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    return ["black" if bright else "white" for bright in (luminance + 0.05) ** 2 > 1.05 * 0.05]


class _Page:
    """A page of characters of fixed width, filled from top to bottom; ``line`` is the current position."""

    def __init__(self, columns: int) -> None:
        self.columns, self.line = columns, 0.25
        self.figure = Picture()
        self.axis = self.figure.add_axes((0, 0, 1, 1))
        self.axis.axis("off")
        installed = font_manager.get_font_names()
        self.fonts = [name for name in FONTS if name in installed]

    def write(self, text: str, column: float, below: float = 0, **style: Any) -> None:
        """Write a text ``below`` lines under the current position, which does not change."""
        style |= {"family": self.fonts, "fontsize": POINTS, "parse_math": False}
        self.axis.text(column, self.line + below + 0.73, text, **style)  # the baseline, below the line's top

    def paragraph(self, pieces: Sequence[Piece], saliency: np.ndarray, column: int) -> None:
        """Write the pieces on the colours of their saliency and move below them.

        The background is grey where the saliency is negative. "no map" is written if a value is NaN.
        """
        if np.isnan(saliency).any():
            self.write("no map", column, color="0.35", style="italic")
            self.line += 1.5
            return
        there = [piece for piece in pieces if piece.line < LINES]
        special = saliency[: len(there)] < 0
        behind = np.where(special[:, None], SPECIAL, BEHIND(saliency[: len(there)]))
        boxes = [
            Rectangle((column + piece.column, self.line + piece.line + 0.03), piece.width, 0.94)
            for piece in there
        ]
        self.axis.add_collection(
            PatchCollection(boxes, facecolors=behind, edgecolors="none", antialiaseds=False), autolim=False
        )
        for piece, colour, grey in zip(there, ink(behind), special, strict=True):
            self.write(piece.text, column + piece.column, piece.line, color="0.45" if grey else colour)
        self.line += there[-1].line + 1 if there else 1
        if len(there) < len(pieces):
            self.write(f"... {len(pieces) - len(there)} more tokens", column, color="0.35", style="italic")
            self.line += 1
        self.line += 0.5

    def finished(self) -> Figure:
        """The figure, as high as the lines that were written."""
        self.figure.set_size_inches(self.columns * ACROSS / DPI, self.line * DOWN / DPI)
        self.axis.set(xlim=(0, self.columns), ylim=(self.line, 0))
        return self.figure


def runs_of_words(words: Sequence[int]) -> list[tuple[int, int]]:
    """Start and stop of each series of tokens of one word; a token of no word is a series of its own."""
    starts = [i for i, word in enumerate(words) if i == 0 or word < 0 or word != words[i - 1]]
    return list(zip(starts, [*starts[1:], len(words)], strict=True))
