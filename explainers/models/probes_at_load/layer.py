"""Probes of the target layer of a classifier of images: whether its grid can be believed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from explainers.models.probes_at_load.rows import Asked, RefusedError, in_words
from explainers.numerics.differences import difference

if TYPE_CHECKING:
    from explainers.models.classifier import Classifier

_HEAD = 1e-3  # of the largest logit: the cut network may fuse operations otherwise than the whole one
_TRIED = 64  # cells without a gradient that are filled with strong values, at most
_MOST = 0.75  # of the rows and of the columns that a pooling with a stride reads, at least
_STRONG = 10.0  # times the largest activation
_REACHED = 1e-5  # of the largest logit: less is rounding
_PLACES = 4  # places of the patch along each side, at most
_FOLLOWS = 0.6  # the least correlation, and the least share of places, of a change that follows the patch
_SURELY = 0.85  # the least correlation of a change that follows, but stays nearer the middle than the patch
_SPREAD = 1.4  # times the mean: a strongest change below it is no peak
_FLAT = 1e-4  # cells whose changes differ by a smaller share are one pooled cell
_NUMBERS = 2**20  # of one input's activations that are looked at, at most; else channels are left out
_LEAST = 1e-30  # stands for zero in a divisor
_OUTLIER = 10.0  # standard deviations of a channel; more is cut, because some tokens have huge activations


def head(asked: Asked) -> str:
    """Refuse a layer whose activations do not give the network's own logits."""
    classifier, good = asked.classifier, asked.good
    found = classifier.head(classifier.activations(asked.inputs))
    worst = difference(found[good], asked.logits[good])
    if not worst <= _HEAD:
        raise RefusedError(
            f"model.layer: cut at {classifier.layer!r}, the network does not reproduce its own logits (it "
            "draws random numbers, or writes to a tensor in place); name another layer"
        )
    return f"{in_words(worst)}, cut with {classifier.way}"


def cells(asked: Asked) -> str:
    """Refuse a grid of one cell, and a grid with cells that do not reach the logits.

    A cell reaches them if the gradient there is not zero for one of the inputs. Where it is zero everywhere,
    as behind a ReLU or a maximum it may be, the cell is filled with strong values.
    """
    classifier: Classifier = asked.classifier
    height, width = classifier.grid
    if height * width < 2:
        raise RefusedError(
            f"model.layer: the grid of {classifier.layer!r} has one cell, so that a map of it shows "
            "nothing; name a layer before the pooling, or use larger inputs"
        )
    if bool((asked.logits.diff(dim=0) == 0).all()):
        return "unknown, since all inputs have the same logits"  # e.g. random weights behind a zero head
    activations = classifier.activations(asked.inputs[asked.good])
    reached = _has_gradient(classifier, activations)
    silent = (~reached).nonzero()
    tried = silent[:: -(-len(silent) // _TRIED) or 1].tolist()
    deaf = [cell for cell in tried if not _responds(classifier, activations[:1], *cell)]
    rows, columns = (int(reached.any(axis).sum()) for axis in (1, 0))
    if deaf and bool(reached[:rows, :columns].all()) and min(rows / height, columns / width) >= _MOST:
        return (
            f"{rows}x{columns} of {height}x{width} cells reach the logits, a stride leaves out the last ones"
        )
    if deaf:
        raise RefusedError(
            f"model.layer: {len(deaf)} of {len(tried)} cells that were tried on the {height}x{width} grid of "
            f"{classifier.layer!r} cannot reach the logits, such as row {deaf[0][0]}, column {deaf[0][1]}; "
            "name an earlier layer"
        )
    return f"all of {height}x{width} cells reach the logits"


def _has_gradient(classifier: Classifier, activations: Tensor) -> Tensor:
    """(h, w) bool: whether a random sum of the logits has a gradient in the cell, for one of the inputs."""
    activations = activations.clone()
    with torch.enable_grad():
        logits = classifier.head(activations.requires_grad_())
        if not logits.requires_grad:
            return torch.zeros(classifier.grid, dtype=torch.bool, device=activations.device)
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
        (gradient,) = torch.autograd.grad((logits * weights).sum(), activations)
    return (classifier.spatial(gradient).abs().sum(1) > 0).any(0)


def _responds(classifier: Classifier, activations: Tensor, row: int, column: int) -> bool:
    """Whether the logits of (1, \\*activation_shape) change when a cell is filled with strong values."""
    strong = _STRONG * (float(activations.abs().max()) or 1.0)
    signs = torch.randn(2, classifier.channels, generator=torch.Generator().manual_seed(1)).sign()
    fills = (
        torch.cat([torch.zeros(1, classifier.channels), signs, -signs, torch.ones_like(signs[:1])]) * strong
    )
    filled = activations.repeat(len(fills), *[1] * (activations.ndim - 1))
    classifier.spatial(filled)[1:, :, row, column] = fills[1:].to(filled)  # the first one stays as it was
    logits = classifier.head(filled)
    return not difference(logits[1:], logits[:1]) <= _REACHED  # infinite logits have changed as well


def patch(asked: Asked) -> str:
    """Refuse a grid on which the strongest change does not follow a bright patch over the input.

    On a small grid every cell of a sound network may see the whole input, so that there is no peak. This is
    accepted where the tensor has axes of its own for rows and columns, unless all cells change alike.
    """
    classifier: Classifier = asked.classifier
    places = (min(classifier.grid[0], _PLACES), min(classifier.grid[1], _PLACES))
    changes = _changes(classifier, places)
    scale = changes.square().mean((0, 2, 3), keepdim=True).sqrt()
    shares = (changes / scale.clamp(min=_LEAST)).clamp(max=_OUTLIER)
    strength = shares.square().mean(1).sqrt()  # (places, h, w)
    # A token that changes wherever the patch is, as registers do, hides the one that changes with it. So both
    # the change itself and its share of the cell's mean change are looked at.
    ratio = strength / strength.mean(0).clamp(min=_LEAST)
    correlation, near = max((_followed(each, places) for each in (strength, ratio)), key=min)
    told = f"correlation {correlation:.2f}, near the patch at {near:.0%} of {places[0] * places[1]} places"
    if min(correlation, near) >= _FOLLOWS or correlation >= _SURELY:
        return told
    peak = float((ratio.amax((1, 2)) / ratio.mean((1, 2)).clamp(min=_LEAST)).median())
    if len(classifier.activation_shape) == 3 and 1 + _FLAT < peak < _SPREAD:
        return (
            f"no peak (the strongest change is {peak:.2f} of the mean), since every cell sees the whole input"
        )
    raise RefusedError(
        f"model.layer: the strongest change at {classifier.layer!r} does not follow a bright patch that is "
        f"moved over the input ({told}), so that its cells are not rows and columns of the image; name "
        "another layer"
    )


def _changes(classifier: Classifier, places: tuple[int, int]) -> Tensor:
    """(places, D, h, w): by how much the activations of an input change for a patch at each place."""
    channels, height, width = classifier.input_shape
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(1, channels, 4, 4, generator=generator) / 2
    noise = torch.rand(1, channels, height, width, generator=generator) / 10
    inputs = (F.interpolate(coarse, (height, width), mode="bilinear") + noise).to(classifier.device)

    def looked_at(shown: Tensor) -> Tensor:
        maps = classifier.spatial(classifier.activations(shown))[0]
        return maps[:: -(-maps.numel() // _NUMBERS)]

    before = looked_at(inputs)
    changes = []
    for row in range(places[0]):
        for column in range(places[1]):
            patched = inputs.clone()
            down = slice(row * height // places[0], (row + 1) * height // places[0])
            across = slice(column * width // places[1], (column + 1) * width // places[1])
            patched[:, :, down, across] = 1
            changes.append((looked_at(patched) - before).abs())
    return torch.stack(changes)


def _followed(strength: Tensor, places: tuple[int, int]) -> tuple[float, float]:
    """How the strongest cell follows the patch.

    Parameters
    ----------
    strength
        (places, h, w), how strongly each cell changes for a patch at each place, row by row.
    places
        Number of places from top to bottom and from left to right.

    Returns
    -------
    correlation
        Of the cell's row with the patch's, or of their columns: the lower one; 1 for a side of one cell.
    near
        Share of places at which the cell lies under the patch, or at most one cell beside it.
    """
    grid = strength.shape[1:]
    strongest = strength.flatten(1).argmax(1).cpu()
    found = torch.stack([strongest // grid[1], strongest % grid[1]]).double()
    number = torch.arange(places[0] * places[1])
    middle = torch.stack([number // places[1], number % places[1]]).double() + 0.5
    near, correlation = torch.ones(len(number), dtype=torch.bool), 1.0
    for side in (0, 1):
        size = grid[side] / places[side]  # of the patch, in cells
        wanted = middle[side] * size - 0.5
        near &= (found[side] - wanted).abs() <= size / 2 + 1
        if grid[side] > 1:
            its = torch.corrcoef(torch.stack([found[side], wanted]))[0, 1].nan_to_num(0.0)
            correlation = min(correlation, float(its))
    return correlation, float(near.double().mean())
