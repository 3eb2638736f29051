"""ROAD: pixels made up as the linear system says, removed by exact rank, and noise of the image's own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor

from metric_toys import (
    LinearPixels,
    ToyClassifier,
    batch_of,
    random_inputs,
    random_maps,
    rows_of,
    small_network,
)
from tasks.metrics.imputation import NOTHING_LEFT, imputed, normal
from tasks.metrics.road import Road, RoadParameters

SIZE = (12, 10)
REAL = Path(os.environ.get("FLOODLIT_REAL", Path(__file__).parents[3] / "shared" / "real"))


def removed_at(count: int, size: tuple[int, int], share: float, seed: int = 0) -> Tensor:
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(seed)) < share


def blobs(count: int, size: tuple[int, int], share: float) -> Tensor:
    """Removed regions, connected as those of coarse maps are."""
    coarse = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    fine = torch.nn.functional.interpolate(coarse, size, mode="bilinear")[:, 0]
    return fine > fine.flatten(1).quantile(1 - share, 1)[:, None, None]


def solved(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The definition, pixel by pixel: weighted means of neighbours, weights divided by their sum."""
    filled = image.copy()
    places = list(zip(*np.nonzero(removed), strict=True))
    index = {place: i for i, place in enumerate(places)}
    matrix, right = lil_matrix((len(places), len(places))), np.zeros((len(places), len(image)))
    for place, i in index.items():
        total = 0.0
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                near = place[0] + dy, place[1] + dx
                if (dy, dx) == (0, 0) or not (
                    0 <= near[0] < removed.shape[0] and 0 <= near[1] < removed.shape[1]
                ):
                    continue
                weight = 1 / 6 if dy * dx == 0 else 1 / 12
                total += weight
                if near in index:
                    matrix[i, index[near]] -= weight
                else:
                    right[i] += weight * image[:, near[0], near[1]]
        matrix[i, i] += total
    values = spsolve(matrix.tocsr(), right).reshape(len(places), -1)
    for place, i in index.items():
        filled[:, place[0], place[1]] = values[i]
    return filled


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [removed_at, blobs])
def test_pixels_are_made_up_as_a_sparse_solver_says(shape, share: float) -> None:
    images, removed = random_inputs(3, (17, 23)), shape(3, (17, 23), share)
    found = imputed(images, removed)
    for image, mask, own in zip(images.double().numpy(), removed.numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(own, solved(image, mask), atol=4e-3)
        assert (own[:, ~mask] == image[:, ~mask].astype(np.float32)).all()


def test_a_ramp_is_continued_and_one_pixel_left_is_everywhere() -> None:
    ramp = torch.linspace(0, 1, 20).expand(1, 3, 20, 20).clone()
    hole = torch.zeros(1, 20, 20, dtype=torch.bool)
    hole[:, 5:15, 5:15] = True
    torch.testing.assert_close(imputed(ramp, hole), ramp, atol=4e-3, rtol=0)
    alone = torch.ones(1, 20, 20, dtype=torch.bool)
    alone[0, 3, 4] = False
    found = imputed(ramp, alone)
    torch.testing.assert_close(found, ramp[:, :, 3:4, 4:5].expand_as(ramp), atol=4e-3, rtol=0)


@pytest.mark.parametrize("how", ["linear", "telea"])
def test_where_nothing_is_left_there_is_grey_and_where_nothing_is_removed_the_image(how) -> None:
    images = random_inputs(2, SIZE)
    removed = torch.stack([torch.ones(SIZE), torch.zeros(SIZE)]).bool()
    found = imputed(images, removed, how)
    assert (found[0] == NOTHING_LEFT).all()
    torch.testing.assert_close(found[1], images[1])


def test_an_image_is_filled_as_if_it_were_alone() -> None:
    images, removed = (
        random_inputs(5, (40, 30)),
        torch.cat([blobs(4, (40, 30), 0.8), removed_at(1, (40, 30), 0.1)]),
    )
    together = imputed(images, removed)
    for i in range(5):
        torch.testing.assert_close(
            together[i], imputed(images[i : i + 1], removed[i : i + 1])[0], atol=1e-6, rtol=0
        )


def test_noise_is_standard_normal_and_the_seeds_own() -> None:
    seeds = torch.tensor([3, 4])
    found = normal(seeds, (3, 101, 67))
    assert abs(float(found.mean())) < 0.02
    assert float(found.std()) == pytest.approx(1, abs=0.02)
    assert float((found.abs() > 1.96).float().mean()) == pytest.approx(0.05, abs=0.005)
    assert torch.equal(found[1:], normal(seeds[1:], (3, 101, 67)))
    assert abs(float((found[0] * found[1]).mean())) < 0.02


class Recorder(ToyClassifier):
    """Keeps what it is asked about."""

    def logits(self, inputs: Tensor) -> Tensor:
        self.seen = [*getattr(self, "seen", []), inputs]
        return super().logits(inputs)


def seen_by(maps: Tensor, **parameters) -> tuple[Tensor, Tensor]:
    """Inputs (B, 3, H, W) and what the classifier saw of them, (B, 2 levels, 3, H, W)."""
    classifier = Recorder(small_network())
    inputs = random_inputs(len(maps), SIZE)
    Road(classifier, RoadParameters(**parameters)).score(batch_of(classifier, inputs), maps)
    return inputs, torch.cat(classifier.seen).view(len(maps), -1, 3, *SIZE)


def test_exactly_the_share_is_removed_in_either_order_even_from_a_map_that_is_mostly_zero() -> None:
    """Percentiles would remove everything, or nothing."""
    maps = torch.zeros(2, *SIZE)
    maps[:, 4, 5] = 1
    inputs, seen = seen_by(maps, levels=(10, 50, 90))
    changed = (seen != inputs[:, None]).any(2)
    assert changed.sum((2, 3)).tolist() == [[12, 60, 108] * 2] * 2
    assert changed[:, :3, 4, 5].all()  # most relevant first
    assert not changed[:, 3:, 4, 5].any()
    assert (changed[:, 0] & ~changed[:, 1]).sum() == 0


def test_noise_falls_on_removed_pixels_alone_and_is_small() -> None:
    maps = random_maps(2, SIZE)
    inputs, seen = seen_by(maps, levels=(30,))
    changed = (seen != inputs[:, None]).any(2)
    for image in range(2):
        for variant in range(2):
            bare = imputed(inputs[image : image + 1], changed[image, variant][None])[0]
            noise = (seen[image, variant] - bare)[:, changed[image, variant]]
            assert 0.005 < float(noise.std()) < 0.015


def test_values_are_means_of_curves_and_combined_is_half_their_difference() -> None:
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(5, SIZE))
    scores = Road(classifier, RoadParameters()).score(batch, random_maps(5, SIZE))
    for name in ("road_morf", "road_lerf"):
        assert scores.curves[name].shape == (5, 7)
        torch.testing.assert_close(scores.values[name], scores.curves[name].mean(1))
    half = (scores.values["road_lerf"] - scores.values["road_morf"]) / 2
    torch.testing.assert_close(scores.values["road_combined"], half)


def test_a_map_that_knows_what_the_model_reads_is_told_from_its_inverse() -> None:
    """The model adds up a square that is brighter than all around it."""
    weight = torch.zeros(3, *SIZE)
    weight[:, 3:7, 3:7] = 1.0
    classifier = ToyClassifier(LinearPixels(weight, bias=-24.0), mean=(0.0,) * 3, std=(1.0,) * 3)
    inputs = torch.full((1, 3, *SIZE), 0.2)
    inputs[:, :, 3:7, 3:7] = 0.9
    batch = batch_of(classifier, inputs)
    road = Road(classifier, RoadParameters(levels=(14, 30)))
    good, bad = (road.score(batch, maps).values for maps in (weight[:1], 1 - weight[:1]))
    assert good["road_morf"] < 0.1
    assert good["road_lerf"] > 0.9
    assert good["road_combined"] > 0.4
    assert bad["road_combined"] < -0.3
    assert (good["road_morf_accuracy"].item(), good["road_lerf_accuracy"].item()) == (0, 1)


@pytest.mark.parametrize("imputation", ["linear", "telea"])
def test_neither_the_batch_nor_the_chunk_changes_a_score(imputation) -> None:
    classifier = ToyClassifier(small_network())
    batch, maps = batch_of(classifier, random_inputs(4, SIZE)), random_maps(4, SIZE)
    road = Road(classifier, RoadParameters(imputation=imputation))
    whole = road.score(batch, maps).values
    alone = [road.score(rows_of(batch, [i], forwards=3), maps[i : i + 1]).values for i in range(4)]
    for name, values in whole.items():
        torch.testing.assert_close(values, torch.cat([own[name] for own in alone]), atol=1e-5, rtol=0)


def test_levels_are_refused_where_they_make_no_sense() -> None:
    for levels in [(0,), (100,), (10, 10), ()]:
        with pytest.raises(ValueError, match="levels"):
            RoadParameters(levels=levels)


def test_pytorch_grad_cams_solver_makes_up_the_same_pixels_of_photographs() -> None:
    from pytorch_grad_cam.metrics import road as theirs

    files = sorted((REAL / "images" / "tinyimagenet_val").rglob("*.*"))[:32]
    if len(files) < 32:
        pytest.skip(f"no real images in {REAL}; FLOODLIT_REAL says where they are")
    images = (
        torch.stack(
            [
                torch.from_numpy(np.asarray(Image.open(f).convert("RGB")).copy()).permute(2, 0, 1)
                for f in files
            ]
        ).float()
        / 255
    )
    removed = torch.cat([blobs(16, (64, 64), 0.5), removed_at(16, (64, 64), 0.7)])
    found = imputed(images, removed)
    imputer = theirs.NoisyLinearImputer(noise=0.0)
    for image, mask, own in zip(images, removed, found, strict=True):
        torch.testing.assert_close(imputer(image, (~mask).float()), own, atol=4e-3, rtol=0)
