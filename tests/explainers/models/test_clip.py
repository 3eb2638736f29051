"""CLIP-like classifiers against open_clip and Hugging Face themselves, on small random towers."""

import copy
import io
import json
import math
import os
from typing import Any, NamedTuple

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    SiglipConfig,
    SiglipModel,
)

import toys
from explainers.gradcam import GradCam
from explainers.models.loading import ModelSpec, load
from families import MEAN, STD, normalised, pixels, randomised

CLASSES = ("cat", "dog", "fire engine", "{brace}")
TEMPLATES = ("a photo of a {}.", "{} and {}", "no {} here")
SCALE = 3.0
LONGEST = 48  # tokens of a text
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VIT = {"image_size": 64, "patch_size": 16, "width": 32, "head_width": 16, "layers": 3}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}
# name: (default layer, activation shape, grid, prefix tokens)
KINDS = {
    "open_clip_resnet": ("visual.layer4", (256, 2, 2), (2, 2), 0),
    "open_clip_vit": ("visual.transformer.resblocks.2:input", (17, 32), (4, 4), 1),
    "huggingface_vit": ("visual.layers.2:input", (17, 32), (4, 4), 1),
    "huggingface_siglip": ("visual.layers.2", (16, 32), (4, 4), 0),
}
VITS = [name for name in KINDS if name.endswith("vit")]


class Made(NamedTuple):
    spec: ModelSpec
    model: Any  # the library's own
    tokenizer: Any

    def texts(self, *prompts):
        """Embeddings (n, d), by the library."""
        if self.spec.source == "open_clip":
            return self.model.encode_text(self.tokenizer(list(prompts)))
        if isinstance(self.model, SiglipModel):
            tokens = self.tokenizer(
                list(prompts), padding="max_length", max_length=LONGEST, return_tensors="pt"
            )
            return self.model.get_text_features(input_ids=tokens.input_ids).pooler_output
        tokens = self.tokenizer(list(prompts), padding=True, return_tensors="pt")
        return self.model.get_text_features(**tokens).pooler_output

    def images(self, inputs):
        """Embeddings (B, d), by the library."""
        if self.spec.source == "open_clip":
            return self.model.encode_image(normalised(inputs))
        return self.model.get_image_features(normalised(inputs)).pooler_output


def in_open_clip(folder, vision, **options):
    """A model saved as a folder that the library reads as local-dir:FOLDER."""
    torch.manual_seed(3)
    model = open_clip.CLIP(24, vision, TEXT, init_logit_scale=SCALE, **options)
    randomised(model.visual)
    return saved_by_open_clip(folder, model.eval(), vision, **options)


def saved_by_open_clip(folder, model, vision, **options):
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, **options}
    inputs = {"mean": MEAN, "std": STD, "interpolation": "bilinear"}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": inputs})
    (folder / "open_clip_config.json").write_text(text)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    spec = ModelSpec(source="open_clip", name=f"local-dir:{folder}", weights="pretrained", classes=CLASSES)
    return Made(spec, model, open_clip.SimpleTokenizer(context_length=16))


def in_hugging_face(folder, kind=CLIPModel):
    letters = "abcdefghijklmnopqrstuvwxyz.{}"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>", "do", "dog</w>"]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocabulary, [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")])
    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 3}
    ends = {"bos_token_id": len(words), "eos_token_id": len(words) + 1, "pad_token_id": len(words) + 1}
    text = {**size, "vocab_size": len(vocabulary), "max_position_embeddings": LONGEST, **ends}
    image = {**size, "image_size": 64, "patch_size": 16}
    if kind is CLIPModel:
        config = CLIPConfig(
            text_config=text, vision_config=image, projection_dim=24, logit_scale_init_value=2.0
        )
    else:
        config = SiglipConfig(text_config=text, vision_config=image)
    torch.manual_seed(4)
    model = randomised(kind(config)).eval()
    model.logit_scale.data.fill_(SCALE)
    if kind is SiglipModel:
        model.logit_bias.data.zero_()
    processor = CLIPImageProcessor(
        size={"shortest_edge": 72}, crop_size=64, resample=2, image_mean=MEAN, image_std=STD
    )
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)
    spec = ModelSpec(source="huggingface", name=str(folder), weights="pretrained", classes=CLASSES)
    return Made(spec, model, tokenizer)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) for name in KINDS}
    return {
        "open_clip_resnet": in_open_clip(folders["open_clip_resnet"], RESNET),
        "open_clip_vit": in_open_clip(folders["open_clip_vit"], VIT),
        "huggingface_vit": in_hugging_face(folders["huggingface_vit"]),
        "huggingface_siglip": in_hugging_face(folders["huggingface_siglip"], SiglipModel),
    }


@pytest.fixture(params=list(KINDS))
def made(request, models):
    return models[request.param]


def unit(vectors):
    return vectors / vectors.norm(dim=-1, keepdim=True)


def similarities(made, inputs, classes=CLASSES, templates=TEMPLATES):
    """(B, C) cosine similarities, one prompt after the other."""
    rows = []
    for name in classes:
        prompts = [unit(made.texts(template.replace("{}", name)))[0] for template in templates]
        rows.append(unit(torch.stack(prompts).mean(0)))
    return unit(made.images(inputs)) @ torch.stack(rows).T


# The classifier


@pytest.mark.parametrize("batch", [256, 5])
def test_logits_are_the_librarys_cosine_similarities_times_its_scale(made, batch, monkeypatch):
    monkeypatch.setattr("explainers.models.clip._PROMPTS_PER_STEP", batch)
    with load(made.spec.model_copy(update={"templates": TEMPLATES})) as classifier, torch.no_grad():
        expected = similarities(made, pixels())
        torch.testing.assert_close(
            classifier.logits(pixels()), math.exp(SCALE) * expected, rtol=1e-4, atol=1e-4
        )
        assert classifier.logit_scale == pytest.approx(math.exp(SCALE))
        assert classifier.num_classes == len(CLASSES)
    assert expected.std(0).min() > 1e-4  # images are told apart
    assert expected.std(1).min() > 1e-3  # and classes


def test_the_default_prompt_is_a_photo_of_a_class(made):
    with load(made.spec) as classifier, torch.no_grad():
        expected = classifier.logit_scale * similarities(made, pixels(), templates=["a photo of a {}."])
        torch.testing.assert_close(classifier.logits(pixels()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_the_network_is_cut_where_its_units_are(name, models):
    layer, shape, grid, prefix = KINDS[name]
    with load(models[name].spec) as classifier, torch.no_grad():
        assert (classifier.layer, classifier.activation_shape) == (layer, shape)
        assert (classifier.grid, classifier.prefix_tokens) == (grid, prefix)
        assert classifier.units.kind == ("tokens" if len(shape) == 2 else "channels")
        activations = classifier.activations(pixels())
        torch.testing.assert_close(classifier.head(activations), classifier.logits(pixels()))
        assert not torch.allclose(
            classifier.head(activations.square()), classifier.logits(pixels()), atol=1e-3
        )


def test_the_text_tower_is_gone(made):
    with load(made.spec) as classifier:
        state = classifier.network.state_dict()
        tower = made.model.visual if made.spec.source == "open_clip" else made.model.vision_model
        extra = made.model.visual_projection.weight.numel() if isinstance(made.model, CLIPModel) else 0
        left = sum(parameter.numel() for parameter in classifier.network.parameters())
    assert left == sum(parameter.numel() for parameter in tower.parameters()) + extra
    assert all(name.startswith("visual.") or name == "text_fingerprint" for name in state)


# Class embeddings that the job gives


@pytest.fixture
def no_texts(monkeypatch):
    """Whoever asks for a tokenizer fails the test."""

    def asked(*args, **kwargs):
        raise AssertionError("asked for a tokenizer")

    monkeypatch.setattr(open_clip, "get_tokenizer", asked)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", asked)


def embeddings(made, scale=1.0):
    with torch.no_grad():
        return scale * torch.cat([made.texts(f"a photo of a {name}.") for name in CLASSES])


def embedded(made, file, **changes):
    return made.spec.model_copy(update={"class_embeddings": str(file), **changes})


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".safetensors"])
def test_given_embeddings_stand_for_the_texts(made, suffix, tmp_path, no_texts):
    rows, file = embeddings(made, 7.0), tmp_path / f"rows{suffix}"
    if suffix == ".npy":
        np.save(file, rows.double().numpy())
    else:
        (torch.save if suffix == ".pt" else save_file)({"rows": rows}, file)
    with load(embedded(made, file)) as classifier, torch.no_grad():
        expected = similarities(made, pixels(), templates=["a photo of a {}."])
        torch.testing.assert_close(
            classifier.logits(pixels()), classifier.logit_scale * expected, rtol=1e-4, atol=1e-4
        )
        assert classifier.logit_scale == pytest.approx(math.exp(SCALE))
        assert [name.name for name in classifier.class_names] == list(CLASSES)


def test_the_fingerprint_is_that_of_the_embeddings_directions_and_the_weights(made, tmp_path, no_texts):
    changed = embeddings(made)
    changed[1] += 0.1
    found = []
    for index, rows in enumerate([embeddings(made), embeddings(made, 2.0), changed]):
        np.save(tmp_path / f"{index}.npy", rows.numpy())
        found.append(load(embedded(made, tmp_path / f"{index}.npy")).fingerprint)
    assert found[0] == found[1] != found[2]
    other = load(embedded(made, tmp_path / "0.npy", weights="none")).fingerprint
    assert other != found[0]


def test_the_image_tower_of_a_file_is_taken_from_the_whole_models_weights(
    models, tmp_path, monkeypatch, no_texts
):
    made = models["open_clip_vit"]
    text = {
        **TEXT,
        "hf_model_name": "xlm-roberta-base",
        "hf_tokenizer_name": "xlm-roberta-base",
    }  # on the hub
    config = {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": text}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "other-texts", config)
    np.save(tmp_path / "rows.npy", embeddings(made).numpy())
    state = {"text.anything": torch.zeros(2), **made.model.state_dict()}
    torch.save({"state_dict": state}, tmp_path / "whole.pt")
    torch.save({name: value for name, value in state.items() if name != "visual.proj"}, tmp_path / "part.pt")
    keys = {"name": "other-texts", "weights": str(tmp_path / "whole.pt"), "mean": MEAN, "std": STD}
    with load(embedded(made, tmp_path / "rows.npy", **keys)) as classifier, torch.no_grad():
        expected = similarities(made, pixels(), templates=["a photo of a {}."])
        torch.testing.assert_close(
            classifier.logits(pixels()), math.exp(SCALE) * expected, rtol=1e-4, atol=1e-4
        )
    with pytest.raises(
        ValueError, match=r"^model\.weights: .*part\.pt lacks 1 tensors .* such as visual\.proj$"
    ):
        load(embedded(made, tmp_path / "rows.npy", **keys | {"weights": str(tmp_path / "part.pt")}))


WRONG = {
    "too few": (lambda rows: rows[:2], "has 2 rows, but model.classes names 4 classes"),
    "too short": (lambda rows: rows[:, :5], "have 5 numbers, but "),
    "not finite": (
        lambda rows: rows.index_fill(0, torch.tensor([2]), float("nan")),
        "row 2 of .* no direction",
    ),
    "zero": (lambda rows: rows * torch.tensor([[1.0], [0.0], [1.0], [1.0]]), "row 1 of .* no direction"),
    "one axis": (lambda rows: rows[0], r"holds float32 of shape \(\d+,\), not numbers \(C, d\)"),
    "whole numbers": (lambda rows: rows.long(), "holds int64 of shape"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_embeddings_that_cannot_be_are_refused_in_one_line(kind, made, tmp_path):
    change, reason = WRONG[kind]
    np.save(tmp_path / "rows.npy", change(embeddings(made)).numpy())
    with pytest.raises(ValueError, match=rf"^model\.class_embeddings: .*{reason}") as refused:
        load(embedded(made, tmp_path / "rows.npy"))
    assert "\n" not in str(refused.value)


def test_files_that_hold_no_embeddings_are_refused_in_one_line(models, tmp_path):
    made = models["huggingface_vit"]
    claim = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (4, 10**12)}
    np.lib.format.write_array_header_1_0(claim, header)
    (tmp_path / "claims.npy").write_bytes(claim.getvalue() + bytes(64))
    np.save(tmp_path / "objects.npy", np.array([{}, None]), allow_pickle=True)
    (tmp_path / "empty.npy").touch()
    with (tmp_path / "many.npy").open("wb") as file:  # what np.savez writes, under another name
        np.savez(file, rows=np.ones((2, 3)))
    whole = claim.getvalue()
    (tmp_path / "header.npy").write_bytes(whole.replace(b"}", b"(") + bytes(64))
    torch.save({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "two.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    os.mkfifo(tmp_path / "pipe.npy")
    names = (
        "claims.npy",
        "objects.npy",
        "empty.npy",
        "many.npy",
        "header.npy",
        "two.pt",
        "list.pt",
        "pipe.npy",
        "gone.npy",
        "gone.pt",
    )
    for name in names:
        with pytest.raises(ValueError, match=rf"^model\.class_embeddings: .*{name}") as refused:
            load(embedded(made, tmp_path / name))
        assert "\n" not in str(refused.value)


def test_keys_beside_embeddings(models, tmp_path):
    made = models["huggingface_vit"]
    np.save(tmp_path / "rows.npy", embeddings(made).numpy())
    with pytest.raises(ValueError, match=r"^model\.templates: .* leave one out"):
        load(embedded(made, tmp_path / "rows.npy", templates=TEMPLATES))
    with pytest.raises(ValueError, match=r"^model\.classes: name the classes"):
        load(embedded(made, tmp_path / "rows.npy", classes=None))
    with pytest.raises(ValueError, match=r"^model\.class_embeddings: only open_clip and huggingface take it"):
        load(ModelSpec(source="timm", name="resnet10t", weights="none", class_embeddings="rows.npy"))
    spec = ModelSpec(source="open_clip", name="RN50", class_embeddings="rows.npy")
    assert spec.relative_to(tmp_path).class_embeddings == str(tmp_path / "rows.npy")


def test_grad_cam_explains_it(made):
    with load(made.spec) as classifier:
        explanation = GradCam(classifier, GradCam.Parameters()).explain(toys.batch(classifier, 3))
    assert explanation.maps.shape == (3, *classifier.grid)
    assert explanation.statuses == ["ok"] * 3


def test_the_fingerprint_tells_prompts_and_text_towers_apart(models, tmp_path):
    made = models["open_clip_vit"]
    other = copy.deepcopy(made.model)
    other.text_projection.data[0, 0] += 1
    changes = [
        {},
        {"templates": TEMPLATES},
        {"classes": CLASSES[:3]},
        {"classes": CLASSES[::-1]},
        {"name": saved_by_open_clip(tmp_path, other, VIT).spec.name},
    ]
    found = [load(made.spec.model_copy(update=change)).fingerprint for change in changes]
    assert len(set(found)) == len(changes)
    assert load(made.spec).fingerprint == found[0]


# Patches


def masked(made, inputs, keep):
    """(B, d) image embeddings by the library's own blocks, in which nothing attends to absent patches."""
    model, inputs = made.model, normalised(inputs)
    visible = torch.cat([torch.ones(len(keep), 1, dtype=torch.bool), keep], 1)
    mask = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)[:, None, None]
    mask = mask.expand(-1, 2, visible.shape[1], -1)  # two heads
    if made.spec.source == "open_clip":
        tokens = model.visual._embeds(inputs)
        for block in model.visual.transformer.resblocks:
            tokens = block(tokens, attn_mask=mask.flatten(0, 1))
        return model.visual._pool(tokens)[0] @ model.visual.proj
    tower = model.vision_model
    tokens = tower.pre_layrnorm(tower.embeddings(inputs))
    for block in tower.encoder.layers:
        tokens = block(tokens, mask)
    return model.visual_projection(tower.post_layernorm(tokens[:, 0]))


@pytest.mark.parametrize("name", VITS)
def test_leaving_patches_out_is_masking_them_in_every_attention(name, models):
    made = models[name]
    order = torch.rand(4, 16, generator=torch.Generator().manual_seed(0)).argsort(1)
    keep = order < torch.tensor([[16], [5], [5], [0]])
    with load(made.spec) as classifier, torch.no_grad():
        found = classifier.logits_of_patches(pixels(4), keep)
        whole = classifier.logits(pixels(4))
        images = F.normalize(masked(made, pixels(4), keep), dim=-1)
        expected = classifier.logit_scale * images @ classifier.network.class_embeddings.T
    torch.testing.assert_close(found[0], whole[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[1], whole[1], atol=1e-3)


def test_channel_maps_have_no_patches_to_leave_out(models):
    with load(models["open_clip_resnet"].spec) as classifier:
        assert not classifier.supports_patches


# Other towers of open_clip


def test_the_bias_of_a_sigmoid_loss_is_added(tmp_path):
    made = in_open_clip(tmp_path, VIT, init_logit_bias=-10, nonscalar_logit_scale=True)
    with load(made.spec) as classifier, torch.no_grad():
        expected = classifier.logit_scale * similarities(made, pixels(), templates=["a photo of a {}."]) - 10
        torch.testing.assert_close(classifier.logits(pixels()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "without_patches"),
    [
        ({"pool_type": "avg"}, False),
        ({"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}, True),
    ],
)
def test_towers_that_pool_patches_are_cut_behind_the_last_block(change, without_patches, tmp_path):
    made = in_open_clip(tmp_path, VIT | change)
    nothing = torch.zeros(2, 16, dtype=torch.bool)
    with load(made.spec) as classifier, torch.no_grad():
        made.model.visual.output_tokens = False
        expected = classifier.logit_scale * similarities(made, pixels(), templates=["a photo of a {}."])
        torch.testing.assert_close(classifier.logits(pixels()), expected, rtol=1e-4, atol=1e-4)
        assert (classifier.layer, classifier.prefix_tokens) == ("visual.transformer.resblocks.2", 1)
        if without_patches:
            found = classifier.logits_of_patches(pixels(2), nothing)
            torch.testing.assert_close(found[0], found[1])
        else:
            with pytest.raises(ValueError, match="no logits without any patch"):
                classifier.logits_of_patches(pixels(2), nothing)


def test_the_layer_of_an_unknown_tower_is_found(tmp_path):
    vision = {"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}
    made = in_open_clip(tmp_path, vision)
    with load(made.spec) as classifier, torch.no_grad():
        assert classifier.layer == "visual.trunk.layer4"
        expected = classifier.logit_scale * similarities(made, pixels(), templates=["a photo of a {}."])
        torch.testing.assert_close(classifier.logits(pixels()), expected, rtol=1e-4, atol=1e-4)
        assert classifier.activation_shape == (512, 2, 2)


# Weights


def test_random_weights_leave_the_files_alone(models):
    made = models["open_clip_vit"]
    random = load(made.spec.model_copy(update={"weights": "none"}))
    assert random.fingerprint != load(made.spec).fingerprint
    hugging_face = models["huggingface_vit"].spec
    random = load(hugging_face.model_copy(update={"weights": "none"}))
    assert random.logit_scale == pytest.approx(math.exp(2))  # what the configuration starts from


def test_weights_in_half_precision_are_computed_with_in_float32(models, tmp_path):
    made = models["huggingface_vit"]
    for part in (
        copy.deepcopy(made.model).half(),
        made.tokenizer,
        CLIPImageProcessor.from_pretrained(made.spec.name),
    ):
        part.save_pretrained(tmp_path)
    with load(made.spec.model_copy(update={"name": str(tmp_path)})) as classifier:
        assert {parameter.dtype for parameter in classifier.network.parameters()} == {torch.float32}


def test_weights_that_lack_a_tower_are_refused(models, tmp_path):
    made = models["huggingface_vit"]
    for part in (made.model, made.tokenizer, CLIPImageProcessor.from_pretrained(made.spec.name)):
        part.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"^model.weights: .* lacks 1 tensors, such as text_projection.weight$"
    ):
        load(made.spec.model_copy(update={"name": str(tmp_path)}))
