"""Boxes at the best threshold: closed forms, and a loop over images and thresholds with scikit-image."""

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label, regionprops

from explainers.controls import CenterGaussian, CenterGaussianParameters, center_gaussian
from metric_toys import MetricBatch, random_maps
from places import REAL
from storage.datasets.geometry import prepare_image
from storage.datasets.kinds.csv_listing import CsvListing
from storage.datasets.opening import open_dataset
from tasks.metrics.box_accuracy import MaxBoxAccuracy, MaxBoxAccuracyParameters
from tasks.metrics.connected import connected_components
from tasks.metrics.preparation import prepare

SIZE = (20, 30)


def batch(boxes: list, size=SIZE) -> MetricBatch:
    count = len(boxes)
    return MetricBatch(
        inputs=torch.zeros(count, 3, *size),
        targets=torch.zeros(count, dtype=torch.int64),
        seeds=torch.arange(count),
        confidence=torch.ones(count),
        boxes=[torch.tensor(one, dtype=torch.float32).view(-1, 4) for one in boxes],
    )


def curves_of(boxes: list, maps: torch.Tensor, thresholds: int = 100) -> dict[str, torch.Tensor]:
    metric = MaxBoxAccuracy(None, MaxBoxAccuracyParameters(thresholds=thresholds))
    return dict(metric.score(batch(boxes, maps.shape[1:]), maps).curves)


def of_dataset(column: str, curves: torch.Tensor) -> float:
    return float(MaxBoxAccuracy.of_mean_curve(column, curves.double().nanmean(0, keepdim=True))[0])


def accuracy(boxes: list, maps: torch.Tensor, column: str = "max_box_acc", thresholds: int = 100) -> float:
    return of_dataset(column, curves_of(boxes, maps, thresholds)[column])


def rectangles(*values: tuple[float, list[int]]) -> torch.Tensor:
    """(1, H, W) zeros with rectangles painted over each other."""
    canvas = torch.zeros(1, *SIZE)
    for value, (left, top, right, bottom) in values:
        canvas[0, top:bottom, left:right] = value
    return canvas


def smooth_maps(count: int, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return prepare(torch.rand(count, 5, 5, generator=torch.Generator().manual_seed(seed)), size)[0]


def slow_overlap(box, truth) -> float:
    width = max(0.0, min(box[2], truth[2]) - max(box[0], truth[0]))
    height = max(0.0, min(box[3], truth[3]) - max(box[1], truth[1]))
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (box, truth)]
    return width * height / (sum(areas) - width * height)


def slow_hits(saliency: np.ndarray, truths: list, thresholds: int) -> dict[str, list[bool]]:
    """One map, one threshold after the other."""
    largest, best = [], []
    for k in range(thresholds):
        regions = regionprops(label(saliency > np.float32(k) / np.float32(thresholds), connectivity=2))
        found = [
            (region.area, max(slow_overlap([x0, y0, x1, y1], truth) for truth in truths))
            for region in regions
            for y0, x0, y1, x1 in [region.bbox]
        ]
        most = max((area for area, _ in found), default=0)
        largest.append(max((overlap for area, overlap in found if area == most), default=0.0))
        best.append(max((overlap for _, overlap in found), default=0.0))
    return {
        "max_box_acc": [overlap >= 0.5 for overlap in largest],
        "max_box_acc_v2": [overlap >= delta for delta in (0.3, 0.5, 0.7) for overlap in best],
    }


def test_a_map_of_nested_rectangles_hits_where_their_overlap_is_large_enough():
    """Three boxes one in another, of 24, 12 and 3 times 10 pixels; the object is that of 15 times 10."""
    maps = rectangles((0.25, [0, 5, 24, 15]), (0.5, [0, 5, 12, 15]), (1.0, [0, 5, 3, 15]))
    curves = curves_of([[[0, 5, 15, 15]]], maps, thresholds=8)  # 0, 1/8, ...; overlaps 15/24, 12/15, 3/15
    hits = {0.3: [1, 1, 1, 1, 0, 0, 0, 0], 0.5: [1, 1, 1, 1, 0, 0, 0, 0], 0.7: [0, 0, 1, 1, 0, 0, 0, 0]}
    assert curves["max_box_acc"].tolist() == [hits[0.5]]
    assert curves["max_box_acc_v2"].tolist() == [hits[0.3] + hits[0.5] + hits[0.7]]


@pytest.mark.parametrize(
    ("width", "hits"), [(3, [1, 0, 0]), (2, [0, 0, 0]), (5, [1, 1, 0]), (4, [1, 0, 0]), (7, [1, 1, 1])]
)
def test_an_overlap_of_exactly_delta_is_enough(width, hits):
    """``width`` tenths of the object are covered."""
    maps = rectangles((1.0, [10, 5, 10 + width, 8]))
    curve = curves_of([[[10, 5, 20, 8]]], maps, thresholds=1)["max_box_acc_v2"]
    assert curve.tolist() == [hits]


def test_a_pixel_at_the_threshold_is_not_above_it():
    maps = rectangles((0.5, [0, 0, 30, 20]), (1.0, [4, 4, 6, 6]))
    assert curves_of([[[0, 0, 30, 20]]], maps, thresholds=2)["max_box_acc"].tolist() == [[1, 0]]


def test_the_highest_mean_is_no_mean_of_highests():
    """One object is found below a half, the other above: no threshold finds both, though each has its own."""
    box = [[0, 0, 10, 10]]
    maps = torch.cat(
        [
            rectangles((0.5, [0, 0, 10, 10]), (1.0, [0, 0, 3, 3])),
            rectangles((0.5, [0, 0, 30, 20]), (1.0, [0, 0, 10, 10])),
        ]
    )
    curve = curves_of([box] * 2, maps)["max_box_acc"]
    assert curve.amax(1).mean() == 1.0
    assert of_dataset("max_box_acc", curve) == 0.5


def test_version_2_has_a_threshold_for_each_delta():
    """At 0.7 the inner box is needed; at 0.3 and 0.5 the outer one finds the second object as well."""
    object_ = [[0, 0, 10, 10]]
    maps = torch.cat(
        [
            rectangles((0.5, [0, 0, 18, 10]), (1.0, [0, 0, 10, 10])),
            rectangles((0.5, [0, 0, 18, 10]), (1.0, [0, 0, 2, 2])),
        ]
    )
    assert accuracy([object_] * 2, maps, "max_box_acc_v2") == pytest.approx((1 + 1 + 0.5) / 3)
    assert accuracy([object_] * 2, maps) == 1.0


def test_version_1_looks_at_the_largest_component_and_version_2_at_all():
    maps = rectangles((1.0, [0, 0, 8, 8]), (1.0, [15, 5, 30, 20]))
    for box, v1 in (([0, 0, 8, 8], 0.0), ([15, 5, 30, 20], 1.0)):
        assert accuracy([[box]], maps) == v1
        assert accuracy([[box]], maps, "max_box_acc_v2") == 1.0


def test_of_components_as_large_as_each_other_the_best_counts():
    maps = rectangles((1.0, [0, 0, 8, 8]), (1.0, [15, 5, 23, 13]))
    assert [accuracy([[box]], maps) for box in ([0, 0, 8, 8], [15, 5, 23, 13])] == [1.0, 1.0]


def test_the_largest_component_has_the_most_pixels_not_the_largest_box():
    diagonal = torch.zeros(1, *SIZE)
    diagonal[0, range(12), range(12)] = 1.0  # 12 pixels in a box of 144
    diagonal[0, 15:20, 20:25] = 1.0  # 25 pixels
    assert accuracy([[[0, 0, 12, 12]]], diagonal) == 0.0
    assert accuracy([[[20, 15, 25, 20]]], diagonal) == 1.0
    assert accuracy([[[0, 0, 12, 12]]], diagonal, "max_box_acc_v2") == 1.0  # connected by corners


def test_any_box_of_the_image_counts_and_is_cut_to_the_input():
    maps = rectangles((1.0, [20, 10, 30, 20]))
    for box in ([20, 10, 30, 20], [20, 10, 60, 50], [20.4, 9.8, 31.0, 20.2]):
        assert accuracy([[[0, 0, 1, 1], box]], maps) == 1.0


def test_a_map_of_zeros_misses_everywhere_and_a_constant_one_has_the_whole_input_everywhere():
    box = [[0, 0, 30, 15]]
    curves = curves_of([box] * 2, torch.stack([torch.zeros(SIZE), torch.ones(SIZE)]), thresholds=4)
    assert curves["max_box_acc"].tolist() == [[0] * 4, [1] * 4]
    assert curves["max_box_acc_v2"].tolist() == [[0] * 12, [1] * 12]
    for version in ("", "_v2"):
        references = curves[f"max_box_acc{version}_all_ones"]
        assert torch.equal(references, torch.ones_like(references))
    assert accuracy([[[0, 0, 30, 8]]], torch.ones(1, *SIZE), "max_box_acc_v2") == pytest.approx(1 / 3)


@pytest.mark.parametrize("size", [(20, 30), (33, 17), (64, 64)])
def test_references_are_what_the_controls_score(size):
    generator = torch.Generator().manual_seed(4)
    low, high = torch.rand(2, 40, 1, 2, generator=generator) * 0.4
    scale = torch.tensor([size[1], size[0]])
    boxes = torch.cat([low * scale, (high + 0.6) * scale], 2).tolist()
    center = prepare(center_gaussian(size, 0.25).expand(40, *size), size)[0]
    for maps, name in ((center, "center"), (torch.ones(40, *size), "all_ones")):
        curves = curves_of(boxes, maps)
        for version in ("", "_v2"):
            own, reference = curves[f"max_box_acc{version}"], curves[f"max_box_acc{version}_{name}"]
            points = reference.shape[1]
            same = own if name == "center" else own[:, :: own.shape[1] // points]
            assert torch.equal(same, reference)
            assert of_dataset("_v2" * bool(version), own) == of_dataset("_v2" * bool(version), reference)
            assert 0 < of_dataset("_v2" * bool(version), reference) < 1


def test_the_centre_of_reference_is_the_control_of_that_name():
    class Shape:
        input_shape = (3, 64, 48)

    class One:
        inputs = torch.zeros(1, 3, 64, 48)

        def __len__(self):
            return 1

    control = CenterGaussian(Shape(), CenterGaussianParameters())
    assert torch.equal(control.maps(One())[0], center_gaussian((64, 48), CenterGaussianParameters().sigma))


@pytest.mark.parametrize("kind", ["smooth", "noise", "steps"])
def test_hits_equal_a_loop_over_images_and_thresholds_with_scikit_image(kind):
    size, generator = (24, 31), torch.Generator().manual_seed(2)
    maps = smooth_maps(16, size) if kind == "smooth" else random_maps(16, size)
    if kind == "steps":  # exactly at thresholds, and components as large as each other
        maps = (smooth_maps(16, size, 1) * 10).round() / 10
    boxes = []
    for row in range(16):
        low = torch.rand(row % 3 + 1, 2, generator=generator) * 10
        boxes.append(torch.cat([low, low + 3 + torch.rand(low.shape, generator=generator) * 11], 1).tolist())
    curves = curves_of(boxes, maps, thresholds=20)
    for row, truths in enumerate(boxes):
        for column, hits in slow_hits(maps[row].numpy(), truths, 20).items():
            assert curves[column][row].bool().tolist() == hits
    assert 0 < curves["max_box_acc_v2"].mean() < 1


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=6), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_components_are_those_of_scikit_image_map_by_map(seeds, share):
    binary = np.stack([np.random.default_rng(seed).random((9, 7)) > share / 6 for seed in seeds])
    found = connected_components(binary)
    rows = zip(found.image, found.boxes.tolist(), found.areas, strict=True)
    expected = [
        (image, [x0, y0, x1, y1], region.area)
        for image, one in enumerate(binary)
        for region in regionprops(label(one, connectivity=2))
        for y0, x0, y1, x1 in [region.bbox]
    ]
    assert sorted(rows) == sorted(expected)


def test_a_batch_scores_as_its_images_one_by_one():
    maps = torch.cat([smooth_maps(3, SIZE), (random_maps(3, SIZE) * 3).round() / 3])
    boxes = [[[2, 3, 12, 14]], [[0, 0, 30, 20], [4, 4, 9, 9]], [[20, 5, 28, 19]]] * 2
    together = curves_of(boxes, maps)
    for rows in ([0], [5], [4, 1]):
        apart = curves_of([boxes[row] for row in rows], maps[rows])
        assert all(torch.equal(apart[name], together[name][rows]) for name in together)


def test_images_without_a_box_and_maps_of_nan_have_no_curve_and_count_for_nothing():
    maps = rectangles((1.0, [2, 1, 9, 9])).repeat(6, 1, 1)
    maps[5] = math.nan
    box = [[2, 1, 9, 9]]
    curves = curves_of([[], box, [[40, 0, 50, 9]], [[5, 1, 5, 9]], [[9, 9, 2, 1]], box], maps)
    for column, curve in curves.items():
        assert curve.isnan().all(1).tolist() == [True, False, True, True, True, True]
        assert not curve[1].isnan().any()
        assert of_dataset(column, curve) == of_dataset(column, curve[1:2])
    assert all(curve.isnan().all() for curve in curves_of([[], []], maps[:2]).values())


@pytest.mark.parametrize("wrong", [{"thresholds": 0}, {"thresholds": 1001}, {"delta": 0.5}])
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MaxBoxAccuracyParameters(**wrong)


def published_hits(saliency: np.ndarray, truths: list, holes: bool) -> tuple[list[bool], list[bool]]:
    """The published protocol: 256 steps, contours, those of holes among them if ``holes``; delta 0.5.

    Its boxes reach a pixel further than the contours; these do not.
    """
    image, largest, best = (saliency * 255).astype(np.uint8), [], []
    for k in range(100):
        above = (image > int(k / 100 * image.max())).astype(np.uint8)
        contours, family = cv2.findContours(above, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        contours = [c for c, (*_, parent) in zip(contours, family[0], strict=True) if holes or parent < 0]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in map(cv2.boundingRect, contours)]
        overlaps = [max(slow_overlap(box, truth) for truth in truths) for box in boxes]
        areas = [cv2.contourArea(contour) for contour in contours]
        largest.append(overlaps[int(np.argmax(areas))] >= 0.5)
        best.append(max(overlaps) >= 0.5)
    return largest, best


def photographs() -> tuple[torch.Tensor, list]:
    """Blurred edges of 32 photographs as (32, 224, 224) maps, and the photographs' boxes."""
    if not (REAL / "images").exists():
        pytest.skip(f"no real images in {REAL}; FLOODLIT_REAL says where they are")
    listing = REAL / "images"
    spec = CsvListing(path=listing / "ilsvrc_val.csv", images=listing / "ilsvrc_val", limit=32)
    dataset, maps, boxes = open_dataset(spec), [], []
    for index in range(32):
        pixels, own = prepare_image(dataset.load(index), dataset.samples[index].boxes, 256, 224)
        edges = np.hypot(*np.gradient(pixels.astype(np.float32).mean(0)))
        maps.append(cv2.GaussianBlur(edges, (0, 0), 12.0))
        boxes.append(own)
    return prepare(torch.from_numpy(np.stack(maps)).float(), (224, 224))[0], boxes


def test_photographs_score_as_by_the_published_protocol_less_its_boxes_of_holes():
    """Holes within a region have contours too, whose boxes make hits that no component has."""
    maps, boxes = photographs()
    for values, differing in (
        ((maps * 255).floor() / 255, 0.0),
        (maps, 0.005),
    ):  # in 256 steps, and as they are
        curves = curves_of(boxes, values)
        for holes in (False, True):
            rows = [published_hits(*one, holes) for one in zip(maps.numpy(), boxes, strict=True)]
            largest, best = (torch.tensor(hits).float() for hits in zip(*rows, strict=True))
            ours = curves["max_box_acc"], curves["max_box_acc_v2"][:, 100:200]
            assert (ours[0] != largest).float().mean() <= differing
            if holes:
                assert best.mean(0).amax() > ours[1].mean(0).amax() > 0.3
            else:
                assert (ours[1] != best).float().mean() <= differing
