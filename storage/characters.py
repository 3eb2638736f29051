"""Characters that a terminal or a log must not get as they are."""

from __future__ import annotations

import re
import unicodedata

# Control characters, formatting characters that cannot be seen (they may also turn the direction of what
# follows), halves of characters, which stand for bytes that are not UTF-8, and separators of lines. Code
# points that never become characters are no part of XML, and end the process in the library of the charts.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = {"\u200c", "\u200d"}  # Persian and many Indian scripts, and emojis, are written with them
_CANDIDATES = re.compile(r"[^\x20-\x7e]")


def shown(text: object) -> str:
    """Return a text on one line in which every control or invisible character is written as an escape.

    All other characters stay as they are. For example, the byte that starts a command to the terminal becomes
    ``\\x1b``, a line feed ``\\n``, and the character that turns the direction of writing ``\\u202e``.
    """
    return _CANDIDATES.sub(_escaped, str(text))


def _escaped(found: re.Match[str]) -> str:
    """Return one character, as an escape if it is hidden."""
    character = found[0]
    never = ord(character) & 0xFFFE == 0xFFFE or "\ufdd0" <= character <= "\ufdef"
    if (unicodedata.category(character) not in _HIDDEN and not never) or character in _JOINERS:
        return character
    return character.encode("unicode_escape").decode("ascii")
