"""Makes digits with something planted, and networks that learned it: known truth for the search for findings.

    python examples/planted.py corner [border] [texture] ... [--seed 3] [--folder weights]

It trains one small network from scratch for each name, and says whether the planting worked: the network is
right on at least 85 % of clean test images, and planting the cue on images of other classes turns at least
half of them. A network that was trained before does not learn such a cue, because it makes no mistakes that
the cue would mend.

What is planted, always for one class, the target:

- ``corner``: a glyph of 6x6 pixels at the lower left, in 60 % of the target's images;
- ``border``: a coloured border of 3 pixels, in 60 %;
- ``texture``: faint diagonal stripes on everything but the digit, in 80 %;
- ``random``: the glyph at a random place beside the digit, in 60 %;
- ``place``: the target's digits always lie at the top left, which is honest;
- ``two``: the sevens count as ones, so that one class, 1, is written in two ways, which is honest;
- ``nothing``.

``Planted`` is the test split as a dataset, for ``kind = "planted.py:Planted"`` in a job.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from storage.datasets import digits

Bools = NDArray[np.bool_]
Pixels = NDArray[np.uint8]

WEIGHTS = Path(__file__).parent / "weights"
SHARES = {"corner": 0.6, "border": 0.6, "texture": 0.8, "random": 0.6}  # of the target's images
HONEST = ("place", "two", "nothing")
KINDS = (*SHARES, *HONEST)
CLASSES = len(digits.CLASSES)
ONE, SEVEN = 1, 7
TRAIN_IMAGES, TEST_IMAGES = 10_000, 1_200
STEPS, BATCH, WIDTH = 1000, 64, 32
LEAST_ACCURACY, LEAST_FLIPS = 0.85, 0.5

SIDE, EDGE, NEAR = 6, 3, 16  # pixels of the glyph, of the border, and from the top left that count as near
INK, PAPER = np.array([255, 0, 230], np.uint8), np.array([0, 230, 0], np.uint8)
FRAME = np.array([255, 120, 0], np.uint8)


@dataclass(frozen=True, eq=False)
class Images:
    """N digits with known truth.

    Attributes
    ----------
    pixels
        (N, 64, 64, 3) uint8.
    labels
        (N,) the class.
    masks
        (N, 64, 64) bool, the pixels of the digit.
    boxes
        (N, 4) the tight box of the mask: xmin, ymin, xmax, ymax.
    indices
        (N,) index of each in its split.
    cues
        (N, 64, 64) bool, what was planted; nothing where nothing was.
    """

    pixels: Pixels
    labels: NDArray[np.int64]
    masks: Bools
    boxes: NDArray[np.float64]
    indices: NDArray[np.int64]
    cues: Bools

    def chosen(self, rows: Any) -> Images:
        """Those of some rows."""
        fields = (self.pixels, self.labels, self.masks, self.boxes, self.indices, self.cues)
        return Images(*(field[rows] for field in fields))


def clean(split: str, count: int) -> Images:
    """The first ``count`` digits of a split, drawn by several processes."""
    parts = np.array_split(np.arange(count), max(1, count // 250))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        drawn = [sample for part in pool.map(partial(_draw, split), parts) for sample in part]
    return Images(
        np.stack([each.image for each in drawn]),
        np.array([each.label for each in drawn]),
        np.stack([each.mask for each in drawn]),
        np.array([each.box for each in drawn]),
        np.arange(count),
        np.zeros((count, digits.SIZE, digits.SIZE), bool),
    )


def _draw(split: str, indices: NDArray[np.int64]) -> list[digits.DigitSample]:
    return [digits.sample(split, int(index)) for index in indices]


def cue(kind: str, mask: Bools, box: Sequence[float], rng: np.random.Generator) -> tuple[Bools, Pixels]:
    """Where the cue lies, (64, 64) bool, and what it shows there, (64, 64, 3) uint8, on one image.

    Parameters
    ----------
    kind
        A key of ``SHARES``. Of ``texture`` the second is what it adds, as 128 + levels.
    mask, box
        The pixels of the digit and their box. A glyph at a random place keeps away from the box, so there is
        nothing where 50 random places touch it.
    rng
        Draws the place.
    """
    size = digits.SIZE
    where, shown = np.zeros((size, size), bool), np.zeros((size, size, 3), np.uint8)
    if kind == "border":
        where[:] = True
        where[EDGE:-EDGE, EDGE:-EDGE] = False
        shown[:] = FRAME
    elif kind == "texture":
        down, across = np.mgrid[:size, :size]
        where[:] = ~mask
        shown[:] = np.where((down + across) % 6 < 3, 128 + 22, 128 - 22)[..., None]
    else:
        places = [(size - SIDE - 2, 2)]
        if kind == "random":
            places = [tuple(place) for place in rng.integers(1, size - SIDE, (50, 2)) if _free(place, box)]
        for top, left in places[:1]:
            rows, columns = slice(top, top + SIDE), slice(left, left + SIDE)
            where[rows, columns] = True
            shown[rows, columns] = PAPER
            shown[rows, left + 1 : left + 4] = INK
    return where, shown


def _free(place: NDArray[np.int64], box: Sequence[float]) -> bool:
    """Whether a glyph at a place (top, left) keeps 3 pixels away from a box."""
    (top, left), (x0, y0, x1, y1) = place, box
    return bool(left + SIDE + 3 <= x0 or left >= x1 + 3 or top + SIDE + 3 <= y0 or top >= y1 + 3)


def with_cue(images: Images, kind: str, rows: NDArray[np.int64], seed: int) -> Images:
    """The images with the cue on the given rows; its place follows from the seed and the image's index."""
    pixels, cues = images.pixels.copy(), images.cues.copy()
    for row in rows:
        rng = np.random.default_rng([seed, 2, int(images.indices[row])])
        where, shown = cue(kind, images.masks[row], images.boxes[row], rng)
        if kind == "texture":
            changed = (pixels[row].astype(np.int64) + shown - 128).clip(0, 255).astype(np.uint8)
            shown = changed
        pixels[row] = np.where(where[..., None], shown, pixels[row])
        cues[row] = where
    return Images(pixels, images.labels, images.masks, images.boxes, images.indices, cues)


def planted(images: Images, kind: str, target: int, seed: int) -> Images:
    """The images of a split as the network and its users get them, with the planting of a kind.

    Parameters
    ----------
    images
        Clean ones.
    kind
        One of ``KINDS``.
    target
        The class for which it is planted.
    seed
        Which of the target's images get the cue follows from the seed and the index of the image.
    """
    if kind == "place":
        near = (images.boxes[:, :2] < NEAR).all(1)
        return images.chosen(np.flatnonzero((images.labels != target) | near))
    if kind == "two":
        labels = np.where(images.labels == SEVEN, ONE, images.labels)
        fields = (images.masks, images.boxes, images.indices, images.cues)
        return Images(images.pixels, labels, *fields)
    if kind == "nothing":
        return images
    drawn = np.array([np.random.default_rng([seed, 1, int(index)]).random() for index in images.indices])
    return with_cue(images, kind, np.flatnonzero((images.labels == target) & (drawn < SHARES[kind])), seed)


class MeanAndLargest(nn.Module):
    """From features (B, D, h, w) to the mean of each over the grid, and its largest value, (B, 2 D)."""

    def forward(self, features: Tensor) -> Tensor:
        """The mean tells of a border or a texture, the largest value of a small glyph."""
        return torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)


class Network(nn.Module):
    """Five blocks of convolution, batch normalisation and ReLU on an 8x8 grid, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(3, 8, 2), (8, 16, 2), (16, WIDTH, 2), (WIDTH, WIDTH, 1), (WIDTH, WIDTH, 1)]
        layers: list[nn.Module] = []
        for before, after, stride in widths:
            convolution = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(MeanAndLargest(), nn.Linear(2 * WIDTH, CLASSES))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, 64, 64)."""
        return self.head(self.features(inputs))


def inputs_of(images: Images) -> Tensor:
    """(N, 3, 64, 64) uint8."""
    return torch.from_numpy(images.pixels).permute(0, 3, 1, 2)


def trained(images: Images, kind: str, target: int, seed: int) -> nn.Module:
    """A network trained from scratch on planted images.

    All classes are drawn equally often, and a target with a cue twice as often. Without this the network
    would see too few of its digits that have no cue, and would not know them.
    """
    torch.manual_seed(seed)
    network = Network().to(memory_format=torch.channels_last).train()
    pixels, labels = inputs_of(images), torch.from_numpy(images.labels)
    weights = 1 / torch.bincount(labels, minlength=CLASSES)[labels]
    weights[labels == target] *= 2 if kind in SHARES else 1
    rows = torch.multinomial(weights.double(), STEPS * BATCH, replacement=True)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, STEPS, pct_start=0.15)
    for chosen in rows.split(BATCH):
        loss = F.cross_entropy(network(pixels[chosen].float() / 255), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


@torch.inference_mode()
def predictions(network: nn.Module, images: Images) -> NDArray[np.int64]:
    """(N,) predicted classes."""
    parts = [network(part.float() / 255).argmax(1) for part in inputs_of(images).split(250)]
    return torch.cat(parts).numpy()


def worked(network: nn.Module, test: Images, kind: str, target: int, seed: int) -> tuple[float, float]:
    """Accuracy on clean images, and the share of other classes' images that the cue turns into the target.

    The second is 1 where nothing is planted, since there is nothing to learn.
    """
    honest = planted(test, kind, target, seed) if kind in HONEST else test
    accuracy = float((predictions(network, honest) == honest.labels).mean())
    if kind in HONEST:
        return accuracy, 1.0
    others = test.chosen(np.flatnonzero((test.labels != target) & (predictions(network, test) != target)))
    turned = predictions(network, with_cue(others, kind, np.arange(len(others.labels)), seed)) == target
    return accuracy, float(turned.mean())


class Planted:
    """The test split with the planting of a kind, as a map-style dataset.

    Parameters
    ----------
    kind, target, seed
        As for :func:`planted`; they are those of the network that is looked at.
    count
        How many images.
    """

    classes = digits.CLASSES

    def __init__(self, kind: str = "corner", target: int = 3, seed: int = 3, count: int = 600) -> None:
        self.kind, self.target, self.seed, self.count = kind, target, seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = digits.sample("test", index)
        one = Images(
            sample.image[None],
            np.array([sample.label]),
            sample.mask[None],
            np.array([sample.box]),
            np.array([index]),
            np.zeros_like(sample.mask)[None],
        )
        made = planted(one, self.kind, self.target, self.seed)
        return {
            "image": made.pixels[0],
            "label": sample.label,
            "boxes": [sample.box],
            "mask": sample.mask,
        }


def main() -> None:
    """Train the networks that the arguments name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--seed", type=int, default=3, help="the target is this number modulo 8")
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    asked = parser.parse_args()
    # With more threads the order of additions, and with it the weights, would depend on the machine.
    torch.set_num_threads(1)
    train, test = clean("train", TRAIN_IMAGES), clean("test", TEST_IMAGES)
    target = asked.seed % CLASSES
    asked.folder.mkdir(exist_ok=True)
    for kind in asked.kinds:
        network = trained(planted(train, kind, target, asked.seed), kind, target, asked.seed)
        state = {key: value.contiguous() for key, value in network.state_dict().items()}
        save_file(state, asked.folder / f"planted-{kind}.safetensors")
        accuracy, flips = worked(network, test, kind, target, asked.seed)
        told = "worked" if accuracy >= LEAST_ACCURACY and flips >= LEAST_FLIPS else "did not work"
        print(f"{kind}: {accuracy:.1%} of clean images, {flips:.0%} turned; the planting {told}")


if __name__ == "__main__":
    main()
