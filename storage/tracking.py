"""MLflow, spoken to from one process: one parent run a job, one nested run an explainer.

Only the flow logs, with explicit run ids: several processes on a fresh SQLite store lose to each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run

from storage.files import sha256_of_json

EXPERIMENT = "floodlit"
BATCH = 900  # MLflow takes at most 1,000 metrics a call


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
    experiment = _experiment(client, store)
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


def _experiment(client: MlflowClient, store: Path) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        known: str = found.experiment_id
        return known
    created: str = client.create_experiment(
        EXPERIMENT, artifact_location=(store.parent / "mlartifacts").absolute().as_uri()
    )
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
