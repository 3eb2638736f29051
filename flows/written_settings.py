"""Prefect's settings, written once for all task runs of a flow instead of once for each.

Prefect sends its settings along with each task run. Writing them takes longer than all else that the flow
does for a task run, and they do not change while a flow submits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.context import SettingsContext, get_settings_context
from pydantic import PrivateAttr


class _WrittenOnce(SettingsContext):
    """Settings that remember what they were written as, with and without secrets."""

    _written: dict[bool, dict[str, Any]] = PrivateAttr(default_factory=dict)

    def serialize(self, include_secrets: bool = True) -> dict[str, Any]:
        """Return the settings as Prefect sends them, the same object each time."""
        if include_secrets not in self._written:
            self._written[include_secrets] = super().serialize(include_secrets)
        return self._written[include_secrets]


@contextmanager
def settings_written_once() -> Iterator[None]:
    """Keep the present settings, and what they are written as, while this is entered."""
    present = get_settings_context()
    with _WrittenOnce(profile=present.profile, settings=present.settings):
        yield
