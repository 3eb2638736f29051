"""What black-box explainers and metrics see of any classifier: inputs of some modality to logits.

An input is a tensor (C, \\*sites):

- an image (3, H, W), pixels in [0, 1];
- a text (2, T) of whole numbers, a token a site: its id, and the number of the word it belongs to, 0, 1, ...
  within the text. Special tokens belong to no word, -1; padding is -1 in both channels. Where the id is -1
  there is no token, so that one is removed by writing it;
- numbers (C, T): a time series of C channels, or a table's row, one channel with a feature a site.

Masking is one expression for all of them: keep the input where a mask over the sites says so, and show what
:meth:`BlackBox.fill` gives elsewhere.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from explainers.models.modality import ModalityName


class BlackBox(Protocol):
    """Inputs (B, C, \\*sites) to logits (B, K).

    Attributes
    ----------
    modality
        What its inputs are: a key of :data:`explainers.models.modality.MODALITIES`.
    fills
        What can be seen in place of absent sites, the default one first.
    graded
        Whether a site can be shown in part, so that a mask may have any value in [0, 1]: pixels and numbers
        can, tokens are there or not.
    input_shape
        (C, \\*sites) of one input.
    num_classes
        K.
    device
        Where it computes.
    layer
        Name of the layer that is explained; None where the network is not cut.
    """

    @property
    def modality(self) -> ModalityName: ...

    @property
    def fills(self) -> tuple[str, ...]: ...

    @property
    def graded(self) -> bool: ...

    @property
    def input_shape(self) -> tuple[int, ...]: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def layer(self) -> str | None: ...

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the weights."""
        ...

    def inputs_of(self, stored: Tensor) -> Tensor:
        """(B, C, \\*sites) inputs as explainers see them, from rows as a run stores them."""
        ...

    def logits(self, inputs: Tensor) -> Tensor:
        """(B, K) logits of (B, C, \\*sites) inputs, masked ones as well."""
        ...

    def sites(self, inputs: Tensor) -> Tensor:
        """(B, \\*sites) bool: what can be hidden. Padding and special tokens of a text cannot."""
        ...

    def fill(self, inputs: Tensor, how: str) -> Tensor:
        """What is seen in place of absent sites: (B, C, \\*sites), or broadcastable to it."""
        ...

    def close(self) -> None: ...


def check_fill(classifier: BlackBox, how: str) -> None:
    """Refuse a fill that the classifier's inputs do not have, in one line that names those they have."""
    if how not in classifier.fills:
        raise ValueError(
            f"fill: {how!r} is not for {classifier.modality}s; choose {' or '.join(classifier.fills)}"
        )
