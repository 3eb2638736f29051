"""The formats of image files that are read, and their suffixes."""

from __future__ import annotations

from functools import cache
from pathlib import PurePath

from PIL import Image

# Pillow knows these formats and cannot decode them by itself: EPS starts another program, WMF needs Windows,
# and the others are stubs.
_NOT_DECODED = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})


ARRAY = ".npy"  # the suffix of NumPy's arrays


@cache
def formats() -> tuple[str, ...]:
    """Return the names of Pillow's formats that are read, in the order in which Pillow tries them.

    The most common ones come first, since some formats are told from others only by trying to read them.
    """
    Image.preinit()
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _NOT_DECODED)


@cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of image files, in lower case with their dots.

    They are those of the formats that this Pillow decodes, which include those of torchvision's ImageFolder.
    """
    known = formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def is_hidden(path: PurePath) -> bool:
    """Whether a path from the root of a dataset leads through a hidden name or an archive's side folder.

    macOS writes ``._x.jpg`` beside ``x.jpg``, and ``__MACOSX`` into archives.
    """
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
