"""Refine the place of a finding: a map's region is as coarse as its cells, the cue in it may be small."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tasks.findings.regions import without
from tasks.findings.seen import Rows, grown
from tasks.findings.trials import Trials

_SIDE = 16  # windows side by side along the shorter side of the input; they overlap by half
_LEAST = 0.5  # of the largest effect of a window: what belongs to the place
_IMAGES = 16  # exemplars, at most
_FEWEST = 4  # exemplars; with fewer passes left, nothing is refined


def refined(
    trials: Trials, target: int, exemplars: Rows, region: Tensor, passes: int, rng: np.random.Generator
) -> Tensor | None:
    """The windows of a region whose content decides, as one region.

    Each window is filled, in the strongest exemplars, with content of the same place from images of other
    classes. Windows that cost at least half as much as the one that costs most are kept.

    Parameters
    ----------
    trials
        Runs the network.
    target
        The class.
    exemplars
        (E,) rows, the strongest first.
    region
        (H, W) bool, the same for all images.
    passes
        Passes that may be used.
    rng
        Draws the images of other classes.

    Returns
    -------
    Tensor or None
        (H, W) bool; None where the passes do not suffice for four exemplars, or where no window costs
        anything.
    """
    windows = _windows(region)
    images = min(_IMAGES, len(exemplars), passes // (1 + max(1, len(windows))))
    if images < _FEWEST or not len(windows):
        return None
    chosen = exemplars[:images]
    objects = trials.seen.grown_objects(chosen)
    others = trials.seen.others(target)
    fills = others[rng.integers(len(others), size=(len(windows), images))].ravel()
    before = trials.whole(chosen, target)[:, 0]

    def places(at: Rows) -> Tensor:
        return without(windows[at // images], None if objects is None else objects[at % images])

    after = trials.swapped(np.tile(chosen, len(windows)), fills, places, target)[:, 0]
    costs = (before - after.view(len(windows), images)).mean(1)
    if costs.max() <= 0:
        return None
    return windows[costs >= _LEAST * costs.max()].any(0)


def _windows(region: Tensor) -> Tensor:
    """Windows (n, H, W) bool of a sixteenth of the shorter side, those that touch a region made larger."""
    height, width = region.shape
    side = max(2, min(height, width) // _SIDE)
    wide = grown(region[None])[0]
    found = []
    for top in range(0, height - side + 1, max(1, side // 2)):
        for left in range(0, width - side + 1, max(1, side // 2)):
            if bool(wide[top : top + side, left : left + side].any()):
                window = torch.zeros_like(region)
                window[top : top + side, left : left + side] = True
                found.append(window)
    return torch.stack(found) if found else region.new_zeros(0, height, width)
