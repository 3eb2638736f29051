"""Replace an attribute of an object for a while."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any


def replace_on(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute of an object until ``undo`` closes.

    An attribute that only the object's class had is deleted again, so that the class's is seen as before.
    """
    if name in vars(owner):
        undo.callback(setattr, owner, name, vars(owner)[name])
    else:
        undo.callback(delattr, owner, name)
    setattr(owner, name, value)
