"""What the numbers that a network returns mean: logits from them, and probabilities from logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from explainers.models.model_spec import Activation, Output

_LEAST = -1e4  # stands for the logarithm of zero: such a logit is finite, and so are sums of many


class Outputs:
    """How a network's outputs become logits (B, K), and logits become probabilities.

    A network that returns one number z per input, as (B, 1) or (B,), has two classes: their logits are
    (0, z), so that class 1 ("yes") has the probability sigmoid(z), and class 0 ("no") the rest. Their softmax
    is exactly that, so the activation of such a network is the softmax, whatever the job says.

    Parameters
    ----------
    returned
        What the network returns; None if nobody said so, and then it has to be logits.
    activation
        "softmax": exactly one class is right, and the probabilities of an input add up to 1. "sigmoid": each
        class is right or not for itself (multi-label). None means "softmax".

    Attributes
    ----------
    columns
        Number of columns that the network returned last: 1 for a single logit, and 0 before its first pass.
    """

    def __init__(self, returned: Output | None = None, activation: Activation | None = None) -> None:
        self.returned, self.activation, self.columns = returned, activation, 0

    @property
    def exclusive(self) -> bool:
        """Whether classes exclude each other, so that the probabilities of an input add up to 1."""
        return self.activation != "sigmoid" or self.columns == 1

    @property
    def told(self) -> str:
        """How the outputs are read, in words; empty where they are those of a softmax."""
        if self.columns == 1:
            return "one number z per input, read as the classes (0, z): class 1 has probability sigmoid(z)"
        if self.exclusive:
            return ""
        return "several labels per input: the probability of a class is the sigmoid of its own logit"

    def logits(self, returned: Tensor) -> Tensor:
        """Logits (B, K) from what the network returned; what is no tensor of one or two axes stays as it is.

        Probabilities p become log(p) where a softmax made them, and log(p) - log(1 - p) where a sigmoid did.
        p is kept so far from 0 and 1 that the logits are finite. Gradients flow through.
        """
        if not isinstance(returned, Tensor) or not returned.is_floating_point():
            return returned
        if returned.ndim == 1:
            returned = returned[:, None]
        if returned.ndim != 2:
            return returned
        self.columns = returned.shape[1]
        found = self._softmax(returned) if self.exclusive and self.columns != 1 else self._sigmoid(returned)
        return torch.cat([torch.zeros_like(found), found], 1) if self.columns == 1 else found

    def _softmax(self, returned: Tensor) -> Tensor:
        if self.returned != "probabilities":
            return returned
        return returned.clamp(min=torch.finfo(returned.dtype).tiny).log()

    def _sigmoid(self, returned: Tensor) -> Tensor:
        numbers = torch.finfo(returned.dtype)
        if self.returned == "probabilities":
            # The number next below 1 is 1 - eps / 2.
            p = returned.clamp(numbers.tiny, 1 - numbers.eps / 2)
            return p.log() - (-p).log1p()
        if self.returned == "log_probabilities":
            log_p = returned.clamp(_LEAST, -numbers.tiny)
            return log_p - (-log_p.expm1()).log()
        return returned

    def probability(self, logits: Tensor) -> Tensor:
        """(B, K) probabilities, in [0, 1], from logits (B, K)."""
        return logits.softmax(1) if self.exclusive else logits.sigmoid()

    def log_probability(self, logits: Tensor) -> Tensor:
        """(B, K) logarithms of :meth:`probability`, exact where a probability is close to 0."""
        return logits.log_softmax(1) if self.exclusive else F.logsigmoid(logits)
