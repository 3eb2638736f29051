"""Pointing games by hand-placed maps, and against loops over pixels."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metric_toys import MetricBatch, random_maps
from rounding import rounding
from tasks.metrics.base import NoParameters
from tasks.metrics.localisation import (
    EnergyPointingGame,
    PointingGame,
    PointingGameParameters,
)

H, W = 6, 9
COORDINATE = st.floats(-3, 12, width=32)
BOXES = st.lists(st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE), max_size=3)


def batch(boxes: list[list]) -> MetricBatch:
    count = len(boxes)
    return MetricBatch(
        inputs=torch.zeros(count, 3, H, W),
        targets=torch.zeros(count, dtype=torch.int64),
        seeds=torch.arange(count),
        confidence=torch.ones(count),
        boxes=[torch.tensor(one, dtype=torch.float32).view(-1, 4) for one in boxes],
    )


def pointing(boxes, maps, tolerance=0.0):
    return PointingGame(None, PointingGameParameters(tolerance=tolerance)).score(batch(boxes), maps).values


def energy(boxes, maps):
    return EnergyPointingGame(None, NoParameters()).score(batch(boxes), maps).values


def point(x: int, y: int) -> torch.Tensor:
    one = torch.zeros(H, W)
    one[y, x] = 1
    return one


def pixels_of(boxes) -> set[tuple[int, int]]:
    return {
        (x, y)
        for y in range(H)
        for x in range(W)
        for left, top, right, bottom in boxes
        if left <= x + 0.5 < right and top <= y + 0.5 < bottom
    }


def test_a_point_in_a_box_hits_and_a_point_beside_it_misses():
    box = [[2, 1, 5, 4]]  # columns 2, 3, 4; rows 1, 2, 3
    points = {(2, 1): 1, (4, 3): 1, (3, 2): 1, (1, 2): 0, (5, 2): 0, (3, 0): 0, (3, 4): 0}
    maps = torch.stack([point(*p) for p in points])
    assert pointing([box] * len(points), maps)["pointing_game"].tolist() == list(points.values())


def test_x_runs_along_columns_and_y_along_rows():
    wide = [[0, 0, W, 1]]
    values = pointing([wide, wide], torch.stack([point(8, 0), point(0, 5)]))
    assert values["pointing_game"].tolist() == [1, 0]


def test_a_pixel_belongs_to_a_box_by_its_centre():
    maps = point(3, 2).expand(4, H, W)
    edges = [[[3.5, 2, 9, 3]], [[3.51, 2, 9, 3]], [[0, 2, 3.5, 3]], [[0, 2, 3.51, 3]]]
    assert pointing(edges, maps)["pointing_game"].tolist() == [1, 0, 0, 1]


def test_any_box_of_the_image_counts():
    boxes = [[0, 0, 1, 1], [7, 4, 9, 6]]
    assert pointing([boxes, boxes], torch.stack([point(8, 5), point(4, 3)]))["pointing_game"].tolist() == [
        1,
        0,
    ]


def test_the_tolerance_is_a_strict_radius():
    box = [[0, 0, 2, 2]]
    maps = torch.stack([point(4, 5)] * 3)  # 3 columns and 4 rows from pixel (1, 1)
    for tolerance, hit in ((4.99, 0), (5.0, 0), (5.01, 1)):
        assert pointing([box] * 3, maps, tolerance)["pointing_game"].tolist() == [hit] * 3


def test_no_tolerance_reaches_the_boxes_another_image_has_more_of():
    boxes = [[[8, 5, 9, 6]], [[0, 0, 1, 1], [1, 1, 2, 2]], [[8, 5, 9, 6], [1, 1, 1, 1]]]
    assert pointing(boxes, point(0, 0).expand(3, H, W), 5.0)["pointing_game"].tolist() == [0, 1, 0]


@given(st.lists(BOXES, min_size=2, max_size=4), st.sampled_from([0.0, 0.5, 1.0, 2.5, 4.0]), st.data())
@settings(max_examples=150, deadline=None)
def test_hits_equal_a_search_over_all_pixels_of_the_boxes(boxes, tolerance, data):
    points = [(data.draw(st.integers(0, W - 1)), data.draw(st.integers(0, H - 1))) for _ in boxes]
    values = pointing(boxes, torch.stack([point(*p) for p in points]), tolerance)
    for row, (own, at) in enumerate(zip(boxes, points, strict=True)):
        inside = pixels_of(own)
        for name, place in (("pointing_game", at), ("pointing_game_center", (W // 2, H // 2))):
            found = values[name][row].item()
            if inside:
                distance = min(math.dist(place, pixel) for pixel in inside)
                assert found == (distance == 0 or distance < tolerance)
            else:
                assert math.isnan(found)


def test_a_flat_map_points_at_random_not_at_a_corner():
    count = 2000
    values = pointing([[[0, 0, 3, 3]]] * count, torch.ones(count, H, W))["pointing_game"]
    # 9 pixels of 54: 1/6, standard error 0.008.
    assert abs(values.mean() - 1 / 6) < 0.035


def test_the_centre_is_a_reference_that_ignores_the_map():
    boxes = [[[4, 3, 5, 4]], [[0, 0, 4, 6]]]
    values = pointing(boxes, torch.stack([point(0, 0), point(0, 0)]))
    assert values["pointing_game_center"].tolist() == [1, 0]


def test_energy_is_the_share_of_the_map_inside_the_box():
    maps = torch.zeros(3, H, W)
    maps[:, 1:3, 2:4] = 0.5  # 4 pixels in the box
    maps[1, 5, 8] = 1.0
    maps[2, 3, 2] = 0.25
    values = energy([[[2, 1, 4, 3]]] * 3, maps)
    torch.testing.assert_close(values["energy_pointing_game"], torch.tensor([1.0, 2 / 3, 2 / 2.25]))
    torch.testing.assert_close(values["box_area"], torch.full((3,), 4 / (H * W)))


def test_a_flat_maps_energy_is_the_box_area():
    boxes = [[[0, 0, 3, 3]], [[0, 0, 3, 3], [2, 2, 4, 5]]]
    values = energy(boxes, torch.ones(2, H, W))
    torch.testing.assert_close(values["energy_pointing_game"], values["box_area"])
    torch.testing.assert_close(values["box_area"] * H * W, torch.tensor([9.0, 9 + 6 - 1]))


@given(st.lists(BOXES, min_size=2, max_size=4), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_energy_equals_a_sum_over_the_union_of_the_boxes(boxes, seed):
    maps = random_maps(len(boxes), (H, W), seed)
    values = energy(boxes, maps)
    for row, own in enumerate(boxes):
        inside = pixels_of(own)
        if inside:
            expected = sum(maps[row, y, x].item() for x, y in inside) / maps[row].sum().item()
            assert values["energy_pointing_game"][row].item() == pytest.approx(expected, abs=rounding(H * W))
            assert values["box_area"][row].item() == pytest.approx(len(inside) / (H * W))
        else:
            assert values["energy_pointing_game"][row].isnan()
            assert values["box_area"][row].isnan()


def test_images_without_a_box_inside_them_have_no_score():
    boxes = [[], [[2, 1, 5, 4]], [[20, 20, 30, 30]], [[2.6, 1, 3.4, 4]], [[4, 4, 2, 2]]]
    maps = torch.ones(5, H, W)
    for values in (pointing(boxes, maps, 3.0), energy(boxes, maps)):
        for value in values.values():
            assert value.isnan().tolist() == [True, False, True, True, True]


def test_a_batch_without_any_box_has_no_score():
    for values in (pointing([[], []], torch.ones(2, H, W)), energy([[], []], torch.ones(2, H, W))):
        assert all(value.isnan().all() for value in values.values())


def test_a_map_of_zeros_has_no_energy_but_still_points_somewhere():
    box = [[0, 0, W, H]]
    assert energy([box], torch.zeros(1, H, W))["energy_pointing_game"].isnan().all()
    assert pointing([box], torch.zeros(1, H, W))["pointing_game"].tolist() == [1]


def test_a_negative_tolerance_is_refused():
    with pytest.raises(ValueError, match="tolerance"):
        PointingGameParameters(tolerance=-1)
