"""Attempts of the hostile suite: each must end in an answer within a time, and the answers are counted."""

from __future__ import annotations

import os
import signal
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings

from storage.errors import FloodlitError

EXAMPLES = int(os.environ.get("HOSTILE", "25"))  # inputs of each kind
# Inputs are made of files, for which Hypothesis's measures of health are too strict.
hostile = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

SECONDS = 30.0  # after which an attempt counts as hanging
counts: Counter[tuple[str, str]] = Counter()  # attempts by (kind of input, answer)


class Hanging(BaseException):
    """No answer came in time; not an Exception, so that few handlers take it for an ordinary error."""


@dataclass(frozen=True)
class Answer:
    """What Floodlit answered: the value that an accepted input gave, or the line of the refusal."""

    value: Any = None
    refusal: str | None = None

    @property
    def accepted(self) -> bool:
        """Whether the input was accepted."""
        return self.refusal is None


def attempt(kind: str, action: Callable[[], Any]) -> Answer:
    """Do something with a hostile input; a refusal must be one line that a terminal can show.

    Every other exception passes through: the command would end in a traceback.

    Parameters
    ----------
    kind
        Kind of the input, under which the answer is counted.
    action
        What to try.
    """
    with _within(SECONDS):
        try:
            value = action()
        except FloodlitError as error:
            check_line(str(error))
            counts[kind, "refused"] += 1
            return Answer(refusal=str(error))
    counts[kind, "accepted"] += 1
    return Answer(value)


def check_line(text: str) -> None:
    """Assert that a message is one line of at most 4,000 characters, without control characters."""
    assert text.strip()
    assert len(text) <= 4000, f"a message of {len(text)} characters: {text[:200]}"
    control = [c for c in text if unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"}]
    assert not control, f"control characters {control!r} in {text!r}"


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Interrupt the block after a time; then it fails, whatever it makes of the interrupt."""
    late = []

    def stop(*_: object) -> None:
        late.append(Hanging(f"no answer within {seconds:g} s"))
        raise late[0]

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if late:
            raise late[0]
