"""Where the project lies, its programs, and the real photographs and weights that some tests are for."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("FLOODLIT_REAL", ROOT.parent / "shared" / "real"))


def program(path: str) -> ModuleType:
    """A program of the project as a module, such as ``benchmarks/gpu.py``, whose folder is no package."""
    name = path.removesuffix(".py").replace("/", "_")  # a plain "explainers" would hide the package
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
