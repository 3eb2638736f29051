"""The same photographs as a folder, a listing, and packed in other ways: the same inputs and scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from flows.resume import remaining
from packed import as_csv, as_dicom, as_parquet, as_saved, as_tars, photographs
from places import REAL, ROOT
from runs import completed, model, prepared, scores_of, tiny_job, wait_for
from storage.datasets import tar_samples
from storage.datasets.index import NAME
from storage.maps import read
from storage.records import finished
from storage.run import Run
from storage.samples import read_samples
from storage.verify import verify
from tasks.inputs import inputs

Form = Callable[[Path, Path], dict[str, Any]]

# Each packs the files below a folder, and returns the table of the job.
FORMS: dict[str, Form] = {
    "csv": lambda root, to: {"kind": "csv", "path": str(as_csv(root, to)), "images": str(root)},
    "huggingface": lambda root, to: {"kind": "huggingface", "path": str(as_saved(root, to))},
    "parquet": lambda root, to: {"kind": "parquet", "path": str(as_parquet(root, to))},
    "webdataset": lambda root, to: {"kind": "webdataset", "path": str(as_tars(root, to))},
}
each_form = pytest.mark.parametrize("form", FORMS)


def job(store: Path, dataset: dict[str, Any], shard: int = 4) -> dict[str, Any]:
    return tiny_job(
        store,
        dataset=dataset,
        model=model("gap") | {"resize": 40, "crop": 40},
        explainers=[{"name": "gradcam"}],
        metrics=[{"name": "insertion", "steps": 2}],
        batch={"shard": shard},
    )


def facts(run: Run) -> list[dict[str, Any]]:
    """The rows of the samples without their places."""
    return [{key: value for key, value in row.items() if key != "uri"} for row in read_samples(run.root)]


def assert_same(run: Run, other: Run) -> None:
    assert read(run.inputs, 0, run.rows).tobytes() == read(other.inputs, 0, other.rows).tobytes()
    assert facts(run) == facts(other)
    assert scores_of(run.root) == scores_of(other.root)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("files") / "photographs")


@pytest.fixture(scope="module")
def folder_run(root: Path) -> Run:
    return completed(job(root.parent / "run", {"kind": "folder", "path": str(root)}))


@each_form
def test_inputs_and_scores_are_those_of_the_folder(
    form: str, root: Path, folder_run: Run, tmp_path: Path
) -> None:
    run = completed(job(tmp_path / "run", FORMS[form](root, tmp_path / "packed")))
    assert_same(run, folder_run)
    failed = [row["sample_id"] for row in read_samples(run.root) if row["status"] != "ok"]
    assert failed == ["dog/cut.png"]
    assert not verify(run.root)


@each_form
def test_a_job_that_was_interrupted_goes_on(form: str, root: Path, folder_run: Run, tmp_path: Path) -> None:
    raw = job(tmp_path / "run", FORMS[form](root, tmp_path / "packed"))
    begun = prepared(raw)
    inputs.fn(str(begun.root), 1)
    written = next((begun.inputs / "c" / "1").rglob("*")).stat().st_mtime_ns
    run = completed(raw)
    assert_same(run, folder_run)
    assert next((run.inputs / "c" / "1").rglob("*")).stat().st_mtime_ns == written


@pytest.mark.faults
def test_a_job_over_tars_that_was_killed_goes_on(root: Path, folder_run: Run, tmp_path: Path) -> None:
    raw = job(tmp_path / "run", FORMS["webdataset"](root, tmp_path / "packed"))
    program = f"import json, runs; runs.completed(json.loads({json.dumps(raw)!r}))"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    victim = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": paths})
    wait_for(lambda: bool(finished(tmp_path / "run")))
    victim.kill()
    victim.wait()
    begun = Run.open(tmp_path / "run")
    already = {step: (begun.root / step.path).stat().st_mtime_ns for step in begun.finished()}
    assert already
    assert remaining(begun)
    run = completed(raw)
    assert_same(run, folder_run)
    assert {step: (run.root / step.path).stat().st_mtime_ns for step in already} == already


def test_dicom_files_in_colours_give_the_inputs_of_plain_images(root: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    files = as_dicom(root, tmp_path / "dicom")
    for path in files.glob("*/*"):
        (plain / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pydicom.dcmread(path).pixel_array).save(plain / path.parent.name / f"{path.name}.png")
    raw = job(tmp_path / "run", {"kind": "dicom", "path": str(files)})
    inputs.fn(str(prepared(raw).root), 1)  # and is interrupted
    run, other = completed(raw), completed(job(tmp_path / "other", {"kind": "folder", "path": str(plain)}))
    assert run.rows == 9
    assert read(run.inputs, 0, 9).tobytes() == read(other.inputs, 0, 9).tobytes()
    assert [(row["label"], row["status"]) for row in read_samples(run.root)] == [
        (row["label"], "ok") for row in read_samples(other.root)
    ]


def test_what_was_found_in_tars_is_kept_in_the_run_and_checked(
    root: Path, folder_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = job(tmp_path / "run", FORMS["webdataset"](root, tmp_path / "packed"))
    run = prepared(raw)
    assert run.manifest.dataset_read.startswith("image from the members of image formats, label from cls")
    monkeypatch.setattr(tar_samples, "members", lambda *_: pytest.fail("the tars were passed over again"))
    assert_same(completed(raw), folder_run)
    monkeypatch.undo()
    raw_index = (run.root / NAME).read_bytes()
    (run.root / NAME).write_bytes(raw_index[:-20])
    assert [(str(problem.path), problem.reason[:10]) for problem in verify(run.root)] == [
        (NAME, "is damaged")
    ]
    assert_same(completed(raw), folder_run)
    assert (run.root / NAME).read_bytes() == raw_index


@pytest.fixture(scope="module")
def photographs_of_ilsvrc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 104 photographs in folders of their classes."""
    listing = REAL / "images/ilsvrc_val.csv"
    if not listing.exists():
        pytest.skip(f"no real images in {REAL}; FLOODLIT_REAL says where they are")
    root = tmp_path_factory.mktemp("ilsvrc") / "files"
    for line in listing.read_text().splitlines()[1:]:
        name, _, synset, *_ = line.split(",")
        (root / synset).mkdir(parents=True, exist_ok=True)
        if not (root / synset / name).exists():
            (root / synset / name).symlink_to(REAL / "images/ilsvrc_val" / name)
    return root


def test_104_photographs_give_the_same_in_every_form(photographs_of_ilsvrc: Path, tmp_path: Path) -> None:
    def run(name: str, dataset: dict[str, Any]) -> Run:
        return completed(job(tmp_path / name, dataset, shard=40) | {"controls": False})

    folder = run("folder", {"kind": "folder", "path": str(photographs_of_ilsvrc)})
    assert folder.rows == 104
    assert np.unique(read(folder.inputs, 0, 104)).size == 256
    for name, form in FORMS.items():
        assert_same(run(name, form(photographs_of_ilsvrc, tmp_path / f"{name} packed")), folder)
