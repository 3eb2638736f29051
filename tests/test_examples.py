"""The demo's classifiers are as good as promised, small, recognised, and its jobs are valid."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from explainers.models.loading import ModelSpec, load
from explainers.probes.additivity import additive_head
from flows.job import Job
from flows.job_file import read_job
from flows.train_job import TrainJob
from places import ROOT
from storage.datasets import digits

EXAMPLES = ROOT / "examples"
COUNT = 1000


@pytest.fixture(scope="module")
def held_out() -> tuple[torch.Tensor, torch.Tensor]:
    samples = [digits.sample("test", index) for index in range(COUNT)]
    pixels = np.stack([sample.image.transpose(2, 0, 1) for sample in samples])
    return torch.from_numpy(pixels).float() / 255, torch.tensor([sample.label for sample in samples])


def classifier(name: str):
    spec = ModelSpec(
        source=f"{EXAMPLES}/digits.py:{name}",
        weights=f"{EXAMPLES}/weights/digits-{name}.safetensors",
        layer=None if name == "vit" else "features",
    )
    return load(spec, input_size=(64, 64))


@pytest.mark.parametrize(("name", "least"), [("gap", 0.95), ("mlp", 0.95), ("vit", 0.90)])
def test_committed_weights_reach_their_accuracy(
    name: str, least: float, held_out: tuple[torch.Tensor, torch.Tensor]
) -> None:
    pixels, labels = held_out
    with classifier(name) as model, torch.inference_mode():
        predicted = torch.cat([model.logits(chunk).argmax(1) for chunk in pixels.split(100)])
    assert float((predicted == labels).float().mean()) > least


def test_heads_are_what_they_were_chosen_for() -> None:
    with classifier("gap") as gap, classifier("mlp") as mlp, classifier("vit") as vit:
        assert additive_head(gap) is not None
        assert additive_head(mlp) is None
        assert additive_head(vit) is None
        assert (gap.units.kind, gap.units.count, gap.grid) == ("channels", 64, (8, 8))
        assert (vit.units.kind, vit.units.count, vit.grid) == ("tokens", 64, (8, 8))
        assert vit.supports_patches


def test_committed_weights_stay_small() -> None:
    files = [file for file in (EXAMPLES / "weights").rglob("*") if file.is_file()]
    digits_of = {f"digits-{name}.safetensors" for name in ("gap", "mlp", "vit", "small", "ptame")}
    assert {file.name for file in files if file.parent.name == "weights"} == digits_of | {
        "planted-corner.safetensors"
    }
    assert sum(file.stat().st_size for file in files) < 2_600_000


@pytest.mark.parametrize("job", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_a_valid_job(job: Path) -> None:
    kind = TrainJob if job.stem == "digits-ptame" else Job
    assert read_job(job, kind).store.parent == ROOT / "runs"


@pytest.mark.parametrize("job", sorted((EXAMPLES / "clusters").glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_of_a_cluster_is_a_valid_job(job: Path) -> None:
    assert read_job(job, Job).cluster.kind in {"cuda", "class"}


def test_exported_images_and_manifest_are_what_the_digits_are(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "digits.py"), "images", str(tmp_path), "--count", "3"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = list(csv.DictReader((tmp_path / "digits.csv").open()))
    for index, row in enumerate(rows):
        sample = digits.sample("test", index)
        assert (np.asarray(Image.open(tmp_path / "images" / row["file"])) == sample.image).all()
        assert (np.asarray(Image.open(tmp_path / "masks" / row["file"])).astype(bool) == sample.mask).all()
        assert [float(row[key]) for key in ("xmin", "ymin", "xmax", "ymax")] == list(sample.box)
        assert int(row["label"]) == sample.label
    assert len(rows) == 3
