"""Texts as a terminal or a log may get them: on one line, and with no character that acts on it."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.characters import shown


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\tb\r\nc", "a\\tb\\r\\nc"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("\u202egnp.exe\u2066\ufeff\u200b", "\\u202egnp.exe\\u2066\\ufeff\\u200b"),
        ("\udcff\u2028", "\\udcff\\u2028"),
        ("\U000e0041", "\\U000e0041"),
        ("\ufffe\uffff\ufdd0\U0001ffff", "\\ufffe\\uffff\\ufdd0\\U0001ffff"),
        ("[/red] :smile: a$b$ \\n", "[/red] :smile: a$b$ \\n"),
        ("größe 日本 \u0301 👩\u200d🔬", "größe 日本 \u0301 👩\u200d🔬"),
    ],
)
def test_what_acts_on_a_terminal_becomes_an_escape_and_the_rest_stays(text: str, told: str) -> None:
    assert shown(text) == told


@given(st.text(st.characters()))
def test_no_text_keeps_a_control_character_and_none_loses_another(text: str) -> None:
    told = shown(text)
    assert not {"Cc", "Cs", "Zl", "Zp"} & {unicodedata.category(character) for character in told}
    assert len(told.splitlines()) <= 1
    assert told == "".join(character if character.isprintable() else shown(character) for character in text)
