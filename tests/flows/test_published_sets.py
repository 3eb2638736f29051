"""Whole jobs on the field's own sets, in the layouts in which they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runs import completed, scores_of, tiny_job
from storage.samples import read_samples

NETWORK = """
from collections import OrderedDict
import torch
from torch import nn

def net(classes):
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
    return nn.Sequential(OrderedDict(features=features, head=head))

def thousand():
    return net(1000)
"""


def job(tmp_path: Path, network: str, **changes: Any) -> dict[str, Any]:
    """A job on an untrained network for images of 64x64 pixels; its controls give random and flat maps."""
    (tmp_path / "net.py").write_text(NETWORK)
    chosen: dict[str, Any] = {
        "model": {"source": f"{tmp_path}/net.py:{network}", "weights": "none", "layer": "features"}
        | {"resize": [64, 64], "crop": [64, 64], "mean": [0.5] * 3, "std": [0.25] * 3},
        "explainers": [{"name": "gradcam"}],
        "metrics": [{"name": "energy_pointing_game"}, {"name": "relevance_mass_accuracy"}],
        "batch": {"shard": 4},
    }
    return tiny_job(tmp_path / "run", **chosen | changes)


def photograph(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path, quality=90)


def test_a_whole_job_on_imagenet_has_published_labels_boxes_and_masks(tmp_path: Path) -> None:
    from storage.datasets.imagenet_labels import synsets

    classes = synsets()[100:150]
    masks = tmp_path / "validation-segmentation"
    for number, synset in enumerate(classes, start=1):
        (masks / synset).mkdir(parents=True)
        if number <= 6:
            name = f"ILSVRC2012_val_000001{number:02d}"
            photograph(tmp_path / "val" / synset / f"{name}.JPEG", (120, 80), number)
            pixels = np.zeros((80, 120, 3), np.uint8)
            pixels[20:40, 30:90, 0] = number
            Image.fromarray(pixels).save(masks / synset / f"{name}.png")
            box = "<xmin>30</xmin><ymin>20</ymin><xmax>89</xmax><ymax>39</ymax>"
            told = f"<object><name>{synset}</name><bndbox>{box}</bndbox></object>"
            size = "<size><width>120</width><height>80</height></size>"
            (tmp_path / f"{name}.xml").write_text(f"<annotation>{size}{told}</annotation>")
    dataset = {"kind": "imagenet", "path": f"{tmp_path}/val", "boxes": str(tmp_path), "masks": str(masks)}
    run = completed(job(tmp_path, "thousand", dataset=dataset, target="label"))
    samples = read_samples(run.root)
    assert [sample["target"] for sample in samples] == list(range(100, 106))
    assert run.manifest.labels == "the numbers with which the set is published, taken as the model's"
    # 120x80 becomes 64x64: columns 30..90 are 16..48, and rows 20..40 are 16..32.
    assert [sample["boxes"] for sample in samples] == [[[16.0, 16.0, 48.0, 32.0]]] * 6
    found = scores_of(run.root)
    inside = [value for (*_, metric), (value, _) in found.items() if metric == "energy_pointing_game"]
    masked = [value for (*_, metric), (value, _) in found.items() if metric == "relevance_mass_accuracy"]
    # The mask is the box: both metrics are the share of the map that lies in it.
    assert len(inside) == 6 * len(run.explainers)
    np.testing.assert_allclose(inside, masked, atol=1e-6)
    assert 0.01 < min(inside) < max(inside) < 0.6
    assert completed(job(tmp_path, "thousand", dataset=dataset, target="label")).root == run.root


@pytest.mark.parametrize("key", ["labels", "boxes", "masks"])
def test_a_file_that_is_not_there_is_one_line_before_any_worker_starts(tmp_path: Path, key: str) -> None:
    from flows.job import JobError

    photograph(tmp_path / "val" / "ILSVRC2012_val_00000101.JPEG", (120, 80), 0)
    (tmp_path / "list").write_text("ILSVRC2012_val_00000101.JPEG 7")
    keys = {"labels": f"{tmp_path}/list", key: f"{tmp_path}/nowhere"}
    with pytest.raises(JobError, match="nowhere") as refused:
        completed(job(tmp_path, "thousand", dataset={"kind": "imagenet", "path": f"{tmp_path}/val", **keys}))
    assert str(refused.value).startswith("dataset")
    assert refused.value.exit_code == 2
