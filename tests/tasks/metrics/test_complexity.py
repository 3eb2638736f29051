"""Complexity and shape of maps: closed forms, properties, and Quantus."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.measure import label

from metric_toys import ToyClassifier, batch_of, random_maps, real_network_and_images
from tasks.metrics.base import Need
from tasks.metrics.complexity import EffectiveComplexity, Entropy, MaskArea
from tasks.metrics.shape import ConnectedRegions, TotalVariation

METRICS = {
    kind.name: kind for kind in (Entropy, EffectiveComplexity, MaskArea, ConnectedRegions, TotalVariation)
}
SITES = [name for name in METRICS if name != "connected_regions"]
GRIDS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.floats(0, 1, width=32)
)


def score(name: str, maps: torch.Tensor, **parameters) -> torch.Tensor:
    kind = METRICS[name]
    values = kind(None, kind.Parameters(**parameters)).score(None, maps).values
    assert list(values) == [name]
    return values[name]


def grid(*rows: str) -> torch.Tensor:
    """(1, H, W): '#' is 1, '+' is 0.5, '.' is 0."""
    return torch.tensor([[{"#": 1.0, "+": 0.5, ".": 0.0}[c] for c in row] for row in rows])[None]


@pytest.mark.parametrize("sites", [(5,), (7, 9), (224, 224)])
def test_a_flat_map_is_the_most_complex_and_in_one_smooth_piece(sites):
    n, flat = math.prod(sites), torch.ones(1, *sites)
    assert score("entropy", flat).item() == pytest.approx(math.log(n), abs=1e-6)
    assert score("effective_complexity", flat).item() == 1.0
    assert score("mask_area", flat).item() == 1.0
    assert score("total_variation", flat).item() == 0.0
    if len(sites) == 2:
        assert score("connected_regions", flat).item() == 1.0


@pytest.mark.parametrize("sites", [(5,), (7, 9), (224, 224)])
def test_a_map_of_a_single_site_is_the_simplest(sites):
    n, single = math.prod(sites), torch.zeros(1, *sites)
    single[(0, *[2] * len(sites))] = 1.0
    assert score("entropy", single).item() == 0.0
    assert score("effective_complexity", single).item() == pytest.approx(1 / n)
    assert score("mask_area", single).item() == pytest.approx(1 / n)
    assert score("total_variation", single).item() == pytest.approx(2 * len(sites) / n)
    if len(sites) == 2:
        assert score("connected_regions", single).item() == 1.0


def test_the_entropy_of_k_equal_sites_is_that_of_k():
    maps = torch.zeros(1, 8, 8)
    maps[0, 2:5, 3:7] = 0.3
    assert score("entropy", maps).item() == pytest.approx(math.log(12), abs=1e-6)


@given(GRIDS)
def test_entropy_is_a_sum_over_the_sites(values):
    values = values.astype(np.float64)
    assume(values.sum() > 1e-3)
    shares = [value / values.sum() for value in values.ravel() if value > 0]
    expected = -sum(share * math.log(share) for share in shares if share > 0)
    found = score("entropy", torch.from_numpy(values)[None]).item()
    assert found == pytest.approx(expected, abs=1e-9)
    assert -1e-12 <= found <= math.log(values.size) + 1e-12


def test_scaling_a_map_changes_no_entropy_and_no_regions():
    maps = random_maps(3, (7, 6))
    for name in ("entropy", "connected_regions"):
        torch.testing.assert_close(score(name, maps * 0.4), score(name, maps))


def test_effective_complexity_counts_what_is_above_the_threshold_and_not_what_is_at_it():
    maps = torch.tensor([[0.0, 1e-6, 1e-4, 0.25, 0.5, 1.0]])
    for threshold, count in ((0.0, 5), (1e-5, 4), (0.25, 2), (0.5, 1)):
        assert score("effective_complexity", maps, threshold=threshold).item() == pytest.approx(count / 6)
    assert score("effective_complexity", maps).item() == pytest.approx(4 / 6)


def test_mask_area_is_the_mean():
    maps = random_maps(3, (7, 6))
    torch.testing.assert_close(score("mask_area", maps), maps.mean((1, 2)))


def test_regions_hold_together_by_edges_and_corners():
    maps = grid(
        "##..#...",
        "##...#..",
        "........",
        "+..##..#",
        "+.....##",
    )
    assert score("connected_regions", maps).item() == 4  # the left is at the threshold, not above it
    assert score("connected_regions", maps, threshold=0.4).item() == 5
    assert score("connected_regions", maps, threshold=0.0).item() == 5


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5), st.sampled_from([0.0, 0.5, 0.8]))
@settings(max_examples=50, deadline=None)
def test_regions_are_those_of_scikit_image_map_by_map(seeds, threshold):
    maps = torch.stack([random_maps(1, (9, 7), seed)[0] for seed in seeds])
    expected = [label(one.numpy() > threshold, connectivity=2).max() for one in maps]
    assert score("connected_regions", maps, threshold=threshold).tolist() == expected


def test_total_variation_sums_the_steps_along_each_axis():
    maps = grid("#+.", "..#")
    across, down = (0.5 + 0.5) + (0.0 + 1.0), 1.0 + 0.5 + 1.0
    assert score("total_variation", maps).item() == pytest.approx((across + down) / 6)
    checks = torch.arange(8)[:, None] % 2 == torch.arange(6) % 2
    assert score("total_variation", checks.float()[None]).item() == pytest.approx((7 * 6 + 8 * 5) / 48)
    assert score("total_variation", torch.linspace(0, 1, 11)[None]).item() == pytest.approx(1 / 11)


@given(GRIDS)
def test_total_variation_equals_a_loop_over_neighbours(values):
    assume(values.max() > 0)
    steps = sum(
        abs(float(values[y, x]) - float(values[y - down, x - right]))
        for y in range(values.shape[0])
        for x in range(values.shape[1])
        for down, right in ((1, 0), (0, 1))
        if y >= down and x >= right
    )
    found = score("total_variation", torch.from_numpy(values)[None]).item()
    assert found == pytest.approx(steps / values.size, abs=1e-6)
    assert found <= 2.0


@pytest.mark.parametrize("name", SITES)
def test_sites_of_a_text_that_cannot_be_hidden_do_not_count(name):
    away = -math.inf
    whole = torch.tensor([[0.25, 1.0, 0.5, 0.0]])
    padded = torch.tensor([[away, 0.25, 1.0, 0.5, 0.0, away, away]])
    torch.testing.assert_close(score(name, padded), score(name, whole))


def test_tokens_with_another_between_them_are_no_neighbours():
    apart = torch.tensor([[1.0, -math.inf, 0.0, 0.5]])
    assert score("total_variation", apart).item() == pytest.approx(0.5 / 3)


@pytest.mark.parametrize("name", METRICS)
def test_maps_of_zeros_and_of_nan_have_no_value_and_change_no_other(name):
    maps = random_maps(4, (7, 6))
    clean = score(name, maps)
    maps[1], maps[2] = 0.0, math.nan
    found = score(name, maps)
    assert found.isnan().tolist() == [False, True, True, False]
    assert torch.equal(found[[0, 3]], clean[[0, 3]])


@pytest.mark.parametrize("name", METRICS)
def test_a_batch_scores_as_its_maps_one_by_one(name):
    maps = (random_maps(6, (9, 7)) * 3).round() / 3
    together = score(name, maps)
    for rows in ([0], [5], [4, 2]):
        assert torch.equal(score(name, maps[rows]), together[rows])


def test_only_regions_need_an_image():
    assert {name for name, kind in METRICS.items() if Need.PIXELS in kind.needs} == {"connected_regions"}


@pytest.mark.parametrize("name", ["effective_complexity", "connected_regions"])
@pytest.mark.parametrize("wrong", [{"threshold": 1.0}, {"threshold": -0.1}, {"eps": 1e-5}])
def test_wrong_parameters_are_refused(name, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        METRICS[name].Parameters(**wrong)


def by_quantus(name: str, maps: torch.Tensor) -> np.ndarray:
    import quantus

    found = getattr(quantus, name)(disable_warnings=True)(
        model=None,
        x_batch=np.zeros((len(maps), 3, *maps.shape[1:]), np.float32),
        y_batch=np.zeros(len(maps), np.int64),
        a_batch=maps[:, None].numpy().copy(),
    )
    return np.array(found, dtype=np.float64)


def test_quantus_agrees_on_photographs():
    """It counts where we give a share, and divides by each map's largest value, which is 1 here already."""
    network, images = real_network_and_images()
    batch = batch_of(ToyClassifier(network, mean=(0.0,) * 3, std=(1.0,) * 3), images)
    maps = batch.explain(images, torch.arange(32))
    assert maps.shape == (32, 32, 32)
    np.testing.assert_allclose(score("entropy", maps), by_quantus("Complexity", maps), atol=1e-4)
    counts = score("effective_complexity", maps) * 32 * 32
    np.testing.assert_allclose(counts, by_quantus("EffectiveComplexity", maps), atol=1e-3)
    assert score("entropy", maps).std() > 0.05
    assert counts.std() > 2


@pytest.mark.filterwarnings("ignore:invalid value")
def test_quantus_calls_a_map_of_zeros_the_simplest_by_one_count_and_undefined_by_the_other():
    """It refuses zeros only where all maps of a call are zero."""
    maps = torch.cat([torch.zeros(1, 8, 8), random_maps(1, (8, 8))])
    assert by_quantus("EffectiveComplexity", maps)[0] == 0
    assert np.isnan(by_quantus("Complexity", maps)[0])
    for name in ("entropy", "effective_complexity"):
        assert score(name, maps).isnan().tolist() == [True, False]
