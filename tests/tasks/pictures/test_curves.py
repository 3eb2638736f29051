"""The curves of a run in one picture, and copies of pictures that are small enough to be sent around."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tasks.pictures import curves as curves_picture
from tasks.pictures.curves import draw_curves
from tasks.pictures.drawing import small_copy

CURVES = {
    ("gradcam", "insertion"): np.array([0.1, 0.6, 0.9]),
    ("random", "insertion"): np.array([0.1, 0.3, 0.9]),
    ("gradcam", "deletion"): np.array([0.9, 0.2]),
    ("gradcam", "pxap_center"): np.array([1.0, 1.0]),
}


def run_of(folder: Path) -> Any:
    better = {"insertion": "higher", "deletion": "lower", "pxap_center": None}
    return SimpleNamespace(
        report=folder,
        explainers={"gradcam": {}, "random": {}},
        columns={name: SimpleNamespace(better=value) for name, value in better.items()},
    )


def test_every_metric_that_judges_has_a_panel_with_each_explainers_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(curves_picture, "save", lambda figure, path: drawn.append(figure))
    draw_curves(run_of(tmp_path), CURVES)
    insertion, deletion = drawn[0].axes
    assert [insertion.get_title(), deletion.get_title()] == [
        "insertion, higher is better",
        "deletion, lower is better",
    ]
    lines = {line.get_label(): line for line in insertion.get_lines()}
    np.testing.assert_array_equal(lines["gradcam"].get_ydata(), [0.1, 0.6, 0.9])
    np.testing.assert_array_equal(lines["gradcam"].get_xdata(), [0, 0.5, 1])
    assert lines["random"].get_linestyle() != lines["gradcam"].get_linestyle()
    assert len({line.get_label(): line for line in deletion.get_lines()}["random"].get_ydata()) == 0


def test_a_run_without_curves_has_no_picture(tmp_path: Path) -> None:
    draw_curves(run_of(tmp_path), {("gradcam", "pxap_center"): np.ones(2)})
    assert not list(tmp_path.iterdir())
    draw_curves(run_of(tmp_path), CURVES)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"


def test_a_small_copy_keeps_its_limit_and_its_shape_even_of_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 2400, 3), np.uint8)
    png = io.BytesIO()
    Image.fromarray(noise).save(png, "PNG")
    copy = small_copy(png.getvalue(), 40_000)
    assert 4_000 < len(copy) <= 40_000
    with Image.open(io.BytesIO(copy)) as small:
        assert small.width / small.height == pytest.approx(4, rel=0.05)
    flat = io.BytesIO()
    Image.new("RGB", (2400, 600), "red").save(flat, "PNG")
    with Image.open(io.BytesIO(small_copy(flat.getvalue(), 40_000))) as small:
        assert small.size == (1600, 400)
        red, green, blue = small.convert("RGB").getpixel((800, 200))
        assert red > 240
        assert max(green, blue) < 15
