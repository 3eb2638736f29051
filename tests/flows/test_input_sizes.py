"""Whole jobs on inputs that are not square: squashed, in a letterbox, and in their own size."""

from pathlib import Path

import band_toys
import numpy as np
import pytest
from PIL import Image

from runs import completed, tiny_job
from storage.maps import read
from storage.query import query
from storage.run import Run
from storage.verify import verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of 60x30 pixels, white in the right half and elsewhere black, and one that is upright."""
    (tmp_path / "images").mkdir()
    pixels = np.zeros((30, 60, 3), np.uint8)
    pixels[:, 30:] = 255
    lines = ["file,label,xmin,ymin,xmax,ymax"]
    for number in range(3):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        lines.append(f"{number}.png,1,30,0,60,30")
    Image.fromarray(pixels.swapaxes(0, 1)).save(tmp_path / "images" / "upright.png")
    (tmp_path / "listing.csv").write_text("\n".join([*lines, "upright.png,1,0,30,30,60"]))
    return tmp_path


def run(folder: Path, **model: object) -> Run:
    raw = tiny_job(
        folder / "run",
        dataset={"kind": "csv", "path": str(folder / "listing.csv"), "images": str(folder / "images")},
        model={"source": "band_toys:cells", "layer": "cells"} | model,
        target=1,
        explainers=[{"name": "hirescam"}, {"name": "occlusion", "window": 112, "stride": 112}],
        metrics=[{"name": "insertion", "steps": 4}, {"name": "pointing_game"}, {"name": "average_drop"}],
    )
    found = completed(raw)
    assert not verify(found.root)
    return found


def samples(run: Run) -> list[dict[str, object]]:
    return query(run.root, "SELECT * FROM samples ORDER BY sample_id").to_pylist()


def test_images_are_squashed_into_a_size_that_is_not_square(folder: Path) -> None:
    found = run(folder, resize=[16, 40])
    assert found.manifest.input_shape == (3, 16, 40)
    assert found.explainers["hirescam"].grid == (2, 5)
    rows = samples(found)
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert [(row["width"], row["height"]) for row in rows] == [(60, 30)] * 3 + [(30, 60)]
    assert rows[0]["boxes"] == [[20, 0, 40, 16]]
    assert rows[3]["boxes"] == [[0, 8, 40, 16]]
    inputs = read(found.inputs, 0, 4) / 255
    hirescam = (band_toys.gradients(inputs) * band_toys.means(inputs)).sum(1)
    np.testing.assert_allclose(read(found.saliency("hirescam") / "maps", 0, 4), hirescam, rtol=1e-5)
    occluded = band_toys.occluded(inputs)
    np.testing.assert_allclose(read(found.saliency("occlusion") / "maps", 0, 4), occluded, atol=1e-6)
    hits = query(found.root, "SELECT explainer, value FROM scores WHERE metric = 'pointing_game'").to_pylist()
    assert {row["value"] for row in hits} == {0.0, 1.0}
    # Its largest values lie in the white half, and so in the box.
    assert [row["value"] for row in hits if row["explainer"] == "hirescam"] == [1.0] * 4


def test_a_letterbox_keeps_whole_images_of_any_proportions(folder: Path) -> None:
    found = run(folder, resize=[48, 32], fit="contain")
    rows = samples(found)
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert rows[0]["boxes"] == [[16, 16, 32, 32]]
    assert rows[3]["boxes"] == [pytest.approx([4, 24, 28, 48])]  # 24x48 pixels, 4 black columns on each side
    pixels = read(found.inputs, 0, 4)
    assert pixels.shape == (4, 3, 48, 32)
    assert not pixels[0, :, :16].any()
    assert not pixels[3, :, :, :4].any()
    assert pixels[3, :, 30:, 4:28].all()
    assert found.explainers["hirescam"].grid == (6, 4)


def test_images_of_another_size_than_the_inputs_own_fail_with_the_keys_to_set(folder: Path) -> None:
    rows = samples(run(folder))
    assert [row["status"] for row in rows] == ["ok"] * 3 + ["failed"]
    assert "is 60x30, but the run's inputs are 30x60; set model.resize" in str(rows[3]["error"])
