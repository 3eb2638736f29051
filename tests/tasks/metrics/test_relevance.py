"""Relevance mass and rank accuracy by hand, by loops over pixels, and by Quantus."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metric_toys import MetricBatch, ToyClassifier, batch_of, random_maps, real_network_and_images
from rounding import rounding
from tasks.metrics.base import NoParameters
from tasks.metrics.relevance import RelevanceMassAccuracy, RelevanceRankAccuracy

H, W = 6, 9


def scores_of(kind, maps, masks, seeds=None) -> dict[str, torch.Tensor]:
    count = len(maps)
    batch = MetricBatch(
        inputs=torch.zeros(count, 3, *maps.shape[1:]),
        targets=torch.zeros(count, dtype=torch.int64),
        seeds=torch.arange(count) if seeds is None else seeds,
        confidence=torch.ones(count),
        boxes=[torch.zeros(0, 4)] * count,
        masks=masks,
    )
    return dict(kind(None, NoParameters()).score(batch, maps).values)


def mass(maps, masks):
    return scores_of(RelevanceMassAccuracy, maps, masks)["relevance_mass_accuracy"]


def rank(maps, masks, seeds=None):
    return scores_of(RelevanceRankAccuracy, maps, masks, seeds)["relevance_rank_accuracy"]


def square() -> torch.Tensor:
    """(1, H, W): 4 pixels of 54."""
    mask = torch.zeros(1, H, W, dtype=torch.bool)
    mask[:, 1:3, 2:4] = True
    return mask


def random_masks(count: int, size=(H, W), seed: int = 7) -> torch.Tensor:
    masks = torch.rand(count, *size, generator=torch.Generator().manual_seed(seed)) < 0.3
    masks[:, 0, 0] = True
    return masks


def test_mass_is_the_share_of_the_map_on_the_mask_and_rank_that_of_its_highest_pixels():
    maps = torch.zeros(1, H, W)
    maps[0, 1, 2:4] = torch.tensor([1.0, 0.5])
    maps[0, 5, 5:8] = torch.tensor([0.8, 0.6, 0.1])
    torch.testing.assert_close(mass(maps, square()), torch.tensor([1.5 / 3.0]))
    assert rank(maps, square()).tolist() == [0.5]  # 1.0, 0.8, 0.6, 0.5 are the first four


def test_a_map_that_is_the_mask_scores_one_and_its_inverse_zero():
    masks = random_masks(5)
    for score in (mass, rank):
        assert score(masks.float(), masks).tolist() == [1.0] * 5
    assert mass((~masks).float(), masks).tolist() == [0.0] * 5
    assert rank((~square()).float(), square()).tolist() == [0.0]


@given(st.integers(0, 2**32), st.floats(0.25, 4))
@settings(max_examples=50, deadline=None)
def test_both_equal_a_loop_over_pixels_and_rank_looks_at_the_order_alone(seed, power):
    maps, masks = random_maps(3, (H, W), seed), random_masks(3, seed=seed)
    for row in range(3):
        order = sorted(((y, x) for y in range(H) for x in range(W)), key=lambda at: -maps[row][at])
        on = [bool(masks[row][at]) for at in order]
        size, total = sum(on), sum(float(maps[row][at]) for at in order)
        within = sum(float(maps[row][at]) for at, inside in zip(order, on, strict=True) if inside)
        assert mass(maps, masks)[row].item() == pytest.approx(within / total, abs=rounding(H * W))
        assert rank(maps**power, masks)[row].item() == pytest.approx(sum(on[:size]) / size)


def test_a_flat_map_has_the_mass_of_the_area_and_ranks_at_random():
    count, masks = 2000, square().expand(2000, H, W)
    for value in (0.0, 1.0):
        flat = torch.full((count, H, W), value)
        # 4 pixels of 54, drawn without replacement: standard error 0.003.
        assert rank(flat, masks).mean().item() == pytest.approx(4 / 54, abs=0.012)
    torch.testing.assert_close(mass(torch.ones(1, H, W), square()), torch.tensor([4 / 54]))


def test_ties_are_broken_by_the_images_seed_alone():
    flat, masks = torch.ones(30, H, W), random_masks(1).expand(30, H, W)
    seeds = torch.arange(30)
    assert len(set(rank(flat, masks, seeds).tolist())) > 3
    assert torch.equal(rank(flat[:5], masks[:5], seeds[20:25]), rank(flat, masks, seeds)[20:25])


@pytest.mark.parametrize("kind", [RelevanceMassAccuracy, RelevanceRankAccuracy])
def test_the_reference_is_the_masks_share_of_the_input(kind):
    masks = random_masks(4)
    masks[1] = True
    found = scores_of(kind, random_maps(4, (H, W)), masks)
    assert list(found) == [kind.name, f"{kind.name}_area"]
    torch.testing.assert_close(found[f"{kind.name}_area"], masks.float().mean((1, 2)))
    assert found[kind.name][1] == 1.0


@pytest.mark.parametrize("kind", [RelevanceMassAccuracy, RelevanceRankAccuracy])
def test_what_has_no_score_has_no_reference_either(kind):
    maps, masks = random_maps(4, (H, W)), random_masks(4)
    maps[1], maps[2], masks[3] = math.nan, 0.0, False
    undefined = [False, True, kind is RelevanceMassAccuracy, True]
    for value in scores_of(kind, maps, masks).values():
        assert value.isnan().tolist() == undefined
    for value in scores_of(kind, random_maps(4, (H, W)), None).values():
        assert value.isnan().all()


def test_quantus_agrees_on_photographs():
    """On maps without ties: equal values it leaves in whatever order NumPy's sort has them."""
    import quantus

    network, images = real_network_and_images()
    batch = batch_of(ToyClassifier(network, mean=(0.0,) * 3, std=(1.0,) * 3), images)
    maps = batch.explain(images, torch.arange(32))
    masks = random_masks(32, (32, 32))
    masks[:16] = False
    masks[:16, 8:24, 10:22] = True
    for score, theirs in (
        (mass, quantus.RelevanceMassAccuracy),
        (rank, quantus.RelevanceRankAccuracy),
    ):
        found = theirs(disable_warnings=True)(
            model=None,
            x_batch=images.numpy(),
            y_batch=batch.targets.numpy(),
            a_batch=maps[:, None].numpy().copy(),
            s_batch=masks[:, None].numpy(),
        )
        np.testing.assert_allclose(score(maps, masks), np.array(found), atol=1e-5)
        assert score(maps, masks)[:16].std() > 0.02


def test_ignored_pixels_are_as_if_they_were_not_there():
    maps, masks = random_maps(5, (H, W)), random_masks(5)
    ignored = torch.rand(5, H, W, generator=torch.Generator().manual_seed(3)) < 0.4
    masks[:, 0, 0], ignored[:, 0, 0] = True, False
    masks &= ~ignored
    batch = MetricBatch(
        inputs=torch.zeros(5, 3, H, W),
        targets=torch.zeros(5, dtype=torch.int64),
        seeds=torch.arange(5),
        confidence=torch.ones(5),
        boxes=[torch.zeros(0, 4)] * 5,
        masks=masks,
        ignored=ignored,
    )
    mass, rank = (
        kind(None, NoParameters()).score(batch, maps).values
        for kind in (RelevanceMassAccuracy, RelevanceRankAccuracy)
    )
    for i in range(5):
        values, objects = maps[i][~ignored[i]], masks[i][~ignored[i]]
        first = values.argsort(descending=True)[: objects.sum()]
        wanted = {
            "relevance_mass_accuracy": values[objects].sum() / values.sum(),
            "relevance_rank_accuracy": objects[first].float().mean(),
        }
        for scores, name in ((mass, "relevance_mass_accuracy"), (rank, "relevance_rank_accuracy")):
            assert scores[name][i].item() == pytest.approx(wanted[name].item(), abs=1e-6)
            assert scores[f"{name}_area"][i].item() == pytest.approx(objects.float().mean().item(), abs=1e-6)
