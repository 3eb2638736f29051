"""Checks of what Floodlit made of a network, written apart from its own probes.

Each returns None, or in a few words what is wrong.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from explainers.base import Batch
from explainers.models.classifier import Classifier
from explainers.probes.attention import attention_tokens, explicit_attention
from explainers.registry import explainers

HEAD = 1e-4  # of the range of an input's logits
_OF_CHANGE = 0.05  # of what other inputs change in the logits: a head that ignores its input exceeds it
_ROUNDING = 1e-6  # of the largest logit: random weights may hardly let the logits change
_PLACES = (3, 4)  # of the moving patch, from top to bottom and from left to right
_FOLLOWS = 0.7  # the least correlation of where the grid changes with where the patch is
_SEEN = 0.6  # the same of what a cell sees with where the cell is
_ALIKE = (1.001, 1.1)  # the strongest change over the mean one; below it, the cells are one
UNCLEAR = "unclear"
_FLOOR = 1e-4  # of the largest change: less counts as much
_TRIED = 32  # cells without a gradient that are replaced
_LEFT_OUT = 0.75  # of the rows and columns that a stride leaves, at least
_MAPS = 1e-3  # of a map's largest value

# A layer whose Grad-CAM is known to be meant, for networks that many people explain.
BY_HAND = {
    ("torchvision", "resnet50"): "layer4",
    ("torchvision", "resnet18"): "layer4",
    ("torchvision", "resnext50_32x4d"): "layer4",
    ("torchvision", "wide_resnet50_2"): "layer4",
    ("torchvision", "vgg16"): "features",
    ("torchvision", "alexnet"): "features",
    ("torchvision", "densenet121"): "features",
    ("torchvision", "googlenet"): "inception5b",
    ("torchvision", "inception_v3"): "Mixed_7c",
    ("torchvision", "mobilenet_v2"): "features",
    ("torchvision", "mobilenet_v3_large"): "features",
    ("torchvision", "efficientnet_b0"): "features",
    ("torchvision", "regnet_y_400mf"): "trunk_output",
    ("torchvision", "shufflenet_v2_x1_0"): "conv5",
    ("torchvision", "mnasnet1_0"): "layers",
    ("torchvision", "convnext_tiny"): "features",
    ("torchvision", "swin_t"): "norm",
    ("torchvision", "vit_b_16"): "encoder.layers.encoder_layer_11:input",
    ("torchvision", "vit_b_32"): "encoder.layers.encoder_layer_11:input",
    ("open_clip", "RN50"): "visual.layer4",
    ("open_clip", "ViT-S-32"): "visual.transformer.resblocks.11:input",
    ("open_clip", "ViT-B-32-quickgelu"): "visual.transformer.resblocks.11:input",
}


def fresh(classifier: Classifier, count: int, seed: int) -> Tensor:
    """(count, C, H, W) inputs in [0, 1]: blobs of three sizes and some noise."""
    generator = torch.Generator().manual_seed(1000 + seed)
    channels, height, width = classifier.input_shape
    total = torch.zeros(count, channels, height, width)
    for cells, share in ((3, 0.5), (9, 0.25), (27, 0.15)):
        coarse = torch.rand(count, channels, cells, cells, generator=generator)
        total += share * F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    total += 0.1 * torch.rand(total.shape, generator=generator)
    return total.to(classifier.device)


@torch.no_grad()
def head(classifier: Classifier) -> str | None:
    """The head gives the network's logits, whatever ran in between and however many inputs there are."""
    first, second = fresh(classifier, 3, 0), fresh(classifier, 5, 1)
    before, other = classifier.activations(first), classifier.activations(second)
    expected = classifier.logits(first)
    changed = (expected - expected.roll(1, 0)).abs().amax()
    found = {
        "three inputs": (classifier.head(before), expected),
        "one input": (classifier.head(before[1:2]), expected[1:2]),
        "five inputs": (classifier.head(other), classifier.logits(second)),
    }
    for rows, (logits, wanted) in found.items():
        error, scale = (logits - wanted).abs().amax(1), _range(wanted)
        if not bool((error <= HEAD * scale).all()):
            return f"head: the logits of {rows} differ by {float((error / scale).max()):.1e} of their range"
        if not bool((error <= _OF_CHANGE * changed + _ROUNDING * wanted.abs().max()).all()):
            return f"head: the logits of {rows} differ by {float(error.max() / changed):.1e} of their change"
    return None


def _range(logits: Tensor) -> Tensor:
    """(B,): the range of each input's logits, which is never zero."""
    return (logits.amax(1) - logits.amin(1)).clamp(min=1e-30)


def reach(classifier: Classifier) -> str | None:
    """Every cell of the grid reaches the logits, by its gradient or when it is replaced."""
    height, width = classifier.grid
    if height * width < 2:
        return f"reach: the grid is {height}x{width}"
    with torch.no_grad():
        activations = classifier.activations(fresh(classifier, 4, 2))
    leaf = activations.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = classifier.head(leaf)
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(7)).to(logits)
        (gradient,) = torch.autograd.grad((weights * logits).sum(), leaf)
    reached = (classifier.spatial(gradient).abs().amax(1) > 0).any(0)
    silent = (~reached).nonzero().tolist()
    deaf = [
        cell
        for cell in silent[:: -(-len(silent) // _TRIED) or 1]
        if not _answers(classifier, activations, *cell)
    ]
    rows, columns = int(reached.any(1).sum()), int(reached.any(0).sum())
    stride = bool(reached[:rows, :columns].all()) and min(rows / height, columns / width) >= _LEFT_OUT
    if deaf and not stride:
        return (
            f"reach: {len(deaf)} of {height}x{width} cells do not reach the logits, such as {tuple(deaf[0])}"
        )
    return None


@torch.no_grad()
def _answers(classifier: Classifier, activations: Tensor, row: int, column: int) -> bool:
    """Whether the logits change when a cell gets large random values of either sign."""
    scale = 20 * float(activations.abs().max()) + 1e-30
    generator = torch.Generator().manual_seed(row * 1000 + column)
    changed = activations[:1].repeat(9, *[1] * (activations.ndim - 1))
    values = torch.randn(8, classifier.channels, generator=generator).to(changed) * scale
    classifier.spatial(changed)[1:, :, row, column] = values
    logits = classifier.head(changed)
    return bool(((logits[1:] - logits[:1]).abs().max() > 1e-6 * logits[:1].abs().max()).item())


def follows(classifier: Classifier) -> str | None:
    """Where the grid changes moves with a patch of a fine checkerboard over the input.

    With random weights a cell of a deep network may change wherever the patch is. Then the centre of the
    pixels that a cell depends on has to move with the cell.
    """
    told = [
        f"{side} {patch:.2f} and {seen:.2f}"
        for side, patch, seen in zip(
            ("rows", "columns"), _patched(classifier), _seen(classifier), strict=True
        )
        if not (patch >= _FOLLOWS or seen >= _SEEN)
    ]
    if told:
        wrong = f"patch: the change, and what cells see, do not follow their places: {' and '.join(told)}"
        return f"{UNCLEAR}: all cells change nearly alike; {wrong}" if _nearly_alike(classifier) else wrong
    return None


@torch.no_grad()
def _nearly_alike(classifier: Classifier) -> bool:
    """Whether a patch changes all cells nearly alike, so that random weights hide where the cells lie."""
    inputs = fresh(classifier, 1, 3)
    height, width = classifier.input_shape[1:]
    shown = inputs.clone()
    shown[..., : height // 3, : width // 3] = 1
    maps = classifier.spatial(classifier.activations(torch.cat([inputs, shown])))
    change = (maps[1] - maps[0]).abs().mean(0)
    return bool(_ALIKE[0] < change.max() / change.mean().clamp(min=1e-30) < _ALIKE[1])


@torch.no_grad()
def _patched(classifier: Classifier) -> list[float]:
    """The correlation of the place of the change with that of the patch, for rows and for columns."""
    _, height, width = classifier.input_shape
    base = fresh(classifier, 1, 3) * 0.4 + 0.3
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    board = (((rows // 3) + (columns // 3)) % 2).to(base)
    size = (-(-height // 3), -(-width // 4))
    before = classifier.spatial(classifier.activations(base))
    changes, places = [], []
    for down in range(_PLACES[0]):
        for across in range(_PLACES[1]):
            top = round(down * (height - size[0]) / (_PLACES[0] - 1))
            left = round(across * (width - size[1]) / (_PLACES[1] - 1))
            inside = (slice(None), slice(None), slice(top, top + size[0]), slice(left, left + size[1]))
            shown = base.clone()
            shown[inside] = board[top : top + size[0], left : left + size[1]]
            changes.append((classifier.spatial(classifier.activations(shown)) - before).abs()[0].cpu())
            places.append((top + size[0] / 2, left + size[1] / 2))
    strength = torch.stack(changes)
    strength = (strength / strength.amax((0, 2, 3), keepdim=True).clamp(min=1e-30)).mean(1)
    level = strength.clamp(min=_FLOOR * strength.max().clamp(min=1e-30)).log()
    # A cell that changes wherever the patch is counts as little as a place that changes every cell.
    level = level - level.mean(0) - level.mean((1, 2), keepdim=True)
    centres = []
    for axis in (0, 1):
        cells = torch.arange(level.shape[1 + axis]).double()
        centres.append((level.sum(2 - axis) * (cells - cells.mean())).sum(1))
    return _correlations(classifier, torch.stack(centres), torch.tensor(places).T)


def _seen(classifier: Classifier) -> list[float]:
    """The correlation of a cell's place with the centre of the pixels it depends on, for rows and columns."""
    h, w = classifier.grid
    inputs = fresh(classifier, 4, 8).requires_grad_()
    with torch.enable_grad():
        maps = classifier.spatial(classifier.activations(inputs))
        weights = torch.randn(maps.shape[:2], generator=torch.Generator().manual_seed(9)).to(maps)
        cells = [(row, column) for row in _spread(h) for column in _spread(w)]
        gradients = torch.stack(
            [
                torch.autograd.grad((maps[:, :, row, column] * weights).sum(), inputs, retain_graph=True)[0]
                for row, column in cells
            ]
        )
    # Behind a layer that mixes all places, all cells depend on the same pixels most. A cell's own are the
    # differences of its gradient from those of the others.
    seen = (gradients - gradients.mean(0)).double().square().sum(2).cpu()
    seen = seen / seen.mean(0).clamp(min=1e-300)
    centres = []
    for axis in (0, 1):
        profiles = seen.sum(3 - axis)
        pixels = torch.arange(profiles.shape[2]).double()
        centres.append(((profiles * pixels).sum(2) / profiles.sum(2)).mean(1))
    return _correlations(classifier, torch.stack(centres), torch.tensor(cells).T)


def _spread(length: int) -> list[int]:
    """Four places along a side, or all if there are fewer."""
    return sorted({round(share * (length - 1) / 3) for share in range(4)})


def _correlations(classifier: Classifier, found: Tensor, wanted: Tensor) -> list[float]:
    """Correlations of (2, n) places, along rows and along columns; 1 along a side of one cell."""
    return [
        1.0
        if classifier.grid[axis] == 1
        else float(torch.corrcoef(torch.stack([found[axis], wanted[axis]]).double())[0, 1].nan_to_num(0))
        for axis in (0, 1)
    ]


def maps_by_hand(classifier: Classifier, other: Classifier) -> str | None:
    """Grad-CAM at the layer found equals Grad-CAM at the layer named by hand."""
    inputs = fresh(classifier, 3, 4)
    with torch.no_grad():
        targets = classifier.logits(inputs).argmax(1)
    found, wanted = (_gradcam(each, inputs, targets) for each in (classifier, other))
    if found.shape != wanted.shape:
        return (
            f"by hand: the grid is {tuple(found.shape[1:])}, and at {other.layer} {tuple(wanted.shape[1:])}"
        )
    error = float(((found - wanted).abs().amax((1, 2)) / wanted.abs().amax((1, 2)).clamp(min=1e-30)).max())
    return None if error <= _MAPS else f"by hand: maps differ from those at {other.layer} by {error:.1e}"


def _gradcam(classifier: Classifier, inputs: Tensor, targets: Tensor) -> Tensor:
    cls = explainers.get("gradcam")
    with torch.no_grad():
        activations = classifier.activations(inputs)
    seeds = torch.arange(len(inputs), device=inputs.device)
    maps: Tensor = cls(classifier, cls.Parameters()).explain(Batch(inputs, targets, seeds, activations)).maps
    return maps.detach()


@torch.no_grad()
def token_dropping(classifier: Classifier) -> str | None:
    """All patches give the network's logits, and pixels far from the kept patches do not matter."""
    inputs = fresh(classifier, 3, 5)
    height, width = classifier.patch_grid
    keep = torch.ones(3, height * width, dtype=torch.bool, device=inputs.device)
    expected = classifier.logits(inputs)
    spread = _range(expected)
    error = ((classifier.logits_of_patches(inputs, keep) - expected).abs().amax(1) / spread).max()
    if not error <= HEAD:
        return f"token dropping: with all patches the logits differ by {float(error):.1e} of their range"
    keep = torch.arange(height * width, device=inputs.device).remainder(width).expand(3, -1) < -(-width // 2)
    keep = keep & (torch.rand(keep.shape, generator=torch.Generator().manual_seed(5)).to(keep.device) < 0.7)
    keep[:, 0] = True
    half = classifier.logits_of_patches(inputs, keep)
    alone = classifier.logits_of_patches(inputs[1:2], keep[1:2])
    if not bool(((half[1:2] - alone).abs().amax() / spread[1]) <= HEAD):
        return "token dropping: the logits of a row depend on the other rows"
    if not bool((half - expected).abs().amax() > 1e-6 * spread.max()):
        return "token dropping: leaving patches out changes nothing"
    changed = inputs.clone()
    changed[..., 3 * inputs.shape[-1] // 4 :] = 1 - changed[..., 3 * inputs.shape[-1] // 4 :]
    error = ((classifier.logits_of_patches(changed, keep) - half).abs().amax(1) / spread).max()
    return (
        None if error <= HEAD else f"token dropping: absent patches change the logits by {float(error):.1e}"
    )


def attention(classifier: Classifier) -> str | None:
    """The matrices are those by which the network computes, their rows add up to 1, and logits stay."""
    inputs = fresh(classifier, 2, 6)
    own = attention_tokens(classifier)
    tokens = own.layout.shape[0]
    with torch.no_grad():
        expected = classifier.logits(inputs)
    spread = float(_range(expected).min())
    matrices: list[Any] = []
    with torch.enable_grad(), explicit_attention(matrices.append):
        found = classifier.logits(inputs.clone().requires_grad_())
        gradients = torch.autograd.grad(found.square().sum(), matrices, allow_unused=True)
    matrices, gradients = ([each[call] for call in own.reaching] for each in (matrices, gradients))
    error = float((found.detach() - expected).abs().max()) / spread
    if not error <= HEAD:
        return f"attention: the logits differ by {error:.1e} of their range when it is read"
    if any(tuple(each.shape[-2:]) != (tokens, tokens) for each in matrices):
        return f"attention: a matrix is {tuple(matrices[0].shape)} for {tokens} tokens"
    if any(not bool(((each.sum(-1) - 1).abs() < 1e-3).all()) or bool((each < 0).any()) for each in matrices):
        return "attention: rows of a matrix do not add up to 1"
    used = [each is not None and bool(each.any()) for each in gradients]
    return None if all(used) else "attention: the logits do not depend on a matrix"
