"""Whole jobs on inputs that are not square: squashed, in a letterbox, and in their own size."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runs import completed, tiny_job
from storage.maps import read
from storage.query import query
from storage.run import Run
from storage.verify import verify

# Means of 8x8 pixels: class 1 has the mean of the cells, each times the number of its row, counted from 1,
# class 2 the same by columns, and class 0 zero.
NETWORK = """
import torch
from torch import nn


class Cells(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.cells = nn.Conv2d(channels, channels, 8, 8, groups=channels, bias=False)
        self.cells.weight.data.fill_(1 / 64)

    def forward(self, inputs):
        means = self.cells(inputs).mean(1)
        rows = torch.arange(1.0, means.shape[1] + 1, device=means.device)[:, None]
        columns = torch.arange(1.0, means.shape[2] + 1, device=means.device)
        weighted = [means * 0, means * rows, means * columns]
        return torch.stack([each.mean((1, 2)) for each in weighted], 1)


def cells(channels="3"):
    return Cells(int(channels))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of 60x30 pixels, white in the right half and elsewhere black, and one that is upright."""
    (tmp_path / "network.py").write_text(NETWORK)
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
        model={"source": f"{folder}/network.py:cells", "layer": "cells"} | model,
        target=1,
        explainers=[{"name": "hirescam"}, {"name": "occlusion", "window": 112, "stride": 112}],
        metrics=[{"name": "insertion", "steps": 4}, {"name": "pointing_game"}, {"name": "average_drop"}],
    )
    found = completed(raw)
    assert not verify(found.root)
    return found


def probability(pixels: np.ndarray) -> np.ndarray:
    """The probability of class 1 for (n, 16, 40) pixels in [0, 1]."""
    cells = pixels.reshape(len(pixels), 2, 8, 5, 8).mean((2, 4))
    rows, columns = np.arange(1, 3)[:, None], np.arange(1, 6)
    logits = np.stack([0 * cells, cells * rows, cells * columns]).mean((2, 3))
    shares = np.exp(logits)
    return np.asarray(shares[1] / shares.sum(0))


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
    pixels = read(found.inputs, 0, 4).mean(1) / 255
    cells = pixels.reshape(4, 2, 8, 5, 8).mean((2, 4))
    rows_of = np.array([[1], [2]]) / 10  # what a cell adds to the logit of class 1
    np.testing.assert_allclose(read(found.saliency("hirescam") / "maps", 0, 4), cells * rows_of, rtol=1e-5)
    # A window is half as high and half as wide as the input, and shows black.
    occluded = np.empty((4, 16, 40))
    for top, left in ((0, 0), (0, 20), (8, 0), (8, 20)):
        hidden = pixels.copy()
        hidden[:, top : top + 8, left : left + 20] = 0
        lost = probability(pixels) - probability(hidden)
        occluded[:, top : top + 8, left : left + 20] = lost[:, None, None]
    np.testing.assert_allclose(read(found.saliency("occlusion") / "maps", 0, 4), occluded, atol=1e-6)
    pointed = query(found.root, "SELECT value FROM scores WHERE metric = 'pointing_game'")
    assert {row["value"] for row in pointed.to_pylist()} <= {0.0, 1.0}


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
