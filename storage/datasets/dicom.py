"""DICOM files: their values as shares of white, as the standard's modality and VOI transformations say."""

from __future__ import annotations

import logging
import warnings
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.datasets.decoding import check_pixels
from storage.datasets.notes import NARROW, WHOLE_RANGE, WINDOWED, Notes
from storage.datasets.reading import Window
from storage.errors import LONGEST, one_line
from storage.files import UnreadableError

MAGIC = 128, b"DICM"  # where every file says what it is
NEEDED = "needs an extra: pip install 'floodlit[dicom]'"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_CONTRADICTS = "has values that its description (bits stored, rescale slope) does not allow"
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def is_dicom(data: bytes) -> bool:
    """Whether the contents of a file are those of a DICOM file, which may begin as a TIFF file does."""
    start, magic = MAGIC
    return data[start : start + len(magic)] == magic


def is_installed() -> bool:
    """Whether the library that reads DICOM files is there."""
    return find_spec("pydicom") is not None


def read_dicom(data: bytes, window: Window, notes: Notes) -> NDArray[np.float64]:
    """Read the contents of a DICOM file of one frame.

    Parameters
    ----------
    data
        The file.
    window
        Which values are black and white in grey files: (centre, width) in the unit that the file's rescaling
        gives, e.g. Hounsfield units; "file" takes the file's own VOI LUT or first window, and the whole range
        where it has none; "full" takes the range of the bits that its values have.
    notes
        A list to which is appended what was shown.

    Returns
    -------
    NDArray
        (1, H, W) or, in colours, (3, H, W): shares of white in [0, 1]. MONOCHROME1, whose small values are
        white, is inverted.

    Raises
    ------
    UnreadableError
        If the file cannot be read, has several frames, or no library decodes it. The message is one line.
    """
    if not is_installed():
        raise UnreadableError(f"is a DICOM file, which {NEEDED}")
    import pydicom

    try:
        _quiet()
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # no such share is returned
            return _read(pydicom.dcmread(BytesIO(data)), window, notes)
    except (UnreadableError, MemoryError):
        raise
    except Exception as error:  # damaged files raise almost any error
        raise UnreadableError(f"cannot be read as DICOM: {one_line(error, 2 * LONGEST)}") from error


@cache
def _quiet() -> None:
    """Silence pydicom, which warns of all that is not quite as it should be.

    The filters of warnings belong to all threads, so they are not changed and restored around each file.
    """
    warnings.filterwarnings("ignore", module=r"pydicom\b")
    logging.getLogger("pydicom").setLevel(logging.ERROR)


def _read(file: Any, window: Window, notes: Notes) -> NDArray[np.float64]:
    from pydicom.pixels import apply_color_lut, pixel_array

    frames, kind = int(file.get("NumberOfFrames") or 1), file.get("PhotometricInterpretation")
    if frames > 1:
        raise UnreadableError(f"has {frames} frames; write each to a file of its own")
    if "Rows" not in file or "Columns" not in file:
        raise UnreadableError("is a DICOM file without an image")
    check_pixels(int(file.Rows), int(file.Columns))
    if kind in _GREY:
        shares = _grey(file, pixel_array(file), window, notes)
        return (1 - shares if kind == "MONOCHROME1" else shares)[None]
    if kind == "PALETTE COLOR":
        values = apply_color_lut(pixel_array(file), file)
        top = 2 ** int(file.RedPaletteColorLookupTableDescriptor[2]) - 1
    elif kind in _COLOURS:
        values, top = pixel_array(file), 2 ** int(file.BitsStored) - 1
    else:
        raise UnreadableError(f"has the photometric interpretation {kind}, which is not read")
    return _within(np.moveaxis(values[..., :3], -1, 0) / top)


def _grey(file: Any, stored: NDArray[Any], window: Window, notes: Notes) -> NDArray[np.float64]:
    """Return the shares of white that a grey file's values are shown with."""
    from pydicom.pixels import apply_modality_lut

    values = apply_modality_lut(stored, file)
    if window == "file" and file.get("VOILUTSequence"):
        notes.append(f"{WINDOWED}: the file's VOI LUT")
        return _by_table(file, values)
    if not isinstance(window, str):
        file.WindowCenter, file.WindowWidth = window
        file.VOILUTFunction = "LINEAR"
    if window != "full" and "WindowCenter" in file and "WindowWidth" in file:
        notes.append(f"{WINDOWED}: {_told(file)}")
        return _by_window(file, values)
    low, high = _whole_range(file)
    least, most = float(values.min()), float(values.max())
    wide = most - least >= (high - low) / 4
    notes.append(f"{WHOLE_RANGE if wide else NARROW}: {least:g} to {most:g} in {low:g} to {high:g}")
    return _within((values.astype(np.float64) - low) / (high - low))


def _told(file: Any) -> str:
    centres, widths = (np.atleast_1d(file[name].value) for name in ("WindowCenter", "WindowWidth"))
    first = f", the first of {len(centres)}" if len(centres) > 1 else ""
    return f"centre {float(centres[0]):g}, width {float(widths[0]):g}{first}"


def _by_window(file: Any, values: NDArray[Any]) -> NDArray[np.float64]:
    from pydicom.pixels import apply_windowing

    # What lies far below and above every window shows which numbers pydicom gives to black and white.
    far = np.array([-1e300, 1e300])
    made = apply_windowing(np.concatenate([values.astype(np.float64).ravel(), far]), file)
    black, white = made[-2:]
    return _within((made[:-2].reshape(values.shape) - black) / (white - black))


def _by_table(file: Any, values: NDArray[Any]) -> NDArray[np.float64]:
    from pydicom.pixels import apply_voi

    if np.isnan(values).any():  # which would become whole numbers
        raise UnreadableError(_CONTRADICTS)
    entries, first, bits = (int(number) for number in file.VOILUTSequence[0].LUTDescriptor)
    last = first + (entries or 1 << 16) - 1
    # pydicom takes whole numbers, and counts those beyond 16 bits from 0 again.
    inside = np.rint(values).clip(first, last).astype(np.int64)
    return _within(apply_voi(inside, file) / (2**bits - 1))


def _whole_range(file: Any) -> tuple[float, float]:
    """Return the smallest and largest value that the bits of a grey file can have, rescaled."""
    from pydicom.pixels import apply_modality_lut

    if file.get("ModalityLUTSequence"):
        return 0.0, 2.0 ** int(file.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    bits, signed = int(file.BitsStored), int(file.PixelRepresentation)
    ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
    low, high = sorted(float(end) for end in apply_modality_lut(ends, file))
    return low, high


def _within(shares: NDArray[Any]) -> NDArray[np.float64]:
    """Return the shares, which are not within [0, 1] only if a file contradicts itself."""
    shares = np.asarray(shares, np.float64)
    if not (np.isfinite(shares).all() and shares.min() >= 0 and shares.max() <= 1):
        raise UnreadableError(_CONTRADICTS)
    return shares
