"""A network whose rule is known, and images on which it can be found out.

Inputs are 32x32. The logit of class 0 is ``WEIGHT`` times the mean of the patch at the top left minus
``BIAS``; the other two logits are 0. Images of class 0 have a patch of 1, all others one of 0; elsewhere all
are noise. So the log-odds of class 0 are ``WEIGHT - BIAS - log 2`` with the patch, and ``-BIAS - log 2``
without, and whatever happens to the rest of an image changes nothing.
"""

import numpy as np
import torch
from torch import Tensor

from metric_toys import ToyClassifier
from tasks.findings.seen import Seen, grown, pooled, share_on_objects
from tasks.findings.suspicion import Suspicion

SIZE, SIDE = 32, 8
WEIGHT, BIAS = 6.0, 2.0
PATCH = torch.zeros(SIZE, SIZE, dtype=torch.bool)
PATCH[:SIDE, :SIDE] = True


class Rule(ToyClassifier):
    """The network. It counts its passes in ``rows``."""

    def __init__(self, memory: int | None = None) -> None:
        super().__init__(torch.nn.Identity(), memory=memory)

    def logits(self, inputs: Tensor) -> Tensor:
        super().logits(inputs)
        own = WEIGHT * inputs[:, :, :SIDE, :SIDE].mean((1, 2, 3)) - BIAS
        return torch.stack([own, torch.zeros_like(own), torch.zeros_like(own)], 1)


def seen(count: int = 120, boxes: bool = True, planted: bool = True, seed: int = 0) -> Seen:
    """``count`` images of three classes in turn; without the planted rule, maps and patches are noise.

    The object of an image is a square of 8 pixels in its lower half.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, SIZE, SIZE, generator=generator)
    maps = torch.rand(count, 8, 8, generator=generator)
    classes = np.arange(count) % 3
    if planted:
        images[:, :, :SIDE, :SIDE] = torch.from_numpy(classes == 0).float()[:, None, None, None]
        maps[classes == 0, :2, :2] += 4
    objects = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
    left = torch.randint(0, SIZE - 8, (count,), generator=generator)
    for each, x in zip(objects, left.tolist(), strict=True):
        each[18:26, x : x + 8] = True
    cells = pooled(maps)
    return Seen(
        cells,
        classes,
        classes,
        share_on_objects(cells, grown(objects)).numpy() if boxes else None,
        lambda rows: images[rows],
        (lambda rows: objects[rows]) if boxes else None,
    )


def suspicion(of: Seen, region: Tensor = PATCH, target: int = 0, strength: float = 5.0) -> Suspicion:
    """A suspicion about a region of a class, with its first 30 images as exemplars."""
    rows = of.rows_of(target)
    return Suspicion("places", target, rows[:30], region, len(rows), strength)
