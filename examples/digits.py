"""Makes the images and classifiers of the offline demo.

    python examples/digits.py images FOLDER [--count 1000] [--split test] [--seed 0]
    python examples/digits.py train [gap] [mlp] [vit] [small]

``images`` writes the images that Floodlit makes on the fly for ``kind = "digits"`` as PNG files, with a CSV
listing (file, label, box) and the pixel masks of the digits. ``train`` trains the four classifiers from
scratch and prints their accuracy on the test split, whose handwriting is not in the training split. It writes
``weights/digits-<name>.safetensors`` beside this file. The images, the initial weights and the order of
training are seeded, and one thread trains. The weights are therefore reproducible with the same versions on
the same kind of processor.

The networks take pixels in [0, 1] and differ in their heads. ``gap`` is additive in its units (global average
pooling and a linear layer). The units of ``mlp`` interact in a hidden layer. ``vit`` attends to patch tokens
with a class token. ``small`` is the auxiliary network that a P-TAME head reads.
"""

from __future__ import annotations

import argparse
import csv
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from storage.datasets import digits

WEIGHTS = Path(__file__).parent / "weights"
CLASSES = len(digits.CLASSES)
TRAIN_IMAGES, TEST_IMAGES = 20_000, 2_000
BATCH = 128  # images per training step


def block(channels_in: int, channels: int, stride: int) -> list[nn.Module]:
    """The layers of one block: 3x3 convolution, batch normalisation and ReLU."""
    convolution = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(channels), nn.ReLU()]


def convolutions(width: int = 64) -> nn.Sequential:
    """Five blocks from images (B, 3, 64, 64) to features (B, ``width``, 8, 8)."""
    half, quarter = width // 2, width // 4
    sizes = [(3, quarter, 2), (quarter, half, 2), (half, width, 2), (width, width, 1), (width, width, 1)]
    return nn.Sequential(*(layer for size in sizes for layer in block(*size)))


class Convolutional(nn.Module):
    """A network of ``features``, which have ``width`` units on an 8x8 grid, and a ``head``."""

    def __init__(self, head: nn.Sequential, width: int = 64) -> None:
        super().__init__()
        self.features = convolutions(width)
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, 64, 64)."""
        return self.head(self.features(inputs))


def gap() -> nn.Module:
    """Global average pooling and a linear layer: every unit adds its own part to the logits."""
    return Convolutional(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES)))


def mlp() -> nn.Module:
    """A hidden layer over coarsely pooled features, in which the units interact."""
    hidden = [nn.Linear(64 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, CLASSES)]
    return Convolutional(nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), *hidden))


def small() -> nn.Module:
    """The same as ``gap`` with half the width."""
    return Convolutional(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES)), 32)


class Stem(nn.Module):
    """Patch embedding by convolutions, with which small transformers learn much faster (Xiao et al. 2021)."""

    def __init__(self, embed_dim: int = 64, **_: object) -> None:
        super().__init__()
        self.num_patches, self.patch_size, self.grid_size = 64, (8, 8), (8, 8)
        self.features = convolutions()
        self.proj = nn.Conv2d(64, embed_dim, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Tokens (B, 64, embed_dim) of images (B, 3, 64, 64)."""
        return self.proj(self.features(inputs)).flatten(2).transpose(1, 2)


def vit() -> nn.Module:
    """timm's vision transformer with a class token and three blocks over 8x8 patch tokens."""
    from timm.models.vision_transformer import VisionTransformer  # takes seconds to import

    return VisionTransformer(
        img_size=64,
        patch_size=8,
        embed_layer=Stem,
        embed_dim=64,
        depth=3,
        num_heads=4,
        mlp_ratio=2,
        num_classes=CLASSES,
    )


NETWORKS = {"gap": gap, "mlp": mlp, "vit": vit, "small": small}
STEPS = {"gap": 2500, "mlp": 2500, "vit": 1500, "small": 1500}


def draw(split: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Images ``start`` to ``stop`` - 1 of a split, (N, 3, 64, 64) uint8, and their labels (N,)."""
    samples = [digits.sample(split, index) for index in range(start, stop)]
    return np.stack([s.image.transpose(2, 0, 1) for s in samples]), np.array([s.label for s in samples])


def images_of(split: str, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` images of a split and their labels, drawn by several processes."""
    starts = range(0, count, 500)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(draw, [split] * len(starts), starts, [min(s + 500, count) for s in starts]))
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return torch.from_numpy(pixels), torch.from_numpy(labels)


@torch.inference_mode()
def accuracy(network: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """The share of images whose label is predicted, in [0, 1]."""
    network.eval()
    predicted = torch.cat([network(chunk.float() / 255).argmax(1) for chunk in pixels.split(250)])
    return float((predicted == labels).float().mean())


def varied(pixels: Tensor) -> Tensor:
    """Randomly rotate, shear, scale, shift and recolour a batch.

    Parameters
    ----------
    pixels
        (B, 3, 64, 64) uint8.

    Returns
    -------
    Tensor
        (B, 3, 64, 64) float in [0, 1].
    """
    count = len(pixels)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count)

    angle, shear = between(-0.2, 0.2), between(-0.2, 0.2)
    width, height = between(0.9, 1.1), between(0.9, 1.1)
    across = torch.stack([width * angle.cos(), shear - height * angle.sin(), between(-0.1, 0.1)], 1)
    down = torch.stack([width * angle.sin(), height * angle.cos(), between(-0.1, 0.1)], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(pixels.shape), align_corners=False)
    # Labels do not depend on the colours, so channels are permuted and half of the images are inverted.
    channels = torch.rand(count, 3).argsort(1)[:, :, None, None].expand_as(pixels)
    values = pixels.gather(1, channels).float() / 255
    negative = (torch.rand(count) < 0.5)[:, None, None, None]
    values = torch.where(negative, 1 - values, values)
    return F.grid_sample(values, grid, padding_mode="reflection", align_corners=False)


def trained(name: str, pixels: Tensor, labels: Tensor) -> nn.Module:
    """Train one network from scratch; the convolutions of the transformer start from those of ``gap``."""
    torch.manual_seed(0)
    network = NETWORKS[name]().train()
    if name == "vit":
        taught = load_file(WEIGHTS / "digits-gap.safetensors")
        prefix = "features."
        network.patch_embed.features.load_state_dict(
            {key.removeprefix(prefix): value for key, value in taught.items() if key.startswith(prefix)}
        )
    steps = STEPS[name]
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps, pct_start=0.15)
    for step in range(steps):
        rows = torch.randint(len(pixels), (BATCH,))
        loss = F.cross_entropy(network(varied(pixels[rows])), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            print(f"{name}: step {step + 1} of {steps}, loss {loss.item():.3f}", flush=True)
    return network


def train(names: list[str]) -> None:
    """Train, test and write the named networks."""
    # With more threads the order of additions, and with it the weights, would depend on the machine.
    torch.set_num_threads(1)
    test = images_of("test", TEST_IMAGES)
    images = images_of("train", TRAIN_IMAGES)
    WEIGHTS.mkdir(exist_ok=True)
    for name in names:
        network = trained(name, *images)
        save_file(network.state_dict(), WEIGHTS / f"digits-{name}.safetensors")
        print(f"{name}: {100 * accuracy(network, *test):.1f} % of {TEST_IMAGES} test images")


def export(folder: Path, split: str, count: int, seed: int) -> None:
    """Write images, masks and the listing ``digits.csv``, which ``kind = "csv"`` reads."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    with (folder / "digits.csv").open("w", newline="") as file:
        manifest = csv.writer(file)
        manifest.writerow(["file", "label", "xmin", "ymin", "xmax", "ymax"])
        for index in range(count):
            sample = digits.sample(split, index, seed)
            name = f"{split}-{index:05d}.png"
            Image.fromarray(sample.image).save(folder / "images" / name)
            Image.fromarray(sample.mask).save(folder / "masks" / name)
            manifest.writerow([name, sample.label, *sample.box])
    print(f"{count} images in {folder}")


def main() -> None:
    """Run the command that the arguments name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("images", help="write the images as files")
    writing.add_argument("folder", type=Path)
    writing.add_argument("--split", choices=digits.SPLITS, default="test")
    writing.add_argument("--count", type=int, default=1000)
    writing.add_argument("--seed", type=int, default=0)
    training = commands.add_parser("train", help="train the classifiers; vit needs the weights of gap")
    training.add_argument(
        "names", nargs="*", metavar="NAME", help="gap, mlp, vit or small; default: all of them"
    )
    chosen = parser.parse_args()
    if chosen.command == "images":
        export(chosen.folder, chosen.split, chosen.count, chosen.seed)
    elif unknown := set(chosen.names) - set(NETWORKS):
        parser.error(f"unknown network {unknown.pop()}; choose from {', '.join(NETWORKS)}")
    else:
        train(chosen.names or list(NETWORKS))


if __name__ == "__main__":
    main()
