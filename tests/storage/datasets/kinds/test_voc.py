"""PASCAL VOC as torchvision reads it: labels, boxes and masks of each class, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import VOCDetection, VOCSegmentation

from object_store import ObjectStore
from storage.datasets.dataset import Dataset
from storage.datasets.kinds.voc import CLASSES
from storage.datasets.masks import BACKGROUND, IGNORED, OBJECT
from storage.datasets.notes import BOX_CLIPPED, NOT_TURNED
from storage.datasets.opening import open_dataset
from storage.datasets.spec import DatasetSpec
from storage.files import UnreadableError
from storage.places import place

SIZE = (40, 24)
# name, xmin, ymin, xmax, ymax as VOC counts them from 1, truncated, difficult
OBJECTS = {
    "2007_000001": [
        ("dog", 1, 1, 8, 24, 1, 0),
        ("person", 11, 3, 40, 6, 0, 0),
        ("dog", 20, 10, 21, 11, 0, 0),
    ],
    "2007_000002": [
        ("cat", 5, 5, 9, 9, 0, 0),
        ("tvmonitor", 2, 2, 3.5, 4, 0, 1),
        ("cat", 30, 2, 31, 3, 0, 1),
    ],
    "2007_000003": [("sheep", 2, 2, 3, 3, 0, 1)],
    "2007_000004": [("bus", 1, 1, 40, 24, 0, 0)],
}


def annotation(name: str, size: tuple[int, int] = SIZE) -> str:
    parts = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"  # VOC has parts of persons
    told = "".join(
        f"<object><name>{kind}</name><truncated>{truncated}</truncated><difficult>{difficult}</difficult>"
        f"<bndbox><xmax>{x1}</xmax><xmin>{x0}</xmin><ymin>{y0}</ymin><ymax>{y1}</ymax></bndbox>"
        f"{parts if kind == 'person' else ''}</object>"
        for kind, x0, y0, x1, y1, truncated, difficult in OBJECTS[name]
    )
    shape = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{shape}<segmented>1</segmented>{told}</annotation>"


def semantic() -> np.ndarray:
    """The values of a mask of the first image: dogs, a person and the void around it."""
    values = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    values[:, :8] = 1 + CLASSES.index("dog")
    values[1:7, 9:40] = 255
    values[2:6, 10:39] = 1 + CLASSES.index("person")
    return values


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A folder of the year 2012; the second image is turned by its EXIF orientation."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in (
        "JPEGImages",
        "Annotations",
        "SegmentationClass",
        "ImageSets/Main",
        "ImageSets/Segmentation",
    ):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate(OBJECTS):
        exif = Image.Exif()
        exif[274] = 6 if number == 1 else 1
        Image.new("RGB", SIZE, (60 * number, 90, 120)).save(root / f"JPEGImages/{name}.jpg", exif=exif)
        (root / f"Annotations/{name}.xml").write_text(annotation(name))
        values = semantic() if number == 0 else np.zeros((SIZE[1], SIZE[0]), np.uint8)
        mask = Image.fromarray(values).convert("P")
        mask.putdata(values.ravel().tolist())
        mask.putpalette([(37 * place) % 256 for place in range(768)])
        mask.save(root / f"SegmentationClass/{name}.png")
    (root / "ImageSets/Main/val.txt").write_text("".join(f"{name}\n" for name in OBJECTS))
    (root / "ImageSets/Main/dog_val.txt").write_text("2007_000001  1\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_000001\n2007_000003\n")
    (root / "ImageSets/Segmentation/train.txt").write_text("2007_000002\n")
    return root


def opened(path: Path, **keys: Any) -> Dataset:
    return open_dataset(DatasetSpec.model_validate({"kind": "voc", "path": path, "split": "val", **keys}))


def objects(dataset: Dataset, index: int) -> list[tuple[str, tuple[float, ...]]]:
    sample = dataset.samples[index]
    return [(CLASSES[label], box) for label, box in zip(sample.box_labels, sample.boxes, strict=True)]


def test_objects_are_those_that_torchvision_reads_with_boxes_in_pixel_edges(voc: Path) -> None:
    kept, ours = opened(voc, difficult="keep"), opened(voc)
    theirs = VOCDetection(str(voc.parents[1]), year="2012", image_set="val")
    assert len(theirs) == len(kept.samples) == len(ours.samples)
    for index, (_, told) in enumerate(theirs):
        its = told["annotation"]["object"]
        boxes = [{key: float(side) for key, side in each["bndbox"].items()} for each in its]
        wanted = [
            (each["name"], (box["xmin"] - 1, box["ymin"] - 1, box["xmax"], box["ymax"]), each["difficult"])
            for each, box in zip(its, boxes, strict=True)
        ]
        assert kept.samples[index].sample_id.endswith(told["annotation"]["filename"])
        assert objects(kept, index) == [each[:2] for each in wanted]
        assert objects(ours, index) == [each[:2] for each in wanted if each[2] == "0"]
    assert [sample.labels for sample in ours.samples] == [(11, 14), (7,), (), (5,)]
    assert [sample.labels for sample in kept.samples] == [(11, 14), (7, 19), (16,), (5,)]
    assert ours.left_out == {"difficult objects": 3}
    assert kept.left_out == {}
    assert kept.fingerprint != ours.fingerprint
    # A box of all pixels is the whole image, and one of four pixels has the area 4.
    assert objects(ours, 3) == [("bus", (0, 0, 40, 24))]
    assert objects(ours, 0)[2] == ("dog", (19, 9, 21, 11))


def test_each_label_has_its_own_mask_without_the_void(voc: Path) -> None:
    found = opened(voc, task="segmentation")
    theirs = VOCSegmentation(str(voc.parents[1]), year="2012", image_set="val")
    assert [sample.sample_id for sample in found.samples] == [
        str(Path(path).relative_to(voc)) for path in theirs.images
    ]
    values = np.asarray(theirs[0][1])
    assert (values == semantic()).all()
    assert found.masks is not None
    assert found.masks_by_label
    planes = np.asarray(found.masks(0, []))
    for plane, name in zip(planes, ("dog", "person"), strict=True):
        assert (plane == np.where(values == 1 + CLASSES.index(name), OBJECT, (values == 255) * IGNORED)).all()
    assert BACKGROUND in planes[0]
    assert found.masks(1, []) is None


def test_an_image_with_an_orientation_stays_as_its_boxes_are(voc: Path) -> None:
    found, notes = opened(voc), []
    image = found.load(1, notes)
    assert isinstance(image, Image.Image)
    assert (image.size, notes) == (SIZE, [NOT_TURNED])
    assert found.objects(1, SIZE, notes) == [((4, 4, 9, 9), 7)]
    assert BOX_CLIPPED not in notes
    with pytest.raises(ValueError, match="exif"):
        opened(voc, exif="turn")
    (voc / "Annotations/2007_000002.xml").write_text(annotation("2007_000002", (80, 48)))
    with pytest.raises(UnreadableError, match="of an image of 80x48, and this one is 40x24"):
        opened(voc).boxes(1, SIZE, [])


def test_the_set_is_read_from_s3_and_nothing_is_decoded_to_open_it(voc: Path, s3: ObjectStore) -> None:
    for image in (voc / "JPEGImages").iterdir():
        image.write_bytes(b"no image")
    here = opened(voc, task="segmentation")
    there: Any = place(s3.empty())
    there.fs.put(f"{voc}/", f"{there.path}/VOC2012/", recursive=True)
    found = opened(there / "VOC2012", task="segmentation")
    assert [(s.sample_id, s.boxes, s.labels) for s in found.samples] == [
        (s.sample_id, s.boxes, s.labels) for s in here.samples
    ]
    assert found.fingerprint == here.fingerprint
    assert found.masks is not None
    assert here.masks is not None
    assert np.array_equal(np.asarray(found.masks(0, [])), np.asarray(here.masks(0, [])))


def test_what_is_not_certain_is_refused(voc: Path) -> None:
    with pytest.raises(
        ValueError, match=r"dataset.split: .*Segmentation has no list test; it has train, val$"
    ):
        opened(voc, split="test", task="segmentation")
    with pytest.raises(ValueError, match=r"dataset.split: .*Main has no list dog; it has val$"):
        opened(voc, split="dog")
    with pytest.raises(ValueError, match="split"):
        opened(voc, split="../../secret")
    with pytest.raises(ValueError, match=r"^dataset\.path: there is no folder .*ImageSets"):
        opened(voc.parents[1])
    once = (voc / "ImageSets/Main/val.txt").read_text()
    (voc / "ImageSets/Main/val.txt").write_text(once + "2007_000001\n")
    with pytest.raises(ValueError, match=r"dataset.split: .*val.txt lists 1 images once more$"):
        opened(voc)
    (voc / "ImageSets/Main/val.txt").write_text(once)
    xml = voc / "Annotations/2007_000004.xml"
    for told, message in (
        (annotation("2007_000004").replace("bus", "lorry"), "'lorry' is none of the 20 classes of VOC"),
        (annotation("2007_000004").replace("<xmax>40</xmax>", ""), "the object bus has no box"),
        (annotation("2007_000004").replace("<xmax>40", "<xmax>0"), "the box 1,1,0,24 of bus is not xmin"),
        (annotation("2007_000004").replace("<xmax>40", "<xmax>nan"), "the box 1,1,nan,24 of bus is not xmin"),
        ("<annotation>", "is not XML"),
        ("<html></html>", "begins with <html>"),
    ):
        xml.write_text(told)
        with pytest.raises(ValueError, match=r"dataset.path: .*2007_000004.xml:? ") as refused:
            opened(voc)
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)
    xml.unlink()
    with pytest.raises(
        ValueError, match=r"dataset.split: .*has no annotation of 2007_000004, nor of 0 other"
    ):
        opened(voc)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("<xmin>1_0</xmin>", "'1_0' is no number"),
        ("<xmin>\u0661</xmin>", "'\u0661' is no number"),
        ("<xmin>0.25</xmin>", "the box 0.25,0.1,0.5,0.5 of dog lies within 0..1"),
    ],
)
def test_a_box_that_is_not_in_pixels_is_refused(voc: Path, written: str, told: str) -> None:
    file = voc / "Annotations" / "2007_000001.xml"
    box = f"<bndbox>{written}<ymin>0.1</ymin><xmax>0.5</xmax><ymax>0.5</ymax></bndbox>"
    file.write_text(f"<annotation><object><name>dog</name>{box}</object></annotation>", encoding="utf-8")
    with pytest.raises(ValueError, match=r"dataset.path: .*000001.xml is not an annotation: ") as refused:
        opened(voc)
    assert told in str(refused.value)


def test_a_mask_of_other_values_is_an_error_of_its_image(voc: Path) -> None:
    values = semantic()
    values[0, 0] = 21
    Image.fromarray(values).save(voc / "SegmentationClass/2007_000001.png")
    found = opened(voc, task="segmentation")
    assert found.masks is not None
    with pytest.raises(UnreadableError, match=r"its mask 2007_000001.png: has the value 21"):
        found.masks(0, [])
    Image.fromarray(semantic()).convert("RGB").save(voc / "SegmentationClass/2007_000001.png")
    with pytest.raises(UnreadableError, match="has the mode RGB"):
        found.masks(0, [])
