"""The agreement of maps, against SciPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F

from made import made_maps, made_run
from storage.maps import write_shard
from storage.records import Step
from tasks.results import map_agreement as agreement
from tasks.results.map_agreement import map_agreement


def test_it_is_spearmans_correlation_of_the_positive_parts_on_a_common_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "SIDE", 4)
    monkeypatch.setattr(agreement, "_CELLS", 50)  # few maps at a time
    grids = {"coarse": (2, 2), "equal": (4, 4), "fine": (8, 8), "flat": (1, 1)}
    run = made_run(tmp_path / "run", dict.fromkeys(grids), grids=grids, targets=2)
    maps = made_maps(run)
    found = map_agreement(run)
    assert (found.maps, found.there, found.grid) == (20, 20, (4, 4))
    common = {
        "coarse": F.interpolate(maps["coarse"].relu()[:, None], (4, 4), mode="bilinear")[:, 0],
        "equal": maps["equal"].relu(),
    }
    each = [
        spearmanr(a.flatten(), b.flatten()).statistic
        for a, b in zip(common["coarse"], common["equal"], strict=True)
    ]
    assert found.correlation[0, 1] == pytest.approx(np.nanmean(each), abs=1e-6)
    np.testing.assert_allclose(np.diag(found.correlation)[:3], 1)
    np.testing.assert_allclose(found.correlation, found.correlation.T)
    assert np.isnan(found.correlation[3]).all()


def test_a_finer_map_agrees_with_its_own_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "SIDE", 4)
    run = made_run(
        tmp_path / "run", dict.fromkeys(["fine", "means"]), grids={"fine": (8, 8), "means": (4, 4)}
    )
    fine = made_maps(run)["fine"].relu()
    for shard in range(run.shards):
        start, stop = run.rows_of(shard)
        means = F.interpolate(fine[start:stop, None], (4, 4), mode="bilinear", antialias=True)[:, 0]
        write_shard(run.saliency("means") / "maps", start, means.numpy())
    assert map_agreement(run).correlation[0, 1] == pytest.approx(1)


def test_maps_are_sampled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "MOST_MAPS", 4)
    run = made_run(tmp_path / "run", dict.fromkeys(["a", "b"]), images=10)
    maps = made_maps(run)
    found = map_agreement(run)
    rows = [0, 3, 6, 9]
    each = [spearmanr(*(maps[name][row].relu().flatten() for name in "ab")).statistic for row in rows]
    assert (found.maps, found.there) == (4, 10)
    # On the common grid of 8x8 the maps of 2x2 are interpolated, which keeps a perfect order only.
    assert found.correlation[0, 0] == pytest.approx(1)
    assert abs(found.correlation[0, 1] - np.nanmean(each)) < 0.4


def test_steps_that_failed_and_maps_that_are_not_finite_do_not_count(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", dict.fromkeys(["a", "b"]), images=8)
    maps = made_maps(run)
    whole = map_agreement(run).correlation[0, 1]
    (run.root / Step("saliency", 1, "b").path).unlink()
    broken = maps["a"][:4].clone()
    broken[2, 0, 1] = torch.inf
    write_shard(run.saliency("a") / "maps", 0, broken.numpy())
    left = map_agreement(run).correlation[0, 1]
    assert np.isfinite(left)
    assert left != pytest.approx(whole, abs=1e-4)


def test_the_padding_of_a_text_does_not_count(tmp_path: Path) -> None:
    run = made_run(
        tmp_path / "run",
        dict.fromkeys(["a", "b"]),
        images=4,
        modality="text",
        input_dtype="int32",
        input_shape=(2, 8),
        grids={"a": (8,), "b": (8,)},
    )
    maps = made_maps(run)
    words = np.full((4, 2, 8), -1, np.int32)
    words[:, :, 1:6] = 3
    write_shard(run.inputs, 0, words)
    each = [
        spearmanr(a[1:6].relu(), b[1:6].relu()).statistic for a, b in zip(maps["a"], maps["b"], strict=True)
    ]
    found = map_agreement(run)
    assert found.grid == (8,)
    assert found.correlation[0, 1] == pytest.approx(np.nanmean(each), abs=1e-6)
