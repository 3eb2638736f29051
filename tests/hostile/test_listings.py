"""CSV listings: labels, boxes and files of which some are hostile.

The second check knows the draft of which the file was written: which listings have no meaning, and what the
samples of the others are.
"""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from attempts import attempt, hostile
from runs import images_read
from storage.datasets.digits import CLASSES

SIDE = 64  # pixels; the network takes 64x64
GOOD = ("a.png", "b.png", "deep/c.png")
BAD = ("missing.png", "pipe.png", "zero.png", "folder.png", "loop.png", "broken.png", "empty.png")
LABELS = (("0", "1", "7"), ("3", "9"), ("cat", "dog", "ünïcode 漢"))  # a listing has those of one kind
HOSTILE_LABELS = ("nan", "0.5", "-1", "1e3", "1_0", "inf", "", "  ", "99999999999999999999", "+3", "²")
HOSTILE_NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "1_0",
    "",
    "ten",
    "0x10",
    "1e400",
    "900",
    "-50",
    "0.25",
    "0.5",
    "1.0",
)


@dataclass(frozen=True)
class Row:
    file: str
    label: str
    box: tuple[str, str, str, str]


@st.composite
def rows(draw: st.DrawFn, boxes: bool) -> list[Row]:
    """One to five rows, in which a cell here and there is hostile, or none is."""
    hostile_one_in = draw(st.sampled_from([1000, 1000, 12]))

    def cell(good: tuple[str, ...], bad: tuple[str, ...]) -> str:
        return draw(st.sampled_from(good if draw(st.integers(2, hostile_one_in)) < hostile_one_in else bad))

    def row(file: str) -> Row:
        box = (cell(("0", "3.5"), HOSTILE_NUMBERS), cell(("0", "10"), HOSTILE_NUMBERS))
        box += (cell(("20", "64", "70"), HOSTILE_NUMBERS), cell(("40", "63.5"), HOSTILE_NUMBERS))
        return Row(file, cell(labels, HOSTILE_LABELS), box if boxes else ("", "", "", ""))

    labels = draw(st.sampled_from(LABELS))
    chosen = draw(st.lists(st.sampled_from(GOOD + BAD), min_size=1, max_size=5, unique=True))
    return [row(file) for file in chosen]


def files(folder: Path) -> dict[str, np.ndarray]:
    """Write the files that listings name; return the pixels of the good ones, (64, 64, 3)."""
    (folder / "deep").mkdir()
    known = {}
    for seed, name in enumerate(GOOD):
        known[name] = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(known[name]).save(folder / name)
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "folder.png").mkdir()
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "empty.png").write_bytes(b"")
    return known


def number_of(cell: str) -> float | None:
    """A plain decimal number; None for anything else."""
    return float(cell) if re.fullmatch(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", cell) else None


def meaningless(drafted: list[Row], boxes: bool) -> str | None:
    """Why a listing has no meaning; None if it has one."""
    labels = [row.label.strip() for row in drafted]
    whole = [bool(re.fullmatch(r"\d{1,9}", label)) for label in labels]
    if any(label in {cell.strip() for cell in HOSTILE_LABELS} for label in labels):
        return "a label that is neither a class number nor a name"
    if any(whole) and not all(whole):
        return "numbers and names"
    if boxes:
        corners = [[number_of(cell) for cell in row.box] for row in drafted if any(row.box)]
        if any(n is None or not np.isfinite(n) for box in corners for n in box):
            return "a corner that is no number"
        if any(not (box[0] < box[2] and box[1] < box[3]) for box in corners):  # type: ignore[operator]
            return "a box without an area"
        if corners and all(0 <= n <= 1 for box in corners for n in box):  # type: ignore[operator]
            return "boxes in fractions"
    return None


def labels_of(drafted: list[Row]) -> list[int | None]:
    """The model's classes of the rows. Only numbers can be matched, since its classes have no names."""
    labels = [row.label.strip() for row in drafted]
    numbers = [int(label) for label in labels if label.isdigit()]
    return list(numbers) if numbers and max(numbers) < len(CLASSES) else [None] * len(labels)


def clipped(box: tuple[str, str, str, str]) -> list[list[float]]:
    """The part of a box that lies in the image; nothing if there is none."""
    x0, y0, x1, y1 = (min(max(float(cell), 0.0), float(SIDE)) for cell in box)
    return [[x0, y0, x1, y1]] if x1 > x0 and y1 > y0 else []


@hostile
@given(data=st.data(), boxes=st.booleans(), encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_samples_are_what_the_listing_says(
    place: Path, data: st.DataObject, boxes: bool, encoding: str
) -> None:
    drafted = data.draw(rows(boxes))
    folder = Path(mkdtemp(dir=place))
    pixels = files(folder)
    header = ["file", "label", *(["xmin", "ymin", "xmax", "ymax"] if boxes else [])]
    with (folder / "listing.csv").open("w", newline="", encoding=encoding) as file:
        lines = ([row.file, row.label, *(row.box if boxes else ())] for row in drafted)
        csv.writer(file).writerows([header, *lines])
    answer = attempt(
        "listings", lambda: images_read(folder / "run", kind="csv", path=str(folder / "listing.csv"))
    )
    why = meaningless(drafted, boxes)
    if not answer.accepted:
        cells = [cell for row in drafted for cell in (row.label, *(row.box if boxes else ()))]
        plain = not {*HOSTILE_LABELS, *HOSTILE_NUMBERS} & set(cells)
        assert not plain or encoding == "utf-16" or not any(row.file in GOOD for row in drafted), answer
        return
    assert why is None, f"accepted {why}"
    assert encoding != "utf-16"
    samples, stored = answer.value
    labels = labels_of(drafted)
    for position, (row, sample) in enumerate(zip(drafted, samples, strict=True)):
        good = row.file in GOOD
        assert sample["status"] == ("ok" if good else "failed"), sample
        assert bool(sample["error"]) != good
        assert sample["label"] == labels[position]
        if good:
            assert sample["boxes"] == (clipped(row.box) if boxes and any(row.box) else [])
            np.testing.assert_array_equal(stored[position], pixels[row.file].transpose(2, 0, 1))
