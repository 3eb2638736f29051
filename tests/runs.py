"""Tiny jobs, and whole run folders read, to compare one with another."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import zarr

from storage.run import Run
from storage.scores import read_scores

ROOT = Path(__file__).parents[1]
KEYS = ("sample_id", "target", "explainer", "metric")


def tiny_job(store: Path, **changes: Any) -> dict[str, Any]:
    """A small raw job on the demo's digits and their first network; keyword arguments replace its keys."""
    job: dict[str, Any] = {
        "name": "tiny",
        "store": str(store),
        "dataset": {"kind": "digits", "limit": 40},
        "model": {
            "source": f"{ROOT}/examples/digits.py:gap",
            "weights": f"{ROOT}/examples/weights/digits-gap.safetensors",
            "layer": "features",
        },
        "explainers": [{"name": "ddcam"}, {"name": "gradcam"}],
        "metrics": [{"name": "insertion", "steps": 4}, {"name": "pointing_game"}],
        "cluster": {"kind": "local", "workers": 2},
        "batch": {"shard": 16},
    }
    return job | changes


def maps_of(root: Path) -> dict[str, np.ndarray]:
    """Every array of ``saliency.zarr`` by its path."""
    group = zarr.open_group(str(root / "saliency.zarr"), mode="r")
    found: dict[str, np.ndarray] = {}
    for name in Run.open(root).manifest.explainers:
        for path, member in group[name].members(max_depth=None):
            if isinstance(member, zarr.Array):
                found[f"{name}/{path}"] = member[:]
    return found


def scores_of(root: Path) -> dict[tuple[Any, ...], tuple[float | None, str]]:
    """Value and status by (sample, target, explainer, metric); a doubled row is an error."""
    rows = read_scores(root).to_pylist()
    found = {tuple(row[key] for key in KEYS): (row["value"], row["status"]) for row in rows}
    assert len(found) == len(rows), "a score is there twice"
    return found


def assert_same_results(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    """Same maps, details, scores and samples, whatever the shards, workers and interruptions."""
    maps, others = maps_of(one), maps_of(other)
    assert maps.keys() == others.keys()
    for path, values in maps.items():
        np.testing.assert_allclose(values, others[path], rtol=tolerance, atol=tolerance, err_msg=path)
    scores, other_scores = scores_of(one), scores_of(other)
    assert scores.keys() == other_scores.keys()
    for key, (value, status) in scores.items():
        assert status == other_scores[key][1], key
        if value is None:
            assert other_scores[key][0] is None, key
        else:
            np.testing.assert_allclose(value, other_scores[key][0], rtol=1e-3, atol=1e-4, err_msg=str(key))
    samples, other_samples = (pq.read_table(root / "samples.parquet").to_pylist() for root in (one, other))
    assert [s["sample_id"] for s in samples] == [s["sample_id"] for s in other_samples]
    for key in ("label", "prediction", "target", "boxes", "status", "error"):
        assert [s[key] for s in samples] == [s[key] for s in other_samples], key
