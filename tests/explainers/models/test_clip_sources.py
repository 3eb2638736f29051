"""open_clip's and Hugging Face's own preprocessing, and what a job asks of them in vain."""

import json
import os
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    MobileViTImageProcessor,
)

from explainers.models.loading import ModelSpec, Preprocessing, load, preprocessing

OPENAI = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
HALVES = ((0.5,) * 3, (0.5,) * 3)
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
SPEC = {"classes": ("cat", "dog"), "weights": "none"}
OPEN_CLIP = {**SPEC, "source": "open_clip", "name": "ViT-B-32"}
HUGGING_FACE = {**SPEC, "source": "huggingface"}
VISION = {"image_size": 96, "layers": 2, "width": 64, "patch_size": 16}


def local_dir(folder, vision=VISION, **inputs):
    """The keys of a job that read an open_clip configuration without weights."""
    model = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": {"width": 16, "heads": 2, "layers": 1}}
    text = json.dumps({"model_cfg": model, "preprocess_cfg": inputs})
    (folder / "open_clip_config.json").write_text(text)
    return {**OPEN_CLIP, "name": f"local-dir:{folder}"}


def repository(folder, config=None, **processor):
    """The keys of a job that read a Hugging Face folder without weights."""
    (config or CLIPConfig()).save_pretrained(folder)
    CLIPImageProcessor(**processor).save_pretrained(folder)
    return {**HUGGING_FACE, "name": str(folder)}


def line(spec, read=load):
    """The one line a job is refused with."""
    with pytest.raises(ValueError, match=r"^model\.") as refusal:
        read(ModelSpec(**spec))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


# Preprocessing


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"weights": "laion2b_s34b_b79k"}, (224, 224, "bicubic", *OPENAI)),
        ({"weights": "openai", "resize": 256}, (256, 224, "bicubic", *OPENAI)),
        ({"weights": "my.pt", "mean": MEAN, "std": STD}, (224, 224, "bicubic", MEAN, STD)),
        ({"name": "ViT-L-14-336"}, (336, 336, "bicubic", *OPENAI)),
        ({"name": "RN50x4", "crop": 256}, (288, 256, "bicubic", *OPENAI)),
        ({"name": "ViT-B-16-SigLIP", "weights": "webli", "resize": 240}, (240, 224, "bicubic", *HALVES)),
        ({"name": "MobileCLIP-S1", "weights": "datacompdr"}, (256, 256, "bilinear", (0.0,) * 3, (1.0,) * 3)),
    ],
)
def test_open_clips_preprocessing_is_that_of_its_weights_at_the_towers_size(keys, expected):
    assert preprocessing(ModelSpec(**OPEN_CLIP | keys)) == Preprocessing(*expected)


def test_open_clips_preprocessing_of_a_folder_is_the_folders_own(tmp_path):
    keys = local_dir(tmp_path, mean=MEAN, std=STD, interpolation="bilinear", size=77)
    expected = Preprocessing(96, 96, "bilinear", MEAN, STD)  # the library too takes the tower's size
    assert preprocessing(ModelSpec(**keys)) == expected
    model = open_clip.create_model(keys["name"], load_weights=False)
    assert open_clip.get_model_preprocess_cfg(model)["size"] == (96, 96)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (224, 224, "bicubic", *OPENAI)),
        (
            {"size": 80, "crop_size": 64, "resample": 2, "image_mean": MEAN, "image_std": STD},
            (80, 64, "bilinear", MEAN, STD),
        ),
        ({"do_resize": False}, (None, 224, "bicubic", *OPENAI)),
        ({"do_center_crop": False}, (224, None, "bicubic", *OPENAI)),
        ({"crop_size": {"height": 224, "width": 112}}, (224, (224, 112), "bicubic", *OPENAI)),
        # Twice as large pixels are the same as half the mean and half the deviation.
        (
            {"rescale_factor": 1 / 127.5, "image_mean": (0.5, 1, 1.5), "image_std": (1, 2, 3)},
            (224, 224, "bicubic", (0.25, 0.5, 0.75), (0.5, 1, 1.5)),
        ),
        (
            {"do_rescale": False, "image_mean": (51, 102, 204), "image_std": (51, 51, 102)},
            (224, 224, "bicubic", (0.2, 0.4, 0.8), (0.2, 0.2, 0.4)),
        ),
    ],
)
def test_hugging_faces_preprocessing_is_that_of_its_image_processor(settings, expected, tmp_path):
    found = preprocessing(ModelSpec(**repository(tmp_path, **settings)))
    assert found == Preprocessing(*expected, centre="truncate", resampler="torch")


def test_sources_that_squash_do_so_unless_the_job_gives_the_short_side(tmp_path):
    squashed = preprocessing(ModelSpec(**OPEN_CLIP | {"name": "ViT-B-16-SigLIP", "weights": "webli"}))
    assert (squashed.fit, squashed.resize, squashed.crop) == ("squash", 224, 224)
    keys = repository(tmp_path, size={"height": 224, "width": 112}, do_center_crop=False)
    squashed = preprocessing(ModelSpec(**keys))
    assert (squashed.fit, squashed.resize, squashed.size) == ("squash", (224, 112), (224, 112))
    replaced = preprocessing(ModelSpec(**keys, resize=230))
    assert (replaced.fit, replaced.resize, replaced.size) == ("short", 230, (224, 112))
    refused = line({**keys, "crop": 112}, preprocessing)
    assert refused.startswith("model.crop: ")
    assert refused.endswith("give resize, the length of the short side, as well")


def test_inputs_need_not_be_square(tmp_path):
    keys = local_dir(tmp_path, VISION | {"image_size": [96, 64]})
    assert preprocessing(ModelSpec(**keys)).size == (96, 64)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"size": {"shortest_edge": 224, "longest_edge": 300}},
            "resizes images by longest_edge and shortest_edge",
        ),
        ({"size": {"max_height": 224, "max_width": 300}}, "resizes images by max_height and max_width"),
        ({"do_pad": True}, "pads images"),
        ({"image_mean": 0.5}, "states no mean of 3 channels"),
        ({"image_std": (1.0, 1.0, 0.0)}, "states (1.0, 1.0, 0.0) as std"),
    ],
)
def test_what_an_image_processor_does_is_known_or_said_by_the_job(settings, expected, tmp_path):
    keys = repository(tmp_path, **settings)
    refused = line(keys, preprocessing)
    assert expected in refused
    assert refused.endswith("say with the keys resize, crop, mean and std how its images are prepared")
    said = preprocessing(ModelSpec(**keys, resize=256, crop=224, mean=MEAN, std=STD))
    assert said == Preprocessing(256, 224, "bilinear", MEAN, STD)


def test_an_image_processor_with_steps_of_its_own_is_refused(tmp_path):
    keys = repository(tmp_path)
    MobileViTImageProcessor().save_pretrained(tmp_path)  # it turns the order of the colours
    assert "steps of its own, MobileViTImageProcessor" in line(keys, preprocessing)


def test_an_image_processor_that_does_not_normalise_leaves_pixels_as_they_are(tmp_path):
    found = preprocessing(ModelSpec(**repository(tmp_path, do_normalize=False)))
    assert (found.mean, found.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("vision", [None, [], {"no_such_key": 1}])
def test_a_folder_with_another_kind_of_configuration_is_refused(vision, tmp_path):
    keys = local_dir(tmp_path, VISION)
    config = tmp_path / "open_clip_config.json"
    written = json.loads(config.read_text())
    written["model_cfg"]["vision_cfg"] = vision
    config.write_text(json.dumps(written))
    assert "has no valid open_clip configuration: " in line(keys, preprocessing)
    config.write_text("[]")
    assert line(keys, preprocessing).startswith(f"model.name: cannot read {config}")


# Names


def test_folders_of_a_job_are_relative_to_it(tmp_path):
    spec = ModelSpec(**OPEN_CLIP | {"name": "local-dir:../clip"})
    assert spec.relative_to(Path("/jobs")).name == "local-dir:/jobs/../clip"
    assert ModelSpec(**OPEN_CLIP).relative_to(Path("/jobs")).name == "ViT-B-32"
    (tmp_path / "clip").mkdir()
    spec = ModelSpec(**HUGGING_FACE, name="clip")
    assert spec.relative_to(tmp_path).name == str(tmp_path / "clip")
    assert spec.relative_to(Path("/jobs")).name == "clip"


@pytest.mark.parametrize("source", ["open_clip", "huggingface"])
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"classes": None}, 'model.classes: name the classes, such as classes = ["cat", "dog"]'),
        ({"classes": ()}, 'model.classes: name the classes, such as classes = ["cat", "dog"]'),
        ({"classes": ("cat", " ")}, "model.classes: class 1 has an empty name"),
        ({"classes": ("cat", "dog", "cat")}, "model.classes: 'cat' is named twice; name it once"),
        ({"templates": ()}, "model.templates: give at least one, or leave the key out"),
        ({"templates": ("{}", "a dog")}, "model.templates: 'a dog' has no {} for the name of a class"),
    ],
)
def test_prompts_that_cannot_be_are_refused(source, keys, expected, tmp_path):
    keys = (OPEN_CLIP if source == "open_clip" else repository(tmp_path)) | keys
    assert line(keys) == line(keys, preprocessing) == expected


@pytest.mark.parametrize("key", ["classes", "templates"])
@pytest.mark.parametrize("source", ["torchvision", "timm", "my.networks:build"])
def test_prompts_are_refused_where_no_text_is_read(source, key):
    expected = f"model.{key}: only open_clip and huggingface take it; leave it out"
    assert line({"source": source, "name": "resnet18", "weights": "none", key: ("a {}",)}) == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"source": "openclip"},
            "model.source: unknown source 'openclip'; choose torchvision, timm, open_clip",
        ),
        ({"name": None}, "model.name: it is missing; give a name such as "),
        ({"name": "ViT-B-23"}, "model.name: there is no 'ViT-B-23'; close are ViT-B-32"),
        (
            {"weights": None},
            "model.weights: they are missing; give a file, a name that the source knows, or none",
        ),
        ({"weights": "laion2b"}, "model.weights: there is no 'laion2b'; close are laion2b_e16, laion2b_s34b"),
        ({"weights": "gone.pt"}, "model.weights: there is no file gone.pt"),
        ({"name": "local-dir:gone"}, "model.name: cannot read gone/open_clip_config.json: "),
        ({"name": "local-dir:gone", "weights": "my.pt"}, "model.weights: there is no 'my.pt'; close are pre"),
    ],
)
def test_open_clip_names_that_are_not_there_are_refused(keys, expected):
    assert line(OPEN_CLIP | keys).startswith(expected)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"name": None},
            "model.name: it is missing; give a name such as google/vit-base-patch16-224 or "
            "openai/clip-vit-base-patch32, or a folder",
        ),
        ({"name": "a/b", "weights": None}, "model.weights: it is missing; give a name such as pretrained"),
        ({"name": "a/b", "weights": "my.pt"}, "model.weights: there is no 'my.pt'; close are pretrained"),
    ],
)
def test_hugging_face_names_that_are_not_there_are_refused(keys, expected):
    assert line(HUGGING_FACE | keys).startswith(expected)


def test_folders_and_files_that_do_not_fit_are_refused(tmp_path):
    keys = repository(tmp_path)
    assert line(keys | {"weights": "pretrained"}).startswith(f"model.name: cannot read {tmp_path}: ")
    keys = local_dir(tmp_path)
    refused = line(keys | {"weights": "pretrained"})
    assert refused.startswith(
        f"model.weights: open_clip cannot load local-dir:{tmp_path}: Required pretrained"
    )
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert "open_clip_config.json: 'model_cfg'" in line(keys)
    save_file({"something": torch.zeros(1)}, tmp_path / "other.safetensors")
    refused = line(OPEN_CLIP | {"name": "RN50", "weights": f"{tmp_path}/other.safetensors"})
    assert refused.startswith(
        "model.weights: open_clip cannot load RN50: Error(s) in loading state_dict for CLIP"
    )


# Downloads


def test_downloads_that_fail_say_what_to_give_instead(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no network\nnone at all")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", unreachable)
    assert line(OPEN_CLIP | {"weights": "laion2b_s34b_b79k"}) == (
        "model.weights: 'laion2b_s34b_b79k' of ViT-B-32 cannot be downloaded (Failed to download weights for "
        "tag 'laion2b_s34b_b79k': no network); give a file instead"
    )
    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", unreachable)
    assert line(OPEN_CLIP | {"name": "hf-hub:a/b", "weights": "pretrained"}) == (
        "model.weights: 'pretrained' of hf-hub:a/b cannot be downloaded (Failed to download file "
        "(open_clip_config.json) for a/b. Last error: no network); give a folder instead"
    )
    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    assert line(HUGGING_FACE | {"name": "a/b", "weights": "pretrained"}) == (
        "model.weights: 'pretrained' of a/b cannot be downloaded (no network); give a folder instead"
    )


@pytest.mark.parametrize("part", ["hf_tokenizer_name", "hf_model_name"])
def test_texts_that_need_a_hub_say_that_embeddings_need_none(part, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", unreachable)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", unreachable)
    text = {"width": 16, "heads": 2, "layers": 1, part: "some/where"}
    model = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": text}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "hub-texts", model)
    refused = line(OPEN_CLIP | {"name": "hub-texts"})
    what = {
        "hf_tokenizer_name": "model.classes: the tokenizer of hub-texts cannot be read (no network); give ",
        "hf_model_name": "model.name: hub-texts cannot be made (no network); if its text tower is on a hub ",
    }
    assert refused.startswith(what[part])
    assert refused.endswith("model.class_embeddings, which need none")


def test_a_folder_without_a_tokenizer_says_that_embeddings_need_none(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = CLIPConfig(text_config=small, vision_config=small | {"image_size": 32, "patch_size": 16})
    refused = line(repository(tmp_path, config))
    assert refused.startswith(f"model.classes: the tokenizer of {tmp_path} cannot be read (")
    assert refused.endswith("); give model.class_embeddings, which need none")


# Weights from files and tags


@pytest.mark.parametrize("quick", [False, True])
def test_tags_get_the_activation_they_were_trained_with_and_files_the_architectures(
    quick, tmp_path, monkeypatch
):
    model = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": {"width": 16, "heads": 2, "layers": 1}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", model)
    file = tmp_path / "tiny.safetensors"
    tag = {"file": str(file), "quick_gelu": quick, "mean": MEAN, "std": STD}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"mine": tag})
    torch.manual_seed(0)
    trained, plain = (open_clip.CLIP(**model, quick_gelu=option).eval() for option in (quick, False))
    plain.load_state_dict(trained.state_dict())
    save_file(trained.state_dict(), file)
    pixels = torch.rand(2, 3, 96, 96)
    texts = open_clip.tokenize(["a photo of a cat.", "a photo of a dog."])
    for weights, reference in (("mine", trained), (str(file), plain)):
        with load(ModelSpec(**OPEN_CLIP | {"name": "tiny", "weights": weights})) as classifier:
            with torch.no_grad():
                found = classifier.logits(pixels)
                expected = reference.get_logits((pixels - classifier.mean) / classifier.std, texts)[0]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            assert torch.allclose(classifier.mean.flatten(), torch.tensor(MEAN)) is (weights == "mine")


def test_a_file_with_two_sets_of_weights_needs_the_key(tmp_path, monkeypatch):
    model = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": {"width": 16, "heads": 2, "layers": 1}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", model)
    raw, averaged = (open_clip.CLIP(**model).state_dict() for _ in range(2))
    torch.save({"state_dict": raw, "state_dict_ema": averaged}, tmp_path / "two.pt")
    keys = OPEN_CLIP | {"name": "tiny", "weights": str(tmp_path / "two.pt")}
    assert "'state_dict', 'state_dict_ema'; name the one to take" in line(keys)
    with load(ModelSpec(**keys, weights_key="state_dict_ema")) as classifier:
        found = classifier.network.visual.state_dict()
    assert all(torch.equal(value, averaged[f"visual.{name}"]) for name, value in found.items())
    assert line({**OPEN_CLIP, "weights_key": "ema"}) == (
        "model.weights_key: only a file of weights has keys; leave it out"
    )


def test_files_of_others_are_converted_by_the_library_unless_they_hold_several_sets(tmp_path, monkeypatch):
    model = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": {"width": 16, "heads": 2, "layers": 1}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", model)
    monkeypatch.setitem(
        open_clip.factory._MODEL_CONFIGS, "smaller", model | {"vision_cfg": VISION | {"image_size": 48}}
    )
    first, second = (open_clip.CLIP(**model).state_dict() for _ in range(2))
    keys = OPEN_CLIP | {"name": "smaller", "weights": str(tmp_path / "larger.pt")}
    torch.save({"state_dict": first, "optimizer": {"state": {}}}, tmp_path / "larger.pt")
    with load(ModelSpec(**keys)) as classifier:  # the library interpolates the embeddings of positions
        assert torch.equal(classifier.network.visual.conv1.weight, first["visual.conv1.weight"])
    np.save(tmp_path / "rows.npy", np.eye(len(keys["classes"]), 8, dtype=np.float32))
    embedded = keys | {"class_embeddings": str(tmp_path / "rows.npy")}
    with load(ModelSpec(**embedded)) as classifier:
        assert torch.equal(classifier.network.visual.conv1.weight, first["visual.conv1.weight"])
    torch.save({"state_dict": first, "state_dict_ema": second}, tmp_path / "larger.pt")
    for several in (keys, embedded):
        assert "does not fit the network: its names begin with 'state_dict" in line(several)


# Folders


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_pipe_in_a_folder_is_not_opened(name, tmp_path):
    keys = repository(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert line(keys) == f"model.name: {tmp_path}/{name} is a pipe, not a file; give the path of a file"


def test_an_open_clip_folder_with_a_device_is_not_opened(tmp_path):
    keys = local_dir(tmp_path)
    (tmp_path / "open_clip_config.json").unlink()
    (tmp_path / "open_clip_config.json").symlink_to("/dev/zero")
    assert line(keys).endswith("open_clip_config.json is a device, not a file; give the path of a file")


def test_weights_of_a_folder_that_are_not_finite_are_named(tmp_path):
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = CLIPConfig(text_config=vision, vision_config=vision | {"image_size": 32, "patch_size": 16})
    model = CLIPModel(config)
    with torch.no_grad():
        model.visual_projection.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    CLIPTokenizer({"<|startoftext|>": 0, "<|endoftext|>": 1}, []).save_pretrained(tmp_path)
    keys = {**HUGGING_FACE, "name": str(tmp_path), "weights": "pretrained"}
    CLIPImageProcessor().save_pretrained(tmp_path)
    assert line(keys).startswith("model.weights: visual_projection.weight in ")
