"""Hugging Face's sequence classifiers from folders, and what a job asks of them in vain."""

import json
import socket

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForMaskedLM, ViTConfig

from explainers.models.classifier import Classifier
from explainers.models.loading import ModelSpec, load
from places import ROOT
from text_toys import TEXTS, config_of, network_of, saved, word_pieces


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever looks a name up fails the test."""

    def looked_up(*args, **kwargs):
        raise AssertionError(f"looked {args[0]} up")

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)


def keys_of(folder, **changes):
    return {"source": "huggingface", "name": str(folder), "weights": "pretrained"} | changes


def text(folder, **changes):
    return load(ModelSpec(**keys_of(folder, **changes)), modality="text")


def line(keys, modality="text"):
    """The one line a job is refused with."""
    with pytest.raises(ValueError, match=r"^model\.") as refusal:
        load(ModelSpec(**keys), modality=modality)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def edited(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_logits_of_a_folder_are_transformers_own_call_on_the_same_strings(kind, tmp_path):
    saved(tmp_path, kind)
    classifier = text(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        own = torch.cat([network(**tokenizer(words, return_tensors="pt")).logits for words in TEXTS])
        stored = torch.stack([torch.from_numpy(classifier.encode(words)[0]) for words in TEXTS])
        found = classifier.logits(classifier.inputs_of(stored))
    torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-5)


def test_weights_are_read_in_float32_or_left_random(tmp_path):
    network_of("bert", num_labels=4).half().save_pretrained(tmp_path)
    word_pieces().save_pretrained(tmp_path)
    read, same, random = text(tmp_path), text(tmp_path), text(tmp_path, weights="none")
    for classifier in (read, random):
        assert {parameter.dtype for parameter in classifier.network.parameters()} == {torch.float32}
    assert read.fingerprint == same.fingerprint != random.fingerprint
    assert read.num_classes == random.num_classes == 4


def test_another_vocabulary_is_another_fingerprint(tmp_path):
    first, other = saved(tmp_path / "first"), saved(tmp_path / "other")
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"dull"', '"gory"'))
    assert text(first).fingerprint != text(other).fingerprint


@pytest.mark.parametrize(
    ("kind", "expected"), [("bert", 24), ("roberta", 24), ("gpt2", 24), ("bart", 24), ("t5", 512)]
)
def test_by_default_texts_are_as_long_as_the_network_takes_and_512_at_most(kind, expected, tmp_path):
    saved(tmp_path, kind)
    assert text(tmp_path).input_shape == (2, expected)
    assert text(tmp_path, max_length=7).input_shape == (2, 7)


def test_by_default_texts_are_as_long_as_the_tokenizer_takes(tmp_path):
    saved(tmp_path)
    edited(tmp_path / "tokenizer_config.json", model_max_length=9)
    assert text(tmp_path).input_shape == (2, 9)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_more_tokens_than_the_network_takes_are_refused_with_both_numbers(kind, tmp_path):
    keys = keys_of(saved(tmp_path, kind), max_length=25)
    assert line(keys) == f"model.max_length: 25 tokens are more than the 24 that {tmp_path} takes"


def test_a_folder_is_relative_to_its_job(tmp_path):
    saved(tmp_path / "weights")
    spec = ModelSpec(**keys_of("weights")).relative_to(tmp_path)
    assert spec.name == str(tmp_path / "weights")


# Refusals


@pytest.mark.parametrize(
    ("keys", "modality", "expected"),
    [
        ({"source": "timm"}, "text", "model.source: texts need huggingface, not 'timm'"),
        ({"source": "nets.py:build"}, "text", "model.source: texts need huggingface, not 'nets.py:build'"),
        (
            {"name": None},
            "text",
            "model.name: it is missing; give a name such as distilbert/distilbert-base-uncased-finetuned",
        ),
        ({"weights": None}, "text", "model.weights: it is missing; give a name such as pretrained"),
        ({"weights": "a.pt"}, "text", "model.weights: there is no 'a.pt'; close are pretrained, none"),
        *(
            ({key: value}, "text", f"model.{key}: is for images, not for texts; leave it out")
            for key, value in {
                "classes": ("good", "bad"),
                "templates": ("{}",),
                "layer": "bert.encoder",
                "resize": 8,
                "crop": 8,
                "mean": (0, 0, 0),
                "std": (1, 1, 1),
            }.items()
        ),
        ({"max_length": 8}, "image", "model.max_length: is for texts, not for images; leave it out"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys, modality, expected):
    assert line(keys_of("a/b", **keys), modality).startswith(expected)


@pytest.mark.parametrize("weights", ["pretrained", "none"])
def test_a_model_that_does_not_classify_texts_is_refused(weights, tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    expected = f"model.name: {tmp_path} classifies no texts; its model type is 'vit'"
    assert line(keys_of(tmp_path, weights=weights)) == expected


def test_a_model_without_a_head_is_refused(tmp_path):
    BertForMaskedLM(config_of("bert")).save_pretrained(tmp_path)
    word_pieces().save_pretrained(tmp_path)
    assert line(keys_of(tmp_path)).startswith(
        f"model.weights: {tmp_path} lacks 4 tensors, such as bert.pooler"
    )


def test_one_output_is_refused_as_a_regression_unless_the_job_says_it_is_a_logit(tmp_path):
    saved(tmp_path, num_labels=1)
    assert line(keys_of(tmp_path)) == (
        f'model.activation: {tmp_path} has one output, as a regression has; set activation = "sigmoid" if '
        "it is the logit of a class"
    )
    with text(tmp_path, activation="sigmoid") as classifier:
        assert (classifier.num_classes, classifier.exclusive, classifier.class_names) == (2, True, None)
        shown = torch.from_numpy(classifier.encode("good")[0])[None].long()
        assert classifier.logits(shown)[0, 0] == 0


def test_several_labels_per_text_are_refused_until_the_job_says_how_to_read_them(tmp_path):
    saved(tmp_path, problem_type="multi_label_classification")
    assert line(keys_of(tmp_path)).endswith('says multi_label_classification; set activation = "sigmoid"')
    for activation in ("softmax", "sigmoid"):
        with text(tmp_path, activation=activation) as classifier:
            assert classifier.exclusive == (activation == "softmax")


def test_a_regression_is_refused_whatever_its_number_of_outputs(tmp_path):
    saved(tmp_path, problem_type="regression")
    assert "says regression, which has no classes; set activation if" in line(keys_of(tmp_path))
    with text(tmp_path, activation="softmax") as classifier:
        assert classifier.num_classes > 1


def test_the_part_that_is_meant_cannot_be_named(tmp_path):
    refused = line(keys_of(saved(tmp_path), returns="loss"))
    assert refused == "model.returns: the logits of a classifier of texts are known; leave the key out"


def test_another_number_of_classes_is_refused(tmp_path):
    keys = keys_of(saved(tmp_path), num_classes=2)
    assert line(keys) == "model.num_classes: the network has 3 classes, not 2"


def test_folders_that_lack_something_are_refused(tmp_path):
    assert line(keys_of(tmp_path)).startswith(f"model.name: cannot read {tmp_path}: ")
    config_of("bert").save_pretrained(tmp_path)
    # Of such a folder the library makes a tokenizer that knows no word.
    assert line(keys_of(tmp_path, weights="none")) == (
        "model.name: the tokenizer knows no words; put its files beside the configuration"
    )
    word_pieces().save_pretrained(tmp_path)
    assert line(keys_of(tmp_path)).startswith(f"model.name: cannot read {tmp_path}: ")


def test_a_tokenizer_that_does_not_know_words_is_refused(tmp_path, monkeypatch):
    saved(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    monkeypatch.setattr(type(read), "is_fast", False)
    assert line(keys_of(tmp_path)) == (
        f"model.name: {type(read).__name__} does not say which word each token belongs to; give a model with "
        "a tokenizer.json"
    )


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    saved(tmp_path)
    edited(
        tmp_path / "config.json",
        model_type="mine",
        auto_map={"AutoConfig": "mine.Config", "AutoModelForSequenceClassification": "mine.Model"},
    )
    (tmp_path / "mine.py").write_text("raise RuntimeError('this was run')")
    refused = line(keys_of(tmp_path))
    assert refused.startswith(f"model.name: cannot read {tmp_path}: ")
    assert "this was run" not in refused


def test_a_download_that_fails_says_to_give_a_folder(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no network\nnone at all")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", unreachable)
    assert line(keys_of("a/b")) == (
        "model.weights: 'pretrained' of a/b cannot be downloaded (no network); give a folder instead"
    )


def test_images_are_what_is_loaded_unless_something_else_is_said():
    spec = ModelSpec(source="torchvision", name="resnet18", weights="none", crop=64)
    assert isinstance(load(spec), Classifier)
    assert isinstance(load(spec, modality="image"), Classifier)


def test_the_demos_folder_is_read():
    folder = ROOT / "examples/weights/reviews"
    if not folder.is_dir():
        pytest.skip("the demo's texts are not here")
    assert text(folder, max_length=32).num_classes == 3
