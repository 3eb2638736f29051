"""Models and what belongs to them, from a Hugging Face repository or a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from explainers.models.model_spec import ModelSpec
from explainers.models.reasons import one_line
from explainers.models.sources import check_known, not_downloaded


def check_repository(spec: ModelSpec, example: str) -> None:
    """Whether the job names a repository or a folder, and weights that such a place can have."""
    if spec.name is None:
        raise ValueError(f"model.name: say which, such as {example}, or a folder")
    check_known("weights", spec.weights, ["pretrained", "none"])


def from_pretrained(spec: ModelSpec, read: Callable[..., Any], **options: Any) -> Any:
    """What ``read`` finds in a repository or a folder; a bar shows what is downloaded, and nothing else."""
    try:
        with _no_bar() if Path(str(spec.name)).is_dir() else nullcontext():
            return read(spec.name, **options)
    except Exception as error:  # what comes without a network depends on the hub client
        if Path(str(spec.name)).is_dir():
            raise ValueError(f"model.name: cannot read {spec.name}: {one_line(error)}") from error
        raise not_downloaded(spec, error, "folder") from error


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
    """A model in float32 whatever the file has, and not with random numbers where the file has nothing."""
    model, report = from_pretrained(spec, kind.from_pretrained, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"model.weights: {spec.name} lacks {len(missing)} tensors, such as {missing[0]}")
    return model
