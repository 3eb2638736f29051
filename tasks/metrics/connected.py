"""Connected components of binary maps, and the boxes around them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ConnectedComponents:
    """The K components of B binary maps.

    Attributes
    ----------
    image
        (K,) int64, index of the map that holds the component.
    boxes
        (K, 4) float64: xmin, ymin, xmax, ymax in pixels, continuous edges, so that a pixel's box has area 1.
    areas
        (K,) int64, in pixels.
    """

    image: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.int64]


def connected_components(binary: NDArray[np.bool_]) -> ConnectedComponents:
    """Find the components of (B, H, W) maps; pixels that share an edge or a corner are connected."""
    if not binary.size:  # OpenCV crashes on an empty image
        return ConnectedComponents(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int64))
    height = binary.shape[1] + 1
    # One call for all maps: they form one tall image, and an empty row below each map keeps them apart.
    tall = np.pad(binary, ((0, 0), (0, 1), (0, 0))).reshape(-1, binary.shape[2])
    # The first component is the background.
    statistics = cv2.connectedComponentsWithStats(tall.view(np.uint8), connectivity=8)[2][1:].astype(np.int64)
    left, top, across, down, areas = statistics.T
    image, top = np.divmod(top, height)
    boxes = np.stack([left, top, left + across, top + down], 1).astype(np.float64)
    return ConnectedComponents(image, boxes, areas)
