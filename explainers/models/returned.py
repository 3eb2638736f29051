"""What a network returns, unwrapped in one place: a tensor, or the part of a mapping, tuple or dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, jit, nn

from explainers.models.model_spec import Part


class PartError(ValueError):
    """What a network returns has no part that must be its logits; the message is one line with the key."""


def chosen_part(returned: Any, wanted: Part | None) -> Part:
    """Choose the part of ``returned`` that is the logits.

    Parameters
    ----------
    returned
        What a network returned for a batch: a mapping (a ModelOutput of Hugging Face is one), a tuple, a list
        or a dataclass.
    wanted
        The name or the index that the job gives. Without it the part is the one named "logits", else the
        only tensor (B, K) of floating-point numbers.

    Raises
    ------
    PartError
        There is no such part, or several could be the logits. The message lists the parts.
    """
    parts = parts_of(returned)
    if not parts:
        raise PartError(
            f"model.source: the network must return logits (B, K), and returned a {type(returned).__name__}"
        )
    candidates = [key for key, part in parts.items() if _is_matrix(part)]
    found = "logits" if wanted is None and "logits" in parts else wanted
    if found is None and len(candidates) == 1:
        found = candidates[0]
    if isinstance(parts.get(found), Tensor) and found is not None:
        return found
    there = f"the network returns a {type(returned).__name__} of {_listed(parts)}"
    if found is not None:
        problem = "is no tensor" if found in parts else "is none of its parts"
        raise PartError(f"model.returns: {there}, and {found!r} {problem}; give the name or index of one")
    if not candidates:
        raise PartError(f"model.returns: {there}, none of which is (B, K); return the logits as well")
    named = f'"{candidates[0]}"' if isinstance(candidates[0], str) else candidates[0]
    raise PartError(f"model.returns: {there}; say which are the logits, such as returns = {named}")


def parts_of(returned: Any) -> dict[Any, Any]:
    """The parts of what a network returned, by name or index; nothing for a tensor, or for any other type."""
    if isinstance(returned, Mapping):
        return dict(returned)
    if isinstance(returned, tuple | list):
        return dict(enumerate(returned))
    if dataclasses.is_dataclass(returned) and not isinstance(returned, type):
        return {field.name: getattr(returned, field.name) for field in dataclasses.fields(returned)}
    return {}


def unwrapping(network: nn.Module, part: Part) -> type[nn.Module]:
    """A class for ``network`` whose forward returns one part of what the network's own forward returns.

    The object gets another class and no wrapper around it, so that its modules and weights keep their names,
    and its copies run on their own weights.

    Raises
    ------
    PartError
        If the network is a TorchScript module, whose class cannot be changed.
    """
    own = type(network)
    if isinstance(network, jit.ScriptModule):
        raise PartError(
            "model.source: a TorchScript module must return the tensor of logits alone; script a module that "
            "does, or return it inside an nn.Module"
        )

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        returned = own.forward(self, *args, **kwargs)
        return returned if isinstance(returned, Tensor) else part_of(returned, part)

    body = {"forward": forward, "__module__": own.__module__, "__qualname__": own.__qualname__}
    return type(own.__name__, (own,), body)


def part_of(returned: Any, part: Part) -> Tensor:
    """One part of what a network returned."""
    found: Tensor = getattr(returned, str(part)) if dataclasses.is_dataclass(returned) else returned[part]
    return found


def _is_matrix(part: Any) -> bool:
    return isinstance(part, Tensor) and part.ndim == 2 and part.is_floating_point()


def _listed(parts: Mapping[Any, Any]) -> str:
    """The parts in a few words: name or index, and shape or type."""
    told = []
    for key, part in list(parts.items())[:8]:
        what = tuple(part.shape) if isinstance(part, Tensor) else f"({type(part).__name__})"
        told.append(f"{key} {what}")
    return ", ".join(told) + (f" and {len(parts) - 8} more" if len(parts) > 8 else "")
