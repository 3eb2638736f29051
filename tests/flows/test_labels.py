"""Labels of a dataset as classes of the model: translated, taken as they are, or refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from explainers.models.class_names import ClassName
from flows.job import Job, JobError
from flows.labels import Labels, translated
from places import REAL
from runs import explained, model, prepared, tiny_job
from storage.datasets.dataset import Dataset, Sample
from storage.run import Run
from storage.samples import read_samples
from tasks.results.accuracy import write_accuracy

SYNSETS = {"n01440764": 0, "n02099601": 207, "n02123045": 281, "n03445777": 574}
MOBILENET = {"source": "torchvision", "name": "mobilenet_v2", "weights": "none"}
CHEAP: dict[str, Any] = {
    "explainers": [{"name": "gradcam"}],
    "metrics": [{"name": "sparseness"}],
    "controls": False,
}


def folders(root: Path, names: list[str], size: int = 64) -> dict[str, Any]:
    """A dataset of one noisy image per class folder."""
    for seed, name in enumerate(names):
        (root / name).mkdir(parents=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(root / name / "a.png")
    return {"kind": "folder", "path": str(root)}


def job(tmp_path: Path, dataset: dict[str, Any], classifier: dict[str, Any], **more: Any) -> dict[str, Any]:
    return tiny_job(tmp_path / "run", dataset=dataset, model=classifier, **CHEAP) | more


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(JobError) as refused:
        prepared(raw)
    assert "\n" not in str(refused.value)
    assert not Path(raw["store"]).exists()
    return str(refused.value)


# Whole jobs


def test_folders_named_by_synset_get_the_models_numbers(tmp_path: Path) -> None:
    raw = job(tmp_path, folders(tmp_path / "images", list(SYNSETS)), MOBILENET, target="label")
    run = explained(prepared(raw))
    rows = read_samples(run.root)
    assert [row["label"] for row in rows] == [row["target"] for row in rows] == [0, 207, 281, 574]
    assert [row["label_name"] for row in rows] == ["tench", "golden retriever", "tabby", "golf ball"]
    assert [row["target_names"] for row in rows] == [[row["label_name"]] for row in rows]
    assert all(row["prediction_name"] for row in rows)
    assert run.manifest.labels == "matched with the model's classes by synset"


def test_the_classes_of_a_clip_model_are_matched_by_name(tmp_path: Path) -> None:
    clip = tmp_path / "clip"
    clip.mkdir()
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"width": 16, "heads": 2, "layers": 1}
    settings = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (clip / "open_clip_config.json").write_text(json.dumps(settings))
    classifier = {
        "source": "open_clip",
        "name": f"local-dir:{clip}",
        "weights": "none",
        "classes": ["dog", "cat"],
    }
    raw = job(tmp_path, folders(tmp_path / "images", ["cat", "dog"]), classifier, target="label")
    rows = read_samples(explained(prepared(raw)).root)
    assert [(row["sample_id"], row["label"], row["target"]) for row in rows] == [
        ("cat/a.png", 1, 1),
        ("dog/a.png", 0, 0),
    ]


def test_a_class_that_the_model_does_not_have_is_named(tmp_path: Path) -> None:
    images = folders(tmp_path / "images", ["golden retreiver", "tench", "zzz"])
    (tmp_path / "images" / "empty").mkdir()  # a class without samples does not matter
    told = refusal(job(tmp_path, images, MOBILENET, target="label"))
    assert told.startswith(
        "target: \"label\" needs classes of the model: class 'golden retreiver' is none of the model's "
        "classes (close are golden retriever"
    )
    assert ", and 1 more such classes; rename it after the model's class or its synset" in told
    rows = read_samples(explained(prepared(job(tmp_path, images, MOBILENET))).root)
    assert [(row["label"], row["label_name"]) for row in rows] == [
        (None, "golden retreiver"),
        (0, "tench"),
        (None, "zzz"),
    ]


def test_numbers_in_sorted_order_are_refused_unless_the_job_says_that_they_agree(tmp_path: Path) -> None:
    images = folders(tmp_path / "images", list("abcdefgh"))
    told = refusal(job(tmp_path, images, model("gap"), target="label"))
    assert told.startswith('target: "label" needs the model\'s classes, whose names are not known; the ')
    assert "sorted order, 0 'a', 1 'b', 2 'c', ...; name" in told
    assert 'set dataset.numbering = "model" if the model was trained with' in told
    agreed = job(tmp_path, images | {"numbering": "model"}, model("gap"), target="label")
    rows = read_samples(explained(prepared(agreed)).root)
    assert [row["label"] for row in rows] == list(range(8))
    # The names of the dataset's classes are those of the model's.
    assert [row["prediction_name"] for row in rows] == ["abcdefgh"[row["prediction"]] for row in rows]


def test_a_file_names_the_classes_of_a_callable(tmp_path: Path) -> None:
    images = folders(tmp_path / "images", ["b", "g"])
    (tmp_path / "names.txt").write_text("\n".join("hgfedcba"))
    named = model("gap") | {"class_names": str(tmp_path / "names.txt")}
    run = explained(prepared(job(tmp_path, images, named, target="label")))
    assert [(row["label"], row["label_name"]) for row in read_samples(run.root)] == [(6, "b"), (1, "g")]
    wrong = job(tmp_path, images | {"numbering": "model"}, named, store=str(tmp_path / "other"))
    assert refusal(wrong) == (
        "dataset.numbering: \"model\" cannot be: class 'b' has the number 0 in the dataset and 6 in the "
        "model; leave the key out, and it is translated, or name the model's classes in a file "
        "(model.class_names)"
    )


def test_folders_that_are_numbers_are_the_models_numbers(tmp_path: Path) -> None:
    images = folders(tmp_path / "images", ["10", "2", "9"])
    rows = read_samples(explained(prepared(job(tmp_path, images, MOBILENET, target="label"))).root)
    assert [(row["sample_id"], row["label"]) for row in rows] == [
        ("10/a.png", 10),
        ("2/a.png", 2),
        ("9/a.png", 9),
    ]
    told = refusal(job(tmp_path, images, model("gap"), target="label", store=str(tmp_path / "other")))
    assert "class '10' is no number of the model's classes, 0 to 7, and 1 more such classes" in told


@pytest.mark.parametrize("target", [True, False, 1.0, 0.5])
def test_a_target_that_is_no_whole_number_is_refused(target: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='is no class; write "predicted", "label", a class index') as refused:
        Job.model_validate(tiny_job(tmp_path / "run", target=target))
    assert json.dumps(target) in str(refused.value)
    with pytest.raises(ValueError, match="target"):
        Job.model_validate(tiny_job(tmp_path / "run", target={"top": True}))
    assert Job.model_validate(tiny_job(tmp_path / "run", target=3)).target == 3


# Real photographs


def real(tmp_path: Path, dataset: dict[str, Any], **more: Any) -> dict[str, Any]:
    if not (REAL / "images/ilsvrc_val").is_dir():
        pytest.skip(f"no real test material in {REAL}; FLOODLIT_REAL says where it is")
    classifier = {
        "source": "torchvision",
        "name": "mobilenet_v2",
        "weights": str(REAL / "weights/mobilenet_v2_imagenet.pth"),
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "resize": 256,
        "crop": 224,
    }
    cheap = CHEAP | {"explainers": [{"name": "random"}], "batch": {"shard": 200}}
    return tiny_job(tmp_path / "run", dataset=dataset, model=classifier, **cheap) | more


def predicted(run: Run) -> Run:
    """The run with its inputs and predictions, and no maps."""
    from tasks.activations import activations
    from tasks.inputs import inputs

    for shard in range(run.shards):
        inputs.fn(str(run.root), shard)
        activations.fn(str(run.root), shard, keep=False)
    return run


def test_74_of_104_photographs_are_told_by_number(tmp_path: Path) -> None:
    listing = {"kind": "csv", "path": str(REAL / "images/ilsvrc_val.csv")}
    listing["images"] = str(REAL / "images/ilsvrc_val")
    run = predicted(prepared(real(tmp_path, listing)))
    found = write_accuracy(run)
    assert found is not None
    assert (found.correct, found.labelled, found.classes, found.is_chance) == (74, 104, 1000, False)
    assert found.told() == (
        "accuracy 0.712 (74 of 104 labels); labels: the dataset's numbers, taken as the model's"
    )
    stored = json.loads((run.root / "accuracy.json").read_text())
    assert stored == {
        "labelled": 104,
        "correct": 74,
        "classes": 1000,
        "labels": "the dataset's numbers, taken as the model's",
        "accuracy": 74 / 104,
        "no_better_than_chance": False,
    }


def test_photographs_in_folders_by_synset_are_told_by_the_listings_numbers(tmp_path: Path) -> None:
    raw = real(tmp_path, {"kind": "folder", "path": str(tmp_path / "images")}, target="label")
    numbers = {}
    with (REAL / "images/ilsvrc_val.csv").open() as file:
        for row in list(csv.DictReader(file))[:30]:
            folder = tmp_path / "images" / row["wnid"]
            folder.mkdir(parents=True, exist_ok=True)
            link = folder / row["file"]
            if not link.exists():
                link.symlink_to(REAL / "images/ilsvrc_val" / row["file"])
            numbers[f"{row['wnid']}/{row['file']}"] = int(row["label"])
    run = predicted(prepared(raw))
    from storage.samples import read_samples_of_shard

    rows = read_samples_of_shard(run.root, 0)
    assert {row["sample_id"]: row["label"] for row in rows} == numbers
    assert [row["target"] for row in rows] == [row["label"] for row in rows]
    found = write_accuracy(run)
    assert found is not None
    assert found.value == np.mean([row["label"] == row["prediction"] for row in rows])
    assert 0.5 < found.value < 1


# The rule


class _Named:
    def __init__(self, names: list[str] | None, count: int | None = None) -> None:
        self.class_names = None if names is None else tuple(map(ClassName, names))
        self.num_classes = count or len(names or [])


def of(labels: list[int | None], classes: list[str], published: bool = False) -> Dataset:
    samples = [Sample(str(number), "", label) for number, label in enumerate(labels)]
    return Dataset(samples, classes, lambda index: "", list, published=published)


def rule(dataset: Dataset, names: list[str] | None, count: int | None = None, agrees: bool = False) -> Labels:
    return translated(dataset, agrees, _Named(names, count))  # type: ignore[arg-type]  # all that is asked


def test_numbers_of_the_author_are_the_models_if_it_has_them_all() -> None:
    assert rule(of([3, 0, None], []), None, 4) == Labels(None, "the dataset's numbers, taken as the model's")
    beyond = rule(of([4, 0], []), ["a", "b", "c", "d"])
    assert beyond.indices == {}
    assert beyond.refusal == (
        'needs labels in the model\'s numbering, 0 to 3; the dataset has label 4; use "predicted"'
    )
    assert rule(of([-1, 0], []), None, 4).indices == {}
    assert rule(of([None, None], []), None, 4) == Labels()


def test_a_published_set_has_the_models_numbers_if_it_has_as_many_classes() -> None:
    cifar = of([2, -1], ["plane", "car", "bird"], published=True)
    found = rule(cifar, None, 3)
    assert (found.indices, found.refusal) == ({0: 0, 1: 1, 2: 2}, None)  # -1 is no class
    other = rule(cifar, None, 1000)
    assert other.indices == {}
    assert "the dataset has 3 classes and the model 1000, whose names are not known" in str(other.refusal)
    assert rule(cifar, ["bird", "plane", "car"]).indices == {0: 1, 1: 2, 2: 0}


def test_what_the_job_says_of_the_numbers_must_be_possible() -> None:
    with pytest.raises(JobError, match=r"dataset\.numbering: .* the dataset has 3 classes, the model 2"):
        rule(of([0], ["a", "b", "c"]), None, 2, agrees=True)
    assert rule(of([0], ["a", "b"]), None, 3, agrees=True).indices == {0: 0, 1: 1}
    # Names that the model does not know contradict nothing.
    assert rule(of([0], ["a", "b"]), ["x", "y"], agrees=True).indices == {0: 0, 1: 1}
