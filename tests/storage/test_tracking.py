"""MLflow holds one parent run a job and one nested run an explainer, and logging again doubles nothing."""

import pytest
from mlflow import MlflowClient

from storage.tracking import EXPERIMENT, ExplainerResult, track


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowClient, str, str]:
    """A job tracked, then extended by an explainer and tracked again."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri, store, picture = f"sqlite:///{folder}/mlflow.db", folder / "run's", folder / "sheet.png"
    picture.write_bytes(b"png")
    result = ExplainerResult({"sigma": 0.25}, {"insertion": 0.5}, {"insertion": [0.1, 0.4, 0.9]})
    arguments = (store, "photos", "hash-of-the-job", {"seed": 0, "model.name": "resnet"})
    first = track(uri, *arguments, {"gradcam": result}, [picture])
    second = track(uri, *arguments, {"gradcam": result, "ddcam": result}, [picture])
    assert first == second
    other = track(uri, store, "photos", "another-hash", {}, {"gradcam": result}, [])
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
