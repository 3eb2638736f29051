"""ROAD and its imputation against sparse solves, closed forms, OpenCV and pytorch-grad-cam."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pytorch_grad_cam.metrics.road import (
    NoisyLinearImputer,
    ROADLeastRelevantFirst,
    ROADMostRelevantFirst,
)
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve
from torch.nn import functional as F

from metric_toys import (
    REAL,
    LinearPixels,
    ToyClassifier,
    batch_of,
    random_inputs,
    random_maps,
    real_network_and_images,
    rows_of,
    small_network,
)
from rounding import SMALL_NETWORK, rounding
from tasks.metrics import imputation
from tasks.metrics.imputation import imputed, linear, normal
from tasks.metrics.road import Road, RoadParameters

SIZE = (9, 7)
WAYS = ["linear", "telea"]
# A pixel of 70x50 is made up in 6 steps at most, each through 7 grids and back, with some 20 sums on each.
MADE_UP = rounding(6 * 7 * 20)
SHAPES = [(1, 9), (9, 1), (2, 2), (3, 5), (8, 8), (13, 22), (65, 6), (70, 67)]


def slow_linear(image, removed):
    """(3, H, W) array: the equations of the paper, written down pixel by pixel and solved directly."""
    height, width = removed.shape
    places = np.argwhere(removed)
    number = {tuple(place): k for k, place in enumerate(places)}
    matrix, right = lil_matrix((len(places),) * 2), np.zeros((len(places), 3))
    for (y, x), k in number.items():
        weights = {
            (y + dy, x + dx): 1 / 6 if dy * dx == 0 else 1 / 12
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            if (dy, dx) != (0, 0) and 0 <= y + dy < height and 0 <= x + dx < width
        }
        matrix[k, k] = 1.0
        for place, weight in weights.items():
            share = weight / sum(weights.values())
            if place in number:
                matrix[k, number[place]] = -share
            else:
                right[k] += share * image[:, *place]
    found = image.copy()
    if len(places):
        found[:, removed] = spsolve(matrix.tocsc(), right).reshape(-1, 3).T
    return found


def random_removed(count, size, share, seed=0):
    """(count, H, W) bool with one pixel left at least."""
    removed = torch.rand(count, *size, generator=torch.Generator().manual_seed(seed)) < share
    removed[:, size[0] // 2, size[1] // 3] = False
    return removed


def top(maps, share):
    """(N, H, W) bool: that share of the pixels with the highest values."""
    return (maps.flatten(1).argsort(1).argsort(1) >= (1 - share) * maps[0].numel()).view_as(maps)


def blobs(count, size, seed=0):
    """Maps like those of a small last layer."""
    coarse = torch.rand(count, 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size, mode="bilinear")[:, 0]


def photographs(count, size=(224, 224)):
    if not (REAL / "images/ilsvrc_val").is_dir():
        pytest.skip(f"no real test material in {REAL}; FLOODLIT_REAL says where it is")
    files = sorted((REAL / "images/ilsvrc_val").glob("*.JPEG"))[:count]
    pixels = np.stack([np.array(Image.open(file).convert("RGB").resize(size[::-1])) for file in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("share", [0.2, 0.7, 0.97])
def test_linear_imputation_solves_the_papers_equations_borders_included(size, share):
    images, removed = random_inputs(3, size).double(), random_removed(3, size, share)
    found = linear(images, removed, tolerance=1e-10)
    for image, hole, ours in zip(images, removed, found, strict=True):
        np.testing.assert_allclose(ours, slow_linear(image.numpy(), hole.numpy()), atol=1e-8)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.97])
@pytest.mark.parametrize("kind", [random_maps, blobs])
def test_by_default_no_value_is_wrong_by_more_than_a_thousandth(kind, share):
    images, removed = random_inputs(4, (75, 90)), top(kind(4, (75, 90)), share)
    exact = linear(images.double(), removed, tolerance=1e-10)
    assert (imputed(images, removed) - exact).abs().max() < 1e-3


@pytest.mark.parametrize(
    "removed",
    [
        lambda y, x: (y + x) % 2 == 0,
        lambda y, x: y % 4 != 0,
        lambda y, x: (y % 16 != 3) | (x % 16 != 4),
        lambda y, x: (y % 6 != 0) | (x > 90),
        lambda y, x: y < 48,
        lambda y, x: (y > 0) & (y < 95) & (x > 0) & (x < 95),
        lambda y, x: ((y != 5) | (x != 7)) & ((y != 80) | (x != 90)),
        lambda y, x: y != x,
    ],
    ids=[
        "checkerboard",
        "stripes",
        "lattice",
        "comb",
        "half",
        "all but the frame",
        "all but two",
        "diagonal",
    ],
)
def test_regular_holes_take_no_more_steps_than_random_ones(removed, monkeypatch):
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    images, hole = random_inputs(1, (96, 96)), removed(y, x)[None]
    exact = linear(images.double(), hole, tolerance=1e-10)
    monkeypatch.setattr(imputation, "_STEPS", 6)
    assert (linear(images, hole) - exact).abs().max() < 1e-3


@pytest.mark.parametrize(
    "shape", [lambda y, x: y, lambda y, x: 2 * x - y, lambda y, x: x * y, lambda y, x: x * x - y * y]
)
def test_a_hole_away_from_the_border_continues_a_ramp_or_saddle_as_it_was(shape):
    y, x = torch.meshgrid(torch.arange(40.0).double(), torch.arange(30.0).double(), indexing="ij")
    image = (shape(y, x) / 1000).expand(1, 3, -1, -1)
    removed = torch.zeros(1, 40, 30, dtype=torch.bool)
    removed[:, 5:33, 3:25] = True
    removed[:, 12, 12] = False
    torch.testing.assert_close(linear(image * ~removed, removed, 1e-12), image, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (20, 11), (39, 5)])
def test_from_a_single_pixel_the_whole_image_gets_its_colour(row, column):
    images = random_inputs(2, (40, 30))
    removed = torch.ones(2, 40, 30, dtype=torch.bool)
    removed[:, row, column] = False
    expected = images[:, :, row, column, None, None].expand_as(images)
    torch.testing.assert_close(imputed(images, removed), expected, atol=1e-3, rtol=0)


def test_a_single_pixel_is_the_weighted_mean_of_its_neighbours_also_in_a_corner():
    image = torch.arange(9.0).view(1, 1, 3, 3).expand(1, 3, 3, 3) / 9
    removed = torch.zeros(2, 3, 3, dtype=torch.bool)
    removed[0, 1, 1] = removed[1, 0, 0] = True
    centre, corner = imputed(image.expand(2, -1, -1, -1), removed)
    torch.testing.assert_close(centre[0, 1, 1], torch.tensor((16 / 6 + 16 / 12) / 9))
    torch.testing.assert_close(corner[0, 0, 0], torch.tensor((2 * 1 + 2 * 3 + 4) / 5 / 9))


@pytest.mark.parametrize("how", WAYS)
def test_an_image_of_which_nothing_is_left_is_grey_and_its_neighbours_are_not(how):
    images, removed = random_inputs(3, SIZE), random_removed(3, SIZE, 0.5)
    removed[1] = True
    found = imputed(images, removed, how)
    assert (found[1] == 0.5).all()
    torch.testing.assert_close(found[[0, 2]], imputed(images[[0, 2]], removed[[0, 2]], how))


@pytest.mark.parametrize("how", WAYS)
def test_pixels_that_are_left_stay_as_they_are_to_the_bit_and_removed_ones_are_not_seen(how):
    images, removed = random_inputs(3, (70, 31)), random_removed(3, (70, 31), 0.6)
    before = images.clone()
    found = imputed(images, removed, how)
    left = ~removed[:, None].expand_as(images)
    assert torch.equal(found[left], images[left])
    assert torch.equal(images, before)
    assert torch.equal(imputed(images * left, removed, how), found)
    assert torch.equal(imputed(images, torch.zeros_like(removed), how), images)


@given(seed=st.integers(0, 2**32), share=st.floats(0.05, 0.99), height=st.integers(3, 20))
@settings(max_examples=30, deadline=None)
def test_nothing_made_up_is_darker_or_brighter_than_all_that_is_left(seed, share, height):
    images, removed = random_inputs(1, (height, 17), seed), random_removed(1, (height, 17), share, seed)
    found, left = imputed(images, removed), images[:, :, ~removed[0]]
    assert (found.amin((2, 3)) > left.amin(2) - 2e-3).all()
    assert (found.amax((2, 3)) < left.amax(2) + 2e-3).all()


@pytest.mark.parametrize("how", WAYS)
def test_an_image_is_made_up_as_if_it_were_alone(how):
    images = random_inputs(6, (70, 50))
    removed = torch.cat([top(random_maps(3, (70, 50)), 0.1), top(blobs(3, (70, 50)), 0.9)])
    together = imputed(images, removed, how)
    for row in range(6):
        alone = imputed(images[row : row + 1], removed[row : row + 1], how)[0]
        torch.testing.assert_close(alone, together[row], atol=MADE_UP, rtol=0)


def test_an_image_that_is_done_with_stays_so_while_others_of_its_chunk_go_on(monkeypatch):
    images = random_inputs(4, (70, 50))
    removed = torch.cat([top(random_maps(2, (70, 50)), 0.1), top(blobs(2, (70, 50)), 0.9)])
    chunks = {}
    for size in (1, 1 << 30):
        monkeypatch.setattr(imputation, "_CACHED", size)
        # Coarse, so that one step more would change an image by 1e-2.
        chunks[size] = linear(images, removed, tolerance=0.1)
    torch.testing.assert_close(*chunks.values(), atol=MADE_UP, rtol=0)


def test_telea_is_what_opencv_does_with_radius_3_once_removed_pixels_are_grey():
    """OpenCV alone reads some of the removed pixels, and what it makes up depends on them."""
    import cv2

    images, removed = random_inputs(2, (20, 24)), top(blobs(2, (20, 24)), 0.4)
    found = imputed(images, removed, "telea")
    for image, hole, ours in zip(images, removed, found, strict=True):
        pixels = (image * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
        pixels[hole] = 128
        theirs = cv2.inpaint(pixels, hole.byte().numpy(), 3, cv2.INPAINT_TELEA) / 255
        np.testing.assert_allclose(ours[:, hole], theirs.transpose(2, 0, 1)[:, hole], atol=1e-6)


def test_noise_is_normal_and_each_seeds_own():
    seeds = torch.arange(100, 103)
    noise = normal(seeds, (3, 101, 99))
    assert noise.shape == (3, 3, 101, 99)
    assert torch.equal(normal(seeds[1:2], (3, 101, 99))[0], noise[1])
    assert noise.mean().abs() < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    assert abs(float((noise.abs() < 1).float().mean()) - 0.6827) < 0.01
    assert (torch.corrcoef(noise.flatten(1)) - torch.eye(3)).abs().max() < 0.03


@pytest.mark.parametrize("kind", ["blobs", "noise"])
def test_pytorch_grad_cam_agrees_on_photographs_of_the_usual_size(kind):
    images = photographs(3)
    size = (224, 224)
    maps = blobs(3, size) if kind == "blobs" else random_maps(3, size)
    for image, saliency, share in zip(images, maps, (0.1, 0.5, 0.9), strict=True):
        removed = top(saliency[None], share)
        theirs = NoisyLinearImputer(noise=0)(image, (~removed[0]).float())
        assert (imputed(image[None], removed)[0] - theirs).abs().max() < 1e-3


def road(classifier, **parameters):
    return Road(classifier, RoadParameters(**parameters))


class Recording(ToyClassifier):
    """Keeps what it is given."""

    def __init__(self, network):
        super().__init__(network)
        self.given = []

    def logits(self, inputs):
        self.given.append(inputs.clone())
        return super().logits(inputs)


def removed_at(classifier, batch, maps, levels):
    """(B, 2, levels, H, W) bool: what differs from the input, in MoRF and LeRF order."""
    classifier.given.clear()
    road(classifier, levels=levels).score(batch, maps)
    given = torch.cat(classifier.given).unflatten(0, (len(maps), 2, len(levels)))
    return (given != batch.inputs[:, None, None]).any(3)


def test_all_numbers_are_those_of_a_loop_over_images_orders_and_levels():
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(5, SIZE), forwards=7)
    maps, levels = random_maps(5, SIZE), (90, 10, 45)
    scores = road(classifier, levels=levels, noise=0).score(batch, maps)
    for row in range(5):
        image, target = batch.inputs[row].double().numpy(), int(batch.targets[row])
        means = {}
        for name, saliency in (("road_morf", maps[row]), ("road_lerf", -maps[row])):
            order = saliency.flatten().argsort(descending=True)
            points = []
            for level in levels:
                removed = torch.zeros(SIZE, dtype=torch.bool)
                removed.view(-1)[order[: round(level / 100 * 63)]] = True
                left = torch.from_numpy(slow_linear(image, removed.numpy()))
                with torch.no_grad():
                    points.append(classifier.logits(left[None].float()).softmax(1)[0])
            curve = torch.stack(points)
            right = (curve.argmax(1) == target).float()
            torch.testing.assert_close(scores.curves[name][row], curve[:, target], atol=1e-3, rtol=0)
            torch.testing.assert_close(scores.curves[f"{name}_accuracy"][row], right)
            torch.testing.assert_close(scores.values[f"{name}_accuracy"][row], right.mean())
            means[name] = scores.values[name][row]
            torch.testing.assert_close(means[name], curve[:, target].mean(), atol=1e-3, rtol=0)
        combined = (means["road_lerf"] - means["road_morf"]) / 2
        torch.testing.assert_close(scores.values["road_combined"][row], combined)


def test_noise_is_on_removed_pixels_alone_and_the_same_at_all_levels():
    classifier = Recording(small_network())
    batch, maps = batch_of(classifier, random_inputs(3, (12, 10))), random_maps(3, (12, 10))
    seen = {}
    for noise in (0.0, 0.01):
        classifier.given.clear()
        road(classifier, levels=(30, 60), noise=noise).score(batch, maps)
        seen[noise] = torch.cat(classifier.given).unflatten(0, (3, 2, 2))
    removed = removed_at(classifier, batch, maps, (30, 60))
    added = seen[0.01] - seen[0.0]
    expected = 0.01 * normal(batch.seeds, (3, 12, 10))[:, None, None] * removed[:, :, :, None]
    torch.testing.assert_close(added, expected, atol=1e-6, rtol=0)
    assert removed.sum((3, 4)).tolist() == [[[36, 72]] * 2] * 3


def test_noise_is_by_default_a_hundredth_for_linear_imputation_and_none_for_inpainting():
    classifier = ToyClassifier(small_network())
    assert road(classifier).noise == 0.01
    assert road(classifier, imputation="telea").noise == 0
    assert road(classifier, imputation="telea", noise=0.2).noise == 0.2
    fills = [road(classifier, imputation=how).columns()[0].fill for how in WAYS]
    assert fills == [
        "removed pixels made up: weighted means of their neighbours, with noise of 0.01",
        "removed pixels made up: inpainting (Telea, radius 3)",
    ]


def test_where_nearly_all_of_a_map_is_zero_each_level_removes_its_share_all_the_same():
    """pytorch-grad-cam compares with a percentile, which is 0 here: it keeps nothing that is not below 0."""
    classifier = Recording(small_network())
    batch = batch_of(classifier, random_inputs(2, (24, 24)))
    maps = torch.zeros(2, 24, 24)
    maps[:, 3, 4:9] = 1.0
    levels = (10, 50, 90)
    removed = removed_at(classifier, batch, maps, levels)
    assert removed.sum((3, 4)).tolist() == [[[58, 288, 518]] * 2] * 2
    assert removed[:, 0, :, 3, 4:9].all()
    assert not removed[:, 1, :, 3, 4:9].any()
    assert not torch.equal(removed[0], removed[1])  # the rest is in the order of each image's seed
    theirs = ROADMostRelevantFirst(percentile=50)
    theirs.perturbation.imputer = lambda _, kept: kept
    kept = theirs.perturbation(batch.inputs[0], maps[0])
    assert kept.sum() == 0


def test_the_two_orders_remove_halves_that_make_up_the_whole():
    classifier = Recording(small_network())
    batch = batch_of(classifier, random_inputs(3, (10, 8)))
    morf, lerf = removed_at(classifier, batch, random_maps(3, (10, 8)), (50,))[:, :, 0].unbind(1)
    assert torch.equal(morf, ~lerf)


def test_even_of_a_few_pixels_one_is_removed_and_one_is_left():
    classifier = Recording(LinearPixels(torch.ones(3, 2, 2)))
    batch = batch_of(classifier, random_inputs(2, (2, 2)))
    assert removed_at(classifier, batch, random_maps(2, (2, 2)), (1, 99)).sum((3, 4)).unique().tolist() == [
        1,
        3,
    ]


def test_only_the_order_of_a_maps_values_counts_and_flat_maps_have_that_of_the_seed():
    classifier = ToyClassifier(small_network())
    batch, maps = batch_of(classifier, random_inputs(3, SIZE)), random_maps(3, SIZE)
    scored = road(classifier, levels=(20, 60))
    for one, other in ((maps, maps**3), (torch.ones_like(maps), torch.zeros_like(maps))):
        first, second = (scored.score(batch, each).values for each in (one, other))
        for name, value in first.items():
            assert torch.equal(value, second[name])


def test_neither_batches_nor_chunks_change_a_score():
    classifier = ToyClassifier(small_network())
    batch, maps = batch_of(classifier, random_inputs(5, SIZE)), random_maps(5, SIZE)
    scored, close = road(classifier), MADE_UP + SMALL_NETWORK
    together = scored.score(batch, maps)
    for rows in ([0], [4, 1, 0]):
        apart = scored.score(rows_of(batch, rows, forwards=4), maps[rows])
        for name, value in apart.values.items():
            torch.testing.assert_close(value, together.values[name][rows], atol=close, rtol=0)
        for name, curve in apart.curves.items():
            torch.testing.assert_close(curve, together.curves[name][rows], atol=close, rtol=0)


def test_a_classifier_that_looks_at_nothing_has_the_same_probability_in_both_orders():
    classifier = ToyClassifier(LinearPixels(torch.zeros(3, *SIZE), 1.0))
    values = road(classifier).score(batch_of(classifier, random_inputs(2, SIZE)), random_maps(2, SIZE)).values
    for name in ("road_morf", "road_lerf"):
        torch.testing.assert_close(values[name], torch.tensor(1.0).sigmoid().expand(2))
    for name in ("road_morf_accuracy", "road_lerf_accuracy"):
        assert values[name].tolist() == [1, 1]
    assert values["road_combined"].tolist() == [0, 0]


@pytest.mark.parametrize("how", WAYS)
def test_the_map_of_what_a_classifier_looks_at_is_better_than_any_random_one(how):
    image = torch.zeros(1, 3, 20, 20)
    image[:, :, 6:11, 7:12] = 1.0  # a bright square on black, all that counts
    classifier = ToyClassifier(LinearPixels(image[0] / 10, -4.0), mean=(0.0,) * 3, std=(1.0,) * 3)
    batch = batch_of(classifier, image.expand(30, -1, -1, -1))
    maps = random_maps(30, (20, 20))
    maps[0] = image[0, 0]
    values = road(classifier, imputation=how).score(batch, maps).values
    assert values["road_morf"].argmin() == 0
    assert values["road_lerf"].argmax() == 0
    assert values["road_combined"].argmax() == 0


@pytest.mark.parametrize("level", [25, 50, 75])
def test_pytorch_grad_cam_agrees_on_photographs_where_its_percentiles_are_exact(level):
    """Of 1024 pixels without ties they are, at these levels; at 10 % it removes one pixel more.

    Its LeRF percentile is the share that is kept. It subtracts the score of the whole input by default, and
    has no seed: here it adds no noise.
    """
    network, images = real_network_and_images()
    classifier = ToyClassifier(network, mean=(0.0,) * 3, std=(1.0,) * 3)
    batch, maps = batch_of(classifier, images), random_maps(len(images), (32, 32))
    values = road(classifier, levels=(level,), noise=0).score(batch, maps).values
    targets = [ClassifierOutputSoftmaxTarget(int(target)) for target in batch.targets]
    for name, metric in (("road_morf", ROADMostRelevantFirst), ("road_lerf", ROADLeastRelevantFirst)):
        theirs = metric(percentile=100 - level)
        theirs.perturbation.imputer.noise = 0
        found = theirs(images, maps.numpy(), targets, network, return_diff=False)
        np.testing.assert_allclose(values[name], found, atol=2e-3)
    assert values["road_combined"].std() > 0.05


def test_levels_are_shares_removed_in_the_papers_steps_by_default():
    assert RoadParameters().levels == (10, 20, 30, 40, 50, 70, 90)


@pytest.mark.parametrize(
    "wrong",
    [
        {"levels": ()},
        {"levels": (0,)},
        {"levels": (100,)},
        {"levels": (50, 50)},
        {"imputation": "blur"},
        {"noise": -0.1},
    ],
)
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RoadParameters(**wrong)


def test_every_channel_is_filled_in_by_itself_whatever_their_number():
    images = torch.stack([blobs(3, (20, 24), seed) for seed in range(6)], 1)
    removed = random_removed(3, (20, 24), 0.4)
    for how in ("linear", "telea"):
        found = imputed(images, removed, how)
        assert torch.equal(found.masked_select(~removed[:, None]), images.masked_select(~removed[:, None]))
        alone = torch.cat([imputed(images[:, band : band + 1], removed, how) for band in range(6)], 1)
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-3)
    # One channel is inpainted as floats: as in 8 bits where those suffice, and as well where they do not.
    eight_bits = imputed(images[:, :3], removed, "telea")
    assert float((eight_bits - found[:, :3]).abs().max()) < 0.1
    assert float((eight_bits - found[:, :3]).abs().mean()) < 0.01
    dark = imputed(images / 1000, removed, "telea") * 1000
    torch.testing.assert_close(dark, found, rtol=0, atol=2e-3)
