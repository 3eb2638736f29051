"""The ranking table of a run: the mean rank of each explainer over all metrics, and its costs."""

from __future__ import annotations

import math
from collections import Counter
from statistics import mean
from typing import Any

import pyarrow as pa

BESIDE_FLOAT32 = {  # columns of costs.parquet that are filled if a run computes in lower precision
    "rank_correlation": "rank corr. to float32",
    "worst_rank_correlation": "worst rank corr.",
    "difference": "difference to float32",
    "worst_difference": "worst difference",
}


def ranking_table(summary: pa.Table, costs: pa.Table) -> list[dict[str, Any]]:
    """One row per explainer, best mean rank first: its mean rank over the ranked metrics, and its costs.

    Ranks are among the explainers of the run. Reference columns have no ranks. "won" counts the metrics on
    which the explainer is the best. If the maps were compared with those in float32, columns with their mean
    and worst rank correlation and difference follow.

    Parameters
    ----------
    summary, costs
        The tables ``summary.parquet`` and ``costs.parquet``.
    """
    ranked = [row for row in summary.to_pylist() if not math.isnan(row["rank"])]
    ranks: dict[str, list[float]] = {}
    for row in ranked:
        ranks.setdefault(row["explainer"], []).append(row["rank"])
    won = Counter(row["explainer"] for row in ranked if row["best"])
    spent = {row["explainer"]: row for row in costs.to_pylist()}
    size = costs["images"][0].as_py()
    compared = [key for key in BESIDE_FLOAT32 if any(row.get(key) is not None for row in spent.values())]
    return [
        {
            "explainer": name,
            "mean rank (metrics)": f"{mean(ranks[name]):.2f} ({len(ranks[name])})" if name in ranks else "-",
            "won": str(won[name]),
            "ms per map": _cost(spent[name]["milliseconds"]),
            "forward passes": _cost(spent[name]["forward_passes"]),
            f"MiB for {size} images": _cost(spent[name]["peak_mib"]),
            **{BESIDE_FLOAT32[key]: _cost(spent[name][key], 4) for key in compared},
        }
        # An explainer without any rank comes last.
        for name in sorted(spent, key=lambda name: mean(ranks.get(name, [math.inf])))
    ]


def _cost(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
