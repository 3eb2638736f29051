"""Runs side by side: paired on common images, refused where there is nothing to pair."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import app
from runs import explained, model, prepared, tiny_job
from storage.run import Run
from tasks.results.comparisons import compare
from tasks.results.summary import summarise
from tasks.scores import scores


def done(folder: Path, **changes: Any) -> Run:
    run = explained(prepared(tiny_job(folder, **changes)))
    for shard in range(run.shards):
        for name in run.explainers:
            scores.fn(str(run.root), shard, name)
    summarise(run)
    return run


def job(**changes: Any) -> dict[str, Any]:
    return {
        "explainers": [{"name": "gradcam"}],
        "controls": False,
        "metrics": [{"name": "insertion", "steps": 4}, {"name": "sparseness"}],
        "dataset": {"kind": "digits", "limit": 8},
    } | changes


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """Two models; the second run has half of the images, a control and a metric more, another sparseness."""
    folder = tmp_path_factory.mktemp("runs")
    gap = done(folder / "gap", **job(name="gap"))
    more = {
        "name": "mlp",
        "model": model("mlp"),
        "explainers": [{"name": "gradcam"}, {"name": "random"}],
        "metrics": [{"name": "insertion", "steps": 4}, {"name": "sparseness"}, {"name": "pointing_game"}],
        "dataset": {"kind": "digits", "limit": 5},
    }
    return gap, done(folder / "mlp", **job(**more))


def test_explainers_of_two_models_are_paired_image_by_image(pair: tuple[Run, Run]) -> None:
    found = compare(pair)
    assert found.images == 5
    values: dict[str, list[float]] = {}
    for run, name in zip(pair, ("gap", "mlp"), strict=True):
        for path in sorted((run.root / "scores").glob("*/*.parquet")):
            for row in pq.ParquetFile(path).read().to_pylist():
                if row["metric"] == "insertion" and row["sample_id"] < "test/000005":
                    explainer = path.parent.name.removeprefix("explainer=")
                    values.setdefault(f"{name}/{explainer}", []).append(row["value"])
    rows = [row for row in found.summary.to_pylist() if row["metric"] == "insertion"]
    assert {row["explainer"] for row in rows} == {"gap/gradcam", "mlp/gradcam", "mlp/random"} == set(values)
    for row in rows:
        assert row["mean"] == pytest.approx(sum(values[row["explainer"]]) / 5)
    for row in found.comparisons.to_pylist():
        if row["metric"] == "insertion":
            gaps = [a - b for a, b in zip(values[row["explainer"]], values[row["against"]], strict=True)]
            assert row["difference"] == pytest.approx(math.fsum(gaps) / 5)
            assert row["n"] == 5


def test_an_explainer_is_compared_with_itself_in_the_run_before_and_with_its_own_controls(
    pair: tuple[Run, Run],
) -> None:
    rows = compare(pair).comparisons.to_pylist()
    pairs = {frozenset((r["explainer"], r["against"])) for r in rows if r["metric"] == "insertion"}
    assert frozenset(("gap/gradcam", "mlp/gradcam")) in pairs
    assert frozenset(("mlp/gradcam", "mlp/random")) in pairs


def test_metrics_that_are_not_the_same_are_left_out_and_named(pair: tuple[Run, Run], tmp_path: Path) -> None:
    assert compare(pair).left_out["pointing_game"] == "gap does not have it"
    finer = done(
        tmp_path / "finer", **job(name="finer", metrics=[{"name": "insertion"}, {"name": "sparseness"}])
    )
    found = compare([pair[0], finer])
    assert found.left_out == {"insertion": "its settings in finer and gap differ"}
    assert {row["metric"] for row in found.summary.to_pylist()} == {"sparseness"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dataset": {"kind": "digits", "limit": 8, "split": "train"}}, "have no image in common"),
        ({"dataset": {"kind": "digits", "limit": 8, "seed": 7}}, "test/00000. is not the same image in"),
        ({"metrics": [{"name": "insertion", "steps": 5}]}, "share no metric: .*its settings in"),
    ],
)
def test_runs_with_nothing_to_pair_are_refused_in_one_line(
    pair: tuple[Run, Run], changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    other = done(tmp_path / "other", **job(name="other", **changes))
    with pytest.raises(ValueError, match=told) as refusal:
        compare([pair[0], other])
    assert "\n" not in str(refusal.value)


def test_incomplete_runs_and_a_run_named_twice_are_refused(pair: tuple[Run, Run], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not complete; run its job again"):
        compare([pair[0], prepared(tiny_job(tmp_path / "begun", **job()))])
    with pytest.raises(ValueError, match="is named twice"):
        compare([pair[0], pair[0]])


def test_the_command_prints_and_writes_the_tables(pair: tuple[Run, Run], tmp_path: Path) -> None:
    folders = [str(run.root) for run in pair]
    done = CliRunner().invoke(app, ["compare", *folders, "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    for shown in (
        "insertion, higher is better",
        "gap/gradcam",
        "on the 5 images",
        "left out: pointing_game",
    ):
        assert shown in done.output
    assert pq.read_table(tmp_path / "out" / "summary.parquet").num_rows == 6
    assert pq.read_table(tmp_path / "out" / "comparisons.parquet").num_rows > 0
