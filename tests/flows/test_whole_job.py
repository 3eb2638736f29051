"""The flow end to end on a real Dask cluster and a real Prefect server."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import distributed
import numpy as np
import pyarrow.parquet as pq
import pytest

from flows.cluster import ClusterError
from flows.explain import explain
from flows.job import Job, JobError
from flows.prepare import prepare
from flows.resume import remaining
from flows.server import free_port
from runs import assert_same_results, maps_of, scores_of, tiny_job
from storage.datasets.dataset import Dataset
from storage.datasets.opening import open_dataset
from storage.datasets.reading import Bands
from storage.datasets.spec import DatasetSpec
from storage.run import Run
from storage.verify import verify

Raw = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.service


def run(raw: dict[str, Any]) -> dict[str, Any]:
    return explain(Job.model_validate(raw))


@pytest.fixture(scope="module")
def finished(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete tiny run; tests that change a run copy it."""
    root = tmp_path_factory.mktemp("whole") / "run"
    raw = tiny_job(root)
    done = run(raw)
    assert done["steps_done"] == 3 * (2 + 2 * 6)
    return root


@pytest.fixture
def copied(finished: Path, digits_job: Raw) -> Raw:
    """The tiny job, on a copy of the complete run."""
    shutil.copytree(finished, digits_job()["store"])
    return digits_job


def test_every_map_and_score_is_there(finished: Path) -> None:
    scores = scores_of(finished)
    assert len(scores) == 40 * 6 * 3
    assert not verify(finished)
    assert remaining(Run.open(finished)) == {}
    maps = maps_of(finished)
    assert np.isfinite(maps["gradcam/maps"]).all()
    assert maps["ddcam/details/certificate"].all()
    assert not (finished / "activations.zarr").exists()
    assert (finished / "report" / "contact_sheet.png").stat().st_size > 10_000


def test_summary_is_the_mean_of_the_scores(finished: Path) -> None:
    rows = pq.read_table(finished / "summary.parquet").to_pylist()
    assert len(rows) == 6 * 3
    row = next(r for r in rows if (r["explainer"], r["metric"]) == ("gradcam", "insertion"))
    values = [v for (_, _, e, m), (v, _) in scores_of(finished).items() if (e, m) == ("gradcam", "insertion")]
    assert row["mean"] == pytest.approx(np.mean(values))
    assert row["low"] < row["mean"] < row["high"]
    assert row["n"] == 40


def test_results_do_not_depend_on_workers_or_shards(finished: Path, digits_job: Raw) -> None:
    raw = digits_job(cluster={"kind": "local", "workers": 1}, batch={"shard": 48, "images": 7, "forwards": 5})
    run(raw)
    assert_same_results(finished, Path(raw["store"]))


def test_a_complete_job_only_looks_for_findings_that_are_asked_for(copied: Raw) -> None:
    raw = copied(findings=[{"explainer": "gradcam", "passes": 0}])
    root = Path(raw["store"])
    maps = {path: path.stat().st_mtime_ns for path in root.rglob("saliency.zarr/*/maps/c/*/0/0")}
    assert run(raw)["steps_done"] == 0
    assert {path: path.stat().st_mtime_ns for path in maps} == maps
    assert (
        len(list((root / "done" / "suspicions" / "gradcam").iterdir())) == 4
    )  # of 40 images, in parts of 10
    clusters = pq.read_table(root / "clusters.parquet").to_pylist()
    assert sum(row["images"] for row in clusters) == 40
    assert not verify(root)
    assert 'id="findings"' in (root / "report" / "index.html").read_text("utf-8")


def test_an_added_metric_rewrites_scores_and_explains_nothing(copied: Raw) -> None:
    raw = copied()
    before = {path: path.stat().st_mtime_ns for path in Path(raw["store"]).rglob("shard-*.parquet")}
    raw["metrics"].append({"name": "sparseness"})
    assert run(raw)["steps_done"] == 3 * 6  # every score file once, no map
    changed = [p for p, mtime in before.items() if p.stat().st_mtime_ns != mtime]
    assert {p.parts[-2].split("=")[0] for p in changed} == {"explainer"}
    assert len(scores_of(Path(raw["store"]))) == 40 * 6 * 4


def test_an_added_explainer_computes_only_its_own_and_the_activations_it_needs(
    server: str, digits_job: Raw
) -> None:
    small: dict[str, Any] = {"dataset": {"kind": "digits", "limit": 16}, "controls": False}
    raw = digits_job(explainers=[{"name": "gradcam"}], **small)
    assert run(raw)["steps_done"] == 4
    root = Path(raw["store"])
    before = maps_of(root)["gradcam/maps"]
    assert run(digits_job(**small))["steps_done"] == 3  # activations, saliency and scores of ddcam
    after = maps_of(root)
    np.testing.assert_array_equal(after["gradcam/maps"], before)
    assert after["ddcam/details/certificate"].all()
    assert not verify(root)


def test_a_running_dask_scheduler_serves_as_well(server: str, digits_job: Raw) -> None:
    raw = digits_job(
        explainers=[{"name": "gradcam"}], dataset={"kind": "digits", "limit": 16}, controls=False
    )
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        raw["cluster"] = {"kind": "address", "address": cluster.scheduler_address}
        assert run(raw)["steps_done"] == 4
    assert not verify(Path(raw["store"]))


def test_a_scheduler_that_does_not_answer_is_named(server: str, digits_job: Raw) -> None:
    raw = digits_job(cluster={"kind": "address", "address": f"tcp://127.0.0.1:{free_port()}"})
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1"),
    ):
        run(raw)


def test_any_other_job_in_the_same_place_is_refused(copied: Raw) -> None:
    with pytest.raises(JobError, match=r"seed was 0 and is 7"):
        prepare(Job.model_validate(copied(seed=7)))
    with pytest.raises(JobError, match=r"dataset\.limit was 40 and is 39"):
        prepare(Job.model_validate(copied(dataset={"kind": "digits", "limit": 39})))
    with pytest.raises(JobError, match="gradcam is no longer there"):
        prepare(Job.model_validate(copied(explainers=[{"name": "ddcam"}])))


def test_a_damaged_shard_is_named_and_repaired(copied: Raw, finished: Path) -> None:
    raw = copied()
    root = Path(raw["store"])
    shard = next((root / "saliency.zarr" / "gradcam" / "maps" / "c").rglob("0"))
    target = sorted(p for p in shard.parent.rglob("*") if p.is_file())[0]
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 0xFF
    target.write_bytes(data)
    record = root / "done" / "scores" / "ddcam" / "shard-00001.json"
    record.write_text(record.read_text()[:40])
    problems = [str(problem) for problem in verify(root)]
    assert len(problems) == 2
    assert any("gradcam" in problem for problem in problems)
    assert any("ddcam" in problem for problem in problems)
    assert run(raw)["steps_done"] >= 2
    assert not verify(root)
    assert_same_results(finished, root)


def test_top_classes_give_one_map_each(digits_job: Raw) -> None:
    raw = digits_job(
        target={"top": 3}, explainers=[{"name": "gradcam"}], dataset={"kind": "digits", "limit": 10}
    )
    run(raw)
    root = Path(raw["store"])
    assert maps_of(root)["gradcam/maps"].shape[0] == 30
    targets = [key[1] for key in scores_of(root) if key[2:] == ("gradcam", "insertion")]
    assert len(targets) == 30
    samples = pq.read_table(root / "samples.parquet").to_pylist()
    assert all(len(set(sample["targets"])) == 3 for sample in samples)
    assert all(sample["targets"][0] == sample["prediction"] for sample in samples)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": 99}, r"target: 99 is not a class of the model; choose 0 to 7"),
        ({"target": {"top": 3}}, r"ddcam explains only the predicted class"),
        ({"model": {"source": "torchvision", "name": "resnet1", "weights": "none"}}, r"model\.name.*resnet1"),
        ({"dataset": {"kind": "folder", "path": "/nowhere/at/all"}}, r"/nowhere/at/all"),
    ],
)
def test_a_job_that_cannot_run_is_refused_before_any_work(
    digits_job: Raw, changes: dict[str, Any], said: str
) -> None:
    raw = digits_job(**changes)
    with pytest.raises(JobError, match=said) as refused:
        prepare(Job.model_validate(raw))
    assert "\n" not in str(refused.value)
    assert not Path(raw["store"]).exists()


@pytest.mark.parametrize("label", [-1, 8])
def test_labels_that_the_model_does_not_have_are_refused(
    label: int, digits_job: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torchvision's STL10 has images of label -1."""

    def opened(spec: DatasetSpec, bands: Bands, run: Path) -> Dataset:
        dataset = open_dataset(spec, bands, run)
        samples = [replace(dataset.samples[0], label=label), *dataset.samples[1:]]
        return replace(dataset, samples=samples)

    monkeypatch.setattr("flows.prepare.open_dataset", opened)
    with pytest.raises(JobError, match=rf"numbering, 0 to 7; the dataset has label {label}; use"):
        prepare(Job.model_validate(digits_job(target="label", explainers=[{"name": "gradcam"}])))


def test_a_metric_that_needs_boxes_is_refused_without_them(digits_job: Raw, tmp_path: Path) -> None:
    from PIL import Image

    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "images" / label / "x.png")
    raw = digits_job(dataset={"kind": "folder", "path": str(tmp_path / "images")})
    with pytest.raises(JobError, match=r"pointing_game needs boxes, .* insertion"):
        prepare(Job.model_validate(raw))
