"""Pictures hold what was stored: maps within half a level, inputs nearly, masks exactly."""

from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from storage.datasets.masks import IGNORED, OBJECT
from tasks.page.picture_data import INFERNO, LEVELS, SHADES, inline, map_png, mask_png, reduced, webp


def opened(encoded: bytes) -> Image.Image:
    return Image.open(BytesIO(encoded))


def decoded(encoded: bytes, palette: np.ndarray) -> np.ndarray:
    """The levels of a map's picture, by the colours that a browser sees; NaN where it is transparent."""
    pixels = np.asarray(opened(encoded).convert("RGBA"))
    numbers = {tuple(colour): level / (LEVELS - 1) for level, colour in enumerate(palette[:LEVELS].tolist())}
    return np.array(
        [[numbers[tuple(pixel[:3])] if pixel[3] else np.nan for pixel in row] for row in pixels.tolist()]
    )


@pytest.mark.parametrize("palette", [INFERNO, SHADES])
def test_each_level_has_a_colour_of_its_own(palette: np.ndarray) -> None:
    assert len({tuple(colour) for colour in palette[:LEVELS].tolist()}) == LEVELS


@given(
    arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.floats(0, 1, width=32)),
    st.booleans(),
    st.sampled_from(["INFERNO", "SHADES"]),
)
def test_a_map_decodes_to_its_values_within_half_a_level(levels: np.ndarray, hole: bool, name: str) -> None:
    palette = {"INFERNO": INFERNO, "SHADES": SHADES}[name]
    if hole:
        levels[0, 0] = np.nan
    picture = map_png(levels, palette)
    assert opened(picture).mode == "P"
    np.testing.assert_allclose(decoded(picture, palette), levels, atol=0.5 / (LEVELS - 1) + 1e-6)


def test_a_small_map_is_a_small_file() -> None:
    assert len(map_png(np.linspace(0, 1, 49, dtype=np.float32).reshape(7, 7), INFERNO)) < 350


def test_a_small_input_is_kept_and_a_large_one_is_near_and_reduced() -> None:
    small = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(opened(webp(small, 256))), small)
    y, x = np.mgrid[:300, :600] / 600
    large = np.stack([255 * x, 255 * y, 255 * (1 - x) * y], -1).astype(np.uint8)
    picture = opened(webp(large, 256))
    assert picture.size == (256, 128)
    half = np.asarray(Image.fromarray(large).resize((256, 128), Image.Resampling.LANCZOS)).astype(int)
    assert abs(np.asarray(picture).astype(int) - half).mean() < 2


def test_a_mask_is_coloured_where_it_is() -> None:
    mask = np.array([[0, OBJECT], [IGNORED, 0]], np.uint8)
    pixels = np.asarray(opened(mask_png(mask)).convert("RGBA"))
    assert pixels[..., 3].astype(bool).tolist() == [[False, True], [True, False]]
    assert (pixels[0, 1] != pixels[1, 0]).any()


def test_a_large_map_is_reduced_to_means_of_cells_and_a_small_one_is_kept() -> None:
    maps = torch.arange(64.0).view(1, 8, 8)
    blocks = maps.view(1, 4, 2, 4, 2).mean((2, 4))
    torch.testing.assert_close(reduced(maps, 4), blocks)
    assert reduced(maps, 8) is maps
    torch.testing.assert_close(reduced(maps.view(1, 64), 32), maps.view(1, 32, 2).mean(2))


def test_an_inline_picture_is_its_bytes() -> None:
    told, data = inline("map/gradcam/1.png", lambda: b"\x00\xffbytes").split(",")
    assert told == "data:image/png;base64"
    assert b64decode(data) == b"\x00\xffbytes"
