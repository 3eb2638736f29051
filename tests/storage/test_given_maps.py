"""Files of maps that another program made: what is read of them, and how maps become those of the input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from storage import given_files
from storage.datasets.dataset import Sample
from storage.files import UnreadableError, sha256_of_path
from storage.given_maps import as_map, channel_axis, in_view, open_given, open_unchanged


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    dtype=st.sampled_from(["f2", "f4", "f8", ">f4", "u1", "i8", "?"]),
    fortran=st.booleans(),
    packed=st.booleans(),
    before=st.text("abc", min_size=1, max_size=40),
    data=st.data(),
)
def test_rows_of_an_archive_are_those_that_numpy_reads(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, ...],
    dtype: str,
    fortran: bool,
    packed: bool,
    before: str,
    data: st.DataObject,
) -> None:
    path = tmp_path_factory.mktemp("archive") / "a.npz"
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    values = np.asfortranarray(values) if fortran else values
    (np.savez_compressed if packed else np.savez)(path, ids=[before] * len(values), maps=values)
    entries = open_given(path).entries
    places = data.draw(st.lists(st.integers(0, shape[0] - 1)))
    found = entries.read(places)
    assert (len(entries), entries.shape(0), len(found)) == (shape[0], shape[1:], len(places))
    for place, each in zip(places, found, strict=True):
        np.testing.assert_array_equal(each, np.load(path)["maps"][place])


def test_fifty_thousand_maps_are_not_read_to_give_a_few(tmp_path: Path) -> None:
    shape = (50_000, 224, 224)
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float32, shape)[-1] = 7  # the rest is a hole
    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=shape, chunks=(16, 224, 224), dtype="f4")
    array[-1] = 7
    before = psutil.Process().memory_info().rss
    for path in (tmp_path / "a.npy", tmp_path / "a.zarr"):
        entries = open_given(path).entries
        first, last = entries.read([0, shape[0] - 1])
        assert (len(entries), float(first.max()), float(last.min())) == (shape[0], 0, 7)  # type: ignore[union-attr]
    assert psutil.Process().memory_info().rss - before < 100e6


def test_a_compressed_array_is_read_as_a_whole_and_has_a_largest_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", maps=np.zeros((4, 100, 100)))
    assert open_given(tmp_path / "a.npz").entries.read([3])[0].shape == (100, 100)  # type: ignore[union-attr]
    monkeypatch.setattr(given_files, "MOST_COMPRESSED", 320_000)
    with pytest.raises(ValueError, match=r"compressed and have 320,128 bytes, .* numpy\.savez"):
        open_given(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("shape", "several", "grid", "axis"),
    [
        ((7, 9), 0, None, None),
        ((1, 7, 9), 0, None, 0),
        ((7, 9, 1), 0, None, 2),
        ((5, 7, 9), 1, None, None),
        ((5, 1, 7, 9), 1, None, 1),
        ((5, 7, 9, 1), 1, None, 3),
        ((1, 1, 1), 0, None, 0),
        ((1, 7, 1), 0, (7, 1), 0),
        ((1, 7, 1), 0, (1, 7), 2),
        ((1, 7, 1), 0, None, "may be a channel; set grid"),
        ((3, 7, 9), 0, None, "maps are 3x7x9, and one map has 2 axes; add up its channels"),
        ((5, 3, 7, 9), 1, None, "one map of m classes has 3 axes"),
        ((9,), 0, None, "maps are 9, and one map has 2 axes"),
        ((1, 1, 7, 9), 0, None, "maps are 1x1x7x9"),
    ],
)
def test_the_axis_of_a_single_channel(shape: Any, several: int, grid: Any, axis: Any) -> None:
    if not isinstance(axis, str):
        assert channel_axis(shape, 2, several, grid) == axis
        return
    with pytest.raises(ValueError, match=axis):
        channel_axis(shape, 2, several, grid)


def test_values_are_those_of_the_file_apart_from_images() -> None:
    for values, expected in (
        (np.array([0, 51, 255], np.uint8), [0, 0.2, 1]),
        (np.array([0, 13107, 65535], np.uint16), [0, 0.2, 1]),
        (np.array([0, 13107, 65535], ">u2"), [0, 0.2, 1]),
        (np.array([-128, 127], np.int8), [-128, 127]),
        (np.array([0, 2**20], np.uint32), [0, 2**20]),
        (np.array([-1e300, 1e-300, np.nan]), [-np.inf, 0, np.nan]),
        (np.array([True, False]), [1, 0]),
    ):
        found = as_map(values, None)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.array(expected, np.float32))
    with pytest.raises(UnreadableError, match="of the type complex128, which holds no numbers"):
        as_map(np.ones(2, complex), None)


@pytest.mark.parametrize("resampler", ["pillow", "torch"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_map_of_an_image_is_cropped_padded_with_zero_and_resized(sign: int, resampler: str) -> None:
    keys = {"interpolation": "bilinear", "fill": (124, 116, 104), "resampler": resampler}
    values = sign * (np.arange(48, dtype=np.float32).reshape(6, 8) + 5)
    cropped = in_view(values, {"resize": None, "crop": (4, 4), **keys})
    np.testing.assert_allclose(cropped, values[1:5, 2:6], rtol=1e-6)
    padded = in_view(values, {"resize": None, "crop": (8, 8), **keys})
    np.testing.assert_allclose(padded, np.pad(values, ((1, 1), (0, 0))), rtol=1e-6, atol=1e-5)
    # Twice as large, a ramp is a ramp, apart from the border.
    ramp = sign * np.tile(np.arange(8, dtype=np.float32), (8, 1))
    larger = in_view(ramp, {"resize": (16, 16), "crop": None, "fit": "squash", **keys})
    expected = sign * (np.arange(16) / 2 - 0.25).clip(0, 7)
    np.testing.assert_allclose(larger, np.tile(expected, (16, 1)), atol=1e-5)
    zeros = in_view(np.zeros((6, 8), np.float32), {"resize": 12, "crop": 12, **keys})
    assert (zeros.shape, zeros.any()) == ((12, 12), False)
    ramp[3, 3] = np.inf
    assert np.isnan(in_view(ramp, {"resize": 4, "crop": 4, **keys})).all()


def test_ids_are_found_with_and_without_suffix(tmp_path: Path) -> None:
    def samples(*names: str) -> list[Sample]:
        return [Sample(name, name) for name in names]

    np.savez(tmp_path / "a.npz", **{"x/1": np.ones(1), "x/2.png": np.ones(1), "v1.2": np.ones(1)})
    maps = open_given(tmp_path / "a.npz")
    assert maps.check_samples(samples("x/2.png", "x/1.jpg", "v1.2", "x/3.png"), False) == [1, 0, 2, None]
    with pytest.raises(ValueError, match=r"one map is that of the samples 'x/1\.jpg' and 'x/1\.png'"):
        maps.check_samples(samples("x/1.jpg", "x/1.png"), True)
    with pytest.raises(ValueError, match=r"holds 2 maps of no sample of the dataset: 'x/2\.png', 'v1\.2'"):
        maps.check_samples(samples("x/1.jpg"), False)
    assert maps.check_samples(samples("x/1.jpg"), True) == [0]


@pytest.mark.parametrize("suffix", [".npz", ".zarr"])
def test_an_array_that_may_say_whose_the_maps_are_is_not_passed_over(tmp_path: Path, suffix: str) -> None:
    """Otherwise maps in another order would be taken as those of the samples by their rows."""
    path, given = tmp_path / f"a{suffix}", {"maps": np.ones((2, 3, 3)), "names": np.arange(2)}
    if suffix == ".npz":
        np.savez(path, **given)  # type: ignore[arg-type]
    else:
        zarr.save_group(path, **given)
    with pytest.raises(ValueError, match=r"holds 'names' besides maps, where only ids and targets are read"):
        open_given(path)


def test_a_folder_has_changed_if_one_of_its_files_has(tmp_path: Path) -> None:
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", np.ones((2, 2)))
    whole, both = sha256_of_path(tmp_path), [(0, "a"), (1, "b")]
    first = open_unchanged(tmp_path, whole, both)
    assert open_unchanged(tmp_path, whole, both) is first
    np.save(tmp_path / "b.npy", np.zeros((2, 2)))
    assert (first.lasts([0]), first.lasts([1])) == (True, False)
    assert open_unchanged(tmp_path, whole, both[:1]) is first  # whose own file is what it was
    with pytest.raises(UnreadableError, match="has changed since the job was planned"):
        open_unchanged(tmp_path, whole, both)
    (tmp_path / "b.npy").rename(tmp_path / "c.npy")
    np.save(tmp_path / "c.npy", np.ones((2, 2)))
    assert sha256_of_path(tmp_path) != whole
    (tmp_path / "c.npy").rename(tmp_path / "b.npy")
    assert len(open_unchanged(tmp_path, whole, both).given.entries) == 2


def test_an_array_has_changed_if_a_chunk_is_gone(tmp_path: Path) -> None:
    """Zarr itself would read zeros."""
    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=(4, 2, 2), chunks=(2, 2, 2), dtype="f4")
    array[:] = 1
    whole = sha256_of_path(tmp_path / "a.zarr")
    first = open_unchanged(tmp_path / "a.zarr", whole, [(0, "a")])
    assert first.lasts([0])
    (tmp_path / "a.zarr" / "c" / "1" / "0" / "0").unlink()
    assert not first.lasts([0])
    with pytest.raises(UnreadableError, match="has changed since the job was planned"):
        open_unchanged(tmp_path / "a.zarr", whole, [(0, "a")])


def test_a_damaged_chunk_is_an_error_and_no_map(tmp_path: Path) -> None:
    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=(4, 9, 9), chunks=(2, 9, 9), dtype="f4")
    array[:] = np.random.default_rng(0).random((4, 9, 9))
    (tmp_path / "a.zarr" / "c" / "1" / "0" / "0").write_bytes(b"no chunk")
    entries = open_given(tmp_path / "a.zarr").entries
    assert len(entries.read([0, 1])) == 2
    with pytest.raises(UnreadableError, match=r"^maps cannot be read: Zstd decompression error"):
        entries.read([1, 2])


def test_images_that_are_no_single_upright_grey_map_are_not_read(tmp_path: Path) -> None:
    grey = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    exif = Image.Exif()
    exif[274] = 6
    grey.save(tmp_path / "a.png")
    grey.save(tmp_path / "b.png", save_all=True, append_images=[grey.rotate(90)])
    grey.save(tmp_path / "c.png", exif=exif)
    tifffile.imwrite(tmp_path / "d.tif", np.ones((2, 6, 8), np.float32), photometric="minisblack")
    tifffile.imwrite(tmp_path / "e.tif", -np.ones((6, 8), np.float16), byteorder=">")
    Image.fromarray(np.arange(48, dtype=">u2").reshape(6, 8)).save(tmp_path / "f.tif")
    (tmp_path / "g.npy").write_bytes(b"\x93NUMPY")
    entries = open_given(tmp_path).entries
    found = dict(zip("abcdefg", entries.read(range(7)), strict=True))
    np.testing.assert_array_equal(found["a"], np.asarray(grey))
    assert (found["b"], found["c"]) == (
        "holds several images; a map is one",
        "has the EXIF orientation 6; write the map upright, without one",
    )
    assert np.shape(found["d"]) == (2, 6, 8)  # of which no axis is a single channel
    np.testing.assert_array_equal(found["e"], -np.ones((1, 6, 8)))
    deep = np.arange(48, dtype=np.float32).reshape(6, 8) / np.float32(65535)
    np.testing.assert_array_equal(as_map(np.asarray(found["f"]), 0), deep)
    assert isinstance(found["g"], str)
    assert [entries.shape(place) for place in range(7)] == [*[(6, 8)] * 4, (1, 6, 8), (6, 8), None]
