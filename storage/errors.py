"""The base class of Floodlit's errors, and the text of any exception as one line."""

from __future__ import annotations

from typing import ClassVar

from storage.characters import shown
from storage.credentials import without_credentials

LONGEST = 200  # most characters of a library's message that one of our messages quotes
_LONGEST_OWN = 4000  # most characters of a message of ours
_READ = 100_000  # most characters of a message that are looked at


class FloodlitError(Exception):
    """An error whose message is one line that says what is wrong and what to do.

    The message has no control characters and no passwords, although it may quote names, addresses and other
    errors.

    Attributes
    ----------
    exit_code
        Exit code of the command: 1 if work is incomplete, failed or damaged, 2 if the request is invalid.
    """

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        told = shown(without_credentials(super().__str__()[:_READ]))
        return told if len(told) <= _LONGEST_OWN else f"{told[: _LONGEST_OWN - 3]}..."


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
