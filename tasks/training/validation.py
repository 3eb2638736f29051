"""Validation: how well a head explains images that it is not trained on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from explainers.models.classifier import Classifier
from explainers.models.ptame_head import Head, maps_of
from explainers.probes.masked_forward import target_probability
from tasks.metrics.average_drop import AverageDrop, AverageDropParameters
from tasks.metrics.base import MetricBatch
from tasks.metrics.preparation import prepare
from tasks.pictures.drawing import coloured, draw_map, save, sheet
from tasks.training.data import Crops
from tasks.training.optimisation import Training

LEVEL = 15  # per cent of the pixels that the mask keeps
BATCH = 16  # images per step
SHOWN = 8  # images in the picture


@torch.inference_mode()
def validate(
    training: Training, head: Head, crops: Crops, rows: list[int], picture: Path
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Score the head on held-out images, and draw some of its maps.

    The maps are those of the predicted class, prepared as the maps of every explainer.

    Parameters
    ----------
    training
        The training, with its networks.
    head
        The head without a wrapper.
    crops, rows
        The images, and the rows of those that are held out.
    picture
        Where the picture of maps is written.

    Returns
    -------
    means
        By name, the means over the images of average drop, average gain and increase in confidence at 15 %,
        and the number of images that were replaced.
    problems
        One line per image that was replaced.
    """
    classifier = training.classifier
    head.eval()
    metric = AverageDrop(classifier, AverageDropParameters(levels=(LEVEL,)))
    found: dict[str, list[Tensor]] = {}
    problems: list[str] = []
    for start in range(0, len(rows), BATCH):
        drawn = [crops[-1, row] for row in rows[start : start + BATCH]]
        pixels = torch.stack([image for image, _ in drawn])
        problems += [problem for _, problem in drawn if problem]
        batch, maps = _explained(training, head, classifier, pixels)
        for name, values in metric.score(batch, maps).values.items():
            found.setdefault(name, []).append(values)
        if start == 0:
            _draw(pixels[:SHOWN], maps[:SHOWN], picture)
    means = {f"held_out_{name}": float(torch.cat(values).nanmean()) for name, values in found.items()}
    return means | {"held_out_images_replaced": float(len(problems))}, tuple(problems)


def _explained(
    training: Training, head: Head, classifier: Classifier, pixels: Tensor
) -> tuple[MetricBatch, Tensor]:
    """The batch for the metric and the prepared maps (B, H, W) of the head, for pixels (B, C, H, W)."""
    inputs = classifier.inputs_of(pixels.to(classifier.device))
    logits = classifier.logits(inputs)
    targets = logits.argmax(1)
    confidence = target_probability(classifier, logits, targets)
    maps = maps_of(head, training.auxiliary, classifier, inputs, targets)
    batch = MetricBatch(inputs, targets, torch.arange(len(inputs), device=inputs.device), confidence, [])
    return batch, prepare(maps, classifier.input_size)[0]


def _draw(pixels: Tensor, maps: Tensor, picture: Path) -> None:
    """Write a picture with a row per image: the image, and its map over it."""
    size = tuple(maps.shape[1:])
    figure, axes = sheet(len(pixels), 2, size, above=0, below=1)
    for (left, right), image, saliency in zip(axes, pixels, maps.cpu(), strict=True):
        shown = coloured(image.numpy())
        left.imshow(shown)
        left.set_axis_off()
        draw_map(right, shown, saliency.numpy())
    save(figure, picture)
