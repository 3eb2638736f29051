"""PAMI: show the network one part of the input at a time, and let every part vote for its sites.

Shi, Zhang, Zheng and Wang, "PAMI: partition input and aggregate outputs for model interpretation", arXiv
2302.03318; Pattern Recognition 2024, 109898. What the abstract and the authors' release leave open is our
CHOICE:

- If the short side of an input is not 224 pixels, all sizes are scaled in proportion, see
  :mod:`explainers.numerics.segmentation`. Shifts are rounded to whole pixels, and the blur's kernel to an odd
  number of pixels.
- An image that is shifted for its segmentation is also shifted when it is scored; only its map is shifted
  back.
- Shifts apply to segmentations alone. The disc slides over the unshifted input.
- Texts and numbers are shown in windows of 1, 2, 4 and 8 neighbouring tokens (words, numbers) at every
  position, with mask tokens in the rest of a text; we do not know the paper's settings for them.
- The map of the second stage replaces that of the first. The second stage always uses segmentations: those of
  the first stage's map, whichever strategy made it. This map is segmented with 8 bits per colour. The last
  digits of its scores depend on the batch size, which can, rarely, change a segment.
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
from explainers.numerics.masking import kernel_blur, rescaled
from explainers.numerics.randomness import random_bits
from explainers.numerics.segmentation import Partition, PreSegmentation, SlidingWindow, Windows
from explainers.probes.masked_forward import MaskedForward, scalar
from explainers.registry import register

Shift = tuple[int, int]  # pixels down and across
View = tuple[int, Shift]  # index of an image in the batch, and its shift

_SIDE = 224  # pixels, the short side of the inputs for which all sizes are given
_SHIFTS = (36, 30, 24)  # pixels, in both directions along each axis
_UNSHIFTED = [(0, 0)]
_BLUR_RADIUS, _BLUR_SIGMA = 24, 100  # pixels
_STEPS = 16  # full steps' worth of regions gathered at once, so that an incomplete last step costs little


class PamiParameters(base.PresetParameters):
    """Parameters of PAMI. The defaults are the authors'.

    ``preset = "fast"`` leaves out the shifts and half of SLIC's segmentations. It takes about 200 forward
    passes instead of 5600. With MobileNetV2 on three photographs, without SEEDS, its maps correlated 0.95,
    0.89 and 0.96 with those of the defaults. With all of SLIC's segmentations (430 passes), the correlations
    were higher by at most 0.002. The maps of the sliding disc with a stride of 12 (361 passes) correlated
    0.66, -0.21 and 0.50 with those of the defaults.
    """

    FAST: ClassVar[Mapping[str, Any]] = {"shifts": False, "superpixels": 40}

    strategy: Literal["presegmentation", "sliding"] = Field(
        "presegmentation",
        description="images: regions are the segments of many segmentations (presegmentation), or a disc at "
        "many positions (sliding)",
    )
    stages: Literal[1, 2] = Field(
        1, description="images: 2 adds a second stage, whose regions are segments of the first stage's map"
    )
    shifts: bool = Field(True, description="images: segment 12 shifted versions of the image as well")
    superpixels: int = Field(
        80,
        ge=10,
        le=80,
        description="images: largest number of SLIC's superpixels; SLIC runs with 10, 20, ... up to it",
    )
    radius: float = Field(
        40,
        gt=0,
        le=10_000,
        description="images: radius of the disc, in pixels of an input with a short side of 224",
    )
    stride: float = Field(
        6,
        ge=0.1,
        le=10_000,
        description="images: step of the disc, in pixels of an input with a short side of 224",
    )
    windows: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = Field(
        (1, 2, 4, 8),
        strict=False,  # TOML and JSON have lists
        min_length=1,
        max_length=1000,
        description="texts and numbers: lengths of the windows, in units",
    )
    unit: Literal["token", "word"] = Field("token", description="texts: unit of the windows' lengths")
    fill: str | None = Field(
        None,
        description="what is shown outside the region: blur, black, white or mean for images, mask or remove "
        "for texts, zero or mean for numbers; by default the first of these",
    )
    scalar: str = Field(
        "probability",
        description="score of a region shown alone: probability, sigmoid or logit of the target, "
        "or package.module:function, a function of (logits, targets)",
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

    Each region is shown alone on the fill, which for images is a blurred version of the input (RISE's kernel
    of 49 pixels and sigma 100, which is nearly a box; zeros beyond the border). Its score is the
    probability of the target, or another scalar. The value at a site p is the mean score of the regions that
    contain p. It is 0 at a text's special tokens and padding, which no region contains.

    Details: ``forward_passes``, one per distinct region of each stage and shift; ``segmentations``, their
    number per image: 20, or 17 without SEEDS, fewer with a lower ``superpixels``, and 0 for the sliding disc
    alone and for texts and numbers.
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
        """Average the scores of regions to (B, \\*sites) maps.

        Parameters
        ----------
        partition
            Divides what it is given into regions.
        shifts
            The shifted versions of every image.
        partitioned
            (B, ...), what is divided: the inputs themselves, or a map of them.
        """
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
        """Score the regions of V views.

        Parameters
        ----------
        labels
            (V, L, \\*sites) label maps of the shifted inputs; sites of no region have the label 0.

        Returns
        -------
        sums, counts
            (V, \\*sites): the sum of the scores of the regions that contain a site, and their number.
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
        """Return what (V, C, \\*sites) inputs show outside a region, in the same shape."""
        if self.fill == "blur":
            size = 2 * round(_BLUR_RADIUS * self.scale) + 1
            return kernel_blur(inputs, size, _BLUR_SIGMA * self.scale)
        return self.classifier.fill(inputs, self.fill).expand_as(inputs)


def check_keys(classifier: BlackBox, parameters: PamiParameters) -> None:
    """Refuse parameters that have no meaning for the classifier's inputs, unless they have their default."""
    of_images = ("strategy", "stages", "shifts", "superpixels", "radius", "stride")
    others = {"image": ("windows", "unit"), "text": ("preset", *of_images)}
    others["tensor"] = (*others["text"], "unit")
    for key in others[classifier.modality]:
        if getattr(parameters, key) != PamiParameters.model_fields[key].default:
            raise ValueError(f"{key}: it has no meaning for {classifier.modality}s; leave it out")


def rolled(values: Tensor, shift: Shift) -> Tensor:
    """Shift images (..., H, W) cyclically; a shift of (0, 0) returns values of any shape unchanged."""
    return values if shift == (0, 0) else torch.roll(values, shift, (-2, -1))


def shifts(scale: float) -> list[Shift]:
    """Return 13 shifts: no shift, and 12 along one axis each. There are fewer if tiny inputs make some equal.

    ``scale`` is the short side of the input divided by 224.
    """
    lengths = [sign * round(length * scale) for length in _SHIFTS for sign in (1, -1)]
    along = [(length, 0) for length in lengths] + [(0, length) for length in lengths]
    return list(dict.fromkeys(_UNSHIFTED + along))


def grouped(views: Iterable[tuple[View, Tensor]], regions: int) -> Iterator[tuple[list[View], Tensor]]:
    """Gather consecutive views into groups of at least ``regions`` regions, with their stacked label maps."""
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
    """Find the regions of label maps, and a key for each, by which equal regions are scored once.

    A key is the sum of 64 random bits per site, so regions of one view have the same key if they have the
    same sites. Two of 10,000 different regions get the same key less than once in 10^11 views. Regions of two
    views have different keys, since what they show is different.

    Parameters
    ----------
    labels
        (V, L, \\*sites) labels from 0 to K; 0 marks sites of no region.

    Returns
    -------
    present, keys
        (V, L, K + 1) bool, which labels are regions; (V, L, K + 1) int64.
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
    """Colour maps (B, H, W), each stretched to [0, 1], with viridis: (B, 3, H, W) in [0, 1]."""
    colours = torch.from_numpy(colormaps["viridis"](rescaled(maps).cpu().numpy())[..., :3])
    return colours.movedim(-1, 1).to(maps)
