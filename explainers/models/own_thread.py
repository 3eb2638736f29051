"""Hooks act in one thread alone, since another one may run the same network meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable


def own_thread() -> Callable[[], bool]:
    """Return a function that says whether it is called in the thread of this call."""
    here = threading.get_ident()
    return lambda: threading.get_ident() == here
