"""Objects at an address: ``package.module:Name``, or ``path/to/file.py:Name``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from plugins.reasons import first_line


def import_address(address: str, kind: str) -> Any:
    """The object at ``package.module:Name``; a wrong address is a ValueError that says what is wrong."""
    module, _, name = address.partition(":")
    try:
        if module.startswith("."):
            raise ImportError("a relative module has no place to start from; write package.module:Name")
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # importing a foreign module may raise anything
        raise ValueError(f"cannot load {kind} {address!r}: {first_line(error)}") from error


def import_callable(address: str) -> Any:
    """The object at ``package.module:name`` or ``path/to/file.py:name``; the file is read anew each time.

    Raises
    ------
    ValueError
        In one line that says why it cannot be loaded.
    """
    path, _, name = address.rpartition(":")
    try:
        module = _of_file(Path(path)) if path.endswith(".py") else importlib.import_module(path)
        if not hasattr(module, name):
            raise AttributeError(f"it has no attribute {name!r}")
        return getattr(module, name)
    except (Exception, SystemExit) as error:  # importing a foreign module may raise anything
        raise ValueError(f"cannot load {address!r}: {first_line(error)}") from error


def _of_file(path: Path) -> ModuleType:
    path = path.resolve()
    # The name contains a hash of the path, so that two files model.py are two modules.
    name = f"floodlit_file_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up a class's module there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
