"""Fixed places: the statistic is SciPy's, the threshold keeps its level, and the planted place is found."""

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind

from rule_toys import PATCH, SIZE, seen
from tasks.findings.places import fixed_place, t_statistics
from tasks.findings.seen import Seen, grown, pooled, share_on_objects


def statistics(inside: torch.Tensor, every: torch.Tensor) -> torch.Tensor:
    powers = [torch.cat([each.double(), each.double().square()], 1).sum(0) for each in (inside, every)]
    return t_statistics(powers[0][None], powers[1], len(inside), len(every))[0]


def test_t_is_that_of_welch() -> None:
    every = torch.rand(40, 7, generator=torch.Generator().manual_seed(0))
    expected = ttest_ind(every[:11].double().numpy(), every[11:].double().numpy(), equal_var=False).statistic
    np.testing.assert_allclose(statistics(every[:11], every), expected, rtol=1e-6)


def test_a_position_that_never_varies_has_no_t() -> None:
    every = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    every[:, 0] = 0.3
    assert statistics(every[:11], every)[0] == 0


def test_the_planted_place_and_a_cell_around_it_is_the_region() -> None:
    found = fixed_place(seen(), 0, (SIZE, SIZE))
    assert found is not None
    assert found.strength > 10
    wide = torch.zeros_like(PATCH)
    wide[:12, :12] = True  # a cell of 4 pixels more on both sides
    assert torch.equal(found.region, wide)
    assert found.images == 40
    assert len(found.exemplars) == 30
    assert set(found.exemplars) <= set(range(0, 120, 3))


def test_the_threshold_keeps_its_level() -> None:
    """With maps of noise, about 5 % of the classes are suspected."""
    rng = np.random.default_rng(0)
    maps = pooled(torch.from_numpy(rng.random((400, 5, 5))))
    fired = 0
    for trial in range(100):
        classes = rng.permutation(np.arange(400) % 8)
        noise = Seen(maps, classes, classes, None, lambda rows: maps[rows], None, seed=trial)
        fired += fixed_place(noise, 0, (10, 10)) is not None
    assert fired <= 12  # P(more) < 1 in 500 at a level of 5 %


@pytest.mark.parametrize("own", [0, 1, 119, 120])
def test_classes_without_a_variance_are_not_suspected(own: int) -> None:
    given = seen()
    classes = np.where(np.arange(120) < own, 0, 1)
    one = Seen(given.maps, classes, classes, None, given.images, None)
    assert (fixed_place(one, 0, (SIZE, SIZE)) is None) == (own < 2 or own > 118)


def test_pooled_maps_are_shares_of_the_positive_part() -> None:
    maps = torch.tensor([[[1.0, -3], [2, 1]], [[-1, -1], [-1, -1]], [[torch.nan, 1], [1, 1]]])
    assert pooled(maps).tolist() == [[[0.25, 0], [0.5, 0.25]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]
    fine = torch.zeros(1, 32, 40)
    fine[0, :2, :] = 1
    assert pooled(fine).shape == (1, 16, 16)
    torch.testing.assert_close(pooled(fine)[0, 0], torch.full((16,), 1 / 16))


def test_the_share_on_an_object_of_a_flat_map_is_its_area() -> None:
    objects = torch.zeros(3, 64, 64, dtype=torch.bool)
    objects[0, 10:20, 10:30] = True
    objects[1] = True
    larger = grown(objects)
    assert larger[0].sum() == 14 * 24  # two pixels on all sides
    shares = share_on_objects(pooled(torch.ones(3, 8, 8)), larger)
    torch.testing.assert_close(shares[:2], torch.tensor([14 * 24 / 4096, 1.0]))
    assert shares[2].isnan()
