"""Image files: orientation, transparency, frames, more than 8 bits, and files that are none."""

from __future__ import annotations

import os
import socket
import threading
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pngs import chunk, png
from storage.datasets import decoding
from storage.datasets.bands import read_image
from storage.datasets.decoding import rgb
from storage.datasets.notes import (
    COMPOSITED,
    CUT_VALUES,
    DARK,
    DEEP,
    FIRST_FRAME,
    NOT_TURNED,
    TURNED,
    kind_of,
    lines,
)
from storage.datasets.reading import Reading
from storage.files import UnreadableError

STORED = Reading(exif="ignore")


def corner() -> Image.Image:
    """An upright image of 16x24 whose quarters are red, green, blue and white."""
    pixels = np.zeros((24, 16, 3), np.uint8)
    pixels[:12, :8], pixels[:12, 8:] = (250, 0, 0), (0, 250, 0)
    pixels[12:, :8], pixels[12:, 8:] = (0, 0, 250), (250, 250, 250)
    return Image.fromarray(pixels)


def near(image: Image.Image, other: Image.Image) -> bool:
    """Whether two images are equal but for the losses of compression."""
    return image.size == other.size and bool(
        np.abs(np.subtract(np.asarray(image, int), np.asarray(other, int))).mean() < 12
    )


@pytest.mark.parametrize(("depth", "factor"), [(2, 85), (4, 17)])
def test_a_clear_value_of_few_bits_is_scaled_as_the_pixels_are(
    depth: int, factor: int, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png(np.arange(4), depth, 0, transparent=b"\0\2"))
    notes: list[str] = []
    found = np.asarray(read_image(tmp_path / "a.png", Reading(background=(9, 9, 9)), notes))
    assert found[0, :, 0].tolist() == [0, factor, 9, 3 * factor]
    assert notes == [COMPOSITED]


def test_a_clear_colour_of_sixteen_bits_is_refused(tmp_path: Path) -> None:
    # Pillow would compare its low bytes with the high bytes of the pixels.
    colours = np.array([[256] * 3, [0] * 3])
    (tmp_path / "a.png").write_bytes(png(colours, 16, 2, transparent=b"\1\0" * 3))
    with pytest.raises(UnreadableError, match="16 bits per colour and a transparent colour"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_upright_or_as_it_is_stored_whatever_its_format(
    suffix: str, orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"a.{suffix}"
    corner().save(path, exif=exif, quality=95)
    tagged = corner()
    tagged.getexif()[274] = orientation
    upright = ImageOps.exif_transpose(tagged)
    notes: list[str] = []
    assert near(read_image(path, notes=notes), upright)
    assert notes == ([TURNED] if orientation != 1 else [])
    assert near(read_image(path, STORED, notes), corner())
    assert notes[1:] == ([NOT_TURNED] if orientation != 1 else [])


def test_damaged_exif_data_do_not_matter_and_a_damaged_png_is_not_read_as_black(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    corner().save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert near(read_image(path), corner())
    corner().resize((400, 400)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    middle = whole.index(b"IDAT") + 40
    (tmp_path / "a.png").write_bytes(whole[:middle] + b"junk" + whole[middle + 4 :])
    with pytest.raises(UnreadableError):
        read_image(tmp_path / "a.png")


def clear(mode: str) -> Image.Image:
    """Four pixels of (10, 20, 30), or a grey near it; the last one is clear."""
    alpha = Image.fromarray(np.array([[255, 255, 255, 0]], np.uint8))
    image = Image.new("RGB", (4, 1), (10, 20, 30))
    if mode in {"RGBA", "RGBa", "LA"}:
        image.putalpha(alpha)
        return image.convert(mode)
    indices = np.array([[0, 0, 0, 1]], np.uint8)
    if mode in {"P", "PA"}:
        image = Image.fromarray(indices, "P")
        image.putpalette([10, 20, 30, 99, 88, 77])
        if mode == "PA":
            image = image.convert("PA")
            image.putalpha(alpha)
            return image
    elif mode == "L":
        image = Image.fromarray(20 + indices)
    else:
        image = Image.fromarray(np.dstack([indices + 10, indices + 20, indices + 30]))
    image.info["transparency"] = {"P": 1, "L": 21, "RGB": (11, 21, 31)}[mode]
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "PA", "P", "L", "RGB"])
def test_clear_pixels_have_the_background_and_not_their_hidden_colours(mode: str) -> None:
    for background in ((255, 255, 255), (0, 100, 200)):
        notes: list[str] = []
        pixels = np.asarray(rgb(clear(mode), Reading(background=background), notes))
        assert pixels[0, 3].tolist() == list(background)
        assert np.abs(pixels[0, 0].astype(int) - (10, 20, 30)).max() <= 12
        assert notes == [COMPOSITED]


def test_half_clear_pixels_are_mixed_and_opaque_images_are_left_as_they_are() -> None:
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 51))
    assert np.asarray(rgb(half)).tolist() == [[[204, 204, 204]]]  # 255 * (1 - 51 / 255)
    notes: list[str] = []
    opaque = Image.new("RGBA", (1, 1), (1, 2, 3, 255))
    assert np.asarray(rgb(opaque, notes=notes)).tolist() == [[[1, 2, 3]]]
    assert notes == []


def test_a_clear_value_of_sixteen_bits_is_found_before_scaling(tmp_path: Path) -> None:
    values = np.array([[4095, 4094]], np.uint16)  # both become the same 8 bits
    Image.fromarray(values).save(tmp_path / "a.png", transparency=4094)
    pixels = np.asarray(read_image(tmp_path / "a.png", Reading(limits=(0, 4095), background=(1, 2, 3))))
    assert pixels.tolist() == [[[255, 255, 255], [1, 2, 3]]]


@pytest.mark.parametrize("suffix", ["gif", "png", "tiff", "webp", "avif"])
def test_the_first_frame_is_read_and_said(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    notes: list[str] = []
    assert near(read_image(path, notes=notes), frames[0])
    assert notes == [FIRST_FRAME]


def test_sixteen_bits_are_scaled_by_their_full_range_or_by_the_stated_one(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    deep: list[str] = []
    dark: list[str] = []
    for suffix in ("png", "tiff", "pgm", "jp2"):
        Image.fromarray(grey * 257).save(tmp_path / f"full.{suffix}")
        assert (np.asarray(read_image(tmp_path / f"full.{suffix}", notes=deep))[..., 0] == grey).all()
    for suffix in ("png", "tiff", "jp2"):
        Image.fromarray(grey * 16).save(tmp_path / f"twelve.{suffix}")
        read = read_image(tmp_path / f"twelve.{suffix}", Reading(limits=(0, 4095)))
        assert (np.asarray(read)[..., 0] == grey).all()
        assert np.asarray(read_image(tmp_path / f"twelve.{suffix}", notes=dark)).max() == 15
    assert deep == [DEEP] * 4
    assert [kind_of(note) for note in dark] == [DEEP, DARK] * 3
    told = lines([{"uri": "a.png", "notes": dark[:2]}], {})
    assert told == [
        f"{DEEP}: 1, e.g. a.png",
        f"{DARK}: 1, e.g. a.png: largest value 4080; none of the set's 16-bit files uses more; set "
        "dataset.range if the values have fewer bits",
    ]
    assert lines([{"uri": "a.png", "notes": [*dark[:2], DEEP]}], {}) == [f"{DEEP}: 2, e.g. a.png"]


def test_a_pgm_file_states_its_own_range(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 4095\n" + np.array([4095, 0], ">u2").tobytes())
    assert np.asarray(read_image(tmp_path / "a.pgm"))[0, :, 0].tolist() == [255, 0]


def test_colours_of_sixteen_bits_are_noted_and_have_no_range(tmp_path: Path) -> None:
    for value, kinds in ((4095, [DEEP, DARK]), (65535, [DEEP])):
        path = tmp_path / "a.png"
        path.write_bytes(png(np.full((1, 3), value), 16, 2))
        notes: list[str] = []
        assert np.asarray(read_image(path, notes=notes)).tolist() == [[[value >> 8] * 3]]
        assert [kind_of(note) for note in notes] == kinds
        with pytest.raises(UnreadableError, match=r"dataset\.range is for grey files"):
            read_image(path, Reading(limits=(0, 4095)))


def test_numbers_of_thirty_two_bits_need_a_range(tmp_path: Path) -> None:
    whole = Image.fromarray(np.array([[-1000, 0, 3095, 9000]], np.int32))
    floats = Image.fromarray(np.array([[-1.0, 0.0, 0.5, 1.0]], np.float32))
    for image in (whole, floats):
        with pytest.raises(UnreadableError, match=r"no stated range; set dataset\.range"):
            rgb(image)
    notes: list[str] = []
    scaled = rgb(whole, Reading(limits=(-1000, 3095)), notes)
    assert np.asarray(scaled)[0, :, 0].tolist() == [0, 1000 * 256 // 4096, 255, 255]
    assert notes == [f"{CUT_VALUES}: -1000 to 9000"]
    assert np.asarray(rgb(floats, Reading(limits=(0.0, 1.0))))[0, :, 0].tolist() == [0, 0, 128, 255]
    with pytest.raises(UnreadableError, match="not finite"):
        rgb(Image.fromarray(np.array([[np.nan]], np.float32)), Reading(limits=(0.0, 1.0)))


def test_an_inverted_cmyk_photograph_has_its_colours(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").getpixel((4, 4)) == (255, 0, 0)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def plugged(path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.close()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (pipe, "a pipe"),
        (plugged, "a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (lambda path: path.mkdir(), "a folder"),
        (lambda path: path.symlink_to(path.parent / "nowhere"), "no such file"),
        (lambda path: path.symlink_to(path), "a link to itself"),
    ],
)
def test_only_regular_files_are_opened(make: Callable[[Path], None], told: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    make(path)
    found: list[Exception] = []

    def read() -> None:
        try:
            read_image(path)
        except UnreadableError as error:
            found.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert told in str(found[0])


def test_names_that_no_file_can_have_are_unreadable(tmp_path: Path) -> None:
    for name in ("a\0b.png", "a" * 5000 + ".png"):
        with pytest.raises(UnreadableError):
            read_image(tmp_path / name)


def test_files_and_images_have_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (10000, 9000)).save(tmp_path / "bomb.png")
    with pytest.raises(UnreadableError, match=r"has 10000x9000 pixels; at most 89478485 are read"):
        read_image(tmp_path / "bomb.png")
    corner().save(tmp_path / "a.png")
    monkeypatch.setattr(decoding, "LARGEST", 10)
    with pytest.raises(UnreadableError, match=r"has \d+ bytes; at most 10 are read"):
        read_image(tmp_path / "a.png")


def test_a_text_in_a_png_file_that_becomes_large_is_not_unpacked(tmp_path: Path) -> None:
    data = BytesIO()
    corner().save(data, "PNG")
    text = b"key\0\0" + zlib.compress(b"a" * (80 << 20))
    whole = data.getvalue()
    (tmp_path / "a.png").write_bytes(whole[:33] + chunk(b"zTXt", text) + whole[33:])
    with pytest.raises(UnreadableError, match="too large"):
        read_image(tmp_path / "a.png")


def test_postscript_under_another_name_starts_no_program(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF\n")
    with pytest.raises(UnreadableError, match="not an image of a known format"):
        read_image(tmp_path / "a.png")
