"""How far rounding alone may part two results that are the same: by the arithmetic, not by one machine.

Processors, and the libraries for them, add up in different orders and fuse products with sums, so that what
agrees to 1e-6 on one does not on another.
"""

from __future__ import annotations

import math

import torch


def rounding(operations: int, magnitude: float = 1.0) -> float:
    """What two float32 numbers may differ by, each after so many operations on numbers up to ``magnitude``.

    An operation is off by half a unit of rounding at most, and there are two numbers, so that n operations
    amount to n units at worst. Errors of either sign mostly cancel: 8 sqrt(n) units are exceeded about never
    (Higham and Mary, "A new approach to probabilistic rounding error analysis", SISC 2019). A sum of n
    products counts as n operations, since products are smaller than what they are added to.
    """
    units = min(operations, 8 * math.sqrt(operations))
    return units * torch.finfo(torch.float32).eps * magnitude


# From the pixels of metric_toys.small_network to a probability, whose logits are below 1: normalisation,
# convolutions of 27 and 54 products, means of about 4, 32 products, and a softmax of 5.
SMALL_NETWORK = rounding(2 + 27 + 54 + 4 + 32 + 9)
# A number over the confidence in the predicted one of its 5 classes, which is 1/5 at least.
OVER_CONFIDENCE = 5 * SMALL_NETWORK
# The same of metric_toys.ConvMlp, which was trained: convolutions of 27, 288 and 576 products, then 1024 and
# 64, to logits up to 13, and a softmax of 10.
CONV_MLP = rounding(27 + 288 + 576 + 1024 + 64 + 19, 13)
# The same of the classifiers in toys, with logits up to 3. The longest way is the vision transformer's: 192
# products for a patch, 24 for keys and queries, 12 for their products, 17 for a softmax and for the values
# beneath it each, 24, 24 and 96 for projection and MLP, three norms of 48, 24 for the head.
TOYS = rounding(192 + 24 + 12 + 17 + 17 + 24 + 24 + 96 + 3 * 48 + 24, 3)
