"""Encoded images in Parquet files: which columns are read, what they may hold, and that little is read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from packed import as_parquet, as_table, photographs
from runs import images_read
from storage.datasets import column_facts
from storage.datasets.dataset import Dataset
from storage.datasets.opening import open_dataset
from storage.datasets.spec import DatasetSpec
from storage.files import UnreadableError
from tasks.objects import boxes_of


def opened(path: Path, **keys: object) -> Dataset:
    return open_dataset(DatasetSpec.model_validate({"kind": "parquet", "path": path, **keys}))


def png(shade: int = 0) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 10, 20)).save(written, "PNG")
    return written.getvalue()


def written(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None, **how: Any) -> Path:
    """Write a table of three rows, whose images are ``image`` unless the columns have others."""
    images = (
        {} if "image" in columns or "picture" in columns else {"image": [png(shade) for shade in range(3)]}
    )
    table = pa.table(images | columns)
    if features is not None:
        told = json.dumps({"info": {"features": features}}).encode()
        table = table.replace_schema_metadata({b"huggingface": told})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **how)
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "x.parquet"


def refused(path: Path, **keys: object) -> str:
    with pytest.raises(ValueError, match=r"^dataset\.") as caught:
        opened(path, **keys)
    told = str(caught.value)
    assert "\n" not in told
    return told


def test_images_have_the_pixels_notes_and_errors_of_files(tmp_path: Path) -> None:
    root = photographs(tmp_path / "files")
    files = open_dataset(DatasetSpec.model_validate({"kind": "folder", "path": root}))
    rows = opened(as_parquet(root, tmp_path / "packed"))
    assert [(s.sample_id, s.label) for s in rows.samples] == [(s.sample_id, s.label) for s in files.samples]
    assert rows.classes == files.classes
    failed = 0
    for index in [*range(len(files.samples)), 8, 2, 3]:  # also back, and within a row group
        ours, theirs = [], []
        try:
            expected = np.asarray(files.load(index, theirs))
        except UnreadableError as error:
            failed += 1
            with pytest.raises(UnreadableError, match=str(error)):
                rows.load(index)
            continue
        np.testing.assert_array_equal(np.asarray(rows.load(index, ours)), expected)
        assert ours == theirs
    assert failed == 1


def test_columns_are_found_by_type_and_name_and_said(table: Path) -> None:
    data = opened(written(table, {"image_id": [7, 8, 9], "cls": ["b", "a", "b"], "other": [1.0, 2.0, 3.0]}))
    assert [(s.sample_id, s.label) for s in data.samples] == [("7", 1), ("8", 0), ("9", 1)]
    assert data.classes == ["a", "b"]
    assert not data.published
    assert data.told == (
        "image from image (found by its type), label from cls (found by its name), "
        "id from image_id (found by its name)"
    )
    data = opened(written(table, {"picture": [png()] * 3, "kind": ["x", "y", "z"]}), label="kind")
    assert [s.sample_id for s in data.samples] == ["000000", "000001", "000002"]
    assert data.told == (
        "image from picture (found by its type), label from kind, ids are the numbers of the rows"
    )


def test_structs_of_hugging_face_are_read_with_their_names_of_classes(table: Path) -> None:
    images = [{"bytes": png(shade), "path": f"{shade}.png"} for shade in (5, 6)] + [
        {"bytes": None, "path": "7.png"}
    ]
    features = {"animal": {"_type": "ClassLabel", "names": ["zebra", "ant"]}, "image": {"_type": "Image"}}
    columns = {"image": images, "animal": pa.array([1, -1, None], pa.int64()), "raw": [b"x", b"y", b"z"]}
    data = opened(written(table, columns, features))
    # The numbers are the declared ones, not those of the sorted names.
    assert [s.label for s in data.samples] == [1, None, None]
    assert data.classes == ["zebra", "ant"]
    assert data.published
    assert np.asarray(data.load(1))[0, 0].tolist() == [6, 10, 20]
    with pytest.raises(UnreadableError, match=r"has no bytes but the path 7\.png"):
        data.load(2)


def test_several_labels_and_boxes_inside_other_columns(table: Path) -> None:
    objects = [
        {"bbox": [[1.0, 2.0, 3.0, 2.0], [0.0, 0.0, 8.0, 6.0]], "category": [1, 0]},
        {"bbox": [], "category": []},
        {"bbox": [[2.0, 2.0, 2.0, 2.0]] * 2, "category": [1, 1]},
    ]
    feature = {"feature": {"_type": "ClassLabel", "names": ["cat", "dog"]}, "_type": "List"}
    path = written(table, {"objects": objects}, {"objects": {"bbox": {}, "category": feature}})
    data = opened(path, labels="objects.category", box_format="xywh")
    assert [s.labels for s in data.samples] == [(1, 0), (), (1,)]
    assert data.classes == ["cat", "dog"]
    assert data.samples[0].boxes == ((1, 2, 4, 4), (0, 0, 8, 6))
    assert [s.box_labels for s in data.samples] == [(1, 0), (), (1, 1)]
    found = opened(path, box_format="xywh")  # without a key, as labels and as classes of boxes
    assert list(found.samples) == list(data.samples)
    assert "classes of boxes from objects.category (beside the boxes), labels are the classes" in found.told
    assert [len(s.boxes) for s in data.samples] == [2, 0, 2]
    plain = opened(path)
    assert plain.samples[0].boxes == ()
    assert "boxes in the column objects.bbox left out, since dataset.box_format does not say" in plain.told
    assert opened(path, boxes="objects.bbox", box_format="xyxy", limit=1).samples[0].boxes[0] == (1, 2, 3, 2)


def objects(*rows: list[tuple[list[float], Any]]) -> list[dict[str, Any]]:
    return [{"bbox": [box for box, _ in row], "category": [name for _, name in row]} for row in rows]


ONE, TWO = [0.0, 0.0, 4.0, 3.0], [1.0, 1.0, 8.0, 6.0]


def test_classes_of_boxes_are_numbered_with_the_label_of_the_image(table: Path) -> None:
    columns = {
        "objects": objects([(ONE, "dog"), (TWO, "ant")], [], [(ONE, "cat")]),
        "label": ["cat", "dog", "cat"],
    }
    path = written(table, columns)
    plain = opened(path, box_format="xyxy")
    assert {s.box_labels for s in plain.samples} == {()}  # they may be classes of another kind
    assert plain.classes == ["cat", "dog"]
    told = (
        "boxes without classes, since dataset.box_labels does not say that objects.category has the classes"
    )
    assert f"{told} of label" in plain.told
    data = opened(path, box_format="xyxy", box_labels="objects.category")
    assert data.classes == ["ant", "cat", "dog"]
    assert [s.label for s in data.samples] == [1, 2, 1]
    assert [s.box_labels for s in data.samples] == [(2, 0), (), (1,)]
    assert data.objects(0, (8, 6), []) == [((0, 0, 4, 3), 2), ((1, 1, 8, 6), 0)]
    assert data.fingerprint != plain.fingerprint


def test_the_class_of_the_only_box_is_a_plain_cell(table: Path) -> None:
    sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), zip(ONE, TWO, [None] * 4, strict=True), strict=True))
    columns = {**{name: pa.array(cells) for name, cells in sides.items()}, "of": ["dog", "cat", "cat"]}
    data = opened(written(table, columns), box_labels="of")
    assert [s.label for s in data.samples] == [1, 0, 0]
    assert [s.box_labels for s in data.samples] == [(1,), (0,), ()]


def test_classes_of_boxes_that_are_not_those_of_the_boxes_are_refused(table: Path) -> None:
    rows = objects([(ONE, "dog")], [], [(ONE, "cat"), (TWO, "cat")])
    short = [dict(row, category=row["category"][:1]) for row in rows]
    told = "dataset.box_labels: x.parquet#000002 has 2 boxes and 1 classes in objects.category; write one for"
    assert refused(written(table, {"objects": short}), box_format="xyxy").startswith(told)
    lacking = written(table, {"objects": objects([(ONE, "dog")], [], [(ONE, None)])})
    assert "x.parquet#000002 has a box of the class None in objects.category" in refused(
        lacking, box_format="xyxy"
    )
    columns = {"objects": objects([(ONE, 1)], [], [(TWO, 0)]), "label": [0, 1, 1]}
    declared = {"feature": {"_type": "ClassLabel", "names": ["cat", "dog"]}, "_type": "List"}
    features = {"objects": {"bbox": {}, "category": declared}, "label": {"_type": "Value"}}
    path = written(table, columns, features)
    told = "declares other classes for objects.category than for label"
    assert told in refused(path, box_format="xyxy", box_labels="objects.category")
    assert "no boxes of" in refused(written(table, {"of": ["a"] * 3}), box_labels="of")


def test_boxes_of_classes_reach_the_rows_of_a_run(table: Path, tmp_path: Path) -> None:
    held = io.BytesIO()
    Image.new("RGB", (40, 40), (9, 10, 20)).save(held, "PNG")
    told = objects([(ONE, "5"), (TWO, "7")], [], [(TWO, "7")])
    path = written(table, {"image": [held.getvalue()] * 3, "objects": told})
    rows, _ = images_read(tmp_path / "run", kind="parquet", path=str(path), box_format="xyxy")
    assert [row["labels"] for row in rows] == [[5, 7], [], [7]]
    assert [row["box_labels"] for row in rows] == [[5, 7], None, [7]]
    assert [boxes_of(rows[0], target) for target in (5, 7, 3)] == [
        rows[0]["boxes"][:1],
        rows[0]["boxes"][1:],
        [],
    ]


def test_boxes_in_four_columns_are_corners_and_may_be_shares(table: Path) -> None:
    sides = {
        "xmin": [0.25, None, 0.0],
        "ymin": [0.0, None, 0.5],
        "xmax": [0.75, None, 1.0],
        "ymax": [0.5, None, 1.0],
    }
    path = written(table, sides)
    assert refused(path).startswith("dataset.box_unit: all boxes lie within 0..1")
    data = opened(path, box_unit="relative")
    assert data.boxes(0, (8, 6), []) == [(2, 0, 6, 3)]
    assert data.samples[1].boxes == ()


@pytest.mark.parametrize(("labels", "kind"), [([0.5, 1.0, 2.0], "double"), ([True, False, True], "bool")])
def test_a_column_of_labels_that_is_left_out_is_told(table: Path, labels: list[Any], kind: str) -> None:
    data = opened(written(table, {"label": labels}))
    assert [sample.label for sample in data.samples] == [None, None, None]
    assert f"no column of labels; label holds {kind}, not whole numbers or texts" in data.told


@pytest.mark.parametrize(
    ("columns", "keys", "told"),
    [
        ({}, {"image": "jpg"}, "dataset.image: PATH has no column jpg; it has image (binary)"),
        ({"image": ["x"] * 3}, {}, "dataset.image: PATH has no column of encoded images"),
        ({"picture": [b""] * 3, "mask": [b""] * 3}, {}, "dataset.image: PATH has the columns picture, mask"),
        ({"label": [0.5] * 3}, {"label": "label"}, "dataset.label: the column label of PATH holds double"),
        ({"label": [True] * 3}, {"label": "label"}, "dataset.label: the column label of PATH holds bool"),
        ({"label": [1, None, 0]}, {}, "dataset.label: PATH, x.parquet#000001: the label is missing"),
        ({"label": [1, -1, 0]}, {}, "dataset.label: PATH, x.parquet#000001: label -1 is negative"),
        ({"label": ["1", "a", "b"]}, {}, "is a name, but 1 in x.parquet#000000 is a number"),
        ({"label": [1] * 3, "labels": [[1]] * 3}, {}, "dataset.label: PATH has the columns label and labels"),
        ({"labels": [[0, 1, 0], [1, 0, 0], [1, 0, 1]]}, {}, "dataset.labels: the column labels of PATH"),
        ({"id": ["a", "b", "a"]}, {"id": "id"}, "dataset.id: x.parquet#000002: a is also the id of x.pa"),
        ({"id": ["a", None, "c"]}, {"id": "id"}, "dataset.id: x.parquet#000001: the id is missing"),
        ({"b": [[1.0, 2.0]] * 3}, {"boxes": "b", "box_format": "xyxy"}, "which is not four finite numbers"),
        ({"b": [[9.0, 9.0, 5.0, 9.0]] * 3}, {"boxes": "b", "box_format": "xyxy"}, "dataset.box_format: x.pa"),
        ({"b": ["1,2"] * 3}, {"boxes": "b", "box_format": "xyxy"}, "dataset.boxes: the column b of PATH"),
        ({"a": [{"b": b""}] * 3}, {"image": "a.b"}, "dataset.image: the column a.b of PATH lies inside"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_meant_are_refused_in_one_line(
    table: Path, columns: dict[str, Any], keys: dict[str, str], told: str
) -> None:
    assert told.replace("PATH", str(table)) in refused(written(table, columns), **keys)


@pytest.mark.parametrize("keys", [{"boxes": "b"}, {"label": "a", "labels": "b"}])
def test_keys_that_do_not_agree_are_refused(table: Path, keys: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"needs the key box_format|exclude each other"):
        DatasetSpec.model_validate({"kind": "parquet", "path": table, **keys})


def test_labels_beyond_the_declared_classes_are_refused(table: Path) -> None:
    features = {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    told = refused(written(table, {"label": [0, 2, 1]}, features))
    assert told == "dataset.label: x.parquet#000001 has label 2, and the table declares 2 classes"
    told = refused(written(table, {"label": ["b", "a", "a"]}, features))
    assert told.startswith(
        "dataset.label: x.parquet#000000 has label 'b', and the table declares its classes"
    )


@pytest.mark.parametrize("names", [["b", "a"], ["a", "b", "c"], None])
def test_files_that_declare_other_classes_are_refused(tmp_path: Path, names: list[str] | None) -> None:
    def features(names: list[str] | None) -> dict[str, Any]:
        return {"label": {"_type": "ClassLabel", "names": names}} if names else {}

    written(tmp_path / "a.parquet", {"label": [0, 1, 1]}, features(["a", "b"]))
    written(tmp_path / "b.parquet", {"label": [1, 0, 1]}, features(["a", "b"]))
    assert [sample.label for sample in opened(tmp_path).samples] == [0, 1, 1, 1, 0, 1]
    written(tmp_path / "b.parquet", {"label": [1, 0, 1]}, features(names))
    assert f"{tmp_path}/b.parquet does not declare the classes of label that the first" in refused(tmp_path)


def test_a_file_may_say_that_no_label_is_missing(tmp_path: Path) -> None:
    written(tmp_path / "a.parquet", {"label": [0, 1, 1]})
    whole = pa.schema([pa.field("image", pa.binary()), pa.field("label", pa.int64(), nullable=False)])
    pq.write_table(pa.table({"image": [png()], "label": [2]}).cast(whole), tmp_path / "b.parquet")
    assert [sample.label for sample in opened(tmp_path).samples] == [0, 1, 1, 2]


def test_text_that_is_not_utf8_is_refused(table: Path) -> None:
    path = written(table, {"label": pa.array([b"a", b"\xff", b"c"]).view(pa.utf8())})
    assert refused(path) == "dataset.path: the column label holds text that is not UTF-8"


def test_ids_that_are_not_named_and_not_unique_are_not_taken(table: Path) -> None:
    data = opened(written(table, {"id": ["a", "b", "a"]}))
    assert [s.sample_id for s in data.samples] == ["000000", "000001", "000002"]
    assert data.told.endswith("since in x.parquet#000002 a is also the id of x.parquet#000000")


def test_files_are_named_by_folders_globs_and_braces(tmp_path: Path) -> None:
    for number in range(8, 12):
        written(
            tmp_path / "set" / f"part-{number:02d}.parquet", {"id": [f"{number}-{row}" for row in range(3)]}
        )
    (tmp_path / "set" / "notes.txt").write_text("no table")
    first = ["8-0", "9-0", "10-0", "11-0"]

    def firsts(name: str) -> list[str]:
        return [s.sample_id for s in opened(tmp_path / name).samples if s.sample_id.endswith("-0")]

    assert firsts("set") == first
    assert firsts("set/part-*.parquet") == first
    assert firsts("set/part-{09..11}.parquet") == first[1:]
    assert firsts("set/part-{11,08}.parquet") == ["11-0", "8-0"]
    assert opened(tmp_path / "set").samples[4].uri == "part-09.parquet#000001"
    assert refused(tmp_path / "set/part-{08..12}.parquet").endswith("set/part-12.parquet")
    assert "there is no file" in refused(tmp_path / "set/q*.parquet")
    assert "stands for 0 files" in refused(tmp_path / "set/part-{9..8}.parquet")
    assert "stands for 9,999,999,999 files" in refused(tmp_path / "set/part-{1..9999999999}.parquet")
    odd = written(tmp_path / "odd" / "part-[1]{2,3}.parquet", {})
    assert len(opened(odd).samples) == 3  # a file that is called like a pattern


def test_files_with_other_columns_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "a.parquet", {"label": [0, 1, 2]})
    written(tmp_path / "b.parquet", {"label": ["x", "y", "z"]})
    told = refused(tmp_path)
    assert told.startswith(f"dataset.path: {tmp_path}/b.parquet has the column label of type string")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no table")
    assert f"{tmp_path}/b.parquet is not a Parquet file" in refused(tmp_path)


def test_opening_decodes_nothing_and_reads_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = as_parquet(photographs(tmp_path / "files"), tmp_path / "packed")
    read: list[tuple[str, int]] = []
    batches = pq.ParquetFile.iter_batches

    def noted(self: pq.ParquetFile, size: int, groups: list[int], columns: list[str], **how: Any) -> Any:
        read.extend((columns[0], group) for group in groups)
        return batches(self, size, groups, columns, **how)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    monkeypatch.setattr(column_facts, "read_encoded", lambda *_: pytest.fail("an image was decoded"))
    data = opened(folder)
    assert len(data.samples) == 10
    assert data.fingerprint
    assert read == []
    monkeypatch.undo()
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    for index in (4, 5):  # the first row group of the second file
        data.load(index)
    assert read == [("image", 0)]


def test_a_damaged_row_group_fails_its_own_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "x.parquet"
    images = []
    for _ in range(6):
        held = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(held, "PNG")
        images.append(held.getvalue())
    written(path, {"image": images}, row_group_size=2, compression="zstd")
    column = pq.read_metadata(path).row_group(1).column(0)
    raw = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    raw[start : start + 40] = b"\xff" * 40
    path.write_bytes(raw)
    data = opened(path)
    for index in range(6):
        if index in {2, 3}:
            with pytest.raises(UnreadableError, match="its row group cannot be read"):
                data.load(index)
        else:
            assert np.asarray(data.load(index)).shape == (32, 32, 3)


def test_cells_without_an_image_fail_with_a_reason(table: Path) -> None:
    data = opened(written(table, {"image": [None, b"", b"no image"]}))
    for index, told in enumerate(
        ["no image in the row", "the image is empty", "not an image of a known format"]
    ):
        with pytest.raises(UnreadableError, match=told):
            data.load(index)


def test_the_fingerprint_is_that_of_the_contents_and_not_of_the_place(tmp_path: Path) -> None:
    root = photographs(tmp_path / "files")
    here = opened(as_parquet(root, tmp_path / "a")).fingerprint
    assert opened(as_parquet(root, tmp_path / "b" / "c")).fingerprint == here
    changed = as_table(root)

    def printed(name: str, column: int, cells: list[Any]) -> str:
        other = changed.set_column(column, changed.schema.field(column), pa.array(cells))
        pq.write_table(other, tmp_path / name)
        return opened(tmp_path / name).fingerprint

    labels, images = changed["label"].to_pylist(), changed["image"].to_pylist()
    prints = {
        printed("same.parquet", 2, labels),
        printed("labels.parquet", 2, ["dog", *labels[1:]]),
        printed("images.parquet", 1, [images[0] + b"\0", *images[1:]]),
    }
    assert len(prints) == 3


def test_a_limit_spreads_over_all_files(tmp_path: Path) -> None:
    folder = as_parquet(photographs(tmp_path / "files"), tmp_path / "packed")
    whole = [s.sample_id for s in opened(folder).samples]
    data = opened(folder, limit=3)
    assert [s.sample_id for s in data.samples] == [whole[0], whole[3], whole[6]]
    assert data.classes == ["bird", "cat", "dog"]
    assert np.asarray(data.load(2)).shape == np.asarray(opened(folder).load(6)).shape
