"""The text of an exception, as part of a message of one line."""

from __future__ import annotations

_LONGEST = 200  # characters


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, shortened to 200 characters; its class if there is none.

    If the first line ends in a colon, the second line is added: PyTorch's "Error(s) in loading state_dict for
    Net:" says nothing alone.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]) or type(error).__name__
    return said if len(said) <= _LONGEST else f"{said[: _LONGEST - 3].rstrip()}..."
