"""RISE against a direct version in NumPy, its masks one by one, and what it keeps in memory."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import zoom
from torch import Tensor, nn

import toys
from explainers.base import Batch, Explanation
from explainers.models.classifier import Classifier
from explainers.numerics.randomness import random_bits, uniform
from explainers.rise import Rise, factors
from rounding import TOYS, rounding

Array = NDArray[np.float64]


def explain(classifier: Classifier, batch: Batch, **parameters: object) -> Explanation:
    return Rise(classifier, Rise.Parameters(**parameters)).explain(batch)


def direct_mask(numbers: Array, size: tuple[int, int], cells: int, probability: float) -> Array:
    """One mask from its random numbers, upsampled as a whole and cropped."""
    cell = [math.ceil(side / cells) for side in size]
    top, left = (int(number * side) for number, side in zip(numbers[:2], cell, strict=True))
    grid = (numbers[2:] < probability).astype(float).reshape(cells, cells)
    ratio = [(cells + 1) * side / cells for side in cell]
    whole = zoom(grid, ratio, order=1, mode="mirror", grid_mode=True)
    assert whole.shape == tuple((cells + 1) * side for side in cell)
    return whole[top : top + size[0], left : left + size[1]]


def direct_masks(seed: Tensor, count: int, *shape: object) -> Array:
    numbers = uniform(random_bits(seed[None], count)[0], shape[1] ** 2 + 2).double().numpy()
    return np.stack([direct_mask(row, *shape) for row in numbers])


@pytest.mark.parametrize(("kind", "cells", "probability"), [("conv_mlp", 8, 0.5), ("vit", 5, 0.3)])
def test_maps_equal_a_direct_version_with_the_same_masks(kind: str, cells: int, probability: float) -> None:
    with toys.CLASSIFIERS[kind]() as classifier:
        batch = toys.batch(classifier, 3)
        found = explain(classifier, batch, masks=40, cells=cells, probability=probability)
        for image in range(3):
            masks = direct_masks(batch.seeds[image], 40, classifier.input_size, cells, probability)
            shown = torch.from_numpy(masks)[:, None].float()
            mean = classifier.mean
            with torch.no_grad():
                logits = classifier.logits(mean + shown * (batch.inputs[image] - mean))
            scores = logits.softmax(1)[:, batch.targets[image]].double().numpy()
            expected = (scores[:, None, None] * masks).sum(0) / 40 / probability
            np.testing.assert_allclose(found.maps[image], expected, atol=TOYS, rtol=0)
        assert found.details["forward_passes"].tolist() == [40] * 3


def test_masks_of_a_wide_input_are_upsampled_grids_of_cells_that_reach_over_its_border() -> None:
    size, seeds = (23, 50), torch.arange(30)
    rows, columns = factors(seeds, size, 4, 0.5)
    numbers = uniform(seeds, 18).double().numpy()
    for mask, one in zip(rows @ columns, numbers, strict=True):
        np.testing.assert_allclose(mask, direct_mask(one, size, 4, 0.5), atol=1e-5)


@pytest.mark.parametrize("probability", [0.2, 0.5])
def test_masks_lie_in_0_to_1_and_show_every_pixel_with_the_same_probability(probability: float) -> None:
    """Even at the corners: dividing by N p is right everywhere."""
    rows, columns = factors(random_bits(torch.tensor([3]), 20_000)[0], (16, 16), 4, probability)
    masks = rows @ columns
    assert masks.amin() >= 0
    assert masks.amax() <= 1 + rounding(4 + 4)  # sums of cells times weights, of which few are not 0
    torch.testing.assert_close(masks.mean(0), torch.full((16, 16), probability), atol=0.02, rtol=0)
    assert masks.std(0).amin() > 0.1


def test_masks_that_show_everything_give_the_probability_everywhere() -> None:
    with toys.conv_mlp() as classifier:
        batch = toys.batch(classifier, 2)
        with torch.no_grad():
            expected = classifier.logits(batch.inputs).softmax(1).amax(1)
        found = explain(classifier, batch, masks=3, probability=1.0).maps
        torch.testing.assert_close(found, expected[:, None, None].expand(2, 32, 32))


def seen(classifier: Classifier, batch: Batch, **parameters: object) -> Tensor:
    """What the network was given, in order."""
    given: list[Tensor] = []
    handle = classifier.network.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    try:
        explain(classifier, batch, **parameters)
    finally:
        handle.remove()
    return torch.cat(given)


def test_what_is_masked_shows_the_mean_that_the_classifier_subtracts() -> None:
    with toys.vit() as classifier:
        assert not seen(classifier, toys.batch(classifier, 1), masks=5, probability=1e-9).any()


def test_a_mask_depends_on_the_images_seed_and_its_own_number_alone() -> None:
    """Not on how many are asked for, how many go at once, or which images are beside it."""
    with toys.conv_gap() as classifier:
        batch = toys.batch(classifier, 3, forwards=7)
        alone = Batch(batch.inputs[1:2], batch.targets[1:2], batch.seeds[1:2], None, 64)
        expected = seen(classifier, alone, masks=20)
        close = rounding(8 + 8 + 3)  # products with 8 cells along each axis, and what is shown or hidden
        torch.testing.assert_close(seen(classifier, batch, masks=20)[20:40], expected, rtol=0, atol=close)
        torch.testing.assert_close(seen(classifier, alone, masks=12), expected[:12], rtol=0, atol=close)
        other = Batch(alone.inputs, alone.targets, alone.seeds + 1)
        assert not torch.allclose(seen(classifier, other, masks=12), expected[:12])


def test_the_map_stands_out_where_the_class_is() -> None:
    weight = torch.zeros(3, 32, 32)
    weight[:, 20:28, 4:12] = 1 / 192
    with toys.proportion(weight) as classifier:
        batch = Batch(torch.ones(1, 3, 32, 32), torch.tensor([0]), torch.tensor([5]))
        found = explain(classifier, batch, masks=2000).maps[0]
    row, column = divmod(int(found.argmax()), 32)
    assert 20 <= row < 28
    assert 4 <= column < 12


def test_running_out_of_memory_counts_no_mask_twice() -> None:
    def refuse(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError

    with toys.conv_mlp() as classifier:
        batch = toys.batch(classifier, 2)
        expected = explain(classifier, batch, masks=11)
        handle = classifier.network.register_forward_pre_hook(refuse)
        found = explain(classifier, batch, masks=11)
        handle.remove()
    torch.testing.assert_close(found.maps, expected.maps)
    assert found.details["forward_passes"].tolist() == [11, 11]


MEASURED = """
import resource, torch, toys
from explainers.base import Batch
from explainers.rise import Rise

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def explain(masks):
    batch = Batch(torch.ones(1, 3, 224, 224), torch.tensor([0]), torch.tensor([5]), None, 8)
    Rise(classifier, Rise.Parameters(masks=masks)).explain(batch)

classifier = toys.proportion(torch.full((3, 224, 224), 1 / 150_528))
explain(20)
before = peak()
explain(1000)
print(peak() - before)
"""


def test_neither_masks_nor_masked_inputs_are_held() -> None:
    """A thousand masks of 224x224 are 200 MB, and what they show 600 MB.

    Large blocks come from mmap, so that holes in glibc's heap are not taken for what is held.
    """
    settings = {"PYTHONPATH": "tests:.", "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURED]
    grown = subprocess.run(command, check=True, capture_output=True, env=settings)
    assert int(grown.stdout) < 30e6


def test_the_fast_preset_takes_500_masks_and_keys_beside_it_win() -> None:
    assert Rise.Parameters().masks == 4000
    assert Rise.Parameters(preset="fast").masks == 500
    assert Rise.Parameters(preset="fast", masks=9).masks == 9
