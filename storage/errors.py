"""The base class of Floodlit's errors, and the text of any exception as one line."""

from __future__ import annotations

import re
from typing import ClassVar

from storage.characters import shown
from storage.credentials import without_credentials

LONGEST = 200  # most characters of a library's message that one of our messages quotes
_LONGEST_OWN = 4000  # most characters of a message of ours
_READ = 100_000  # most characters of a message that are looked at
_LONGEST_QUOTE = 300  # most characters of a value that a message of ours quotes: a path may have as many
# A quoted text, or anything without a blank in it. An apostrophe inside a word opens and closes no quote.
_QUOTES = re.compile(
    rf"(?<!\w)'[^'\n]{{{_LONGEST_QUOTE - 1},}}'(?!\w)"
    rf'|(?<!\w)"[^"\n]{{{_LONGEST_QUOTE - 1},}}"(?!\w)'
    rf"|\S{{{_LONGEST_QUOTE + 1},}}"
)


class FloodlitError(Exception):
    """An error whose message is one line that says what is wrong and what to do.

    The message has no control characters and no passwords, although it may quote names, addresses and other
    errors. Of a quoted value of more than 300 characters it has the beginning and the end.

    Attributes
    ----------
    exit_code
        Exit code of the command: 1 if work is incomplete, failed or damaged, 2 if the request is invalid.
    """

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        told = _QUOTES.sub(_shortened, shown(without_credentials(super().__str__()[:_READ])))
        return told if len(told) <= _LONGEST_OWN else f"{told[: _LONGEST_OWN - 3]}..."


def _shortened(quote: re.Match[str]) -> str:
    """Return the beginning and the end of a long value, 200 characters together."""
    return f"{quote[0][:140]}...{quote[0][-57:]}"


def one_line(error: BaseException, longest: int | None = None) -> str:
    """Return the message of any exception on one line; the name of its class if it has no message.

    Passwords in addresses are left out, and control characters are written as escapes.

    Parameters
    ----------
    error
        The exception.
    longest
        Number of characters to keep, for messages that may quote a whole file. None keeps all.
    """
    told = without_credentials(str(error)[:_READ])
    return shown(" ".join(told.split()))[:longest] or type(error).__name__
