"""Whole jobs on networks whose outputs are no softmax: several labels per image, and a single logit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.explain import explain
from flows.job import Job, JobError
from runs import assert_same_results, completed, maps_of, prepared
from storage.query import query
from storage.run import Run
from storage.samples import merge_samples, read_samples
from storage.verify import verify
from tasks import summary
from tasks.results.accuracy import read_accuracy

# Each logit is known from the share of the image that has its colour: 12 (share - 0.2).
NETWORKS = """
import torch
from torch import nn


class Colours(nn.Module):
    def __init__(self, colours):
        super().__init__()
        self.features = nn.Conv2d(3, 3, 1, bias=False)
        self.features.weight.data = torch.eye(3)[..., None, None]
        self.colours = colours

    def forward(self, inputs):
        logits = 12 * (self.features(inputs).mean((2, 3)) - 0.2)[:, self.colours]
        return logits if self.colours else torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)


def several():
    return Colours([0, 1, 2])


def one():
    return Colours([0])


class Two(Colours):
    def forward(self, inputs):
        logit = super().forward(inputs)
        return torch.cat([torch.zeros_like(logit), logit], 1)


def two():
    return Two([0])
"""
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
IMAGES = {"a": [RED, GREEN], "b": [BLUE, BLUE], "c": [GREEN, BLUE], "d": [RED, GREEN, BLUE, BLUE]}
LABELS = {"a": "red;green", "b": "blue", "c": "", "d": "blue; red; green", "broken": "red"}


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def job(folder: Path, network: str, column: str, labels: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A raw job on the images, each of stripes of equal width, with their labels in a column of a listing."""
    (folder / "networks.py").write_text(NETWORKS)
    for name, colours in IMAGES.items():
        stripes = np.repeat(np.array(colours, np.uint8), 16 // len(colours), 0)
        Image.fromarray(np.tile(stripes, (16, 1, 1))).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no image")
    rows = [f"{name}.png,{label}" for name, label in labels.items()]
    (folder / "listing.csv").write_text("\n".join([f"file,{column}", *rows]))
    made = {
        "name": network,
        "store": str(folder / network),
        "dataset": {"kind": "csv", "path": str(folder / "listing.csv")},
        "model": {"source": f"{folder}/networks.py:{network}", "layer": "features"},
        "explainers": [{"name": "gradcam"}, {"name": "ddcam"}, {"name": "rise", "masks": 30}],
        "metrics": [{"name": "insertion", "steps": 4, "fill": "black"}, {"name": "average_drop"}],
        "controls": False,
        "cluster": {"kind": "local", "workers": 1},
        "batch": {"shard": 2},
    }
    return made | changes


def several(folder: Path, **changes: Any) -> dict[str, Any]:
    (folder / "names.txt").write_text("red\ngreen\nblue\n")
    raw = job(folder, "several", "labels", LABELS, target={"labels": 2})
    raw["model"] |= {"activation": "sigmoid", "class_names": str(folder / "names.txt")}
    return raw | changes


@pytest.mark.service
def test_every_label_of_an_image_is_explained_up_to_the_stated_number(server: str, tmp_path: Path) -> None:
    explain(Job.model_validate(several(tmp_path)))
    run = Run.open(tmp_path / "several")
    assert not verify(run.root)
    assert (run.targets_per_image, run.manifest.exclusive) == (2, False)
    samples = {sample["sample_id"][:-4]: sample for sample in read_samples(run.root)}
    assert {name: s["labels"] for name, s in samples.items()} == {
        "a": [0, 1],
        "b": [2],
        "c": [],
        "d": [2, 0, 1],
        "broken": [0],
    }
    assert {name: s["targets"] for name, s in samples.items()} == {
        "a": [0, 1],
        "b": [2],
        "c": [],
        "d": [2, 0],
        "broken": [],
    }
    assert samples["d"]["label_name"] == "blue; red; green"
    assert samples["d"]["notes"] == ["labels beyond target.labels, which are not explained: 1"]
    shares = {"a": [0.5, 0.5], "b": [1], "c": [], "d": [0.5, 0.25], "broken": []}
    for name, sample in samples.items():
        expected = [sigmoid(12 * (share - 0.2)) for share in shares[name]]
        assert sample["probabilities"] == pytest.approx(expected, rel=1e-6)
        assert sample["status"] == ("failed" if name == "broken" else "ok")

    # DD-CAM keeps the one colour that decides on the label, though other colours are as strong or stronger.
    found = maps_of(run.root)
    kept = found["ddcam/details/unit_mask"]
    for row, image in enumerate(samples.values()):
        for place, target in enumerate(image["targets"]):
            assert kept[2 * row + place].tolist() == [colour == target for colour in range(3)]

    summary = {
        (row["explainer"], row["metric"]): row
        for row in pq.read_table(run.root / "summary.parquet").to_pylist()
    }
    for explainer in ("gradcam", "ddcam", "rise"):
        row = summary[explainer, "insertion"]
        assert (row["n"], row["excluded"]) == (3, 2)
        assert row["excluded_by"] == {
            "ok": 0, "all_zero": 0, "constant": 0, "not_finite": 0, "failed": 2, "no_label": 3
        }  # fmt: skip
    sql = (
        "SELECT DISTINCT status, target, value FROM scores WHERE status IN ('failed', 'no_label') ORDER BY 1"
    )
    nothing = [{"status": status, "target": None, "value": None} for status in ("failed", "no_label")]
    assert query(run.root, sql).to_pylist() == nothing
    told = read_accuracy(run)
    assert told is not None
    assert told.told().startswith("the most probable class is a label of 3 of 3 images (1.000); labels: ")
    assert "accuracy" not in json.loads((run.root / "accuracy.json").read_text())


@pytest.mark.service
def test_a_single_logit_is_explained_as_its_two_classes(server: str, tmp_path: Path) -> None:
    labels = {name: int(RED in colours) for name, colours in IMAGES.items()}
    explain(Job.model_validate(job(tmp_path, "one", "label", labels, target="label")))
    run, two = Run.open(tmp_path / "one"), completed(job(tmp_path, "two", "label", labels, target="label"))
    assert not verify(run.root)
    assert_same_results(run.root, two.root, 0)
    assert run.manifest.outputs.startswith("one number z per input")
    assert (run.manifest.num_classes, run.manifest.exclusive, two.manifest.outputs) == (2, True, "")
    red = {"a": 0.5, "b": 0, "c": 0, "d": 0.25}
    for sample in read_samples(run.root):
        yes = sigmoid(12 * (red[sample["sample_id"][:-4]] - 0.2))
        assert sample["prediction"] == sample["label"] == (yes > 0.5)
        assert sample["confidence"] == pytest.approx(max(yes, 1 - yes), rel=1e-6)
    told = read_accuracy(run)
    assert told is not None
    assert (told.value, told.exclusive) == (1, True)


def test_labels_alone_means_all_of_them(tmp_path: Path) -> None:
    run = completed(several(tmp_path, target="labels", explainers=[{"name": "gradcam"}]))
    assert run.targets_per_image == 3
    assert [s["targets"] for s in read_samples(run.root)] == [[0, 1], [2], [], [2, 0, 1], []]
    # Statuses: ok, no label (5), constant (2, an image of one colour), failed (4).
    assert maps_of(run.root)["gradcam/status"].tolist() == [
        *(0, 0, 5),
        *(2, 5, 5),
        *(5, 5, 5),
        *(0, 0, 0),
        *(4, 4, 4),
    ]


@pytest.mark.parametrize("network", ["several", "two"])
def test_mlflow_gets_no_accuracy_of_several_labels(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = several(tmp_path, target="predicted", explainers=[{"name": "gradcam"}])
    if network == "two":
        labels = {name: int(RED in colours) for name, colours in IMAGES.items()}
        raw = job(tmp_path, "two", "label", labels, explainers=[{"name": "gradcam"}])
    run, logged = completed(raw), []
    monkeypatch.setattr(summary, "track", lambda *given: logged.append(given[4].numbers))
    for name in ("show_results", "show_links", "page_of"):
        monkeypatch.setattr(summary, name, lambda *_: None)
    summary.summary.fn(str(run.root), "")
    shares = [{name: value for name, value in numbers.items() if "/" not in name} for numbers in logged]
    assert shares == [{"accuracy": 1} if network == "two" else {"most_probable_is_a_label": 1}]
    written = json.loads((run.root / "accuracy.json").read_text())
    assert written["no_better_than_chance"] is (False if network == "two" else None)  # it is not known


def test_two_names_of_one_class_are_one_label(tmp_path: Path) -> None:
    raw = several(tmp_path, target="labels", explainers=[{"name": "gradcam"}])
    (tmp_path / "names.txt").write_text("red, crimson\ngreen\nblue\n")
    (tmp_path / "listing.csv").write_text("file,labels\na.png,crimson;green;red\n")
    run = completed(raw)
    assert [(s["labels"], s["targets"]) for s in read_samples(run.root)] == [([0, 1], [0, 1])]
    assert maps_of(run.root)["gradcam/status"].tolist() == [0, 0, 5]


def test_a_dataset_of_one_label_per_image_has_one_map_each(tmp_path: Path) -> None:
    labels = dict.fromkeys(IMAGES, 0)
    run = completed(job(tmp_path, "two", "label", labels, target="labels", explainers=[{"name": "gradcam"}]))
    assert (run.targets_per_image, [s["targets"] for s in read_samples(run.root)]) == (1, [[0]] * 4)


@pytest.mark.parametrize(
    ("column", "labels", "target", "reason"),
    [
        ("labels", LABELS, "label", 'target: "label" is for one label per sample; use "labels" or'),
        ("labels", {"a": "", "b": ""}, "labels", 'target: "labels" needs labels, and the dataset has none'),
        ("labels", {"a": "red;pink"}, "labels", 'target: "labels" needs classes of the model: class '),
        ("labels", {"a": "0;3"}, {"labels": 1}, 'target: "labels" needs labels in the model\'s numbering, 0'),
        ("labels", {"a": "0;1;2"}, {"labels": 0}, "this is no class; write"),
    ],
)
def test_labels_that_cannot_be_explained_are_refused(
    column: str, labels: dict[str, Any], target: Any, reason: str, tmp_path: Path
) -> None:
    raw = several(tmp_path) | {"target": target}
    rows = [f"{name}.png,{label}" for name, label in labels.items()]
    (tmp_path / "listing.csv").write_text("\n".join([f"file,{column}", *rows]))
    with pytest.raises((JobError, ValueError), match="target") as refused:
        prepared(raw)
    assert reason in str(refused.value)


def test_many_labels_need_a_stated_number(tmp_path: Path) -> None:
    raw = several(tmp_path, explainers=[{"name": "gradcam"}])
    (tmp_path / "many.py").write_text(
        "from torch import nn\n\n\ndef many():\n"
        "    return nn.Sequential(nn.Conv2d(3, 30, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    raw["model"] = {"source": f"{tmp_path}/many.py:many", "layer": "0", "activation": "sigmoid"}
    (tmp_path / "listing.csv").write_text(f"file,labels\na.png,{';'.join(map(str, range(21)))}\n")
    with pytest.raises(JobError, match=r"^target: an image has 21 labels, .* set \{labels = 20\}, or"):
        prepared(raw | {"target": "labels"})
    assert prepared(raw | {"target": {"labels": 30}}).targets_per_image == 21


def test_samples_of_a_run_that_an_earlier_version_wrote_have_no_labels(tmp_path: Path) -> None:
    labels = dict.fromkeys(IMAGES, 0)
    run = completed(job(tmp_path, "two", "label", labels, explainers=[{"name": "gradcam"}]))
    for path in (*run.root.glob("samples/inputs/*.parquet"), *run.root.glob("**/samples.parquet")):
        table = pq.read_table(path)
        pq.write_table(table.drop_columns(["labels"]), path)
    assert [sample["labels"] for sample in read_samples(run.root)] == [None] * 4
    merge_samples(run.root, run.shards)
    assert [sample["label"] for sample in read_samples(run.root)] == [0] * 4
