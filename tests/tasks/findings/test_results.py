"""The findings of a whole run: what is stored of a network whose fault is known in closed form."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray

from finding_toys import COUNT, OBJECT, PATCH, PATCH_NATS, job, searched
from flows.findings import (
    check_findings,
    forget_outdated,
    job_with_findings,
    missing_findings,
    pending_findings,
)
from flows.job import Job, JobError
from runs import completed, prepared
from storage.files import sha256_of_file
from storage.query import query
from storage.records import FINDINGS, SUSPICIONS, Step, drop_record, read_record
from storage.run import Run
from storage.verify import repair, verify
from tasks.findings.decision import Effect, Outcome, State
from tasks.findings.interventions import Removal
from tasks.findings.of_run import objects_of, seen_of, source_of, used_of
from tasks.findings.results import write_findings
from tasks.findings.stored import packed, unpacked
from tasks.findings.suspicion import Suspicion
from tasks.findings.told import lines_of
from tasks.page.findings import findings_of
from tasks.run_parts import classifier_of

NAME = "input_x_gradient"


def test_the_fault_is_the_one_finding(found: Run) -> None:
    rows = query(found.root, "SELECT * FROM findings").to_pylist()
    first = rows[0]
    assert [row["status"] for row in rows] == ["finding", "not confirmed", "not confirmed"]
    assert (first["explainer"], first["class"], first["view"]) == (NAME, 0, "places")
    # 24 of the 40 images of class 0 have the patch; 24 of the 30 exemplars lose it by removal.
    assert (first["images"], first["share"]) == (24, 0.6)
    assert first["removal"] == pytest.approx(PATCH_NATS * 24 / 30, rel=0.15)
    assert abs(first["removal_control"]) < 0.1
    assert first["transplant"] == pytest.approx(PATCH_NATS * 24 / 30, rel=0.2)
    assert first["flips"] > 0.6
    assert first["flips_control"] < 0.05
    assert first["p_holm"] < 1e-6
    assert first["told"].startswith(
        "Class 0: the maps of 24 of 40 images taken for it point to the lower left corner; in those"
    )
    assert "costs 6.9 nats, elsewhere 0.0" in first["told"]
    ids = [row["sample_id"] for row in query(found.root, "SELECT sample_id FROM samples").to_pylist()]
    patched = {ids[index] for index in range(0, COUNT, 3) if index % 5 < 3}
    assert set(first["exemplars"][:24]) == patched


def test_arrays_lie_at_the_rows_of_the_table(found: Run) -> None:
    rows = query(found.root, "SELECT class, array_row FROM findings ORDER BY class").to_pylist()
    group = found.root / "findings.zarr" / NAME
    arrays = xarray.open_zarr(found.root / "findings.zarr", group=NAME, consolidated=False)
    region = arrays["regions"].values[rows[0]["array_row"]].astype(bool)
    assert region[*PATCH].all()
    assert not region[*OBJECT].any()
    refined = arrays["refined"].values[rows[0]["array_row"]].astype(bool)
    assert refined[*PATCH].any()
    for row in rows[1:]:
        assert arrays["regions"].values[row["array_row"]][*OBJECT].mean() > 0.8
    clusters = query(found.root, "SELECT * FROM clusters").to_pylist()
    maps = arrays["cluster_maps"].values
    assert len(maps) == len(clusters)
    np.testing.assert_allclose(maps.sum((1, 2)), 1, atol=1e-5)
    assert sum(row["images"] for row in clusters if row["class"] == 0) == 40
    assert {row["accuracy"] for row in clusters} == {1.0}
    # Those with the patch and those without are two strategies, of which one lies on the object.
    shares = [row["on_object"] for row in clusters if row["class"] == 0]
    assert min(shares) < 0.5
    assert max(shares) > 0.9
    assert (group / "zarr.json").exists()


def test_every_file_is_signed_and_a_damaged_one_is_made_again(found: Run, tmp_path: Path) -> None:
    assert verify(found.root) == []
    copy = Run.open(shutil.copytree(found.root, tmp_path / "run"))
    table, part = (
        copy.root / "findings.parquet",
        copy.root / f"suspicions/explainer={NAME}/shard-00001.parquet",
    )
    before = sha256_of_file(table), sha256_of_file(part)
    for path in (table, part):
        path.write_bytes(b"damaged")
    problems = verify(copy.root)
    assert {(p.path.as_posix(), p.step) for p in problems} == {
        ("findings.parquet", FINDINGS),
        (f"suspicions/explainer={NAME}/shard-00001.parquet", Step(SUSPICIONS, 1, NAME)),
    }
    repair(copy.root, problems)
    assert list(pending_findings(copy)) == [Step(SUSPICIONS, 1, NAME)]
    assert missing_findings(copy) == ["findings: 1 parts of the classes are missing; run the job again"]
    searched(copy)
    assert (sha256_of_file(table), sha256_of_file(part)) == before
    assert verify(copy.root) == []


def test_new_maps_and_other_passes_are_looked_at_again(found: Run, tmp_path: Path) -> None:
    copy = Run.open(shutil.copytree(found.root, tmp_path / "run"))
    # Predictions stay where activations that were deleted are made again.
    forget_outdated(copy, [Step("scores", 0, NAME), Step("activations", 0)])
    assert pending_findings(copy) == {}
    same = prepared(job(copy.root))
    assert pending_findings(same) == {}
    other = prepared(job(copy.root, findings=[{"explainer": NAME, "passes": 0}]))
    assert len(pending_findings(other)) == 3
    searched(other)
    reasons = query(copy.root, "SELECT DISTINCT status FROM findings WHERE class = 0").to_pylist()
    assert reasons == [{"status": "not tested"}]
    assert lines_of(other)[0] == "findings: none is confirmed"
    forget_outdated(other, [Step("saliency", 0, NAME)])
    assert len(pending_findings(other)) == 3
    assert findings_of(other) is None  # what the tables say is of other maps
    write_findings(other)  # it is not complete, so the tables of before do not stay
    assert read_record(other.root, FINDINGS) is None
    assert not (other.root / "findings.parquet").exists()
    searched(other)
    drop_record(other.root, Step("activations", 0))
    forget_outdated(other, [Step("activations", 0)])
    assert len(pending_findings(other)) == 3


def test_without_boxes_there_is_no_finding(tmp_path: Path) -> None:
    dataset = job(tmp_path)["dataset"] | {"arguments": {"boxes": False}}
    run = searched(completed(job(tmp_path / "run", dataset=dataset)))
    first = query(run.root, "SELECT * FROM findings WHERE class = 0").to_pylist()[0]
    # No other class looks at the corner, so that nothing says what its content does by nature.
    assert first["status"] == "undecidable"
    assert "fewer than 5" in first["reason"]
    assert query(run.root, "SELECT DISTINCT on_object FROM clusters").to_pylist() == [{"on_object": None}]


def test_only_maps_of_the_predicted_class_count(found: Run) -> None:
    source = source_of(found, NAME)
    used = used_of(source)
    assert list(used.images) == list(range(COUNT))
    assert list(used.classes) == [index % 3 for index in range(COUNT)]
    assert used.objects
    pixels = objects_of(found, used, np.array([5, 0]))
    wanted = torch.zeros(32, 32, dtype=torch.bool)
    wanted[*OBJECT] = True
    assert torch.equal(pixels, wanted.expand(2, 32, 32))
    seen = seen_of(source, classifier_of(found))
    assert seen.maps.shape == (COUNT, 16, 16)
    assert seen.images(np.array([3])).shape == (1, 3, 32, 32)


def test_a_finished_run_becomes_a_job_with_findings(found: Run) -> None:
    made = job_with_findings(found.root, [NAME], None)
    assert [(each.explainer, each.passes) for each in made.findings] == [(NAME, 4000)]
    assert made.store == found.root
    with pytest.raises(
        JobError, match="--explainer: gradcam is no explainer of the run; choose from input_x"
    ):
        job_with_findings(found.root, ["gradcam"], None)


def test_a_job_without_findings_stays_as_it_was(tmp_path: Path) -> None:
    run = prepared(job(tmp_path / "run", findings=[]))
    assert "findings" not in run.job
    assert '"findings"' not in (run.root / "run.json").read_text()
    assert write_findings(run) == []


def test_outcomes_are_stored_field_by_field() -> None:
    suspicion = Suspicion("off_object_own", 3, np.arange(4), torch.rand(4, 8, 8) > 0.5, 10, 3.5)
    outcome = Outcome(
        suspicion,
        State.NOT_CONFIRMED,
        "why",
        drop=Effect(1.0, 2.0, 3.0, 4.0, float("nan"), 6.0),
        removal=Removal(np.arange(3), np.ones(3), np.zeros(3), True, 0.5),
        refined=torch.eye(8) > 0,
        merged=(suspicion,),
        passes=7,
    )
    again = unpacked(packed(outcome))
    assert again.state is State.NOT_CONFIRMED
    assert (again.reason, again.passes, again.rise, again.transplant) == ("why", 7, None, None)
    assert repr(again.drop) == repr(outcome.drop)
    assert again.removal is not None
    assert again.removal.paired is True
    assert again.removal.rows.dtype == np.int64
    assert torch.equal(again.suspicion.region, suspicion.region)
    assert again.refined is not None
    assert torch.equal(again.refined, torch.eye(8) > 0)
    assert [each.view for each in again.merged] == ["off_object_own"]
    assert packed(again) == packed(outcome)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"target": 1}, "findings: target = 1 explains one class"),
        ({"findings": [{"explainer": "gradcam"}]}, "findings.explainer: gradcam is no explainer of the job"),
    ],
)
def test_what_cannot_be_found_is_refused(tmp_path: Path, changes: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        prepared(job(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_texts_are_refused(tmp_path: Path) -> None:
    text = SimpleNamespace(modality="text")
    with pytest.raises(JobError, match="findings: are looked for in images, and the dataset has texts"):
        check_findings(Job.model_validate(job(tmp_path / "run")), text, {})
