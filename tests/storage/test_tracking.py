"""MLflow holds one parent run a job and one nested run an explainer, and logging again doubles nothing."""

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path
from unittest.mock import Mock

import mlflow
import pyarrow as pa
import pytest
from mlflow import MlflowClient, environment_variables

from storage import tracking
from storage.tracking import EXPERIMENT, Result, TrackingError, TrainingLog, registered, track


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowClient, str, str]:
    """A job tracked, then extended by an explainer and tracked again."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri, store, picture = f"sqlite:///{folder}/mlflow.db", folder / "run's", folder / "sheet.png"
    picture.write_bytes(b"png")
    result = Result({"sigma": 0.25}, {"insertion": 0.5}, {"insertion": [0.1, 0.4, 0.9]})
    parameters = {"seed": 0, "model.name": "resnet"}
    arguments = (store, "photos", "hash-of-the-job", Result(parameters, {"accuracy": 0.75}, {}))
    first = track(uri, *arguments, {"gradcam": result}, [picture])
    second = track(uri, *arguments, {"gradcam": result, "ddcam": result}, [picture])
    assert first == second
    other = track(uri, store, "photos", "another-hash", Result({}, {}, {}), {"gradcam": result}, [])
    assert other != first
    return MlflowClient(uri), first, other


def children(client: MlflowClient, parent: str) -> list[str]:
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    runs = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
    return sorted(run.info.run_name for run in runs)


def test_each_explainer_is_one_nested_run(twice: tuple[MlflowClient, str, str]) -> None:
    client, first, other = twice
    assert children(client, first) == ["ddcam", "gradcam"]
    assert children(client, other) == ["gradcam"]


def test_parent_has_the_job_and_the_picture(twice: tuple[MlflowClient, str, str]) -> None:
    client, first, _ = twice
    run = client.get_run(first)
    assert run.data.params == {"seed": "0", "model.name": "resnet"}
    assert run.data.metrics == {"accuracy": 0.75}
    assert run.info.status == "FINISHED"
    assert [artifact.path for artifact in client.list_artifacts(first)] == ["sheet.png"]


def test_nested_run_has_parameters_means_and_curve(twice: tuple[MlflowClient, str, str]) -> None:
    client, first, _ = twice
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    nested = client.search_runs(
        [experiment], f"tags.mlflow.parentRunId = '{first}' and tags.`floodlit.explainer` = 'gradcam'"
    )[0]
    assert nested.data.params == {"sigma": "0.25"}
    assert nested.data.metrics["insertion"] == 0.5
    history = client.get_metric_history(nested.info.run_id, "curve/insertion")
    assert [(point.step, point.value) for point in history] == [(0, 0.1), (1, 0.4), (2, 0.9)]


def test_tables_are_files_that_are_replaced_and_nested_columns_are_left_out(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for mean in (0.5, 0.25):
        rows = [{"explainer": 'a,"b', "mean": mean, "excluded_by": {"failed": 1}, "names": ["x"]}]
        whole = Result({}, {}, {}, {"summary.csv": pa.Table.from_pylist(rows)})
        parent = track(uri, tmp_path / "run", "photos", "job", whole, {}, [])
    client = MlflowClient(uri)
    assert [each.path for each in client.list_artifacts(parent)] == ["summary.csv"]
    told = Path(client.download_artifacts(parent, "summary.csv")).read_text()
    assert told == '"explainer","mean"\n"a,""b",0.25\n'


def test_the_verdict_is_the_description_until_a_person_writes_one(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)

    def described(told: str) -> str | None:
        parent = track(uri, tmp_path / "run", "photos", "job", Result({}, {}, {}), {}, [], told)
        note: str | None = client.get_run(parent).data.tags.get("mlflow.note.content")
        return note

    assert described("") is None
    assert described("a wins") == "a wins"
    assert described("b wins") == "b wins"
    parent = track(uri, tmp_path / "run", "photos", "job", Result({}, {}, {}), {}, [])
    client.set_tag(parent, "mlflow.note.content", "mine")
    assert described("c wins") == "mine"


def test_addresses_open_the_run_and_all_runs_as_models_in_training(
    twice: tuple[MlflowClient, str, str],
) -> None:
    client, first, _ = twice
    uri, experiment = client.tracking_uri, client.get_run(first).info.experiment_id
    assert tracking.page_of(uri, first) == (
        f"#/experiments/{experiment}/runs/{first}?workflowType=machine_learning"
    )
    assert tracking.page_of_all(uri) == f"#/experiments/{experiment}?workflowType=machine_learning"


def test_the_experiment_opens_under_model_training(tmp_path: Path) -> None:
    """Also one that an earlier version made; a kind that a person chose stays."""
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    made = client.create_experiment(EXPERIMENT)
    for chosen, kept in ((None, "custom_model_development"), ("genai_development", "genai_development")):
        if chosen:
            client.set_experiment_tag(made, "mlflow.experimentKind", chosen)
        assert tracking._experiment(client, "sqlite:///mlflow.db", tmp_path / "run") == made
        assert client.get_experiment(made).tags["mlflow.experimentKind"] == kept
    # The kinds are known to MLflow's pages alone: its Python code names none of them as a constant.
    pages = (Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js").glob("*.js")
    assert any('"custom_model_development"' in page.read_text("utf-8") for page in pages)


def test_a_changed_score_is_the_one_shown_and_what_stayed_is_there_once(tmp_path: Path) -> None:
    """A shard that failed and was done again changes means, downwards too."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for mean, curve in ((0.5, [0.1, 0.4, float("nan")]), (0.25, [0.1, 0.3, float("nan")])):
        results = {"gradcam": Result({}, {"insertion": mean, "deletion": 0.125}, {"road": curve})}
        parent = track(uri, tmp_path / "run", "photos", "job", Result({}, {}, {}), results, [])
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    (nested,) = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
    assert nested.data.metrics["insertion"] == 0.25
    assert nested.data.metrics["deletion"] == 0.125
    points = {
        key: [(point.step, str(point.value)) for point in client.get_metric_history(nested.info.run_id, key)]
        for key in ("insertion", "deletion", "curve/road")
    }
    assert points == {
        "insertion": [(0, "0.5"), (0, "0.25")],
        "deletion": [(0, "0.125")],
        "curve/road": [(0, "0.1"), (1, "0.4"), (2, "nan"), (1, "0.3")],
    }


def test_a_training_resumed_before_its_last_point_has_every_point_once(tmp_path: Path) -> None:
    """Killed at step 30, it goes on from its checkpoint of step 10."""
    arguments = (f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "run", "photos", "job", {})
    log = TrainingLog(*arguments)
    for step in (10, 20, 30):
        log.numbers(step, {"loss": 1 / step})
    log.numbers(20, {"held_out": 0.5})
    resumed = TrainingLog(*arguments)
    for step in (20, 30, 40):
        resumed.numbers(step, {"loss": 1 / step, "held_out": 0.25})
    history = MlflowClient(arguments[0]).get_metric_history
    loss, held_out = (history(resumed._id, key) for key in ("loss", "held_out"))
    assert [(point.step, point.value) for point in loss] == [(step, 1 / step) for step in (10, 20, 30, 40)]
    assert [(point.step, point.value) for point in held_out] == [(20, 0.5), (30, 0.25), (40, 0.25)]


def _tracked_at_once(together: Barrier, uri: str, store: Path) -> None:
    together.wait()
    track(
        uri, store, store.name, "job", Result({}, {}, {}), {"gradcam": Result({}, {"insertion": 0.5}, {})}, []
    )


def test_jobs_that_end_at_once_beside_no_database_yet_lose_nothing(tmp_path: Path) -> None:
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload(["storage.tracking"])  # MLflow is imported once
    uri, together = f"sqlite:///{tmp_path}/mlflow.db", forked.Barrier(4)
    jobs = [
        forked.Process(target=_tracked_at_once, args=(together, uri, tmp_path / f"run{index}"))
        for index in range(4)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0, 0, 0]
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["gradcam"] * 4 + [
        f"run{index}" for index in range(4)
    ]


def test_an_experiment_made_by_another_job_just_now_is_taken(tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    made = client.create_experiment(EXPERIMENT)
    behind = Mock(wraps=client)
    behind.get_experiment_by_name.side_effect = [None, client.get_experiment_by_name(EXPERIMENT)]
    assert tracking._experiment(behind, "sqlite:///mlflow.db", tmp_path / "run") == made


@pytest.fixture
def head(tmp_path: Path) -> Path:
    path = tmp_path / "head.safetensors"
    path.write_bytes(b"first")
    return path


def test_a_version_is_a_file_whatever_it_was_trained_as(head: Path, tmp_path: Path) -> None:
    """Trained again after its folder was deleted, a head is another file of the same run."""
    uri, store = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "run"
    log = TrainingLog(uri, store, "photos", "hash-of-the-job", {})
    assert log.register("photos", head, {"classes": "8"}) == "models:/photos/1"
    head.write_bytes(b"second")
    log = TrainingLog(uri, store, "photos", "hash-of-the-job", {})
    for _ in range(2):
        assert log.register("photos", head, {"classes": "8"}) == "models:/photos/2"
    assert log.register("other", head, {"classes": "8"}) == "models:/other/1"
    for address, content in (("photos/1", b"first"), ("photos/2", b"second"), ("other/1", b"second")):
        assert registered(uri, f"models:/{address}", tmp_path / address).read_bytes() == content


def test_an_interrupted_download_leaves_nothing(
    head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    address = TrainingLog(uri, tmp_path / "run", "photos", "job", {}).register("photos", head, {})

    def half(artifact_uri: str, dst_path: str, tracking_uri: str) -> str:
        (Path(dst_path) / head.name).touch()
        raise OSError("the line is cut")

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "download_artifacts", half)
        with pytest.raises(ValueError, match="the line is cut"):
            registered(uri, address, tmp_path / "heads" / "photos-1")
    assert [path for path in (tmp_path / "heads").rglob("*") if path.is_file()] == []
    found = registered(uri, address, tmp_path / "heads" / "photos-1")
    assert found == tmp_path / "heads" / "photos-1" / head.name
    assert [path for path in (tmp_path / "heads").rglob("*") if path.is_file()] == [found]


@pytest.mark.parametrize("uri", ["https://mlflow.example.org", "sqlite:///mlflow.db"])
def test_a_server_keeps_the_files_itself(uri: str, tmp_path: Path) -> None:
    """A folder of the client's machine would be no use to other machines."""
    client = Mock()
    client.get_experiment_by_name.return_value = None
    tracking._experiment(client, uri, tmp_path / "run")
    here = (tmp_path / "mlartifacts").as_uri()
    place = None if uri.startswith("https") else here
    client.create_experiment.assert_called_once_with(EXPERIMENT, artifact_location=place, tags=tracking.KIND)


def test_mlflow_is_waited_for_half_a_minute_unless_somebody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    retries, seconds = (environment_variables.__dict__[name] for name in tracking.PATIENCE)
    for name in tracking.PATIENCE:
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    tracking._client("http://127.0.0.1:9")
    assert (retries.get(), seconds.get()) == (4, 1)


def test_a_server_away_when_a_job_ends_is_told_with_where_the_results_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"^tracking: MLflow says .*refused.*which only logs") as told:
        track("http://127.0.0.1:9", tmp_path / "run", "photos", "job", Result({}, {}, {}), {}, [])
    assert str(told.value).endswith(f"the results are in {tmp_path / 'run'}")
    assert "\n" not in str(told.value)


def test_a_server_that_is_not_there_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(
        TrackingError, match=r"^tracking: MLflow says .*refused.*; solve this problem, then run"
    ) as told:
        TrainingLog("http://127.0.0.1:9", tmp_path / "run", "photos", "job", {})
    assert "\n" not in str(told.value)
