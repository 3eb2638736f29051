"""COCO as pycocotools reads it: labels, boxes and masks of each class, and what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from object_store import ObjectStore
from storage.datasets.coco_file import Annotated, Described, masks_of, read_coco
from storage.datasets.dataset import Dataset
from storage.datasets.index import keep_index
from storage.datasets.kinds import coco as kinds_coco
from storage.datasets.masks import BACKGROUND, IGNORED, OBJECT
from storage.datasets.opening import ChangedDatasetError, open_again, open_dataset
from storage.datasets.reading import RGB
from storage.datasets.spec import DatasetSpec
from storage.files import UnreadableError
from storage.places import place

SIZE = (40, 24)
WIDE = (30, 10)
CATEGORIES = [(90, "toothbrush"), (1, "person"), (13, "stop sign")]  # ids with gaps, in no order


def compressed(region: np.ndarray) -> dict[str, Any]:
    found = coco_mask.encode(np.asfortranarray(region.astype(np.uint8)))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def uncompressed(region: np.ndarray) -> dict[str, Any]:
    """The lengths of the runs of zeros and ones, column by column, zeros first."""
    flat = region.T.ravel().astype(np.int8)
    ends = np.flatnonzero(np.diff(flat, prepend=0, append=2 if flat[-1] == 0 else -1))
    return {"size": list(region.shape), "counts": np.diff(ends, prepend=0).tolist()}


def region(rows: slice, columns: slice) -> np.ndarray:
    found = np.zeros((SIZE[1], SIZE[0]), bool)
    found[rows, columns] = True
    return found


TRIANGLE = [[2.0, 2.0, 20.5, 2.0, 2.0, 15.5]]
CROWD = region(slice(0, 12), slice(0, 40))
BRUSH = region(slice(5, 20), slice(25, 30))


def instances() -> dict[str, Any]:
    """What COCO's file of instances holds; the images are listed in another order than that of their ids."""
    images = [(42, "000000000042.jpg", WIDE), (7, "000000000007.jpg", SIZE), (9, "000000000009.jpg", SIZE)]
    objects = [
        (7, 1, [2.0, 2.0, 18.5, 13.5], TRIANGLE, 0),
        (7, 90, [25.0, 5.0, 5.0, 15.0], compressed(BRUSH), 0),
        (7, 1, [0.25, 20.0, 3.5, 2.0], [[0.25, 20, 3.75, 20, 3.75, 22, 0.25, 22]], 0),
        (7, 1, [0.0, 0.0, 40.0, 12.0], uncompressed(CROWD), 1),
        (42, 13, [1.5, 2.0, 3.0, 4.25], [[1.5, 2, 4.5, 2, 4.5, 6.25]], 0),
    ]
    return {
        "info": {},
        "images": [
            {"id": number, "file_name": name, "width": size[0], "height": size[1]}
            for number, name, size in images
        ],
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES],
        "annotations": [
            {"id": 100 + place_, "image_id": image, "category_id": category, "bbox": box, "area": 1.0}
            | {"segmentation": segmentation, "iscrowd": crowd}
            for place_, (image, category, box, segmentation, crowd) in enumerate(objects)
        ],
    }


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    (tmp_path / "val2017").mkdir()
    for image in instances()["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(tmp_path / "val2017" / image["file_name"])
    (tmp_path / "instances.json").write_text(json.dumps(instances()))
    return tmp_path


def opened(root: Path, **keys: Any) -> Dataset:
    table = {"kind": "coco", "path": root / "instances.json", "images": root / "val2017", **keys}
    return open_dataset(DatasetSpec.model_validate(table))


def test_numbers_are_published_for_the_classes_of_coco_alone(coco: Path) -> None:
    """Other sets are written in its format, and their numbers are not those of a model without names."""
    assert not opened(coco).published
    ids = sorted({*range(1, 91)} - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
    names = {1: "person", 90: "toothbrush"}
    for first, whole in (("person", True), ("car", False)):
        categories = [{"id": each, "name": (names | {1: first}).get(each, f"c{each}")} for each in ids]
        (coco / "instances.json").write_text(json.dumps({**instances(), "categories": categories}))
        assert (opened(coco).published, len(opened(coco).classes)) == (whole, 80)


def test_a_worker_reads_what_the_plan_found_and_not_the_file(
    coco: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DatasetSpec.model_validate(
        {"kind": "coco", "path": coco / "instances.json", "images": coco / "val2017"}
    )
    planned = open_dataset(spec)
    # The hash of what the file says, as it was before there was an index: an earlier run is the same run.
    told = json.dumps(
        [
            (i.file, i.size, [(o.label, o.box, o.crowd, o.segmentation) for o in i.objects])
            for i in read_coco(coco / "instances.json", list).images
        ],
        sort_keys=True,
    )
    assert planned._contents()[-1] == hashlib.sha256(told.encode()).hexdigest()
    keep_index(coco, planned)
    with monkeypatch.context() as patched:
        patched.setattr(kinds_coco, "read_coco", lambda *_: pytest.fail("the file was read"))
        again = open_again(spec, RGB, coco, planned.fingerprint)
    assert again.samples == planned.samples
    assert (again.classes, again.left_out) == (planned.classes, planned.left_out)
    for row, sample in enumerate(planned.samples):
        first, second = (each.mask(row, SIZE if row < 2 else WIDE, []) for each in (planned, again))
        assert (first is None) == (second is None) == (not sample.labels)
        if first is not None:
            np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
    (coco / "instances.json").write_text(json.dumps(instances() | {"annotations": []}))
    with pytest.raises(ChangedDatasetError, match=r"^dataset\.path: .*instances\.json is not what it was"):
        open_again(spec, RGB, coco, planned.fingerprint)


def test_objects_and_their_classes_are_those_of_pycocotools(coco: Path) -> None:
    found, theirs = opened(coco), COCO(str(coco / "instances.json"))
    assert found.classes == ["person", "stop sign", "toothbrush"]
    number = {category: place_ for place_, category in enumerate(sorted(theirs.getCatIds()))}
    assert [sample.sample_id for sample in found.samples] == [
        theirs.imgs[image]["file_name"] for image in sorted(theirs.getImgIds())
    ]
    for sample, image in zip(found.samples, sorted(theirs.getImgIds()), strict=True):
        single = theirs.loadAnns(theirs.getAnnIds(imgIds=image, iscrowd=False))
        assert sample.boxes == tuple((x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in single))
        assert sample.box_labels == tuple(number[a["category_id"]] for a in single)
        everything = theirs.loadAnns(theirs.getAnnIds(imgIds=image))
        assert sample.labels == tuple(sorted({number[a["category_id"]] for a in everything}))
    assert [sample.labels for sample in found.samples] == [(0, 2), (), (1,)]
    assert found.left_out == {"boxes of crowds": 1}
    assert [sample.sample_id for sample in opened(coco, limit=1).samples] == ["000000000007.jpg"]


def test_masks_are_the_union_of_a_classs_objects_over_its_ignored_crowds(coco: Path) -> None:
    found, theirs = opened(coco), COCO(str(coco / "instances.json"))
    assert found.masks is not None
    assert found.masks_by_label
    person, brush = np.asarray(found.masks(0, []))
    drawn = {
        (a["category_id"], a["iscrowd"]): theirs.annToMask(a).astype(bool)
        for a in theirs.loadAnns(theirs.getAnnIds(imgIds=7))
        if a["id"] != 100
    }
    triangle = theirs.annToMask(theirs.anns[100]).astype(bool)
    objects = triangle | drawn[1, 0]
    assert (drawn[1, 1] == CROWD).all()
    assert (person == np.where(objects, OBJECT, np.where(CROWD, IGNORED, BACKGROUND))).all()
    assert {BACKGROUND, OBJECT, IGNORED} == set(np.unique(person))
    # The crowd is one of persons, and does not matter for toothbrushes.
    assert (brush == np.where(BRUSH, OBJECT, BACKGROUND)).all()
    # The triangle has about half of its box, in rows and columns that are not exchanged.
    assert 0.4 < triangle.sum() / (18.5 * 13.5) < 0.6
    assert triangle[3, 17]
    assert not triangle[14, 17]
    assert np.asarray(found.masks(2, [])).shape == (1, WIDE[1], WIDE[0])
    assert found.masks(1, []) is None


def test_an_image_of_another_size_is_an_error_of_that_image(coco: Path) -> None:
    found = opened(coco)
    with pytest.raises(UnreadableError, match="of an image of 40x24, and this one is 20x12"):
        found.boxes(0, (20, 12), [])
    assert found.objects(2, WIDE, []) == [((1.5, 2.0, 4.5, 6.25), 1)]


def test_a_segmentation_that_cannot_be_drawn_is_an_error_of_its_image(coco: Path) -> None:
    for segmentation, message in (
        ([], "an object has no segmentation"),
        ([[1.0, 2.0]], "a polygon that is none"),
        ({"size": [9, 9], "counts": [81]}, "is in 9x9 pixels, of 40x24"),
        ({"size": [24, 40]}, "its mask: KeyError"),
        ({"size": [24, 40], "counts": [5]}, "the runs of an object are not 960 pixels"),
        ({"size": [24, 40], "counts": [0, 10**6]}, "the runs of an object are not 960 pixels"),
        ({"size": [24, 40], "counts": [-1, 961]}, "the runs of an object are not 960 pixels"),
        ({"size": [24, 40], "counts": "zzzz"}, "the runs of an object are not 960 pixels"),
        ([[1, 1, 9, 9]], "a polygon that is none"),
        ([[1, 1, 9, 9, float("nan"), 3]], "a polygon that is none"),
    ):
        told = instances()
        told["annotations"][0]["segmentation"] = segmentation
        (coco / "instances.json").write_text(json.dumps(told))
        found = opened(coco)
        assert found.masks is not None
        with pytest.raises(UnreadableError, match=message):
            found.masks(0, [])
        assert np.asarray(found.masks(2, [])).any()


@settings(max_examples=60)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=70)))
def test_compressed_and_plain_runs_are_the_region_that_pycocotools_packed(wanted: np.ndarray) -> None:
    size = wanted.shape[1], wanted.shape[0]
    for packed in (compressed(wanted), uncompressed(wanted)):
        one = Described("a.jpg", size, [Annotated(0, (0, 0, 1, 1), False, packed)])
        assert (masks_of(one, [0])[0] == wanted).all()


def test_a_changed_segmentation_is_another_dataset(coco: Path) -> None:
    before = opened(coco)
    told = instances()
    told["annotations"][0]["segmentation"] = [[3.0, *TRIANGLE[0][1:]]]
    (coco / "instances.json").write_text(json.dumps(told))
    assert opened(coco).fingerprint != before.fingerprint
    told = instances()
    told["info"] = {"year": 2017}
    (coco / "instances.json").write_text(json.dumps(told, indent=1))
    assert opened(coco).fingerprint == before.fingerprint


def test_a_file_without_segmentations_has_no_masks(coco: Path) -> None:
    told = instances()
    for annotation in told["annotations"]:
        del annotation["segmentation"], annotation["iscrowd"]
    (coco / "instances.json").write_text(json.dumps(told))
    found = opened(coco)
    assert found.masks is None
    assert [len(sample.boxes) for sample in found.samples] == [4, 0, 1]


def test_the_set_is_read_from_s3_and_nothing_is_decoded_to_open_it(coco: Path, s3: ObjectStore) -> None:
    (coco / "val2017/000000000042.jpg").write_bytes(b"no image")
    here = opened(coco)
    there: Any = place(s3.empty())
    there.fs.put(f"{coco}/", f"{there.path}/", recursive=True)
    found = opened(there)
    assert list(found.samples[0].boxes) == list(here.samples[0].boxes)
    assert found.fingerprint == here.fingerprint
    assert np.array_equal(np.asarray(found.load(0)), np.asarray(here.load(0)))


def test_what_is_no_file_of_instances_is_refused_in_one_line(coco: Path) -> None:
    wrong = {
        "no lists images, annotations, categories": [1, 2],
        "an entry has no 'category_id'": {
            **instances(),
            "annotations": [{"id": 1, "image_id": 7, "caption": "a street"}],
        },
        "the category 5 of an annotation is not listed": {
            **instances(),
            "annotations": [{"image_id": 7, "category_id": 5, "bbox": [0, 0, 1, 1]}],
        },
        r"the box \[0, 0, -1, 1\] is not x, y, width and height": {
            **instances(),
            "annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, -1, 1]}],
        },
        "two categories have one id": {**instances(), "categories": [{"id": 1, "name": "a"}] * 2},
        "two images have one id": {  # as of two files that were put together
            **instances(),
            "images": [*instances()["images"], {**instances()["images"][0], "file_name": "other.jpg"}],
        },
        "lists 1 files more than once": {
            **instances(),
            "images": [*instances()["images"], {**instances()["images"][0], "id": 1}],
        },
    }
    for message, told in wrong.items():
        (coco / "instances.json").write_text(json.dumps(told))
        with pytest.raises(ValueError, match=rf"dataset.path: .*{message}") as refused:
            opened(coco)
        assert "\n" not in str(refused.value)
    (coco / "instances.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset.path: .*is not COCO's file of instances"):
        opened(coco)
    (coco / "instances.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"dataset.path: .*nested too deeply"):
        opened(coco)


def with_boxes(*boxes: object, **more: object) -> str:
    """A file whose only annotations, of one image, have these boxes."""
    objects = [{"image_id": 7, "category_id": 1, "bbox": box, **more} for box in boxes]
    return json.dumps({**instances(), "annotations": objects})


@pytest.mark.parametrize("box", [["1_0", 0, 5, 5], [True, 0, 5, 5], [10**400, 0, 5, 5], None, [1, 2, 3]])
def test_a_box_of_other_values_than_numbers_is_refused(coco: Path, box: object) -> None:
    (coco / "instances.json").write_text(with_boxes(box))
    with pytest.raises(ValueError, match=r"dataset.path: .* is not x, y, width and height"):
        opened(coco)


def test_boxes_in_shares_of_their_image_are_refused(coco: Path) -> None:
    (coco / "instances.json").write_text(with_boxes([0.5, 0.25, 0.25, 0.5], [0.0, 0.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match=r"all boxes lie within 0..1, .* 0.5,0.25,0.25,0.5 for 0000.*7.jpg"):
        opened(coco)
    (coco / "instances.json").write_text(with_boxes([0.5, 0.25, 0.25, 0.5], [2.0, 3.0, 10.0, 10.0]))
    assert len(opened(coco).samples[0].boxes) == 2  # COCO has a few objects that are so small


def test_a_crowd_is_0_or_1(coco: Path) -> None:
    (coco / "instances.json").write_text(with_boxes([1, 2, 3, 4], iscrowd="0"))
    with pytest.raises(ValueError, match="iscrowd is '0' for an annotation"):
        opened(coco)


def test_annotations_of_images_that_are_not_listed_are_counted(coco: Path) -> None:
    told = instances()
    told["annotations"] += [{**told["annotations"][0], "image_id": "7"}, {"image_id": 8}]
    (coco / "instances.json").write_text(json.dumps(told))
    assert opened(coco, limit=1).left_out["annotations of images that are not listed"] == 2


def test_a_missing_pycocotools_is_refused_with_what_to_install(
    coco: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        "storage.datasets.kinds.coco.find_spec", lambda name: None if name == "pycocotools" else there(name)
    )
    with pytest.raises(
        ValueError, match=r"^dataset.kind: coco needs an extra: pip install 'floodlit\[coco\]'$"
    ):
        opened(coco)
