"""The demo's images: what is said about each is true of its pixels, and the splits share no handwriting."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from storage.datasets import digits

SCANS = load_digits()
DRAWN = {split: [digits.sample(split, index) for index in range(1500)] for split in digits.SPLITS}
BOTH = DRAWN["train"][:500] + DRAWN["test"][:500]

several = settings(max_examples=60, deadline=None)
any_image = given(
    split=st.sampled_from(digits.SPLITS), index=st.integers(0, 10**9), seed=st.integers(0, 2**40)
)


@several
@any_image
def test_box_is_the_tight_bounds_of_the_mask(split, index, seed):
    sample = digits.sample(split, index, seed)
    covered = [(x, y) for y in range(64) for x in range(64) if sample.mask[y, x]]
    xs, ys = [x for x, _ in covered], [y for _, y in covered]
    assert sample.box == (min(xs), min(ys), max(xs) + 1, max(ys) + 1)


@several
@any_image
def test_an_image_depends_on_seed_split_and_index_alone(split, index, seed):
    first = digits.sample(split, index, seed)
    digits.sample(split, index + 1, seed)
    again = digits.sample(split, index, seed)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert (first.label, first.box, first.source) == (again.label, again.box, again.source)
    assert first.image.shape == (64, 64, 3)
    assert first.image.dtype == np.uint8
    assert first.mask.dtype == bool


def test_threads_and_order_do_not_change_an_image():
    with ThreadPoolExecutor(4) as pool:
        backwards = list(pool.map(lambda index: digits.sample("test", index), reversed(range(60))))
    for sample, other in zip(DRAWN["test"][:60], reversed(backwards), strict=True):
        assert np.array_equal(sample.image, other.image)


def test_split_index_and_seed_each_change_the_image():
    base = digits.sample("test", 3, 0).image
    for other in (digits.sample("train", 3, 0), digits.sample("test", 4, 0), digits.sample("test", 3, 1)):
        assert not np.array_equal(base, other.image)


def test_no_handwriting_serves_both_splits_whatever_the_seed():
    used = {
        split: {row for s in drawn for row in (s.source, s.distractor)}
        | {digits.sample(split, index, seed).source for seed in (1, 77) for index in range(300)}
        for split, drawn in DRAWN.items()
    }
    assert not used["train"] & used["test"]
    assert len(used["train"]) > 800
    assert len(used["test"]) > 300


def test_the_allowed_scans_of_the_splits_are_a_partition():
    rows = digits._scans()
    parts = [rows.targets[s] for s in digits.SPLITS] + [rows.distractors[s] for s in digits.SPLITS]
    assert sorted(np.concatenate(parts).tolist()) == list(range(1797))


def test_label_is_the_digit_of_the_scan_and_every_class_occurs():
    for drawn in DRAWN.values():
        assert all(SCANS.target[s.source] == int(digits.CLASSES[s.label]) for s in drawn)
        shares = np.bincount([s.label for s in drawn], minlength=8) / len(drawn)
        assert shares.min() > 0.08
        assert shares.max() < 0.18


def test_the_second_digit_is_of_no_class_of_the_task():
    seen = {int(SCANS.target[s.distractor]) for drawn in DRAWN.values() for s in drawn}
    assert seen == {8, 9}
    assert not {str(digit) for digit in seen} & set(digits.CLASSES)


def test_the_mask_has_the_shape_of_its_scan():
    """Shrunk back to the scan's own tight box, the mask correlates with the scan's ink."""
    for sample in BOTH[::10]:
        x0, y0, x1, y1 = map(int, sample.box)
        ink = SCANS.images[sample.source] / 16
        rows, columns = np.flatnonzero(ink.max(1) > 0.4), np.flatnonzero(ink.max(0) > 0.4)
        scan = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        crop = Image.fromarray(sample.mask[y0:y1, x0:x1].astype(np.float32))
        shrunk = np.asarray(crop.resize(scan.shape[::-1], Image.Resampling.BOX))
        assert np.corrcoef(shrunk.ravel(), scan.ravel())[0, 1] > 0.7


def test_the_target_is_painted_on_top_in_one_colour():
    """Well inside the mask only the noise is left: a stroke or digit over the target would show."""
    for sample in BOTH:
        inner = sample.mask.copy()
        for axis in (0, 1):
            for step in (-1, 1):
                inner &= np.roll(sample.mask, step, axis)
        pixels = sample.image[inner].astype(float)
        distance = np.abs(pixels - np.median(pixels, axis=0)).max(1)
        assert np.percentile(distance, 50) < 0.1 * 255
        assert (distance > 0.45 * 255).mean() < 0.02


def test_the_target_stands_out_and_the_rest_is_cluttered():
    contrast, clutter = [], []
    for sample in BOTH:
        grey = sample.image.mean(-1) / 255
        contrast.append(abs(grey[sample.mask].mean() - np.median(grey[~sample.mask])))
        clutter.append(grey[~sample.mask].std())
    assert np.mean(contrast) > 0.3
    assert min(contrast) > 0.1
    assert np.mean(clutter) > 0.08


def test_targets_vary_in_size_and_place():
    boxes = np.array([s.box for s in BOTH])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes.max() <= 64
    assert heights.min() >= 14
    assert heights.max() <= 33
    centre = ((boxes[:, :2] <= 32) & (boxes[:, 2:] >= 32)).all(1).mean()
    assert 0.2 < centre < 0.6  # the centre point alone does not win the pointing game
    assert 0.04 < (widths * heights).mean() / 64**2 < 0.2


@pytest.mark.parametrize(("split", "index", "seed"), [("val", 0, 0), ("test", -1, 0), ("test", 0, -1)])
def test_an_unknown_split_and_negative_numbers_are_refused(split, index, seed):
    with pytest.raises(ValueError, match=r"split|negative"):
        digits.sample(split, index, seed)
