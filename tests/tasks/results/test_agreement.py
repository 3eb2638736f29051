"""How far maps are from those of float32: numbers worked out by hand, and those of a run."""

from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from explainers.models.compute import tf32
from flows.job import JobError
from runs import explained, maps_of, prepared, tiny_job
from storage.records import Agreement, Step, read_record
from storage.run import Run
from tasks.perform import Outcome, perform
from tasks.results.agreement import agreement_of
from tasks.results.costs import write_costs
from tasks.scores import scores

SITES = torch.ones(1, 2, 2, dtype=torch.bool)


def test_order_and_size_are_those_worked_out_by_hand() -> None:
    reference = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [3.0, 4.0]]])
    maps = torch.tensor([[[2.0, 1.0], [3.0, 4.0]], [[0.0, 0.0], [3.0, 4.0]]])
    found = agreement_of(maps, reference, SITES.expand(2, -1, -1))
    first, off = 1 - 6 * 2 / (4 * 15), (2 / 30) ** 0.5
    assert astuple(found) == pytest.approx(((1 + first) / 2, first, off / 2, off))


def test_maps_without_an_order_have_no_correlation_and_none_lost_from_zero_a_difference() -> None:
    zero, one = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    nothing = Agreement(None, None, None, None)
    assert agreement_of(zero, zero, SITES) == Agreement(None, None, 0, 0)
    assert agreement_of(zero, one, SITES) == Agreement(None, None, 1, 1)
    assert agreement_of(one, zero, SITES) == nothing
    assert agreement_of(one * torch.nan, one, SITES) == nothing


def test_sites_that_cannot_be_hidden_do_not_count() -> None:
    reference, maps = torch.tensor([[1.0, 2.0, 3.0, 0.0]]), torch.tensor([[1.0, 2.0, 3.0, 9.0]])
    sites = torch.tensor([[True, True, True, False]])
    assert agreement_of(maps, reference, sites) == Agreement(1, 1, 0, 0)


def job(store: Path, **changes: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        "dataset": {"kind": "digits", "limit": 10},
        "explainers": [{"name": "gradcam"}, {"name": "occlusion", "window": 96}, {"name": "random"}],
        "controls": False,
        "metrics": [{"name": "pointing_game"}],
        "batch": {"shard": 6, "images": 4},
    }
    return tiny_job(store, **chosen | changes)


def agreement_in(run: Run, shard: int, explainer: str) -> Agreement | None:
    record = read_record(run.root, Step("saliency", shard, explainer))
    assert record is not None
    return record.facts.agreement


def test_a_run_in_lower_precision_is_compared_with_float32_on_its_first_batch(tmp_path: Path) -> None:
    plain = explained(prepared(job(tmp_path / "plain")))
    low = explained(prepared(job(tmp_path / "low", compute={"precision": "bfloat16"})))
    expected, found = maps_of(plain.root), maps_of(low.root)
    for name in ("gradcam", "occlusion", "random"):
        agreement = agreement_in(low, 0, name)
        assert agreement is not None
        assert agreement_in(low, 1, name) is None
        assert agreement_in(plain, 0, name) is None
        a, b = (torch.from_numpy(maps[f"{name}/maps"][: low.batch_images]) for maps in (found, expected))
        by_hand = agreement_of(a, b, torch.ones_like(a, dtype=torch.bool))
        assert astuple(agreement) == pytest.approx(astuple(by_hand), abs=1e-4), name
        assert agreement.worst_difference > 1e-4 or name == "random"
    for run in (plain, low):
        for shard in range(run.shards):
            for name in run.explainers:
                scores.fn(str(run.root), shard, name)
        write_costs(run)
    costs = {row["explainer"]: row for row in pq.read_table(low.costs).to_pylist()}
    keys = [field.name for field in fields(Agreement)]
    first = agreement_in(low, 0, "occlusion")
    assert first is not None
    assert {key: costs["occlusion"][key] for key in keys} == asdict(first)
    assert costs["random"]["worst_difference"] == 0
    assert all(row[key] is None for row in pq.read_table(plain.costs).to_pylist() for key in keys)


def test_a_run_is_not_continued_in_another_precision(tmp_path: Path) -> None:
    prepared(job(tmp_path))
    with pytest.raises(JobError, match=r"another run: compute\.precision was .float32. and is .bfloat16"):
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
