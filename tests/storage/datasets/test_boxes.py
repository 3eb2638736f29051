"""Boxes: how they are written, their unit, and where they lie in their image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from storage.datasets.boxes import placed, read_box
from storage.datasets.notes import BOX_CLIPPED, BOX_EMPTY, BOX_OUTSIDE, kind_of
from storage.datasets.opening import open_dataset
from storage.datasets.spec import DatasetSpec

HEADER = "file,label,xmin,ymin,xmax,ymax\n"


def cells(*values: str) -> dict[str, str]:
    return dict(zip(("xmin", "ymin", "xmax", "ymax"), values, strict=True))


@pytest.mark.parametrize(
    "values",
    [
        "1_0,1,20,2",
        "nan,1,2,2",
        "1,1,inf,2",
        ",1,2,2",
        "\N{ARABIC-INDIC DIGIT ONE},1,2,2",
        "0x1,1,2,2",
        "1,1,1e400,2",
        "2,1,1,2",
        "1,2,2,1",
    ],
)
def test_a_box_that_is_not_four_numbers_in_order_is_refused(values: str) -> None:
    with pytest.raises(ValueError, match=r"the box .* is not"):
        read_box(cells(*values.split(",")))


def test_numbers_are_read_as_they_are_written() -> None:
    assert read_box(cells("1", "2.5", "+3e1", ".4e2")) == (1, 2.5, 30, 40)
    assert read_box(cells("", "", "", "")) is None


def spec(folder: Path, rows: str, **keys: object) -> DatasetSpec:
    (folder / "l.csv").write_text(HEADER + rows)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (200, 100)).save(folder / name)
    return DatasetSpec.model_validate({"kind": "csv", "path": folder / "l.csv", **keys})


@pytest.mark.parametrize(
    ("rows", "keys", "told"),
    [
        (
            "a.png,0,0.5,0.1,0.7,0.2\n",
            {},
            r"dataset\.boxes: all boxes lie .*0\.5,0\.1,0\.7,0\.2",
        ),
        ("a.png,0,0.5,0.1,0.7,0.2\nb.png,0,1,2,30,40\n", {}, "1 of 2 boxes lie within"),
        ("a.png,0,0,0,1,1\n", {}, "all boxes lie"),
        ("a.png,0,0.5,0.1,1.04,0.2\nb.png,0,-0.1,0.2,0.5,0.6\n", {}, "all boxes lie within"),
        ("a.png,0,0.5,0.1,1.04,0.2\n", {"boxes": "relative"}, r'"relative" needs .* 0\.5,0\.1,1\.04,0\.2'),
        ("a.png,0,5,1,7,2\n", {"boxes": "relative"}, r'boxes: "relative" needs .* 5,1,7,2 for a\.png'),
    ],
)
def test_boxes_in_another_unit_are_refused(
    rows: str, keys: dict[str, str], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=told):
        open_dataset(spec(tmp_path, rows, **keys))


def test_relative_boxes_are_scaled_by_each_image(tmp_path: Path) -> None:
    dataset = open_dataset(spec(tmp_path, "a.png,0,0.5,0.1,0.75,0.2\n", boxes="relative"))
    assert dataset.boxes(0, (200, 100), []) == [(100, 10, 150, 20)]
    tiny = open_dataset(spec(tmp_path, "a.png,0,0.5,0.1,0.75,0.2\n", boxes="pixels"))
    assert tiny.boxes(0, (200, 100), []) == [(0.5, 0.1, 0.75, 0.2)]
    placeholder = open_dataset(spec(tmp_path, "a.png,0,0,0,0,0\nb.png,0,5,5,9,9\n"))
    assert placeholder.boxes(0, (200, 100), []) == []


def test_boxes_are_clipped_counted_and_named() -> None:
    notes: list[str] = []
    boxes = [(1, 2, 3, 4), (900, 900, 990, 990), (-5, 2, 3, 4), (7, 7, 7, 9), (10, 0, 12, 5)]
    assert placed(boxes, (10, 10), False, notes) == [(1, 2, 3, 4), (0, 2, 3, 4)]
    assert notes == [
        f"{BOX_OUTSIDE}: 900,900,990,990 in 10x10",
        f"{BOX_CLIPPED}: -5,2,3,4 in 10x10",
        f"{BOX_EMPTY}: 7,7,7,9",
        f"{BOX_OUTSIDE}: 10,0,12,5 in 10x10",
    ]


SIDE = st.integers(-12, 24)


@given(st.lists(st.tuples(SIDE, SIDE, SIDE, SIDE), max_size=4), st.integers(1, 12), st.integers(1, 12))
def test_what_is_kept_are_the_pixels_inside(drawn: list[tuple[int, ...]], width: int, height: int) -> None:
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in drawn]
    notes: list[str] = []
    kept = placed(boxes, (width, height), False, notes)

    def pixels(each: list[tuple[float, ...]]) -> np.ndarray:
        canvas = np.zeros((40, 40), bool)  # begins at -12
        for x0, y0, x1, y1 in each:
            canvas[int(y0) + 12 : int(y1) + 12, int(x0) + 12 : int(x1) + 12] = True
        return canvas[12 : 12 + height, 12 : 12 + width]

    assert (pixels(list(kept)) == pixels(list(boxes))).all()
    gone = [note for note in notes if kind_of(note) != BOX_CLIPPED]
    assert len(kept) + len(gone) == len(boxes)
