"""What the scores stage writes beside the metrics' numbers, and what it need not compute."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from explainers.models.classifier import Classifier
from runs import explained, prepared, scores_of, tiny_job
from storage.maps import read
from storage.query import query
from tasks.perform import classifier_of
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


def test_the_probability_of_each_target_is_computed_once_for_all_explainers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job(
        tmp_path / "run",
        target={"top": 2},
        dataset={"kind": "digits", "limit": 5},
        explainers=[{"name": "gradcam"}, {"name": "layercam"}],
        metrics=[{"name": "average_drop"}],
        controls=False,
    )
    run = explained(prepared(job))
    classifier = classifier_of(run)
    passes: list[int] = []
    logits = Classifier.logits

    def counted(self: Classifier, inputs: torch.Tensor) -> torch.Tensor:
        passes.append(len(inputs))
        return logits(self, inputs)

    def scored() -> tuple[int, dict[tuple[Any, ...], tuple[float | None, str]]]:
        passes.clear()
        for name in run.explainers:
            scores.fn(str(run.root), 0, name)
        return sum(passes), scores_of(run.root)

    monkeypatch.setattr(Classifier, "logits", counted)
    few, kept = scored()
    table = pq.read_table(run.root / "samples.parquet")
    with torch.inference_mode():
        expected = logits(classifier, classifier.inputs_of(torch.from_numpy(read(run.inputs, 0, 5)))).softmax(
            1
        )
    np.testing.assert_allclose(
        table["probabilities"].to_pylist(),
        expected.gather(1, torch.tensor(table["targets"].to_pylist())),
        rtol=1e-5,
    )

    part = run.root / "samples/activations/shard-00000.parquet"
    pq.write_table(pq.read_table(part).drop_columns("probabilities"), part)  # as older versions wrote it
    for record in (run.root / "done/scores").rglob("*.json"):
        record.unlink()
    more, computed = scored()
    assert more == few + 2 * 2 * 5
    assert computed.keys() == kept.keys()
    for key, (value, _) in kept.items():
        assert computed[key][0] == pytest.approx(value, rel=1e-5, abs=1e-6)
