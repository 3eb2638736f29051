"""Images in tar files that WebDataset wrote: what is read of them, the index, and damaged tars."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from packed import as_tars, files, photographs
from storage.datasets import column_facts, shard_files, tar_samples
from storage.datasets.dataset import Dataset
from storage.datasets.index import NAME, keep_index, kept_index
from storage.datasets.opening import open_dataset
from storage.datasets.spec import DatasetSpec
from storage.files import UnreadableError


def opened(path: Path, run: Path | None = None, **keys: object) -> Dataset:
    return open_dataset(DatasetSpec.model_validate({"kind": "webdataset", "path": path, **keys}), run=run)


def refused(path: Path, **keys: object) -> str:
    with pytest.raises(ValueError, match=r"^dataset\.") as caught:
        opened(path, **keys)
    told = str(caught.value)
    assert "\n" not in told
    return told


def png(shade: int = 0) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 10, 20)).save(held, "PNG")
    return held.getvalue()


def written(path: Path, samples: list[dict[str, Any]]) -> Path:
    """Write samples with WebDataset's own writer; they are numbered, and get an image if they have none."""
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for number, sample in enumerate(samples):
            images = [name for name in sample if name.lower().endswith(("png", "jpg"))]
            parts = {"__key__": f"{number:04d}", **({} if images else {"png": png(number)}), **sample}
            writer.write(
                {name: value if name == "__key__" else as_bytes(value) for name, value in parts.items()}
            )
    return path


def as_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return (json.dumps(value) if isinstance(value, dict) else value).encode()


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return tmp_path / "x.tar"


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of photographs, and tars of the same files."""
    root = photographs(tmp_path / "files")
    return root, as_tars(root, tmp_path / "tars")


def test_images_are_those_of_the_folder_and_of_webdatasets_own_reader(packed: tuple[Path, Path]) -> None:
    root, tars = packed
    folder = open_dataset(DatasetSpec.model_validate({"kind": "folder", "path": root}))
    data = opened(tars)
    assert [(s.sample_id, s.label) for s in data.samples] == [(s.sample_id, s.label) for s in folder.samples]
    assert data.classes == folder.classes
    theirs = [
        (sample["__key__"], sample["cls"].decode())
        for path in sorted(tars.iterdir())
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
    ]
    assert [(s.sample_id.partition(".")[0], data.classes[s.label or 0]) for s in data.samples] == theirs
    for index in range(len(data.samples)):
        ours, notes = [], []
        try:
            expected = np.asarray(folder.load(index, notes))
        except UnreadableError as error:
            with pytest.raises(UnreadableError, match=str(error)):
                data.load(index)
            continue
        np.testing.assert_array_equal(np.asarray(data.load(index, ours)), expected)
        assert ours == notes


def test_labels_are_members_or_fields_of_json(tar: Path) -> None:
    data = opened(written(tar, [{"cls": "7", "txt": "a text"}, {"cls": "3", "txt": "another"}]))
    assert ([s.label for s in data.samples], data.classes) == ([7, 3], [])
    assert data.told.startswith("image from the members of image formats, label from cls (found by its name)")
    told = [{"json": {"label": "b", "of": {"kind": 4}}}, {"json": {"label": "a", "of": {"kind": 2}}}]
    data = opened(written(tar, told))
    assert ([s.label for s in data.samples], data.classes) == ([1, 0], ["a", "b"])
    assert [s.label for s in opened(tar, label="json.of.kind").samples] == [4, 2]
    data = opened(written(tar, [{"txt": "cat\n"}, {"txt": "ant"}]))
    assert [s.label for s in data.samples] == [None, None]  # a text may be a caption
    assert [s.label for s in opened(tar, label="txt").samples] == [1, 0]


def test_several_labels_boxes_and_ids_are_fields_of_json(tar: Path) -> None:
    first = {"labels": [], "boxes": [], "name": "p"}  # says nothing about the type of the lists
    second = {"labels": [2, 0], "boxes": [[1, 2, 3.5, 4]], "name": "q"}
    data = opened(written(tar, [{"json": first}, {"json": second}]), box_format="xywh", id="json.name")
    assert [s.labels for s in data.samples] == [(), (2, 0)]
    assert [s.boxes for s in data.samples] == [(), ((1, 2, 4.5, 6),)]
    assert [s.sample_id for s in data.samples] == ["p", "q"]


def test_one_member_may_be_label_and_id(tar: Path) -> None:
    data = opened(written(tar, [{"cls": "b"}, {"cls": "a"}]), label="cls", id="cls")
    assert [(s.sample_id, s.label) for s in data.samples] == [("b", 1), ("a", 0)]


def test_threads_read_what_one_reads(packed: tuple[Path, Path]) -> None:
    data = opened(packed[1])
    assert data.parallel
    places = [place for place in range(10) if data.samples[place].sample_id != "dog/cut.png"] * 8
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda place: np.asarray(data.load(place)), places))
    for place, pixels in zip(places, found, strict=True):
        np.testing.assert_array_equal(pixels, np.asarray(data.load(place)))


def test_one_of_several_images_is_named(tar: Path) -> None:
    samples = [{"input.png": png(1), "mask.png": png(2)}, {"input.png": png(3), "mask.png": png(4)}]
    told = refused(written(tar, samples))
    assert told.startswith(f"dataset.image: 0000 in {tar} has the images input.png, mask.png; name")
    data = opened(tar, image="input.png")
    assert [np.asarray(data.load(i))[0, 0, 0] for i in range(2)] == [1, 3]
    data = opened(written(tar, [{"jpg": png(1), "mask.png": png(2)}, {"PNG": png(3)}]))
    assert [s.sample_id for s in data.samples] == ["0000.jpg", "0001.PNG"]
    assert len(opened(tar, image="jpg").samples) == 1


def test_members_that_are_no_samples_are_counted(tar: Path) -> None:
    with tarfile.open(tar, "w") as made:
        for name, data in {"./b.png": png(), "._b.png": b"x", "c.json": b"{}", "c.txt": b"t"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("d.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(link)
    data = opened(tar)
    assert [s.sample_id for s in data.samples] == ["b.png"]
    assert data.left_out == {
        "hidden members": 1,
        "links and other members that are no files": 1,
        "samples without an image": 1,
    }


def test_ids_have_the_name_of_their_tar_where_two_tars_hold_one_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(tmp_path / f"{name}.tar", [{"cls": "0"}])
    assert [s.sample_id for s in opened(tmp_path).samples] == ["a.tar/0000.png", "b.tar/0000.png"]
    assert [s.sample_id for s in opened(tmp_path / "b.tar").samples] == ["0000.png"]


XYXY = {"boxes": "json.b", "box_format": "xyxy"}


@pytest.mark.parametrize(
    ("samples", "keys", "told"),
    [
        ([{"cls": "1"}], {"label": "json.label"}, "dataset.label: PATH has no column json.label; it has cls"),
        ([{"cls": "1"}, {"txt": "1"}], {}, "dataset.path: 0001 in PATH has no member cls, which other"),
        ([{"cls": "nan"}], {}, "dataset.label: PATH, x.tar#0000.png: label nan stands for a missing"),
        ([{"json": {"label": 0.5}}], {"label": "json.label"}, "dataset.label: the column json.label of PATH"),
        ([{"json": {"label": 1}}, {"json": {"label": "b"}}], {}, "dataset.path: the values of json.la"),
        ([{"json": {"b": ["1_0", 0, 5, 5]}}], XYXY, "holds no values, or values of"),
        ([{"json": {"b": [10**400, 0, 5, 5]}}], XYXY, "holds no values, or values of"),
        ([{"json": "[1]"}], {}, "dataset.path: 0000.json in PATH is no JSON object with fields"),
        ([{"json": "{"}], {}, "dataset.path: 0000.json in PATH is not JSON"),
        ([{"cls": b"\xff\xfe"}], {}, "dataset.path: 0000.cls in PATH is not text in UTF-8"),
        ([{"cls": "1", "__key__": "a"}, {"cls": "2", "__key__": "a"}], {}, "dataset.path: PATH holds both"),
    ],
)  # fmt: skip
def test_members_that_cannot_be_meant_are_refused_in_one_line(
    tar: Path, samples: list[dict[str, Any]], keys: dict[str, str], told: str
) -> None:
    assert told.replace("PATH", str(tar)) in refused(written(tar, samples), **keys)


def test_values_of_another_type_behind_the_first_samples_are_refused(tar: Path) -> None:
    samples = [{"json": {"label": number}} for number in range(101)] + [{"json": {"label": "b"}}]
    assert refused(written(tar, samples)).startswith(
        "dataset.path: the values of json.label are of several types"
    )


def test_no_pass_is_made_where_the_run_holds_an_index(
    packed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tars = packed
    run = tmp_path / "run"
    run.mkdir()
    first = opened(tars, run)
    keep_index(run, first)
    passes: list[Path] = []
    members = tar_samples.members
    monkeypatch.setattr(
        tar_samples, "members", lambda path, *rest: passes.append(path) or members(path, *rest)
    )
    again = opened(tars, run)
    assert passes == []
    assert list(again.samples) == list(first.samples)
    assert (again.fingerprint, again.told, again.left_out) == (first.fingerprint, first.told, first.left_out)
    np.testing.assert_array_equal(np.asarray(again.load(4)), np.asarray(first.load(4)))
    assert len(opened(tars, run, limit=3).samples) == 3  # of the same index
    assert passes == []
    opened(tars, run, image="png")  # other members
    assert len(passes) == 3
    raw = bytearray((run / NAME).read_bytes())
    raw[40] ^= 1
    (run / NAME).write_bytes(raw)
    assert kept_index(run, first.index.schema.metadata[b"floodlit.state"].decode()) is None
    opened(tars, run)
    assert len(passes) == 6
    keep_index(run, first)  # written anew
    opened(tars, run)
    assert len(passes) == 6


def test_a_changed_tar_is_looked_at_again_and_has_another_fingerprint(tar: Path, tmp_path: Path) -> None:
    def tarred(shade: int, changed: int) -> Path:
        held = io.BytesIO()
        Image.new("RGB", (8, 6), (shade, 0, 0)).save(held, "BMP")  # of one size
        with tarfile.open(tar, "w") as made:
            info = tarfile.TarInfo("a.bmp")
            info.size, info.mtime = len(held.getvalue()), changed
            made.addfile(info, io.BytesIO(held.getvalue()))
        os.utime(tar, (changed, changed))
        return tar

    first = opened(tarred(1, 1000))
    keep_index(tmp_path, first)
    assert opened(tarred(1, 1000), tmp_path).fingerprint == first.fingerprint
    other = opened(tarred(2, 2000), tmp_path)
    assert other.fingerprint != first.fingerprint
    assert np.asarray(other.load(0))[0, 0, 0] == 2
    copy = tmp_path / "elsewhere" / "y.tar"
    copy.parent.mkdir()
    copy.write_bytes(tar.read_bytes())
    assert opened(copy).fingerprint == other.fingerprint


def test_opening_decodes_nothing(packed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column_facts, "read_encoded", lambda *_: pytest.fail("an image was decoded"))
    assert opened(packed[1]).fingerprint


def test_a_tar_that_was_cut_anywhere_is_refused(tar: Path) -> None:
    raw = written(tar, [{"cls": "0"}, {"cls": "1"}]).read_bytes()
    with tarfile.open(tar) as made:
        end = max(info.offset_data + -(-info.size // 512) * 512 for info in made)
    for length in [0, 100, 512, 700, *range(1024, end + 1, 512), end - 1, end + 511]:
        tar.write_bytes(raw[:length])
        told = refused(tar)
        assert told.startswith(f"dataset.path: {tar} "), length
        assert "cut off" in told or "is not a tar file" in told, length
    tar.write_bytes(raw[: end + 512])  # one block of the end mark
    assert len(opened(tar).samples) == 2


def test_other_tars_that_cannot_be_read_by_member_are_refused(tar: Path, tmp_path: Path) -> None:
    raw = written(tar, [{"cls": "0"}, {"cls": "1"}]).read_bytes()
    (tmp_path / "gz.tar").write_bytes(gzip.compress(raw))
    assert "is compressed, so that its members cannot be read one by one" in refused(tmp_path / "gz.tar")
    tar.write_bytes(raw + raw)
    assert "goes on behind its end mark" in refused(tar)
    with tarfile.open(fileobj=io.BytesIO(raw)) as made:
        second = made.getmembers()[2].offset
    tar.write_bytes(raw[:second] + b"x" * 512 + raw[second + 512 :])
    assert refused(tar) == f"dataset.path: {tar} is damaged: at byte {second} there is no header of a member"
    tar.write_bytes(b"no tar" * 1000)
    assert refused(tar).startswith(f"dataset.path: {tar} is not a tar file")
    assert refused(tmp_path / "none-{0..3}.tar") == f"dataset.path: there is no file {tmp_path}/none-0.tar"


def test_an_image_whose_tar_became_shorter_fails_with_a_reason(
    tar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on S3, where the times of files are not asked for."""
    monkeypatch.setattr(shard_files, "_state", lambda _: (0, 0))
    data = opened(written(tar, [{}, {}]))
    tar.write_bytes(tar.read_bytes()[:600])
    with pytest.raises(UnreadableError, match="its tar ends before the image does"):
        data.load(1)


def test_the_files_of_a_tar_made_of_a_folder_have_the_ids_of_the_folder(
    packed: tuple[Path, Path], tar: Path
) -> None:
    root, _ = packed
    with tarfile.open(tar, "w") as made:
        made.add(root, arcname=".")
    data = opened(tar)
    assert sorted(s.sample_id for s in data.samples) == [name for name, _, _ in files(root)]
    assert {s.label for s in data.samples} == {None}
