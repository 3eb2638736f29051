"""Which bands of an image a picture shows, and what it says about them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tasks.pictures import drawing


def run_of(inputs: np.ndarray, monkeypatch: pytest.MonkeyPatch, **job: Any) -> Any:
    """What pictures read of a run with these inputs (N, C, H, W)."""
    monkeypatch.setattr(drawing, "read", lambda _, start, stop: inputs[start:stop])
    manifest = SimpleNamespace(input_shape=inputs.shape[1:], input_dtype=str(inputs.dtype))
    return SimpleNamespace(manifest=manifest, inputs=None, job=job)


@pytest.mark.parametrize(
    ("channels", "kind", "shown", "bands", "told"),
    [
        (3, "uint8", None, (0, 1, 2), ""),
        (3, "uint8", (2, 1, 0), (2, 1, 0), "bands 2, 1, 0 as RGB"),
        (1, "uint8", None, (0, 0, 0), "band 0"),
        (2, "uint8", (1,), (1, 1, 1), "band 1"),
        (4, "uint8", None, (0, 1, 2), "bands 0, 1, 2 as RGB"),
        (3, "uint16", None, (0, 1, 2), "bands 0, 1, 2 as RGB\n2nd to 98th percentile"),
        (1, "float32", None, (0, 0, 0), "band 0\n2nd to 98th percentile"),
    ],
)
def test_bands_are_those_of_the_job_or_the_first_ones(
    channels: int, kind: str, shown: Any, bands: tuple[int, ...], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    inputs = (random.random((2, channels, 9, 7)) * (1 if kind == "float32" else 200)).astype(kind)
    run = run_of(inputs, monkeypatch, shown_bands=shown)
    assert drawing.told_bands(run) == told
    expected = inputs[1][list(bands)].astype(float)
    if kind != "uint8":
        low, high = np.percentile(expected, (2, 98), axis=(1, 2), keepdims=True)
        expected = np.rint(((expected - low) / (high - low)).clip(0, 1) * 255)
    found = drawing.pixels_of(run, 1)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(np.moveaxis(found, -1, 0), expected)


def test_a_flat_band_of_many_bits_is_black(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = run_of(np.full((1, 1, 5, 5), 40_000, np.uint16), monkeypatch)
    assert not drawing.pixels_of(run, 0).any()
