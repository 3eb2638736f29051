"""Datasets of every kind: ids, labels, boxes, what is refused, and what a broken file does."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from places import REAL
from storage.datasets import digits
from storage.datasets.dataset import Dataset
from storage.datasets.kinds.csv_listing import CsvListing
from storage.datasets.kinds.folder import Folder
from storage.datasets.opening import open_dataset
from storage.datasets.spec import DatasetSpec
from storage.files import UnreadableError


def image(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (level, level, level)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for level, name in enumerate(["cat/b.png", "cat/a.JPG", "dog/x/deep.png", "ant/c.png"]):
        image(tmp_path / "photos" / name, level)
    (tmp_path / "photos" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "photos" / ".cache").mkdir()
    (tmp_path / "photos" / "dog" / "text.jpg").write_text("not an image either")
    return tmp_path / "photos"


def opened(**keys: object) -> Dataset:
    return open_dataset(DatasetSpec.model_validate(keys))


def test_class_folders_give_sorted_classes_and_relative_ids(photos: Path) -> None:
    dataset = opened(kind="folder", path=photos)
    assert (dataset.modality, dataset.features) == ("image", [])
    assert dataset.classes == ["ant", "cat", "dog"]
    assert [(s.sample_id, s.label) for s in dataset.samples] == [
        ("ant/c.png", 0),
        ("cat/a.JPG", 1),
        ("cat/b.png", 1),
        ("dog/text.jpg", 2),
        ("dog/x/deep.png", 2),
    ]
    assert np.asarray(dataset.load(4)).tolist() == np.full((4, 6, 3), 2).tolist()
    with pytest.raises(UnreadableError, match="not an image"):
        dataset.load(3)


def test_folders_agree_with_torchvision(photos: Path) -> None:
    (photos / "dog" / "text.jpg").unlink()
    (photos / ".cache").rmdir()
    ours = opened(kind="folder", path=photos)
    theirs = opened(kind="torchvision", name="ImageFolder", path=photos)
    assert theirs.classes == ours.classes
    assert [s.label for s in theirs.samples] == [s.label for s in ours.samples]
    assert [s.sample_id for s in theirs.samples] == [f"all/{i:06d}" for i in range(4)]
    for index in range(4):
        assert theirs.load(index).tobytes() == ours.load(index).tobytes()


def test_a_folder_of_images_has_no_labels(photos: Path) -> None:
    dataset = opened(kind="folder", path=photos / "cat")
    assert [(s.sample_id, s.label) for s in dataset.samples] == [("a.JPG", None), ("b.png", None)]
    assert dataset.classes == []


def test_images_beside_class_folders_are_refused(photos: Path) -> None:
    image(photos / "stray.png")
    with pytest.raises(ValueError, match=r"stray\.png lies beside class folders"):
        opened(kind="folder", path=photos)


def test_an_empty_or_absent_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    with pytest.raises(ValueError, match="there is no image in"):
        opened(kind="folder", path=tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        opened(kind="folder", path=tmp_path / "nowhere")


def listing(folder: Path, text: str) -> DatasetSpec:
    (folder / "list.csv").write_text(text)
    return CsvListing(path=folder / "list.csv")


def test_a_listing_with_boxes_and_other_columns(photos: Path) -> None:
    spec = listing(
        photos,
        "\ufefffile, label,wnid,xmin,ymin,xmax,ymax\n"
        "dog/x/deep.png,65,n1,1,2,3,4.5\n"
        "cat/b.png,7,n2,,,,\n"
        "dog/x/deep.png,65,n1,0,0,6,4\n"
        "gone.png,7,n3,5,5,5,6\n",
    )
    dataset = open_dataset(spec)
    assert [(s.sample_id, s.label, s.boxes) for s in dataset.samples] == [
        ("dog/x/deep.png", 65, ((1, 2, 3, 4.5), (0, 0, 6, 4))),
        ("cat/b.png", 7, ()),
        ("gone.png", 7, ((5, 5, 5, 6),)),
    ]
    assert dataset.classes == []
    assert dataset.load(1).getpixel((0, 0)) == (0, 0, 0)
    with pytest.raises(UnreadableError, match="there is no such file"):
        dataset.load(2)


def test_names_are_numbered_in_sorted_order(photos: Path) -> None:
    dataset = open_dataset(
        listing(photos, 'file,label\ncat/b.png,zebra\nant/c.png,"ant, red"\ncat/a.JPG,zebra\n')
    )
    assert dataset.classes == ["ant, red", "zebra"]
    assert [s.label for s in dataset.samples] == [1, 0, 1]


def test_names_may_hold_digits(photos: Path) -> None:
    for name in ("18-25", "60+", "1/2", "7b", "\u4e00", "B1", "1st, 2nd", "0x"):
        assert open_dataset(listing(photos, f'file,label\ncat/b.png,"{name}"\n')).classes == [name]


def test_a_column_boxlabel_says_of_which_label_a_box_is(photos: Path) -> None:
    rows = [
        *("file,labels,xmin,ymin,xmax,ymax,boxlabel", "cat/b.png,dog;cat,1,1,3,3,cat"),
        *("dog/a.png,dog,,,,,", "cat/b.png,dog;cat,1,1,3,3,dog", "cat/b.png,dog;cat,0,1,3,3,cat"),
    ]
    dataset = open_dataset(listing(photos, "\n".join(rows)))
    assert [sample.labels for sample in dataset.samples] == [(1, 0), (1,)]
    assert dataset.samples[0].boxes == ((1, 1, 3, 3), (1, 1, 3, 3), (0, 1, 3, 3))
    assert [sample.box_labels for sample in dataset.samples] == [(0, 1, 0), ()]
    rows[1] = "cat/b.png,dog;cat,1,1,3,3,dog"
    rows[3] = "cat/b.png,dog;cat,1,1,3,3,cat"
    exchanged = open_dataset(listing(photos, "\n".join(rows)))
    assert exchanged.fingerprint != dataset.fingerprint


def test_an_image_of_a_column_labels_has_any_number_of_them(photos: Path) -> None:
    rows = 'file,labels,xmin,ymin,xmax,ymax\ncat/b.png, dog ;cat,1,1,3,3\ndog/a.png,"",,,,\n'
    rows += "cat/b.png,dog;cat,2,2,4,4\n"
    dataset = open_dataset(listing(photos, rows))
    assert dataset.classes == ["cat", "dog"]
    assert [sample.labels for sample in dataset.samples] == [(1, 0), ()]
    assert [sample.every_label for sample in dataset.samples] == [(1, 0), ()]
    assert [sample.label for sample in dataset.samples] == [None, None]
    assert len(dataset.samples[0].boxes) == 2
    other = open_dataset(listing(photos, rows.replace("dog;cat", "cat;dog").replace(" dog ;cat", "cat;dog")))
    assert other.fingerprint != dataset.fingerprint


def test_one_label_in_either_column_is_the_same_label(photos: Path) -> None:
    one, several = (
        open_dataset(listing(photos, f"file,{name}\ncat/b.png,7\n")) for name in ("label", "labels")
    )
    assert one.samples[0].every_label == several.samples[0].every_label == (7,)
    assert (one.samples[0].label, several.samples[0].label) == (7, None)


def test_images_may_lie_elsewhere(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file,label\nb.png,0\n")
    dataset = opened(kind="csv", path=tmp_path / "list.csv", images=photos / "cat")
    assert dataset.load(0).size == (6, 4)
    with pytest.raises(ValueError, match="there is no folder"):
        opened(kind="csv", path=tmp_path / "list.csv", images=tmp_path / "nowhere")


def test_a_name_in_brackets_is_a_name_and_columns_of_other_names_are_ignored(tmp_path: Path) -> None:
    text = "file,label,task,filename,category\na.png,[UNK],mask,x,1\nb.png,(none),mask,y,2\n"
    assert open_dataset(listing(tmp_path, text)).classes == ["(none)", "[UNK]"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1: the header lacks file, label"),
        ("label,path\n1,a\n", "line 1: the header lacks file"),
        ("file,label,xmin,ymin\n", "line 1: the header lacks xmax, ymax"),
        ("file,label\na.png,1\nb.png\n", "line 3: the number of cells is not that of the header, 2"),
        ("file,label\na.png,1\nred, b.png,2\n", "line 3: the number of cells is not that of the header"),
        ('file,label\n\n"a\n.png",1\n\nb.png\n', "line 6: the number of cells is not that of the header"),
        ("file,label\na.png,\n", "line 2: the label is missing"),
        ("file,label\n,3\n", "line 2: the file is missing"),
        ("file,label\na.png,-1\n", "line 2: label -1 is negative"),
        ("file,label\na.png,1\nb.png,NaN\n", "line 3: label NaN stands for a missing value; write a whole"),
        ("file,label\na.png,None\n", "line 2: label None stands for a missing value"),
        (
            "file,label\na.png,0.5\n",
            "line 2: label 0.5 is no class index; write a whole number in the digits",
        ),
        ("file,label\na.png,2.0\n", "line 2: label 2.0 is no class index"),
        ("file,label\na.png,inf\n", "line 2: label inf is no class index"),
        ("file,label\na.png,1e3\n", "line 2: label 1e3 is no class index"),
        ("file,label\na.png,1_0\n", "line 2: label 1_0 is no class index"),
        (
            "file,label\na.png,1;2\n",
            "line 2: label 1;2 is several class indices; write them in a column labels",
        ),
        ("file,label\na.png,1 | 2\n", "line 2: label 1 | 2 is several class indices"),
        *(
            (
                f'file,{column}\na.png,"{cell}"\n',
                f"line 2: label {cell} is a list; write its labels in",
            )
            for column in ("label", "labels")
            for cell in ("[1, 2]", "[1]", "[1 2]", "[]", "['cat']", "('cat', 'dog')", "(3,)", "{cat,dog}")
        ),
        ("file,label\na.png,+1\n", "line 2: label +1 is no class index"),
        ("file,label\na.png,²\n", "line 2: label ² is no class index"),
        ("file,label\na.png,٣\n", "line 2: label ٣ is no class index"),
        ("file,label\na.png,-٣\n", "line 2: label -٣ is no class index"),
        ('file,label\na.png,"0,5"\n', "line 2: label 0,5 is no class index"),
        ("file,label\na.png,1 000\n", "line 2: label 1 000 is no class index"),
        ("file,label\na.png,0x1F\n", "line 2: label 0x1F is no class index"),
        ("file,label\na.png,50 %\n", "line 2: label 50 % is no class index"),
        ("file,label\na.png,½\n", "line 2: label ½ is no class index"),
        ("file,label\na.png,#REF!\n", "line 2: label #REF! stands for a missing value"),
        ("file,label\na.png,-1.#IND\n", "line 2: label -1.#IND stands for a missing value"),
        ("file,label\na.png,True\n", "line 2: label True is a truth value"),
        ("file,label\na.png,2147483648\n", "line 2: label 2147483648 is larger than 2147483647"),
        (f"file,label\na.png,{'9' * 6000}\n", "line 2: label 99999999999999999999 is larger than"),
        (
            "file,label\na.png,1\na.png,2\n",
            "line 3: a.png has label 2 here and 1 in line 2; if it has both, write 1;2 into a column labels",
        ),
        ("file,labels\na.png,1;2\na.png,2\n", "line 3: a.png has label 2 here and 1;2 in line 2"),
        ("file,labels\na.png,1;2;1\n", "line 2: label 1 is written twice in 1;2;1"),
        ("file,labels\na.png,1;;2\n", "line 2: a label is missing beside a semicolon in 1;;2"),
        ("file,labels\na.png,1;\n", "line 2: a label is missing beside a semicolon in 1;"),
        ("file,labels\n,1\n", "line 2: the file is missing"),
        (
            "file,labels,xmin,ymin,xmax,ymax,boxlabel\na.png,1;2,0,0,5,5,3\n",
            "line 2: a.png has a box of 3; name one of its labels, 1;2, beside each box alone",
        ),
        ("file,labels,xmin,ymin,xmax,ymax,boxlabel\na.png,1,0,0,5,5,\n", "a.png has a box of no label; name"),
        ("file,labels,xmin,ymin,xmax,ymax,boxlabel\na.png,1,,,,,1\n", "a.png has no box, and the boxlabel 1"),
        (
            "file,labels,xmin,ymin,xmax,ymax,boxlabel\na.png,1,0,0,5,5,1\na.png,1,0,0,5,5,1\n",
            "line 3: a.png is listed again, without another box",
        ),
        (
            "file,labels,boxlabel\na.png,1,1\n",
            "line 1: the column boxlabel needs the columns labels and xmin",
        ),
        ("file,label,xmin,ymin,xmax,ymax,boxlabel\na.png,1,0,0,5,5,1\n", "line 1: the column boxlabel needs"),
        ("file,labels,box_label\na.png,1,1\n", "line 1: rename the column 'box_label' to 'boxlabel'"),
        ("file,labels\na.png,1\nb.png,\nc.png,2;dog\n", "line 4: label 'dog' is a name, but 1 in line 2"),
        ("file,labels\na.png,1;0.5\n", "line 2: label 0.5 is no class index"),
        ("file,label,labels\na.png,1,2\n", "line 1: there are the columns label and labels; rename or"),
        ("image,labels\na.png,1\n", "line 1: the header lacks file; it must have file,label (or labels) and"),
        ("files,labels\na.png,1\n", "line 1: the column 'files' would be ignored; did you mean file?"),
        ("file,Labels\na.png,1\n", "line 1: rename the column 'Labels' to 'labels'"),
        ("file,label\na.png,1\nb.png,2\na.png,1\n", "line 4: a.png is listed again"),
        ("file,label\na.png,1\nb.png,cat\n", "line 3: label 'cat' is a name, but 1 in line 2 is a number"),
        ("file,label,xmin,ymin,xmax,ymax\na.png,1,1,1,x,2\n", "line 2: the box 1,1,x,2 is not four numbers"),
        ("file,label,xmin,ymin,xmax,ymax\na.png,1,1,1,,2\n", "line 2: the box 1,1,,2 is not four numbers"),
        (
            "file,label,xmin,ymin,xmax,ymax\na.png,1,5,1,3,2\n",
            "line 2: the box 5,1,3,2 is not xmin,ymin,xmax,ymax",
        ),
        ("file,label,xmin,ymin,xmax,ymax\na.png,1,1,1,inf,2\n", "line 2: the box 1,1,inf,2 is not xmin"),
        (
            "file,label,xmin,ymin,xmax,ymax\na.png,1,1,1,2,2\na.png,1,1,1,2,2\n",
            "line 3: a.png is listed again, without another box",
        ),
        ("file,label\na.png,1\nb.png,0\n./a.png,1\n", "line 4: ./a.png is listed again"),
        ("file,label\n\u00e9.png,1\ne\u0301.png,0\n", "has label 0 here and 1 in line 2"),
        ("file,label,label\na.png,1,2\n", "line 1: there are two columns 'label'; rename one"),
        ("file,label,XMin,YMin,XMax,YMax\n", "line 1: rename the column 'XMin' to 'xmin'"),
        ("file,label,Mask\n", "line 1: rename the column 'Mask' to 'mask', or to another name"),
        ("file,label,masks\n", "line 1: the column 'masks' would be ignored; did you mean mask?"),
        ("file,label,mask_path\n", "the column 'mask_path' would be ignored; did you mean mask?"),
        ("file,label,bbox\n", "the column 'bbox' would be ignored; did you mean xmin,ymin,xmax,ymax? Rename"),
        ("file,label,BBoxes\n", "the column 'BBoxes' would be ignored; did you mean xmin,ymin,xmax,ymax?"),
        ("file,label,xmins,ymins\n", "the column 'xmins' would be ignored; did you mean xmin?"),
        ("file,labels,boxlabels\n", "the column 'boxlabels' would be ignored; did you mean boxlabel?"),
        ('file,label\n"a.png,1\n', "is not a CSV file"),
        ("file,label\n", "there is no image in"),
    ],
)
def test_a_wrong_listing_is_one_line_with_the_line_number(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        open_dataset(listing(tmp_path, text))
    assert told in str(refusal.value)
    assert re.match(r"dataset\.\w+: [^\n]*$", str(refusal.value))
    assert "list.csv" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_listing_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"file,label\ncaf\xe9.png,1\n")
    with pytest.raises(ValueError, match="not a CSV file in UTF-8"):
        opened(kind="csv", path=tmp_path / "list.csv")
    with pytest.raises(ValueError, match="there is no file"):
        opened(kind="csv", path=tmp_path / "none.csv")


def test_a_limit_spreads_over_the_classes_and_repeats(photos: Path) -> None:
    for count, expected in [(1, [0]), (2, [0, 2]), (3, [0, 1, 3]), (99, [0, 1, 2, 3, 4])]:
        everything = opened(kind="folder", path=photos).samples
        assert opened(kind="folder", path=photos, limit=count).samples == [everything[i] for i in expected]


def test_the_fingerprint_follows_which_image_a_mask_belongs_to(photos: Path) -> None:
    first = photos / "cat" / "b.png"
    (photos / "m.png").write_bytes(first.read_bytes())
    (photos / "n.png").write_bytes(first.read_bytes())
    files = [path.relative_to(photos).as_posix() for path in sorted(photos.rglob("*.png"))][:2]

    def fingerprint(*masks: str) -> str:
        rows = "".join(f"{file},1,{mask}\n" for file, mask in zip(files, masks, strict=True))
        return open_dataset(listing(photos, f"file,label,mask\n{rows}")).fingerprint

    kept = [fingerprint("m.png", ""), fingerprint("", "m.png"), fingerprint("n.png", ""), fingerprint("", "")]
    assert len(set(kept)) == 4


def test_the_fingerprint_follows_the_contents_and_not_the_place(photos: Path, tmp_path: Path) -> None:
    def fingerprint(**keys: object) -> str:
        return opened(**{"kind": "folder", "path": photos, **keys}).fingerprint

    first = fingerprint()
    assert first == fingerprint()
    moved = photos.rename(tmp_path / "moved")
    assert fingerprint(path=moved) == first
    assert fingerprint(path=moved, limit=2) != first
    (moved / "dog" / "text.jpg").write_text("longer than it was before")
    assert fingerprint(path=moved) != first
    one = open_dataset(listing(moved, "file,label,xmin,ymin,xmax,ymax\ncat/b.png,1,0,0,2,1\n")).fingerprint
    other = open_dataset(listing(moved, "file,label,xmin,ymin,xmax,ymax\ncat/b.png,1,0,0,2,2\n")).fingerprint
    labelled = open_dataset(
        listing(moved, "file,label,xmin,ymin,xmax,ymax\ncat/b.png,2,0,0,2,1\n")
    ).fingerprint
    assert len({one, other, labelled}) == 3


def test_digits_are_those_of_the_generator() -> None:
    dataset = opened(kind="digits", split="train", seed=3, limit=5)
    drawn = digits.sample("train", 4, 3)
    assert len(dataset.samples) == 5
    assert dataset.samples[4].label == drawn.label
    assert dataset.samples[4].boxes == (drawn.box,)
    assert np.array_equal(np.asarray(dataset.load(4)), drawn.image)
    assert dataset.classes == digits.CLASSES
    assert len({s.sample_id for s in dataset.samples}) == 5
    assert dataset.samples[1:3] == list(dataset.samples)[1:3]
    with pytest.raises(ValueError, match="splits train and test, not val"):
        opened(kind="digits", split="val")


def test_digits_have_another_fingerprint_for_another_seed_split_or_number() -> None:
    keys = [{}, {"seed": 1}, {"split": "train"}, {"limit": 7}]
    assert len({opened(**{"kind": "digits", "limit": 8, **key}).fingerprint for key in keys}) == 4


def test_a_set_of_torchvision_without_files(tmp_path: Path) -> None:
    dataset = opened(kind="torchvision", name="FakeData", path=tmp_path, limit=2)
    assert [s.sample_id for s in dataset.samples] == ["all/000000", "all/000500"]
    assert all(0 <= (s.label or 0) < 10 for s in dataset.samples)
    assert dataset.load(1).size == (224, 224)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"name": "NoSuchSet"}, "torchvision.datasets has no NoSuchSet"),
        ({"name": "CIFAR10"}, "CIFAR10 needs a split"),
        ({"name": "CIFAR10", "split": "val"}, "has the splits train and test, not val"),
        ({"name": "ImageFolder", "split": "test"}, "ImageFolder does not take a split"),
        ({"name": "ImageFolder"}, "ImageFolder cannot be opened"),
        ({"name": "ImageNet", "split": "val"}, "ImageNet cannot be opened"),
    ],
)
def test_a_set_torchvision_cannot_give_is_a_clear_line(
    tmp_path: Path, keys: dict[str, str], told: str
) -> None:
    with pytest.raises(ValueError, match=told) as refusal:
        opened(kind="torchvision", path=tmp_path / "none", **keys)
    assert "\n" not in str(refusal.value)


def test_a_set_that_is_not_there_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    asked = []

    class Tiny:
        targets = (1, 0)
        classes = ("zero", "one")

        def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
            asked.append((train, download))
            if download:
                Path(root).mkdir()
            if not Path(root).exists():
                raise RuntimeError("Dataset not found. You can use download=True to download it")

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.new("L", (3, 3), index), self.targets[index]

    monkeypatch.setattr(torchvision.datasets, "Tiny", Tiny, raising=False)
    for _ in range(2):
        dataset = opened(kind="torchvision", name="Tiny", split="test", path=tmp_path / "tiny")
    assert asked == [(False, False), (False, True), (False, False)]
    assert [(s.sample_id, s.label) for s in dataset.samples] == [("test/000000", 1), ("test/000001", 0)]
    assert dataset.classes == ["zero", "one"]
    assert dataset.load(1).getpixel((0, 0)) == (1, 1, 1)


def test_a_set_of_other_things_than_images_and_labels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    monkeypatch.setattr(torchvision.datasets, "Pairs", lambda: None, raising=False)
    with pytest.raises(ValueError, match="has no Pairs"):
        opened(kind="torchvision", name="Pairs", path=tmp_path)
    boxes = type(
        "Boxes", (list,), {"__init__": lambda self: list.__init__(self, [(Image.new("L", (1, 1)), {})])}
    )
    monkeypatch.setattr(torchvision.datasets, "Boxes", boxes, raising=False)
    with pytest.raises(ValueError, match=r"items of Boxes are not \(image, class index\)"):
        opened(kind="torchvision", name="Boxes", path=tmp_path)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"kind": "csv"}, 'kind = "csv" needs the key path'),
        ({"kind": "torchvision", "path": "x"}, "needs the key name"),
        (
            {"kind": "folder", "path": "x", "images": "y"},
            "does not take the key images; it takes path, exif, background, range, depth, limit",
        ),
        ({"kind": "text"}, 'kind = "text" needs the key path'),
        (
            {"kind": "text", "path": "x", "split": "y"},
            "does not take the key split; it takes path, column, limit",
        ),
        ({"kind": "tensors", "path": "x", "column": "y"}, "the key column; it takes path, limit"),
        ({"kind": "folder", "path": "x", "column": "y"}, "the key column; it takes path, exif"),
        ({"kind": "text", "path": "x", "column": ""}, "at least 1 character"),
        ({"kind": "digits", "path": "x"}, "does not take the key path; it takes split, seed, limit"),
        ({"kind": "digits", "limit": 0}, "greater than or equal to 1"),
        ({"kind": "paintings"}, "unknown dataset kind 'paintings'; choose from c"),
        ({"kind": "digits", "sed": 1}, "does not take the key sed; it takes split, seed, limit, numbering"),
    ],
)
def test_keys_that_do_not_belong_are_refused(keys: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        DatasetSpec.model_validate(keys)


def test_a_specification_survives_json() -> None:
    spec = CsvListing(path=Path("a.csv"), limit=3)
    assert DatasetSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert hash(spec) == hash(DatasetSpec.model_validate(spec.model_dump(mode="json")))


def test_the_real_listings_open() -> None:
    if not REAL.exists():
        pytest.skip(f"no real images in {REAL}; FLOODLIT_REAL says where they are")
    images = REAL / "images"
    photographs = opened(kind="csv", path=images / "ilsvrc_val.csv", images=images / "ilsvrc_val")
    assert (len(photographs.samples), sum(len(s.boxes) for s in photographs.samples)) == (104, 141)
    tiny = opened(
        kind="csv", path=images / "tinyimagenet_val.csv", images=images / "tinyimagenet_val", limit=400
    )
    assert len({s.label for s in tiny.samples}) == 200
    assert tiny.load(399).size == (64, 64)
    cifar = opened(kind="folder", path=images / "cifar10")
    assert len(cifar.samples) == 1000


def test_a_class_folder_that_is_a_link_has_its_images(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "set" / "dog").mkdir(parents=True)
    for path in (tmp_path / "pool" / "1.png", tmp_path / "set" / "dog" / "2.png"):
        Image.new("RGB", (3, 2)).save(path)
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "pool")
    opened = open_dataset(Folder(path=tmp_path / "set"))
    assert [(sample.sample_id, sample.label) for sample in opened.samples] == [
        ("cat/1.png", 0),
        ("dog/2.png", 1),
    ]


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"kind": "folder", "path": "none"}, "path"),
        ({"kind": "csv", "path": "none.csv"}, "path"),
        ({"kind": "csv", "path": "list.csv", "images": "none"}, "images"),
        ({"kind": "text", "path": "none.csv"}, "path"),
        ({"kind": "text", "path": "list.csv"}, "column"),
        ({"kind": "tensors", "path": "none.npz"}, "path"),
        ({"kind": "tensors", "path": "list.csv"}, "path"),
        ({"kind": "dicom", "path": "none"}, "path"),
        ({"kind": "imagenet", "path": "none"}, "path"),
        ({"kind": "imagenet", "path": "flat"}, "labels"),
        ({"kind": "imagenet", "path": "flat", "labels": "none.txt"}, "labels"),
        ({"kind": "voc", "path": "none", "split": "val"}, "path"),
        ({"kind": "coco", "path": "none.json", "images": "flat"}, "path"),
        ({"kind": "coco", "path": "list.csv", "images": "none"}, "images"),
        ({"kind": "parquet", "path": "none.parquet"}, "path"),
        ({"kind": "webdataset", "path": "list.csv"}, "path"),
        ({"kind": "torchvision", "path": "flat", "name": "None"}, "name"),
        ({"kind": "digits", "split": "none"}, "split"),
        ({"kind": "none.py:Photos"}, "kind"),
    ],
)
def test_a_refusal_names_the_key_to_change(table: dict[str, str], key: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file,label\n,\n")
    (tmp_path / "flat").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / "flat" / name)
    paths = {
        name: str(tmp_path / value) for name, value in table.items() if name in {"path", "images", "labels"}
    }
    with pytest.raises(ValueError, match=rf"^dataset\.{key}: [^\n]*$"):
        open_dataset(DatasetSpec.model_validate(table | paths))
