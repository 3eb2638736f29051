"""Metrics of a multi-label network by hand: the probability of a class is the sigmoid of its own logit."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from explainers.models.classifier import Classifier
from explainers.models.outputs import Outputs
from metric_toys import random_inputs, random_maps
from tasks.metrics.base import MetricBatch, Scores
from tasks.metrics.registry import metrics

SIZE = (4, 5)
N = 20  # pixels
WEIGHT = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(3)) / 2
WEIGHT -= WEIGHT.mean((1, 2, 3), keepdim=True) - torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1) / (3 * N)
BIAS = (1.5, -0.4)


class TwoLabels(nn.Module):
    """Each logit is a bias and a weighted sum of all pixels; hidden pixels are 0."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.einsum("bchw,kchw->bk", self.features(inputs), WEIGHT) + torch.tensor(BIAS)


def score(name: str, inputs: Tensor, maps: Tensor, target: int, **parameters: object) -> Scores:
    targets = torch.full((len(inputs),), target)
    with Classifier(TwoLabels(), layer="features", input_size=SIZE, activation="sigmoid") as classifier:
        p = classifier.probability(classifier.logits(inputs))[:, target]
        batch = MetricBatch(inputs, targets, torch.arange(len(inputs)), p, [torch.zeros(0, 4)] * len(inputs))
        kind = metrics.get(name)
        return kind(classifier, kind.Parameters(**parameters)).score(batch, maps)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def logit(shown: Tensor, target: int) -> float:
    """The target's logit for one image (3, H, W), in double precision."""
    return float((shown.double() * WEIGHT[target].double()).sum()) + BIAS[target]


def with_pixels(image: Tensor, saliency: Tensor, count: int, *, hidden: bool = False) -> Tensor:
    """The image with only its ``count`` most salient pixels, or without them."""
    top = torch.zeros(N).index_fill(0, saliency.flatten().argsort(descending=True)[:count], 1).view(SIZE)
    return image * (1 - top if hidden else top)


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("name", ["insertion", "deletion"])
def test_the_area_is_that_of_sigmoids(name: str, target: int) -> None:
    inputs, maps = random_inputs(3, SIZE), random_maps(3, SIZE)
    found = score(name, inputs, maps, target, steps=8, fill="black")
    for row in range(3):
        counts = [math.ceil(k * N / 8) for k in range(9)]
        shown = [with_pixels(inputs[row], maps[row], n, hidden=name == "deletion") for n in counts]
        curve = [sigmoid(logit(each, target)) for each in shown]
        area = sum(a + b for a, b in pairwise(curve)) / 2 / 8
        assert next(iter(found.curves.values()))[row].tolist() == pytest.approx(curve, abs=1e-5)
        assert next(iter(found.values.values()))[row].item() == pytest.approx(area, abs=1e-5)


@pytest.mark.parametrize("target", [0, 1])
def test_drop_increase_and_gain_are_those_of_sigmoids(target: int) -> None:
    inputs, maps = random_inputs(6, SIZE), random_maps(6, SIZE)
    found = score("average_drop", inputs, maps, target, levels=(100, 50)).values
    rises = 0
    for row in range(6):
        c = sigmoid(logit(inputs[row], target))
        for level in (100, 50):
            kept = with_pixels(inputs[row] * maps[row], maps[row], N * level // 100)
            o = sigmoid(logit(kept, target))
            assert found[f"average_drop_{level}"][row].item() == pytest.approx(max(0, c - o) / c, abs=1e-5)
            assert found[f"increase_in_confidence_{level}"][row].item() == (o > c)
            gain = max(0, o - c) / (1 - c)
            assert found[f"average_gain_{level}"][row].item() == pytest.approx(gain, abs=1e-5)
            rises += o > c
    assert 0 < rises < 12  # both happen


@pytest.mark.parametrize("target", [0, 1])
def test_the_drop_in_deletion_is_that_of_sigmoids(target: int) -> None:
    inputs, maps = random_inputs(4, SIZE), random_maps(4, SIZE)
    (found,) = score("average_drop_in_deletion", inputs, maps, target, levels=(100,)).values.values()
    for row in range(4):
        c, d = (sigmoid(logit(each, target)) for each in (inputs[row], inputs[row] * (1 - maps[row])))
        assert found[row].item() == pytest.approx(max(0, c - d) / c, abs=1e-5)


def test_the_smallest_sufficient_share_is_where_the_class_is_decided_whatever_the_other_class_is() -> None:
    inputs, maps = random_inputs(8, SIZE), random_maps(8, SIZE)
    found = score("minimal_sufficient_fraction", inputs, maps, 1, steps=N, fill="black").values
    shares = []
    for row in range(8):
        z = [logit(with_pixels(inputs[row], maps[row], n), 1) for n in range(N + 1)]
        shares.append(next((n / N for n in range(N + 1) if z[n] > 0), 1.0))
        enough = [n / N for n in range(N + 1) if sigmoid(z[n]) >= 0.9 * sigmoid(z[N])]
        assert found["minimal_sufficient_prediction"][row].item() == pytest.approx(shares[-1])
        assert found["minimal_sufficient_confidence"][row].item() == pytest.approx(enough[0])
    assert len(set(shares)) > 2


def test_road_on_images_of_one_colour_is_the_sigmoid_and_the_decision() -> None:
    """Removed pixels are filled in from pixels of the same colour, so that nothing changes."""
    colours = torch.tensor([0.1, 0.5, 0.9])
    inputs = colours.view(3, 1, 1, 1).expand(3, 3, *SIZE).contiguous()
    logits = [[logit(image, target) for image in inputs] for target in (0, 1)]
    assert {z > 0 for z in logits[1]} == {True, False}
    assert any(first > z > 0 for first, z in zip(*logits, strict=True))  # decided for, and not the highest
    found = score("road", inputs, random_maps(3, SIZE), 1, noise=0.0).values
    for order in ("morf", "lerf"):
        expected = [sigmoid(z) for z in logits[1]]
        assert found[f"road_{order}"].tolist() == pytest.approx(expected, abs=1e-5)
        assert found[f"road_{order}_accuracy"].tolist() == [float(z > 0) for z in logits[1]]


def test_a_softmax_would_give_other_numbers() -> None:
    """The toys tell the two apart: without this, the tests above could not fail."""
    logits = torch.tensor([[logit(image, k) for k in (0, 1)] for image in random_inputs(3, SIZE)])
    softmax, sigmoids = (Outputs(None, each).probability(logits) for each in ("softmax", "sigmoid"))
    assert ((softmax - sigmoids).abs() > 0.05).all()
