"""What a run records of its model's weights, and what of a job is no part of a run."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flows.job import Job, JobError
from flows.job_commands import _taken
from flows.prepare import prepare
from runs import model, prepared, tiny_job
from storage.run import Run
from tasks.results.headline import headline
from tasks.run_parts import classifier_of


def two_sets(folder: Path) -> dict[str, str]:
    """A model whose file holds weights, and their average in half precision."""
    table = model("gap")
    state = load_file(table["weights"])
    halves = {f"module.{name}": (0.9 * value).half() for name, value in state.items()}
    torch.save({"model": state, "ema": halves}, folder / "two.pth")
    return table | {"weights": str(folder / "two.pth")}


def test_which_weights_were_taken_is_recorded_and_workers_take_the_same(tmp_path: Path) -> None:
    table = two_sets(tmp_path)
    with pytest.raises(
        JobError, match=r"^model\.weights_key: .*'model', 'ema\.module'; name the one to take"
    ):
        prepare(Job.model_validate(tiny_job(tmp_path / "run", model=table)))
    assert not (tmp_path / "run").exists()
    run = prepare(Job.model_validate(tiny_job(tmp_path / "run", model=table | {"weights_key": "ema"})))
    taken = Run.open(run.root).manifest.weights
    own = load_file(model("gap")["weights"])
    assert taken == {
        "key": "ema.module",
        "others": ["model"],
        "cast": {"float16": len(own)},
        "in_order": False,
    }
    loaded = classifier_of(run).network.state_dict()
    weights = {name: value for name, value in own.items() if value.is_floating_point()}
    assert all(torch.equal(loaded[name], (0.9 * value).half().float()) for name, value in weights.items())
    assert _taken(taken) == (
        f"those at ema.module in the file; model would fit as well; {len(own)} tensors were cast from float16"
    )


def test_that_weights_were_taken_in_order_is_recorded_and_workers_take_the_same(tmp_path: Path) -> None:
    own = classifier_of(prepare(Job.model_validate(tiny_job(tmp_path / "own")))).network.state_dict()
    renamed = {name.replace("features", "body").replace("head", "top"): value for name, value in own.items()}
    assert not renamed.keys() & own.keys()
    torch.save(renamed, tmp_path / "renamed.pth")
    table = model("gap") | {"weights": str(tmp_path / "renamed.pth")}
    run = prepare(Job.model_validate(tiny_job(tmp_path / "run", model=table)))
    assert run.manifest.weights == {"key": "", "others": [], "cast": {}, "in_order": True}
    loaded = classifier_of(run).network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in own.items() if value.is_floating_point())
    assert _taken(run.manifest.weights) == (
        "those of the whole file, in its order, since its names are not the network's"
    )


def test_the_headline_names_ranked_columns_and_changes_no_run(tmp_path: Path) -> None:
    raw = tiny_job(tmp_path / "run", explainers=[{"name": "gradcam"}])
    first = prepared(raw)
    for wrong in ("pointing_game_center", "road"):  # a reference, and a metric that the job has not
        told = rf"^headline: {wrong} is no ranked column .*; choose from insertion, pointing_game$"
        with pytest.raises(JobError, match=told):
            prepared(raw | {"headline": ["insertion", wrong]})
    with pytest.raises(ValueError, match="column insertion is named twice"):
        prepared(raw | {"headline": ["insertion", "insertion"]})
    again = prepared(raw | {"headline": ["pointing_game"]})
    assert (again.hash, again.manifest.updates) == (first.hash, [])
    assert headline(first.manifest) == ["insertion", "pointing_game"]
    assert headline(again.manifest) == ["pointing_game"]
