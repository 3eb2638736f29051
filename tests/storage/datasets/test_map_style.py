"""Map-style datasets of the user's own: the forms of their items, what is read when, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from flows.job import Job
from places import ROOT
from runs import completed, scores_of, tiny_job
from storage.datasets.dataset import Dataset
from storage.datasets.map_style import MapStyle
from storage.datasets.masks import OBJECT
from storage.datasets.opening import open_dataset
from storage.datasets.reading import Bands, Reading
from storage.datasets.spec import DatasetSpec
from storage.files import UnreadableError
from storage.samples import read_samples

RED = Image.new("RGB", (6, 4), (200, 0, 0))
PIXELS = np.arange(3 * 4 * 6, dtype=np.uint8).reshape(3, 4, 6)


class Listed:
    """A map-style dataset of these items, with these attributes; it counts how often an item is read."""

    def __init__(self, *items: Any, **attributes: Any) -> None:
        self.items, self.reads = items, 0
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]


def opened(data: Any, limit: int | None = None, bands: Bands | None = None) -> Dataset:
    how = Reading(exif="ignore", bands=bands or Bands())
    return MapStyle(data, "set.py:make", how, limit, ["origin"]).dataset()


def labels(dataset: Dataset) -> list[int | None]:
    return [sample.label for sample in dataset.samples]


@pytest.mark.parametrize(
    "image",
    [
        PIXELS,
        torch.from_numpy(PIXELS),
        np.moveaxis(PIXELS, 0, -1),
        PIXELS / 255,
        torch.from_numpy(PIXELS) / 255,
        torch.from_numpy(PIXELS).double().requires_grad_() / 255,
        Image.fromarray(np.moveaxis(PIXELS, 0, -1)),
    ],
    ids=["uint8", "tensor", "hwc", "float64", "float tensor", "with a gradient", "pil"],
)
def test_an_image_is_the_same_in_each_form(image: Any) -> None:
    for item in (image, (image, 1), {"image": image}):
        found = opened(Listed(item)).load(0)
        found = np.moveaxis(np.asarray(found), -1, 0) if isinstance(found, Image.Image) else found
        assert found.dtype == np.uint8
        assert (found == PIXELS).all()


def test_a_model_of_one_band_gets_one_and_floats_stay_floats() -> None:
    grey = PIXELS[0] / np.float32(255)
    found = opened(Listed(grey), bands=Bands(1, None)).load(0)
    assert found.dtype == np.float32
    assert (found == grey[None]).all()


def test_what_a_dict_says_is_known_of_the_sample() -> None:
    boxes = torch.tensor([[1.0, 1, 4, 3], [0, 0, 6, 4]])
    mask = np.zeros((4, 6), bool)
    mask[1:3, 1:4] = True
    item = {
        "image": RED,
        "labels": torch.tensor([2, 0]),
        "boxes": boxes,
        "mask": mask,
        "id": "red",
        "more": 1,
    }
    dataset = opened(Listed(item, item | {"id": 7, "labels": None, "boxes": None, "mask": None}))
    first, second = dataset.samples
    assert (first.sample_id, first.label, first.labels) == ("red", None, (2, 0))
    assert first.boxes == ((1, 1, 4, 3), (0, 0, 6, 4))
    assert (second.sample_id, second.every_label, second.boxes) == ("7", (), ())
    assert first.uri == "set.py:make[0]"
    assert dataset.masks is not None
    assert (np.asarray(dataset.masks(0, [])) == np.where(mask, OBJECT, 0)).all()
    assert dataset.masks(1, []) is None


@pytest.mark.parametrize(
    "mask",
    [
        np.eye(4, 6, dtype=np.int64)[None],
        torch.eye(4, 6) * 255,
        Image.fromarray(np.eye(4, 6, dtype=np.uint8) * 255),
        Image.fromarray(np.eye(4, 6) > 0),
    ],
    ids=["integers", "tensor", "grey", "bits"],
)
def test_a_mask_is_where_it_is_not_0(mask: Any) -> None:
    dataset = opened(Listed({"image": RED, "mask": mask}))
    assert dataset.masks is not None
    assert (np.asarray(dataset.masks(0, [])) == np.eye(4, 6)).all()


@pytest.mark.parametrize(
    ("image", "mask", "told"),
    [
        (RED, np.array([[0, 1], [255, 0]]), "several values besides 0"),
        (RED, Image.fromarray(np.array([[0, 1], [255, 0]], np.uint8)), "several values besides 0"),
        (RED, np.zeros((3, 4, 6)), r"shape \(3, 4, 6\)"),
        (RED, np.array([[np.nan]]), "several values"),
    ],
)
def test_a_mask_that_is_unclear_is_refused(image: Any, mask: Any, told: str) -> None:
    dataset = opened(Listed({"image": image, "mask": mask}))
    assert dataset.masks is not None
    with pytest.raises(UnreadableError, match=told):
        dataset.masks(0, [])


WRONG: list[tuple[Any, str]] = [
    (PIXELS.astype(np.int64), "values of type int64; it is a PIL image"),
    (PIXELS - 1.0, "values from -1 to 70; floats lie within 0..1, and the model normalises them itself"),
    (np.full((3, 4, 6), np.nan), "not finite"),
    (np.zeros((7, 4, 6), np.uint8), r"shape \(7, 4, 6\)"),
    (None, "has an image of type NoneType"),
    ("red.png", "has an image of type str"),
    ((RED, 1, 2), "is a tuple of 3"),
    ((RED, 1.0), r"has the label 1.0 \(float\); a label is one class index"),
    ((RED, True), "has the label True"),
    ((RED, torch.tensor(True)), r"has the label tensor\(True\)"),
    ((RED, "cat"), "has the label 'cat'; give the dataset a list classes"),
    ((RED, {"boxes": []}), "has the label {'boxes'"),
    ((RED, torch.tensor([0, 1])), r"has the label tensor\(\[0, 1\]\)"),
    ((RED, -2), "has the label -2, and labels reach from 0"),
    ({"picture": RED}, "is a dict without the key image; it has picture"),
    ({"image": RED, "bbox": []}, "has the key 'bbox'; call it 'boxes', or leave it out"),
    ({"image": RED, "label": 1, "labels": [1]}, "has both label and labels"),
    ({"image": RED, "labels": [0, 1, 0]}, r"has the labels \[0, 1, 0\] .*each written once"),
    ({"image": RED, "labels": [1, 0]}, "may say of each of two classes whether it is there"),
    ({"image": RED, "labels": 3}, "labels are a list"),
    ({"image": RED, "boxes": [1, 2, 3, 4]}, r"boxes of the shape \(4,\); they are \(boxes, 4\)"),
    ({"image": RED, "boxes": [["1_0", "0", "20", "20"]]}, "which are no numbers"),
    ({"image": RED, "boxes": [[True, False, True, True]]}, "which are no numbers"),
    ({"image": RED, "boxes": [[4, 2, 3, 4]]}, "box 4,2,3,4, which is not xmin,ymin,xmax,ymax"),
    ({"image": RED, "boxes": [[0, 0, 0.5, 0.5]]}, "box 0,0,0.5,0.5 within 0..1; boxes are in pixels"),
    ({"image": RED, "id": 1.5}, "has the id 1.5"),
    (OSError("disk\nis gone"), "raised OSError: disk is gone"),
]


@pytest.mark.parametrize(("item", "told"), WRONG, ids=[told for _, told in WRONG])
def test_an_item_that_is_wrong_is_told_and_the_others_are_read(item: Any, told: str) -> None:
    form = {key: None for key in item if key in {"labels", "boxes", "id"}} if isinstance(item, dict) else {}
    good: Any = {"image": RED, **form} if form else (RED, 1) if isinstance(item, tuple) else RED
    dataset = opened(Listed(good, item, good, good))
    with pytest.raises(UnreadableError, match=told) as failed:
        dataset.load(1)
    assert "\n" not in str(failed.value)
    assert dataset.samples[1].sample_id == "000001"
    assert dataset.load(3) is not None
    with pytest.raises(ValueError, match=rf"^dataset.kind: no item of set.py:make .*: item 0 .*{told}"):
        opened(Listed(item))


def test_items_that_differ_in_form_are_refused_or_fail() -> None:
    with pytest.raises(ValueError, match=r"^dataset.kind: .*item 0 has image, label; item 1 has image;"):
        opened(Listed((RED, 1), RED))
    dataset = opened(Listed({"image": RED}, {"image": RED, "mask": np.eye(4)}, RED, RED))
    with pytest.raises(UnreadableError, match="has image, mask, and others image; give None"):
        dataset.load(1)


def test_random_items_are_refused() -> None:
    random = np.random.default_rng(1)

    class Noise(Listed):
        def __getitem__(self, index: int) -> Any:
            return random.integers(0, 255, (3, 4, 6), np.uint8)

    with pytest.raises(ValueError, match=r"^dataset.kind: item 0 of .* another image each time it is read"):
        opened(Noise(1))


# What is known before items are read


@pytest.mark.parametrize(
    "attributes",
    [
        {"targets": list(range(100))},
        {"labels": torch.arange(100)},
        {"samples": [(f"{label}.png", label) for label in range(100)]},
        {"targets": ["a"] * 100, "labels": np.arange(100)},
    ],
    ids=["targets", "tensor", "samples", "the second"],
)
def test_labels_that_a_dataset_lists_need_no_item(attributes: dict[str, Any]) -> None:
    data = Listed(*((RED, label) for label in range(100)), **attributes)
    dataset = opened(data)
    looked = data.reads
    assert looked <= 6
    assert labels(dataset) == list(range(100))
    assert len(dataset.fingerprint) == 64
    assert data.reads == looked
    assert labels(opened(Subset(data, [7, 8, 90]))) == [7, 8, 90]


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"targets": list(range(1, 101))},
        {"targets": list(range(99))},
        {"targets": [None] * 100},
        {"samples": list(range(100))},
        {"targets": 3},
    ],
    ids=["none", "others", "fewer", "nothing", "no pairs", "a number"],
)
def test_labels_that_no_list_has_are_read_from_the_items_once(attributes: dict[str, Any]) -> None:
    data = Listed(*((RED, label) for label in range(100)), **attributes)
    dataset = opened(data)
    assert data.reads <= 6
    for _ in range(3):
        assert labels(dataset) == list(range(100))
    assert data.reads <= 106


def test_one_item_is_read_once_for_its_facts_its_image_and_its_mask() -> None:
    data = Listed(*({"image": RED, "boxes": [[1, 1, 3, 3]], "mask": np.eye(4)} for _ in range(100)))
    dataset = opened(data)
    before = data.reads
    assert dataset.masks is not None
    for place in (20, 21, 22):
        assert len(dataset.samples[place].boxes) == 1
        dataset.load(place)
        dataset.masks(place, [])
    assert data.reads == before + 3


def test_a_list_that_says_something_else_of_an_item_fails_it() -> None:
    dataset = opened(Listed((RED, 1), (RED, 2), (RED, 3), (RED, 4), targets=[1, 5, 3, 4]))
    assert labels(dataset) == [1, 5, 3, 4]
    with pytest.raises(UnreadableError, match="has the label 2, and targets of the dataset says 5"):
        dataset.load(1)


def test_names_and_numbers_of_classes() -> None:
    dataset = opened(Listed((RED, "cat"), (RED, 0), (RED, -1), classes=["dog", "cat"]))
    assert (labels(dataset), dataset.classes) == ([1, 0, None], ["dog", "cat"])
    assert opened(Listed(RED, classes=[1, 2])).classes == []
    assert opened(Subset(Listed(RED, classes=["dog"]), [0])).classes == ["dog"]
    dataset = opened(Listed((RED, 1), (RED, 2), (RED, 1), (RED, 1), classes=["dog", "cat"]))
    with pytest.raises(UnreadableError, match="label 2, and labels reach from 0 to 1"):
        dataset.load(1)


def test_two_items_of_one_id_are_refused() -> None:
    dataset = opened(Listed(*({"image": RED, "id": name} for name in "abca")))
    with pytest.raises(ValueError, match=r"^dataset.kind: set.py:make\[0\] and set.py:make\[3\] .* 'a'"):
        dataset.fingerprint  # noqa: B018


def test_the_fingerprint_says_what_the_dataset_was() -> None:
    def of(*items: Any, **attributes: Any) -> str:
        return opened(Listed(*items, **attributes)).fingerprint

    plain = of((RED, 1), (RED, 2))
    assert plain == of((RED, 1), (RED, 2), targets=[1, 2])
    blue = Image.new("RGB", (6, 4), (0, 0, 200))
    assert len({plain, of((RED, 1), (RED, 3)), of((RED, 1), (blue, 2)), of((RED, 1))}) == 4
    assert plain != MapStyle(Listed((RED, 1), (RED, 2)), "x", Reading(), None, []).dataset().fingerprint


def test_a_limit_spreads_over_the_items() -> None:
    data = Listed(*((RED, label) for label in range(10)))
    assert labels(opened(data, limit=3)) == [0, 3, 6]
    assert [sample.sample_id for sample in opened(data, limit=3).samples] == ["000000", "000003", "000006"]
    assert len(opened(TensorDataset(torch.zeros(4, 3, 5, 5), torch.arange(4))).samples) == 4


# The key ``kind`` of a job


@pytest.fixture
def code(tmp_path: Path) -> Callable[[str], Path]:
    def written(text: str) -> Path:
        path = tmp_path / "set.py"
        path.write_text(text)
        return path

    return written


SQUARES = """
import numpy as np

class Squares:
    def __init__(self, count, shade=9):
        self.targets = [index % 2 for index in range(count)]
        self.shade = shade

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return np.full((3, 8, 8), self.shade + index, np.uint8), self.targets[index]

class Iterable:
    def __iter__(self):
        return iter(())

number = 3
"""


def test_a_file_beside_the_job_is_found_by_the_job_and_by_a_worker(
    code: Callable[[str], Path], tmp_path: Path
) -> None:
    path = code(SQUARES)
    table = {"kind": "set.py:Squares", "arguments": {"count": 6, "shade": 20}, "limit": 3}
    job = Job.model_validate(tiny_job(tmp_path / "run", dataset=table), context={"folder": tmp_path})
    recorded = job.identity()["dataset"]
    assert recorded == {**table, "kind": f"{path}:Squares"}
    assert hash(job.dataset) == hash(DatasetSpec.model_validate(recorded))
    here = open_dataset(job.dataset)
    assert [(sample.label, sample.uri) for sample in here.samples] == [
        (0, "set.py:Squares[0]"),
        (0, "set.py:Squares[2]"),
        (0, "set.py:Squares[4]"),
    ]
    program = (
        "import json, sys\n"
        "from storage.datasets.opening import open_dataset\n"
        "from storage.datasets.spec import DatasetSpec\n"
        "opened = open_dataset(DatasetSpec.model_validate(json.loads(sys.argv[1])))\n"
        "assert 'torch' not in sys.modules\n"
        "print(opened.fingerprint, opened.load(2)[0, 0, 0])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", program, json.dumps(recorded)]
    told = subprocess.check_output(command, text=True, cwd="/", env=environment)
    assert told.split() == [here.fingerprint, "24"]


def test_the_fingerprint_changes_with_the_code_and_the_arguments(
    code: Callable[[str], Path], tmp_path: Path
) -> None:
    path = code(SQUARES)

    def of(**arguments: Any) -> str:
        table = {"kind": f"{path}:Squares", "arguments": {"count": 4, **arguments}}
        return open_dataset(DatasetSpec.model_validate(table)).fingerprint

    before = of()
    assert before == of()
    assert before != of(shade=9)  # the same images, and another call
    path.write_text(SQUARES + "# more\n")
    assert before != of()


@pytest.mark.parametrize(
    ("kind", "arguments", "told"),
    [
        ("none.py:make", {}, "there is no file .*none.py"),
        (".:make", {}, "cannot load"),
        ("no.such.module:make", {}, "cannot load 'no.such.module:make': No module named 'no'"),
        ("set.py:nothing", {}, "cannot load .*no attribute 'nothing'"),
        ("set.py:number", {}, "is no callable but a int"),
        ("set.py:Squares", {"size": 3}, "raised TypeError: .*unexpected keyword argument 'size'"),
        ("set.py:Iterable", {}, "returned a Iterable, and no map-style dataset"),
        ("set.py:exit", {}, "raised SystemExit: bye"),
    ],
)
def test_a_callable_that_cannot_be_used_is_refused_in_one_line(
    code: Callable[[str], Path], kind: str, arguments: dict[str, Any], told: str
) -> None:
    folder = code(SQUARES + "\ndef exit():\n    raise SystemExit('bye')\n").parent
    spec = DatasetSpec.model_validate({"kind": kind, "arguments": arguments})
    spec = spec.with_paths(lambda path: folder / path)
    with pytest.raises(ValueError, match=f"^dataset.kind: .*{told}") as refused:
        open_dataset(spec)
    assert "\n" not in str(refused.value)


def test_no_items_and_wrong_keys_are_refused(code: Callable[[str], Path], tmp_path: Path) -> None:
    kind = f"{code(SQUARES)}:Squares"
    with pytest.raises(ValueError, match=r'there is no image in the dataset of the kind ".*set.py:Squares"'):
        open_dataset(DatasetSpec.model_validate({"kind": kind, "arguments": {"count": 0}}))
    with pytest.raises(ValueError, match=r"Squares\" does not take the key path; it takes arguments, limit"):
        DatasetSpec.model_validate({"kind": kind, "path": "x"})
    raw = tiny_job(tmp_path / "run", dataset={"kind": kind, "arguments": {"api_token": "x"}})
    with pytest.raises(
        ValueError, match=r"dataset.arguments.api_token: holds a password or a token, .*variable"
    ):
        Job.model_validate(raw)


def test_arguments_that_a_worker_would_get_as_texts_are_refused() -> None:
    """As a date, which the run's record does not keep: workers would call the callable otherwise."""
    with pytest.raises(ValueError, match=r"arguments\n.*type date is not JSON.*; write dates and times as"):
        DatasetSpec.model_validate({"kind": "set.py:Squares", "arguments": {"since": date(2020, 1, 1)}})


DIGITS = """
from storage.datasets import digits

class Own:
    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == 4:
            raise OSError("gone")
        made = digits.sample("test", index, 0)
        return {"image": made.image, "label": made.label, "boxes": [made.box], "mask": made.mask}
"""


def test_a_whole_job_gives_what_the_same_images_give_as_another_kind(
    code: Callable[[str], Path], tmp_path: Path
) -> None:
    path = code(DIGITS)
    changes: dict[str, Any] = {"explainers": [{"name": "gradcam"}], "controls": False}
    changes["metrics"] = [{"name": "pointing_game"}, {"name": "pixel_precision"}]
    tables = {"own": {"kind": f"{path}:Own"}, "digits": {"kind": "digits", "limit": 6}}
    own, other = (
        completed(tiny_job(tmp_path / name, dataset=each, **changes)) for name, each in tables.items()
    )
    here, there = (read_samples(run.root) for run in (own, other))
    kept = [0, 1, 2, 3, 5]
    assert [row["status"] for row in here] == ["ok"] * 4 + ["failed", "ok"]
    assert here[4]["error"] == "UnreadableError: raised OSError: gone"
    for key in ("label", "boxes"):
        assert [here[row][key] for row in kept] == [there[row][key] for row in kept]
    for array in ("inputs", "masks"):
        made, wanted = (zarr.open_array(run.root / f"{array}.zarr", mode="r")[:] for run in (own, other))
        assert (made[kept] == wanted[kept]).all()
    scores, wanted_scores = scores_of(own.root), scores_of(other.root)
    compared = [key for key in scores if key[0] != "000004"]
    assert len(compared) == 5 * len(own.columns)
    for sample, *rest in compared:
        assert scores[sample, *rest] == wanted_scores[f"test/{sample}", *rest]
