"""PAMI: show the network one part of the input at a time, and let every part vote for its sites.

Shi, Zhang, Zheng and Wang, "PAMI: partition input and aggregate outputs for model interpretation", arXiv
2302.03318; Pattern Recognition 2024, 109898. What the abstract and the authors' release leave open is our
CHOICE:

- Of an input whose short side is not 224 pixels all sizes are in proportion, see
  :mod:`explainers.numerics.segmentation`; shifts are rounded to whole pixels and the blur's kernel to an odd
  number.
- A shifted image is scored as it is segmented, shifted; only its map is shifted back.
- Shifts belong to segmentations. Discs slide over the input as it stands.
- Texts and numbers, of which the paper's settings are not known to us, are shown in windows of 1, 2, 4 and 8
  neighbouring tokens (words, numbers) at every place; the rest of a text are mask tokens.
- The second stage's map replaces the first one's. It is always one of segmentations, of the first stage's
  map, whichever strategy that comes from. That map is segmented in 8 bits a colour, so that scores whose last
  digits depend on the batch size can, rarely, change a segment.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Annotated, Any, ClassVar, Literal

import torch
from matplotlib import colormaps
from pydantic import Field, model_validator
from torch import Tensor

from explainers import base
from explainers.base import Batch, Description, Detail, Explanation, Need, statuses_of
from explainers.models.black_box import BlackBox, check_fill
from explainers.numerics.masking import gaussian_blur, rescaled
from explainers.numerics.randomness import random_bits
from explainers.numerics.segmentation import Partition, PreSegmentation, SlidingWindow, Windows
from explainers.probes.masked_forward import MaskedForward, scalar
from explainers.registry import register

Shift = tuple[int, int]  # pixels down and across
View = tuple[int, Shift]  # an image of the batch, and how it is shifted

_SIDE = 224  # pixels, the short side of the inputs that all sizes are given for
_SHIFTS = (36, 30, 24)  # pixels, to either side on either axis
_UNSHIFTED = [(0, 0)]
_BLUR_RADIUS, _BLUR_SIGMA = 24, 100  # pixels
_STEPS = 16  # regions are gathered for so many full steps, so that a last one that is not costs little


class PamiParameters(base.PresetParameters):
    """Parameters of PAMI; the defaults are the authors'.

    ``preset = "fast"`` leaves out the shifts and half of SLIC's segmentations: about 200 forward passes
    instead of 5600. With MobileNetV2 on three photographs, without SEEDS, its maps correlated 0.95, 0.89 and
    0.96 with those of the defaults, with all of SLIC (430 passes) by at most 0.002 more; the sliding disc's
    with a stride of 12 (361 passes) 0.66, -0.21 and 0.50.
    """

    FAST: ClassVar[Mapping[str, Any]] = {"shifts": False, "superpixels": 40}

    strategy: Literal["presegmentation", "sliding"] = Field(
        "presegmentation", description="images: segments of many segmentations, or a sliding disc"
    )
    stages: Literal[1, 2] = Field(1, description="images, 2: then segments of the first stage's map")
    shifts: bool = Field(True, description="images: segment 12 shifted versions as well")
    superpixels: int = Field(80, ge=10, le=80, description="images: SLIC's largest number; 10, 20, ... to it")
    radius: float = Field(40, gt=0, description="images: of the disc, in pixels of a 224-pixel input")
    stride: float = Field(6, gt=0, description="images: of the disc, in pixels of a 224-pixel input")
    windows: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 2, 4, 8), min_length=1, description="texts and numbers: lengths of the windows"
    )
    unit: Literal["token", "word"] = Field("token", description="texts: what is counted in a window")
    fill: str | None = Field(
        None,
        description="what is seen outside the region: blur, black, white or mean for images, mask or remove "
        "for texts, zero or mean for numbers; the first of them by default",
    )
    scalar: str = Field(
        "probability",
        description="what a region alone is worth: probability (softmax), sigmoid or logit of the target, or "
        "package.module:function of (logits, targets)",
    )

    @model_validator(mode="after")
    def _covered(self) -> PamiParameters:
        if self.stride * math.sqrt(2) > self.radius:
            raise ValueError(
                f"discs of radius {self.radius:g} every {self.stride:g} pixels leave gaps; take a stride of "
                f"at most {self.radius / math.sqrt(2):.4g}"
            )
        return self


@register
class Pami:
    """PAMI (arXiv 2302.03318; Pattern Recognition 2024): each pixel's mean score over regions that show it.

    A region alone is shown on the fill, for images a blurred version of the input (49 pixels, sigma 100,
    zeros outside); its score is the softmax probability of the target, or another scalar. The map at p is the
    mean score of the regions that contain p; 0 at a text's special tokens and padding, which none contains.

    Details: ``forward_passes``, of the distinct regions of each stage and shift; ``segmentations`` of each
    image: 20, 17 without SEEDS, fewer by a lower ``superpixels``, 0 for the sliding disc alone, and for other
    inputs.
    """

    name: ClassVar[str] = "pami"
    title: ClassVar[str] = "PAMI: mean probability over the regions that show a pixel (arXiv 2302.03318)"
    needs: ClassVar[frozenset[Need]] = frozenset()
    Parameters: ClassVar[type[base.Parameters]] = PamiParameters

    def __init__(self, classifier: BlackBox, parameters: PamiParameters) -> None:
        self.classifier, self.parameters = classifier, parameters
        self.score = scalar(parameters.scalar)
        self.images = classifier.modality == "image"
        self.fill = parameters.fill or ("blur" if self.images else classifier.fills[0])
        check_fill(classifier, self.fill)
        check_keys(classifier, parameters)
        self.scale = min(classifier.input_shape[1:]) / _SIDE
        self.shifts = shifts(self.scale) if parameters.shifts else _UNSHIFTED
        self.segments = PreSegmentation(self.scale, parameters.superpixels)
        self.disc = SlidingWindow(parameters.radius * self.scale, parameters.stride * self.scale)

    def describe(self) -> Description:
        details = {"forward_passes": Detail((), "int32"), "segmentations": Detail((), "int32")}
        return Description(self.classifier.input_shape[1:], details)

    @torch.inference_mode()
    def explain(self, batch: Batch) -> Explanation:
        masked = MaskedForward(self.classifier, batch.targets, batch.forwards, self.score)
        segmented = self.images and (self.parameters.strategy, self.parameters.stages) != ("sliding", 1)
        maps = self._first_stage(batch, masked)
        if self.parameters.stages == 2:
            maps = self._stage(batch, masked, self.segments, self.shifts, coloured(maps))
        details = {
            "forward_passes": masked.passes,
            "segmentations": torch.full_like(
                masked.passes, len(self.segments.segmentations) if segmented else 0
            ),
        }
        return Explanation(maps, statuses_of(maps, self.classifier.sites(batch.inputs)), details)

    def _first_stage(self, batch: Batch, masked: MaskedForward) -> Tensor:
        if not self.images:
            sites = self.classifier.sites(batch.inputs)
            numbers = batch.inputs[:, 1] if self.parameters.unit == "word" else sites.cumsum(1) - 1
            units = torch.where(sites, numbers, -1)
            return self._stage(batch, masked, Windows(self.parameters.windows), _UNSHIFTED, units)
        if self.parameters.strategy == "sliding":
            return self._stage(batch, masked, self.disc, _UNSHIFTED, batch.inputs)
        return self._stage(batch, masked, self.segments, self.shifts, batch.inputs)

    def _stage(
        self,
        batch: Batch,
        masked: MaskedForward,
        partition: Partition,
        shifts: list[Shift],
        partitioned: Tensor,
    ) -> Tensor:
        """(B, \\*sites) mean scores over the regions of ``partitioned`` (B, ...) and its shifted versions."""
        views = [(image, shift) for image in range(len(batch)) for shift in shifts]
        split = partition.label_maps(rolled(partitioned[image], shift) for image, shift in views)
        total = torch.zeros(len(batch), *self.classifier.input_shape[1:], device=batch.inputs.device)
        number = torch.zeros_like(total)
        with closing(split):
            for group, labels in grouped(zip(views, split, strict=True), _STEPS * batch.forwards):
                sums, counts = self._votes(batch, masked, group, labels.to(total.device))
                for (image, (down, across)), one, count in zip(group, sums, counts, strict=True):
                    total[image] += rolled(one, (-down, -across))
                    number[image] += rolled(count, (-down, -across))
        return total / number.clamp(min=1)

    def _votes(
        self, batch: Batch, masked: MaskedForward, views: list[View], labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sum of the scores of the regions that contain a site, and their number, by view: (V, \\*sites).

        ``labels`` (V, L, \\*sites) of the shifted inputs, at least 0.
        """
        image = torch.tensor([image for image, _ in views], device=labels.device)
        inputs = torch.stack([rolled(batch.inputs[i], shift) for i, shift in views])
        outside = self._fill(inputs)
        present, keys = regions_of(labels)
        view, label_map, label = present.nonzero().T

        def region_alone(rows: Tensor) -> Tensor:
            inside = labels[view[rows], label_map[rows]] == label[rows].view(-1, *[1] * (labels.ndim - 2))
            return torch.where(inside[:, None], inputs[view[rows]], outside[view[rows]])

        found = masked.scores(image[view], region_alone, keys[present])
        scores = found.new_zeros(present.shape).masked_scatter(present, found)
        sums = found.new_zeros(len(views), *labels.shape[2:])
        counts = torch.zeros_like(sums)
        for table, each in zip(scores.unbind(1), labels.unbind(1), strict=True):
            sums += table.gather(1, each.flatten(1).long()).view_as(sums)
            counts += each > 0
        return sums, counts

    def _fill(self, inputs: Tensor) -> Tensor:
        """What is seen outside a region of (V, C, \\*sites) inputs; of the same shape."""
        if self.fill == "blur":
            radius = round(_BLUR_RADIUS * self.scale)
            return gaussian_blur(inputs, _BLUR_SIGMA * self.scale, radius, "constant")
        return self.classifier.fill(inputs, self.fill).expand_as(inputs)


def check_keys(classifier: BlackBox, parameters: PamiParameters) -> None:
    """Refuse what has another value than its default and no meaning for the classifier's inputs."""
    of_images = ("strategy", "stages", "shifts", "superpixels", "radius", "stride")
    others = {"image": ("windows", "unit"), "text": ("preset", *of_images)}
    others["tensor"] = (*others["text"], "unit")
    for key in others[classifier.modality]:
        if getattr(parameters, key) != PamiParameters.model_fields[key].default:
            raise ValueError(f"{key}: it has no meaning for {classifier.modality}s; leave it out")


def rolled(values: Tensor, shift: Shift) -> Tensor:
    """Images (..., H, W) shifted in a circle; anything is left as it is by no shift."""
    return values if shift == (0, 0) else torch.roll(values, shift, (-2, -1))


def shifts(scale: float) -> list[Shift]:
    """None at all, and 12 on one axis each; fewer where they coincide because the input is tiny."""
    lengths = [sign * round(length * scale) for length in _SHIFTS for sign in (1, -1)]
    along = [(length, 0) for length in lengths] + [(0, length) for length in lengths]
    return list(dict.fromkeys(_UNSHIFTED + along))


def grouped(views: Iterable[tuple[View, Tensor]], regions: int) -> Iterator[tuple[list[View], Tensor]]:
    """Consecutive views and their stacked label maps, as soon as they have so many regions together."""
    group: list[tuple[View, Tensor]] = []
    gathered = 0
    for view, labels in views:
        group.append((view, labels))
        gathered += int(labels.flatten(1).amax(1).sum())
        if gathered >= regions:
            yield [view for view, _ in group], torch.stack([labels for _, labels in group])
            group, gathered = [], 0
    if group:
        yield [view for view, _ in group], torch.stack([labels for _, labels in group])


def regions_of(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which labels of (V, L, \\*sites) are regions, (V, L, K + 1) bool, and a key to each, likewise, int64.

    Regions of one view have the same key if and only if they have the same sites: it is the sum of 64 random
    bits per site, by which two of 10,000 regions are mistaken for one less than once in 10^11 views. Regions
    of two views have different keys, since what they show is different.
    """
    V, K = len(labels), int(labels.max())
    bits = random_bits(torch.arange(V, device=labels.device), labels[0, 0].numel())
    present, keys = [], []
    for each in labels.unbind(1):
        index = each.flatten(1).long()
        keys.append(bits.new_zeros(V, K + 1).scatter_add(1, index, bits))
        present.append(bits.new_zeros(V, K + 1).bool().scatter(1, index, True))
    found = torch.stack(present, 1)
    found[..., 0] = False
    return found, torch.stack(keys, 1)


def coloured(maps: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1]: maps (B, H, W) stretched to [0, 1] each, in the colours of viridis."""
    colours = torch.from_numpy(colormaps["viridis"](rescaled(maps).cpu().numpy())[..., :3])
    return colours.movedim(-1, 1).to(maps)
