"""MLflow, spoken to from one process: one parent run a job, one nested run an explainer; one run a training.

Only the flow logs, with explicit run ids: several processes on a fresh SQLite store lose to each other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from storage.files import sha256_of_file, sha256_of_json
from storage.places import is_remote

EXPERIMENT = "floodlit"
BATCH = 900  # MLflow takes at most 1,000 metrics a call


class TrackingError(RuntimeError):
    """MLflow does not do what it is asked to, in one line that says what to do."""


@dataclass(frozen=True)
class ExplainerResult:
    """What is logged of one explainer: parameters, numbers by name, curves by name."""

    parameters: Mapping[str, Any]
    numbers: Mapping[str, float]
    curves: Mapping[str, Sequence[float]]


def default_uri(store: Path) -> str:
    """SQLite file beside the run folder, shared by the runs of that folder."""
    return f"sqlite:///{store.parent / 'mlflow.db'}"


def track(
    uri: str,
    store: Path,
    name: str,
    identity: str,
    parameters: Mapping[str, Any],
    results: Mapping[str, ExplainerResult],
    pictures: Sequence[Path],
) -> str:
    """Log a finished job; returns the parent run's id.

    A run of the same ``identity`` in the same ``store``, resumed or extended, is logged into again and
    not doubled.
    """
    client = MlflowClient(tracking_uri=uri)
    experiment = _experiment(client, uri, store)
    # A digest, because the search below has no way to quote a quote in a path.
    key = sha256_of_json([str(store), identity])
    tags = {"floodlit.run": key, "floodlit.explainer": "none", "floodlit.store": str(store)}
    parent = _find_or_create(client, experiment, name, tags)
    _log(client, parent, parameters, {}, {})
    for picture in pictures:
        client.log_artifact(parent.info.run_id, str(picture))
    for explainer, result in results.items():
        nested = tags | {"floodlit.explainer": explainer, "mlflow.parentRunId": parent.info.run_id}
        child = _find_or_create(client, experiment, explainer, nested)
        _log(client, child, result.parameters, result.numbers, result.curves)
        client.set_terminated(child.info.run_id)
    client.set_terminated(parent.info.run_id)
    run_id: str = parent.info.run_id
    return run_id


def _experiment(client: MlflowClient, uri: str, store: Path) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        known: str = found.experiment_id
        return known
    # A server keeps files itself, where others find them; a database does not.
    served = uri.startswith(("http:", "https:"))
    beside = Path(uri.removeprefix("sqlite:///")) if is_remote(store) else store
    folder = None if served else (beside.parent / "mlartifacts").absolute().as_uri()
    created: str = client.create_experiment(EXPERIMENT, artifact_location=folder)
    return created


def _find_or_create(client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str]) -> Run:
    searched = ("floodlit.run", "floodlit.explainer")
    clauses = " and ".join(f"tags.`{key}` = '{tags[key]}'" for key in searched)
    for run in client.search_runs([experiment], clauses):
        return run
    return client.create_run(experiment, run_name=name, tags=dict(tags))


def _log(
    client: MlflowClient,
    run: Run,
    parameters: Mapping[str, Any],
    numbers: Mapping[str, float],
    curves: Mapping[str, Sequence[float]],
) -> None:
    now = run.info.start_time
    values = [Metric(key, float(value), now, 0) for key, value in numbers.items()]
    for key, curve in curves.items():
        values += [Metric(f"curve/{key}", float(value), now, step) for step, value in enumerate(curve)]
    known = [Param(key, str(value)) for key, value in parameters.items() if key not in run.data.params]
    client.log_batch(run.info.run_id, params=known)
    for start in range(0, len(values), BATCH):
        client.log_batch(run.info.run_id, metrics=values[start : start + BATCH])


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        raise TrackingError(
            f"tracking: MLflow says {_first_line(error)}; mend that, and run the same job again to continue"
        ) from error


class TrainingLog:
    """The MLflow run of one training, which goes on where it stopped when the training does.

    Everything it does raises TrackingError where MLflow fails.

    Parameters
    ----------
    uri
        Of the MLflow server or database.
    store
        The training's folder: with ``identity``, what tells its run from others.
    name
        Of the run.
    parameters
        The resolved job, flat.
    """

    @_answering()
    def __init__(
        self, uri: str, store: Path, name: str, identity: str, parameters: Mapping[str, Any]
    ) -> None:
        self._client = MlflowClient(tracking_uri=uri)
        experiment = _experiment(self._client, uri, store)
        tags = {
            "floodlit.run": sha256_of_json([str(store), identity]),
            "floodlit.explainer": "training",
            "floodlit.store": str(store),
        }
        self._run = _find_or_create(self._client, experiment, name, tags)
        self._id: str = self._run.info.run_id
        self._client.update_run(self._id, status="RUNNING")
        _log(self._client, self._run, parameters, {}, {})

    @_answering()
    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Values at a step, by name."""
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(k, float(v), now, step) for k, v in values.items()])

    @_answering()
    def file(self, path: Path, folder: str | None = None) -> None:
        """A copy of a file among the run's artifacts."""
        self._client.log_artifact(self._id, str(path), folder)

    @_answering()
    def register(self, model: str, path: Path, tags: Mapping[str, str]) -> str:
        """Make a file the newest version of a registered model; returns its address, models:/NAME/VERSION.

        The same file is not made two versions of this run.
        """
        digest = sha256_of_file(path)
        tags = {**tags, "floodlit.sha256": digest}
        try:
            self._client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for known in self._client.search_model_versions(f"name = '{model}'"):
            if known.run_id == self._id and dict(known.tags) == tags:
                return f"models:/{model}/{known.version}"
        folder = f"heads/{digest[:16]}"  # one a version, whose address is a folder with one file
        self.file(path, folder)
        source = f"{self._run.info.artifact_uri}/{folder}"
        made = self._client.create_model_version(model, source, self._id, tags=tags)
        return f"models:/{model}/{made.version}"

    @_answering()
    def end(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self._id, status)


def registered(uri: str, address: str, folder: Path) -> Path:
    """The file of a registered model, copied to ``folder``, whole or not at all.

    Raises
    ------
    ValueError
        If the address names no version, there is no such model, or it is not one file.
    """
    _, _, named = address.partition(":/")
    name, _, number = named.rpartition("/")
    if not name or not number.isdecimal():
        raise ValueError(f"{address} names no version of a registered model; write models:/NAME/VERSION")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as partial:
        try:
            source = MlflowClient(uri, uri).get_model_version_download_uri(name, number)
            with redirect_stderr(StringIO()):  # a progress bar
                found = Path(download_artifacts(artifact_uri=source, dst_path=partial, tracking_uri=uri))
        except (MlflowException, OSError) as error:
            raise ValueError(
                f"{address} is not in the model registry of {uri}: {_first_line(error)}"
            ) from error
        files = [found] if found.is_file() else sorted(path for path in found.rglob("*") if path.is_file())
        if len(files) != 1:
            raise ValueError(
                f"{address} holds {len(files)} files, not one head; register it with floodlit train"
            )
        return files[0].replace(folder / files[0].name)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def problem_with(uri: str) -> str | None:
    """Why MLflow cannot be spoken to at an address, in one line; None if it can."""
    try:
        if uri.startswith(("http://", "https://")):
            # MLflow's client tries for minutes before it says that nobody is there.
            httpx.get(f"{uri.rstrip('/')}/health", timeout=5).raise_for_status()
        else:
            with redirect_stderr(StringIO()):
                MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except Exception as error:  # of SQLAlchemy, httpx or MLflow
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None
