"""Regions by brute force, by direct calls of the libraries, and in order while others wait."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skimage.color import rgb2gray
from skimage.filters import sobel
from skimage.segmentation import felzenszwalb, slic, watershed
from torch import Tensor

import toys
from explainers.numerics import segmentation
from explainers.numerics.segmentation import PreSegmentation, SlidingWindow

SEEDS = 3 if segmentation.ximgproc is not None else 0


def discs_of(labels: Tensor) -> set[bytes]:
    """The pixels of every region of (L, H, W) label maps."""
    return {
        (each == label).numpy().tobytes() for each in labels for label in each.unique().tolist() if label > 0
    }


@pytest.mark.parametrize(
    ("size", "radius", "stride"),
    [((32, 32), 40 / 7, 6 / 7), ((40, 56), 7.5, 5.2), ((20, 33), 3.0, 2.0), ((9, 8), 30.0, 1.0)],
)
def test_windows_are_all_discs_around_a_grid_from_the_corner(
    size: tuple[int, int], radius: float, stride: float
) -> None:
    (found,) = SlidingWindow(radius, stride).label_maps([torch.zeros(3, *size)])
    y, x = np.mgrid[: size[0], : size[1]]
    centres = list(itertools.product(*(np.arange(0, side, stride) for side in size)))
    expected = [(y - down) ** 2 + (x - across) ** 2 <= radius**2 + 1e-9 for down, across in centres]
    assert discs_of(found) == {disc.tobytes() for disc in expected}
    number = (found > 0).sum(0).numpy()
    np.testing.assert_array_equal(number, np.sum(expected, 0))


def test_at_224_pixels_1444_windows_cover_each_pixel_41_to_142_times() -> None:
    (labels,) = SlidingWindow(40, 6).label_maps([torch.zeros(3, 224, 224)])
    assert labels.dtype == torch.int16
    assert sum(len(each.unique()) - 1 for each in labels) == 1444
    number = (labels > 0).sum(0)
    assert (number.min(), number.max()) == (41, 142)


def photograph(height: int, width: int, seed: int = 0) -> Tensor:
    """Blobs with some texture."""
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    blobs = torch.nn.functional.interpolate(toys.inputs(1, seed=seed), (height, width), mode="bilinear")[0]
    return 0.9 * blobs + 0.1 * noise


def direct(image: np.ndarray, scale: float) -> Iterator[np.ndarray]:
    """The page's 17 settings, called one by one, for an image of ``scale`` times 224 pixels."""
    for k in [250, 200, 150, 100, 70, 50]:
        yield felzenszwalb(image, k * scale**2, 0.8 * scale, max(1, round(784 * scale**2)))
    for count in [10, 20, 30, 40, 50, 60, 70, 80]:
        yield slic(image, count, compactness=20)
    for count in [10, 20, 30]:
        yield watershed(sobel(rgb2gray(image)), count, compactness=1e-4 / scale)


@pytest.mark.parametrize("size", [(224, 224), (80, 64), (8, 8)])
def test_label_maps_are_those_of_the_published_settings_in_proportion(size: tuple[int, int]) -> None:
    images = [photograph(*size, seed) for seed in range(2)]
    scale = min(size) / 224
    found = list(PreSegmentation(scale).label_maps(iter(images)))
    assert len(found) == 2
    for image, maps in zip(images, found, strict=True):
        assert maps.dtype == torch.int16
        assert maps.shape == (17 + SEEDS * (min(size) >= 32), *size)
        pixels = np.rint(image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        for one, expected in zip(maps.numpy()[:17], direct(pixels, scale), strict=True):
            pairs = np.unique(np.stack([one.ravel(), expected.ravel()]), axis=1)
            count = len(np.unique(expected))
            assert pairs.shape[1] == count
            assert sorted(pairs[0]) == list(range(1, count + 1))


def test_fewer_superpixels_leave_out_the_larger_slic_segmentations() -> None:
    image = photograph(64, 64)
    (all_of_them,) = PreSegmentation(64 / 224).label_maps([image])
    (fewer,) = PreSegmentation(64 / 224, superpixels=40).label_maps([image])
    assert torch.equal(fewer, torch.cat([all_of_them[:10], all_of_them[14:]]))


def test_seeds_is_used_where_opencv_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create(*sizes: int, **settings: object) -> SimpleNamespace:
        def iterate(image: np.ndarray, num_iterations: int) -> None:
            asked.append((sizes, settings, image.shape, num_iterations))

        return SimpleNamespace(
            iterate=iterate, getLabels=lambda: np.arange(32 * 40).reshape(32, 40) // 40 % 7
        )

    without = len(segmentation.segmentations(1)) - SEEDS
    monkeypatch.setattr(segmentation, "ximgproc", SimpleNamespace(createSuperpixelSEEDS=create))
    (labels,) = PreSegmentation(32 / 224).label_maps([photograph(32, 40)])
    assert (without, len(labels), len(segmentation.segmentations(31 / 224))) == (17, 20, 17)
    assert labels[-1, :, 0].tolist() == [row % 7 + 1 for row in range(32)]
    settings = {"num_levels": 5, "histogram_bins": 5, "double_step": True}
    assert asked == [((40, 32, 3, count), settings, (32, 40, 3), 10) for count in (10, 20, 30)]


@pytest.mark.skipif(not SEEDS, reason="OpenCV has no ximgproc here")
def test_seeds_splits_the_image_in_three_ways() -> None:
    (labels,) = PreSegmentation(1).label_maps([photograph(224, 224)])
    assert [len(each.unique()) > 1 for each in labels[17:]] == [True] * 3


def with_segmentation(monkeypatch: pytest.MonkeyPatch, segment: Callable[[np.ndarray], np.ndarray]) -> None:
    monkeypatch.setattr(segmentation, "segmentations", lambda *_: [segment])


def test_the_next_images_are_segmented_while_the_first_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    done = [threading.Event() for _ in range(40)]

    def segment(image: np.ndarray) -> np.ndarray:
        done[int(image[0, 0, 0])].set()
        return image[..., 0]

    with_segmentation(monkeypatch, segment)
    taken = []

    def images() -> Iterator[Tensor]:
        for number in range(40):
            taken.append(number)
            yield torch.full((3, 2, 2), number / 255)

    label_maps = PreSegmentation(1).label_maps(images())
    next(label_maps)
    assert all(event.wait(10) for event in done[1:17])
    assert len(taken) == 17  # and no more than that
    label_maps.close()


def test_leaving_early_ends_the_threads_and_what_they_have_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def segment(image: np.ndarray) -> np.ndarray:
        begun.append(image)
        time.sleep(0.02)
        return image[..., 0]

    with_segmentation(monkeypatch, segment)
    before = threading.active_count()
    label_maps = PreSegmentation(1).label_maps(torch.zeros(17, 3, 2, 2))
    next(label_maps)
    label_maps.close()
    assert threading.active_count() == before
    assert len(begun) < 17


def test_an_error_in_a_segmentation_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def segment(image: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError

    with_segmentation(monkeypatch, segment)
    with pytest.raises(ZeroDivisionError):
        list(PreSegmentation(1).label_maps([torch.zeros(3, 2, 2)]))


def test_other_channels_than_three_are_segmented_as_their_mean_stretched() -> None:
    grey = toys.inputs(1, 40)[0, :1]
    grey = (grey - grey.amin()) / (grey.amax() - grey.amin())
    cut = PreSegmentation(40 / 224, superpixels=10)
    (colours,) = cut.label_maps([grey.expand(3, -1, -1)])
    tilt = torch.linspace(-0.2, 0.2, 6)[:, None, None]  # which adds up to zero over six bands
    dark = (0.5 + 0.1 * (grey + tilt)) / 300  # within one of 255 steps
    for image in (grey, dark):
        assert torch.equal(next(iter(cut.label_maps([image]))), colours)
    (flat,) = cut.label_maps([torch.full((6, 40, 40), 0.3)])
    assert flat.shape == colours.shape
