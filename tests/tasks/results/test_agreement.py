"""How far maps are from those of float32: numbers worked out by hand, and those of a run."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from explainers.models.compute import tf32
from flows.job import JobError
from runs import explained, maps_of, prepared, tiny_job
from storage.records import Step, read_record
from storage.run import Run
from tasks.perform import Outcome, perform
from tasks.results.agreement import DRIFT, drift
from tasks.results.costs import tell_costs
from tasks.scores import scores

SITES = torch.ones(1, 2, 2, dtype=torch.bool)


def test_order_and_size_are_those_worked_out_by_hand() -> None:
    reference = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [3.0, 4.0]]])
    maps = torch.tensor([[[2.0, 1.0], [3.0, 4.0]], [[0.0, 0.0], [3.0, 4.0]]])
    found = drift(maps, reference, SITES.expand(2, -1, -1))
    first, off = 1 - 6 * 2 / (4 * 15), (2 / 30) ** 0.5
    assert found == pytest.approx(dict(zip(DRIFT, [(1 + first) / 2, first, off / 2, off], strict=True)))


def test_maps_without_an_order_have_no_correlation_and_none_lost_from_zero_a_difference() -> None:
    zero, one = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    assert drift(zero, zero, SITES) == dict(zip(DRIFT, [None, None, 0, 0], strict=True))
    assert drift(zero, one, SITES) == dict(zip(DRIFT, [None, None, 1, 1], strict=True))
    assert drift(one, zero, SITES) == dict.fromkeys(DRIFT)
    assert drift(one * torch.nan, one, SITES) == dict.fromkeys(DRIFT)


def test_sites_that_cannot_be_hidden_do_not_count() -> None:
    reference, maps = torch.tensor([[1.0, 2.0, 3.0, 0.0]]), torch.tensor([[1.0, 2.0, 3.0, 9.0]])
    sites = torch.tensor([[True, True, True, False]])
    assert drift(maps, reference, sites) == dict(zip(DRIFT, [1, 1, 0, 0], strict=True))


def job(store: Path, **changes: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        "dataset": {"kind": "digits", "limit": 10},
        "explainers": [{"name": "gradcam"}, {"name": "occlusion", "window": 96}, {"name": "random"}],
        "controls": False,
        "metrics": [{"name": "pointing_game"}],
        "batch": {"shard": 6, "images": 4},
    }
    return tiny_job(store, **chosen | changes)


def test_a_run_in_lower_precision_is_compared_with_float32_on_its_first_batch(tmp_path: Path) -> None:
    plain = explained(prepared(job(tmp_path / "plain")))
    low = explained(prepared(job(tmp_path / "low", compute={"precision": "bfloat16"})))
    expected, found = maps_of(plain.root), maps_of(low.root)
    for name in ("gradcam", "occlusion", "random"):
        record, later = (read_record(low.root, Step("saliency", shard, name)) for shard in (0, 1))
        assert record is not None
        assert not set(DRIFT) & {*(later or {}), *(read_record(plain.root, Step("saliency", 0, name)) or {})}
        a, b = (torch.from_numpy(maps[f"{name}/maps"][: low.batch_images]) for maps in (found, expected))
        by_hand = drift(a, b, torch.ones_like(a, dtype=torch.bool))
        assert {key: record[key] for key in DRIFT} == pytest.approx(by_hand, abs=1e-4), name
        assert record["worst_difference"] > 1e-4 or name == "random"
    for run in (plain, low):
        for shard in range(run.shards):
            for name in run.explainers:
                scores.fn(str(run.root), shard, name)
        tell_costs(run)
    costs = {row["explainer"]: row for row in pq.read_table(low.costs).to_pylist()}
    first = read_record(low.root, Step("saliency", 0, "occlusion"))
    assert first is not None
    assert {key: costs["occlusion"][key] for key in DRIFT} == {key: first[key] for key in DRIFT}
    assert costs["random"]["worst_difference"] == 0
    assert all(row[key] is None for row in pq.read_table(plain.costs).to_pylist() for key in DRIFT)


def test_a_run_is_not_continued_in_another_precision(tmp_path: Path) -> None:
    prepared(job(tmp_path))
    with pytest.raises(JobError, match=r"holds another run: compute\.precision was absent and is .bfloat16"):
        prepared(job(tmp_path, compute={"precision": "bfloat16"}))


def test_a_step_leaves_no_product_of_float32_to_pytorchs_defaults(tmp_path: Path) -> None:
    seen: list[bool] = []

    def work(run: Run) -> Outcome:
        seen.extend([torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32])
        return Outcome(0, [], [])

    with tf32(True):  # of one of the two it is the default
        perform(str(prepared(job(tmp_path)).root), Step("inputs", 0), work, is_done=lambda _: True)
        assert torch.backends.cudnn.allow_tf32
    assert seen == [False, False]
