"""What the scores stage writes beside the metrics' numbers, and what it need not compute."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from explainers.models.classifier import Classifier
from runs import explained, prepared, tiny_job
from storage.maps import read
from storage.query import query
from tasks.run_parts import classifier_of
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

    monkeypatch.setattr(Classifier, "logits", counted)
    for name in run.explainers:
        scores.fn(str(run.root), 0, name)
    assert sum(passes) == 2 * 2 * 5 * 3  # explainers, targets, images and levels: none for the whole inputs
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
