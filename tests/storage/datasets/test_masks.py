"""Masks: which values are the object, which do not count, and what is unclear."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pngs import png
from storage.datasets.masks import IGNORED, OBJECT, decode_mask, mask_of, prepare_mask
from storage.datasets.notes import MASK_ALPHA, MASK_FRAME, MASK_LOSSY, MASK_VALUES
from storage.datasets.reading import Reading
from storage.files import UnreadableError

AREA = np.zeros((6, 8), bool)
AREA[1:3, 2:5] = True


def read(image: Image.Image, **how: object) -> np.ndarray:
    return np.asarray(mask_of(image, Reading(**how)))  # type: ignore[arg-type]


def with_alpha(colours: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([colours, alpha]).astype(np.uint8), "RGBA")


@pytest.mark.parametrize("colour", [0, 255, 80])
def test_an_alpha_channel_that_varies_is_the_mask(colour: int) -> None:
    notes: list[str] = []
    image = with_alpha(np.full((6, 8, 3), colour), AREA * 255)
    assert (np.asarray(mask_of(image, notes=notes)) == AREA).all()
    assert notes == [MASK_ALPHA]
    assert (read(image.convert("LA")) == AREA).all()


def test_a_cut_out_photograph_is_the_object_and_its_hidden_colours_do_not_matter() -> None:
    photograph = np.random.default_rng(0).integers(1, 255, (6, 8, 3))
    photograph[0] = 0  # black, and hidden
    assert (read(with_alpha(photograph, AREA * 255)) == AREA).all()


def test_an_alpha_channel_that_does_not_vary_leaves_the_colours() -> None:
    white = np.repeat(AREA[..., None] * 255, 3, 2)
    for alpha in (255, 0, 9):
        assert (read(with_alpha(white, np.full((6, 8), alpha))) == AREA).all()


def test_colours_and_alpha_that_both_tell_an_object_are_refused() -> None:
    frame = np.ones((6, 8))
    frame[0] = 0
    with pytest.raises(UnreadableError, match="of its visible pixels only some are black"):
        read(with_alpha(np.repeat(AREA[..., None] * 255, 3, 2), frame * 255))


def test_values_that_are_named_are_the_object_and_others_are_not_counted() -> None:
    trimap = np.where(AREA, 1, 2).astype(np.uint8)
    trimap[0] = 3
    image = Image.fromarray(trimap)
    assert read(image).all()
    assert (read(image, mask_values=(1,)) == AREA).all()
    found = read(image, mask_values=(1,), mask_ignore=(3,))
    assert (found == np.where(trimap == 3, IGNORED, AREA)).all()
    found = read(image, mask_ignore=(3,))
    assert (found == np.where(trimap == 3, IGNORED, OBJECT)).all()


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "I", "RGB", "LA"])
def test_named_values_are_greys_or_indices(mode: str, tmp_path: Path) -> None:
    values = AREA * 7
    values[5] = 255
    if mode == "P":
        image = Image.fromarray(values.astype(np.uint8), "P")
        image.putpalette([i for c in range(256) for i in (c, 255 - c, c // 2)])
    elif mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16))
    elif mode == "I":
        image = Image.fromarray(values.astype(np.int32))
    else:
        image = Image.fromarray(values.astype(np.uint8)).convert(mode)
    image.save(tmp_path / "m.tiff")
    found = decode_mask(tmp_path / "m.tiff", Reading(mask_values=(7,), mask_ignore=(255,)))
    assert (np.asarray(found) == np.where(values == 255, IGNORED, AREA)).all()


def test_one_bit_is_named_one() -> None:
    assert (read(Image.fromarray(AREA), mask_values=(1,)) == AREA).all()


def test_a_palette_whose_first_colour_is_not_black_needs_named_indices() -> None:
    image = Image.fromarray((AREA * 7).astype(np.uint8), "P")
    image.putpalette([i for c in range(256) for i in (c, 255 - c, c // 2)])
    with pytest.raises(UnreadableError, match=r"name the object's indices in dataset\.mask_values"):
        read(image)
    image.putpalette([i for c in range(256) for i in (c, c, c)])
    assert (read(image) == AREA).all()


def test_colours_have_no_named_values() -> None:
    with pytest.raises(UnreadableError, match="is in colours"):
        read(Image.new("RGB", (2, 2), (1, 2, 3)), mask_values=(1,))


def test_a_mask_is_turned_as_an_image_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(AREA.astype(np.uint8) * 255).save(tmp_path / "m.png", exif=exif)
    assert (np.asarray(decode_mask(tmp_path / "m.png")) == np.rot90(AREA, -1)).all()
    assert (np.asarray(decode_mask(tmp_path / "m.png", Reading(exif="ignore"))) == AREA).all()


def test_a_mask_in_a_lossy_format_is_noted(tmp_path: Path) -> None:
    Image.fromarray(AREA.astype(np.uint8) * 255).save(tmp_path / "m.jpg")
    notes: list[str] = []
    decode_mask(tmp_path / "m.jpg", notes=notes)
    assert notes == [MASK_LOSSY]


def test_values_are_not_mixed_by_resizing() -> None:
    values = np.zeros((40, 40), np.uint8)
    values[10:20, 10:20], values[20:30, 10:20] = OBJECT, IGNORED
    found = prepare_mask(Image.fromarray(values), {"resize": 20, "crop": 20, "interpolation": "bicubic"})
    assert (found == values[::2, ::2]).all()


@pytest.mark.parametrize("text", [png(np.arange(4), 2, 0), b"P2 4 1 3 0 1 2 3", b"P2 4 1 1023 0 1 2 3"])
def test_named_values_that_are_scaled_on_reading_are_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "mask").write_bytes(text)
    with pytest.raises(UnreadableError, match=r"multiplied by (85|64\.\d+) when .*8 bits per value"):
        decode_mask(tmp_path / "mask", Reading(mask_ignore=(3,)))
    assert np.asarray(decode_mask(tmp_path / "mask")).tolist() == [[0, 1, 1, 1]]


def test_masks_of_sixteen_bits_per_colour_lose_small_values_and_are_refused(tmp_path: Path) -> None:
    for colour, channels in ((2, 3), (4, 2), (6, 4)):
        values = np.ones((4, channels), int)
        values[0], values[1] = 0, 65535
        (tmp_path / "mask.png").write_bytes(png(values, 16, colour))
        with pytest.raises(UnreadableError, match="16 bits per colour, of which 8 are read"):
            decode_mask(tmp_path / "mask.png")


def test_several_values_and_several_frames_are_noted(tmp_path: Path) -> None:
    notes: list[str] = []
    values = np.where(AREA, 1, 0).astype(np.uint8)
    mask_of(Image.fromarray(values * 255), notes=notes)
    assert notes == []
    values[0] = 255
    palette = Image.fromarray(values, "P")
    palette.putpalette([0, 0, 0, *[9] * 765])
    for image in (Image.fromarray(values), palette, Image.fromarray(values.astype(np.int32))):
        notes.clear()
        assert (np.asarray(mask_of(image, notes=notes)) == (values != 0)).all()
        assert notes == [f"{MASK_VALUES}: 1, 255"]
    frames = [Image.fromarray(values * each) for each in (255, 0)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    notes.clear()
    decode_mask(tmp_path / "a.png", notes=notes)
    assert MASK_FRAME in notes
