"""Hugging Face's image classifiers from folders, against the library's own calls, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DetrConfig,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SiglipConfig,
    SiglipModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from explainers.models.huggingface_images import has_text_tower
from explainers.models.loading import ModelSpec, load, network_of, preprocessing
from families import MEAN, STD, randomised
from storage.datasets.geometry import prepare_image

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
VIT = {**SMALL, "image_size": 32, "patch_size": 8}
NAMES = {0: "tench, Tinca tinca", 1: "goldfish", 2: "great white shark"}


def resnet(**changes):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], id2label=NAMES, **changes)
    torch.manual_seed(5)
    return randomised(ResNetForImageClassification(config)).eval()


def saved(folder, model, processor=None):
    """The keys of a job on a model that was saved in a folder, with an image processor."""
    model.save_pretrained(folder)
    size = {"height": 48, "width": 32}
    (processor or ViTImageProcessor(size=size, image_mean=MEAN, image_std=STD)).save_pretrained(folder)
    return {"source": "huggingface", "name": str(folder), "weights": "pretrained"}


def line(keys, read=load):
    with pytest.raises(ValueError, match=r"^model\.") as refused:
        read(ModelSpec(**keys))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def edited(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def keys(folder):
    return saved(folder, resnet())


LAYER = {"layer": "resnet.encoder.stages.1"}


def test_logits_of_a_photograph_are_the_librarys_own_from_file_to_logits(keys, folder):
    noise = np.random.default_rng(0).integers(0, 256, (57, 91, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    own = AutoModelForImageClassification.from_pretrained(folder).eval()
    seen = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
    spec = ModelSpec(**keys, **LAYER)
    stored = torch.from_numpy(prepare_image(image, [], **preprocessing(spec).geometry)[0])
    with load(spec) as classifier, torch.no_grad():
        assert classifier.input_size == (48, 32)
        found = classifier.logits(classifier.inputs_of(stored[None]))
        expected = own(seen).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            classifier.head(classifier.activations(classifier.inputs_of(stored[None]))), found
        )
    assert float(expected.std()) > 0.01


def test_classes_have_the_names_of_the_configuration(keys):
    with load(ModelSpec(**keys, **LAYER)) as classifier:
        assert [name.name for name in classifier.class_names] == ["tench", "goldfish", "great white shark"]
        assert classifier.class_names[0].synonyms == ("Tinca tinca",)


def test_weights_are_read_in_float32_and_the_fingerprint_is_theirs(folder):
    half = saved(folder / "half", resnet().half())
    whole = saved(folder / "whole", resnet().half().float())
    networks = [load(ModelSpec(**each, **LAYER)) for each in (half, whole)]
    assert {each.dtype for each in networks[0].network.parameters()} == {torch.float32}
    assert networks[0].fingerprint == networks[1].fingerprint


def test_random_weights_are_seeded_and_may_have_another_number_of_classes(keys):
    random = {**keys, "weights": "none"}
    first, again = (network_of(ModelSpec(**random), "cpu").state_dict() for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["classifier.1.weight"], resnet().state_dict()["classifier.1.weight"])
    with load(ModelSpec(**random, **LAYER, num_classes=7)) as classifier:
        assert classifier.num_classes == 7
        assert classifier.class_names is None


def test_published_weights_have_the_classes_they_have(keys):
    assert line({**keys, **LAYER, "num_classes": 7}) == "model.num_classes: the network has 3 classes, not 7"
    load(ModelSpec(**keys, **LAYER, num_classes=3)).close()


KINDS = {
    "a distilled classifier": (lambda: DeiTForImageClassificationWithTeacher(DeiTConfig(**VIT)), False),
    "a classifier on a CLIP tower": (
        lambda: CLIPForImageClassification(CLIPConfig(text_config=SMALL, vision_config=VIT)), False
    ),
    "a configuration alone": (lambda: ViTConfig(**VIT), False),
    "a CLIP configuration alone": (lambda: CLIPConfig(text_config=SMALL, vision_config=VIT), True),
    "two towers": (lambda: SiglipModel(SiglipConfig(text_config=SMALL, vision_config=VIT)), True),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_configuration_tells_classifiers_from_models_with_two_towers(kind, folder):
    build, expected = KINDS[kind]
    keys = saved(folder, build())
    assert has_text_tower(ModelSpec(**keys)) is expected
    said = {} if expected else {"classes": ("cat", "dog")}
    refused = line({**keys, **said}, preprocessing)
    if expected:
        assert refused.startswith("model.classes: name the classes")
    else:
        assert refused == f"model.classes: {folder} has classes of its own; leave the key out"


def test_the_distilled_classifiers_logits_are_those_of_both_heads(folder):
    torch.manual_seed(0)
    own = randomised(DeiTForImageClassificationWithTeacher(DeiTConfig(**VIT))).eval()
    network = network_of(ModelSpec(**saved(folder, own)), "cpu").eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        answer = network(pixels)
    torch.testing.assert_close(answer.logits, (answer.cls_logits + answer.distillation_logits) / 2)
    torch.testing.assert_close(answer.logits, own(pixels).logits)


NEITHER = {
    "a detector": (DetrConfig, "is a model of the type 'detr', which is neither", "classifier, or"),
    "a segmenter": (
        lambda: SegformerForSemanticSegmentation(
            SegformerConfig(hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, depths=[1] * 4)
        ),
        "is a SegformerForSemanticSegmentation, which is neither",
        "such as SegformerForImageClassification, or",
    ),
    "a backbone": (lambda: ViTModel(ViTConfig(**VIT)), "is a ViTModel", "such as ViTForImageClassification"),
}


@pytest.mark.parametrize("kind", NEITHER)
def test_a_model_that_is_neither_is_refused_with_what_to_give_instead(kind, folder):
    build, seen, instead = NEITHER[kind]
    refused = line(saved(folder, build()))
    assert refused.startswith(f"model.name: {folder} ")
    assert seen in refused
    assert instead in refused
    assert refused.endswith("or give this one as a callable that returns logits (B, K)")


def test_weights_that_lack_tensors_or_are_not_finite_are_refused(keys, folder):
    file = folder / "model.safetensors"
    state = load_file(file)
    save_file({name: value for name, value in state.items() if not name.startswith("classifier")}, file)
    assert line(keys) == f"model.weights: {folder} lacks 2 tensors, such as classifier.1.bias"
    save_file(state | {"classifier.1.bias": torch.full((3,), float("nan"))}, file)
    assert line(keys).startswith("model.weights: classifier.1.bias in ")


def test_code_of_a_folder_is_never_run(keys, folder):
    (folder / "evil.py").write_text("raise SystemExit('was run')")
    edited(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config"})
    assert line(keys).startswith(f"model.name: cannot read {folder}: ")
    edited(folder / "config.json", model_type="resnet")
    edited(folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Processor"})
    load(ModelSpec(**keys, **LAYER)).close()  # the library's own class is there and is taken


def test_a_folder_without_an_image_processor_needs_the_four_keys(keys, folder):
    (folder / "preprocessor_config.json").unlink()
    refused = line(keys)
    assert f"{folder} has no image processor (there is no preprocessor_config.json)" in refused
    assert refused.endswith("say with the keys resize, crop, mean and std how its images are prepared")
    said = {"resize": 40, "crop": 32, "mean": MEAN, "std": STD}
    with load(ModelSpec(**keys, **LAYER, **said)) as classifier:
        assert classifier.input_size == (32, 32)


def test_timms_networks_in_hugging_faces_form_have_timms_preprocessing(folder):
    config = TimmWrapperConfig(architecture="resnet10t", num_labels=5)
    config.pretrained_cfg = {"input_size": [3, 64, 64], "crop_pct": 0.5, "interpolation": "bicubic"}
    TimmWrapperForImageClassification(config).save_pretrained(folder)
    spec = ModelSpec(source="huggingface", name=str(folder), weights="pretrained")
    found = preprocessing(spec)
    assert (found.resize, found.crop, found.interpolation) == (128, 64, "bicubic")
    assert has_text_tower(spec) is False
    network = network_of(spec, "cpu").eval()
    assert network(torch.zeros(2, 3, 64, 64)).logits.shape == (2, 5)
