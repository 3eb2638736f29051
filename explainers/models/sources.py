"""Build networks from torchvision, timm, or a callable."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from explainers.models.model_spec import ModelSpec, Preprocessing, is_file
from explainers.models.regular import check_file
from explainers.models.transforms import of_steps, of_torchvision
from plugins.addresses import import_callable
from plugins.reasons import first_line

# torchvision


def _torchvision_entry(spec: ModelSpec) -> tuple[Any, bool]:
    """The entry of published weights that has the preprocessing, and whether its weights are loaded too."""
    from torchvision import models

    check_known("name", spec.name, models.list_models(module=models))
    entries = models.get_model_weights(spec.name)
    published = published_weights(spec)
    if published is None:
        return _entry_of_file(spec, list(entries)), False
    check_known("weights", published, ["none", *entries.__members__])
    return entries[published], True


def _entry_of_file(spec: ModelSpec, entries: list[Any]) -> Any:
    """The published weights that a file holds, found by its checksum; else the first of the network."""
    path = Path(str(spec.weights))
    if len(entries) > 1 and is_file(str(spec.weights)) and path.is_file():
        about = path.stat()
        digest = _digest(path, about.st_mtime_ns, about.st_size)
        for entry in entries:
            begins = re.search(r"-([0-9a-f]{8,})\.pth$", entry.url)
            if begins and digest.startswith(begins[1]):
                return entry
    return entries[0]


@lru_cache(maxsize=8)
def _digest(path: Path, changed: int, size: int) -> str:  # noqa: ARG001  # a file that has changed is read again
    """The SHA-256 of a file, which several functions ask for."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def torchvision_preprocessing(spec: ModelSpec) -> Preprocessing:
    """The preprocessing of a torchvision network.

    It is that of the named weights; for a file or random weights, that of the first published weights, unless
    the file is the file of others.

    Raises
    ------
    ValueError
        In one line that begins with the key: the name or the weights are unknown.
    """
    return of_torchvision(_torchvision_entry(spec)[0].transforms())


def torchvision_network(spec: ModelSpec) -> nn.Module:
    """A torchvision network on the CPU, with published weights if the job names them.

    Without them it is built as for published weights, because a file fits no other network.

    Raises
    ------
    ValueError
        In one line that begins with the key: the name or the weights are unknown, published weights have
        another number of classes, or they cannot be downloaded.
    """
    from torchvision import models

    entry, wanted = _torchvision_entry(spec)
    if not wanted:
        size = {} if spec.num_classes is None else {"num_classes": spec.num_classes}
        network: nn.Module = models.get_model(
            spec.name, weights=None, **_as_published(str(spec.name), entry), **size
        )
        return network
    _check_published_classes(spec, len(entry.meta["categories"]))
    try:
        network = models.get_model(spec.name, weights=entry)
    except OSError as error:
        raise not_downloaded(spec, error) from error
    return network


def _as_published(name: str, entry: Any) -> dict[str, Any]:
    """What torchvision's builder sets for published weights, besides the number of classes."""
    if name in {"googlenet", "inception_v3"}:
        # Their published weights take inputs in another scaling than torchvision's transform gives; the
        # network converts them. The auxiliary heads are for training.
        return {"transform_input": True, "aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):  # some weights are for larger images than the others of their network
        return {"image_size": entry.meta["min_size"][0]}
    return {}


def _check_published_classes(spec: ModelSpec, classes: int) -> None:
    if spec.num_classes not in (None, classes):
        raise ValueError(
            f"model.num_classes: the published weights {spec.weights!r} have {classes} classes, not "
            f"{spec.num_classes}; give a file with your own, or none"
        )


def not_downloaded(spec: ModelSpec, error: Exception, instead: str = "file") -> ValueError:
    """The error for weights that cannot be downloaded; the message proposes ``instead``."""
    return ValueError(
        f"model.weights: {spec.weights!r} of {spec.name} cannot be downloaded ({first_line(error)}); give a "
        f"{instead} instead"
    )


# timm


def _timm_name(spec: ModelSpec) -> tuple[str, bool]:
    """timm's full name (architecture.tag), and whether published weights are loaded."""
    import timm

    base, _, tag = (spec.name or "").partition(".")
    check_known("name", base or None, timm.list_models())
    published_names = timm.list_pretrained(f"{base}.*")
    if tag:
        check_known("name", spec.name, published_names)
    published = published_weights(spec)
    if published not in (None, "pretrained"):
        tags = [name.partition(".")[2] for name in published_names]
        check_known("weights", published, ["pretrained", "none", *tags])
        tag = published
    return f"{base}.{tag}" if tag else base, published is not None


def timm_preprocessing(spec: ModelSpec) -> Preprocessing:
    """The preprocessing of a timm network: that of its data configuration.

    Raises
    ------
    ValueError
        In one line that begins with the key: the name or the weights are unknown.
    """
    import timm

    settings = timm.get_pretrained_cfg(_timm_name(spec)[0])
    found = timm.data.resolve_data_config(pretrained_cfg=settings.to_dict() if settings else {})
    transform = timm.data.create_transform(**found, is_training=False)
    return of_steps(transform.transforms, found["mean"], found["std"], found["input_size"][0])


def _timm_channels(name: str) -> int:
    """The channels of the inputs of a timm network, by its full name."""
    import timm

    settings = timm.get_pretrained_cfg(name)
    return 3 if settings is None else int(settings.input_size[0])


def timm_network(spec: ModelSpec) -> nn.Module:
    """A timm network on the CPU, with published weights if the job names them.

    Raises
    ------
    ValueError
        In one line that begins with the key: the name or the weights are unknown, published weights have no
        head or another number of classes or channels, or they cannot be downloaded.
    """
    import timm

    name, pretrained = _timm_name(spec)
    size = {} if spec.num_classes is None else {"num_classes": spec.num_classes}
    own, given = _timm_channels(name), spec.given_channels
    if given is not None and given != own:
        if pretrained:
            raise ValueError(
                f"model.channels: the published weights of {name} take {own} channels, not {given}; give a "
                "file with your own, or none"
            )
        size["in_chans"] = given
    if pretrained:
        classes = timm.get_pretrained_cfg(name).num_classes
        if not classes:
            raise ValueError(f"model.weights: {name} has no classification head; choose another tag")
        _check_published_classes(spec, classes)
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, **size)
    except Exception as error:
        # Without an internet connection, the kind of error depends on the hub client. Where no weights are
        # named nothing is downloaded, so that the error has another cause.
        if pretrained:
            raise not_downloaded(spec, error) from error
        raise
    return network


# Callables


def called_network(spec: ModelSpec) -> nn.Module:
    """The network that the job's callable returns; a file of weights is not loaded here.

    Raises
    ------
    ValueError
        In one line that begins with the key: the weights are no file, the callable cannot be loaded, it
        raises an exception, or it returns something other than a module.
    """
    if spec.weights is not None and published_weights(spec) is not None:
        raise ValueError(
            f"model.weights: {spec.weights!r} is no file, and a callable has no published weights; give a "
            "file, or none"
        )
    build = _callable(spec.source)
    try:
        network = build() if spec.name is None else build(spec.name)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"model.source: {spec.source} raised {reason}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"model.source: {spec.source} returned {type(network).__name__}, not a torch module")
    return network


def _callable(source: str) -> Any:
    path = Path(source.rpartition(":")[0])
    if path.suffix == ".py" and path.exists():
        check_file("model.source", path)
    try:
        return import_callable(source)
    except ValueError as error:
        raise ValueError(f"model.source: {error}") from error


def published_weights(spec: ModelSpec) -> str | None:
    """The name of published weights; None for a file and for "none".

    Raises
    ------
    ValueError
        In one line, if the job gives no weights.
    """
    if spec.weights is None:
        raise ValueError(
            "model.weights: they are missing; give a file, a name that the source knows, or none for random "
            "weights"
        )
    return None if spec.weights == "none" or is_file(spec.weights) else spec.weights


def check_known(key: str, found: str | None, known: Iterable[str]) -> None:
    """Check that ``model.key`` has one of the known values.

    Raises
    ------
    ValueError
        In one line with an example if no value is given, and with similar names if it is unknown.
    """
    known = list(known)
    if found in known:
        return
    if found is None:
        raise ValueError(f"model.{key}: it is missing; give a name such as {known[0]}")
    longer = [name for name in known if name.startswith(found)]
    close = longer[:5] or difflib.get_close_matches(found, known, n=5, cutoff=0.4) or known[:10]
    raise ValueError(f"model.{key}: there is no {found!r}; close are {', '.join(close)}")
