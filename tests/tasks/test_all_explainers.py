"""Every registered explainer, through the tasks: maps, details and passes of a whole run."""

from pathlib import Path

import numpy as np
import pytest

import toys
from explainers.base import Status
from explainers.models.loading import ModelSpec, load
from explainers.registry import explainers
from explainers.requirements import unmet
from explainers.statuses import STATUSES
from runs import explained, model, prepared, tiny_job
from storage.maps import read
from storage.query import query
from tasks.scores import scores

IMAGES = 3


@pytest.mark.parametrize("kind", ["gap", "vit"])
def test_every_explainer_goes_through_a_run(kind: str, tmp_path: Path) -> None:
    with load(ModelSpec(**model(kind)), input_size=(64, 64)) as classifier:
        able = [name for name in explainers.names() if unmet(explainers.get(name).needs, classifier) is None]
        chosen = [{"name": name, **toys.parameters(name, classifier, tmp_path)} for name in able]
    job = tiny_job(
        tmp_path / "run",
        dataset={"kind": "digits", "limit": IMAGES},
        model=model(kind),
        explainers=chosen,
        controls=False,
        metrics=[{"name": "pointing_game"}],
        batch={"images": 2, "forwards": 16, "shard": 2},
    )
    run = explained(prepared(job))
    assert set(run.explainers) == set(able)
    for name, entry in run.explainers.items():
        statuses = {STATUSES[code] for code in read(run.saliency(name) / "status", 0, IMAGES)}
        assert not statuses & {Status.FAILED, Status.NOT_FINITE}, name
        assert read(run.saliency(name) / "maps", 0, IMAGES).shape == (IMAGES, *entry.grid)
        for shard in range(run.shards):
            scores.fn(str(run.root), shard, name)
    rows = query(run.root, "SELECT * FROM scores").to_pylist()
    for name, entry in run.explainers.items():
        passes = {row["forward_passes"] for row in rows if row["explainer"] == name}
        if "forward_passes" in entry.details:
            stored = read(run.saliency(name) / "details/forward_passes", 0, IMAGES)
            assert passes == set(stored.tolist()), name
            assert np.all(stored > 0), name
        else:
            assert passes == {None}, name
