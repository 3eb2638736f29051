"""A single logit z is the two logits (0, z), and each class of a multi-label network is such a logit.

So whatever asks a classifier, an explainer or a metric, has to find the same in either form.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

import toys
from explainers.base import Need
from explainers.models.classifier import Classifier
from explainers.registry import explainers
from explainers.requirements import unmet
from tasks.in_memory import Found, explain, score
from tasks.metrics.registry import metrics

COUNT = 3
CLASS = 2  # of the multi-label network, the one that the single logit stands for
BOXES = [[[2, 3, 20, 30]], [[0, 0, 9, 9]], [[8, 8, 31, 31]]]
# They compare with other classes, or with random weights, and both are others where there are three classes.
OTHERS = {"random_logit", "randomisation"}


class Net(nn.Module):
    """Convolutions and a linear head; ``pads`` puts a logit of zero before the others."""

    def __init__(self, columns: int, pads: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        convolutions = nn.Conv2d(3, 8, 5, 3, 1), nn.Conv2d(8, 6, 3, 2, 1)
        self.features = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU())
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 3
        weights = torch.randn(3, 7, generator=generator)
        weights[CLASS, 6] = 1.5  # so that some images are predicted to have this class, and some not
        rows = range(3) if columns == 3 else [CLASS]
        self.head = nn.Linear(6, columns)
        self.head.weight.data, self.head.bias.data = weights[rows, :6], weights[rows, 6]
        self.pads = pads

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.head(self.features(4 * (inputs - 0.5)).mean((2, 3)))
        return F.pad(logits, (1, 0)) if self.pads else logits


class Vit(VisionTransformer):
    """A small transformer of one output; ``pads`` puts a logit of zero before it."""

    pads = False

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return F.pad(logits, (1, 0)) if self.pads else logits


def vit(pads: bool) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Vit(img_size=toys.SIZE, patch_size=8, embed_dim=24, depth=1, num_heads=2, num_classes=1)
    network.head.bias.data += 0.02
    network.pads = pads
    return Classifier(network, input_size=(toys.SIZE, toys.SIZE))


@cache
def classifier_of(form: str) -> Classifier:
    keys: dict[str, Any] = {"input_size": (toys.SIZE, toys.SIZE), "layer": "features"}
    if form == "three":
        return Classifier(Net(3), **keys, activation="sigmoid")
    if form == "probability":
        ending = nn.Sequential(Net(1), nn.Sigmoid())
        return Classifier(ending, **keys | {"layer": "0.features"}, output="probabilities")
    return Classifier(Net(1, pads=form == "two"), **keys)


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    for form in ("one", "two", "three", "probability"):
        classifier_of(form).close()
    classifier_of.cache_clear()


def of_images() -> list[str]:
    asked = classifier_of("two")
    return [name for name in explainers.names() if unmet(explainers.get(name).needs, asked) is None]


def explained(name: str, form: str, which: int, folder: Path) -> Found:
    """Maps of class ``which``, or of the predicted ones where an explainer takes no other."""
    classifier = classifier_of(form)
    free = Need.PREDICTION not in explainers.get(name).needs or not classifier.exclusive
    keys = toys.parameters(name, classifier, folder)
    return explain(classifier, toys.inputs(COUNT), name, targets=which if free else None, **keys)


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", of_images())
def test_a_single_logit_gives_the_bytes_of_two(name: str, which: int, tmp_path: Path) -> None:
    one, two = (explained(name, form, which, tmp_path) for form in ("one", "two"))
    assert one.statuses == two.statuses
    assert_equal(one.targets, two.targets)
    assert_equal(one.maps, two.maps)
    for key, values in one.details.items():
        assert_equal(values, two.details[key])


@pytest.mark.parametrize("name", [name for name in of_images() if name != "ptame"])  # it reads its own head
def test_a_class_of_a_multi_label_network_gives_what_its_logit_alone_gives(name: str, tmp_path: Path) -> None:
    three, two = explained(name, "three", CLASS, tmp_path), explained(name, "two", 1, tmp_path)
    yes = two.targets == 1  # where only the predicted class is explained, it is that of some images
    assert yes.any()
    assert_close(three.maps[yes], two.maps[yes])
    assert three.maps[~yes].isnan().all()


@pytest.mark.parametrize("name", ["gradcam", "rise", "ddcam", "moxi"])
def test_the_logit_is_found_again_behind_a_sigmoid(name: str, tmp_path: Path) -> None:
    ending, one = explained(name, "probability", 1, tmp_path), explained(name, "one", 1, tmp_path)
    assert_close(ending.maps, one.maps)


@pytest.mark.parametrize("name", ["ddcam", "moxi", "shapley"])
def test_a_single_logit_gives_the_same_where_tokens_are_left_out(name: str) -> None:
    with vit(pads=False) as one, vit(pads=True) as two:
        found, expected = (
            explain(asked, toys.inputs(COUNT), name, **toys.SMALL.get(name, {})) for asked in (one, two)
        )
        assert_equal(found.maps, expected.maps)
        assert found.targets.unique().tolist() == expected.targets.unique().tolist()


def scored(metric: str, form: str, which: int) -> dict[str, Tensor]:
    classifier, inputs = classifier_of(form), toys.inputs(COUNT)
    maps = explain(classifier, inputs, "layercam", targets=which)
    sites = torch.arange(toys.SIZE**2).view(toys.SIZE, toys.SIZE)
    known = {"boxes": BOXES, "masks": [(sites % (3 + row) == 0).numpy() for row in range(COUNT)]}
    given = {need: known[need] for need in known if need in metrics.get(metric).needs}
    found = score(classifier, inputs, maps, metric, **given)
    return {**found.values, **{f"the curve of {name}": curve for name, curve in found.curves.items()}}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("metric", metrics.names())
def test_a_single_logit_gets_the_numbers_of_two(metric: str, which: int) -> None:
    one, two = scored(metric, "one", which), scored(metric, "two", which)
    for key, values in two.items():
        assert_equal(one[key], values)


@pytest.mark.parametrize("metric", [name for name in metrics.names() if name not in OTHERS])
def test_a_class_of_a_multi_label_network_gets_the_numbers_of_its_logit_alone(metric: str) -> None:
    three, two = scored(metric, "three", CLASS), scored(metric, "two", 1)
    for key, values in two.items():
        assert_close(three[key], values)
