"""A classifier of numbers: time series of several channels, or the rows of a table."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from explainers.models.black_box import check_fill
from explainers.models.frozen import Frozen
from explainers.models.modality import MODALITIES, ModalityName
from explainers.models.model_spec import Activation, Output, Part
from explainers.models.outputs import Outputs

_TENSORS = MODALITIES["tensor"]


class TensorClassifier(Frozen):
    """A network of plain tensors: a :class:`BlackBox`.

    Every input is (C, T); a table's row is one channel with one feature per site. While it is wrapped, the
    network is in eval mode and its parameters require no gradient. :meth:`close`, or leaving the ``with``
    block, restores that.

    Parameters
    ----------
    network
        Any module that takes float32 inputs and returns logits (B, K), or a single logit per input. It is
        called with (B, C, T) where ``shape`` is (C, T), and with (B, T) where it is (T,).
    shape
        Shape of one row of the dataset: (C, T), or (T,).
    device
        The device that the network is moved to.
    output, activation
        What the network returns, and how logits become probabilities: see
        :class:`explainers.models.outputs.Outputs`.
    returns
        Which part of what the network returns is meant, by name or index, where it returns several: see
        :mod:`explainers.models.returned`.

    Raises
    ------
    ValueError
        In one line that names the key: rows have another number of axes, the network does not run on such
        rows, or it does not return logits.
    """

    modality: ClassVar[ModalityName] = "tensor"
    fills: ClassVar[tuple[str, ...]] = tuple(_TENSORS.fills)
    graded: ClassVar[bool] = _TENSORS.graded
    layer: ClassVar[None] = None

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, ...],
        device: str | torch.device = "cpu",
        output: Output | None = None,
        returns: Part | None = None,
        activation: Activation | None = None,
    ) -> None:
        if len(shape) not in {1, 2} or 0 in shape:
            raise ValueError(f"dataset.path: rows must be (T,) or (C, T), and these are {shape}")
        super().__init__(network, device, Outputs(output, activation), returns)
        self._flat = len(shape) == 1
        self.input_shape = (1, *shape) if self._flat else shape
        try:
            probe = torch.rand(2, *self.input_shape, generator=torch.Generator().manual_seed(0))
            rows = f"rows of shape {shape}"
            self.num_classes = self._probe(probe.to(device), "model.source", rows).shape[1]
        except BaseException:
            self.close()
            raise

    def inputs_of(self, stored: Tensor) -> Tensor:
        return stored.float()

    def logits(self, inputs: Tensor) -> Tensor:
        return self._as_logits(self._pass(self.network, inputs.squeeze(1) if self._flat else inputs))

    def sites(self, inputs: Tensor) -> Tensor:
        return _TENSORS.sites(inputs)

    def fill(self, inputs: Tensor, how: str) -> Tensor:
        check_fill(self, how)
        # (1, 1, 1), or (B, C, 1) with the mean of each channel over the input's own sites.
        return inputs.new_zeros(1, 1, 1) if how == "zero" else inputs.mean(-1, keepdim=True)
