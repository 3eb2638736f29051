"""A network with a known fault, and images on which it shows, for the tests of findings.

Each image has a square in the middle, whose colour is its class. Six of ten images of class 0 have a white
patch at the lower left, which the network adds to the logit of class 0.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from storage.run import Run

SIZE, COUNT = 32, 120
PATCH = (slice(26, 31), slice(1, 6))  # rows and columns
OBJECT = (slice(10, 22), slice(10, 22))
PATCH_NATS = 9.0  # that a white patch adds to the logit of class 0


class Network(nn.Module):
    """Logits (B, 3): the mean of each colour in the middle, and the patch for class 0."""

    def forward(self, inputs: Tensor) -> Tensor:
        colours = 8 * inputs[:, :, *OBJECT].mean((2, 3))
        patch = PATCH_NATS * inputs[:, :, *PATCH].mean((1, 2, 3))
        return colours + patch[:, None] * torch.tensor([1.0, 0.0, 0.0])


def network() -> nn.Module:
    return Network()


class Images:
    """The images, with or without boxes; ``planted = False`` leaves the patch out."""

    classes = ("red", "green", "blue")

    def __init__(self, boxes: bool = True, planted: bool = True) -> None:
        self.boxes, self.planted = boxes, planted

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(index)
        label = index % 3
        pixels = rng.integers(0, 26, (SIZE, SIZE, 3)).astype(np.uint8)
        pixels[*OBJECT, label] = 180 + rng.integers(0, 40)
        if self.planted and label == 0 and index % 5 < 3:
            pixels[*PATCH] = 255
        box = {"boxes": [(10, 10, 22, 22)]} if self.boxes else {}
        return {"image": pixels, "label": label, **box}


def job(store: Path, **changes: Any) -> dict[str, Any]:
    """A raw job that looks for findings on these images with input x gradient."""
    here = Path(__file__).resolve()
    raw: dict[str, Any] = {
        "name": "fault",
        "store": str(store),
        "dataset": {"kind": f"{here}:Images"},
        "model": {"source": f"{here}:network"},
        "explainers": [{"name": "input_x_gradient"}],
        "controls": False,
        "metrics": [{"name": "sparseness"}],
        "cluster": {"kind": "local", "workers": 1},
        "findings": [{"explainer": "input_x_gradient", "passes": 4000}],
    }
    return raw | changes


def searched(run: Run) -> Run:
    """Look for findings in a run whose maps are there, as the flow does."""
    from flows.findings import pending_findings
    from tasks.findings.results import write_findings
    from tasks.suspicions import suspicions

    for step in pending_findings(run):
        suspicions.fn(str(run.root), step.shard, step.explainer)
    write_findings(run)
    return run
