"""From the [model] table to a classifier: sources, checkpoint files, preprocessing, and clear refusals."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from torchvision import models
from torchvision.transforms import functional as TF

from explainers.models.loading import ModelSpec, Preprocessing, load, preprocessing
from places import REAL

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
RESNET = {"source": "torchvision", "name": "resnet18"}

NETWORKS = """
from dataclasses import dataclass
from torch import nn


@dataclass
class Sizes:
    channels: int = 4


def build(classes="3"):
    layers = [nn.Conv2d(3, Sizes().channels, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, int(classes)))


def fail():
    raise RuntimeError("no such luck")


def name():
    return "resnet"
"""


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    path = tmp_path_factory.mktemp("networks") / "mine.py"
    path.write_text(NETWORKS)
    return path


# Preprocessing


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"source": "torchvision", "name": "resnet18"}, (256, 224, "bilinear", IMAGENET)),
        ({"source": "torchvision", "name": "swin_t"}, (232, 224, "bicubic", IMAGENET)),
        ({"source": "torchvision", "name": "convnext_tiny"}, (236, 224, "bilinear", IMAGENET)),
        ({"source": "torchvision", "name": "efficientnet_b7"}, (600, 600, "bicubic", IMAGENET)),
        (
            {"source": "torchvision", "name": "mobilenet_v2", "weights": "IMAGENET1K_V2"},
            (232, 224, "bilinear", IMAGENET),
        ),
        ({"source": "timm", "name": "deit_tiny_patch16_224"}, (248, 224, "bicubic", IMAGENET)),
        (
            {"source": "timm", "name": "vit_tiny_patch16_224", "weights": "pretrained"},
            (248, 224, "bicubic", {"mean": (0.5,) * 3, "std": (0.5,) * 3}),
        ),
        (
            {"source": "timm", "name": "vit_base_patch16_384", "weights": "augreg_in1k"},
            (384, 384, "bicubic", {"mean": (0.5,) * 3, "std": (0.5,) * 3}),
        ),
        ({"source": "somewhere.networks:build"}, (None, None, "bilinear", {})),
    ],
)
def test_preprocessing_is_the_sources_own(spec, expected):
    resize, crop, interpolation, scaling = expected
    weights = None if ":" in spec["source"] else "none"
    found = preprocessing(ModelSpec(**{"weights": weights, **spec}))
    assert found == Preprocessing(resize, crop, interpolation, **scaling)


def test_the_jobs_values_stand_before_the_sources():
    spec = ModelSpec(**RESNET, weights="my.pth", resize=100, crop=96, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    assert preprocessing(spec) == Preprocessing(100, 96, "bilinear", (0.1, 0.2, 0.3), (1, 2, 3))


# Sources


def test_torchvision_networks_are_built_by_name_and_number_of_classes():
    spec = ModelSpec(**RESNET, weights="none", num_classes=6, resize=64, crop=64)
    classifier = load(spec)
    assert type(classifier.network) is models.ResNet
    assert (classifier.num_classes, classifier.input_size, classifier.layer) == (6, (64, 64), "layer4")
    assert classifier.mean.flatten().tolist() == pytest.approx(IMAGENET["mean"])
    assert classifier.std.flatten().tolist() == pytest.approx(IMAGENET["std"])


def test_timm_networks_are_built_by_name_and_number_of_classes():
    spec = ModelSpec(source="timm", name="deit_tiny_distilled_patch16_224", weights="none", num_classes=6)
    classifier = load(spec)
    assert (classifier.num_classes, classifier.grid, classifier.prefix_tokens) == (6, (14, 14), 2)


def test_callables_are_found_in_files_and_packages(networks, monkeypatch):
    size = {"layer": "1", "crop": 9}
    from_file = load(ModelSpec(source=f"{networks}:build", **size))
    monkeypatch.syspath_prepend(networks.parent)
    from_package = load(ModelSpec(source="mine:build", name="8", **size))
    assert (from_file.num_classes, from_package.num_classes) == (3, 8)
    assert from_file.mean.tolist() == [[[0]]] * 3
    assert from_file.std.tolist() == [[[1]]] * 3
    assert from_file.grid == (7, 7)


def test_without_a_crop_the_images_own_size_is_taken(networks):
    spec = ModelSpec(source=f"{networks}:build", layer="1")
    assert load(spec, input_size=(12, 9)).grid == (10, 7)
    with pytest.raises(ValueError, match=r"^model.crop: the source states no input size; set crop$"):
        load(spec)


def test_files_of_a_job_are_relative_to_it():
    spec = ModelSpec(source="code/nets.py:build", weights="../w.safetensors")
    moved = spec.relative_to(Path("/jobs"))
    assert (moved.source, moved.weights) == ("/jobs/code/nets.py:build", "/jobs/../w.safetensors")
    assert ModelSpec(source="a.b:build", weights="/w.pth").relative_to(Path("/jobs")).weights == "/w.pth"
    for weights in ("DEFAULT", "none", "augreg_in21k_ft_in1k", None):
        spec = ModelSpec(source="timm", weights=weights)
        assert spec.relative_to(Path("/jobs")) == spec


def test_a_checkpoint_of_a_callable_is_loaded_into_what_it_returns(networks, tmp_path):
    spec = ModelSpec(source=f"{networks}:build", layer="1", crop=9)
    first = load(spec)
    for parameter in first.network.parameters():
        parameter.mul_(2)
    save_file(first.network.state_dict(), tmp_path / "mine.safetensors")
    torch.manual_seed(5)
    other, again = load(spec), load(spec.model_copy(update={"weights": f"{tmp_path}/mine.safetensors"}))
    assert again.fingerprint == first.fingerprint != other.fingerprint
    torch.manual_seed(6)
    assert load(spec).fingerprint == other.fingerprint  # drawn weights, but the same in every process


# Refusals: one line, beginning with the key


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"source": "tensorflow"},
            r"model.source: unknown source 'tensorflow'; choose torchvision, timm, open_clip, "
            "huggingface, torchscript, exported, package",
        ),
        ({"source": "nowhere.to_be:found"}, r"model.source: cannot load 'nowhere.to_be:found': No module"),
        ({"source": "{networks}:missing"}, r"model.source: cannot load .*no attribute 'missing'"),
        ({"source": "nowhere.py:build"}, r"model.source: cannot load 'nowhere.py:build': .*No such file"),
        ({"source": "{networks}:fail"}, r"model.source: .*:fail raised RuntimeError: no such luck"),
        ({"source": "{networks}:name"}, r"model.source: .*:name returned str, not a torch module"),
        ({"source": "{networks}:build", "weights": "DEFAULT"}, r"model.weights: 'DEFAULT' is no file"),
        (
            {"source": "{networks}:build", "num_classes": 4},
            r"model.num_classes: the network has 3 classes, not 4",
        ),
        ({"source": "torchvision"}, r"model.name: it is missing; give a name such as "),
        (
            {"source": "torchvision", "name": "resnet19"},
            r"model.name: there is no 'resnet19'; close are .*resnet18",
        ),
        (RESNET, r"model.weights: they are missing; give a file, a name that the source knows, or none"),
        (
            {**RESNET, "weights": "IMAGENET"},
            r"model.weights: there is no 'IMAGENET'; close are IMAGENET1K_V1",
        ),
        ({**RESNET, "weights": "gone.pth"}, r"model.weights: there is no file gone.pth"),
        (
            {**RESNET, "weights": "DEFAULT", "num_classes": 6},
            r"model.num_classes: .* have 1000 classes, not 6",
        ),
        (
            {**RESNET, "weights": "none", "crop": 300},
            r"model.crop: 300 pixels do not fit into model.resize = 256",
        ),
        (
            {**RESNET, "weights": "none", "layer": "layer5"},
            r"model.layer: .*no layer 'layer5'; close are layer4",
        ),
        ({"source": "timm"}, r"model.name: it is missing; give a name such as "),
        (
            {"source": "timm", "name": "vit_tiny"},
            r"model.name: there is no 'vit_tiny'; close are .*vit_tiny_patch16",
        ),
        (
            {"source": "timm", "name": "deit_tiny_patch16_224.fb_in22k", "weights": "none"},
            r"model.name: there is no 'deit_tiny_patch16_224.fb_in22k'; close are .*fb_in1k",
        ),
        (
            {"source": "timm", "name": "vit_tiny_patch16_224", "weights": "augreg"},
            r"model.weights: there is no 'augreg'; close are .*augreg_in21k",
        ),
        (
            {"source": "timm", "name": "vit_tiny_patch16_224", "weights": "pretrained", "num_classes": 6},
            r"model.num_classes: .* have 1000 classes, not 6",
        ),
        (
            {"source": "timm", "name": "vit_small_patch14_dinov2", "weights": "pretrained"},
            r"model.weights: vit_small_patch14_dinov2 has no classification head",
        ),
    ],
)
def test_refusals_name_the_key_and_the_choices(spec, message, networks):
    spec = {**spec, "source": spec["source"].format(networks=networks)}
    if ":" in spec["source"]:
        spec.update(layer="1", crop=9)
    with pytest.raises(ValueError, match=f"^{message}") as refusal:
        load(ModelSpec(**spec))
    assert "\n" not in str(refusal.value)


def test_a_download_that_fails_says_to_give_a_file(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(
        ValueError, match=r"^model.weights: 'DEFAULT' of resnet18 cannot be downloaded \(no network\)"
    ):
        load(ModelSpec(**RESNET, weights="DEFAULT"))
    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(ValueError, match=r"^model.weights: 'pretrained' of vit_tiny.* cannot be downloaded"):
        load(ModelSpec(source="timm", name="vit_tiny_patch16_224", weights="pretrained"))


@pytest.mark.parametrize(
    "wrong", [{"sauce": "timm"}, {"num_classes": 0}, {"crop": -1}, {"std": (1, 0, 1)}, {"mean": ()}]
)
def test_a_table_with_wrong_keys_or_values_is_invalid(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ModelSpec(source="torchvision", **wrong)


def test_model_libraries_are_imported_only_when_a_model_is_loaded():
    program = (
        "import sys, explainers.models.loading; "
        "libraries = ('timm', 'torchvision', 'open_clip', 'transformers'); "
        "print([name for name in libraries if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


# Real networks and photographs


def _photographs(spec, folder, limit):
    """Real images, prepared as the specification says, and their labels."""
    if not (REAL / "weights").is_dir():
        pytest.skip("real test material is not here (set FLOODLIT_REAL)")
    steps = preprocessing(spec)
    with (REAL / f"images/{folder}.csv").open() as file:
        labels = {row["file"]: int(row["label"]) for row in csv.DictReader(file)}
    inputs = []
    for name in list(labels)[:limit]:
        image = Image.open(REAL / "images" / folder / name).convert("RGB")
        image = TF.resize(image, steps.resize, TF.InterpolationMode(steps.interpolation))
        inputs.append(TF.to_tensor(TF.center_crop(image, steps.crop)))
    return torch.stack(inputs), torch.tensor(list(labels.values())[:limit])


def _accuracy(classifier, inputs, labels):
    with torch.inference_mode():
        logits = torch.cat([classifier.logits(part) for part in inputs.split(16)])
        again = torch.cat([classifier.head(classifier.activations(part)) for part in inputs[:16].split(16)])
    torch.testing.assert_close(again, logits[:16])
    return (logits.argmax(1) == labels).float().mean().item()


HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def test_the_real_mobilenet_classifies_photographs():
    path = str(REAL / "weights/mobilenet_v2_imagenet.pth")
    spec = ModelSpec(source="torchvision", name="mobilenet_v2", weights=path, **HALF)
    inputs, labels = _photographs(spec, "ilsvrc_val", 104)
    assert _accuracy(load(spec), inputs, labels) == pytest.approx(74 / 104, abs=1.5 / 104)


def test_the_real_vit_classifies_tiny_imagenet():
    path = str(REAL / "weights/vit_tiny_tinyimagenet200.pth")
    spec = ModelSpec(
        source="timm", name="vit_tiny_patch16_224", weights=path, num_classes=200, resize=256, **HALF
    )
    inputs, labels = _photographs(spec, "tinyimagenet_val", 100)
    classifier = load(spec)
    assert _accuracy(classifier, inputs, labels) == pytest.approx(0.7, abs=0.12)
    keep = torch.ones(2, 196, dtype=torch.bool)
    with torch.inference_mode():
        whole = classifier.logits(inputs[:2])
        torch.testing.assert_close(classifier.logits_of_patches(inputs[:2], keep), whole)
