"""PAMI against closed forms, a slow version of itself one region at a time, and what it keeps in memory."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Generator, Iterable

import matplotlib as mpl
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import convolve, gaussian_filter
from torch import Tensor, nn

import toys
from explainers.base import Batch, Explanation, Status
from explainers.models.classifier import Classifier
from explainers.numerics.segmentation import PreSegmentation
from explainers.pami import Pami, regions_of
from rounding import TOYS, rounding

SLIDING = {"strategy": "sliding"}
SEGMENTS = {"strategy": "presegmentation", "shifts": False}


def explain(classifier: Classifier, batch: Batch, **parameters: object) -> Explanation:
    return Pami(classifier, Pami.Parameters(**parameters)).explain(batch)


@pytest.mark.parametrize("parameters", [SLIDING, SEGMENTS, {"stages": 2, "shifts": False}])
def test_the_maximum_lies_in_the_patch_whose_mean_is_the_output(parameters: dict[str, object]) -> None:
    """The patch is an object of its own, a little brighter than what is around it."""
    weight = torch.zeros(3, 64, 64)
    weight[:, 40:56, 8:24] = 1 / 768
    image = 0.4 * toys.inputs(1, 64)
    image[:, :, 40:56, 8:24] += 0.5
    batch = Batch(image, torch.tensor([0]), torch.tensor([5]))
    with toys.proportion(weight) as classifier:
        found = explain(classifier, batch, fill="black", **parameters).maps[0]
    row, column = divmod(int(found.argmax()), 64)
    assert 40 <= row < 56
    assert 8 <= column < 24


class Split:
    """Given label maps, the same for every input."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels.short()
        self.segmentations = list(labels)

    def label_maps(self, inputs: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        for _ in inputs:
            yield self.labels


def explain_split(classifier: Classifier, batch: Batch, labels: Tensor, **parameters: object) -> Explanation:
    explainer = Pami(classifier, Pami.Parameters(**{"shifts": False, **parameters}))
    explainer.segments = Split(labels)
    return explainer.explain(batch)


@pytest.mark.parametrize("fill", ["black", "white"])
def test_single_cells_of_a_linear_model_give_its_closed_form(fill: str) -> None:
    """f = sum of w x: alone on a constant c, cell p gives c sum of w + w_p (x_p - c)."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(3, 6, 8, generator=generator) / 144
    inputs = torch.rand(2, 3, 6, 8, generator=generator)
    batch = Batch(inputs, torch.tensor([0, 0]), torch.tensor([5, 6]), None, 5)
    with toys.proportion(weight) as classifier:
        cells = torch.arange(1, 49).view(1, 6, 8)
        found = explain_split(classifier, batch, cells, fill=fill)
    outside = float(fill == "white")
    expected = outside * weight.sum() + (weight * (inputs - outside)).sum(1)
    # Sums of 3 * 6 * 8 products, and a softmax of two logarithms.
    close = rounding(144 + 8, magnitude=float(expected.max()))
    torch.testing.assert_close(found.maps, expected, atol=close, rtol=1e-5)
    assert found.details["forward_passes"].tolist() == [48, 48]
    assert found.details["segmentations"].tolist() == [1, 1]


def test_a_pixel_counts_the_regions_that_contain_it_and_no_others() -> None:
    """Two overlapping discs' worth of labels: 0 is in no region."""
    labels = torch.tensor([[[1, 1, 0, 2]], [[0, 1, 1, 1]]])
    weight = torch.tensor([1.0, 2.0, 4.0, 8.0]).expand(3, 1, 4) / 48
    batch = Batch(torch.ones(1, 3, 1, 4), torch.tensor([0]), torch.tensor([5]))
    with toys.proportion(weight) as classifier:
        found = explain_split(classifier, batch, labels, fill="black").maps[0, 0]
    expected = torch.tensor([3.0, (3 + 14) / 2, 14.0, (8 + 14) / 2]) / 16
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_map_does_not_depend_on_the_order_of_regions(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, 6, (7, toys.SIZE, toys.SIZE), generator=generator)
    names = torch.cat([torch.zeros(1).long(), 1 + torch.randperm(5, generator=generator)])
    shuffled = names[labels][torch.randperm(7, generator=generator)]
    with toys.conv_mlp() as classifier:
        batch = toys.batch(classifier, 2)
        one, other = (explain_split(classifier, batch, each).maps for each in (labels, shuffled))
    torch.testing.assert_close(one, other, atol=TOYS, rtol=0)


def test_each_distinct_region_is_passed_once_and_votes_as_often_as_it_occurs() -> None:
    halves = torch.ones(toys.SIZE, toys.SIZE)
    halves[:, 10:] = 2
    labels = torch.stack([halves, 3 - halves, torch.ones_like(halves), halves])
    with toys.conv_mlp() as classifier:
        batch = toys.batch(classifier, 3)
        found = explain_split(classifier, batch, labels, fill="black")
        left, right = batch.inputs * (halves == 1), batch.inputs * (halves == 2)
        with torch.no_grad():
            scores = [classifier.logits(x).softmax(1) for x in (left, right, batch.inputs)]
    left, right, whole = (p.gather(1, batch.targets[:, None])[:, 0] for p in scores)
    assert found.details["forward_passes"].tolist() == [3, 3, 3]
    torch.testing.assert_close(found.maps[:, 0, 0], (3 * left + whole) / 4)
    torch.testing.assert_close(found.maps[:, 0, -1], (3 * right + whole) / 4)


def test_regions_have_one_key_if_and_only_if_they_have_the_same_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 3, (2, 12, 2, 2), generator=generator)
    labels = coarse.repeat_interleave(3, 2).repeat_interleave(3, 3)
    present, keys = regions_of(labels)
    masks = [[[(m == k) for k in range(3)] for m in view] for view in labels]
    regions = present.nonzero().tolist()
    assert regions == [
        [v, m, k] for v, m, k in itertools.product(range(2), range(12), (1, 2)) if masks[v][m][k].any()
    ]
    for (v, m, k), (w, n, j) in itertools.combinations(regions, 2):
        same = v == w and torch.equal(masks[v][m][k], masks[w][n][j])
        assert (keys[v, m, k] == keys[w, n, j]) == same


# PAMI once more, one image, one shift and one region at a time.


def slow_blur(image: np.ndarray, scale: float) -> np.ndarray:
    """The authors' kernel over (3, H, W), zeros outside: an impulse on 49x49, filtered with sigma 100."""
    reach = round(24 * scale)
    impulse = np.zeros((2 * reach + 1, 2 * reach + 1))
    impulse[reach, reach] = 1
    kernel = gaussian_filter(impulse, 100 * scale)
    return np.stack([convolve(c, kernel, mode="constant") for c in image])


def slow_segments(image: np.ndarray, scale: float) -> list[np.ndarray]:
    (maps,) = PreSegmentation(scale).label_maps([torch.from_numpy(image)])
    return [each == label for each in maps.numpy() for label in np.unique(each)]


def slow_discs(image: np.ndarray, scale: float) -> list[np.ndarray]:
    height, width = image.shape[1:]
    y, x = np.mgrid[:height, :width]
    down, across = (np.arange(0, side, 6 * scale) for side in (height, width))
    return [(y - i) ** 2 + (x - j) ** 2 <= (40 * scale) ** 2 + 1e-9 for i in down for j in across]


def slow_map(
    classifier: Classifier,
    image: np.ndarray,
    target: int,
    partitioned: np.ndarray,
    sliding: bool,
    shifts: bool,
) -> tuple[np.ndarray, int]:
    """H / N of one image, and the number of distinct regions of all shifted versions."""
    scale = min(image.shape[1:]) / 224
    lengths = [round(length * scale) for length in (36, -36, 30, -30, 24, -24)] if shifts else []
    numerator, denominator, passes = np.zeros(image.shape[1:]), np.zeros(image.shape[1:]), 0
    for shift in [(0, 0)] + [(s, 0) for s in lengths] + [(0, s) for s in lengths]:
        moved = np.roll(image, shift, (1, 2))
        hidden = slow_blur(moved, scale)
        regions = (slow_discs if sliding else slow_segments)(np.roll(partitioned, shift, (1, 2)), scale)
        passes += len({region.tobytes() for region in regions})
        for region in regions:
            shown = torch.from_numpy(np.where(region, moved, hidden))[None].float()
            with torch.no_grad():
                score = float(classifier.logits(shown).softmax(1)[0, target])
            back = np.roll(region, (-shift[0], -shift[1]), (0, 1))
            numerator += score * back
            denominator += back
    return numerator / denominator, passes


def small_net() -> Classifier:
    """Units that interact, on inputs that are not square."""
    network = nn.Sequential()
    network.append(nn.Conv2d(3, 6, 5, stride=3)).append(nn.ReLU()).append(nn.Conv2d(6, 4, 3, stride=2))
    network.append(nn.Flatten()).append(nn.LazyLinear(3))
    network(torch.zeros(1, 3, 36, 44))
    with torch.random.fork_rng():
        torch.manual_seed(4)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.4)
    return Classifier(network, layer="0", input_size=(36, 44))


# A blur of 36 and 44 products, convolutions of 75 and 54, 120 more, to logits up to 14, and a softmax of 3.
SMALL_NET = rounding(36 + 44 + 75 + 54 + 120 + 5, magnitude=14)


@pytest.mark.parametrize(
    ("parameters", "sliding", "shifts"),
    [(SLIDING, True, False), (SEGMENTS, False, False), ({}, False, True)],
    ids=["sliding", "segments", "shifted"],
)
def test_maps_equal_a_slow_version_one_region_at_a_time(
    parameters: dict[str, object], sliding: bool, shifts: bool
) -> None:
    inputs = torch.nn.functional.interpolate(toys.inputs(2), (36, 44), mode="bilinear")
    with small_net() as classifier:
        batch = Batch(inputs, torch.tensor([2, 0]), torch.tensor([5, 6]))
        found = explain(classifier, batch, **parameters)
        for image in range(2 if not shifts else 1):
            pixels, target = inputs[image].numpy(), int(batch.targets[image])
            expected, passes = slow_map(classifier, pixels, target, pixels, sliding, shifts)
            np.testing.assert_allclose(found.maps[image], expected, atol=SMALL_NET, rtol=0)
            assert found.details["forward_passes"][image] == passes


def test_the_second_stage_has_the_regions_of_the_first_map_in_viridis() -> None:
    with small_net() as classifier:
        inputs = torch.nn.functional.interpolate(toys.inputs(1), (36, 44), mode="bilinear")
        batch = Batch(inputs, torch.tensor([1]), torch.tensor([5]))
        first = explain(classifier, batch, **SLIDING)
        found = explain(classifier, batch, shifts=False, stages=2, **SLIDING)
        stretched = first.maps[0].numpy()
        stretched = (stretched - stretched.min()) / np.ptp(stretched)
        picture = mpl.colormaps["viridis"](stretched)[..., :3].transpose(2, 0, 1)
        expected, passes = slow_map(classifier, inputs[0].numpy(), 1, picture, sliding=False, shifts=False)
    np.testing.assert_allclose(found.maps[0], expected, atol=SMALL_NET, rtol=0)
    assert found.details["forward_passes"].tolist() == [int(first.details["forward_passes"]) + passes]
    assert first.details["segmentations"].tolist() == [0]
    assert found.details["segmentations"].tolist() in ([17], [20])


def test_regions_of_several_images_share_forward_passes() -> None:
    sizes: list[int] = []
    labels = torch.arange(1, 4).repeat_interleave(11)[:32].expand(1, 32, 32)
    with toys.conv_mlp() as classifier:
        batch = toys.batch(classifier, 8, forwards=6)
        handle = classifier.network.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
        explain_split(classifier, batch, labels)
        handle.remove()
    assert sizes == [6, 6, 6, 6]


def test_without_a_finite_score_the_map_says_so_and_its_neighbour_is_not_harmed() -> None:
    with toys.conv_mlp() as classifier:
        batch = toys.batch(classifier, 2)
        expected = explain(classifier, batch, stages=2, **SEGMENTS)
        broken = Batch(batch.inputs.clone(), batch.targets, batch.seeds)
        broken.inputs[0] = torch.nan
        found = explain(classifier, broken, stages=2, **SEGMENTS)
    assert found.statuses == [Status.NOT_FINITE, Status.OK]
    torch.testing.assert_close(found.maps[1], expected.maps[1])


def test_discs_that_leave_gaps_are_refused_with_the_largest_stride_that_does_not() -> None:
    with pytest.raises(ValidationError, match=r"every 6 pixels leave gaps; take a stride of at most 5\.657"):
        Pami.Parameters(strategy="sliding", radius=8)


def test_the_fast_preset_has_no_shifts_and_four_segmentations_fewer() -> None:
    with toys.conv_mlp() as classifier:
        batch = toys.batch(classifier, 2)
        fast = explain(classifier, batch, preset="fast")
        same = explain(classifier, batch, shifts=False, superpixels=40)
        still = explain(classifier, batch, shifts=False)
    assert torch.equal(fast.maps, same.maps)
    assert (still.details["segmentations"] - fast.details["segmentations"]).tolist() == [4, 4]
    assert (fast.details["forward_passes"] < still.details["forward_passes"]).all()


MEASURED = """
import resource, torch, toys
from explainers.base import Batch
from explainers.pami import Pami

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def explain(**parameters):
    batch = Batch(toys.inputs(1, 112), torch.tensor([0]), torch.tensor([5]), None, 8)
    return Pami(classifier, Pami.Parameters(**parameters)).explain(batch)

classifier = toys.proportion(torch.full((3, 112, 112), 1 / 37_632))
explain(strategy="sliding", radius=200, stride=100)
explain(shifts=False)
before = peak()
passes = int(explain(%s).details["forward_passes"])
print(passes, peak() - before)
"""


@pytest.mark.parametrize("parameters", ["", "strategy='sliding'"], ids=["segments", "sliding"])
def test_neither_masks_nor_what_they_show_are_held(parameters: str) -> None:
    """A mask of 112x112 is 12.5 kB, what it shows 150 kB; there are thousands."""
    command = [sys.executable, "-c", MEASURED % parameters]
    # With memory given back as soon as it is free, so that the peak is what was held at once.
    given_back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    alone = {"PYTHONPATH": "tests:.", "OMP_NUM_THREADS": "1", **given_back}
    found = subprocess.run(command, check=True, capture_output=True, env=alone)
    passes, grown = map(int, found.stdout.split())
    assert grown < 0.75 * passes * 112 * 112
