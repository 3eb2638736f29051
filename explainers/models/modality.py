"""What the kinds of inputs differ in, in one table: how they are stored, hidden, and named in messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ModalityName = Literal["image", "text", "tensor"]
ImageFill = Literal["mean", "black", "white", "blur"]
Fill = Literal[ImageFill, "mask", "remove", "zero"]  # of any modality

NO_TOKEN = -1  # of a text, as an id: no token here; as the number of a word: no word's token


@dataclass(frozen=True)
class Modality:
    """One kind of inputs.

    Attributes
    ----------
    plural
        What messages call several inputs.
    fills
        What can stand in the place of a hidden site, and the same in words; the first one is the default.
    graded
        Whether a site can be shown in part: pixels and numbers can, a token is there or not.
    stored
        NumPy type of the inputs as a run stores them.
    nothing
        What is stored everywhere in the place of an input that could not be read.
    site_pixels
        As many pixels as one site costs in a forward pass.
    masked
        What average drop's masks do to an input, in words; ``{mask}`` is the mask.
    sites
        (B, \\*sites) bool of stored or prepared inputs (B, C, \\*sites): which sites can be hidden.
    """

    plural: str
    fills: Mapping[str, str]
    graded: bool
    stored: str
    nothing: int
    site_pixels: int
    masked: str
    sites: Callable[[Tensor], Tensor]


def _every_site(inputs: Tensor) -> Tensor:
    return torch.ones_like(inputs[:, 0], dtype=torch.bool)


def _tokens_of_words(inputs: Tensor) -> Tensor:
    """Padding and special tokens belong to no word, and cannot be hidden."""
    return inputs[:, 1] != NO_TOKEN


MODALITIES: dict[ModalityName, Modality] = {
    "image": Modality(
        plural="images",
        fills={
            "mean": "the mean the classifier subtracts (zero after normalisation)",
            "black": "black",
            "white": "white",
            "blur": "the input blurred (a Gaussian of 10 pixels)",
        },
        graded=True,
        stored="uint8",
        nothing=0,
        site_pixels=1,
        masked="black: pixels times {mask}, before normalisation",
        sites=_every_site,
    ),
    "text": Modality(
        plural="texts",
        fills={"mask": "mask tokens", "remove": "nothing: hidden tokens are taken out"},
        graded=False,
        stored="int32",
        nothing=NO_TOKEN,
        site_pixels=16 * 16,  # a token costs about what a transformer's patch does
        masked="tokens that are not kept are hidden: mask tokens, or none where there is no mask token",
        sites=_tokens_of_words,
    ),
    "tensor": Modality(
        plural="plain tensors",
        fills={"zero": "zero", "mean": "the mean of each channel over the input's own sites"},
        graded=True,
        stored="float32",
        nothing=0,
        site_pixels=1,
        masked="zero: numbers times {mask}",
        sites=_every_site,
    ),
}
