"""`floodlit look`: what it counts, and that its picture shows what the network gets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image
from typer.testing import CliRunner

import packed
from flows import look as looking
from flows.cli import app
from flows.look import look, read_looked
from runs import model, prepared, tiny_job, toml
from storage.datasets.masks import IGNORED, OBJECT
from storage.samples import read_sample_inputs
from tasks.inputs import inputs
from tasks.pictures.dataset_sheet import Seen, dataset_sheet
from tasks.pictures.drawing import save

runner = CliRunner()
MODEL = model("gap") | {"resize": 40, "crop": [30, 36]}


def said(*arguments: object, code: int = 0) -> list[str]:
    """The lines that the command prints, without the blanks that align them."""
    result = runner.invoke(app, ["look", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return [re.sub(r"\s\s+", ": ", line) for line in result.output.splitlines()]


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A listing of twelve images with boxes and masks, one of them damaged and one turned by EXIF."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    rows = ["file,label,xmin,ymin,xmax,ymax,mask"]
    random = np.random.default_rng(0)
    for place in range(12):
        width, height = 60 + 10 * place, 80
        pixels = random.integers(0, 255, (height, width, 3), np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6 if place == 3 else 1
        Image.fromarray(pixels).save(folder / f"{place:02d}.png", exif=exif)
        seen = (width, height) if place == 3 else (height, width)
        mask = np.zeros(seen, np.uint8)
        mask[: seen[0] // 2] = 255
        Image.fromarray(mask).save(folder / f"{place:02d}-mask.png")
        told = "dog" if place % 3 else "cat"
        rows.append(f"{place:02d}.png,{told},5,6,50,60,{'' if place == 5 else f'{place:02d}-mask.png'}")
    rows.append("00.png,cat,0,0,9,9,00-mask.png")
    (folder / "07.png").write_bytes(b"no image")
    (folder / "list.csv").write_text("\n".join(rows))
    return folder / "list.csv"


def test_a_listing_is_counted_and_its_images_are_drawn_as_they_are(photographs: Path) -> None:
    lines = said(photographs)
    assert lines == [
        "dataset: csv, 12 images",
        "classes: 2: dog (8), cat (4)",
        "labels: on every item",
        "boxes: 13 on 12 images",
        "looked at: 12, spread evenly; 1 of them cannot be used",
        "sizes: 60x80 (smallest), 110x80 (median), 170x80 (largest)",
        "masks: on 10 of these, where the object is 50% of what is seen (median)",
        "picture: look-list.png",
        "07.png cannot be used: not an image of a known format",
        "turned by EXIF: 1, e.g. 03.png",
    ]
    with Image.open("look-list.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height


@pytest.fixture
def job(photographs: Path, tmp_path: Path) -> Path:
    raw = tiny_job(tmp_path / "run", dataset={"kind": "csv", "path": str(photographs)}, model=MODEL)
    return toml(raw | {"controls": False}, tmp_path / "job.toml")


def test_what_is_drawn_is_what_a_run_stores(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Seen] = []

    def kept(seen: list[Seen], bands: tuple[int, ...]) -> object:
        drawn.extend(seen)
        return dataset_sheet(seen, bands)

    monkeypatch.setattr(looking, "dataset_sheet", kept)
    assert look(job).facts["inputs"] == "3x30x36, uint8"
    raw = tiny_job(job.parent / "run", dataset={"kind": "csv", "path": str(job.parent / "data/list.csv")})
    run = prepared(raw | {"model": MODEL})
    inputs.fn(str(run.root), 0)
    rows = {row["sample_id"]: (place, row) for place, row in enumerate(read_sample_inputs(run.root, 0))}
    images, masks = (zarr.open_array(run.root / f"{name}.zarr", mode="r")[:] for name in ("inputs", "masks"))
    assert len(drawn) == 10
    assert sum(bool(each.problem) for each in drawn) == 1
    for each in drawn:
        place, row = rows[each.sample_id]
        assert (row["status"] == "ok") is not bool(each.problem)
        if not each.problem:
            assert each.pixels is not None
            assert (images[place] == each.pixels).all()
            assert [list(box) for box in each.boxes] == row["boxes"]
            assert each.notes == row["notes"]
            assert each.size == (row["width"], row["height"])
            assert (masks[place] == (0 if each.mask is None else each.mask)).all()
            assert each.below.endswith(", seen as 36x30")


def test_no_network_is_loaded_and_a_job_may_be_unfinished(job: Path) -> None:
    text = job.read_text()
    job.write_text(re.sub(r'"weights" = "[^"]*"', '"weights" = "/nowhere/none.pth"', text))
    assert "inputs: 3x30x36, uint8" in said(job)
    begun = job.with_name("begun.toml")
    begun.write_text('[dataset]\nkind = "csv"\npath = "data/list.csv"\nlimit = 2\n')
    assert said(begun, "--out", "seen.png")[0] == "dataset: csv, 2 images"
    assert Path("seen.png").exists()
    refused = runner.invoke(app, ["look", str(begun), "--out", str(begun)])
    assert refused.exit_code == 2
    assert begun.read_text().startswith("[dataset]")  # and no picture in place of the job
    begun.write_text('[dataset]\nkind = "csv"\npaht = "data/list.csv"\n')
    refused = runner.invoke(app, ["look", str(begun)])
    assert refused.exit_code == 2
    assert 'dataset: kind = "csv" needs the key path' in refused.output


def test_a_folder_tells_what_is_left_out_and_takes_no_picture_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in range(25):
        folder = tmp_path / "set" / f"class{min(place, 12):02d}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 4)).save(folder / f"{place}.png")
    (tmp_path / "set/class00/readme.txt").touch()
    (tmp_path / "set/empty").mkdir()
    lines = said("set")
    assert lines[:3] == [
        "dataset: folder, 25 images",
        "left out: 1 *.txt, 1 class folders without an image",
        "classes: 13 of 14: class12 (13), class00 (1), class01 (1), class02 (1), class03 (1), class04 (1), "
        "class05 (1), class06 (1), and 5 more with 1 each",
    ]
    monkeypatch.chdir(tmp_path / "set")
    refused = runner.invoke(app, ["look", "."])
    assert refused.exit_code == 2
    assert "--out: look-set.png lies in the folder of the dataset; choose another place" in refused.output


def test_a_dataset_of_which_nothing_can_be_used_is_1(photographs: Path) -> None:
    for path in photographs.parent.glob("*.png"):
        path.unlink()
    lines = said(photographs, code=1)
    assert "looked at: 12, spread evenly; 12 of them cannot be used" in lines
    assert sum(line.endswith("cannot be used: there is no such file") for line in lines) == 3


@pytest.mark.parametrize("name", ["none.toml", "none.csv", "none", "list.txt"])
def test_what_is_no_dataset_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").touch()
    refused = runner.invoke(app, ["look", str(tmp_path / name)])
    assert refused.exit_code == 2
    assert len(refused.output.splitlines()) == 1


@pytest.mark.parametrize("pack", [packed.as_tars, packed.as_parquet])
def test_files_of_packed_images_tell_how_they_are_read(pack: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    folder = pack(packed.photographs(tmp_path / "files"), tmp_path / "packed", rows=10)
    lines = said(next(folder.iterdir()))
    assert f"dataset: {'webdataset' if pack is packed.as_tars else 'parquet'}, 10 images" in lines
    assert any(line.startswith("read: image from ") and "label from" in line for line in lines)
    assert any(line.endswith("bird (4), cat (3), dog (3)") for line in lines)


def test_texts_and_numbers_are_counted(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text,label\nshort,1\nsomewhat longer,0\n,1\n")
    (tmp_path / "job.toml").write_text('[dataset]\nkind = "text"\npath = "texts.csv"\n')
    assert said(tmp_path / "job.toml") == [
        "dataset: text, 3 texts",
        "classes: 2: 1 (2), 0 (1)",
        "labels: on every item",
        "looked at: 3, spread evenly; 1 of them cannot be used",
        "lengths: 5 (shortest), 15 (median), 15 (longest) characters",
        "the first: short",
        "000002 cannot be used: the text is empty",
    ]
    np.save(tmp_path / "rows.npy", np.array([[1.5, -2, 0], [0, 7, 0]]))
    (tmp_path / "job.toml").write_text('[dataset]\nkind = "tensors"\npath = "rows.npy"\n')
    assert said(tmp_path / "job.toml")[1:] == [
        "classes: none",
        "labels: none",
        "looked at: 2, spread evenly",
        "shapes: 3",
        "values: -2 to 7",
    ]


def test_boxes_and_masks_are_drawn_over_the_image_in_its_pixels(tmp_path: Path) -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[:10, :10], mask[10:, :10] = OBJECT, IGNORED
    black = np.zeros((3, 20, 20), np.uint8)
    figure = dataset_sheet(
        [
            Seen("a$^2", "cat", black, boxes=[(2, 4, 10, 16)], mask=mask),
            Seen("b", problem="is damaged " * 30),
        ]
    )
    first, second = figure.axes
    assert [patch.get_bbox().extents.tolist() for patch in first.patches] == [[1.5, 3.5, 9.5, 15.5]]
    overlay = first.images[1].get_array()
    assert (overlay[0, 0, :3] == (255, 0, 200)).all()
    assert (overlay[15, 0, :3] == (255, 220, 0)).all()
    assert (overlay[:, 10:, 3] == 0).all()
    assert "is damaged" in second.texts[0].get_text()
    save(figure, tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as drawn:
        colours = {colour for _, colour in drawn.convert("RGB").getcolors(1 << 20)}
    assert any(green > 150 and red < 50 and blue < 50 for red, green, blue in colours)
    assert any(red > 60 and blue > 40 and green < 20 for red, green, blue in colours)  # pink on black


def test_a_relative_path_starts_at_the_folder_of_the_job(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('[dataset]\nkind = "folder"\npath = "images"\n')
    assert read_looked(tmp_path / "job.toml").dataset.model_dump()["path"] == str(tmp_path / "images")
