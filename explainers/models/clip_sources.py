"""Build CLIP-like models from open_clip, which loads the weights itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from explainers.models.checkpoint_sets import check_finite
from explainers.models.checkpoints import load_or_convert
from explainers.models.class_embeddings import given_embeddings
from explainers.models.clip import Clip, embed_classes
from explainers.models.image_towers import open_clip_tower
from explainers.models.model_spec import DEFAULT_TEMPLATE, LOCAL_DIR, ModelSpec, Preprocessing, is_file
from explainers.models.regular import check_file, check_folder
from explainers.models.sources import check_known, not_downloaded, published_weights
from explainers.models.transforms import of_steps
from explainers.numerics.fingerprint import sha256_of
from plugins.reasons import first_line

_CONFIG = "open_clip_config.json"
_SCALES = ("logit_scale", "logit_bias")


def check_prompts(spec: ModelSpec) -> None:
    """Check that the class names differ and that every template has a place for a name.

    Raises
    ------
    ValueError
        In one line that begins with the key: class names are missing, empty or given twice, or a template
        has no place for a name.
    """
    _check_classes(spec.classes or ())
    _check_templates((DEFAULT_TEMPLATE,) if spec.templates is None else spec.templates)
    if spec.class_embeddings is not None and spec.templates is not None:
        raise ValueError(
            "model.templates: model.class_embeddings stand for the classes already; leave one out"
        )


def _check_classes(classes: Sequence[str]) -> None:
    if not classes:
        raise ValueError('model.classes: name the classes, such as classes = ["cat", "dog"]')
    for index, (name, count) in enumerate(Counter(classes).items()):
        if not name.strip():
            raise ValueError(f"model.classes: class {index} has an empty name")
        if count > 1:
            raise ValueError(f"model.classes: {name!r} is named twice; name it once")


def _check_templates(templates: Sequence[str]) -> None:
    if not templates:
        raise ValueError("model.templates: give at least one, or leave the key out")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"model.templates: {template!r} has no {{}} for the name of a class")


def clip_of_texts(
    spec: ModelSpec, model: Any, visual: nn.Module, tower: str, encode: Callable[[list[str]], Tensor]
) -> Clip:
    """The classifier made of an image tower and the embeddings of the job's classes.

    The class embeddings are computed here, so that ``model`` is not needed afterwards, except for ``visual``.
    The weights of the image tower have names in ``model`` that begin with ``tower`` and a dot.
    """
    classes, templates = spec.classes or (), spec.templates or (DEFAULT_TEMPLATE,)
    # The image tower's weights are in the classifier's own state dict.
    fingerprint = sha256_of({k: v for k, v in model.state_dict().items() if not k.startswith(f"{tower}.")})
    fingerprint.update(json.dumps([classes, templates]).encode())
    return _compared(model, visual, embed_classes(encode, classes, templates), fingerprint.digest())


def clip_of_embeddings(spec: ModelSpec, model: Any, visual: nn.Module, length: int) -> Clip:
    """The classifier made of an image tower and the job's class embeddings, which have ``length`` values."""
    rows = given_embeddings(spec, length)
    scales = {name: value for name, value in model.state_dict().items() if name in _SCALES}
    fingerprint = sha256_of({**scales, "class_embeddings": rows})
    fingerprint.update(json.dumps(spec.classes).encode())
    return _compared(model, visual, rows.to(model.logit_scale.device), fingerprint.digest())


def _compared(model: Any, visual: nn.Module, rows: Tensor, fingerprint: bytes) -> Clip:
    bias = getattr(model, "logit_bias", None)
    return Clip(
        visual,
        rows,
        logit_scale=model.logit_scale.exp().item(),
        logit_bias=0.0 if bias is None else bias.item(),
        text_fingerprint=fingerprint,
    )


# open_clip


def _open_clip_settings(spec: ModelSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's configuration, and the part of its weights' configuration that is not the default."""
    import open_clip
    from open_clip.pretrained import download_pretrained_from_hf

    schema, _, place = (spec.name or "").partition(":")
    if schema not in {"local-dir", "hf-hub"}:
        check_known("name", spec.name, open_clip.list_models())
        tag = published_weights(spec)
        if tag is None:
            return open_clip.get_model_config(spec.name), {}
        check_known("weights", tag, ["none", *open_clip.list_pretrained_tags_by_model(spec.name)])
        return open_clip.get_model_config(spec.name), open_clip.get_pretrained_cfg(spec.name, tag)
    check_known("weights", spec.weights, ["pretrained", "none"])
    file = Path(place) / _CONFIG
    if schema == "local-dir" and Path(place).is_dir():
        check_folder("model.name", Path(place))
    if schema == "hf-hub":
        try:
            file = Path(download_pretrained_from_hf(place, filename=_CONFIG))
        except OSError as error:
            raise not_downloaded(spec, error, "folder") from error
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        return dict(settings["model_cfg"]), dict(settings.get("preprocess_cfg", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"model.name: cannot read {file}: {first_line(error)}") from error


def open_clip_preprocessing(spec: ModelSpec) -> Preprocessing:
    """The preprocessing of an open_clip model: that of its weights, at the size of its image tower.

    Raises
    ------
    ValueError
        In one line that begins with the key: the name or the weights are unknown, or the configuration cannot
        be read.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    model, weights = _open_clip_settings(spec)
    try:
        size = open_clip.CLIPVisionCfg(**model["vision_cfg"]).image_size
        found = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), {**weights, "size": size}))
        steps = image_transform_v2(found, is_train=False).transforms
    except (AssertionError, KeyError, TypeError) as error:
        raise ValueError(
            f"model.name: {spec.name} has no valid open_clip configuration: {first_line(error)}"
        ) from error
    return of_steps(steps, found.mean, found.std)


def open_clip_network(spec: ModelSpec, device: str | torch.device) -> Clip:
    """An open_clip model on ``device``, with its weights, as a classifier of the job's classes.

    Raises
    ------
    ValueError
        In one line that begins with the key: the weights cannot be found, downloaded or loaded.
    """
    import open_clip

    config, settings = _open_clip_settings(spec)
    # 27 tags were trained with another activation than their architecture has, and the library only warns
    # about that.
    quick_gelu = settings.get("quick_gelu", False)
    if spec.class_embeddings is not None:
        return _of_embeddings(spec, config["embed_dim"], quick_gelu, device)
    model = _whole_model(spec, quick_gelu, device)
    tokenizer = tokenizer_of(spec, lambda: open_clip.get_tokenizer(spec.name))
    if is_file(spec.weights or ""):
        file = Path(str(spec.weights))
        load_or_convert(model, file, lambda: _convert(spec, model, file), spec.weights_key)
    check_finite(spec.weights or "", model)
    model.visual.output_tokens = False  # CoCa's tower would return the patch tokens as well
    return clip_of_texts(
        spec, model, model.visual, "visual", lambda prompts: model.encode_text(tokenizer(prompts).to(device))
    )


def _whole_model(spec: ModelSpec, quick_gelu: bool, device: str | torch.device) -> Any:
    """The library's model with both towers, with its weights unless they are in a file of the job's."""
    import open_clip

    name, weights = spec.name or "", spec.weights or ""
    file = Path(weights) if is_file(weights) else None
    if file is not None:
        check_file("model.weights", file)
    wanted = weights != "none" and file is None
    try:
        return open_clip.create_model(
            name,
            # A folder or a repository has weights of its own.
            pretrained=None if ":" in name or not wanted else weights,
            load_weights=wanted,
            require_pretrained=wanted,
            pretrained_text=False,
            force_quick_gelu=quick_gelu,
            device=device,
        ).eval()
    except Exception as error:  # without an internet connection, the kind of error depends on the hub client
        if weights == "none":
            raise ValueError(
                f"model.name: {name} cannot be made ({first_line(error)}); if its text tower is on a hub "
                "that is not reached, give model.class_embeddings, which need none"
            ) from error
        if name.startswith(LOCAL_DIR) or file is not None:
            raise _not_loaded(spec, error) from error
        raise not_downloaded(spec, error, "folder" if ":" in name else "file") from error


def _of_embeddings(spec: ModelSpec, length: int, quick_gelu: bool, device: str | torch.device) -> Clip:
    """The classifier made of an image tower alone and the job's class embeddings of ``length`` values."""
    try:
        tower = open_clip_tower(spec, quick_gelu, device)
    except Exception as error:  # without an internet connection the kind depends on the hub client
        if str(error).startswith("model."):
            raise
        raise _not_loaded(spec, error) from error
    check_finite(spec.weights or "", tower)
    tower.visual.output_tokens = False  # CoCa's tower would return the patch tokens as well
    return clip_of_embeddings(spec, tower, tower.visual, length)


def tokenizer_of(spec: ModelSpec, read: Callable[[], Any]) -> Any:
    """The tokenizer that ``read`` returns.

    Raises
    ------
    ValueError
        In one line that begins with the key, if it raises an exception.
    """
    try:
        return read()
    except Exception as error:  # it may have to come from a hub
        raise ValueError(
            f"model.classes: the tokenizer of {spec.name} cannot be read ({first_line(error)}); give "
            "model.class_embeddings, which need none"
        ) from error


def _not_loaded(spec: ModelSpec, error: Exception) -> ValueError:
    return ValueError(f"model.weights: open_clip cannot load {spec.name}: {first_line(error)}")


def _convert(spec: ModelSpec, model: nn.Module, file: Path) -> None:
    """Load a file that others wrote, or that has positions for another size, as the library converts it."""
    import open_clip

    try:
        open_clip.load_checkpoint(model, str(file))
    except Exception as error:
        raise _not_loaded(spec, error) from error
