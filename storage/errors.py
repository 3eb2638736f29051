"""The base class of Floodlit's errors, and the text of any exception as one line."""

from __future__ import annotations

from typing import ClassVar

LONGEST = 200  # most characters of a library's message that one of our messages quotes


class FloodlitError(Exception):
    """An error whose message is one line that says what is wrong and what to do.

    Attributes
    ----------
    exit_code
        Exit code of the command: 1 if work is incomplete, failed or damaged, 2 if the request is invalid.
    """

    exit_code: ClassVar[int] = 1


def one_line(error: BaseException, longest: int | None = None) -> str:
    """Return the message of any exception on one line; the name of its class if it has no message.

    Parameters
    ----------
    error
        The exception.
    longest
        Number of characters to keep, for messages that may quote a whole file. None keeps all.
    """
    return " ".join(str(error).split())[:longest] or type(error).__name__
