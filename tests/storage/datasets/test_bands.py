"""Images of any number of bands and bits: arrays, TIFF files of all layouts, and what Pillow reads."""

import lzma
import zlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from storage.datasets.bands import as_image, read_image
from storage.datasets.depth import own_depth, scaled
from storage.datasets.notes import CUT_VALUES, DARK, DEEP, FIRST_FRAME, TURNED, kind_of
from storage.datasets.reading import RGB, Bands, Reading
from storage.files import UnreadableError


def how(channels: int, stored: Any = None, **keys: Any) -> Reading:
    return Reading(bands=Bands(channels, stored), **keys)


def values(shape: tuple[int, ...], kind: str = "uint16", seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    if kind.startswith("float"):
        return random.random(shape).astype(kind)
    return random.integers(0, np.iinfo(kind).max, shape, endpoint=True).astype(kind)


def tiff(path: Path, bands: np.ndarray, **keys: Any) -> Path:
    tifffile.imwrite(path, bands, **keys)
    return path


def array(path: Path, bands: np.ndarray) -> Path:
    np.save(path, bands)
    return path


# The number of bands


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["uint8", "uint16", ">u2", "float32", "float64", "float16"])
def test_arrays_have_their_bands_first_or_last(tmp_path: Path, last: bool, kind: str) -> None:
    bands = values((6, 5, 9), "uint16" if kind == ">u2" else kind).astype(kind)
    path = array(tmp_path / "a.npy", np.moveaxis(bands, 0, -1) if last else bands)
    found = read_image(path, how(6))
    assert found.dtype == {"uint8": np.uint8, "uint16": np.uint16, ">u2": np.uint16}.get(kind, np.float32)
    np.testing.assert_array_equal(found, bands.astype(found.dtype))


@pytest.mark.parametrize(
    "keys",
    [
        {"photometric": "minisblack", "planarconfig": "contig"},
        {"photometric": "minisblack", "planarconfig": "separate"},
        {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib"},
        {"photometric": "minisblack", "planarconfig": "contig", "bigtiff": True},
        {"photometric": "minisblack", "planarconfig": "contig", "tile": (16, 16)},
        {"photometric": "minisblack", "metadata": None},  # a page per band, which say nothing
        {"photometric": "minisblack"},  # a page per band, with tifffile's note on their shape
        {"photometric": "minisblack", "imagej": True, "metadata": {"axes": "CYX"}},
    ],
)
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_every_layout_of_a_tiff_file_gives_the_same_bands(tmp_path: Path, keys: Any, kind: str) -> None:
    bands = values((6, 20, 31), kind)
    contiguous = keys.get("planarconfig") == "contig"
    found = read_image(
        tiff(tmp_path / "a.tif", np.moveaxis(bands, 0, -1) if contiguous else bands, **keys), how(6)
    )
    assert found.dtype == kind
    np.testing.assert_array_equal(found, bands)


@pytest.mark.parametrize(
    ("channels", "shape", "expected"),
    [
        (1, (5, 9), (1, 5, 9)),
        (1, (5, 9, 1), (1, 5, 9)),
        (1, (1, 5, 9), (1, 5, 9)),
        (3, (5, 9), (3, 5, 9)),
        (3, (5, 9, 1), (3, 5, 9)),
        (2, (2, 5, 9), (2, 5, 9)),
        (4, (5, 9, 4), (4, 5, 9)),
        (3, (1, 50, 3), (3, 1, 50)),
    ],
)
def test_the_number_of_channels_tells_the_axis_of_the_bands(
    tmp_path: Path, channels: int, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    stored = values(shape, "uint8")
    found = read_image(array(tmp_path / "a.npy", stored), how(channels))
    assert found.shape == expected
    if channels == 3 and 3 not in shape:  # grey stands for three equal colours
        assert (found == stored.reshape(found.shape[1:])).all()


@pytest.mark.parametrize(
    ("channels", "shape", "told"),
    [
        (6, (6, 40, 6), r"has the shape \(6, 40, 6\), whose bands may come first or last"),
        (6, (5, 40, 41), r"has the shape \(5, 40, 41\), and the model takes 6 bands"),
        (6, (40, 41), r"has 1 band, and the model takes 6 \(model.channels\)"),
        (1, (3, 40, 41), r"has 3 bands of different colours, and the model takes 1"),
        (6, (6, 0, 41), "has 41x0 pixels, which is no image"),
        (6, (6,), "has the shape .*an image is"),
        (6, (1, 6, 4, 5), "has the shape .*an image is"),
    ],
)
def test_other_numbers_of_bands_are_told(
    tmp_path: Path, channels: int, shape: tuple[int, ...], told: str
) -> None:
    with pytest.raises(UnreadableError, match=f"^{told}") as refusal:
        read_image(array(tmp_path / "a.npy", values(shape, "uint8")), how(channels))
    assert "\n" not in str(refusal.value)


def test_pillows_images_keep_their_own_bands(tmp_path: Path) -> None:
    pixels = values((7, 5, 4), "uint8")
    for name in ("a.png", "a.tif"):
        Image.fromarray(pixels).save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name, how(4)), np.moveaxis(pixels, -1, 0))
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png", how(1)), pixels[None, ..., 0])
    Image.fromarray(np.repeat(pixels[..., :1], 3, -1)).save(tmp_path / "grey-in-rgb.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey-in-rgb.png", how(1)), pixels[None, ..., 0])
    Image.fromarray(pixels[..., :3]).save(tmp_path / "rgb.png")
    for channels, told in ((1, "3 bands of different colours"), (4, "3 bands"), (6, "3 bands")):
        with pytest.raises(UnreadableError, match=f"has {told}, and the model takes {channels}"):
            read_image(tmp_path / "rgb.png", how(channels))


def test_three_bands_of_eight_bits_are_read_as_ever(tmp_path: Path) -> None:
    Image.fromarray(values((7, 5, 4), "uint8")).save(tmp_path / "a.png")  # transparent, put on white
    found = read_image(tmp_path / "a.png", Reading(bands=RGB))
    assert isinstance(found, Image.Image)
    assert found.mode == "RGB"


def test_of_several_pages_that_are_no_bands_the_first_is_read_and_noted(tmp_path: Path) -> None:
    frames = values((4, 5, 9))
    notes: list[str] = []
    path = tiff(tmp_path / "a.tif", frames, photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(read_image(path, how(1), notes), frames[:1])
    assert [kind_of(note) for note in notes] == [FIRST_FRAME, DEEP]
    with pytest.raises(UnreadableError, match="has 4 bands, and the model takes 6"):
        read_image(path, how(6))


# Bits


@pytest.mark.parametrize(
    ("kind", "stored"),
    [("uint8", "uint8"), ("uint16", "uint16"), ("int16", "uint16"), ("float64", "float32")],
)
def test_the_own_type_keeps_all_bits(kind: str, stored: str) -> None:
    assert own_depth(np.dtype(kind)) == stored


def test_values_are_the_same_share_of_white_in_every_type() -> None:
    eight = np.array([[0, 1, 128, 255]], np.uint8)
    np.testing.assert_array_equal(scaled(eight, None, [], "uint16") / 65535, eight / 255)
    np.testing.assert_allclose(scaled(eight, None, [], "float32"), eight / 255, rtol=1e-6)
    sixteen = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    assert scaled(sixteen, None, [], "uint8").tolist() == [[0, 0, 1, 128, 255]]  # as 16-bit grey in RGB
    np.testing.assert_allclose(scaled(sixteen, None, [], "float32"), sixteen / 65535, rtol=1e-6)
    shares = np.array([[0, 0.25, 1]], np.float64)
    assert scaled(shares, None, [], "uint16").tolist() == [[0, 16384, 65535]]
    assert scaled(shares, None, [], "uint8").tolist() == [[0, 64, 255]]


def test_a_stated_range_is_black_to_white_and_what_lies_outside_is_cut() -> None:
    notes: list[str] = []
    signed = np.array([[-1024, -1000, 0, 1000, 3000]], np.int16)
    found = scaled(signed, (-1000, 1000), notes, "uint16")
    assert found.tolist() == [[0, 0, 32768, 65535, 65535]]
    assert notes == [f"{CUT_VALUES}: -1024 to 3000"]
    np.testing.assert_allclose(scaled(signed, (-1000, 1000), [], "float32"), [[0, 0, 0.5, 1, 1]])
    twelve = np.arange(4096, dtype=np.uint16)[None]
    np.testing.assert_allclose(
        scaled(twelve, (0, 4095), [], "uint16") / 65535, twelve / 4095, atol=0.5 / 65535
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.array([[0.0, np.nan]]), "has values that are not finite"),
        (np.array([[0.0, np.inf]]), "has values that are not finite"),
        (
            np.array([[0.0, 1.5]]),
            "has values of type float64 from 0 to 1.5 and no stated range; set dataset.range",
        ),
        (np.array([[-3, 5]], np.int16), "has values of type int16 from -3 to 5 and no stated range"),
        (np.array([[1, 5]], np.int64), "has values of type int64 from 1 to 5 and no stated range"),
        (np.array([[True]]), "has values of type bool, which are no numbers"),
        (np.array([[1j]]), "has values of type complex128, which are no numbers"),
    ],
)
def test_values_that_have_no_place_between_black_and_white_are_refused(given: np.ndarray, told: str) -> None:
    for stored in ("uint8", "uint16", "float32"):
        with pytest.raises(UnreadableError, match=f"^{told}"):
            scaled(given, None, [], stored)  # type: ignore[arg-type]


@pytest.mark.parametrize("stored", ["uint8", "uint16", "float32"])
def test_a_pgm_file_has_its_own_range_whatever_that_of_the_dataset_is(tmp_path: Path, stored: str) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 3 1 4095\n" + np.array([0, 1000, 4095], ">u2").tobytes())
    with_range, without = (read_image(path, how(1, stored, limits=limits)) for limits in ((0, 4095), None))
    np.testing.assert_array_equal(with_range, without)
    shares = with_range[0, 0] / {"uint8": 255, "uint16": 65535, "float32": 1}[stored]
    np.testing.assert_allclose(shares, [0, 1000 / 4095, 1], atol=1 / 255)


@given(
    value=st.integers(-(2**63), 2**64 - 1),
    low=st.integers(-(10**12), 10**12),
    width=st.integers(1, 10**12),
)
def test_whole_numbers_of_any_size_are_cut_to_the_range(value: int, low: int, width: int) -> None:
    kind = np.uint64 if value >= 2**63 else np.int64
    high = min(low + width, 10**12 + 1)
    found = scaled(np.array([value], kind), (float(low), float(high)), [], "uint8")
    wanted = (value - low) * 256 // (high - low + 1)  # in Python, whose numbers have no end
    assert int(found[0]) == min(max(wanted, 0), 255)


@pytest.mark.parametrize("kind", ["int8", "uint16", "int16", "uint32", "int64", "float16", "float32"])
@pytest.mark.parametrize("stored", ["uint8", "uint16", "float32"])
def test_a_range_may_reach_beyond_the_type_of_the_values(kind: str, stored: Any) -> None:
    top = {"uint8": 255, "uint16": 65535, "float32": 1}[stored]
    for low, high, share in ((-100, 100, 0.5), (-300, -100, 1), (100, 10**12, 0), (0, 10**12, 0)):
        notes: list[str] = []
        found = scaled(np.zeros(2, kind), (low, high), notes, stored)
        np.testing.assert_allclose(found / top, [share] * 2, atol=1 / 255)
        assert notes == ([] if low <= 0 <= high else [f"{CUT_VALUES}: 0 to 0"])


def test_sixteen_bits_that_use_little_of_their_range_are_noted(tmp_path: Path) -> None:
    for largest, kinds in ((4095, [DEEP, DARK]), (65535, [DEEP])):
        notes: list[str] = []
        read_image(array(tmp_path / "a.npy", np.full((2, 3), largest, np.uint16)), how(1), notes)
        assert [kind_of(note) for note in notes] == kinds


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_of_grey_and_of_colours_are_kept(tmp_path: Path, name: str) -> None:
    colours = values((5, 9, 3))
    Image.fromarray(colours[..., 0]).save(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name, how(1)), colours[None, ..., 0])
    np.testing.assert_array_equal(
        read_image(tmp_path / name, how(3, "uint16")), np.stack([colours[..., 0]] * 3)
    )
    if name == "a.png":
        cv2.imwrite(str(tmp_path / name), colours[..., ::-1])
    else:
        tiff(tmp_path / name, colours, photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / name, how(3, "uint16")), np.moveaxis(colours, -1, 0))


def test_sixteen_bits_of_transparent_colours_are_refused_or_kept_as_four_bands(tmp_path: Path) -> None:
    colours = values((5, 9, 4))
    cv2.imwrite(str(tmp_path / "a.png"), colours[..., [2, 1, 0, 3]])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", how(4)), np.moveaxis(colours, -1, 0))
    with pytest.raises(UnreadableError, match=r"transparent pixels; set dataset.depth = 8"):
        read_image(tmp_path / "a.png", how(3, "uint16"))
    colours[..., 3] = 65535
    cv2.imwrite(str(tmp_path / "a.png"), colours[..., [2, 1, 0, 3]])
    found = read_image(tmp_path / "a.png", how(3, "uint16"))
    np.testing.assert_array_equal(found, np.moveaxis(colours[..., :3], -1, 0))


# Places


@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_are_turned_as_pillow_turns_colours(tmp_path: Path, orientation: int) -> None:
    pixels = values((5, 9), "uint8")
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(tmp_path / "grey.png", exif=exif)
    upright = np.asarray(as_image(Image.open(tmp_path / "grey.png"), Reading(), []))[..., 0]
    deep = np.repeat(pixels[None], 6, 0).astype(np.uint16) * 257
    entry = (274, "H", 1, orientation, False)
    path = tiff(
        tmp_path / "a.tif", deep, photometric="minisblack", planarconfig="separate", extratags=[entry]
    )
    notes: list[str] = []
    np.testing.assert_array_equal(read_image(path, how(6), notes)[2], upright.astype(np.uint16) * 257)
    assert notes.count(TURNED) == (orientation != 1)
    stored = read_image(path, how(6, exif="ignore"))
    np.testing.assert_array_equal(stored, deep)


# Files that are none


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the file is empty"),
        (b"\x93NUMPY", "not an .npy file of numbers"),
        (
            b"\x93NUMPY\x01\x00v\x00{'descr': '<u2', 'fortran_order': False, 'shape': (9999, 99999), }",
            "not an",
        ),
        (b"II*\0\xff\xff\xff\x7f", "."),
        (b"II*\0", "."),
        (b"words", "not an image of a known format"),
    ],
)
def test_damaged_files_say_why_in_one_line(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UnreadableError, match=told) as refusal:
        read_image(tmp_path / "a.npy", how(6))
    assert "\n" not in str(refusal.value)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableError, match=r"not an .npy file of numbers"):
        read_image(tmp_path / "a.npy")


def test_a_tiff_file_that_claims_more_than_is_read_is_refused(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", values((6, 16, 16)), photometric="minisblack", planarconfig="separate")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[257].overwrite(2**28)  # type: ignore[union-attr]
    with pytest.raises(UnreadableError, match=r"pixels; at most|claims"):
        read_image(path, how(6))


@pytest.mark.parametrize("page", [0, 1])
@pytest.mark.parametrize(("compression", "compress"), [("zlib", zlib.compress), ("lzma", lzma.compress)])
def test_a_small_tiff_file_does_not_become_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str, compress: Any, page: int
) -> None:
    monkeypatch.setattr("storage.datasets.tiff._ROOM", 1 << 20)
    path = tiff(tmp_path / "a.tif", values((2, 16, 16)), photometric="minisblack", compression=compression)
    np.testing.assert_array_equal(read_image(path, how(2)), values((2, 16, 16)))
    # A strip that has room for 512 bytes becomes 2 MiB.
    bomb, size = compress(bytes(2 << 20)), path.stat().st_size
    with tifffile.TiffFile(path, mode="r+b") as file:
        tags = file.pages[page].aspage().tags
        tags[273].overwrite(size)
        tags[279].overwrite(len(bomb))
    with path.open("ab") as end:
        end.write(bomb)
    with pytest.raises(UnreadableError, match="becomes more than 1048576 bytes"):
        read_image(path, how(2))


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path: Path, orientation: int) -> None:
    bands = values((2, 3, 4))
    tag = [(274, "H", 1, orientation, True)]
    path = tiff(tmp_path / "a.tif", bands, planarconfig="separate", photometric="minisblack", extratags=tag)
    np.testing.assert_array_equal(read_image(path, how(2)), bands)


def test_eight_bits_with_a_sign_are_not_read_as_without(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", np.array([[-128, 0, 127]], np.int8))
    with pytest.raises(UnreadableError, match=r"int8 from -128 to 127 .* set dataset\.range"):
        read_image(path, how(1))
    np.testing.assert_array_equal(read_image(path, how(1, "uint8", limits=(-128, 127))), [[[0, 128, 255]]])


def test_a_fourth_band_that_is_called_transparency_changes_no_other_band(tmp_path: Path) -> None:
    bands = values((4, 5, 4), "uint8")
    path = tiff(tmp_path / "a.tif", bands, photometric="rgb", extrasamples=["assocalpha"])
    np.testing.assert_array_equal(read_image(path, how(4)), np.moveaxis(bands, -1, 0))


def test_further_frames_of_four_bands_are_noted(tmp_path: Path) -> None:
    first, second = (Image.new("RGBA", (4, 4), (value, 2, 3, 4)) for value in (1, 9))
    first.save(tmp_path / "a.png", save_all=True, append_images=[second])
    notes: list[str] = []
    assert (read_image(tmp_path / "a.png", how(4), notes)[0] == 1).all()
    assert notes == [FIRST_FRAME]


@pytest.mark.parametrize(("compression", "name"), [("tiff_lzw", "LZW"), ("zstd", "ZSTD")])
def test_a_compression_that_only_pillow_reads_is_read_or_refused_with_what_to_do(
    tmp_path: Path, compression: str, name: str
) -> None:
    grey = Image.fromarray(values((5, 7)))
    grey.save(tmp_path / "one.tif", compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "one.tif", how(1))[0], np.asarray(grey))
    grey.save(tmp_path / "two.tif", compression=compression, save_all=True, append_images=[grey])
    # Later versions of Python have Zstandard themselves.
    if find_spec("imagecodecs") or (name == "ZSTD" and find_spec("compression")):
        np.testing.assert_array_equal(read_image(tmp_path / "two.tif", how(2)), [np.asarray(grey)] * 2)
    else:
        with pytest.raises(UnreadableError, match=f"{name}, which is not read here; write it with deflate"):
            read_image(tmp_path / "two.tif", how(2))


def test_deep_files_whose_zero_is_white_are_refused(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", values((5, 9)), photometric="miniswhite")
    with pytest.raises(UnreadableError, match="photometric interpretation 0"):
        read_image(path, how(1))


@pytest.mark.parametrize("name", ["a.npy", "a.tif"])
@given(place=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_an_image_or_one_line(name: str, place: float, byte: int, cut: bool) -> None:
    content = _saved(name)
    at = int(place * (len(content) - 1))
    told, found = "", None
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content[:at] if cut else content[:at] + bytes([byte]) + content[at + 1 :])
        try:
            found = np.asarray(read_image(path, how(6, "uint16")))
        except UnreadableError as error:
            told = str(error)
    assert (len(found) == 6) if found is not None else (told.strip() and "\n" not in told)


@cache
def _saved(name: str) -> bytes:
    """The content of a file of six bands."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        (array if name.endswith("npy") else tiff)(path, values((6, 12, 9)))
        return path.read_bytes()
