"""What the scores stage writes beside the metrics' numbers."""

from pathlib import Path

from runs import explained, prepared, tiny_job
from storage.query import query
from tasks.scores import scores


def test_the_forward_passes_of_each_map_can_be_queried(tmp_path: Path) -> None:
    job = tiny_job(
        tmp_path / "run",
        dataset={"kind": "digits", "limit": 5},
        explainers=[{"name": "decomcam", "components": 3}, {"name": "gradcam"}],
        metrics=[{"name": "pointing_game"}],
        controls=False,
    )
    run = explained(prepared(job))
    for name in run.explainers:
        scores.fn(str(run.root), 0, name)
    found = query(run.root, "SELECT DISTINCT explainer, forward_passes FROM scores ORDER BY explainer")
    assert found.to_pylist() == [
        {"explainer": "decomcam", "forward_passes": 4},
        {"explainer": "gradcam", "forward_passes": None},
    ]
