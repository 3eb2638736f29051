"""Datasets that change after a job was planned: workers refuse them, and items that changed later."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from packed import as_parquet, as_tars, photographs
from runs import model, prepared, tiny_job
from storage.datasets.dataset import Dataset
from storage.datasets.index import keep_index
from storage.datasets.opening import ChangedDatasetError, open_again, open_dataset
from storage.datasets.reading import RGB
from storage.datasets.spec import DatasetSpec
from storage.files import UnreadableError
from tasks.inputs import inputs

Change = Callable[[Path], object]


def picture(path: Path, shade: int, size: tuple[int, int] = (9, 7)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 0)).save(path)


def folder(root: Path) -> dict[str, Any]:
    for name in ("a", "b", "c"):
        picture(root / "x" / f"{name}.png", 9)
    return {"kind": "folder", "path": str(root)}


def listing(root: Path) -> dict[str, Any]:
    folder(root)
    (root / "list.csv").write_text("file,label\nx/a.png,one\nx/b.png,two\n")
    return {"kind": "csv", "path": str(root / "list.csv")}


def texts(root: Path) -> dict[str, Any]:
    root.mkdir()
    (root / "texts.csv").write_text("text,label\ngood,1\nbad,0\n")
    return {"kind": "text", "path": str(root / "texts.csv")}


def numbers(root: Path) -> dict[str, Any]:
    root.mkdir()
    np.save(root / "rows.npy", np.arange(12.0).reshape(4, 3))
    return {"kind": "tensors", "path": str(root / "rows.npy")}


def table(root: Path) -> dict[str, Any]:
    return {"kind": "parquet", "path": str(as_parquet(photographs(root / "files"), root / "packed"))}


def tars(root: Path) -> dict[str, Any]:
    return {"kind": "webdataset", "path": str(as_tars(photographs(root / "files"), root / "packed"))}


def swapped(root: Path) -> None:
    (root / "list.csv").write_text("file,label\nx/b.png,two\nx/a.png,one\n")


def without_last(root: Path) -> None:
    path = root / "packed" / "part-00.parquet"
    pq.write_table(pq.read_table(path).slice(1), path, row_group_size=2)


CHANGES: list[tuple[Callable[[Path], dict[str, Any]], Change]] = [
    (folder, lambda root: picture(root / "x" / "0.png", 9)),  # comes first, so that every row is another
    (folder, lambda root: (root / "x" / "b.png").unlink()),
    (folder, lambda root: picture(root / "x" / "b.png", 9, (90, 70))),
    (listing, swapped),
    (listing, lambda root: (root / "list.csv").write_text("file,label\nx/a.png,two\nx/b.png,one\n")),
    (listing, lambda root: (root / "list.csv").write_text("file\nx/a.png\n")),
    (texts, lambda root: (root / "texts.csv").write_text("text,label\nbad,1\ngood,0\n")),
    (numbers, lambda root: np.save(root / "rows.npy", np.arange(12.0).reshape(4, 3) + 1)),
    (table, without_last),
    (tars, lambda root: (root / "packed" / "shard-000000.tar").unlink()),
]


@pytest.mark.parametrize(("kind", "change"), CHANGES)
def test_a_worker_refuses_a_dataset_that_changed(
    kind: Callable[[Path], dict[str, Any]], change: Change, tmp_path: Path
) -> None:
    spec = DatasetSpec.model_validate(kind(tmp_path / "data"))
    planned = open_dataset(spec)
    keep_index(tmp_path, planned)
    assert list(open_again(spec, RGB, tmp_path, planned.fingerprint).samples) == list(planned.samples)
    change(tmp_path / "data")
    with pytest.raises(ChangedDatasetError, match=r"^dataset\.path: .*give the job another store$") as caught:
        open_again(spec, RGB, tmp_path, planned.fingerprint)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_step_over_a_changed_listing_writes_nothing(tmp_path: Path) -> None:
    dataset = listing(tmp_path / "data")
    network = model("gap") | {"resize": 40, "crop": 40}
    metrics = [{"name": "insertion", "steps": 2}]
    run = prepared(tiny_job(tmp_path / "run", dataset=dataset, model=network, metrics=metrics))
    swapped(tmp_path / "data")
    with pytest.raises(ChangedDatasetError, match="is not what it was when the job was planned"):
        inputs.fn(str(run.root), 0)
    assert not run.finished()


def test_a_dataset_of_items_that_say_what_they_are_is_not_read_twice(tmp_path: Path) -> None:
    """The first, the middle and the last item are looked at in any case."""
    (tmp_path / "counted.py").write_text(
        "import numpy as np\n"
        "class Counted:\n"
        "    read = 0\n"
        "    def __len__(self):\n"
        "        return 50\n"
        "    def __getitem__(self, index):\n"
        "        Counted.read += 1\n"
        "        return {'image': np.full((4, 4, 3), index, np.uint8), 'id': str(index)}\n"
        "def reads():\n"
        "    return Counted.read\n"
    )
    spec = DatasetSpec.model_validate({"kind": f"{tmp_path}/counted.py:Counted"})
    opened = open_again(spec, RGB, tmp_path, "of another dataset")
    assert opened.reads_all
    counted = type(opened._load.__closure__[0].cell_contents._data)  # type: ignore[index]
    assert counted.read <= 6


# Files that change while a worker has the dataset open


def load(dataset: Dataset, index: int) -> str:
    with pytest.raises(UnreadableError) as caught:
        dataset.load(index)
    return str(caught.value)


def test_an_image_that_changes_under_an_open_dataset_is_a_row_with_this_error(tmp_path: Path) -> None:
    opened = open_dataset(DatasetSpec.model_validate(folder(tmp_path)))
    assert opened.fingerprint
    before = (tmp_path / "x" / "b.png").stat().st_size
    picture(tmp_path / "x" / "b.png", 9, (90, 70))
    after = (tmp_path / "x" / "b.png").stat().st_size
    told = f"the file changed after the job was planned: it had {before} bytes and has {after}"
    assert load(opened, 1) == told
    assert np.asarray(opened.load(2)).shape == (7, 9, 3)


def test_a_mask_that_changes_under_an_open_dataset_is_noticed(tmp_path: Path) -> None:
    folder(tmp_path)
    Image.new("L", (9, 7), 1).save(tmp_path / "mask.png")
    (tmp_path / "list.csv").write_text("file,label,mask\nx/a.png,one,mask.png\n")
    opened = open_dataset(DatasetSpec.model_validate({"kind": "csv", "path": str(tmp_path / "list.csv")}))
    assert opened.fingerprint
    assert opened.mask(0, (9, 7), []) is not None
    Image.effect_noise((9, 7), 50).save(tmp_path / "mask.png")
    with pytest.raises(UnreadableError, match=r"its mask mask\.png: the file changed after the job"):
        opened.mask(0, (9, 7), [])


@pytest.mark.parametrize(("kind", "file"), [(table, "part-01.parquet"), (tars, "shard-000001.tar")])
def test_a_packed_file_that_changes_under_an_open_dataset_is_noticed(
    kind: Callable[[Path], dict[str, Any]], file: str, tmp_path: Path
) -> None:
    opened = open_dataset(DatasetSpec.model_validate(kind(tmp_path)))
    path = tmp_path / "packed" / file
    opened.load(4)
    opened.load(0)
    os.utime(path, (1, 1))  # the same size
    assert load(opened, 5) == f"{file} changed after the job was planned"
    opened.load(1)


def test_parts_of_a_table_in_memory_do_not_depend_on_the_file(tmp_path: Path) -> None:
    spec = DatasetSpec.model_validate(texts(tmp_path / "data"))
    opened = open_dataset(spec)
    (tmp_path / "data" / "texts.csv").write_text("text,label\nbad,1\ngood,0\n")
    assert [opened.load(0), opened.load(1)] == ["good", "bad"]
