"""From one row an image to one row per explainer and metric: means, intervals, paired comparisons."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.stats import wilcoxon

from storage.files import replacing
from storage.run import Run
from storage.scores import read_scores

RESAMPLES = 2000
TAILS = (2.5, 97.5)


def summarise(run: Run) -> pa.Table:
    """Compute and write ``summary.parquet``.

    One row per explainer and metric: ``mean`` with its 95 % percentile bootstrap interval ``low``,
    ``high`` over images (2,000 resamples, the same ones everywhere), ``n`` images scored, ``excluded``
    images with an undefined value, ``degenerate`` maps among the scored (all zero or constant). For
    metrics that judge: whether it is the ``best``, and against the best explainer the mean paired
    ``difference`` with ``difference_low``, ``difference_high``, and the two-sided Wilcoxon signed-rank
    ``p_value`` (1 where no image differs), not corrected for the number of comparisons.
    """
    scores = read_scores(run.root)
    explainers = list(run.explainers)
    columns = run.columns
    metrics = list(columns)
    values, degenerate = _matrices(scores, metrics, explainers)
    known = ~np.isnan(values)
    n = known.sum(2)
    mean = np.full(n.shape, np.nan)
    np.divide(np.where(known, values, 0).sum(2), n, out=mean, where=n > 0)
    best = [_best(mean[m], columns[metric]["better"]) for m, metric in enumerate(metrics)]
    difference = np.full_like(values, np.nan)
    for m, winner in enumerate(best):
        if winner is not None:
            difference[m] = values[m] - values[m, winner]
    low, high = bootstrap(values, run.seed)
    difference_low, difference_high = bootstrap(difference, run.seed)
    rows = [
        {
            "explainer": explainer,
            "metric": metric,
            "better": columns[metric]["better"],
            "mean": mean[m, e],
            "low": low[m, e],
            "high": high[m, e],
            "n": int(n[m, e]),
            "excluded": int((~known[m, e]).sum()),
            "degenerate": int(degenerate[m, e]),
            "best": e == best[m],
            "difference": _mean(difference[m, e]),
            "difference_low": difference_low[m, e],
            "difference_high": difference_high[m, e],
            "p_value": _p_value(difference[m, e]),
        }
        for m, metric in enumerate(metrics)
        for e, explainer in enumerate(explainers)
    ]
    table = pa.Table.from_pylist(rows)
    with replacing(run.summary) as partial:
        pq.write_table(table, partial)
    return table


def _matrices(scores: pa.Table, metrics: list[str], explainers: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(M, E, n) values, NaN where undefined, images in one order everywhere; (M, E) degenerate maps."""
    scores = scores.sort_by([("sample_id", "ascending"), ("target", "ascending")])
    values, degenerate = [], []
    for metric in metrics:
        of_metric = scores.filter(pc.equal(scores["metric"], metric))
        for explainer in explainers:
            own = of_metric.filter(pc.equal(of_metric["explainer"], explainer))
            value = own["value"].to_numpy().astype(float)
            flat = pc.is_in(own["status"], pa.array(["all_zero", "constant"])).to_numpy()
            values.append(value)
            degenerate.append((flat.astype(bool) & ~np.isnan(value)).sum())
    shape = len(metrics), len(explainers)
    return np.stack(values).reshape(*shape, -1), np.array(degenerate).reshape(shape)


def _best(mean: np.ndarray, better: str | None) -> int | None:
    if better is None or np.isnan(mean).all():
        return None
    return int(np.nanargmax(mean) if better == "higher" else np.nanargmin(mean))


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _p_value(difference: np.ndarray) -> float:
    known = difference[~np.isnan(difference)]
    if not len(known):
        return float("nan")
    return float(wilcoxon(known).pvalue) if known.any() else 1.0


def bootstrap(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval of the mean over the last axis, NaN left out; NaN where nothing is known.

    Every row sees the same resampled images. A resample is how often each image was drawn, so all rows
    share one matrix product instead of gathering their values 2,000 times.
    """
    known = ~np.isnan(values)
    filled = np.where(known, values, 0)
    n = values.shape[-1]
    means = np.full((*values.shape[:-1], RESAMPLES), np.nan)
    generator = np.random.default_rng(seed)
    block = max(1, min(RESAMPLES, 10_000_000 // max(n, 1)))  # bounds the memory of the draws
    for start in range(0, RESAMPLES if n else 0, block):
        size = min(block, RESAMPLES - start)
        draws = np.stack([np.bincount(generator.integers(n, size=n), minlength=n) for _ in range(size)], 1)
        drawn = known.astype(float) @ draws
        np.divide(filled @ draws, drawn, out=means[..., start : start + size], where=drawn > 0)
    empty = ~known.any(-1)
    means[empty] = 0  # so that the percentiles below have something to read
    low, high = np.nanpercentile(means, TAILS, axis=-1)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def mean_curves(run: Run) -> dict[tuple[str, str], np.ndarray]:
    """Mean curve over images of every (explainer, metric) that has curves."""
    scores = read_scores(run.root)
    scores = scores.filter(pc.is_valid(scores["curve"]))
    curves = {}
    for explainer in run.explainers:
        own = scores.filter(pc.equal(scores["explainer"], explainer))
        for metric in pc.unique(own["metric"]).to_pylist():
            rows = own.filter(pc.equal(own["metric"], metric))["curve"]
            flat = rows.combine_chunks().flatten().to_numpy(zero_copy_only=False)
            curves[explainer, metric] = flat.reshape(len(rows), -1).astype(float).mean(0)
    return curves
