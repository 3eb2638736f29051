"""Fingerprints of weights: hashes of 32 bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def sha256_of(state: Mapping[str, Tensor]) -> hashlib._Hash:
    """SHA-256 of a state dict: names, types, shapes and values, in the order of the names.

    Returns
    -------
    hashlib hash
        The hash object itself, so that the caller can add more to it.
    """
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest
