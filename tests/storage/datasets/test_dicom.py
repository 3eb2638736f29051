"""DICOM files that pydicom wrote, and some that it ships: the grey values shown, colours, and labels."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset as Header
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from packed import write_dicom as written
from storage.datasets import dicom, image_files
from storage.datasets.bands import read_image
from storage.datasets.dataset import Dataset
from storage.datasets.notes import kind_of, lines
from storage.datasets.opening import open_dataset
from storage.datasets.reading import RGB, Bands, Reading, Window
from storage.datasets.spec import DatasetSpec
from storage.files import UnreadableError

FLOATS = Bands(1, "float32")
CT = {"RescaleSlope": 2, "RescaleIntercept": -1024}


def shares(path: Path, window: Window = "file", bands: Bands = FLOATS, notes: list[str] | None = None) -> Any:
    return read_image(path, Reading(bands=bands, window=window), notes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.dcm"


RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)


@pytest.mark.parametrize("window", [(40.0, 400.0), (-600.0, 1500.0), (300.0, 1.0)])
def test_a_window_is_the_linear_one_of_the_standard(window: tuple[float, float], path: Path) -> None:
    centre, width = window
    units = RAMP * 2.0 - 1024
    between = (units - (centre - 0.5)) / max(width - 1, 1) + 0.5
    expected = np.where(
        units <= centre - 0.5 - (width - 1) / 2,
        0,
        np.where(units > centre - 0.5 + (width - 1) / 2, 1, between),
    )
    written(path, RAMP, 12, **CT, VOILUTFunction="SIGMOID")  # which is of the file's own windows
    notes: list[str] = []
    np.testing.assert_allclose(shares(path, window, notes=notes)[0], expected, atol=1e-6)
    assert notes == [f"shown through a window: centre {centre:g}, width {width:g}"]
    eight = np.asarray(read_image(path, Reading(bands=RGB, window=window)))
    np.testing.assert_array_equal(eight, np.rint(expected * 255)[..., None].repeat(3, -1))


def test_the_files_own_window_is_the_first_and_as_pydicom_shows_it(path: Path) -> None:
    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        elements = {"WindowCenter": [100, 5], "WindowWidth": [800, 10], "VOILUTFunction": function}
        written(path, RAMP, 12, **CT, **elements)
        file = pydicom.dcmread(path)
        theirs = apply_voi_lut(apply_modality_lut(file.pixel_array, file), file)
        low, high = -1024, 4095 * 2 - 1024
        notes: list[str] = []
        np.testing.assert_allclose(shares(path, notes=notes)[0], (theirs - low) / (high - low), atol=1e-6)
        assert notes == ["shown through a window: centre 100, width 800, the first of 2"]


def test_without_a_window_the_range_of_the_bits_is_shown(path: Path) -> None:
    notes: list[str] = []
    np.testing.assert_allclose(shares(written(path, RAMP, 12, **CT), notes=notes)[0], RAMP / 4095, atol=1e-7)
    assert notes == ["shown over the whole range of its bits: -1024 to 7136 in -1024 to 7166"]
    shares(written(path, RAMP // 8, 12), notes=notes)
    narrow = "shown over the whole range of its bits, of which less than a quarter is used: 1, e.g. x: "
    assert lines([{"uri": "x", "notes": notes[1:]}], {}) == [
        f"{narrow}0 to 510 in 0 to 4095; set dataset.window to the values that matter, e.g. [40, 400]"
    ]
    windowed = written(path, RAMP, 12, **CT, WindowCenter=40, WindowWidth=400)
    np.testing.assert_allclose(shares(windowed, "full")[0], RAMP / 4095, atol=1e-7)
    signed = RAMP.astype(np.int16) - 2048
    np.testing.assert_allclose(shares(written(path, signed, 12))[0], (signed + 2048) / 4095, atol=1e-7)
    falling = written(path, RAMP, 12, RescaleSlope=-1, RescaleIntercept=0)
    np.testing.assert_allclose(shares(falling)[0], 1 - RAMP / 4095, atol=1e-6)


def test_small_values_of_monochrome1_are_white(path: Path) -> None:
    elements = {**CT, "WindowCenter": 40, "WindowWidth": 400}
    plain = shares(written(path, RAMP, 12, **elements))
    turned = shares(written(path, RAMP, 12, PhotometricInterpretation="MONOCHROME1", **elements))
    np.testing.assert_allclose(turned, 1 - plain, atol=1e-6)


def table(first: int, entries: list[int], bits: int) -> Header:
    item = Header()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return item


def test_lookup_tables_of_modality_and_voi_are_applied_in_this_order(path: Path) -> None:
    values = np.array([[0, 1, 2, 3], [9, 0, 1, 2]], np.uint16)
    modality = table(0, [30, 20, 10, 0], 8)  # 9 lies behind its end
    voi = table(5, [0, 100, *[200] * 10, 4095], 12)  # 0 lies before, 20 and 30 behind
    written(path, values, ModalityLUTSequence=[modality], VOILUTSequence=[voi], WindowCenter=1, WindowWidth=1)
    notes: list[str] = []
    expected = np.array([[4095, 4095, 200, 0], [0, 4095, 4095, 200]]) / 4095
    np.testing.assert_allclose(shares(path, notes=notes)[0], expected, atol=1e-7)
    assert notes == ["shown through a window: the file's VOI LUT"]
    np.testing.assert_allclose(shares(path, "full")[0, 0], np.array([30, 20, 10, 0]) / 255, atol=1e-7)
    # Rescaled values are no whole numbers of 16 bits: -1 would be 65535 and lie behind the end.
    rescaled = {"RescaleSlope": 1, "RescaleIntercept": -1}
    written(path, values, **rescaled, VOILUTSequence=[table(0, [7, 8, 255], 8)])
    np.testing.assert_allclose(shares(path)[0, 0], np.array([7, 7, 8, 255]) / 255, atol=1e-7)


def test_colours_become_rgb(path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(read_image(written(path, colours))), colours)
    planes = np.ascontiguousarray(np.moveaxis(colours, -1, 0))
    written(path, colours, PlanarConfiguration=1, PixelData=planes.tobytes())
    np.testing.assert_array_equal(np.asarray(read_image(path)), colours)
    ybr = np.asarray(Image.fromarray(colours).convert("YCbCr"))
    written(path, ybr, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(np.asarray(read_image(path)).astype(int), colours, atol=3)
    deep = colours.astype(np.uint16) * 257
    np.testing.assert_array_equal(np.asarray(read_image(written(path, deep))), colours)


def test_palettes_become_rgb(path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8)
    tables: dict[str, Any] = {}
    for name, entries in {"Red": ramp, "Green": ramp[::-1], "Blue": ramp // 2}.items():
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        tables[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    values = ramp.reshape(16, 16)
    written(path, values, PhotometricInterpretation="PALETTE COLOR", **tables)
    expected = np.stack([values, 255 - values, values // 2], -1)
    np.testing.assert_array_equal(np.asarray(read_image(path)), expected)


SHIPPED = ("CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "SC_rgb_rle.dcm", "SC_rgb_small_odd.dcm")


def shipped(name: str) -> Path:
    source = get_testdata_file(name, download=False)
    if source is None:
        pytest.skip(f"this pydicom does not ship {name}")
    return Path(str(source))


@pytest.mark.parametrize("name", SHIPPED)
def test_files_that_pydicom_ships_are_read_as_it_reads_them(name: str) -> None:
    source = shipped(name)  # the first one begins as a TIFF file does
    file = pydicom.dcmread(source)
    values = file.pixel_array.astype(float)
    if values.ndim == 3:
        np.testing.assert_array_equal(np.asarray(read_image(source)), values)
        return
    signed, bits = file.PixelRepresentation, file.BitsStored
    expected = (values + signed * 2 ** (bits - 1)) / (2**bits - 1)
    np.testing.assert_allclose(shares(source, "full")[0], expected, atol=1e-6)


def test_threads_read_what_one_reads() -> None:
    files = [shipped(name) for name in SHIPPED]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read_image, files * 6))
    for file, image in zip(files * 6, found, strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(read_image(file)))


def test_a_compressed_file_that_nothing_decodes_is_a_row_with_one_line() -> None:
    with pytest.raises(UnreadableError, match=r"cannot be read as DICOM: .*[Dd]ecompress") as caught:
        read_image(shipped("MR_small_jpeg_ls_lossless.dcm"))
    assert "\n" not in str(caught.value)


def damaged(path: Path) -> Path:
    path.write_bytes(written(path, RAMP, 12).read_bytes()[:-100])
    return path


UNKNOWN = {"RescaleSlope": "nan", "RescaleIntercept": 0}


@pytest.mark.filterwarnings("error::RuntimeWarning")  # NumPy's would be lines of their own
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda p: written(p, RAMP, 12, NumberOfFrames=2, Rows=8), "has 2 frames; write each to a"),
        (lambda p: written(p, RAMP, 12, PhotometricInterpretation="HSV"), "interpretation HSV"),
        (damaged, "cannot be read as DICOM: "),
        (lambda p: written(p, RAMP, 12, RescaleSlope=0, RescaleIntercept=1), "does not allow"),
        (lambda p: written(p, RAMP, 12, **UNKNOWN, VOILUTSequence=[table(0, [7, 8], 8)]), "does not allow"),
        (lambda p: written(p, RAMP, 12, WindowCenter=5, WindowWidth=0), "Window Width must be greater"),
        (lambda p: written(p, RAMP, 12, Rows=60000, Columns=60000), "at most"),
    ],
)  # fmt: skip
def test_files_that_contradict_themselves_are_rows_with_one_line(
    make: Callable[[Path], Path], told: str, path: Path
) -> None:
    with pytest.raises(UnreadableError, match=told) as caught:
        read_image(make(path))
    assert "\n" not in str(caught.value)


# The kind


def opened(path: Path, kind: str = "dicom", **keys: object) -> Dataset:
    return open_dataset(DatasetSpec.model_validate({"kind": kind, "path": path, **keys}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    written(root / "ill" / "b.dcm", RAMP, 12, **CT)
    written(root / "ill" / "a.DCM", RAMP, 12, **CT, WindowCenter=0, WindowWidth=100)
    written(root / "well" / "1.2.840.113", RAMP, 12)
    written(root / "well" / "IM0001", RAMP, 12)
    (root / "well" / "README").write_text("no image")
    (root / "well" / "list.csv").write_text("no image")
    (root / "well" / "broken.dcm").write_bytes(b"no image")
    (root / "well" / "DICOMDIR").write_bytes((root / "well" / "IM0001").read_bytes())
    return root


def test_files_are_found_with_and_without_a_suffix(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "read_encoded", lambda *_: pytest.fail("an image was decoded"))
    data = opened(folder)
    names = ["ill/a.DCM", "ill/b.dcm", "well/1.2.840.113", "well/IM0001", "well/broken.dcm"]
    assert [s.sample_id for s in data.samples] == names
    assert [s.label for s in data.samples] == [0, 0, 1, 1, 1]
    assert data.classes == ["ill", "well"]
    assert data.left_out == {"files that are not of DICOM": 2, "*.csv": 1}
    assert data.told.startswith("grey values through the VOI LUT or the first window of each file")
    monkeypatch.undo()
    with pytest.raises(UnreadableError, match="not an image of a known format"):
        data.load(4)


def test_the_window_of_the_job_is_that_of_every_file(folder: Path) -> None:
    notes: list[str] = []
    data = opened(folder, window=[40, 400])
    first, second = (np.asarray(data.load(index, notes)) for index in (0, 1))
    np.testing.assert_array_equal(first, second)
    assert set(map(kind_of, notes)) == {"shown through a window"}
    assert data.told == ""
    assert not np.array_equal(np.asarray(opened(folder).load(0)), first)
    full = opened(folder, window="full")
    np.testing.assert_array_equal(np.asarray(full.load(0)), np.asarray(full.load(1)))


def test_a_listing_of_dicom_files_has_labels_boxes_and_a_window(folder: Path, tmp_path: Path) -> None:
    rows = ["file,label,xmin,ymin,xmax,ymax", "ill/a.DCM,x,1,2,3,4", "well/IM0001,y,,,,"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    data = opened(tmp_path / "list.csv", "csv", images=folder, window=[40, 400])
    assert [s.label for s in data.samples] == [0, 1]
    assert data.samples[0].boxes == ((1, 2, 3, 4),)
    expected = np.asarray(opened(folder, window=[40, 400]).load(0))
    np.testing.assert_array_equal(np.asarray(data.load(0)), expected)


@pytest.mark.parametrize("window", [[40], [40, 0], [40, 0.5], "lung", [1, float("inf")]])
def test_windows_that_are_none_are_refused(window: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="window"):
        DatasetSpec.model_validate({"kind": "dicom", "path": tmp_path, "window": window})


def test_without_the_library_the_kind_is_refused_and_a_file_is_a_row(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(dicom, "find_spec", lambda _: None)
    with pytest.raises(
        ValueError, match=r"^dataset\.kind: dicom needs an extra: pip install 'floodlit\[dicom\]'$"
    ):
        opened(folder)
    with pytest.raises(UnreadableError, match="is a DICOM file, which needs an extra"):
        read_image(folder / "ill" / "b.dcm")
