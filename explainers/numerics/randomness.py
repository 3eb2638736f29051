"""Random numbers that depend on a seed per image alone, not on the batch and not on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as a signed 64-bit integer, the type that torch computes with
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def seed_of(*parts: object) -> int:
    """A 63-bit seed from any printable parts, e.g. (job seed, sample id)."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits fit a signed 64-bit integer


def random_bits(seeds: Tensor, count: int) -> Tensor:
    """Random bits (B, count) int64: the SplitMix64 stream of each seed (Steele et al. 2014, fig. 17).

    Parameters
    ----------
    seeds
        (B,) int64.
    count
        Numbers per seed.
    """
    steps = torch.arange(1, count + 1, device=seeds.device, dtype=torch.int64)
    z = seeds[:, None] + steps * _GOLDEN
    z = (z ^ _shift(z, 30)) * _MIX1
    z = (z ^ _shift(z, 27)) * _MIX2
    return z ^ _shift(z, 31)


def uniform(seeds: Tensor, count: int) -> Tensor:
    """Uniform random numbers (B, count) float32 in [0, 1), 24 random bits each, from seeds (B,) int64."""
    # A float32 holds 24 bits exactly, so that nothing is rounded up to 1.
    return _shift(random_bits(seeds, count), 40).float() / (1 << 24)


@contextmanager
def global_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Within the block, seed the global generators of torch and NumPy, which libraries draw from.

    Their states are restored afterwards.
    """
    state = np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64; torch has the arithmetic shift only."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
