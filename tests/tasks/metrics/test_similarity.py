"""Rank correlation and structural similarity of maps, against SciPy and scikit-image."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity

from metric_toys import random_maps
from tasks.metrics.similarity import mean_ranks, spearman, ssim

SIZE = (12, 10)


def test_rank_correlation_is_that_of_scipy_ties_included() -> None:
    generator = torch.Generator().manual_seed(0)
    maps, others = (torch.randint(0, 6, (5, 8, 9), generator=generator) / 5 for _ in range(2))
    maps[0], others[1] = torch.rand(8, 9, generator=generator), 1 - maps[1]
    expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(maps, others, strict=True)]
    torch.testing.assert_close(spearman(maps, others), torch.tensor(expected).float())
    assert float(spearman(maps, others)[1]) == -1
    assert mean_ranks(torch.tensor([[3.0, 1.0, 3.0, 0.0]])).tolist() == [[3.5, 2.0, 3.5, 1.0]]


def test_sites_that_cannot_be_hidden_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    maps, others = (torch.randint(0, 4, (3, 12), generator=generator) / 3 for _ in range(2))
    expected = [spearmanr(a[:n], b[:n]).statistic for a, b, n in zip(maps, others, (12, 7, 5), strict=True)]
    for row, n in enumerate((12, 7, 5)):
        maps[row, n:] = others[row, n:] = -torch.inf
    torch.testing.assert_close(spearman(maps, others), torch.tensor(expected).float())


@pytest.mark.parametrize("flat", [0.0, 1.0])
def test_a_flat_map_or_one_of_nan_has_no_rank_correlation(flat: float) -> None:
    maps = random_maps(4, SIZE)
    others = maps.clone()
    others[1], others[2] = flat, torch.nan
    for found in (spearman(maps, others), spearman(others, maps)):
        torch.testing.assert_close(found, torch.tensor([1, torch.nan, torch.nan, 1]), equal_nan=True)
    assert ssim(maps, others).isnan().tolist() == [False, False, True, False]


def test_structural_similarity_is_that_of_scikit_image_with_mirrored_borders() -> None:
    generator = torch.Generator().manual_seed(0)
    maps, others = torch.rand(4, 30, 23, generator=generator), torch.rand(4, 30, 23, generator=generator)
    others[1], maps[2], others[2], others[3] = maps[1], 0.0, 1.0, 1 - maps[3]
    expected = [
        structural_similarity(
            a.double().numpy(),
            b.double().numpy(),
            data_range=1,
            gaussian_weights=True,
            use_sample_covariance=False,
            full=True,
        )[1].mean()
        for a, b in zip(maps, others, strict=True)
    ]
    found = ssim(maps, others)
    torch.testing.assert_close(found, torch.tensor(expected).float(), atol=1e-5, rtol=0)
    assert float(found[1]) == 1
    assert float(found[3]) < -0.9
    assert ssim(torch.zeros(1, 5, 5), torch.zeros(1, 5, 5)).item() == 1  # smaller than the window
