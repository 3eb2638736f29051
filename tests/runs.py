"""Helpers for tests: tiny jobs, small runs without Prefect, and functions that read and compare runs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import numpy as np
import torch
import zarr
from PIL import Image

from explainers.base import Batch, Description, Detail, Explanation, Need, Parameters, Status
from places import ROOT
from storage.datasets import digits
from storage.files import replacing
from storage.layout import COORDINATES
from storage.parquet import read_table
from storage.query import query
from storage.records import finished
from storage.run import Run
from storage.samples import merge_samples

KEYS = ("sample_id", "target", "explainer", "metric")

# A plug-in with a slow explainer, so that tests can kill a process in the middle of a shard.
SLOW = """
import time
from explainers.base import Batch, Description, Explanation, Parameters, statuses_of


class Slow:
    name = "slow"
    title = "sleeps"
    needs = frozenset()
    Parameters = Parameters

    def __init__(self, classifier, parameters):
        pass

    def describe(self):
        return Description(grid=(2, 2))

    def explain(self, batch):
        time.sleep(0.4)
        maps = batch.inputs[:, 0, :2, :2].float()
        return Explanation(maps, statuses_of(maps))
"""


def model(kind: str) -> dict[str, str]:
    """The ``[model]`` table of one of the demo's networks: gap, mlp, vit or small."""
    weights = f"{ROOT}/examples/weights/digits-{kind}.safetensors"
    layer = {} if kind == "vit" else {"layer": "features"}
    return {"source": f"{ROOT}/examples/digits.py:{kind}", "weights": weights} | layer


def tiny_job(store: str | Path, **changes: Any) -> dict[str, Any]:
    """A small raw job on the demo's digits and the network gap; keyword arguments replace its keys."""
    job: dict[str, Any] = {
        "name": "tiny",
        "store": str(store),
        "dataset": {"kind": "digits", "limit": 40},
        "model": model("gap"),
        "explainers": [{"name": "ddcam"}, {"name": "gradcam"}],
        "metrics": [{"name": "insertion", "steps": 4}, {"name": "pointing_game"}],
        "cluster": {"kind": "local", "workers": 2},
        "batch": {"shard": 16},
    }
    return job | changes


def toml(raw: dict[str, Any], path: Path) -> Path:
    """Write a raw job to a TOML file; returns the path."""

    def told(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(key)} = {told(inner)}" for key, inner in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(told, value)) + "]"
        if isinstance(value, float):
            return repr(value)
        return json.dumps(value, ensure_ascii=False)

    path.write_text("\n".join(f"{key} = {told(value)}" for key, value in raw.items()), encoding="utf-8")
    return path


def prepared(raw: dict[str, Any]) -> Run:
    """Create the run of a raw job, in which nothing has been computed yet."""
    from flows.job import Job
    from flows.prepare import prepare

    return prepare(Job.model_validate(raw))


def explained(run: Run) -> Run:
    """Read and explain a run by calling the functions of its tasks in order; nothing is scored."""
    from tasks.activations import activations
    from tasks.inputs import inputs
    from tasks.saliency import saliency

    for shard in range(run.shards):
        inputs.fn(str(run.root), shard)
        activations.fn(str(run.root), shard, keep=run.manifest.activation_shape is not None)
        for name in run.explainers:
            saliency.fn(str(run.root), shard, name)
    merge_samples(run.root, run.shards)
    return run


def create_array(path: Path, rows: int, shape: tuple[int, ...], dtype: str, *, shard_rows: int) -> None:
    """Create one array, as a run does for all of its arrays."""
    from storage import maps

    with replacing(path / "zarr.json") as partial:
        partial.write_bytes(maps.array_metadata(rows, shape, dtype, shard_rows))


def images_read(store: Path, **dataset: Any) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The samples of a dataset of a few images, and their pixels as the demo's network gets them."""
    from storage.maps import read
    from storage.samples import read_sample_inputs
    from tasks.inputs import inputs

    metrics = [{"name": "insertion", "steps": 2}]
    chosen = {"dataset": dataset, "explainers": [{"name": "gradcam"}], "metrics": metrics}
    run = prepared(tiny_job(store, **chosen, batch={"shard": 8}))
    inputs.fn(str(run.root), 0)
    return read_sample_inputs(run.root, 0), read(run.inputs, 0, run.rows)


def completed(raw: dict[str, Any]) -> Run:
    """Run a raw job, or what is left of it, as the flow does, but without Prefect, Dask and MLflow."""
    from flows.resume import remaining
    from storage.verify import repair, verify
    from tasks.activations import activations
    from tasks.inputs import inputs
    from tasks.saliency import saliency
    from tasks.scores import scores
    from tasks.summary import write_results

    run = prepared(raw)
    repair(run.root, verify(run.root))
    for step in remaining(run):
        match step.stage:
            case "inputs":
                inputs.fn(str(run.root), step.shard)
            case "activations":
                activations.fn(str(run.root), step.shard, keep=run.manifest.activation_shape is not None)
            case "saliency":
                saliency.fn(str(run.root), step.shard, step.explainer)
            case _:
                scores.fn(str(run.root), step.shard, step.explainer)
    write_results(run)
    return run


def command(job: Path, store: Path) -> subprocess.Popen[str]:
    """Start ``floodlit run`` in a separate process and process group."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_LOGGING")}
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", str(job), "--store", str(store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=ROOT,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until the condition holds; fail after this many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not hold within {seconds} s"
        time.sleep(0.05)


def saliency_done(root: Path) -> int:
    """The number of finished saliency steps, one per shard and explainer."""
    return sum(step.stage == "saliency" for step in finished(root))


def newest_flow_run(name: str) -> UUID:
    """The id of the flow run with this name that was created last."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    named = FlowRunFilter(name=FlowRunFilterName(any_=[name]))
    with get_client(sync_client=True) as client:
        return max(client.read_flow_runs(flow_run_filter=named), key=lambda run: run.created).id


def task_runs_of(flow_run: UUID) -> list[Any]:
    """The task runs of a flow run in Prefect; without a filter it returns the first 200 of all flow runs."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with get_client(sync_client=True) as client:
        found: list[Any] = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))
        )
    return found


class Quadrants:
    """A fake explainer that decomposes: component i is i + 1 in quadrant i and negative everywhere else.

    Each of the demo's classes has another permutation of the weights.
    """

    name: ClassVar[str] = "runs:Quadrants"
    title: ClassVar[str] = "quadrants"
    needs: ClassVar[frozenset[Need]] = frozenset()
    Parameters: ClassVar[type[Parameters]] = Parameters

    WEIGHTS = torch.tensor(list(permutations([0.25, 1.0, 0.0, 0.5])))  # (24, 4), one row per class
    GAINS = torch.tensor([0.1, 2.0, -1.5, 0.004])
    SINGULAR_VALUES = torch.tensor([4.0, 3.0, 2.0, 1.0])

    def __init__(self, classifier: Any, parameters: Parameters) -> None:
        pass

    def describe(self) -> Description:
        one = Detail((4,), "float32")
        components = Detail((4, 2, 2), "float32")
        return Description(
            (2, 2), {"components": components, "weights": one, "d": one, "singular_values": one}
        )

    def explain(self, batch: Batch) -> Explanation:
        components = (torch.diag(torch.arange(2.0, 6.0)) - 1).view(1, 4, 2, 2).expand(len(batch), -1, -1, -1)
        weights = self.WEIGHTS[batch.targets]
        maps = torch.einsum("bq,bqhw->bhw", weights, components.relu())
        details = {
            "components": components,
            "weights": weights,
            "d": self.GAINS.expand(len(batch), -1),
            "singular_values": self.SINGULAR_VALUES.expand(len(batch), -1),
        }
        return Explanation(maps, [Status.OK] * len(batch), details)


def decomposed(folder: Path, **changes: Any) -> Run:
    """A run of Grad-CAM and :class:`Quadrants` on six files, one of them damaged, in shards of three."""
    (folder / "b").mkdir()
    lines = ["file,label,xmin,ymin,xmax,ymax"]
    for index in range(5):
        sample = digits.sample("test", index)
        Image.fromarray(sample.image).save(folder / "b" / f"{index}.png")
        lines.append(",".join(map(str, [f"b/{index}.png", sample.label, *sample.box])))
    (folder / "b" / "broken.png").write_bytes(b"no image")
    lines.insert(3, "b/broken.png,0,1,1,9,9")
    (folder / "listing.csv").write_text("\n".join(lines))
    chosen: dict[str, Any] = {
        "dataset": {"kind": "csv", "path": str(folder / "listing.csv")},
        "explainers": [{"name": "gradcam"}, {"name": "runs:Quadrants"}],
        "controls": False,
        "batch": {"shard": 3},
    }
    return explained(prepared(tiny_job(folder / "run", **chosen | changes)))


def maps_of(root: Path) -> dict[str, np.ndarray]:
    """All arrays of ``saliency.zarr`` by path, but for the coordinates."""
    group = zarr.open_group(str(root / "saliency.zarr"), mode="r")
    found: dict[str, np.ndarray] = {}
    for name in Run.open(root).manifest.explainers:
        for path, member in group[name].members(max_depth=None):
            if isinstance(member, zarr.Array) and path not in COORDINATES:
                found[f"{name}/{path}"] = member[:]
    return found


def scores_of(root: Path) -> dict[tuple[Any, ...], tuple[float | None, str]]:
    """Value and status by (sample, target, explainer, metric); a duplicate row is an error."""
    rows = query(root, "SELECT * FROM scores").to_pylist()
    found = {tuple(row[key] for key in KEYS): (row["value"], row["status"]) for row in rows}
    assert len(found) == len(rows), "a score is stored twice"
    return found


def assert_same_results(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    """Assert that two runs have the same maps, details, scores and samples.

    Shards, workers and interruptions may differ.

    Parameters
    ----------
    one, other
        The run folders.
    tolerance
        Absolute and relative, for maps and details.
    """
    maps, others = maps_of(one), maps_of(other)
    assert maps.keys() == others.keys()
    for path, values in maps.items():
        np.testing.assert_allclose(values, others[path], rtol=tolerance, atol=tolerance, err_msg=path)
    scores, other_scores = scores_of(one), scores_of(other)
    assert scores.keys() == other_scores.keys()
    for key, (value, status) in scores.items():
        assert status == other_scores[key][1], key
        if value is None:
            assert other_scores[key][0] is None, key
        else:
            np.testing.assert_allclose(value, other_scores[key][0], rtol=1e-3, atol=1e-4, err_msg=str(key))
    samples, other_samples = (read_table(root / "samples.parquet").to_pylist() for root in (one, other))
    assert [s["sample_id"] for s in samples] == [s["sample_id"] for s in other_samples]
    for key in ("label", "prediction", "target", "boxes", "status", "error"):
        assert [s[key] for s in samples] == [s[key] for s in other_samples], key
