"""Datasets of Hugging Face's library: folders that it wrote or reads, splits, columns, and no network."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import numpy as np
import pytest
from PIL import Image

from packed import as_parquet, as_saved, as_table, photographs
from storage.datasets import column_facts, hugging_face
from storage.datasets.dataset import Dataset
from storage.datasets.opening import open_dataset
from storage.datasets.spec import DatasetSpec
from storage.files import UnreadableError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, and no network."""

    def away(*where: Any, **how: Any) -> Any:
        raise AssertionError(f"asked the network for {where[0]}")

    monkeypatch.setattr(socket, "getaddrinfo", away)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(**keys: Any) -> Dataset:
    return open_dataset(DatasetSpec.model_validate({"kind": "huggingface", **keys}))


def refused(**keys: Any) -> str:
    with pytest.raises(ValueError, match=r"^dataset[.:]") as caught:
        opened(**keys)
    told = str(caught.value)
    assert "\n" not in told
    return told


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return photographs(tmp_path / "files")


def made(**columns: tuple[Any, list[Any]]) -> datasets.Dataset:
    """A dataset of columns, each with its feature."""
    features = datasets.Features({name: feature for name, (feature, _) in columns.items()})
    return datasets.Dataset.from_dict(
        {name: cells for name, (_, cells) in columns.items()}, features=features
    )


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)) for _ in range(count)]


@pytest.mark.parametrize("form", ["saved", "parquet", "class folders"])
def test_images_are_those_of_the_folder_and_labels_those_of_the_library(
    form: str, root: Path, tmp_path: Path
) -> None:
    folder = open_dataset(DatasetSpec.model_validate({"kind": "folder", "path": root}))
    pack = {"saved": as_saved, "parquet": as_parquet, "class folders": lambda *_: root}[form]
    data = opened(path=pack(root, tmp_path / "packed"))
    assert [s.label for s in data.samples] == [s.label for s in folder.samples]
    assert data.classes == folder.classes
    # The others have plain names, or numbers that the library gave to sorted names.
    assert data.published == (form == "saved")
    if form != "class folders":
        assert [s.sample_id for s in data.samples] == [s.sample_id for s in folder.samples]
    for index in range(len(data.samples)):
        ours, theirs = [], []
        try:
            expected = np.asarray(folder.load(index, theirs))
        except UnreadableError as error:
            with pytest.raises(UnreadableError, match=str(error)):
                data.load(index)
            continue
        np.testing.assert_array_equal(np.asarray(data.load(index, ours)), expected)
        assert ours == theirs


def test_plain_images_and_labels_are_those_that_the_library_gives(tmp_path: Path) -> None:
    classes = datasets.ClassLabel(names=["zebra", "ant"])
    made(image=(datasets.Image(), pictures(4)), animal=(classes, [1, 0, -1, None])).save_to_disk(
        tmp_path / "x"
    )
    data, theirs = opened(path=tmp_path / "x"), datasets.load_from_disk(str(tmp_path / "x"))
    for index in range(4):
        np.testing.assert_array_equal(np.asarray(data.load(index)), np.asarray(theirs[index]["image"]))
    assert [s.label for s in data.samples] == [1, 0, None, None]
    assert data.classes == ["zebra", "ant"] == theirs.features["animal"].names
    assert data.samples[3].uri == "x#000003"
    assert "label from animal (found by its type)" in data.told


def test_numbers_of_class_folders_stay_those_of_sorted_names_when_they_are_saved(
    root: Path, tmp_path: Path
) -> None:
    datasets.load_dataset(str(root), split="train").save_to_disk(tmp_path / "saved")
    data = opened(path=tmp_path / "saved")
    assert data.classes == ["bird", "cat", "dog"]
    assert not data.published


def test_two_class_labels_are_not_guessed(tmp_path: Path) -> None:
    fine, coarse = datasets.ClassLabel(names=["a", "b"]), datasets.ClassLabel(names=["c"])
    columns = {"img": (datasets.Image(), pictures(2)), "fine": (fine, [1, 0]), "coarse": (coarse, [0, 0])}
    made(**columns).save_to_disk(tmp_path / "x")
    data = opened(path=tmp_path / "x")
    assert [s.label for s in data.samples] == [None, None]
    assert "no column of labels; fine and coarse may be, named in dataset.label" in data.told
    assert [s.label for s in opened(path=tmp_path / "x", label="fine").samples] == [1, 0]


def test_metadata_beside_images_gives_labels_and_boxes(tmp_path: Path) -> None:
    (tmp_path / "set" / "train").mkdir(parents=True)
    lines = []
    for number, picture in enumerate(pictures(3)):
        picture.save(tmp_path / "set" / "train" / f"{number}.png")
        objects = {"bbox": [[1, 2, 3, 4]] * number, "kind": [f"k{each}" for each in range(number)]}
        lines.append(
            json.dumps({"file_name": f"{number}.png", "label": "ba"[number % 2], "objects": objects})
        )
    (tmp_path / "set" / "train" / "metadata.jsonl").write_text("\n".join(lines))
    data = opened(path=tmp_path / "set", box_format="xywh")
    assert data.told.startswith(
        "split train, image from image (found by its type), label from label (found by"
    )
    assert ([s.label for s in data.samples], data.classes) == ([1, 0, 1], ["a", "b"])
    assert [s.boxes for s in data.samples] == [(), ((1, 2, 4, 6),), ((1, 2, 4, 6),) * 2]
    np.testing.assert_array_equal(np.asarray(data.load(2)), np.asarray(pictures(3)[2]))
    data = opened(path=tmp_path / "set", labels="objects.kind")
    assert [s.labels for s in data.samples] == [(), (0,), (0, 1)]
    detection = opened(path=tmp_path / "set", labels="objects.kind", box_format="xywh")
    assert [s.box_labels for s in detection.samples] == [(), (0,), (0, 1)]
    before = data.fingerprint
    path = tmp_path / "set" / "train" / "2.png"
    path.write_bytes(path.read_bytes() + b"\0")
    assert opened(path=tmp_path / "set", labels="objects.kind").fingerprint != before
    path.unlink()
    with pytest.raises(UnreadableError, match="there is no such file"):
        data.load(2)


def test_splits_and_subsets_are_named_where_there_are_several(root: Path, tmp_path: Path) -> None:
    one = datasets.load_from_disk(str(as_saved(root, tmp_path / "one")))
    datasets.DatasetDict(train=one, test=one.select(range(4))).save_to_disk(tmp_path / "both")
    both = tmp_path / "both"
    assert refused(path=both) == f"dataset.split: {both} has the splits train, test; name one"
    assert refused(path=both, split="val") == f"dataset.split: {both} has no split val, but train, test"
    assert len(opened(path=both, split="test").samples) == 4
    assert refused(path=both, split="test", subset="a").startswith("dataset.subset:")
    assert refused(path=tmp_path / "one", split="test").endswith("holds one split, without a name")
    (tmp_path / "rows").mkdir()
    for split, rows in {"train": 3, "test": 10}.items():
        datasets.Dataset(as_table(root).slice(0, rows)).to_parquet(
            tmp_path / "rows" / f"{split}-00000-of-00001.parquet"
        )
    rows = tmp_path / "rows"
    assert refused(path=rows) == f"dataset.split: {rows} has the splits train, test; name one"
    assert len(opened(path=rows, split="train").samples) == 3
    assert len(opened(path=rows, split="test[:50%]").samples) == 5
    assert refused(path=rows, subset="en", split="train").startswith(
        f"dataset.subset: {rows} has no subset en"
    )


def test_a_repository_is_read_from_the_cache(
    root: Path, tmp_path: Path, cache: Path, monkeypatch: Any
) -> None:
    opened(path=as_parquet(root, tmp_path / "birds"))
    shutil.move(cache / "birds", cache / "someone___birds")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    data = opened(name="someone/birds")
    assert len(data.samples) == 10
    assert data.samples[9].uri == "birds/train#000009"
    assert refused(name="someone/birds", split="test").startswith(
        "dataset.split: someone/birds has no split test"
    )
    assert refused(name="someone/none").startswith("dataset.name: someone/none cannot be opened: ")


@pytest.mark.parametrize(
    "keys", [{}, {"name": "a/b", "path": "c"}, {"path": "c", "revision": "main"}, {"path": "c", "boxes": "b"}]
)
def test_keys_that_do_not_agree_are_refused(keys: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"needs the key|is for a repository"):
        DatasetSpec.model_validate({"kind": "huggingface", **keys})


def test_what_cannot_be_opened_is_refused_in_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "empty").mkdir()
    assert refused(path=tmp_path / "empty").startswith(f"dataset.path: {tmp_path}/empty cannot be opened: ")
    assert "there is no folder" in refused(path=tmp_path / "none")
    assert "not S3" in refused(path="s3://bucket/folder")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "dataset_info.json").write_text("{")
    assert refused(path=tmp_path / "damaged").startswith(f"dataset.path: {tmp_path}/damaged cannot be opened")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "x.parquet").write_bytes(b"no table")
    assert refused(path=tmp_path / "rows").startswith(f"dataset.path: {tmp_path}/rows cannot be opened")
    made(text=(datasets.Value("string"), ["a"])).save_to_disk(tmp_path / "texts")
    assert refused(path=tmp_path / "texts").startswith("dataset.image: ")
    monkeypatch.setattr(hugging_face, "find_spec", lambda _: None)
    assert refused(path=tmp_path) == (
        "dataset.kind: huggingface needs an extra: pip install 'floodlit[huggingface]'"
    )


def test_opening_decodes_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = as_saved(root, tmp_path / "saved")
    monkeypatch.setattr(column_facts, "read_encoded", lambda *_: pytest.fail("an image was decoded"))
    monkeypatch.setattr(
        datasets.Image, "decode_example", lambda *_: pytest.fail("the library decoded an image")
    )
    data = opened(path=saved, limit=4)
    assert len(data.samples) == 4
    assert data.fingerprint


def test_the_fingerprint_tells_other_images_and_labels(root: Path, tmp_path: Path) -> None:
    prints = {opened(path=as_saved(root, tmp_path / "a")).fingerprint}
    assert opened(path=as_saved(root, tmp_path / "b")).fingerprint in prints
    (root / "dog" / "cut.png").write_bytes(b"other bytes")
    prints.add(opened(path=as_saved(root, tmp_path / "c")).fingerprint)
    (root / "dog" / "cut.png").rename(root / "cat" / "cut.png")
    prints.add(opened(path=as_saved(root, tmp_path / "d")).fingerprint)
    assert len(prints) == 3
