"""Where the project lies, and the real photographs and weights that some tests are for."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("FLOODLIT_REAL", ROOT.parent / "shared" / "real"))
