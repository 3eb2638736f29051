"""Maps as they are read for scoring."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from explainers.base import Status
from rounding import rounding
from tasks.metrics.preparation import prepare, unreadable

NATIVE = hnp.arrays(np.float32, (4, 3, 5), elements=st.floats(-100, 100, width=16))


def slow_prepare(native: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """ReLU, then each output pixel from its four neighbours, then min-max; float64."""
    native = np.maximum(native.astype(np.float64), 0)
    (h, w), (height, width) = native.shape, size
    out = np.zeros(size)
    for y in range(height):
        for x in range(width):
            sy = max((y + 0.5) * h / height - 0.5, 0)
            sx = max((x + 0.5) * w / width - 0.5, 0)
            y0, x0 = int(sy), int(sx)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            fy, fx = sy - y0, sx - x0
            upper = native[y0, x0] * (1 - fx) + native[y0, x1] * fx
            lower = native[y1, x0] * (1 - fx) + native[y1, x1] * fx
            out[y, x] = upper * (1 - fy) + lower * fy
    return (out - out.min()) / (out.max() - out.min())


@pytest.mark.parametrize(("grid", "size"), [((3, 5), (9, 10)), ((7, 7), (16, 24)), ((4, 4), (4, 4))])
def test_preparation_equals_a_pixel_by_pixel_implementation(grid, size):
    native = torch.randn(3, *grid, generator=torch.Generator().manual_seed(2)) * 10
    prepared, statuses = prepare(native, size)
    expected = np.stack([slow_prepare(one.numpy(), size) for one in native])
    # A place between cells is off by three roundings on each axis, of numbers up to 7; then come four cells
    # with two weights each, and two stretchings of two operations.
    close = rounding(2 * 3, magnitude=7) + rounding(4 * 3 + 2 * 2)
    np.testing.assert_allclose(prepared.numpy(), expected, atol=close)
    assert statuses == [Status.OK] * 3


def test_special_maps_are_read_as_documented():
    native = torch.rand(7, 2, 2) + 0.5
    native[1] = 0.0
    native[2] = -native[2]
    native[3] = 3.7
    native[4, 0, 1] = torch.nan
    native[5, 1, 1] = -torch.inf
    native[6] = -2.0
    prepared, statuses = prepare(native, (4, 6))
    assert statuses == [
        Status.OK,
        Status.ALL_ZERO,
        Status.ALL_ZERO,
        Status.CONSTANT,
        Status.NOT_FINITE,
        Status.NOT_FINITE,
        Status.ALL_ZERO,
    ]
    for row in (1, 2, 6):
        assert torch.equal(prepared[row], torch.zeros(4, 6))
    assert torch.equal(prepared[3], torch.ones(4, 6))
    assert prepared[4:6].isnan().all()
    assert unreadable(prepared).tolist() == [False] * 4 + [True] * 2 + [False]


@given(NATIVE)
@settings(max_examples=60)
def test_maps_fill_the_unit_interval_unless_they_are_flat(native):
    prepared, statuses = prepare(torch.from_numpy(native), (8, 11))
    for one, status in zip(prepared, statuses, strict=True):
        low, high = {Status.OK: (0, 1), Status.ALL_ZERO: (0, 0), Status.CONSTANT: (1, 1)}[status]
        assert (one.min(), one.max()) == (low, high)


@given(NATIVE, st.sampled_from([2.0**-30, 0.5, 4.0, 2.0**40]))
@settings(max_examples=60)
def test_the_scale_of_a_map_does_not_matter(native, scale):
    native = torch.from_numpy(native)
    assert torch.equal(prepare(native * scale, (8, 11))[0], prepare(native, (8, 11))[0])


@given(NATIVE)
@settings(max_examples=60)
def test_a_map_does_not_depend_on_its_batch(native):
    native = torch.from_numpy(native)
    together, statuses = prepare(native, (64, 64))
    alone = [prepare(one[None], (64, 64)) for one in native]
    assert torch.equal(together, torch.cat([one for one, _ in alone]))
    assert statuses == [status for _, (status,) in alone]


def test_a_small_variation_on_a_large_offset_keeps_its_shape():
    shape = torch.arange(16.0).view(1, 4, 4)
    offset = 2.0**20  # where float32 still resolves steps of 1/8
    assert torch.equal(prepare(shape + offset, (13, 13))[0], prepare(shape, (13, 13))[0])


def test_half_precision_maps_are_computed_in_single_precision():
    native = torch.rand(2, 3, 3).half()
    prepared, _ = prepare(native, (10, 10))
    assert prepared.dtype == torch.float32
    assert torch.equal(prepared, prepare(native.float(), (10, 10))[0])


def test_the_raw_maps_are_left_as_they_were():
    native = torch.randn(2, 3, 3)
    before = native.clone()
    prepare(native, (3, 3))
    assert torch.equal(native, before)


def test_a_grid_finer_than_the_input_is_refused():
    with pytest.raises(ValueError, match="8x4 are finer than the 6x6 input"):
        prepare(torch.rand(1, 8, 4), (6, 6))
