"""The kinds of inputs in one table: how each is stored, hidden, and named in messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # programs that read runs need this table and no PyTorch
    from torch import Tensor

ModalityName = Literal["image", "text", "tensor"]
ImageFill = Literal["mean", "black", "white", "blur"]
Fill = Literal[ImageFill, "mask", "remove", "zero"]  # the fills of every modality

NO_TOKEN = -1  # in a text, as an id: there is no token; as a word's number: the token belongs to no word


@dataclass(frozen=True)
class Modality:
    """One kind of inputs.

    Attributes
    ----------
    plural
        The word for several inputs in messages.
    site_names
        The word for several sites.
    fills
        What can be shown in place of a hidden site: the name of each fill, and its description. The first one
        is the default.
    graded
        Whether a site can be shown in part: pixels and numbers can, a token is there or not.
    stored
        NumPy type of the inputs as a run stores them.
    nothing
        The value that is stored everywhere for an input that could not be read.
    site_pixels
        The cost of one site in a forward pass, as a number of pixels.
    masked
        What the masks of average drop do to an input, in words; ``{mask}`` stands for the mask.
    sites
        From stored or prepared inputs (B, C, \\*sites) to (B, \\*sites) bool: the sites that can be hidden.
    """

    plural: str
    site_names: str
    fills: Mapping[str, str]
    graded: bool
    stored: str
    nothing: int
    site_pixels: int
    masked: str
    sites: Callable[[Tensor], Tensor]


def _every_site(inputs: Tensor) -> Tensor:
    return inputs.new_ones(inputs[:, 0].shape).bool()


def _tokens_of_words(inputs: Tensor) -> Tensor:
    """The sites of tokens that belong to a word; padding and special tokens cannot be hidden."""
    return inputs[:, 1] != NO_TOKEN


MODALITIES: dict[ModalityName, Modality] = {
    "image": Modality(
        plural="images",
        site_names="pixels",
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
        site_names="tokens",
        fills={"mask": "mask tokens", "remove": "nothing: hidden tokens are taken out"},
        graded=False,
        stored="int32",
        nothing=NO_TOKEN,
        site_pixels=16 * 16,  # a token costs about as much as a patch of a vision transformer
        masked="tokens that are not kept are hidden: mask tokens, or none where there is no mask token",
        sites=_tokens_of_words,
    ),
    "tensor": Modality(
        plural="plain tensors",
        site_names="sites",
        fills={"zero": "zero", "mean": "the mean of each channel over the input's own sites"},
        graded=True,
        stored="float32",
        nothing=0,
        site_pixels=1,
        masked="zero: numbers times {mask}",
        sites=_every_site,
    ),
}
