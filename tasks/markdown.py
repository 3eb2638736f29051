"""Names and paths in Markdown, as Prefect's artifacts show it: their characters are never markup."""

from __future__ import annotations

import re
from pathlib import Path

from storage.characters import shown


def words(name: str) -> str:
    """Return a name for a text in Markdown."""
    return re.sub(r"([\\`*_\[\]<>()|#&!~$])", r"\\\1", shown(name))


def code(what: str | Path) -> str:
    """Return a path or a command as code in Markdown, between more backticks than it has itself."""
    line = shown(what)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"
