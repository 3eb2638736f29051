"""Copies of pictures that are small enough to be sent around."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tasks.pictures.drawing import small_copy


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
