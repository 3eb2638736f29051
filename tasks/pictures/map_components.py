"""Reads the components of maps: an explainer that decomposes stores maps as weighted sums of components.

An explainer decomposes if its details hold ``components`` (q, h, w) and their ``weights`` (q,). Components
are signed, and their positive part is the saliency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from storage.maps import read
from storage.run import Run


@dataclass(frozen=True, eq=False)
class Component:
    """One component of one map.

    Attributes
    ----------
    saliency
        (H, W) in [0, 1]: the positive part, upsampled bicubically to the input's size and divided by its
        maximum. It is all zero if nothing is positive, and NaN where the component is not finite.
    weight
        The stored weight.
    gain
        The detail ``d``: what revealing the component adds to the score. None if it is not stored.
    share
        The component's share of the sum of the ``singular_values``, in [0, 1]. None if they are not stored.
    """

    saliency: np.ndarray
    weight: float
    gain: float | None
    share: float | None


def decomposing(run: Run) -> list[str]:
    """The names of the run's explainers that decompose their maps."""
    found = []
    for name, entry in run.explainers.items():
        shapes = {key: detail.shape for key, detail in entry.details.items()}
        components, weights = shapes.get("components", ()), shapes.get("weights", ())
        if len(components) == 3 and components[:1] == weights:
            found.append(name)
    return found


def components_of(run: Run, explainer: str, row: int) -> list[Component]:
    """All components of the map at this row, by descending weight; equal weights keep their stored order."""
    details: dict[str, np.ndarray] = {
        name: read(run.saliency(explainer) / "details" / name, row, row + 1)[0]
        for name in ("components", "weights", "d", "singular_values")
        if name in run.explainers[explainer].details
    }
    return components_from(details, run.input_size)


def components_from(details: Mapping[str, np.ndarray], size: tuple[int, ...]) -> list[Component]:
    """:func:`components_of` for details that have been read, upsampled to ``size``, at least their grid."""
    saliency, weights = _upsampled(details["components"], size), details["weights"]
    gains, shares = details.get("d"), details.get("singular_values")
    if shares is not None and shares.sum() > 0:
        shares = shares / shares.sum()
    return [
        Component(
            saliency[i],
            float(weights[i]),
            None if gains is None else float(gains[i]),
            None if shares is None else float(shares[i]),
        )
        for i in np.argsort(-weights, kind="stable")
    ]


def _upsampled(components: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Saliency (q, H, W) in [0, 1] of signed components (q, h, w)."""
    import torch  # imported late, because most pages of the browser do without it
    from torch.nn import functional as F

    positive = torch.from_numpy(components).float().relu()[:, None]
    # Bicubic interpolation falls below zero beside a peak, so the result is clipped again.
    maps = F.interpolate(positive, size, mode="bicubic", align_corners=False)[:, 0].relu()
    highest = maps.amax((1, 2), keepdim=True)
    return (maps / highest.masked_fill(highest == 0, 1)).numpy()
