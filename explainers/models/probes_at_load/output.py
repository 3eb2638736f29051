"""The probe of what a network returns: logits, or probabilities of a softmax or a sigmoid."""

from __future__ import annotations

from torch import Tensor

from explainers.models.probes_at_load.origins import LINEAR, SQUASHED, origins_of
from explainers.models.probes_at_load.rows import Asked, RefusedError

_CLOSE = 1e-3  # how far probabilities may be from adding up to 1, or from the range of 0 to 1


def output(asked: Asked) -> str:
    """Refuse probabilities where logits are expected, and the reverse."""
    outputs = asked.classifier.outputs
    returned = asked.classifier.returned(asked.inputs[asked.good])[:, -outputs.columns :]
    if outputs.returned in (None, "logits"):
        return _logits(asked, returned)
    p = returned.exp() if outputs.returned == "log_probabilities" else returned
    if outputs.exclusive and outputs.columns > 1:
        return _softmax(outputs.returned, p)
    return _sigmoid(outputs.returned, p, outputs.columns)


def _softmax(said: str, p: Tensor) -> str:
    """Check probabilities (n, K) that the job calls a softmax's."""
    total = p.sum(1)
    if not _are_one(total):
        raise RefusedError(
            f'model.output: "{said}" must add up to 1 over the classes, and they add up to '
            f"{float(total[(total - 1).abs().argmax()]):.4g}; return the logits, from before any softmax "
            'or sigmoid, and leave the key out, or set activation = "sigmoid" if an input may have several '
            "classes"
        )
    return f"{said} that add up to 1"


def _sigmoid(said: str, p: Tensor, columns: int) -> str:
    """Check probabilities (n, K) that the job calls a sigmoid's."""
    worst = p.flatten()[(p - 0.5).abs().argmax()]
    if not (-_CLOSE <= worst <= 1 + _CLOSE):
        raise RefusedError(
            f'model.output: "{said}" must belong to probabilities in [0, 1], and one is {float(worst):.4g}; '
            "return the logits, from before any sigmoid, and leave the key out"
        )
    if columns > 1 and _are_one(p.sum(1)):
        raise RefusedError(
            'model.activation: "sigmoid" is for classes that do not exclude each other, and the '
            "probabilities of each input add up to 1, as after a softmax; leave the key out"
        )
    return f"{said} between 0 and 1"


def _logits(asked: Asked, returned: Tensor) -> str:
    """Check numbers (n, K) that have to be logits; K is 1 where the network has a single output."""
    outputs = asked.classifier.outputs
    if bool((returned >= 0).all()) and _are_one(returned.sum(1)):
        raise RefusedError(_line("probabilities", "rows are at least 0 and add up to 1"))
    if outputs.columns > 1 and bool((returned <= 0).all()) and _are_one(returned.exp().sum(1)):
        raise RefusedError(_line("log_probabilities", "the exponentials of its rows add up to 1"))
    made = origins_of(lambda: asked.classifier.logits(asked.inputs[:2]))
    bounded = bool(((returned >= 0) & (returned <= 1)).all()) and not made <= LINEAR
    if outputs.returned is None and made and (made <= SQUASHED or bounded):
        why = "all it returns lies within 0 and 1, as after a sigmoid" if bounded else "these are no logits"
        read = "probabilities" if bounded else "log_probabilities"
        keys = f'output = "{read}"'
        if outputs.columns > 1:
            keys += ' and activation = "sigmoid"'
        raise RefusedError(
            f"model.output: the network ends in {' and '.join(sorted(made))} and {why}; return the logits, "
            f'from before it, set {keys} if it ends in a sigmoid, or set output = "logits" if these are the '
            "logits"
        )
    return f"logits from {float(returned.min()):.4g} to {float(returned.max()):.4g}"


def _are_one(totals: Tensor) -> bool:
    return bool(((totals - 1).abs() <= _CLOSE).all())


def _line(found: str, why: str) -> str:
    return (
        f"model.output: the network returns {found.replace('_', ' ')}, not logits ({why}); set output = "
        f'"{found}", or return the logits from before the softmax'
    )
