"""What a training draws when, and what stands in for images that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from storage.datasets.kinds.folder import Folder
from storage.datasets.reading import Bands
from tasks.training.data import Crops, Order, UnusableImagesError, loader
from training_runs import SEED


def test_an_epoch_is_a_permutation_of_the_rows_that_train() -> None:
    order = Order(total=25, apart=5, batch=4, processes=1, seed=SEED)
    assert order.held_out == [0, 5, 10, 15, 20]
    assert sorted(order.rows + order.held_out) == list(range(25))
    assert order.steps_per_epoch == 5
    drawn = [key for batch in order.batches(0, 15, rank=0) for key in batch]
    for epoch in range(3):
        assert sorted(row for known, row in drawn if known == epoch) == order.rows
    assert drawn[:20] != [(0, row) for row in order.rows]
    assert [row for _, row in drawn[:20]] != [row for _, row in drawn[20:40]]


def test_a_step_draws_the_same_wherever_the_training_begins() -> None:
    order = Order(total=23, apart=0, batch=4, processes=1, seed=SEED)
    whole = list(order.batches(0, 12, rank=0))
    assert list(order.batches(7, 12, rank=0)) == whole[7:]
    assert all(len(batch) == 4 for batch in whole)


def test_processes_share_a_steps_images() -> None:
    two = Order(total=30, apart=0, batch=3, processes=2, seed=SEED)
    one = Order(total=30, apart=0, batch=6, processes=1, seed=SEED)
    ranks = [list(two.batches(0, 7, rank)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == list(one.batches(0, 7, rank=0))


@pytest.fixture
def photographs(tmp_path: Path) -> Folder:
    """Ten images of 20x30 whose pixels tell their place; the fourth is damaged."""
    for index in range(10):
        y, x = np.mgrid[:20, :30]
        Image.fromarray(np.stack([y, x, np.full_like(x, index)], -1).astype(np.uint8)).save(
            tmp_path / f"{index}.png"
        )
    (tmp_path / "3.png").write_bytes(b"no image")
    return Folder(path=tmp_path)


def crops(spec: Folder, **changes: Any) -> Crops:
    geometry = {"resize": None, "crop": 16, "interpolation": "bilinear"}
    given = {"geometry": geometry, "order": Order(10, 2, 2, 1, SEED), "flip": True} | changes
    return Crops(spec, size=(16, 16), **given)


def test_crops_are_random_pieces_of_the_image_half_of_them_flipped(photographs: Folder) -> None:
    data, again = crops(photographs), crops(photographs)
    tops, lefts, flips = set(), set(), 0
    for epoch in range(60):
        piece, problem = data[epoch, 6]
        assert piece.shape == (3, 16, 16)
        assert not problem
        assert torch.equal(piece, again[epoch, 6][0])
        y, x = piece[0], piece[1].int()
        assert (y[1:].int() - y[:-1].int() == 1).all()
        step = x[:, 1:] - x[:, :-1]
        assert (step == 1).all() or (step == -1).all()
        flips += int(step[0, 0] == -1)
        tops.add(int(y.min()))
        lefts.add(int(x.min()))
    assert tops == {0, 1, 2, 3, 4}
    assert len(lefts) > 10
    assert 15 < flips < 45


@pytest.mark.parametrize("crop", [16, None])
def test_held_out_images_are_cut_at_the_centre(crop: int | None, photographs: Folder) -> None:
    geometry = {"resize": None, "crop": crop, "interpolation": "bilinear"}
    piece, _ = crops(photographs, geometry=geometry)[-1, 5]
    assert (int(piece[0].min()), int(piece[1].min())) == (2, 7)
    assert (piece[1][:, 1:].int() - piece[1][:, :-1].int() == 1).all()


def test_nothing_is_flipped_that_must_not_be(photographs: Folder) -> None:
    data = crops(photographs, flip=False)
    for epoch in range(20):
        piece = data[epoch, 2][0][1].int()
        assert (piece[:, 1:] - piece[:, :-1] == 1).all()


def test_in_place_of_a_damaged_image_comes_the_next_one_of_its_own_side(photographs: Folder) -> None:
    """Rows 0 and 5 are held out."""
    for row in (4, 5):
        (photographs.path / f"{row}.png").write_bytes(b"no image")
    data = crops(photographs)
    for epoch, row, shown in ((0, 3, 6), (0, 4, 6), (-1, 5, 0)):
        pixels, problem = data[epoch, row]
        assert int(pixels[2].min()) == shown
        assert torch.equal(pixels, data[epoch, shown][0])
        assert problem == f"{row}.png: not an image of a known format"


def test_an_image_smaller_than_the_input_is_no_use(photographs: Folder) -> None:
    Image.new("RGB", (40, 12)).save(photographs.path / "7.png")
    pixels, problem = crops(photographs, geometry={"resize": None, "crop": None})[0, 7]
    assert int(pixels[2].min()) == 8
    assert problem == "7.png: 12x40 pixels are less than 16x16; set model.resize"


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_which_none_can_be_used_are_refused_in_one_line(workers: int, photographs: Folder) -> None:
    for path in photographs.path.iterdir():
        path.write_bytes(b"")
    told = r"^dataset: none of the images that %s can be used, e\.g\. \d\.png: the file is empty; check"
    with pytest.raises(UnusableImagesError, match=told % "are held out"):
        crops(photographs)[-1, 0]
    data = crops(photographs)
    with pytest.raises(UnusableImagesError, match=told % "train") as refusal:
        next(loader(data, data.order.batches(0, 2, 0), workers))
    assert "\n" not in str(refusal.value)


def test_crops_of_six_bands_of_sixteen_bits_are_windows_of_their_file(tmp_path: Path) -> None:
    y, x = np.mgrid[:20, :30]
    bands = np.stack([1000 * band + 30 * y + x for band in range(6)]).astype(np.uint16)
    for index in range(10):
        np.save(tmp_path / f"{index}.npy", bands)
    data = crops(Folder(path=tmp_path), bands=Bands(6, "uint16"))
    for epoch in range(8):
        piece, problem = data[epoch, 6]
        assert (piece.dtype, piece.shape, problem) == (torch.uint16, (6, 16, 16), "")
        found = piece.numpy()
        found = found[:, :, ::-1] if found[0, 0, 0] > found[0, 0, 1] else found
        top, left = divmod(int(found[0, 0, 0]), 30)
        np.testing.assert_array_equal(found, bands[:, top : top + 16, left : left + 16])
