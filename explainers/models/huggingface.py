"""Load models, tokenizers and configurations from a Hugging Face repository or a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from explainers.models.checkpoint_sets import check_finite
from explainers.models.checkpoints import note_cast
from explainers.models.model_spec import ModelSpec
from explainers.models.regular import check_folder
from explainers.models.sources import check_known, not_downloaded
from plugins.reasons import first_line


def configuration(spec: ModelSpec, example: str) -> Any:
    """The configuration of the model in the repository or the folder that the job names.

    Raises
    ------
    ValueError
        In one line that begins with the key: there is no name, and the message proposes ``example``; the
        weights are neither "pretrained" nor "none"; or the configuration cannot be read.
    """
    from transformers import AutoConfig

    if spec.name is None:
        raise ValueError(f"model.name: it is missing; give a name such as {example}, or a folder")
    check_known("weights", spec.weights, ["pretrained", "none"])
    # Code that comes with a model is never run, because a worker can ask nobody for permission.
    return from_pretrained(spec, AutoConfig.from_pretrained, trust_remote_code=False)


def from_pretrained(spec: ModelSpec, read: Callable[..., Any], **options: Any) -> Any:
    """Load an object from a repository or a folder.

    A progress bar shows downloads; loading from a folder shows none.

    Parameters
    ----------
    spec
        The ``[model]`` table; its name is the repository or the folder.
    read
        A ``from_pretrained`` of the library, or a function like it.
    options
        Further arguments of ``read``.

    Raises
    ------
    ValueError
        In one line that begins with the key: the folder cannot be read, or the repository not downloaded.
    """
    if Path(str(spec.name)).is_dir():
        check_folder("model.name", Path(str(spec.name)))
    try:
        with _no_bar() if Path(str(spec.name)).is_dir() else nullcontext():
            return read(spec.name, **options)
    except Exception as error:  # without an internet connection, the kind of error depends on the hub client
        if Path(str(spec.name)).is_dir():
            raise ValueError(f"model.name: cannot read {spec.name}: {first_line(error)}") from error
        raise not_downloaded(spec, error, "folder") from error


def check_problem(spec: ModelSpec, config: Any) -> None:
    """Check that the job says how outputs are read where a model's configuration has no softmax in mind.

    Raises
    ------
    ValueError
        In one line that begins with the key: the model has a single output, several labels per input or no
        classes, and the job does not say how its outputs are read.
    """
    if spec.activation is not None:
        return
    if config.num_labels == 1:
        raise ValueError(
            f"model.activation: {spec.name} has one output, as a regression has; set activation = "
            '"sigmoid" if it is the logit of a class'
        )
    if config.problem_type == "multi_label_classification":
        raise ValueError(
            f"model.activation: the configuration of {spec.name} says {config.problem_type}; set "
            'activation = "sigmoid"'
        )
    if config.problem_type == "regression":
        raise ValueError(
            f"model.activation: the configuration of {spec.name} says regression, which has no classes; set "
            "activation if its outputs are logits of classes all the same"
        )


@contextmanager
def _no_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def pretrained_model(spec: ModelSpec, kind: Any) -> Any:
    """Load a model in float32, whatever type its file has; half precision is noted as that of files is.

    The library gives random values to tensors that the file lacks; here that is an error.

    Raises
    ------
    ValueError
        In one line that begins with the key: the model cannot be loaded, or its file lacks tensors or has
        values that are not finite.
    """
    from transformers import PretrainedConfig

    config = from_pretrained(spec, PretrainedConfig.get_config_dict)[0]
    model, report = from_pretrained(spec, kind.from_pretrained, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"model.weights: {spec.name} lacks {len(missing)} tensors, such as {missing[0]}")
    check_finite(str(spec.name), model)
    stored = str(config.get("dtype") or config.get("torch_dtype"))  # the second is what older versions wrote
    if stored in {"float16", "bfloat16"}:
        state = model.state_dict().values()
        note_cast(model, {stored: sum(tensor.is_floating_point() for tensor in state)})
    return model
