"""The demo's images: real handwriting with known truth, drawn by a pure function of (seed, split, index).

Each image is a 64x64 canvas with one handwritten digit from 0 to 7, its *target*, on clutter: a texture,
strokes, noise, and a second handwritten digit that is an 8 or a 9 (not a class of the task). The target is
painted after the texture, the strokes and the second digit, so nothing hides it, and its label, box and pixel
mask are known exactly. The handwriting is scikit-learn's ``load_digits`` (1,797 scans of 8x8 pixels, UCI
"Optical Recognition of Handwritten Digits"). No scan, as a target or as a distractor, is used in both splits.

The same version of NumPy and Pillow draws exactly the same images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Floats = NDArray[np.float32]

SIZE = 64
SPLITS = ("train", "test")
CLASSES: list[str] = [str(digit) for digit in range(8)]

# One fixed permutation for all seeds of the images, so that images of two seeds never mix the splits.
_SPLIT_SEED = 20
_TEST_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class DigitSample:
    """One image with its label, box and mask.

    Attributes
    ----------
    image
        (64, 64, 3) uint8, RGB.
    label
        Index into ``CLASSES``.
    box
        Tight box of the mask as (xmin, ymin, xmax, ymax): continuous pixel edges, so that the whole image
        would be (0, 0, 64, 64).
    mask
        (64, 64) bool, the target's pixels: those at least half covered by its ink.
    source, distractor
        Rows of ``load_digits`` from which the target and the second digit were taken.
    """

    image: NDArray[np.uint8]
    label: int
    box: tuple[float, float, float, float]
    mask: NDArray[np.bool_]
    source: int
    distractor: int


@dataclass(frozen=True)
class _Scans:
    """Scans as ink coverage (1797, 8, 8) in [0, 1], their digits, and the rows that each split may use."""

    ink: Floats
    digits: NDArray[np.int64]
    targets: dict[str, NDArray[np.int64]]
    distractors: dict[str, NDArray[np.int64]]


def sample(split: str, index: int, seed: int = 0) -> DigitSample:
    """Draw the image at ``index`` of a split; a split has no last image.

    Parameters
    ----------
    split
        ``"train"`` or ``"test"``.
    index, seed
        Numbers that are not negative. The result depends only on (seed, split, index).

    Raises
    ------
    ValueError
        If the split is unknown or a number is negative.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed must not be negative, got {index} and {seed}")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    scans = _scans()
    source = int(rng.choice(scans.targets[split]))
    distractor = int(rng.choice(scans.distractors[split]))

    target = _place(_glyph(scans.ink[source], int(rng.integers(20, 33))), rng)
    # The second digit takes the least crowded of a few places: beside the target, not under it.
    glyph = _glyph(scans.ink[distractor], int(rng.integers(14, 25)))
    beside = min((_place(glyph, rng) for _ in range(12)), key=lambda alpha: float((alpha * target).sum()))

    # Bright ink on a darker ground here; half of the images are inverted at the end.
    canvas = _strokes(_ground(rng), rng)
    canvas = _paint(canvas, beside, rng.uniform(0.5, 1.0, 3))
    canvas = _paint(canvas, target, rng.uniform(0.6, 1.0, 3))
    canvas += rng.normal(0, rng.uniform(0.01, 0.05), canvas.shape)
    if rng.random() < 0.5:
        canvas = 1 - canvas
    image = np.round(canvas.clip(0, 1) * 255).astype(np.uint8)
    mask = target >= 0.5
    return DigitSample(image, int(scans.digits[source]), _tight_box(mask), mask, source, distractor)


@cache
def _scans() -> _Scans:
    """Load the scans and divide them into the splits."""
    # Found without being imported: scikit-learn takes seconds to import, in every worker.
    package = find_spec("sklearn")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0], "datasets/data/digits.csv.gz")
    scans = np.loadtxt(path, delimiter=",")
    digits = scans[:, -1].astype(np.int64)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(digits))
    cut = round(_TEST_SHARE * len(digits))
    rows = {"test": np.sort(order[:cut]), "train": np.sort(order[cut:])}
    is_target = digits < len(CLASSES)
    return _Scans(
        ink=(scans[:, :-1].reshape(-1, 8, 8) / 16).astype(np.float32),
        digits=digits,
        targets={split: chosen[is_target[chosen]] for split, chosen in rows.items()},
        distractors={split: chosen[~is_target[chosen]] for split, chosen in rows.items()},
    )


def _glyph(ink: Floats, side: int) -> Floats:
    """Enlarge a scan of 8x8 to (side, side) alpha in [0, 1], with its edge sharpened to about two pixels."""
    smooth = np.asarray(Image.fromarray(ink).resize((side, side), Image.Resampling.BICUBIC))
    return ((smooth - 0.25) / 0.4).clip(0, 1)


def _place(glyph: Floats, rng: np.random.Generator) -> Floats:
    """Return a (64, 64) layer with the whole glyph at a random place."""
    side = len(glyph)
    top, left = rng.integers(0, SIZE - side + 1, 2)
    layer = np.zeros((SIZE, SIZE), np.float32)
    layer[top : top + side, left : left + side] = glyph
    return layer


def _ground(rng: np.random.Generator) -> Floats:
    """Draw a dark ground (64, 64, 3) with a smooth coloured texture."""
    cells = int(rng.integers(3, 17))
    coarse = rng.normal(0, 1, (cells, cells, 3)).astype(np.float32)
    layers = [
        np.asarray(Image.fromarray(coarse[..., c]).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    amplitude = rng.uniform(0.03, 0.12)
    ground = rng.uniform(0.0, 0.4, 3) + amplitude * np.stack(layers, axis=-1)
    return ground.astype(np.float32)


def _strokes(ground: Floats, rng: np.random.Generator) -> Floats:
    """Draw pen strokes on the ground: straight lines and arcs, drawn at twice the size for smooth edges."""
    big = Image.fromarray((ground.clip(0, 1) * 255).astype(np.uint8)).resize((2 * SIZE, 2 * SIZE))
    pen = ImageDraw.Draw(big)
    for _ in range(int(rng.integers(3, 8))):
        x, y, end_x, end_y = rng.integers(-16, 2 * SIZE + 16, 4).tolist()
        colour = tuple(int(255 * level) for level in rng.uniform(0.3, 1.0, 3))
        width = int(rng.integers(2, 8))
        if rng.random() < 0.5:
            pen.line((x, y, end_x, end_y), fill=colour, width=width)
        else:
            radius, start = int(rng.integers(8, 40)), int(rng.integers(0, 360))
            around = (x - radius, y - radius, x + radius, y + radius)
            pen.arc(around, start, start + int(rng.integers(60, 240)), fill=colour, width=width)
    drawn: Floats = np.asarray(big.reduce(2), dtype=np.float32)
    return drawn / np.float32(255)


def _paint(canvas: Floats, alpha: Floats, colour: NDArray[np.float64]) -> Floats:
    """Paint a colour on the canvas, with the opacity ``alpha`` (64, 64) in [0, 1]."""
    cover = alpha[..., None]
    return canvas * (1 - cover) + cover * colour.astype(np.float32)


def _tight_box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Return the smallest box around a mask as (xmin, ymin, xmax, ymax), in pixel edges."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
