"""Prefect and MLflow on a real PostgreSQL: two jobs at once lose nothing, a third run extends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from places import ROOT
from runs import tiny_job, toml
from servers import ask, postgresql, prefect_and_mlflow
from storage.run import Run
from storage.tracking import EXPERIMENT
from storage.verify import verify

pytestmark = pytest.mark.service
NAMES = ("one", "another")
SHARDS = 2


@dataclass(frozen=True)
class Servers:
    """Where everything is."""

    database: str
    prefect: str
    mlflow: str
    folder: Path

    def job(self, name: str, *explainers: str) -> dict[str, Any]:
        return tiny_job(
            self.folder / name,
            name=name,
            tracking=self.mlflow,
            dataset={"kind": "digits", "limit": 16 * SHARDS},
            explainers=[{"name": explainer} for explainer in explainers],
            metrics=[{"name": "insertion", "steps": 4}],
            controls=False,
            cluster={"kind": "local", "workers": 1},
        )

    def start(self, raw: dict[str, Any]) -> subprocess.Popen[str]:
        """`floodlit run` in a process of its own."""
        file = toml(raw, self.folder / f"{raw['name']}.toml")
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run", str(file)],
            cwd=ROOT,
            env=os.environ | {"PREFECT_API_URL": self.prefect},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def task_runs(self, name: str) -> dict[str, int]:
        """How many task runs of a job are in which state, as Prefect's database has them."""
        sql = "SELECT t.state_type::text, count(*) FROM task_run t JOIN flow_run f ON t.flow_run_id = f.id"
        rows = ask(self.database, "prefect", f"{sql} WHERE f.name = '{name}' GROUP BY 1")
        return {str(state): int(str(count)) for state, count in rows}

    def tracked(self, name: str) -> dict[str, Any]:
        """The nested runs of a job by explainer, and under "none" the job's, as MLflow's client has them."""
        client = MlflowClient(self.mlflow)
        store = f"tags.`floodlit.store` = '{self.folder / name}'"
        found = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id], store)
        runs = {run.data.tags["floodlit.explainer"]: run for run in found}
        assert len(runs) == len(found), "a run is there twice"
        return runs


def ended(process: subprocess.Popen[str]) -> None:
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("servers")
    with postgresql() as database:
        for name in ("prefect", "mlflow"):
            ask(database, "postgres", f"CREATE DATABASE {name}")
        addresses = f"postgresql+asyncpg://{database}/prefect", f"postgresql+psycopg2://{database}/mlflow"
        with prefect_and_mlflow(*addresses, folder / "artifacts") as (prefect, mlflow):
            yield Servers(database, prefect, mlflow, folder)


@pytest.fixture(scope="module")
def both(servers: Servers) -> Servers:
    """Two jobs at once, on stores of their own, have ended well."""
    processes = [servers.start(servers.job(name, "gradcam", "layercam")) for name in NAMES]
    for process in processes:
        ended(process)
    return servers


@pytest.mark.parametrize("name", NAMES)
def test_every_task_run_of_two_jobs_at_once_is_in_prefects_database(both: Servers, name: str) -> None:
    assert verify(both.folder / name) == []
    assert both.task_runs(name) == {"COMPLETED": SHARDS * (2 + 2 * 2) + 1}
    flows = ask(both.database, "prefect", f"SELECT state_type::text FROM flow_run WHERE name = '{name}'")
    assert flows == [("COMPLETED",)]


@pytest.mark.parametrize("name", NAMES)
def test_scores_and_contact_sheet_are_in_mlflow(both: Servers, name: str, tmp_path: Path) -> None:
    runs, run = both.tracked(name), Run.open(both.folder / name)
    assert runs.keys() == {"none", "gradcam", "layercam"}
    for row in pq.read_table(run.summary).to_pylist():
        nested = runs[row["explainer"]].info.run_id
        assert runs[row["explainer"]].data.metrics["insertion"] == row["mean"]
        sql = f"SELECT value FROM metrics WHERE run_uuid = '{nested}' AND key = 'insertion'"
        assert ask(both.database, "mlflow", sql) == [(row["mean"],)]
    sheet = download_artifacts(
        run_id=runs["none"].info.run_id,
        artifact_path="contact_sheet.png",
        tracking_uri=both.mlflow,
        dst_path=str(tmp_path),
    )
    assert Path(sheet).read_bytes() == (run.report / "contact_sheet.png").read_bytes()


def test_the_job_run_again_with_one_more_explainer_is_extended(both: Servers) -> None:
    before = both.tracked("one")
    ended(both.start(both.job("one", "gradcam", "layercam", "cam")))
    assert both.task_runs("one") == {"COMPLETED": SHARDS * (2 + 3 * 2) + 2 + SHARDS}
    after = both.tracked("one")
    assert after.keys() == before.keys() | {"cam"}
    for name, run in before.items():
        assert after[name].info.run_id == run.info.run_id
    twice = "SELECT run_uuid, key, step FROM metrics GROUP BY 1, 2, 3 HAVING count(*) > 1"
    assert ask(both.database, "mlflow", twice) == []
