"""ImageNet-1k: labels as torchvision finds them, published boxes and masks, and what is refused."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import ImageNet
from torchvision.datasets.imagenet import ARCHIVE_META

from object_store import ObjectStore
from storage.datasets.dataset import Dataset
from storage.datasets.imagenet_labels import synsets
from storage.datasets.masks import BACKGROUND, IGNORED, OBJECT
from storage.datasets.notes import NOT_TURNED
from storage.datasets.opening import open_dataset
from storage.datasets.spec import DatasetSpec
from storage.files import UnreadableError
from storage.places import place

# The classes of the first validation images, as they are published, and of a sixth.
CLASSES = ("n01751748", "n09193705", "n02105855", "n04263257", "n03125729", "n01440764")
NUMBERS = (65, 970, 230, 809, 516, 0)  # in torchvision's order
NAMES = tuple(f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 7))
KIT_NUMBER = {synset: 1000 - number for number, synset in enumerate(synsets())}
SIZE = (40, 24)


def opened(path: Path, **keys: Any) -> Dataset:
    return open_dataset(DatasetSpec.model_validate({"kind": "imagenet", "path": path, **keys}))


def known(dataset: Dataset) -> list[tuple[str, int | None]]:
    return [(sample.sample_id.rpartition("/")[2], sample.label) for sample in dataset.samples]


def save(path: Path, orientation: int = 1) -> None:
    """Write an image that is dark on its left, as it is stored."""
    pixels = np.full((SIZE[1], SIZE[0], 3), 240, np.uint8)
    pixels[:, :8] = 10
    exif = Image.Exif()
    exif[274] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "JPEG", quality=95, exif=exif)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """The validation images in one folder; the second one is turned by its EXIF orientation."""
    for place_, name in enumerate(NAMES):
        save(tmp_path / "flat" / name, orientation=6 if place_ == 1 else 1)
    return tmp_path / "flat"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """The same images in class folders."""
    for place_, (synset, name) in enumerate(zip(CLASSES, NAMES, strict=True)):
        save(tmp_path / "folders" / synset / name, orientation=6 if place_ == 1 else 1)
    return tmp_path / "folders"


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """The development kit's data: ``meta.mat`` and the ground truth of 50,000 images."""
    data = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    leaves = sorted((number, synset, 0) for synset, number in KIT_NUMBER.items())
    rows = [*leaves, (1001, "n00001740", 2)]  # a synset above others is none of the classes
    names = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    table = np.empty((len(rows), 1), [(name, object) for name in (*names, "num_train_images")])
    for row, (number, synset, children) in enumerate(rows):
        table[row, 0] = (number, synset, f"{synset}, its name", "what it is", children, [], 0, 1300)
    savemat(data / "meta.mat", {"synsets": table})
    numbers = [KIT_NUMBER[synset] for synset in CLASSES]
    numbers += [numbers[-1]] * (50_000 - len(numbers))
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{n}\n" for n in numbers))
    return data


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_ground_truth_of_the_kit_gives_the_classes_that_torchvision_gives(
    flat: Path, kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, file, folder, inner in (
        ("devkit", "ILSVRC2012_devkit_t12.tar.gz", kit.parent, kit.parent.name),
        ("val", "ILSVRC2012_img_val.tar", flat, "."),
    ):
        with tarfile.open(tmp_path / file, "w:gz" if file.endswith("gz") else "w") as archive:
            archive.add(folder, inner)
        monkeypatch.setitem(ARCHIVE_META, key, (file, md5(tmp_path / file)))
    theirs = ImageNet(str(tmp_path), split="val")
    wanted = {Path(path).name: theirs.wnids[label] for path, label in theirs.samples}
    truth = kit / "ILSVRC2012_validation_ground_truth.txt"
    for numbering in (kit / "meta.mat", tmp_path / "map.txt"):
        lines = [f"{synset} {number} a_name" for synset, number in KIT_NUMBER.items()]
        (tmp_path / "map.txt").write_text("\n".join(lines))
        ours = opened(flat, labels=truth, synsets=numbering)
        assert {name: synsets()[label or 0] for name, label in known(ours)} == wanted
        assert known(ours) == list(zip(NAMES, NUMBERS, strict=True))
    # torchvision's own folder of this set, which it has made.
    assert {(n, synsets()[label or 0]) for n, label in known(opened(tmp_path / "val"))} == set(wanted.items())


KAGGLE = "ImageId,PredictionString\n" + "".join(
    f"{Path(name).stem},{synset} 0 0 7 23 {synset} 10 2 39 23 \n"
    for name, synset in zip(NAMES, CLASSES, strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        KAGGLE,
        "\n".join(f"{name} {number}" for name, number in zip(NAMES, NUMBERS, strict=True)),
        "\n".join(f"val/{name},{number}" for name, number in zip(NAMES, NUMBERS, strict=True)),
        "\n".join(f"{name}\t{synset}" for name, synset in zip(NAMES, CLASSES, strict=True)),
    ],
    ids=["kaggle", "numbers", "wsol", "synsets"],
)
def test_lists_of_images_and_classes_are_read(flat: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    found = opened(flat, labels=tmp_path / "list.txt")
    assert known(found) == list(zip(NAMES, NUMBERS, strict=True))
    assert found.published
    assert found.classes[0] == "n01440764 tench, Tinca tinca"
    assert known(opened(flat, labels=tmp_path / "list.txt", limit=2)) == [(NAMES[0], 65), (NAMES[3], 809)]


def wsol(folder: Path, size: tuple[int, int] = SIZE, label: int = 65) -> Path:
    """The box files of the WSOL evaluation for the first two images."""
    folder.mkdir(exist_ok=True)
    boxes = [(NAMES[0], 0, 0, 7, 23), (NAMES[0], 10, 2, 39, 5), (NAMES[1], 0, 0, 7, 23)]
    lines = [",".join(map(str, (f"val/{name}", *box))) for name, *box in boxes]
    (folder / "localization.txt").write_text("\n".join(lines))
    sizes = "".join(f"val/{name},{size[0]},{size[1]}\n" for name in NAMES)
    (folder / "image_sizes.txt").write_text(sizes)
    (folder / "class_labels.txt").write_text(f"val/{NAMES[0]},{label}\n")
    return folder / "localization.txt"


def annotations(folder: Path) -> Path:
    """ImageNet's own XML files for the first two images, and one object of another class."""
    folder.mkdir(exist_ok=True)
    objects = {
        NAMES[0]: [(CLASSES[0], 0, 0, 7, 23), (CLASSES[3], 1, 1, 2, 2), (CLASSES[0], 10, 2, 39, 5)],
        NAMES[1]: [(CLASSES[1], 0, 0, 7, 23)],
    }
    for name, its in objects.items():
        told = "".join(
            f"<object><name>{synset}</name><pose>Unspecified</pose><difficult>0</difficult><bndbox>"
            f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for synset, x0, y0, x1, y1 in its
        )
        size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
        (folder / f"{Path(name).stem}.xml").write_text(f"<annotation>{size}{told}</annotation>")
    return folder


@pytest.mark.parametrize("source", ["wsol", "xml", "kaggle"])
def test_boxes_are_those_of_the_class_and_hold_their_last_pixel(
    folders: Path, tmp_path: Path, source: str
) -> None:
    (tmp_path / "LOC_val_solution.csv").write_text(KAGGLE.replace("10 2 39 23", "10 2 39 5"))
    path = {
        "wsol": lambda: wsol(tmp_path / "test"),
        "xml": lambda: annotations(tmp_path / "Annotations"),
        "kaggle": lambda: tmp_path / "LOC_val_solution.csv",
    }[source]()
    found = opened(folders, boxes=path)
    first = next(i for i, s in enumerate(found.samples) if s.sample_id.endswith(NAMES[0]))
    assert found.samples[first].boxes == ((0, 0, 8, 24), (10, 2, 40, 6))
    notes: list[str] = []
    assert found.boxes(first, SIZE, notes) == [(0, 0, 8, 24), (10, 2, 40, 6)]
    assert notes == []
    # The dark stripe of the image that EXIF would turn is where its box says, in the stored pixels.
    second = next(i for i, s in enumerate(found.samples) if s.sample_id.endswith(NAMES[1]))
    image = found.load(second, notes)
    assert notes == [NOT_TURNED]
    assert isinstance(image, Image.Image)
    assert image.size == SIZE
    x0, y0, x1, y1 = found.samples[second].boxes[0]
    dark = np.asarray(image)[..., 0] < 128
    inside = np.zeros_like(dark)
    inside[int(y0) : int(y1), int(x0) : int(x1)] = True
    assert (dark == inside).all()
    assert found.left_out == ({"boxes of other classes than their image's": 1} if source == "xml" else {})


def test_boxes_of_an_image_of_another_size_are_an_error_of_that_image(folders: Path, tmp_path: Path) -> None:
    found = opened(folders, boxes=wsol(tmp_path / "test", size=(80, 48)))
    first = next(i for i, s in enumerate(found.samples) if s.boxes)
    with pytest.raises(UnreadableError, match="of an image of 80x48, and this one is 40x24"):
        found.boxes(first, SIZE, [])
    without = next(i for i, s in enumerate(found.samples) if not s.boxes)
    assert found.boxes(without, SIZE, []) == []
    other = opened(folders, boxes=wsol(tmp_path / "test"))
    assert other.fingerprint != found.fingerprint


def segmented(root: Path) -> Path:
    """A folder of ImageNet-S50 with masks of two images: of one of its classes, and of a class it lacks."""
    classes = sorted({*CLASSES[:4], *synsets()[300:346]})
    assert len(classes) == 50
    for synset in classes:
        (root / synset).mkdir(parents=True)
    own, other = classes.index(CLASSES[0]) + 1, classes.index(CLASSES[3]) + 1
    values = np.zeros((SIZE[1], SIZE[0]), np.int32)
    values[2:20, 3:30], values[2:20, 30:33], values[:2] = own, 1000, other
    pixels = np.stack([values % 256, values // 256, 0 * values], -1).astype(np.uint8)
    Image.fromarray(pixels).save(root / CLASSES[0] / f"{Path(NAMES[0]).stem}.png")
    pixels[0, 0] = 200, 0, 0
    Image.fromarray(pixels).save(root / CLASSES[2] / f"{Path(NAMES[2]).stem}.png")
    return root


def test_masks_of_imagenet_s_are_those_of_the_images_class(folders: Path, tmp_path: Path) -> None:
    found = opened(folders, masks=segmented(tmp_path / "validation-segmentation"))
    assert found.masks is not None
    at = {sample.sample_id.rpartition("/")[2]: index for index, sample in enumerate(found.samples)}
    mask = found.masks(at[NAMES[0]], [])
    wanted = np.full((SIZE[1], SIZE[0]), BACKGROUND)
    wanted[2:20, 3:30], wanted[2:20, 30:33] = OBJECT, IGNORED
    assert (np.asarray(mask) == wanted).all()
    assert found.masks(at[NAMES[1]], []) is None
    with pytest.raises(UnreadableError, match=r"mask ILSVRC2012_val_00000003.png: has the colour 200,0,0"):
        found.masks(at[NAMES[2]], [])


def test_large_numbers_of_classes_are_in_two_channels(folders: Path, tmp_path: Path) -> None:
    root = tmp_path / "masks"
    classes = [synset for synset in synsets() if synset != "n01440764"][80:]
    for synset in classes[:919]:
        (root / synset).mkdir(parents=True)
    number = 1 + classes.index("n09193705")
    assert number > 256
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    pixels[4:, 5:] = number % 256, number // 256, 0
    Image.fromarray(pixels).save(root / "n09193705" / f"{Path(NAMES[1]).stem}.png")
    found = opened(folders, masks=root)
    index = next(i for i, s in enumerate(found.samples) if s.label == 970)
    assert found.masks is not None
    assert (np.asarray(found.masks(index, [])) == (pixels[..., 0] > 0)).all()


def test_nothing_is_decoded_to_open_the_set(folders: Path, tmp_path: Path) -> None:
    for path in folders.rglob("*.JPEG"):
        path.write_bytes(b"no image")
    found = opened(folders, boxes=annotations(tmp_path / "xml"))
    assert sorted(known(found)) == sorted(zip(NAMES, NUMBERS, strict=True))
    assert len(found.fingerprint) == 64


def test_the_set_is_read_from_s3(flat: Path, tmp_path: Path, s3: ObjectStore) -> None:
    (tmp_path / "list.txt").write_text(KAGGLE)
    here = opened(flat, labels=tmp_path / "list.txt", boxes=annotations(tmp_path / "xml"))
    there: Any = place(s3.empty())
    for folder in ("flat", "xml"):
        there.fs.put(f"{tmp_path / folder}/", f"{there.path}/{folder}/", recursive=True)
    there.fs.put(str(tmp_path / "list.txt"), f"{there.path}/list.txt")
    found = opened(there / "flat", labels=there / "list.txt", boxes=there / "xml")
    assert [s.boxes for s in found.samples] == [s.boxes for s in here.samples]
    assert known(found) == known(here)
    assert found.fingerprint == here.fingerprint
    assert (np.asarray(found.load(1)) == np.asarray(here.load(1))).all()


def text(path: Path, told: str) -> Path:
    path.write_text(told)
    return path


WRONG: list[tuple[str, Any, str]] = [
    ("flat", lambda t: {}, "dataset.labels: the images of .* name the file of their classes"),
    ("flat", lambda t: {"labels": text(t / "a", "65\n970\n")}, "dataset.labels: .*has 2 numbers"),
    (
        "flat",
        lambda t: {"labels": text(t / "a", "1\n" * 50_000)},
        "dataset.labels: .*meta.mat in dataset.synsets",
    ),
    (
        "flat",
        lambda t: {"labels": text(t / "a", "1\n" * 50_000), "synsets": text(t / "b", "n01440764 1")},
        "dataset.synsets: .* one number from 1 to 1000",
    ),
    (
        "flat",
        lambda t: {"labels": text(t / "a", "1\n" * 50_000), "synsets": text(t / "b.mat", "no such file")},
        "dataset.synsets: .*is not the development kit's meta.mat",
    ),
    (
        "flat",
        lambda t: {"labels": text(t / "a", "\n".join(f"{n} 490" for n in NAMES))},
        "dataset.labels: .*says that ILSVRC2012_val_00000001.JPEG is of class 490.*it is n01751748",
    ),
    (
        "flat",
        lambda t: {"labels": text(t / "a", "\n".join(f"{n} 1000" for n in NAMES))},
        "dataset.labels: .*line 1: class 1000 is not in torchvision's order",
    ),
    (
        "flat",
        lambda t: {"labels": text(t / "a", f"{NAMES[0]} 65")},
        "dataset.labels: .*has no class of ILSVRC2012_val_00000002.JPEG, nor of 4 other",
    ),
    (
        "flat",
        lambda t: {"labels": text(t / "a", f"{NAMES[0]} 65\n{NAMES[0]} 66")},
        "dataset.labels: .*line 2 gives ILSVRC2012_val_00000001.JPEG the class 66, and an earlier one 65",
    ),
    (
        "flat",
        lambda t: {"labels": text(t / "a", KAGGLE), "synsets": text(t / "b", "")},
        "dataset.synsets: .*needs no numbering",
    ),
    ("folders", lambda t: {"labels": text(t / "a", KAGGLE)}, "dataset.labels: the class folders"),
    ("folders", lambda t: {"boxes": t / "nowhere"}, "dataset.boxes: there is no file or folder"),
    (
        "folders",
        lambda t: {"boxes": wsol(t / "w").rename(t / "localization.txt")},
        "dataset.boxes: there is no image_sizes.txt beside",
    ),
    ("folders", lambda t: {"boxes": wsol(t / "w", label=66)}, "dataset.boxes: .*of class 66.*of class 65"),
    (
        "folders",
        lambda t: {
            "boxes": text(t / "a", f"{KAGGLE.splitlines()[0]}\n{Path(NAMES[0]).stem},n01751748 1_0 2 30 4")
        },
        "dataset.boxes: .*1_0,2,30,4 is not a box of four whole numbers",
    ),
    ("folders", lambda t: {"boxes": t / "flat"}, "dataset.boxes: .*has no box of any of the images"),
    (
        "folders",
        lambda t: {"masks": t / "folders"},
        "dataset.masks: .*has 6 class folders, and ImageNet-S 50, 300 or 919",
    ),
]


@pytest.mark.parametrize(("layout", "keys", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_what_is_not_certain_is_refused(
    flat: Path, folders: Path, tmp_path: Path, layout: str, keys: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        opened({"flat": flat, "folders": folders}[layout], **keys(tmp_path))
    assert "\n" not in str(refused.value)


def test_folders_that_are_no_classes_are_refused(folders: Path) -> None:
    (folders / "n99999999").mkdir()
    with pytest.raises(
        ValueError, match=r"dataset.path: the folder n99999999 .* is none of the 1,000 classes"
    ):
        opened(folders)
    (folders / "n99999999").rename(folders / "train")
    with pytest.raises(ValueError, match=r"dataset.path: the folder train .* is no class of ImageNet"):
        opened(folders)
    (folders / "train").rmdir()
    save(folders / "n01440764" / NAMES[0])
    with pytest.raises(
        ValueError, match=r"dataset.path: .*00000001.JPEG is of class 0, n01440764, and it is n0"
    ):
        opened(folders)
    save(folders / "n01440764" / NAMES[1])
    (folders / "n01440764" / NAMES[0]).unlink()
    with pytest.raises(ValueError, match="is of class 0, n01440764, and it is n09193705"):
        opened(folders)


def test_two_images_of_one_name_are_refused_where_boxes_or_masks_are_found_by_it(
    folders: Path, tmp_path: Path
) -> None:
    """Sets such as ImageNet-R give images of two classes one name, and have neither."""
    save(folders / "n01440764" / "more" / NAMES[5])
    assert known(opened(folders))[:2] == [(NAMES[5], 0), (NAMES[5], 0)]
    for given in ({"boxes": annotations(tmp_path / "boxes")}, {"masks": tmp_path / "masks"}):
        with pytest.raises(ValueError, match=r"dataset.path: 2 images are called ILSVRC2012_val_00000006"):
            opened(folders, **given)
