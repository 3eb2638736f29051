"""The contract between a classifier of any modality and the explainers and metrics that only run it.

An input is a tensor (C, \\*sites). A site is what can be hidden: a pixel, a token, a step or a feature.

- An image is (C, H, W), with pixels in [0, 1]; C is 3 for colours.
- A text is (2, T) whole numbers, one token per site: the id of the token, and the number of the word it
  belongs to, counted 0, 1, ... within the text. Special tokens belong to no word and have the word number -1;
  padding is -1 in both channels. A site whose id is -1 holds no token, so that writing -1 removes a token.
- Numbers are (C, T): a time series of C channels, or a table's row with one channel and one feature per site.

Masking is one expression for all of them: a mask over the sites says where the input is kept, and
:meth:`BlackBox.fill` gives what is shown elsewhere.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from explainers.models.class_names import ClassName
from explainers.models.modality import ModalityName


class BlackBox(Protocol):
    """A function from inputs (B, C, \\*sites) to logits (B, K), with K of two or more.

    The classifier owns the preprocessing: explainers and metrics perturb inputs in the form that the module's
    docstring describes, and never see what the network itself is given.
    """

    @property
    def modality(self) -> ModalityName:
        """The kind of the inputs: a key of :data:`explainers.models.modality.MODALITIES`."""
        ...

    @property
    def fills(self) -> tuple[str, ...]:
        """Names of the fills that :meth:`fill` takes; the first one is the default."""
        ...

    @property
    def graded(self) -> bool:
        """Whether a site can be shown in part, so that a mask may have any value in [0, 1].

        Pixels and numbers can be shown in part; a token is there or not.
        """
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, \\*sites), the shape of one input: (C, H, W), (2, T) or (C, T)."""
        ...

    @property
    def num_classes(self) -> int:
        """K, the number of classes; two or more."""
        ...

    @property
    def exclusive(self) -> bool:
        """Whether the classes exclude each other, so that the probabilities of an input add up to 1.

        Otherwise each class is right or not for itself (multi-label).
        """
        ...

    @property
    def class_names(self) -> tuple[ClassName, ...] | None:
        """The names of the K classes, in the order of the logits; None where they are not known."""
        ...

    @property
    def device(self) -> torch.device:
        """The device on which the network is, and on which inputs are expected."""
        ...

    @property
    def layer(self) -> str | None:
        """Name of the layer that is explained; None where the network is not cut at a layer."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the weights: names, types, shapes and values.

        The fingerprint of a text classifier covers its tokenizer as well.
        """
        ...

    def inputs_of(self, stored: Tensor) -> Tensor:
        """Inputs as explainers see them, from rows as a run stores them.

        Parameters
        ----------
        stored
            (B, C, \\*sites) in the modality's stored type: uint8, uint16 or float32 for images, int32
            for texts, float32 for numbers; see :class:`explainers.models.modality.Modality`.

        Returns
        -------
        Tensor
            (B, C, \\*sites): float32 in [0, 1] for images, int64 for texts, float32 for numbers.
        """
        ...

    def logits(self, inputs: Tensor) -> Tensor:
        """Logits of inputs, which may be masked.

        Parameters
        ----------
        inputs
            (B, C, \\*sites) on :attr:`device`, as :meth:`inputs_of` gives them.

        Returns
        -------
        Tensor
            (B, K) float32. Where :attr:`graded` is true, they can be differentiated with respect to the
            inputs; the caller chooses ``inference_mode``.
        """
        ...

    def probability(self, logits: Tensor) -> Tensor:
        """Probabilities of the classes: the softmax of the logits, or the sigmoid of each of them.

        Parameters
        ----------
        logits
            (B, K), as :meth:`logits` gives them.

        Returns
        -------
        Tensor
            (B, K) in [0, 1]. They can be differentiated with respect to the logits.
        """
        ...

    def sites(self, inputs: Tensor) -> Tensor:
        """The sites that can be hidden.

        Every pixel, step and feature can be hidden. Padding and special tokens of a text cannot.

        Parameters
        ----------
        inputs
            (B, C, \\*sites).

        Returns
        -------
        Tensor
            (B, \\*sites) bool.
        """
        ...

    def fill(self, inputs: Tensor, how: str) -> Tensor:
        """What is shown in place of absent sites.

        Parameters
        ----------
        inputs
            (B, C, \\*sites).
        how
            One of :attr:`fills`; :data:`explainers.models.modality.MODALITIES` says what each one shows.

        Returns
        -------
        Tensor
            (B, C, \\*sites), or a shape that broadcasts to it; of the type of the inputs.

        Raises
        ------
        ValueError
            In one line, if ``how`` is none of :attr:`fills`.
        """
        ...

    def close(self) -> None:
        """Restore what the classifier changed on the network; a second call does nothing."""
        ...


def check_fill(classifier: BlackBox, how: str) -> None:
    """Check that the classifier's inputs have the fill ``how``.

    Raises
    ------
    ValueError
        In one line that names the fills they have.
    """
    if how not in classifier.fills:
        raise ValueError(
            f"fill: {how!r} is not for {classifier.modality}s; choose {' or '.join(classifier.fills)}"
        )
