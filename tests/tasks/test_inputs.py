"""What the stage inputs writes of images, boxes and masks, and what is said about them at the end."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image

from flows.job import JobError
from runs import explained, prepared, scores_of, tiny_job
from storage.datasets.dataset import Dataset, Sample
from storage.datasets.masks import IGNORED, prepare_mask
from storage.datasets.notes import SHARED_BOXES, SHARED_MASK
from storage.records import Step, read_record
from storage.run import Run
from storage.samples import read_samples
from tasks.inputs import _label_names, inputs
from tasks.results.remarks import notes_of, unscored
from tasks.results.summary import summarise
from tasks.scores import scores

BOX = (150, 40, 200, 80)  # of the object in an image of 320 rows and 300 columns
BOXES = "file,label,xmin,ymin,xmax,ymax\n"
MASKS = "file,label,mask\n"
OF_BOXES = ["pointing_game", "energy_pointing_game", "max_box_accuracy"]
OF_MASKS = ["pixel_precision", "relevance_mass_accuracy", "relevance_rank_accuracy"]


def photograph(size: tuple[int, int] = (320, 300)) -> Image.Image:
    """A grey image with a bright square in the box."""
    pixels = np.full((*size, 3), 60, np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 250
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photograph().save(tmp_path / "a.png")
    area = np.zeros((320, 300), np.uint8)
    area[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 1
    Image.fromarray(area * 255).save(tmp_path / "plain.png")
    Image.fromarray(np.dstack([np.full((320, 300, 3), 255, np.uint8), area * 255])).save(
        tmp_path / "alpha.png"
    )
    void = np.where(area, 7, 0).astype(np.uint8)
    void[30:40, 100:200] = 255
    indexed = Image.fromarray(void, "P")
    indexed.putpalette([i for c in range(256) for i in (c, 255 - c, c // 2)])
    indexed.save(tmp_path / "void.png")
    Image.fromarray(np.where(area, 1, 2).astype(np.uint8)).save(tmp_path / "trimap.png")
    return tmp_path


def job(folder: Path, listing: str, metrics: list[str], **dataset: Any) -> dict[str, Any]:
    path = folder / f"{len(list(folder.glob('*.csv')))}.csv"  # a worker opens each listing once
    path.write_text(listing)
    changes = {
        "dataset": {"kind": "csv", "path": str(path), **dataset},
        "explainers": [{"name": "gradcam"}],
        "controls": False,
        "metrics": [{"name": name} for name in metrics],
    }
    raw = tiny_job(folder / "run", **changes)
    raw["model"] |= {"resize": 32, "crop": 32}
    return raw


def scored(raw: dict[str, Any]) -> tuple[Run, dict[str, dict[str, Any]]]:
    """The finished run of a job, and the rows of its summary by metric."""
    run = explained(prepared(raw))
    for shard in range(run.shards):
        for name in run.explainers:
            scores.fn(str(run.root), shard, name)
    return run, {row["metric"]: row for row in summarise(run).to_pylist()}


def test_image_and_box_are_in_one_frame_whatever_the_orientation(folder: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    photograph().transpose(Image.Transpose.ROTATE_90).save(folder / "lying.jpg", exif=exif, quality=95)
    raw = job(
        folder,
        BOXES + f"a.png,0,{','.join(map(str, BOX))}\nlying.jpg,0,{','.join(map(str, BOX))}\n",
        OF_BOXES,
    )
    run = explained(prepared(raw))
    plain, turned = read_samples(run.root)
    assert (turned["width"], turned["height"]) == (plain["width"], plain["height"]) == (300, 320)
    assert turned["boxes"] == plain["boxes"]
    assert (plain["notes"], turned["notes"]) == ([], ["turned by EXIF"])
    stored = zarr.open_array(str(run.inputs), mode="r")[:]
    assert np.abs(stored[0].astype(int) - stored[1]).max() < 30
    x0, y0, x1, y1 = (round(side) for side in plain["boxes"][0])
    assert stored[:, :, y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].min() > 200
    assert notes_of(run, run.records()) == [f"turned by EXIF: 1, e.g. {folder / 'lying.jpg'}"]


def test_threads_read_the_same_bytes_and_rows_as_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = "file,label,mask\n"
    for number in range(40):  # more than two blocks of a thread, and one file that cannot be read
        name = f"{number}.png"
        if number == 20:
            (folder / name).write_bytes(b"no image")
        else:
            Image.new("RGB", (300, 320), (number, 2 * number, 3)).save(folder / name)
        listing += f"{name},0,plain.png\n"
    raw = job(folder, listing, OF_MASKS) | {"batch": {"shard": 40}}
    seen, files = set(), []
    for threads in (1, 4):
        monkeypatch.setattr("tasks.inputs.torch.get_num_threads", lambda count=threads: count)
        monkeypatch.setattr(
            "tasks.inputs.prepare_mask",
            lambda *a, real=prepare_mask: (seen.add(threading.get_ident()), time.sleep(0.01), real(*a))[-1],
        )
        run = prepared(raw | {"store": str(folder / f"run{threads}")})
        inputs.fn(str(run.root), 0)
        record = read_record(run.root, Step("inputs", 0))
        assert record is not None
        files.append([(file.path, file.sha256) for file in record.files])
        assert record.statuses == {"ok": 39, "failed": 1}
        assert len(seen) == min(threads, 3)
        seen.clear()
        colours = zarr.open_array(str(run.inputs), mode="r")[:, :, 0, 0]
        assert [tuple(c) for c in colours] == [(n, 2 * n, 3) if n != 20 else (0, 0, 0) for n in range(40)]
    assert files[0] == files[1]
    assert len(files[0]) == 3


def test_boxes_that_do_not_count_are_counted_and_a_metric_without_any_says_why(folder: Path) -> None:
    Image.new("RGB", (900, 320)).save(folder / "wide.png")
    listing = BOXES + "a.png,0,900,900,990,990\nwide.png,0,1,1,40,40\nwide.png,0,5,5,5,9\n"
    run, summary = scored(job(folder, listing, ["sparseness", *OF_BOXES]))
    reason = (
        "no image has a box in the network's input (box outside the image: 1, box cropped away: 1, box "
        "without area: 1)"
    )
    for metric, row in summary.items():
        assert (row["n"] == 0, row["reason"]) == ((False, None) if metric == "sparseness" else (True, reason))
    of_boxes = ", ".join(metric for metric in summary if metric != "sparseness")
    assert unscored(summary_of(run)) == [f"n = 0 for {of_boxes}: {reason}"]
    assert notes_of(run, run.records()) == [
        f"box cropped away: 1, e.g. {folder / 'wide.png'}",
        f"box outside the image: 1, e.g. {folder / 'a.png'}: 900,900,990,990 in 300x320; these boxes do not "
        "count; check the unit of the boxes and dataset.exif",
        f"box without area: 1, e.g. {folder / 'wide.png'}: 5,5,5,9",
    ]


def summary_of(run: Run) -> Any:
    from storage.parquet import read_table

    return read_table(run.summary)


def test_relative_boxes_give_the_scores_of_boxes_in_pixels(folder: Path) -> None:
    relative = f"a.png,0,{150 / 300},{40 / 320},{200 / 300},{80 / 320}\n"
    with pytest.raises(JobError, match=r"^dataset\.boxes: all boxes lie within 0\.\.1"):
        prepared(job(folder, BOXES + relative, OF_BOXES))
    _, mine = scored(job(folder, BOXES + relative, OF_BOXES, boxes="relative"))
    raw = job(folder, BOXES + f"a.png,0,{','.join(map(str, BOX))}\n", OF_BOXES)
    _, theirs = scored(raw | {"store": str(folder / "other")})
    assert {m: row["mean"] for m, row in mine.items()} == {m: row["mean"] for m, row in theirs.items()}


@pytest.mark.parametrize(
    ("mask", "keys"),
    [
        ("alpha.png", {}),
        ("trimap.png", {"mask_values": [1]}),
        ("void.png", {"mask_values": [7]}),
    ],
)
def test_masks_of_every_kind_give_the_scores_of_the_plain_one(
    mask: str, keys: dict[str, Any], folder: Path
) -> None:
    _, plain = scored(job(folder, MASKS + "a.png,0,plain.png\n", OF_MASKS))
    raw = job(folder, MASKS + f"a.png,0,{mask}\n", OF_MASKS, **keys)
    _, other = scored(raw | {"store": str(folder / "other")})
    assert all(row["n"] == 1 for row in plain.values())
    assert {m: row["mean"] for m, row in plain.items()} == {m: row["mean"] for m, row in other.items()}


def test_pixels_that_are_ignored_are_neither_object_nor_background(folder: Path) -> None:
    raw = job(folder, MASKS + "a.png,0,void.png\n", OF_MASKS, mask_values=[7], mask_ignore=[255])
    run, summary = scored(raw)
    stored = zarr.open_array(str(run.masks), mode="r")[0]
    counted = stored != IGNORED
    assert (~counted).sum() > 0
    share = (stored == 1).sum() / counted.sum()
    areas = ("relevance_mass_accuracy_area", "relevance_rank_accuracy_area", "pixel_precision_all_ones")
    for name in (*areas, "pxap_all_ones"):
        assert summary[name]["mean"] == pytest.approx(share, abs=1e-6)


def test_a_mask_that_covers_its_image_and_an_empty_one_are_said(folder: Path) -> None:
    rows = "a.png,0,trimap.png\n"
    run, _ = scored(job(folder, MASKS + rows, OF_MASKS))
    assert notes_of(run, run.records()) == [
        f"mask covers the whole image: 1, e.g. {folder / 'a.png'}; set dataset.mask_values if other values "
        "than 0 are the background",
        "mask with several values besides 0, all of which count as the object: 1, e.g. "
        f"{folder / 'a.png'}: 1, 2; "
        "set dataset.mask_values or mask_ignore if some are another object or a border",
    ]
    raw = job(folder, MASKS + rows, OF_MASKS, mask_values=[9]) | {"store": str(folder / "other")}
    _, summary = scored(raw)
    assert {row["reason"] for row in summary.values()} == {
        "no image has a pixel of an object in the network's input (mask without an object: 1)"
    }


def test_a_mask_of_the_lying_image_fails_the_row_and_names_the_key(folder: Path) -> None:
    Image.open(folder / "plain.png").transpose(Image.Transpose.ROTATE_90).save(folder / "lying.png")
    run = explained(prepared(job(folder, MASKS + "a.png,0,lying.png\n", OF_MASKS)))
    (sample,) = read_samples(run.root)
    assert sample["status"] == "failed"
    assert "its mask is 320x300, but the image is 300x320; see dataset.exif" in sample["error"]


def test_special_files_and_names_are_rows_and_the_others_go_on(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    rows = "a.png,0,plain.png\npipe.png,0,\n/dev/zero,0,\nb.png,0,pipe.png\n"
    photograph().save(folder / "b.png")
    run = explained(prepared(job(folder, MASKS + rows, OF_MASKS)))
    samples = read_samples(run.root)
    assert [sample["status"] for sample in samples] == ["ok", "failed", "failed", "failed"]
    for sample, told in zip(samples[1:], ("a pipe", "a device", "its mask pipe.png: .* a pipe"), strict=True):
        assert re.search(told, sample["error"])


def test_files_of_a_folder_that_are_left_out_are_in_the_manifest(folder: Path) -> None:
    (folder / "set").mkdir()
    photograph().save(folder / "set" / "a.png")
    bad = os.fsdecode(os.fsencode(folder) + b"/set/latin\xff.png")
    Path(bad).write_bytes((folder / "a.png").read_bytes())
    (folder / "set" / "l.csv").write_text("")
    raw = tiny_job(folder / "run", dataset={"kind": "folder", "path": str(folder / "set")})
    raw |= {"metrics": [{"name": "sparseness"}], "controls": False}
    raw["model"] |= {"resize": 32, "crop": 32}
    run = explained(prepared(raw))
    assert Run.open(run.root).manifest.left_out == {"*.csv": 1}
    assert "left out: 1 *.csv" in notes_of(run, run.records())
    failed = [sample for sample in read_samples(run.root) if sample["status"] != "ok"]
    assert [sample["sample_id"] for sample in failed] == [r"latin\udcff.png"]
    assert "not UTF-8" in failed[0]["error"]


def test_a_damaged_table_of_samples_is_named(folder: Path) -> None:
    run = explained(prepared(job(folder, MASKS + "a.png,0,plain.png\n", OF_MASKS)))
    run.samples.write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"samples\.parquet cannot be read"):
        notes_of(run, run.records())


def test_a_label_that_is_no_class_has_no_name() -> None:
    named, numbers = (Dataset([], classes, lambda *_: None, list) for classes in (["cat", "dog"], []))
    labels: list[tuple[int, ...]] = [(), (-1,), (0,), (1,), (2,), (1, 0), (2, 0)]
    samples = [Sample("id", "uri", labels=each) for each in labels]
    assert [_label_names(named, sample) for sample in samples] == [
        None, None, "cat", "dog", None, "dog; cat", "cat"
    ]  # fmt: skip
    assert [_label_names(numbers, Sample("id", "uri", label)) for label in (None, 0, 7)] == [None, "0", "7"]


def test_boxes_of_several_labels_count_for_their_own_or_are_told(folder: Path) -> None:
    # The first box lies in the rows that are cut off.
    rows = [("0;1", "0,0,300,5", "1"), ("0;1", "0,0,150,320", "0"), ("0;1", "225,0,300,320", "1")]
    own = "".join(f"a.png,{labels},{box},{of}\n" for labels, box, of in rows)
    shared = "".join(f"a.png,{labels},{box}\n" for labels, box, _ in rows)
    header = "file,labels,xmin,ymin,xmax,ymax"
    for name, listing, wanted in (
        ("own", f"{header},boxlabel\n{own}", [0.5, 0.25]),
        ("shared", f"{header}\n{shared}", [0.75, 0.75]),
    ):
        raw = job(folder, listing, ["energy_pointing_game"])
        raw |= {"target": "labels", "explainers": [{"name": "all_ones"}], "store": str(folder / name)}
        run, _ = scored(raw)
        values = {target: value for (_, target, *_), (value, _) in scores_of(run.root).items()}
        assert [values[0], values[1]] == pytest.approx(wanted)
        told = [note for note in read_samples(run.root)[0]["notes"] if note == SHARED_BOXES]
        assert told == [SHARED_BOXES] * (name == "shared")


def test_a_mask_that_several_labels_share_is_told(folder: Path) -> None:
    listing = "file,labels,mask\na.png,0;1,plain.png\n"
    run, _ = scored(job(folder, listing, ["relevance_mass_accuracy"]) | {"target": "labels"})
    assert SHARED_MASK in read_samples(run.root)[0]["notes"]
    (line,) = (told for told in notes_of(run, run.records()) if told.startswith(SHARED_MASK))
    assert line.endswith("; it does not say which object is of which label")
