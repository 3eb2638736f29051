"""PAMI on texts and numbers: windows by brute force, and additive classifiers in closed form."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import toys
from explainers.base import Explanation, Status
from explainers.control_names import CONTROLS
from explainers.models.black_box import BlackBox
from explainers.models.tensors import TensorClassifier
from explainers.numerics.segmentation import Windows
from explainers.pami import Pami
from explainers.registry import explainers
from explainers.requirements import unmet
from sequences import LENGTH, LinearSeries, Words, batch_of, texts

TEXTS = texts([[3], [4, 5], [6], [3]], [[7]], [[8, 8, 8], [4], [5, 6], [7], [3]])
WEIGHTS = torch.tensor([1.0, -0.5, 2.0, 0.25, 0.7, -1.0])


def explain(classifier: BlackBox, inputs: Tensor, forwards: int = 5, **parameters: object) -> Explanation:
    return Pami(classifier, Pami.Parameters(**parameters)).explain(batch_of(inputs, forwards))


def places(count: int, length: int) -> list[range]:
    """All windows of so many units among ``count``, or the one of all where there are fewer."""
    return [range(first, first + length) for first in range(count - length + 1)] or [range(count)]


@given(
    units=st.lists(st.integers(1, 3), min_size=1, max_size=9), lengths=st.sets(st.integers(1, 12), min_size=1)
)
@settings(max_examples=60, deadline=None)
def test_windows_are_all_runs_of_each_length_once(units: list[int], lengths: set[int]) -> None:
    """Units of one to three sites, between a special site and padding."""
    numbers = [-1, *(unit for unit, sites in enumerate(units) for _ in range(sites)), -1, -1]
    (found,) = Windows(sorted(lengths)).label_maps([torch.tensor(numbers)])
    assert found.shape == (sum({min(length, len(numbers)) for length in lengths}), len(numbers))
    regions = sorted(
        tuple((each == label).nonzero().flatten().tolist())
        for each in found
        for label in each.unique().tolist()
        if label
    )
    expected = sorted(
        tuple(site for site, unit in enumerate(numbers) if unit in window)
        for length in {min(length, len(numbers)) for length in lengths}
        for window in places(len(units), length)
    )
    assert regions == expected


def slow_map(text: Tensor, windows: tuple[int, ...], unit: str) -> tuple[Tensor, int]:
    """Mean logit over the windows that show a site, and the number of distinct windows; weights add up."""
    ids, words = text.tolist()
    sites = [site for site, word in enumerate(words) if word >= 0]
    unit_of = {site: words[site] if unit == "word" else number for number, site in enumerate(sites)}
    weights = [0.0] * 3 + WEIGHTS.tolist()
    count = len(set(unit_of.values()))
    regions = [
        frozenset(site for site in sites if unit_of[site] in window)
        for length in windows
        for window in places(count, length)
    ]
    worth = {region: sum(weights[ids[site]] for site in region) for region in regions}
    saliency = torch.zeros(LENGTH)
    for site in sites:
        shown = [worth[region] for region in regions if site in region]
        saliency[site] = sum(shown) / len(shown)
    return saliency, len(worth)


@pytest.mark.parametrize("fill", ["mask", "remove"])
@pytest.mark.parametrize(("windows", "unit"), [((1, 2, 4, 8), "token"), ((3,), "token"), ((1, 2), "word")])
def test_texts_of_an_additive_classifier_give_the_closed_form(
    fill: str, windows: tuple[int, ...], unit: str
) -> None:
    classifier = Words(WEIGHTS)
    found = explain(classifier, TEXTS, windows=windows, unit=unit, fill=fill, scalar="logit")
    for text, saliency, passes in zip(
        TEXTS, found.maps, found.details["forward_passes"].tolist(), strict=True
    ):
        expected, distinct = slow_map(text, windows, unit)
        torch.testing.assert_close(saliency, expected)
        assert passes == distinct
    assert classifier.rows == found.details["forward_passes"].sum()
    assert found.details["segmentations"].tolist() == [0, 0, 0]


def test_a_text_depends_neither_on_its_batch_nor_on_the_step() -> None:
    classifier = Words(WEIGHTS)
    together = explain(classifier, TEXTS, forwards=64).maps
    for row, forwards in itertools.product(range(3), (1, 3)):
        alone = explain(classifier, TEXTS[row : row + 1], forwards=forwards).maps
        torch.testing.assert_close(alone[0], together[row])


def test_special_tokens_and_padding_do_not_count_when_a_map_is_flat() -> None:
    flat = explain(Words(torch.ones(6)), texts([[3], [4], [5]], [[3], [4, 5]]), windows=(1,))
    assert flat.statuses == [Status.CONSTANT, Status.CONSTANT]


@pytest.mark.parametrize(("fill", "of"), [("zero", 0.0), ("mean", 1.0)])
def test_windows_of_a_linear_series_give_the_closed_form(fill: str, of: float) -> None:
    """A window alone is worth the sum of w (x - c) over it, and the sum of w c; c is zero or the mean."""
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(3, 10, generator=generator), torch.randn(2, 3, 10, generator=generator)
    with TensorClassifier(LinearSeries(weight), (3, 10)) as classifier:
        found = explain(classifier, inputs, windows=(1, 3), fill=fill, scalar="logit")
    behind = of * inputs.mean(2, keepdim=True)
    terms = (weight * (inputs - behind)).sum(1)
    rest = (weight * behind).sum((1, 2))
    runs = terms.unfold(1, 3, 1).sum(2)
    for site in range(10):
        over = [*runs[:, max(0, site - 2) : site + 1].T, terms[:, site]]
        torch.testing.assert_close(found.maps[:, site], torch.stack(over).mean(0) + rest)
    assert found.details["forward_passes"].tolist() == [18, 18]


def test_a_row_of_a_table_reaches_the_network_flat() -> None:
    weight = torch.tensor([1.0, 0.0, -2.0, 0.5])
    seen = []

    class Flat(torch.nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs.shape)
            logit = inputs @ weight
            return torch.stack([torch.zeros_like(logit), logit], 1)

    with TensorClassifier(Flat(), (4,)) as classifier:
        found = explain(classifier, torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), windows=(1,), scalar="logit")
    torch.testing.assert_close(found.maps, torch.tensor([[1.0, 0.0, -6.0, 2.0]]))
    assert all(len(shape) == 2 for shape in seen)


def half(logits: Tensor, targets: Tensor) -> Tensor:
    """A scalar of somebody's own."""
    return logits.gather(1, targets[:, None])[:, 0] / 2


@pytest.mark.parametrize(
    ("scalar", "of"),
    [
        ("probability", torch.sigmoid),
        ("sigmoid", torch.sigmoid),
        ("logit", lambda logit: logit),
        (f"{__name__}:half", lambda logit: logit / 2),
    ],
)
def test_any_scalar_of_the_model_can_be_explained(scalar: str, of) -> None:
    """Windows of one token; the other class has logit 0."""
    found = explain(Words(WEIGHTS), texts([[3], [4], [5]]), windows=(1,), scalar=scalar).maps[0, 1:4]
    torch.testing.assert_close(found, of(WEIGHTS[:3]))


def test_an_image_can_be_explained_by_another_scalar_too() -> None:
    with toys.conv_mlp() as classifier:
        batch = toys.batch(classifier, 2)
        maps = [
            Pami(classifier, Pami.Parameters(strategy="sliding", scalar=scalar)).explain(batch).maps
            for scalar in ("logit", "probability")
        ]
    assert not torch.allclose(*maps)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"fill": "blur"}, "fill: 'blur' is not for texts; choose mask or remove"),
        ({"strategy": "sliding"}, "strategy: it has no meaning for texts; leave it out"),
        (
            {"scalar": "entropy"},
            "scalar: there is no 'entropy'; choose probability, sigmoid, logit or package",
        ),
        ({"scalar": "no.such:thing"}, "cannot load scalar 'no.such:thing'"),
    ],
)
def test_what_has_no_meaning_for_texts_is_refused(parameters: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Pami(Words(WEIGHTS), Pami.Parameters(**parameters))


def test_what_has_no_meaning_for_images_or_numbers_is_refused() -> None:
    with (
        toys.conv_mlp() as classifier,
        pytest.raises(ValueError, match="windows: it has no meaning for images"),
    ):
        Pami(classifier, Pami.Parameters(windows=(2,)))
    series = TensorClassifier(LinearSeries(torch.ones(1, 4)), (1, 4))
    with series as classifier, pytest.raises(ValueError, match="unit: it has no meaning for tensors"):
        Pami(classifier, Pami.Parameters(unit="word"))


def test_texts_are_served_by_the_explainers_that_need_no_image() -> None:
    served = {
        name for name in explainers.names() if unmet(explainers.get(name).needs, Words(WEIGHTS)) is None
    }
    assert served >= {"pami", "random", "all_ones"}
    assert not served & {"gradcam", "sobel", "center_gaussian", "ddcam", "integrated_gradients"}
    assert unmet(explainers.get("sobel").needs, Words(WEIGHTS)) == (
        "explains images, and the dataset's inputs are texts"
    )
    for name in served & set(CONTROLS):
        found = explainers.get(name)(Words(WEIGHTS), explainers.get(name).Parameters()).explain(
            batch_of(TEXTS)
        )
        assert found.maps.ndim == 2
