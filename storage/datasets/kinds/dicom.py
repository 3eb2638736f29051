"""DICOM files in class folders."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePath
from typing import ClassVar, Literal

from pydantic import Field

from storage.datasets.class_folders import of_class_folders
from storage.datasets.dataset import Dataset, existing
from storage.datasets.dicom import NEEDED, is_dicom, is_installed
from storage.datasets.folders import shown_names, suffix_of
from storage.datasets.reading import RGB, Bands, Reading
from storage.datasets.spec import DatasetSpec, DicomWindow, register
from storage.files import UnreadableError, regular
from storage.places import Place, read_part

_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
_BEGIN = 132  # bytes, which end with the mark of the format


@register
class Dicom(DatasetSpec):
    """DICOM files in class folders, or without labels in one folder.

    Grey values are rescaled as the file says, and shown through a window. MONOCHROME1 is inverted, and
    colours become RGB. A file of several frames is not read. Listings of such files are read by the kind csv.
    """

    scanned: ClassVar[tuple[str, ...]] = ("path",)

    kind: Literal["dicom"] = "dicom"
    path: Place = Field(description="the folder")
    window: DicomWindow | None = Field(
        None,
        description="grey values that are shown: [centre, width] in the unit of the files, e.g. [40, 400]; "
        "file: the VOI LUT or the first window of each file, and the whole range of its bits where it has "
        "none (default); full: the whole range of its bits",
    )
    depth: Literal[8, 16, 32] | None = Field(
        None,
        description="bits per value that inputs keep; 32: floats. By default 8 for a model of three "
        "channels, and 32 for others",
    )

    def open(self, bands: Bands = RGB) -> Dataset:
        """List the files; those without a suffix of DICOM are looked at whether they are."""
        if not is_installed():
            raise ValueError(f"dataset.kind: dicom {NEEDED}")
        root = existing(self.path, "folder")
        left_out: Counter[str] = Counter()
        names = [name for name in shown_names(root, left_out) if _counts(root, name, left_out)]
        names.sort(key=lambda name: name.split("/"))
        how = Reading(bands=bands, window=self.window or "file")
        return replace(of_class_folders(root, names, left_out, self.limit, how), told=self._told())

    def _told(self) -> str:
        if self.window is None:
            return "grey values through the VOI LUT or the first window of each file, else its whole range"
        return ""


def _counts(root: Path, name: str, left_out: Counter[str]) -> bool:
    """Whether a file is one of DICOM; others are counted. Names may be numbers with dots."""
    suffix = suffix_of(name)
    if suffix in _SUFFIXES:
        return True
    if suffix[1:].isdecimal() or not suffix:
        if _begins_as_dicom(root / name) and PurePath(name).name != "DICOMDIR":
            return True
        left_out["files that are not of DICOM"] += 1
    else:
        left_out[f"*{suffix}"] += 1
    return False


def _begins_as_dicom(path: Path) -> bool:
    try:
        return is_dicom(read_part(regular(path), 0, _BEGIN))
    except (OSError, UnreadableError):  # e.g. a link that leads nowhere, or a pipe
        return False
