"""Logging to MLflow from one process: one parent run per job, one nested run per explainer.

A training has one run. Only the flow process logs, with explicit run ids, because several processes that use
a new SQLite database at the same time make each other fail.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.csv
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from storage.errors import LONGEST, FloodlitError, one_line
from storage.files import sha256_of_file, sha256_of_json
from storage.places import is_remote

EXPERIMENT = "floodlit"
# MLflow's pages show an experiment of this kind as models in training. Those with a switch between models and
# GenAI ask the address instead.
KIND = {"mlflow.experimentKind": "custom_model_development"}
AS_TRAINING = "workflowType=machine_learning"
NOTE, TOLD = "mlflow.note.content", "floodlit.told"  # tags: MLflow's description of a run, and what we wrote
QUOTED = 500  # most characters of MLflow's messages that our messages quote
BATCH = 900  # MLflow takes at most 1,000 metrics per call
SQLITE = "sqlite:///"
# By default MLflow's client retries for 4 minutes and waits 2 minutes for every answer. These values still
# outlast the restart of a server (28 s of retries). Values that the user has set are kept.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


class TrackingError(FloodlitError):
    """A request to MLflow failed; the message is one line that says what to do."""


@dataclass(frozen=True)
class Result:
    """The results that are logged in one run.

    MLflow shows every number in a list, so these are few; everything else belongs into the tables.

    Attributes
    ----------
    parameters, numbers, curves
        By name.
    tables
        Tables by the name of their CSV file.
    """

    parameters: Mapping[str, Any]
    numbers: Mapping[str, float]
    curves: Mapping[str, Sequence[float]]
    tables: Mapping[str, pa.Table] = field(default_factory=dict)


def default_uri(store: Path) -> str:
    """Return the URI of an SQLite file beside the run folder, which neighbouring runs share."""
    return f"{SQLITE}{store.parent / 'mlflow.db'}"


def _client(uri: str) -> MlflowClient:
    """Return a client of the MLflow server or database at ``uri``."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    # The first client creates the tables of an SQLite file; two clients must not do this at the same time.
    path = Path(uri.removeprefix(SQLITE).partition("?")[0])
    alone = FileLock(path.with_name(f".{path.name}.guard")) if uri.startswith(SQLITE) else nullcontext()
    with alone:
        return MlflowClient(uri, uri)


def track(
    uri: str,
    store: Path,
    name: str,
    identity: str,
    whole: Result,
    results: Mapping[str, Result],
    files: Sequence[Path],
    told: str = "",
) -> str:
    """Log a finished job; return the id of its parent run in MLflow.

    A job that was resumed or extended uses its existing MLflow runs, and no second ones are created.

    Parameters
    ----------
    uri
        Address of the MLflow server or database.
    store
        The run folder.
    name
        Name of the parent run.
    identity
        Hash of the run's settings. Together with ``store`` it identifies the MLflow runs of a job.
    whole
        Parameters and numbers of the parent run.
    results
        Results by explainer.
    files
        Files that are logged as artifacts of the parent run, such as pictures.
    told
        What the results say, which MLflow shows at the head of the parent run, unless a person has written
        something there.

    Raises
    ------
    TrackingError
        If MLflow fails.
    """
    with _answering(f"run the same job again, which only logs to MLflow: the results are in {store}"):
        client = _client(uri)
        experiment = _experiment(client, uri, store)
        # A digest, because a search in MLflow cannot escape a quote in a path.
        key = sha256_of_json([str(store), identity])
        tags = {"floodlit.run": key, "floodlit.explainer": "none", "floodlit.store": str(store)}
        parent = _find_or_create(client, experiment, name, tags)
        _log_parameters(client, parent, whole.parameters)
        _log_result(client, parent, whole)
        for file in files:
            client.log_artifact(parent.info.run_id, str(file))
        if told and parent.data.tags.get(NOTE) == parent.data.tags.get(TOLD):
            for tag in (TOLD, NOTE):
                client.set_tag(parent.info.run_id, tag, told)
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
    """Return the address of a run's page in MLflow's UI, relative to the address of the server."""
    with _answering():
        experiment = _client(uri).get_run(run_id).info.experiment_id
    return f"#/experiments/{experiment}/runs/{run_id}?{AS_TRAINING}"


def page_of_all(uri: str) -> str:
    """Return the address of the page with all runs, relative to the address of the server."""
    with _answering():
        found = _client(uri).get_experiment_by_name(EXPERIMENT)
    return f"#/experiments/{found.experiment_id}?{AS_TRAINING}"


def _experiment(client: MlflowClient, uri: str, store: Path) -> str:
    """Return the id of Floodlit's experiment, which is created if it does not exist."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        known: str = found.experiment_id
        for tag, kind in KIND.items():
            if tag not in found.tags:
                client.set_experiment_tag(known, tag, kind)
        return known
    # A server stores files in a place that all clients can reach. A database stores none: they need a folder.
    served = uri.startswith(("http:", "https:"))
    beside = Path(uri.removeprefix(SQLITE)) if is_remote(store) else store
    folder = None if served else (beside.parent / "mlartifacts").absolute().as_uri()
    try:
        created: str = client.create_experiment(EXPERIMENT, artifact_location=folder, tags=KIND)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another job may have created it meanwhile
            raise
        created = client.get_experiment_by_name(EXPERIMENT).experiment_id
    return created


def _find_or_create(client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str]) -> Run:
    """Return the run that has the same tags; create it if it does not exist."""
    searched = ("floodlit.run", "floodlit.explainer")
    clauses = " and ".join(f"tags.`{key}` = '{tags[key]}'" for key in searched)
    for run in client.search_runs([experiment], clauses):
        return run
    return client.create_run(experiment, run_name=name, tags=dict(tags))


def _log_parameters(client: MlflowClient, run: Run, parameters: Mapping[str, Any]) -> None:
    """Log the parameters that the run does not have yet; MLflow refuses to change a parameter."""
    new = [Param(key, str(value)) for key, value in parameters.items() if key not in run.data.params]
    client.log_batch(run.info.run_id, params=new)


def _log_result(client: MlflowClient, run: Run, result: Result) -> None:
    """Log the tables, and the values that the run does not have yet.

    MLflow keeps every value that is logged for a step and shows the last one, so a value that has not changed
    is not logged again.
    """
    points = [(key, 0, value) for key, value in result.numbers.items()]
    for key, curve in result.curves.items():
        points += [(f"curve/{key}", step, value) for step, value in enumerate(curve)]
    for name, table in result.tables.items():
        client.log_text(run.info.run_id, _csv(table), name)
    known = _logged(client, run)
    now = int(time.time() * 1000)
    new = [
        Metric(key, float(value), now, step)
        for key, step, value in points
        if not _same(known.get((key, step)), float(value))
    ]
    for start in range(0, len(new), BATCH):
        client.log_batch(run.info.run_id, metrics=new[start : start + BATCH])


def _csv(table: pa.Table) -> str:
    """A table as CSV, which MLflow's pages show; columns of lists and structs are left out."""
    flat = [each.name for each in table.schema if not pa.types.is_nested(each.type)]
    buffer = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table.select(flat), buffer)
    text: str = buffer.getvalue().to_pybytes().decode()
    return text


def _logged(client: MlflowClient, run: Run) -> dict[tuple[str, int], float]:
    """Return the last value that was logged in a run, by metric and step."""
    points: Iterable[Metric] = (
        point for key in run.data.metrics for point in client.get_metric_history(run.info.run_id, key)
    )
    return {(point.key, point.step): point.value for point in sorted(points, key=lambda p: p.timestamp)}


def _same(one: float | None, other: float) -> bool:
    """Whether two values are equal; NaN equals NaN here."""
    return one is not None and (one == other or (math.isnan(one) and math.isnan(other)))


@contextmanager
def _answering(then: str = "run the same job again to continue") -> Iterator[None]:
    """Raise every error of MLflow, its database or its artifact store as a TrackingError.

    ``then`` says in the message what to do after the problem is solved.
    """
    try:
        yield
    except Exception as error:
        raise TrackingError(
            f"tracking: MLflow says {one_line(error, QUOTED)}; solve this problem, then {then}"
        ) from error


class TrainingLog:
    """The MLflow run of one training; it is resumed together with the training.

    Every method raises TrackingError if MLflow fails.

    Parameters
    ----------
    uri
        Address of the MLflow server or database.
    store
        The training's folder.
    name
        Name of the run.
    identity
        Hash of the training's settings. Together with ``store`` it identifies the MLflow run of a training.
    parameters
        The job with all defaults filled in, without nesting.
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
        """Log values by name at a step; a value that was logged before the training stopped is kept."""
        now = int(time.time() * 1000)
        new = {key: float(value) for key, value in values.items() if (key, step) not in self._before}
        self._client.log_batch(self._id, metrics=[Metric(k, value, now, step) for k, value in new.items()])

    @cached_property
    def _before(self) -> set[tuple[str, int]]:
        """Metrics and steps that the run had when this process started.

        After a kill they may reach beyond the checkpoint, since the steps after it were logged and are
        trained again.
        """
        return set(_logged(self._client, self._run))

    @_answering()
    def file(self, path: Path, folder: str | None = None) -> None:
        """Copy a file to the run's artifacts, into ``folder`` if it is given."""
        self._client.log_artifact(self._id, str(path), folder)

    @_answering()
    def register(self, model: str, path: Path, tags: Mapping[str, str]) -> str:
        """Register a file as the newest version of a model; return its address, models:/NAME/VERSION.

        A file that this run has registered before does not become a second version.
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
        folder = f"heads/{digest[:16]}"  # each version needs a folder that holds only its file
        self.file(path, folder)
        source = f"{self._run.info.artifact_uri}/{folder}"
        made = self._client.create_model_version(model, source, self._id, tags=tags)
        return f"models:/{model}/{made.version}"

    @_answering()
    def end(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self._id, status)


def registered(uri: str, address: str, folder: Path) -> Path:
    """Copy the file of a registered model to ``folder``, whole or not at all; return the copy.

    Parameters
    ----------
    uri
        Address of the MLflow server or database.
    address
        Address of the version, models:/NAME/VERSION.
    folder
        Folder of the copy, which is created.

    Raises
    ------
    ValueError
        If the address names no version, if there is no such model, or if it is not exactly one file.
    """
    _, _, named = address.partition(":/")
    name, _, number = named.rpartition("/")
    if not name or not number.isdecimal():
        raise ValueError(f"{address} names no version of a registered model; write models:/NAME/VERSION")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as partial:
        try:
            source = _client(uri).get_model_version_download_uri(name, number)
            with redirect_stderr(StringIO()):  # MLflow draws a progress bar
                found = Path(download_artifacts(artifact_uri=source, dst_path=partial, tracking_uri=uri))
        except (MlflowException, OSError) as error:
            raise ValueError(
                f"{address} is not in the model registry of {uri}: {one_line(error, QUOTED)}"
            ) from error
        files = [found] if found.is_file() else sorted(path for path in found.rglob("*") if path.is_file())
        if len(files) != 1:
            raise ValueError(
                f"{address} holds {len(files)} files, not one head; register it with floodlit train"
            )
        return files[0].replace(folder / files[0].name)


def problem_with(uri: str) -> str | None:
    """Return in one line why MLflow cannot be used at an address; None if it can."""
    try:
        if uri.startswith(("http://", "https://")):
            # This request fails at once if no server is there, while MLflow's client retries for some time.
            # The client below then finds out, with its credentials, whether the server is MLflow and lets us
            # in. Certificates are left to the client as well.
            httpx.get(f"{uri.rstrip('/')}/health", timeout=30, verify=False)
        with redirect_stderr(StringIO()):
            _client(uri).search_experiments(max_results=1)
    except Exception as error:  # an error of SQLAlchemy, httpx or MLflow
        return f"{type(error).__name__}: {one_line(error, LONGEST)}"
    return None
