"""A network that is kept in eval mode, without gradients of its parameters, while it is explained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from types import TracebackType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from explainers.models.checkpoints import note_cast, taken_for
from explainers.models.class_names import ClassName
from explainers.models.compute import (
    Compiled,
    Compute,
    Float32Linear,
    lowered,
    tf32,
    wants_eager,
    wants_full_precision,
)
from explainers.models.cutting.replayed import Backbone, Head
from explainers.models.modality import ModalityName
from explainers.models.model_spec import Part
from explainers.models.outputs import Outputs
from explainers.models.programs import check_can_be_lowered, code_of_scripts
from explainers.models.returned import PartError, chosen_part, part_of, unwrapping
from explainers.numerics.fingerprint import sha256_of
from plugins.reasons import first_line

_HALVES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Frozen:
    """A network in eval mode, whose parameters require no gradient, until :meth:`close`.

    Parameters and buffers in half precision are float32 until then; ``compute`` says what is computed in half
    precision. Leaving the ``with`` block closes it as well. The network stays on ``device``.

    Attributes
    ----------
    compute
        How the network's forward passes are computed; see :meth:`use`.
    class_names
        The names of the classes, one per logit; None where they are not known.
    outputs
        What the network's outputs mean.
    probed
        Two seeded inputs on which the network was tried: (2, C, \\*sites).

    Raises
    ------
    ValueError
        In one line, if the network has no values.
    """

    probed: Tensor
    modality: ClassVar[ModalityName]

    def __init__(
        self,
        network: nn.Module,
        device: str | torch.device,
        outputs: Outputs | None = None,
        returns: Part | None = None,
    ) -> None:
        if any(tensor.is_meta for tensor in network.state_dict().values() if isinstance(tensor, Tensor)):
            raise ValueError("model.source: the network is on the meta device, which has no values")
        self.outputs = outputs or Outputs()
        self._wanted = returns
        self._part: Part | None = None
        self.network = network.to(device)
        self.device = torch.device(device)
        self.compute = Compute()
        self.class_names: tuple[ClassName, ...] | None = None
        self._compiled: dict[nn.Module, Compiled] = {}
        self._restore: list[tuple[Any, str, Any]] = []
        # One module after the other, since parts of the network may have been in different modes.
        for module in network.modules():
            if hasattr(module, "training"):  # a frozen TorchScript module has no mode
                self._set(module, "training", False)
        for parameter in network.parameters():
            self._set(parameter, "requires_grad", False)
        self._read_halves()

    def _set(self, owner: Any, attribute: str, value: Any) -> None:
        """Set an attribute until :meth:`close`, which restores its old value."""
        self._restore.append((owner, attribute, getattr(owner, attribute)))
        setattr(owner, attribute, value)

    def _read_halves(self) -> None:
        """Let tensors in half precision be float32, until :meth:`close`: sums of halves would lose digits."""
        cast: Counter[str] = Counter()
        for tensor in [*self.network.parameters(), *self.network.buffers()]:
            if tensor.dtype in _HALVES:
                cast[_HALVES[tensor.dtype]] += 1
                self._set(tensor, "data", tensor.data.float())
        note_cast(self.network, dict(cast))

    def _switch_off_in_place(self) -> None:
        """Let no activation overwrite its input, which may be read elsewhere as well."""
        for module in self.network.modules():
            if hasattr(module, "inplace") and not isinstance(module, torch.jit.ScriptModule):
                self._set(module, "inplace", False)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the state dict: names, types, shapes and values; and of its scripts."""
        digest = sha256_of(self.network.state_dict())
        for code in code_of_scripts(self.network):
            digest.update(code)
        return digest.hexdigest()

    def logits(self, inputs: Tensor) -> Tensor:
        """(B, K) logits of B inputs; every classifier defines it."""
        raise NotImplementedError

    def returned(self, inputs: Tensor) -> Tensor:
        """(B, K) what the network returns for B inputs, taken as it is; a single output p becomes (0, p)."""
        outputs, self.outputs = self.outputs, Outputs()
        try:
            return self.logits(inputs)
        finally:
            self.outputs = outputs

    @property
    def exclusive(self) -> bool:
        return self.outputs.exclusive

    def probability(self, logits: Tensor) -> Tensor:
        return self.outputs.probability(logits)

    def log_probability(self, logits: Tensor) -> Tensor:
        """(B, K) logarithms of :meth:`probability`, exact where a probability is close to 0."""
        return self.outputs.log_probability(logits)

    def use(self, compute: Compute) -> None:
        """Compute forward passes as ``compute`` says, until :meth:`close`.

        A linear layer that gives the logits stays in float32, because rounded logits would be rounded scores.

        Raises
        ------
        ValueError
            In one line: the network does not run in this way on its device, its logits are too large for
            float16, or it is a program whose logits cannot stay in float32.
        """
        if compute == Compute():
            return
        if compute.precision != "float32":
            check_can_be_lowered(self.network)
            self._keep_logits_whole()
        self._set(self, "compute", compute)
        if compute.compile:
            self._set(self, "_compiled", {})
        logits = self._probe(self.probed, "compute", f"{self.device.type} in {compute.precision}")
        if compute.precision == "float16" and not bool(logits.isfinite().all()):
            raise ValueError("compute.precision: the network's logits are beyond float16; use bfloat16")

    @torch.no_grad()
    def _keep_logits_whole(self) -> None:
        """Let every linear layer that may give the logits compute in float32.

        These are the layers whose outputs have as many columns as the logits.
        """
        outputs: dict[nn.Module, Tensor] = {}

        def note(module: nn.Module, _: Any, output: Tensor) -> None:
            outputs[module] = output

        linear = [module for module in self.network.modules() if type(module) is nn.Linear]
        handles = [module.register_forward_hook(note) for module in linear]
        try:
            logits = self.logits(self.probed)
        finally:
            for handle in handles:
                handle.remove()
        for module, output in outputs.items():
            # The logits may be a part or a mean of it; a single output is one of two logits.
            if output.shape[-1] in {logits.shape[-1], self.outputs.columns}:
                # A new class for the same object: the parts of a network that was cut share it.
                self._set(module, "__class__", Float32Linear)

    def _pass(self, part: nn.Module, *inputs: Tensor) -> Tensor:
        """Run a part of the network as :attr:`compute` says; the output is float32, not a lower precision."""
        differentiated = torch.is_grad_enabled() and any(each.requires_grad for each in inputs)
        found: Tensor
        if self.compute == Compute() or differentiated or wants_full_precision():
            found = part(*inputs)
            return found
        with lowered(self.compute, self.device):
            found = self._fastest(part)(*inputs)
        return found.float() if found.dtype in _HALVES else found

    def _fastest(self, part: nn.Module) -> nn.Module | Compiled:
        """A part as it runs, which is compiled at its first use if :attr:`compute` says so."""
        if not self.compute.compile or wants_eager() or isinstance(part, Backbone | Head):
            return part
        if part not in self._compiled:
            self._compiled[part] = Compiled(part)
        return self._compiled[part]

    def _as_logits(self, returned: Tensor) -> Tensor:
        """Logits from what the network returned, see :class:`Outputs`."""
        if not isinstance(returned, Tensor):  # only in the first pass
            returned = self._unwrapped(returned)
        return self.outputs.logits(returned)

    def _unwrapped(self, returned: Any) -> Tensor:
        """The part of ``returned`` that is meant; the network returns this part alone from now on.

        Raises
        ------
        PartError
            In one line: it has no such part, or the job has to say which one is meant.
        """
        self._part = chosen_part(returned, self._wanted)
        self._set(self.network, "__class__", unwrapping(self.network, self._part))
        return part_of(returned, self._part)

    @contextmanager
    def differentiating(self) -> Iterator[None]:
        """Within the block, products are computed in TF32 if :attr:`compute` says so.

        It is for gradients through the whole network.
        """
        with tf32(True) if self.compute.tf32 and not wants_full_precision() else nullcontext():
            yield

    def __getstate__(self) -> dict[str, Any]:
        """Copies drop compiled parts, since their weights change."""
        return vars(self) | {"_compiled": {}}

    @torch.no_grad()
    def _probe(self, inputs: Tensor, key: str, what: str) -> Tensor:
        """Run the network on ``inputs`` and check that it returns logits (B, K).

        Parameters
        ----------
        inputs
            (B, C, \\*sites).
        key
            The key that names the model, for the message.
        what
            What the inputs are, in words.

        Raises
        ------
        ValueError
            In one line that begins with ``key``: the network does not run on ``what``, or it does not return
            logits in float32 or float64.
        """
        self.probed = inputs
        try:
            logits = self.logits(inputs)
        except PartError:
            raise
        except (Exception, SystemExit) as error:
            reason = first_line(error)
            reason = f"SystemExit: {reason}" if isinstance(error, SystemExit) else reason
            cast = taken_for[self.network].cast if self.network in taken_for else {}
            halves = " in float32, which its weights became," if cast.keys() & _HALVES.values() else ""
            raise ValueError(f"{key}: the network does not run{halves} on {what}: {reason}") from error
        if logits.ndim != 2 or len(logits) != len(inputs):
            shape = tuple(logits.shape)
            raise ValueError(f"{key}: the network must return logits (B, K), and returned {shape}")
        if self._wanted is not None and self._part is None:
            raise ValueError("model.returns: the network returns one tensor; leave the key out")
        if logits.dtype not in {torch.float32, torch.float64}:
            raise ValueError(f"{key}: the network must return logits in float32, and returned {logits.dtype}")
        if logits.shape[1] < 2:
            raise ValueError(f"{key}: the network has no output; a classifier has one or more")
        return logits

    def close(self) -> None:
        """Restore what was changed on the network; a second call does nothing."""
        while self._restore:  # in reverse order, so that the oldest value of an attribute stays
            owner, attribute, value = self._restore.pop()
            setattr(owner, attribute, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
