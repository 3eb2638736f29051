"""How far two tensors of logits differ."""

from __future__ import annotations

from torch import Tensor

_MASKED = 100.0  # times the leading logits: more is no logit but a mask


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two tensors of logits (B, K), as a share of the largest one expected.

    Classes whose logits are far larger than the two leading ones are left out: a network masks them, as with
    -1e9, and beside such a number no difference of the others would be seen.
    """
    found, expected = (each.reshape(len(each), -1) for each in (found, expected))  # a single one may be (B,)
    leading = expected.topk(min(2, expected.shape[1]), 1).values.abs().max()
    live = expected.abs().amax(0) <= _MASKED * leading
    live |= ~live.any()
    scale = float(expected[:, live].abs().max())
    return float((found - expected)[:, live].abs().max()) / (scale or 1.0)
