"""Read the embeddings of classes that a job gives in a file, so that no text has to be embedded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from explainers.models.checkpoint_files import read_file
from explainers.models.model_spec import ModelSpec
from explainers.models.regular import check_file
from plugins.reasons import first_line

_KEY = "model.class_embeddings"


def given_embeddings(spec: ModelSpec, length: int) -> Tensor:
    """The embeddings in the job's file, each of length 1.

    Parameters
    ----------
    spec
        The ``[model]`` table; ``classes`` names the rows.
    length
        d, the number of values in an embedding of the model.

    Returns
    -------
    Tensor
        (C, d) float32, on the CPU.

    Raises
    ------
    ValueError
        In one line that begins with the key: the file cannot be read, or it does not hold one vector of
        ``length`` finite numbers per class.
    """
    path = Path(str(spec.class_embeddings))
    rows = _read(path)
    classes = len(spec.classes or ())
    if rows.ndim != 2 or not rows.is_floating_point():
        kind = str(rows.dtype).removeprefix("torch.")
        raise ValueError(f"{_KEY}: {path} holds {kind} of shape {tuple(rows.shape)}, not numbers (C, d)")
    if len(rows) != classes:
        raise ValueError(f"{_KEY}: {path} has {len(rows)} rows, but model.classes names {classes} classes")
    if rows.shape[1] != length:
        raise ValueError(
            f"{_KEY}: rows of {path} have {rows.shape[1]} numbers, but {spec.name} has embeddings of {length}"
        )
    rows = rows.double()
    norms = rows.norm(dim=1)
    wrong = (~(norms.isfinite() & (norms > 0))).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"{_KEY}: row {wrong[0]} of {path} has no direction: it is zero, or its numbers are not finite"
        )
    return F.normalize(rows, dim=1).float()


def _read(path: Path) -> Tensor:
    """The one array in a NumPy file, a torch file or a safetensors file."""
    if path.suffix != ".npy":
        content = read_file(path, _KEY)
        values = list(content.values()) if isinstance(content, Mapping) else [content]
        if len(values) != 1 or not isinstance(values[0], Tensor):
            raise ValueError(f"{_KEY}: {path} must hold one tensor (C, d) and nothing else")
        return values[0].detach()
    check_file(_KEY, path)
    try:
        # The file is mapped, not read: its header may claim more numbers than there are.
        found = np.lib.format.open_memmap(path, mode="r")
        return torch.from_numpy(np.array(found, dtype=found.dtype.newbyteorder("=")))
    except MemoryError:
        raise
    except Exception as error:  # a damaged header is Python text, for which almost any error is raised
        raise ValueError(f"{_KEY}: cannot read {path}: {first_line(error)}") from error
