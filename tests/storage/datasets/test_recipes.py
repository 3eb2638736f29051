"""The recipe of docs/datasets.md that makes a listing of CUB-200-2011, on a folder of that layout."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
from PIL import Image

from places import ROOT
from storage.datasets.masks import BACKGROUND, OBJECT
from storage.datasets.opening import open_dataset
from storage.datasets.spec import DatasetSpec

IMAGES = [  # file, class, split, box as x, y, width and height
    ("001.Black_footed_Albatross/Albatross_0046_18.jpg", 1, 0, (6.0, 2.0, 32.0, 20.5)),
    ("002.Laysan_Albatross/Laysan_0001_545.jpg", 2, 1, (1.0, 1.0, 3.0, 3.0)),
    ("200.Common_Yellowthroat/Yellowthroat_0003_1.jpg", 200, 0, (0.0, 0.0, 40.0, 24.0)),
]


def cub(root: Path) -> Path:
    """A folder of three images, of which the first has a mask."""
    tables: dict[str, list[str]] = {}
    for key, (file, number, split, box) in enumerate(IMAGES, start=1):
        (root / "images" / file).parent.mkdir(parents=True)
        Image.new("RGB", (40, 24)).save(root / "images" / file)
        for name, told in (
            ("images", file),
            ("image_class_labels", number),
            ("train_test_split", split),
            ("bounding_boxes", " ".join(map(str, box))),
        ):
            tables.setdefault(name, []).append(f"{key} {told}\n")
    for name, lines in tables.items():
        (root / f"{name}.txt").write_text("".join(lines))
    votes = np.repeat(np.array([0, 51, 102, 153, 204, 255], np.uint8), 4)
    mask = root / "segmentations" / Path(IMAGES[0][0]).with_suffix(".png")
    mask.parent.mkdir(parents=True)
    Image.fromarray(np.tile(votes[:, None], (1, 40))).save(mask)
    return root


def test_the_recipe_for_cub_gives_its_labels_boxes_and_masks(tmp_path: Path) -> None:
    page = (ROOT / "docs/datasets.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (table,) = (
        told["dataset"]
        for told in map(tomllib.loads, re.findall(r"```toml\n(.*?)```", page, re.DOTALL))
        if told["dataset"]["kind"] == "csv"
    )
    root = cub(tmp_path / "CUB_200_2011")
    (tmp_path / "listing.py").write_text(program)
    for split in ("test", "train"):
        subprocess.run([sys.executable, str(tmp_path / "listing.py"), str(root), split], check=True)
    found = open_dataset(DatasetSpec.model_validate(table | {"path": tmp_path / table["path"]}))
    assert [(s.sample_id, s.label, s.boxes) for s in found.samples] == [
        (f"images/{IMAGES[0][0]}", 0, ((6.0, 2.0, 38.0, 22.5),)),
        (f"images/{IMAGES[2][0]}", 199, ((0.0, 0.0, 40.0, 24.0),)),
    ]
    assert found.classes == []
    assert found.masks is not None
    mask = np.asarray(found.masks(0, []))
    assert (mask[:12] == BACKGROUND).all()
    assert (mask[12:] == OBJECT).all()
    assert found.masks(1, []) is None
    train = open_dataset(
        DatasetSpec.model_validate({"kind": "csv", "path": root / "train.csv", "boxes": "pixels"})
    )
    assert [sample.label for sample in train.samples] == [1]
