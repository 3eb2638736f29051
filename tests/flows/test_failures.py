"""Steps that fail: tried again in half batches, marked, left alone, tolerated, done again when asked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.explain import IncompleteError, explain
from flows.job import Job
from flows.resume import remaining, without
from runs import assert_same_results
from storage.lock import LockedError, held
from storage.records import Step, failures
from storage.run import Run

Raw = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.service

# Fails on batches of more than a file says, and always on the image that file names.
FRAGILE = """
import json
from pathlib import Path

from explainers.base import Description, Explanation, Parameters, statuses_of

RULES = Path(__file__).with_name("rules.json")


class Fragile:
    name = "fragile"
    title = "breaks"
    needs = frozenset()
    Parameters = Parameters

    def __init__(self, classifier, parameters):
        pass

    def describe(self):
        return Description(grid=(2, 2))

    def explain(self, batch):
        rules = json.loads(RULES.read_text())
        if len(batch) > rules["most"] or rules["broken"] in batch.seeds.tolist():
            raise RuntimeError(f"too much: {len(batch)} images")
        maps = batch.inputs[:, 0, :2, :2].float()
        return Explanation(maps, statuses_of(maps))
"""


@pytest.fixture
def fragile(
    digits_job: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """A job of two shards; keyword arguments are the rules by which its explainer fails."""
    (tmp_path / "fragile_plugin.py").write_text(FRAGILE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(tmp_path))

    def job(most: int = 100, broken: int = -1, **changes: Any) -> dict[str, Any]:
        (tmp_path / "rules.json").write_text(json.dumps({"most": most, "broken": broken}))
        chosen: dict[str, Any] = {
            "explainers": [{"name": "fragile_plugin:Fragile"}, {"name": "gradcam"}],
            "dataset": {"kind": "digits", "limit": 32},
            "metrics": [{"name": "insertion", "steps": 4}],
            "batch": {"shard": 16, "images": 4},
            "controls": False,
        }
        return digits_job(**chosen | changes)

    return job


def last_seed(root: Path) -> int:
    """Of the last image, which lies in the second shard."""
    from tasks.shard_rows import targets_and_seeds

    return int(targets_and_seeds(Run.open(root), 1, "saliency")[1][-1])


def test_a_step_that_fails_is_done_in_half_batches(server: str, fragile: Raw) -> None:
    raw = fragile(most=2)
    done = explain(Job.model_validate(raw))
    assert done["failed"] == 0
    assert not failures(Path(raw["store"]))
    whole = fragile(store=f"{raw['store']}-whole")
    explain(Job.model_validate(whole))
    assert_same_results(Path(raw["store"]), Path(whole["store"]))


def test_what_fails_twice_is_marked_left_alone_and_done_again_when_asked(server: str, fragile: Raw) -> None:
    raw = fragile(most=0)
    root, job = Path(raw["store"]), Job.model_validate(raw)
    with pytest.raises(
        IncompleteError, match=r"2 steps failed: .*Fragile shard 1/2: RuntimeError: too much: 2"
    ):
        explain(job)
    told = failures(root)
    assert set(told) == {Step("saliency", shard, "fragile_plugin:Fragile") for shard in (0, 1)}
    for failure in told.values():
        assert failure.attempts == 2
        assert any("in explain" in line for line in failure.traceback)
    shown = CliRunner().invoke(app, ["status", str(root)])
    assert shown.exit_code == 1
    assert (
        "failed: saliency fragile_plugin:Fragile shard 2/2: RuntimeError: too much: 2 images" in shown.output
    )
    assert "--retry-failed" in shown.output

    fragile()
    with pytest.raises(IncompleteError, match="2 steps failed"):
        explain(job)
    assert set(failures(root)) == set(told), "it was left alone"
    done = explain(job, retry_failed=True)
    assert (done["failed"], done["steps_done"]) == (0, 4)
    assert not failures(root)
    assert not remaining(Run.open(root))


def test_failures_within_the_tolerance_are_told_and_do_not_fail_the_job(server: str, fragile: Raw) -> None:
    raw = fragile()
    explain(Job.model_validate(raw))
    broken = fragile(broken=last_seed(Path(raw["store"])), store=f"{raw['store']}-broken", tolerance=0.25)
    root = Path(broken["store"])
    done = explain(Job.model_validate(broken))
    assert done["failed"] == 2  # of eight: the maps of a shard, and the scores that wait for them
    rows = {row["explainer"]: row for row in pq.read_table(root / "summary.parquet").to_pylist()}
    assert (rows["gradcam"]["n"], rows["gradcam"]["excluded"]) == (32, 0)
    failed = rows["fragile_plugin:Fragile"]
    assert (failed["n"], failed["excluded"], failed["excluded_by"]["failed"]) == (16, 16, 16)
    pairs = pq.read_table(root / "comparisons.parquet").to_pylist()
    assert {row["n"] for row in pairs} == {16}
    shown = CliRunner().invoke(app, ["status", str(root)])
    assert shown.exit_code == 0
    assert "complete, except for 2 steps" in shown.output

    stricter = broken | {"tolerance": 0.2}
    with pytest.raises(IncompleteError, match=r"1 steps failed.*1 steps wait for them"):
        explain(Job.model_validate(stricter))


def test_a_store_in_use_is_refused(server: str, fragile: Raw) -> None:
    raw = fragile()
    with held(Path(raw["store"]), "another"), pytest.raises(LockedError, match="in use: job another"):
        explain(Job.model_validate(raw))
    assert not Path(raw["store"]).exists()


def test_without_takes_away_what_failed_and_all_that_waits_for_it() -> None:
    a, b, c, d = (Step("saliency", 0, name) for name in "abcd")
    pending = {a: set(), b: {a}, c: {b}, d: set()}
    assert without(pending, {a}) == {d: set()}
    assert without(pending, {b}) == {a: set(), d: set()}
    assert without(pending, set()) == pending
