"""A network that is held still while it is explained."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn


class Frozen:
    """A network in eval mode, whose parameters ask for no gradient, until :meth:`close`.

    Leaving the ``with`` block closes it too. The network stays on ``device``.
    """

    def __init__(self, network: nn.Module, device: str | torch.device) -> None:
        self.network = network.to(device)
        self.device = torch.device(device)
        self._restore: list[tuple[Any, str, Any]] = []
        for module in network.modules():
            self._set(module, "training", False)
        for parameter in network.parameters():
            self._set(parameter, "requires_grad", False)

    def _set(self, owner: Any, attribute: str, value: Any) -> None:
        self._restore.append((owner, attribute, getattr(owner, attribute)))
        setattr(owner, attribute, value)

    def logits(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def _probe(self, inputs: Tensor, key: str, what: str) -> Tensor:
        """(B, K) logits of ``inputs``.

        Raises
        ------
        ValueError
            In one line that begins with ``key``: the network does not run on ``what``, or does not return
            logits of two or more classes.
        """
        try:
            logits = self.logits(inputs)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{key}: the network does not run on {what}: {reason}") from error
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(inputs):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"{key}: the network must return logits (B, K), and returned {found}")
        if logits.shape[1] < 2:
            raise ValueError(f"{key}: the network has one output; a classifier has two or more")
        return logits

    def close(self) -> None:
        """Restore what was changed; a second call does nothing."""
        while self._restore:
            owner, attribute, value = self._restore.pop()
            setattr(owner, attribute, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
