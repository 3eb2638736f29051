"""The training flow by its command: killed, stopped, refused, and its head used by a job."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import typer
from mlflow import MlflowClient
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling
from pydantic import ValidationError

import packed
from explainers.models.ptame_head import load_head
from flows import server as prefect
from flows.chosen_explainers import _fetched
from flows.explain import explain
from flows.job import Job, JobError
from flows.job_commands import _one_line_failures, _train
from flows.train import _ended, prepare_training, publish_head, train_ptame
from flows.train_job import TrainJob
from places import ROOT
from plugins.registry import complaints
from runs import maps_of, model, tiny_job, toml
from storage.datasets import tar_samples
from storage.lock import holder
from storage.run import RunMismatchError
from storage.tracking import TrackingError, TrainingLog, registered
from tasks.training.data import UnusableImagesError
from tasks.training.fitting import TrainingError, crops_of

STEPS = 40


def raw_job(store: Path, **changes: Any) -> dict[str, Any]:
    """A head for the demo's first network on an untrained one, in seconds."""
    job: dict[str, Any] = {
        "name": "tiny-ptame",
        "store": str(store),
        "dataset": {"kind": "digits", "split": "train", "limit": 60},
        "model": model("gap"),
        "auxiliary": {
            "source": f"{ROOT}/examples/digits.py:small",
            "weights": f"{ROOT}/examples/weights/digits-small.safetensors",
            "taps": ["features.2", "features.5"],
        },
        "steps": STEPS,
        "batch": 8,
        "flip": False,
        "held_out": 12,
        "watch": {"numbers": 5, "validation": 20, "checkpoint": 1e-6},
    }
    return job | changes


def started(job: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flows.cli", "train", str(job)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def tensors(head: Path) -> dict[str, torch.Tensor]:
    return load_head(head)[0].state_dict()


@pytest.fixture(scope="module")
def undisturbed(server: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole training in this process, with what the flow returned."""
    root = tmp_path_factory.mktemp("training")
    raw = raw_job(root / "run", watch={"numbers": 5, "validation": 20, "checkpoint": 10})
    return {"root": root, "raw": raw} | train_ptame(TrainJob.model_validate(raw))


@pytest.mark.service
@pytest.mark.faults
def test_a_training_cancelled_in_prefect_continues_from_its_checkpoint(server: str, tmp_path: Path) -> None:
    raw = raw_job(tmp_path / "run", name="to-cancel", steps=4000)
    first = started(toml(raw, tmp_path / "job.toml"))
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert time.monotonic() < deadline
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.02)
    with get_client(sync_client=True) as client:
        (its,) = [run for run in client.read_flow_runs() if run.name == "to-cancel"]
        client.set_flow_run_state(its.id, Cancelling())
        said, _ = first.communicate(timeout=120)
        assert first.returncode == 1
        assert "cancelled; run the same job again to continue" in said
        assert client.read_flow_run(its.id).state_name == "Cancelled"
    step = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < step < 4000
    assert holder(tmp_path / "run") is None


@pytest.mark.service
@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_killed_training_run_again_ends_with_the_undisturbed_weights(
    number: signal.Signals, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    job = toml(raw_job(tmp_path / "run"), tmp_path / "job.toml")
    first = started(job)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert time.monotonic() < deadline
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.02)
    os.kill(first.pid, number)
    said, _ = first.communicate(timeout=120)
    assert not (tmp_path / "run" / "head.safetensors").exists(), "it was over before it was killed"
    if number == signal.SIGTERM:
        assert first.returncode == 1
        assert "Error logging to API" not in said
        assert f"of {STEPS}; run the same job again to continue" in said
    step = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < step < STEPS
    second = started(job)
    said, _ = second.communicate(timeout=300)
    assert second.returncode == 0, said
    for shown in ("head.safetensors", "models:/tiny-ptame/1", "maps.png"):
        assert shown in said
    expected = tensors(Path(undisturbed["head"]))
    for name, value in tensors(tmp_path / "run" / "head.safetensors").items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.service
def test_mlflow_has_the_numbers_the_pictures_and_one_version_of_the_head(undisturbed: dict[str, Any]) -> None:
    again = train_ptame(TrainJob.model_validate(undisturbed["raw"]))
    assert again["registered"] == undisturbed["registered"] == "models:/tiny-ptame/1"
    client = MlflowClient(f"sqlite:///{undisturbed['root']}/mlflow.db")
    (version,) = client.search_model_versions("name = 'tiny-ptame'")
    assert version.tags["floodlit.classes"] == "8"
    assert version.tags["floodlit.input_size"] == "64x64"
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.layer"] == "features"
    losses = client.get_metric_history(version.run_id, "loss")
    assert [point.step for point in losses] == list(range(5, STEPS + 1, 5))
    held_out = client.get_metric_history(version.run_id, "held_out_average_drop_15")
    assert [point.step for point in held_out] == [20, 40]
    assert {artifact.path for artifact in client.list_artifacts(version.run_id)} == {"maps.png", "heads"}


@pytest.mark.service
@pytest.mark.parametrize("by", ["file", "registry"])
def test_a_job_explains_with_the_head(by: str, undisturbed: dict[str, Any]) -> None:
    head = undisturbed["head" if by == "file" else "registered"]
    store = undisturbed["root"] / by
    raw = tiny_job(
        store, explainers=[{"name": "ptame", "head": head}], dataset={"kind": "digits", "limit": 8}
    )
    explain(Job.model_validate(raw))
    maps = maps_of(store)["ptame/maps"]
    assert maps.shape == (8, 32, 32)
    assert (maps.min((1, 2)) == 0).all()
    assert (maps.max((1, 2)) == 1).all()
    if by == "registry":
        reference = maps_of(undisturbed["root"] / "file")["ptame/maps"]
        assert (reference == maps).all()


@pytest.mark.service
def test_another_head_at_the_same_path_is_another_run(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    from flows.prepare import prepare

    copy = tmp_path / "head.safetensors"
    fetched = registered(
        f"sqlite:///{undisturbed['root']}/mlflow.db", undisturbed["registered"], tmp_path / "x"
    )
    copy.write_bytes(fetched.read_bytes())
    # The head notes where the file lies from its own folder, which the copy has left.
    choice = {"name": "ptame", "head": str(copy), "auxiliary": f"{ROOT}/examples/digits.py"}
    raw = tiny_job(tmp_path / "run", explainers=[choice])
    run = prepare(Job.model_validate(raw))
    assert list(run.manifest.explainers["ptame"].files) == ["head", "auxiliary"]
    other = raw_job(tmp_path / "other", seed=1)
    made = train_ptame(TrainJob.model_validate(other | {"steps": 2}))
    copy.write_bytes(Path(made["head"]).read_bytes())
    with pytest.raises(JobError, match=r"holds another run: explainers\.ptame\.files\.head was"):
        prepare(Job.model_validate(raw))


@pytest.mark.service
def test_a_head_of_another_classifier_is_refused_before_the_start(
    undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    from flows.prepare import prepare

    raw = tiny_job(
        tmp_path / "run", model=model("mlp"), explainers=[{"name": "ptame", "head": undisturbed["head"]}]
    )
    with pytest.raises(
        JobError, match=r"ptame: head: .* was trained for another classifier, whose weights are"
    ):
        prepare(Job.model_validate(raw))
    missing = raw | {"explainers": [{"name": "ptame", "head": "models:/nothing/7"}]}
    with pytest.raises(JobError, match="models:/nothing/7 is not in the model registry of sqlite"):
        prepare(Job.model_validate(missing | {"tracking": f"sqlite:///{undisturbed['root']}/mlflow.db"}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch": 64}, "batch: 48 training images do not fill one step of 64 images in 1 processes"),
        (
            {"auxiliary": {"source": f"{ROOT}/examples/digits.py:small", "weights": "none"}},
            "auxiliary.taps: none",
        ),
        ({"dataset": {"kind": "text", "path": f"{ROOT}/examples/reviews.csv"}}, "these are texts"),
        ({"model": model("gap") | {"layer": "nowhere"}}, "model.layer"),
        ({"model": model("gap") | {"layer": ["features", "nowhere"]}}, "model.layer"),
    ],
)
def test_a_training_that_cannot_run_is_refused_in_one_line(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match=told) as refusal:
        prepare_training(TrainJob.model_validate(raw_job(tmp_path / "run", processes=1) | changes))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_a_head_needs_no_layer_of_its_classifier(tmp_path: Path) -> None:
    """All that the network's layers make of an image is its mean colour, which has no grid."""
    (tmp_path / "mean.py").write_text(
        "from torch import nn\n\n\ndef net():\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))\n"
    )
    flat = {"source": f"{tmp_path}/mean.py:net", "weights": "none"}
    raw = raw_job(tmp_path / "run", processes=1, model=flat)
    assert prepare_training(TrainJob.model_validate(raw)).folder.root == tmp_path / "run"


@pytest.mark.parametrize("use", ["held out", "train"])
def test_a_training_without_images_to_use_is_refused_in_one_line(use: str, tmp_path: Path) -> None:
    """Rows 0 and 10 are held out; the model says its size, so that no image has to."""
    (tmp_path / "photographs").mkdir()
    for row in range(20):
        path = tmp_path / "photographs" / f"{row:02}.png"
        if (row % 10 == 0) == (use == "held out"):
            path.write_bytes(b"no image")
        else:
            Image.new("RGB", (64, 64)).save(path)
    raw = raw_job(
        tmp_path / "run",
        dataset={"kind": "folder", "path": str(tmp_path / "photographs")},
        model=model("gap") | {"crop": 64},
        held_out=2,
    )
    with pytest.raises(JobError, match=f"dataset: none of the images that .*{use} can be used") as refusal:
        prepare_training(TrainJob.model_validate(raw))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_more_processes_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(JobError, match="processes: 3 need one GPU each, but there are 2; lower it"):
        prepare_training(TrainJob.model_validate(raw_job(tmp_path / "run", processes=3)))


def test_a_damaged_head_is_told_with_the_remedy(tmp_path: Path) -> None:
    job = TrainJob.model_validate(raw_job(tmp_path / "run"))
    setup = prepare_training(job)
    setup.folder.head.write_bytes(b"no head")
    with pytest.raises(TrainingError, match=r"head\.safetensors is damaged; delete it and run the same job"):
        publish_head.fn(job, setup)


def test_a_failure_of_the_log_hides_no_other(tmp_path: Path) -> None:
    log = Mock()
    log.end.side_effect = TrackingError("MLflow is down")
    with pytest.raises(OSError, match="the disk is full"), _ended(log):
        raise OSError("the disk is full")
    log.end.assert_called_once_with("FAILED")
    with pytest.raises(TrackingError), _ended(log):
        pass


@pytest.mark.parametrize(
    "error",
    [
        TrainingError("killed"),
        UnusableImagesError("dataset: too few"),
        TrackingError("MLflow is down"),
        OSError("cut"),
    ],
)
def test_what_ends_a_training_is_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: TrainJob) -> None:
        raise error

    monkeypatch.setattr("flows.train.train_ptame", fails)
    monkeypatch.setattr("flows.server.prefect_server", lambda: nullcontext(lambda: "http://here/api"))
    with pytest.raises(typer.Exit) as end, _one_line_failures():
        _train(toml(raw_job(tmp_path / "run"), tmp_path / "job.toml"), None)
    assert end.value.exit_code == 1
    assert capsys.readouterr().err == f"floodlit: {error}\n"


def test_the_last_lines_of_what_fails_leave_before_the_server_does(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(prefect._Server, "_start", lambda _: Mock(terminate=lambda: done.append("end")))
    monkeypatch.setattr(prefect.APILogHandler, "flush", lambda _: done.append("flush"))
    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(OSError, match="cut"):
        fails_while_served()
    assert done == ["flush", "end"]


def fails_while_served() -> None:
    with prefect.prefect_server():
        raise OSError("cut")


def test_heads_of_two_registries_are_two(tmp_path: Path) -> None:
    """Both call theirs models:/m/1."""
    file = tmp_path / "head.safetensors"
    for content in ("a", "b"):
        uri = f"sqlite:///{tmp_path}/{content}.db"
        file.write_text(content)
        address = TrainingLog(uri, tmp_path / "run", "m", "job", {}).register("m", file, {})
        raw = tiny_job(tmp_path / "run", explainers=[{"name": "ptame", "head": address}], tracking=uri)
        job = Job.model_validate(raw)
        found = [_fetched(job, job.explainer_parameters()["ptame"]).head for _ in range(2)]
        assert found[0] == found[1]
        assert found[0].read_text() == content


def test_another_training_in_the_same_folder_is_refused_with_what_differs(tmp_path: Path) -> None:
    raw = raw_job(tmp_path / "run")
    prepare_training(TrainJob.model_validate(raw))
    prepare_training(TrainJob.model_validate(raw | {"watch": {"numbers": 1}, "register_as": "x"}))
    with pytest.raises(JobError, match="holds another training: steps was 40 and is 41") as refusal:
        prepare_training(TrainJob.model_validate(raw | {"steps": 41}))
    assert isinstance(refusal.value.__cause__, RunMismatchError)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"accumulate": 3}, "8 images cannot be divided into 3 equal parts"),
        ({"loss": {"preset": "alexnet"}}, "resnet50"),
        ({"stepz": 3}, "stepz"),
        ({"epochs": float("inf")}, "epochs"),
        ({"loss": {"ce": float("nan")}}, "loss.ce"),
        (
            {"name": "photos/ptame"},
            "name: 'photos/ptame' is not a valid name .*; change it, or set register_as",
        ),
        ({"name": "Bob's head"}, "name: "),
        ({"name": " "}, "name: "),
        ({"name": ":"}, "name: "),
        ({"register_as": " "}, "register_as"),
        ({"auxiliary": {"source": "timm", "layer": "conv"}}, "auxiliary.layer.*; leave it out"),
        ({"auxiliary": {"source": "timm", "resize": 64}}, "auxiliary.resize.*; leave it out"),
        ({"auxiliary": {"source": "timm", "mean": [0, 0, 0]}}, "auxiliary.mean.*; leave it out"),
    ],
)
def test_wrong_keys_are_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as refusal:
        TrainJob.model_validate(raw_job(tmp_path) | changes)
    assert re.search(told, complaints(refusal.value))


def test_a_name_that_cannot_be_registered_is_enough_beside_one_that_can(tmp_path: Path) -> None:
    job = TrainJob.model_validate(raw_job(tmp_path, name="photos/ptame", register_as="photos-ptame 1.0"))
    assert job.name == "photos/ptame"


def test_a_preset_is_changed_where_the_job_says_so(tmp_path: Path) -> None:
    job = TrainJob.model_validate(
        raw_job(tmp_path, loss={"preset": "vgg16", "area": 0.5, "learning_rate": 0.01})
    )
    settings = job.loss.settings()
    assert (settings.weights.ce, settings.weights.area, settings.weights.tv) == (0.07278, 0.5, 0.0001)
    assert (settings.learning_rate, settings.weight_decay) == (0.01, 0.133)


def test_a_training_passes_over_tars_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tars = packed.as_tars(packed.photographs(tmp_path / "files"), tmp_path / "tars")
    raw = raw_job(tmp_path / "run", dataset={"kind": "webdataset", "path": str(tars)}, held_out=2, batch=2)
    setup = prepare_training(TrainJob.model_validate(raw))
    monkeypatch.setattr(tar_samples, "members", lambda *_: pytest.fail("the tars were passed over again"))
    assert len(crops_of(setup).dataset.samples) == 10  # as in another process
    prepare_training(TrainJob.model_validate(raw))
