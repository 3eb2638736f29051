"""Decoding and geometry: torchvision's pipeline pixel for pixel, boxes with the things they frame."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from places import REAL
from pngs import chunk
from storage.datasets.bands import read_image
from storage.datasets.decoding import rgb
from storage.datasets.geometry import _RESAMPLING, of_masks, prepare_image
from storage.datasets.masks import decode_mask
from storage.files import UnreadableError


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def by_torchvision(
    image: Image.Image, resize: int | None, crop: int | None, interpolation: str
) -> np.ndarray:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    mode = InterpolationMode(interpolation)
    if resize is not None:
        image = F.resize(image, [resize], interpolation=mode, antialias=True)
    if crop is not None:
        image = F.center_crop(image, [crop, crop])
    return F.pil_to_tensor(image).numpy()


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.none() | st.integers(1, 60),
    crop=st.none() | st.integers(1, 60),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]),
)
def test_pixels_are_those_of_torchvision(
    width: int, height: int, resize: int | None, crop: int | None, interpolation: str
) -> None:
    image = noise(width, height)
    pixels, _ = prepare_image(image, [], resize, crop, interpolation)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, by_torchvision(image, resize, crop, interpolation))


def test_real_photographs_are_prepared_as_torchvision_does() -> None:
    files = sorted((REAL / "images" / "ilsvrc_val").glob("*.JPEG"))[:6]
    if not files:
        pytest.skip(f"no photographs in {REAL}; FLOODLIT_REAL says where they are")
    for file in files:
        image = read_image(file)
        pixels, _ = prepare_image(image, [], 256, 224, "bilinear")
        assert np.array_equal(pixels, by_torchvision(Image.open(file).convert("RGB"), 256, 224, "bilinear"))


SIDES = st.integers(3, 40)


@given(
    st.tuples(SIDES, SIDES),
    st.tuples(SIDES, SIDES),
    SIDES,
    st.sampled_from(sorted(_RESAMPLING)),
    st.integers(0, 2**32 - 1),
)
def test_the_window_is_that_of_the_resized_image(
    size: tuple[int, int], resize: tuple[int, int], crop: int, interpolation: str, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    image, crop = Image.fromarray(pixels), min(crop, *resize)
    height, width = resize
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    whole = np.asarray(image.resize((width, height), _RESAMPLING[interpolation]))
    found, _ = prepare_image(image, [], resize, crop, interpolation, "squash")
    np.testing.assert_array_equal(
        found, whole[top : top + crop, left : left + crop].transpose(2, 0, 1), strict=True
    )
    assert found.flags.c_contiguous
    assert found.flags.writeable


def test_boxes_by_hand() -> None:
    # 200x100 -> 100x50 -> the middle 50 columns: x/2 - 25, y/2.
    boxes = [(50, 0, 150, 100), (60.0, 10.0, 70.0, 20.0), (0, 0, 60, 50), (0, 0, 50, 100), (150, 0, 200, 100)]
    pixels, moved = prepare_image(noise(200, 100), boxes, 50, 50)
    assert pixels.shape == (3, 50, 50)
    assert moved == [(0, 0, 50, 50), (5, 5, 10, 10), (0, 0, 5, 25)]


def test_each_axis_has_its_own_ratio() -> None:
    # Short side 37 -> 16; long side int(16 * 101 / 37) = 43, so x is scaled by 43/101 and y by 16/37.
    _, (box,) = prepare_image(noise(101, 37), [(10, 20, 101, 37)], 16, None)
    assert box == pytest.approx((10 * 43 / 101, 20 * 16 / 37, 43, 16), rel=1e-12)


def test_a_squashed_image_scales_its_boxes_per_axis() -> None:
    # 40x100 -> 80x50, so x doubles and y halves; the middle 60x40 begins at (10, 5).
    pixels, moved = prepare_image(noise(40, 100), [(10, 20, 30, 60)], (50, 80), (40, 60), fit="squash")
    assert pixels.shape == (3, 40, 60)
    assert moved == [(10, 5, 50, 25)]


def test_an_image_within_a_border_lies_in_the_middle_of_it() -> None:
    # 40x100 fits into 50x50 as 20x50, with 15 columns on either side.
    image = Image.new("RGB", (40, 100), (9, 9, 9))
    pixels, moved = prepare_image(
        image, [(0, 0, 40, 100), (10, 20, 30, 60)], 50, 50, fit="contain", fill=(1, 2, 3)
    )
    assert moved == [(15, 0, 35, 50), (20, 10, 30, 30)]
    assert (pixels[:, :, 15:35] == 9).all()
    around = np.delete(pixels, np.s_[15:35], axis=2)
    assert (around == np.array([1, 2, 3])[:, None, None]).all()


def test_an_image_that_covers_a_size_has_proportions_and_rounded_sides() -> None:
    # 100x37 covers 20x30 at the scale 20/37: the width is 54.05.
    pixels, _ = prepare_image(noise(100, 37), [], (20, 30), None, fit="cover")
    assert pixels.shape == (3, 20, 54)


@pytest.mark.parametrize(
    ("centre", "side", "crop", "first"),
    [
        ("round", 13, 10, 2),
        ("round", 15, 10, 2),  # half to even
        ("truncate", 13, 10, 1),
        ("floor", 13, 10, 1),
        ("round", 10, 13, -1),
        ("truncate", 10, 13, -1),
        ("floor", 10, 13, -2),
    ],
)
def test_where_the_crop_begins(centre: str, side: int, crop: int, first: int) -> None:
    _, (box,) = prepare_image(noise(side, side), [(5, 5, 6, 6)], None, crop, centre=centre)
    assert box[0] == box[1] == 5 - first


def test_torchs_values_differ_from_pillows_by_one_level_at_most() -> None:
    for size in [(90, 41), (31, 64)]:
        by_pillow, by_torch = (
            prepare_image(noise(*size), [], 48, None, "bicubic", resampler=library)[0].astype(int)
            for library in ("pillow", "torch")
        )
        assert np.abs(by_pillow - by_torch).max() <= 1


def test_masks_have_no_colours_around_them() -> None:
    geometry = {"resize": 8, "crop": 8, "fit": "contain", "fill": (9, 9, 9), "interpolation": "bicubic"}
    mask = prepare_image(Image.new("RGB", (4, 8), "white"), [], **of_masks(geometry))[0]
    assert sorted(np.unique(mask)) == [0, 255]
    assert (mask[0] > 0).sum() == 32


def test_what_cannot_be_resized_is_said() -> None:
    with pytest.raises(ValueError, match="240x2 pixels are too thin to be resized to 24x0"):
        prepare_image(noise(240, 2), [], 24, 24, fit="contain")
    with pytest.raises(ValueError, match="unknown fit 'crop'; choose from short, squash"):
        prepare_image(noise(4, 4), [], 2, 2, fit="crop")


def test_a_small_image_is_padded_and_its_boxes_shift() -> None:
    pixels, moved = prepare_image(Image.new("RGB", (4, 7), "white"), [(0, 0, 4, 7)], None, 11)
    assert moved == [(3, 2, 7, 9)]
    assert pixels.sum() == 255 * 3 * 4 * 7
    assert (pixels[:, 2:9, 3:7] == 255).all()


def test_a_box_without_area_is_dropped() -> None:
    _, moved = prepare_image(noise(64, 64), [(63, 48, 63, 54), (1, 1, 2, 2)], None, None)
    assert moved == [(1, 1, 2, 2)]


@given(
    size=st.tuples(st.integers(60, 200), st.integers(60, 200)),
    corner=st.tuples(st.floats(0, 0.6), st.floats(0, 0.6)),
    side=st.tuples(st.floats(0.15, 0.4), st.floats(0.15, 0.4)),
    resize=st.none() | st.integers(48, 128),
    crop=st.none() | st.integers(40, 140),
)
def test_a_box_stays_around_what_it_frames(
    size: tuple[int, int],
    corner: tuple[float, float],
    side: tuple[float, float],
    resize: int | None,
    crop: int | None,
) -> None:
    x0, y0 = (int(c * s) for c, s in zip(corner, size, strict=True))
    x1, y1 = (int(start + f * s) + 2 for start, f, s in zip((x0, y0), side, size, strict=True))
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    canvas[y0:y1, x0:x1] = 255
    box = (x0, y0, min(x1, size[0]), min(y1, size[1]))
    pixels, moved = prepare_image(Image.fromarray(canvas), [box], resize, crop)
    bright = pixels[0] > 127
    if not moved or min(moved[0][2] - moved[0][0], moved[0][3] - moved[0][1]) < 2:
        assert bright.any(0).sum() <= 2 or bright.any(1).sum() <= 2
        return
    columns, rows = np.flatnonzero(bright.any(0)), np.flatnonzero(bright.any(1))
    found = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    assert np.abs(np.subtract(found, moved[0])).max() <= 1


def test_no_geometry_leaves_the_image_as_it_is() -> None:
    image = noise(13, 7)
    pixels, boxes = prepare_image(image, [(1, 2, 3, 4)], None, None)
    assert np.array_equal(pixels, np.asarray(image).transpose(2, 0, 1))
    assert boxes == [(1, 2, 3, 4)]


def test_an_unknown_interpolation_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'cubic'; choose from nearest, bilinear, bicubic"):
        prepare_image(noise(3, 3), [], 2, None, "cubic")


def truncated(path: Path) -> None:
    noise(200, 200).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-2000])


def broken_png(path: Path) -> None:
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"junk") + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "make", "told"),
    [
        ("truncated.jpg", truncated, "truncated"),
        ("empty.jpg", lambda path: path.write_bytes(b""), "the file is empty"),
        (
            "text.jpg",
            lambda path: path.write_text("a text file named .jpg"),
            "not an image of a known format",
        ),
        ("absent.jpg", lambda _: None, "there is no such file"),
        ("folder.jpg", lambda path: path.mkdir(), "a folder"),
        ("junk.png", broken_png, "."),
        ("float.tif", lambda path: Image.new("F", (2, 2)).save(path), "32-bit"),
    ],
)
def test_a_file_that_is_no_image_says_why_in_one_line(
    tmp_path: Path, name: str, make: object, told: str
) -> None:
    make(tmp_path / name)  # type: ignore[operator]
    with pytest.raises(UnreadableError, match=told) as refusal:
        read_image(tmp_path / name)
    assert str(refusal.value).strip()
    assert "\n" not in str(refusal.value)


def test_pillow_is_not_told_to_accept_truncated_files() -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    grey = Image.fromarray(np.array([[0, 255, 256, 32768, 65535]], np.uint16))
    assert np.asarray(rgb(grey))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_usual_mode_becomes_rgb(mode: str) -> None:
    image = rgb(noise(4, 4).convert("RGB").convert(mode) if mode != "LA" else noise(4, 4).convert("LA"))
    assert (image.mode, image.size) == ("RGB", (4, 4))


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "I", "F", "RGB"])
def test_a_mask_is_where_values_are_not_zero_whatever_their_type(mode: str, tmp_path: Path) -> None:
    values = np.zeros((4, 6), np.uint8)
    values[1, 2:4] = 1
    if mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16))
    elif mode == "P":
        image = Image.fromarray(values, "P")
        image.putpalette([0, 0, 0, 128, 0, 0])
    elif mode == "1":
        image = Image.fromarray(values.astype(bool))
    else:
        image = Image.fromarray(values).convert(mode)
    path = tmp_path / f"mask.{'tiff' if mode in {'I', 'F'} else 'png'}"
    image.save(path)
    assert (np.asarray(decode_mask(path)) == values.astype(bool)).all()
