"""Whole jobs on the field's own sets, in the layouts in which they are published."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.job import JobError
from flows.resume import remaining
from places import ROOT
from runs import (
    SLOW,
    assert_same_results,
    command,
    completed,
    saliency_done,
    scores_of,
    tiny_job,
    toml,
    wait_for,
)
from storage.datasets.imagenet_labels import synsets
from storage.maps import read
from storage.run import Run
from storage.samples import read_samples
from tasks.results.summary import summarise

NETWORK = """
from collections import OrderedDict
import torch
from torch import nn

def net(classes):
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
    return nn.Sequential(OrderedDict(features=features, head=head))

def three():
    return net(3)

def twenty():
    return net(20)

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
    photograph(tmp_path / "val" / "ILSVRC2012_val_00000101.JPEG", (120, 80), 0)
    (tmp_path / "list").write_text("ILSVRC2012_val_00000101.JPEG 7")
    keys = {"labels": f"{tmp_path}/list", key: f"{tmp_path}/nowhere"}
    with pytest.raises(JobError, match="nowhere") as refused:
        completed(job(tmp_path, "thousand", dataset={"kind": "imagenet", "path": f"{tmp_path}/val", **keys}))
    assert str(refused.value).startswith("dataset")
    assert refused.value.exit_code == 2


# Sets whose images have several labels: boxes and masks count for their class alone

OBJECTS = [("dog", (0, 0, 30, 80)), ("person", (60, 0, 120, 80))]  # a quarter of the image, and a half


def xml(objects: list[tuple[str, tuple[int, ...]]]) -> str:
    """An annotation of VOC, which counts pixels from 1, for an image of 120x80."""
    told = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x0 + 1}</xmin>"
        f"<ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, (x0, y0, x1, y1) in objects
    )
    return f"<annotation><size><width>120</width><height>80</height></size>{told}</annotation>"


def values_of(run: Run, explainer: str, metric: str) -> dict[tuple[str, int], float | None]:
    """The scores of one explainer and metric, by the image's name and the target."""
    found = scores_of(run.root)
    return {
        (Path(sample).stem, target): value
        for (sample, target, name, column), (value, _) in found.items()
        if (name, column) == (explainer, metric) and target is not None
    }


def test_a_whole_job_on_voc_scores_each_label_with_its_own_boxes_and_masks(tmp_path: Path) -> None:
    root = tmp_path / "VOC2012"
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "Annotations").mkdir()
    (root / "SegmentationClass").mkdir()
    names = [f"2007_{number:06d}" for number in range(5)]
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(names))
    dog, person = 11, 14
    for number, name in enumerate(names):
        photograph(root / f"JPEGImages/{name}.jpg", (120, 80), number)
        (root / f"Annotations/{name}.xml").write_text(xml(OBJECTS if number else OBJECTS[:1]))
        pixels = np.zeros((80, 120), np.uint8)
        pixels[:, :30] = dog + 1
        pixels[:, 60:] = person + 1 if number else 0
        pixels[:, 30:45] = 255
        Image.fromarray(pixels).save(root / f"SegmentationClass/{name}.png")
    dataset = {"kind": "voc", "path": str(root), "split": "val", "task": "segmentation"}
    raw = job(tmp_path, "twenty", dataset=dataset, target="labels")
    run = completed(raw)
    samples = read_samples(run.root)
    assert [sample["targets"] for sample in samples] == [[dog]] + [[dog, person]] * 4
    assert samples[1]["box_labels"] == [dog, person]
    assert samples[1]["boxes"] == [[0, 0, 16, 64], [32, 0, 64, 64]]
    assert samples[1]["label_name"] == "dog; person"
    both = {(name, target) for name in names[1:] for target in (dog, person)} | {(names[0], dog)}
    # Of a flat map the boxes hold their share of the image, and the masks that of the pixels that count.
    inside = values_of(run, "all_ones", "energy_pointing_game")
    assert inside == {key: pytest.approx(0.25 if key[1] == dog else 0.5) for key in both}
    masked = values_of(run, "all_ones", "relevance_mass_accuracy")
    shares = {dog: 16 / (64 - 8), person: 32 / (64 - 8)}
    assert masked == {key: pytest.approx(shares[key[1]]) for key in both}
    assert read(run.masks, 0, 5).shape == (5, 2, 64, 64)
    # A class that an image does not show has neither boxes nor a mask there.
    other = completed(raw | {"target": person, "store": str(tmp_path / "other")})
    for metric, share in (("energy_pointing_game", 0.5), ("relevance_mass_accuracy", shares[person])):
        values = values_of(other, "all_ones", metric)
        assert values.pop((names[0], person)) is None
        assert values == {(name, person): pytest.approx(share) for name in names[1:]}
    with pytest.raises(JobError, match='target: "label" is for one label per sample; use "labels"'):
        completed(raw | {"target": "label", "store": str(tmp_path / "refused")})


def coco(folder: Path) -> dict[str, Any]:
    """A folder of eight images in COCO's layout, and the table that names it."""
    images, annotations = [], []
    polygons = {1: [[0, 0, 30, 0, 30, 80, 0, 80]], 90: [[60, 0, 120, 0, 120, 80, 60, 80]]}
    for number in range(8):
        photograph(folder / "val2017" / f"{number:012d}.jpg", (120, 80), number)
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "width": 120, "height": 80})
        for category, polygon in polygons.items():
            (x0, y0), (x1, y1) = polygon[0][:2], polygon[0][4:6]
            about = {"image_id": number, "category_id": category, "iscrowd": 0, "segmentation": polygon}
            annotations.append({"id": len(annotations), "bbox": [x0, y0, x1 - x0, y1 - y0], **about})
    crowd = {"size": [80, 120], "counts": [0, 80 * 60, 80 * 60]}
    about = {"image_id": 0, "category_id": 90, "iscrowd": 1, "segmentation": crowd}
    annotations.append({"id": len(annotations), "bbox": [0, 0, 60, 80], **about})
    categories = [{"id": number, "name": f"c{number}"} for number in (90, 5, 1)]
    told = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(told))
    paths = {"path": f"{folder}/instances.json", "images": f"{folder}/val2017"}
    return {"kind": "coco", **paths, "numbering": "model"}


@pytest.mark.service
@pytest.mark.faults
@pytest.mark.long
def test_a_job_on_coco_that_is_killed_and_continued_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_plugin.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.syspath_prepend(str(tmp_path))
    raw = job(tmp_path, "three", dataset=coco(tmp_path), target="labels")
    raw |= {"explainers": [{"name": "slow_plugin:Slow"}], "batch": {"shard": 2, "images": 1}}
    root = Path(raw["store"])
    flow = command(toml(raw, tmp_path / "job.toml"), root)
    try:
        wait_for(lambda: saliency_done(root) >= 2, 240)
    finally:
        os.killpg(flow.pid, signal.SIGKILL)
        flow.wait()
    assert remaining(Run.open(root))
    completed(raw)
    assert remaining(Run.open(root)) == {}
    undisturbed = completed(raw | {"store": str(tmp_path / "undisturbed")})
    assert_same_results(root, undisturbed.root)
    inside = values_of(Run.open(root), "all_ones", "energy_pointing_game")
    assert inside == {
        (f"{number:012d}", label): pytest.approx(share)
        for number in range(8)
        for label, share in ((0, 0.25), (2, 0.5))
    }
    # In the first image the left half is a crowd of the third class: it does not count for that class alone.
    masked = values_of(Run.open(root), "all_ones", "relevance_mass_accuracy")
    assert masked["000000000000", 2] == pytest.approx(1)
    assert masked["000000000000", 0] == pytest.approx(0.25)
    assert masked["000000000001", 2] == pytest.approx(0.5)


def test_a_class_that_no_image_shows_or_no_model_has_is_told(tmp_path: Path) -> None:

    raw = job(tmp_path, "three", dataset=coco(tmp_path), target=1)  # no image shows an object of class 1
    run = completed(raw)
    reasons = {row["metric"]: row["reason"] for row in summarise(run).to_pylist()}
    told = "no image shows an object of the class that is explained"
    assert reasons["energy_pointing_game"] == reasons["relevance_mass_accuracy"] == told
    wrong = raw | {"target": "predicted", "store": str(tmp_path / "wrong")}
    wrong["dataset"] = {key: value for key, value in raw["dataset"].items() if key != "numbering"}
    wrong["model"] = raw["model"] | {"source": f"{tmp_path}/net.py:twenty"}
    with pytest.raises(
        JobError, match="metrics: energy_pointing_game needs boxes of the explained class, and"
    ):
        completed(wrong)
