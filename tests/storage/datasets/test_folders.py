"""What lies in a folder of images: which files are images, which are left out, and difficult names."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from storage.datasets.dataset import Dataset
from storage.datasets.formats import suffixes
from storage.datasets.notes import in_words
from storage.datasets.opening import open_dataset
from storage.datasets.spec import DatasetSpec
from storage.files import UnreadableError

SAVED = (
    "jpg",
    "JPEG",
    "ppm",
    "pgm",
    "jp2",
    "webp",
    "bmp",
    "tiff",
    "avif",
    "jfif",
    "PNG",
    "tga",
    "qoi",
    "ico",
)


def opened(path: Path, kind: str = "folder", **keys: object) -> Dataset:
    return open_dataset(DatasetSpec.model_validate({"kind": kind, "path": path, **keys}))


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L" if path.suffix == ".pgm" else "RGB", (16, 16), "white")
    image.save(path, "JPEG" if path.suffix == ".jfif" else None)
    return path


def names(dataset: Dataset) -> list[str]:
    return [sample.sample_id for sample in dataset.samples]


def test_every_format_that_is_decoded_is_taken_in_any_case(tmp_path: Path) -> None:
    for suffix in SAVED:
        save(tmp_path / f"x.{suffix}")
    dataset = opened(tmp_path)
    assert names(dataset) == sorted(f"x.{suffix}" for suffix in SAVED)
    for index in range(len(SAVED)):
        assert np.asarray(dataset.load(index)).min() > 240
    assert dataset.left_out == {}
    assert set(IMG_EXTENSIONS) <= suffixes()
    assert not {".eps", ".ps", ".pdf", ".mpg", ".h5", ".wmf", ".txt", ""} & suffixes()


def test_images_and_labels_are_those_of_image_folder(tmp_path: Path) -> None:
    for name in ("b/x.png", "b/deep/er/y.JPG", "a/z.webp", "a/w.txt"):
        save(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("no image")
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path / "elsewhere" / "linked.png")
    (tmp_path / "set").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).rename(tmp_path / "set" / name)
    (tmp_path / "set" / "a" / "more").symlink_to(tmp_path / "elsewhere")
    dataset, theirs = opened(tmp_path / "set"), ImageFolder(str(tmp_path / "set"))
    ours = {(str(tmp_path / "set" / s.sample_id), s.label) for s in dataset.samples}
    assert ours == set(theirs.samples)
    assert dataset.classes == theirs.classes


def test_what_is_left_out_is_counted_by_suffix(tmp_path: Path) -> None:
    save(tmp_path / "a" / "x.png")
    for name in ("a/n.txt", "a/m.TXT", "a/Thumbs.db", "a/README", "a/._x.png", "a/.DS_Store", "b/only.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    for name in (".git", "__MACOSX"):
        save(tmp_path / name / "x.png")
    dataset = opened(tmp_path)
    assert dataset.classes == ["a", "b"]
    assert names(dataset) == ["a/x.png"]
    assert dataset.left_out == {
        "*.txt": 2,
        "*.db": 1,
        "*.pdf": 1,
        "files without a suffix": 1,
        "hidden files": 2,
        "hidden folders": 2,
        "class folders without an image": 1,
    }
    assert in_words({"*.a": 1, "*.b": 3}) == "3 *.b, 1 *.a"
    (tmp_path / "a" / "x.png").unlink()
    with pytest.raises(ValueError, match=r"there is no image in .*; left out: 2 \*\.txt, .*1 \*\.db"):
        opened(tmp_path)


def test_links_may_form_circles(tmp_path: Path) -> None:
    save(tmp_path / "a" / "x.png")
    save(tmp_path / "b" / "y.png")
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    dataset = opened(tmp_path)
    assert names(dataset) == ["a/to_b/y.png", "a/x.png", "b/to_a/x.png", "b/y.png"]
    assert dataset.left_out == {"links to folders that are read already": 4}


def test_links_that_lead_nowhere_and_pipes_are_images_that_cannot_be_read(tmp_path: Path) -> None:
    save(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "a" / "self.png").symlink_to(tmp_path / "a" / "self.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    dataset = opened(tmp_path)
    assert names(dataset) == ["a/gone.png", "a/pipe.png", "a/self.png", "a/x.png"]
    assert len(dataset.fingerprint) == 64
    for index, told in enumerate(("no such file", "a pipe", "a link to itself")):
        with pytest.raises(UnreadableError, match=told):
            dataset.load(index)
    assert dataset.load(3)


def test_a_name_that_is_not_utf_8_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    raw = os.fsencode(save(tmp_path / "a" / "ok.png").parent) + b"/latin\xff.png"
    Path(os.fsdecode(raw)).write_bytes((tmp_path / "a" / "ok.png").read_bytes())
    dataset = opened(tmp_path)
    assert names(dataset) == [r"a/latin\udcff.png", "a/ok.png"]
    assert all((s.sample_id + s.uri).encode() for s in dataset.samples)
    assert len(dataset.fingerprint) == 64
    with pytest.raises(UnreadableError, match="not UTF-8; rename it"):
        dataset.load(0)


def test_a_listed_name_is_found_however_its_accents_are_composed(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9.png") for form in ("NFC", "NFD"))
    save(tmp_path / decomposed)
    (tmp_path / "l.csv").write_text(f"file,label,mask\n{composed},0,{composed}\n", encoding="utf-8")
    dataset = opened(tmp_path / "l.csv", "csv")
    assert names(dataset) == [composed]
    assert dataset.load(0)
    assert dataset.masks is not None
    assert dataset.masks(0, [])
    (tmp_path / "l.csv").write_text("file,label\n\u00e9.png,0\n", encoding="utf-8")
    with pytest.raises(UnreadableError, match="no such file"):
        opened(tmp_path / "l.csv", "csv").load(0)


def test_a_listed_name_that_no_file_can_have_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(f"file,label\n{'a' * 5000}.png,0\n/dev/zero,0\n")
    dataset = opened(tmp_path / "l.csv", "csv")
    assert len(dataset.fingerprint) == 64
    for index in range(2):
        with pytest.raises(UnreadableError):
            dataset.load(index)


@pytest.mark.parametrize("kind", ["csv", "text", "tensors"])
def test_a_listing_or_table_that_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for path, told in (
        (tmp_path / "pipe.csv", "is a pipe, not a file"),
        (Path("/dev/zero"), "is a device, not a file"),
        (tmp_path, "is a folder, not a file"),
        (tmp_path / "none.csv", "there is no file"),
        (tmp_path / ("a" * 5000), "cannot be looked at"),
    ):
        with pytest.raises(ValueError, match=rf"^dataset\.path: .*{told}") as refusal:
            opened(path, kind)
        assert "\n" not in str(refusal.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a" / "x.png")
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(ValueError, match=r"dataset\.path: .* cannot be listed"):
            opened(tmp_path)
    finally:
        (tmp_path / "a").chmod(0o700)
