"""Tokens are laid out into lines by words, and letters can be read on every colour."""

import numpy as np
import pytest

from tasks.pictures.drawing import BEHIND
from tasks.pictures.text_sheet import Piece, cells, cut_to, ink, laid_out

REVIEW = ["a", "dull", "##ish", "film"]


def places(pieces: list[Piece]) -> list[tuple[str, int, int]]:
    return [(piece.text, piece.line, piece.column) for piece in pieces]


def test_tokens_of_a_word_stand_together_and_words_apart() -> None:
    pieces = laid_out(["[CLS]", *REVIEW, "[SEP]"], [-1, 0, 1, 1, 2, -1], 40)
    assert places(pieces) == [
        ("[CLS]", 0, 0),
        ("a", 0, 6),
        ("dull", 0, 8),
        ("ish", 0, 12),
        ("film", 0, 16),
        ("[SEP]", 0, 21),
    ]
    assert [piece.width for piece in pieces] == [5, 1, 4, 3, 4, 5]


def test_special_tokens_side_by_side_are_words_of_their_own() -> None:
    assert places(laid_out(["</s>", "</s>"], [-1, -1], 40)) == [("</s>", 0, 0), ("</s>", 0, 5)]


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        (12, ["a dullish", "film"]),
        (14, ["a dullish film"]),
        (13, ["a dullish", "film"]),
        (7, ["a", "dullish", "film"]),
        (6, ["a", "dull", "ish", "film"]),  # a word that no line holds
        (3, ["a", "du…", "ish", "fi…"]),
    ],
)
def test_a_word_goes_to_the_next_line_whole_if_a_line_can_hold_it(columns: int, lines: list[str]) -> None:
    found: dict[int, str] = {}
    for piece in laid_out(REVIEW, [0, 1, 1, 2], columns):
        found[piece.line] = found.get(piece.line, "").ljust(piece.column) + piece.text
        assert piece.column + piece.width <= columns
    assert list(found.values()) == lines


def test_the_tokenizers_marks_are_not_shown_and_the_texts_own_signs_are() -> None:
    tokens = ["Ġgood", "##", "▁film", "##s", "##", "▁", "line\nend"]
    texts = [piece.text for piece in laid_out(tokens, [0, 1, 2, 2, 3, 4, 5], 80)]
    assert texts == ["good", "##", "film", "s", "##", " ", "line end"]


def test_east_asian_letters_take_two_characters_and_combining_ones_none() -> None:
    assert [cells(text) for text in ("abc", "中文", "\uff21", "e\u0301", "")] == [3, 4, 2, 1, 0]
    assert [cut_to("中文字", columns) for columns in (6, 5, 4)] == ["中文字", "中文…", "中…"]


def test_letters_contrast_with_every_colour_behind_them_and_colours_darken() -> None:
    colours = BEHIND(np.linspace(0, 1, 256))
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)[:, :3]
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) < 0).all()
    letters = ink(colours)
    contrast = [
        (light + 0.05) / 0.05 if letter == "black" else 1.05 / (light + 0.05)
        for light, letter in zip(luminance, letters, strict=True)
    ]
    assert min(contrast) > 4.5
    assert (letters[0], letters[-1]) == ("black", "white")
