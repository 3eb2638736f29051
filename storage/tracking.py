"""MLflow, spoken to from one process: one parent run a job, one nested run an explainer; one run a training.

Only the flow logs, with explicit run ids: several processes on a fresh SQLite store lose to each other.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from storage.files import sha256_of_file, sha256_of_json
from storage.places import is_remote

EXPERIMENT = "floodlit"
BATCH = 900  # MLflow takes at most 1,000 metrics a call
SQLITE = "sqlite:///"
# MLflow's client tries for 4 minutes, and waits 2 for every answer. These outlive a server that is started
# again (28 s of tries); who sets them is obeyed.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


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
    return f"{SQLITE}{store.parent / 'mlflow.db'}"


def _client(uri: str) -> MlflowClient:
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    # The first client makes the tables of an SQLite file, which no other may do at the same time.
    path = Path(uri.removeprefix(SQLITE).partition("?")[0])
    alone = FileLock(path.with_name(f".{path.name}.guard")) if uri.startswith(SQLITE) else nullcontext()
    with alone:
        return MlflowClient(uri, uri)


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

    Raises
    ------
    TrackingError
        If MLflow fails.
    """
    with _answering(f"run the same job again, which only tracks: the results are in {store}"):
        client = _client(uri)
        experiment = _experiment(client, uri, store)
        # A digest, because the search below has no way to quote a quote in a path.
        key = sha256_of_json([str(store), identity])
        tags = {"floodlit.run": key, "floodlit.explainer": "none", "floodlit.store": str(store)}
        parent = _find_or_create(client, experiment, name, tags)
        _log_parameters(client, parent, parameters)
        for picture in pictures:
            client.log_artifact(parent.info.run_id, str(picture))
        for explainer, result in results.items():
            nested = tags | {"floodlit.explainer": explainer, "mlflow.parentRunId": parent.info.run_id}
            child = _find_or_create(client, experiment, explainer, nested)
            _log_parameters(client, child, result.parameters)
            _log_result(client, child, result)
            client.set_terminated(child.info.run_id)
        client.set_terminated(parent.info.run_id)
        run_id: str = parent.info.run_id
        return run_id


def page_of(uri: str, run_id: str) -> str:
    """Where MLflow's pages show a run, below the address of the server."""
    with _answering():
        experiment = _client(uri).get_run(run_id).info.experiment_id
    return f"#/experiments/{experiment}/runs/{run_id}"


def _experiment(client: MlflowClient, uri: str, store: Path) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        known: str = found.experiment_id
        return known
    # A server keeps files itself, where others find them; a database does not.
    served = uri.startswith(("http:", "https:"))
    beside = Path(uri.removeprefix(SQLITE)) if is_remote(store) else store
    folder = None if served else (beside.parent / "mlartifacts").absolute().as_uri()
    try:
        created: str = client.create_experiment(EXPERIMENT, artifact_location=folder)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # by another job, since it was looked for
            raise
        created = client.get_experiment_by_name(EXPERIMENT).experiment_id
    return created


def _find_or_create(client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str]) -> Run:
    searched = ("floodlit.run", "floodlit.explainer")
    clauses = " and ".join(f"tags.`{key}` = '{tags[key]}'" for key in searched)
    for run in client.search_runs([experiment], clauses):
        return run
    return client.create_run(experiment, run_name=name, tags=dict(tags))


def _log_parameters(client: MlflowClient, run: Run, parameters: Mapping[str, Any]) -> None:
    new = [Param(key, str(value)) for key, value in parameters.items() if key not in run.data.params]
    client.log_batch(run.info.run_id, params=new)


def _log_result(client: MlflowClient, run: Run, result: ExplainerResult) -> None:
    """Log what the run does not have yet: MLflow keeps every value of a step, and shows the last one."""
    points = [(key, 0, value) for key, value in result.numbers.items()]
    for key, curve in result.curves.items():
        points += [(f"curve/{key}", step, value) for step, value in enumerate(curve)]
    known = _logged(client, run)
    now = int(time.time() * 1000)
    new = [
        Metric(key, float(value), now, step)
        for key, step, value in points
        if not _same(known.get((key, step)), float(value))
    ]
    for start in range(0, len(new), BATCH):
        client.log_batch(run.info.run_id, metrics=new[start : start + BATCH])


def _logged(client: MlflowClient, run: Run) -> dict[tuple[str, int], float]:
    """The last value that was logged in a run, by metric and step."""
    points: Iterable[Metric] = (
        point for key in run.data.metrics for point in client.get_metric_history(run.info.run_id, key)
    )
    return {(point.key, point.step): point.value for point in sorted(points, key=lambda p: p.timestamp)}


def _same(one: float | None, other: float) -> bool:
    return one is not None and (one == other or (math.isnan(one) and math.isnan(other)))


@contextmanager
def _answering(then: str = "run the same job again to continue") -> Iterator[None]:
    """Whatever MLflow, its database or its store of artifacts raises is a TrackingError."""
    try:
        yield
    except Exception as error:
        raise TrackingError(f"tracking: MLflow says {_first_line(error)}; mend that, and {then}") from error


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
        self._client = _client(uri)
        experiment = _experiment(self._client, uri, store)
        tags = {
            "floodlit.run": sha256_of_json([str(store), identity]),
            "floodlit.explainer": "training",
            "floodlit.store": str(store),
        }
        self._run = _find_or_create(self._client, experiment, name, tags)
        self._id: str = self._run.info.run_id
        self._client.update_run(self._id, status="RUNNING")
        _log_parameters(self._client, self._run, parameters)

    @_answering()
    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Values at a step, by name; those of a step that was logged before the training was stopped stay."""
        now = int(time.time() * 1000)
        new = {key: float(value) for key, value in values.items() if (key, step) not in self._before}
        self._client.log_batch(self._id, metrics=[Metric(k, value, now, step) for k, value in new.items()])

    @cached_property
    def _before(self) -> set[tuple[str, int]]:
        """What the run had when the training began or went on: more than the checkpoint, if it was killed."""
        return set(_logged(self._client, self._run))

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
            source = _client(uri).get_model_version_download_uri(name, number)
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
    return str(error).partition("\n")[0] or type(error).__name__


def without_user(uri: str) -> str:
    """An address as it may be shown: without user and password."""
    parts = urlsplit(uri)
    user, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=host).geturl() if user else uri


def problem_with(uri: str) -> str | None:
    """Why MLflow cannot be spoken to at an address, in one line; None if it can."""
    try:
        if uri.startswith(("http://", "https://")):
            # At once, where MLflow's client tries for a while before it says that nobody is there. Whether
            # what answers is MLflow, and lets us in, its client knows, with its credentials.
            httpx.get(f"{without_user(uri).rstrip('/')}/health", timeout=30, verify=False)
        with redirect_stderr(StringIO()):
            _client(uri).search_experiments(max_results=1)
    except Exception as error:  # of SQLAlchemy, httpx or MLflow
        told = " ".join(str(error).split()).replace(uri.rstrip("/"), without_user(uri).rstrip("/"))
        return f"{type(error).__name__}: {told[:200]}"
    return None
