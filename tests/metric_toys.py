"""Stand-ins for the classifier, and batches for metrics: only what metrics ask for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from explainers.models.classifier import Classifier
from places import REAL
from tasks.metrics.base import MetricBatch
from tasks.metrics.preparation import prepare

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class ToyClassifier:
    """A network of images behind the classifier's interface, counting the rows it is given.

    It raises the device's out-of-memory error on more than ``memory`` rows at once.
    """

    input_size = (12, 10)  # of those tests alone whose metrics lay out cells
    supports_patches = False
    modality, fills, graded = "image", Classifier.fills, True
    fill, sites = Classifier.fill, Classifier.sites
    device = torch.device("cpu")
    num_classes = 5  # of small_network
    exclusive = True

    @staticmethod
    def probability(logits: Tensor) -> Tensor:
        return logits.softmax(1)

    def __init__(self, network: nn.Module, mean=MEAN, std=STD, memory: int | None = None) -> None:
        self.network = network.eval()
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)
        self.memory, self.rows, self.largest = memory, 0, 0

    def logits(self, inputs: Tensor) -> Tensor:
        if self.memory is not None and len(inputs) > self.memory:
            raise torch.OutOfMemoryError("out of memory")
        self.rows += len(inputs)
        self.largest = max(self.largest, len(inputs))
        return self.network((inputs - self.mean) / self.std)


class Gradients:
    """An explainer that metrics can run again: size of the gradient of the target's logit, over channels.

    It counts the inputs it is given.
    """

    def __init__(self, classifier: ToyClassifier, batch: MetricBatch, needs=frozenset()) -> None:
        self.classifier, self.batch, self.needs, self.rows = classifier, batch, needs, 0

    def __call__(self, inputs, rows, *, targets=None, classifier=None):
        wanted = self.batch.targets[rows] if targets is None else targets
        self.rows += len(inputs)
        with torch.inference_mode(False), torch.enable_grad():
            pixels = inputs.clone().requires_grad_()
            logits = (classifier or self.classifier).logits(pixels)
            logits.gather(1, wanted.clone()[:, None]).sum().backward()
        return prepare(pixels.grad.abs().sum(1), tuple(inputs.shape[2:]))[0]


class LinearPixels(nn.Module):
    """Logits (0, bias + sum of weight * input): the probability of class 1 is a sigmoid of known terms."""

    def __init__(self, weight: Tensor, bias: float = 0.0) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, inputs: Tensor) -> Tensor:
        logit = (inputs * self.weight).sum((1, 2, 3)) + self.bias
        return torch.stack([torch.zeros_like(logit), logit], 1)


def small_network(classes: int = 5) -> nn.Module:
    """Convolutions whose answer depends on where things are, with probabilities far from 0 and 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, classes),
        )


class ConvMlp(nn.Module):
    """Three convolutions and two linear layers, from a file of their weights."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name in (key.removesuffix(".weight") for key in state if key.endswith("weight")):
            shape = state[f"{name}.weight"].shape
            kind = nn.Linear if len(shape) == 2 else nn.Conv2d
            self.add_module(name, kind(shape[1], shape[0], *[] if len(shape) == 2 else [shape[2:]]))
        self.load_state_dict(state)

    def forward(self, inputs: Tensor) -> Tensor:
        first, second, third, hidden, last = self.children()
        found = F.max_pool2d(first(inputs).relu(), 2)
        found = third(F.max_pool2d(second(found).relu(), 2)).relu()
        return last(hidden(found.flatten(1)).relu())


def real_network_and_images(count: int = 32) -> tuple[nn.Module, Tensor]:
    """A trained network of 32x32 pixels in [0, 1] to 10 classes, and photographs for it."""
    if not (REAL / "weights").is_dir():
        pytest.skip(f"no real test material in {REAL}; FLOODLIT_REAL says where it is")
    network = ConvMlp(torch.load(REAL / "weights/cnn3_mlp2_cifar10.pth", weights_only=True))
    files = sorted((REAL / "images/cifar10").rglob("*.png"))[:: 1000 // count][:count]
    pixels = np.stack([np.array(Image.open(file).convert("RGB")) for file in files])
    return network, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255


def random_inputs(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def random_maps(count: int, size: tuple[int, int], seed: int = 1) -> Tensor:
    """Prepared maps without ties."""
    n = size[0] * size[1]
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(n, generator=generator) for _ in range(count)])
    return order.view(count, *size) / (n - 1)


@torch.inference_mode()
def batch_of(
    classifier: ToyClassifier, inputs: Tensor, boxes=None, forwards: int = 64, masks=None
) -> MetricBatch:
    """A batch for the predicted classes, seeds 100, 101, ...; without boxes or masks unless given.

    Its explainer is :class:`Gradients`.
    """
    confidence, targets = classifier.network((inputs - classifier.mean) / classifier.std).softmax(1).max(1)
    seeds = torch.arange(100, 100 + len(inputs))
    boxes = boxes or [torch.zeros(0, 4)] * len(inputs)
    batch = MetricBatch(inputs, targets, seeds, confidence, boxes, forwards, masks)
    return replace(batch, explain=Gradients(classifier, batch))


def rows_of(batch: MetricBatch, rows: list[int], forwards: int | None = None) -> MetricBatch:
    """The same batch with only these rows."""
    part = MetricBatch(
        batch.inputs[rows],
        batch.targets[rows],
        batch.seeds[rows],
        batch.confidence[rows],
        [batch.boxes[i] for i in rows],
        forwards or batch.forwards,
        None if batch.masks is None else batch.masks[rows],
    )
    return replace(part, explain=Gradients(batch.explain.classifier, part, batch.explain.needs))
