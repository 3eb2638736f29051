"""Metrics on texts and numbers against their definitions, one text and one step at a time."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from explainers.base import Status
from explainers.models.tensors import TensorClassifier
from sequences import LENGTH, MASK, LinearSeries, Words, metric_batch_of, texts
from tasks.metrics.average_drop import AverageDrop, AverageDropParameters
from tasks.metrics.base import Need
from tasks.metrics.insertion_deletion import Deletion, DeletionParameters, Insertion, InsertionParameters
from tasks.metrics.preparation import prepare
from tasks.metrics.ranking import ranks, sites_of
from tasks.metrics.registry import metrics
from tasks.metrics.sparseness import Sparseness

WEIGHTS = torch.tensor([1.0, -0.5, 2.0, 0.25, 0.7, -1.0])
TEXTS = texts([[3], [4, 5], [6], [3]], [[7]], [[8, 8, 8], [4], [5, 6], [7], [3]])
RAW = torch.rand(3, LENGTH, generator=torch.Generator().manual_seed(0))
CAUSAL = {"insertion": (Insertion, InsertionParameters), "deletion": (Deletion, DeletionParameters)}


def prepared(inputs: Tensor = TEXTS, raw: Tensor = RAW) -> tuple[Tensor, list[Status]]:
    return prepare(raw, (LENGTH,), inputs[:, 1] >= 0)


def order_of(text: Tensor, saliency: Tensor) -> list[int]:
    """Sites of a text that can be hidden, the most salient first; the maps here have no ties."""
    sites = [site for site, word in enumerate(text[1].tolist()) if word >= 0]
    return sorted(sites, key=lambda site: -saliency[site])


def probability(text: Tensor) -> float:
    """Of class 1; the mask token weighs nothing."""
    weights = [0.0] * 3 + WEIGHTS.tolist()
    return 1 / (1 + math.exp(-sum(weights[token] for token in text[0].tolist() if token >= 0)))


def test_only_the_sites_that_can_be_hidden_are_stretched_and_the_others_are_marked() -> None:
    """Special tokens and padding hold the highest, lowest and even undefined values, and nobody looks."""
    inputs = texts([[3], [4], [5]])
    raw = torch.tensor([[9.0, 0.2, 0.6, 0.4, -8.0, *[math.nan] * 7]])
    found, statuses = prepared(inputs, raw)
    torch.testing.assert_close(found[0, 1:4], torch.tensor([0.0, 1.0, 0.5]))
    assert found[0, [0, 4, 5, 11]].isneginf().all()
    assert statuses == [Status.OK]
    assert sites_of(found).tolist() == [3]


@pytest.mark.parametrize(
    ("values", "expected", "status"),
    [
        ([0.3, 0.3, 0.3], [1.0, 1.0, 1.0], Status.CONSTANT),
        ([0.0, -1.0, 0.0], [0.0, 0.0, 0.0], Status.ALL_ZERO),
        ([0.3, math.inf, 0.3], [math.nan] * 3, Status.NOT_FINITE),
    ],
)
def test_flat_and_undefined_maps_of_texts_are_read_as_those_of_images(
    values: list[float], expected: list[float], status: Status
) -> None:
    raw = torch.tensor([[0.0, *values, *[0.0] * (LENGTH - 4)]])
    found, statuses = prepared(texts([[3], [4], [5]]), raw)
    torch.testing.assert_close(found[0, 1:4], torch.tensor(expected), equal_nan=True)
    assert statuses == [status]


def test_a_single_cell_covers_a_whole_text() -> None:
    found, statuses = prepared(raw=torch.ones(3, 1))
    assert torch.equal(found.isneginf(), TEXTS[:, 1] < 0)
    assert (found[TEXTS[:, 1] >= 0] == 1).all()
    assert statuses == [Status.CONSTANT] * 3


def test_sites_that_cannot_be_hidden_come_last() -> None:
    found, _ = prepared()
    order = ranks(found, torch.arange(3))
    for text, ranked, count in zip(TEXTS, order, sites_of(found).tolist(), strict=True):
        assert sorted(ranked[text[1] >= 0].tolist()) == list(range(count))


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("fill", ["mask", "remove", None])
@pytest.mark.parametrize("steps", [3, 28])
def test_tokens_are_shown_and_hidden_in_order_of_saliency(name: str, fill: str | None, steps: int) -> None:
    kind, parameters = CAUSAL[name]
    classifier = Words(WEIGHTS)
    metric = kind(classifier, parameters(steps=steps, fill=fill))
    batch = metric_batch_of(classifier, TEXTS)
    found, _ = prepared()
    scores = metric.score(batch, found)
    for row, text in enumerate(TEXTS):
        order, curve = order_of(text, found[row]), []
        for k in range(steps + 1):
            first = set(order[: math.ceil(k * len(order) / steps)])
            hidden = set(order) - first if name == "insertion" else first
            ids = [
                (-1 if fill == "remove" else MASK) if site in hidden else token
                for site, token in enumerate(text[0].tolist())
            ]
            curve.append(probability(torch.tensor([ids, text[1].tolist()])))
        torch.testing.assert_close(scores.curves[name][row], torch.tensor(curve), atol=1e-6, rtol=1e-5)
        area = sum((a + b) / 2 for a, b in itertools.pairwise(curve)) / steps
        torch.testing.assert_close(float(scores.values[name][row]), area, atol=1e-5, rtol=1e-5)
    assert metric.columns()[0].fill is not None


def test_a_short_text_is_passed_once_a_token_and_not_once_a_step() -> None:
    classifier = Words(WEIGHTS)
    batch = metric_batch_of(classifier, texts([[3], [4], [5]]))
    classifier.rows = 0
    found, _ = prepared(batch.inputs, RAW[:1])
    Insertion(classifier, InsertionParameters(steps=28)).score(batch, found)
    assert classifier.rows == 3 + 1  # one, two and three tokens, and none


def test_the_best_order_of_an_additive_text_is_that_of_its_weights() -> None:
    classifier = Words(WEIGHTS)
    inputs = texts([[3], [4], [5], [6], [7], [8]])
    batch = metric_batch_of(classifier, inputs.expand(40, -1, -1))
    raw = torch.rand(40, LENGTH, generator=torch.Generator().manual_seed(1))
    raw[0, 1:7] = WEIGHTS - WEIGHTS.min() + 0.1
    found, _ = prepared(batch.inputs, raw)
    for name, best in (("insertion", torch.argmax), ("deletion", torch.argmin)):
        kind, parameters = CAUSAL[name]
        values = kind(classifier, parameters(steps=6)).score(batch, found).values[name]
        assert best(values) == 0


def test_the_average_drop_of_a_text_keeps_its_most_salient_tokens_and_masks_the_others() -> None:
    classifier = Words(WEIGHTS)
    metric = AverageDrop(classifier, AverageDropParameters())
    batch = metric_batch_of(classifier, TEXTS)
    found, _ = prepared()
    scores = metric.score(batch, found).values
    assert list(scores) == [
        f"{kind}_{level}"
        for kind in ("average_drop", "increase_in_confidence", "average_gain")
        for level in (50, 15)
    ]
    for row, text in enumerate(TEXTS):
        order = order_of(text, found[row])
        for level in (50, 15) if len(order) > 1 else ():
            kept = set(order[: max(1, round(level * len(order) / 100))])
            ids = [
                MASK if site in order and site not in kept else token
                for site, token in enumerate(text[0].tolist())
            ]
            before, after = probability(text), probability(torch.tensor([ids, text[1].tolist()]))
            drop = max(0.0, before - after) / before
            assert float(scores[f"average_drop_{level}"][row]) == pytest.approx(drop, abs=1e-5)
            assert bool(scores[f"increase_in_confidence_{level}"][row]) == (after > before)
            gain = max(0.0, after - before) / (1 - before)
            assert float(scores[f"average_gain_{level}"][row]) == pytest.approx(gain, abs=1e-5)


def test_a_series_is_multiplied_by_its_map() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(2, 9, generator=generator), torch.randn(4, 2, 9, generator=generator)
    with TensorClassifier(LinearSeries(weight), (2, 9)) as classifier:
        batch = metric_batch_of(classifier, inputs)
        maps, _ = prepare(torch.rand(4, 9, generator=generator), (9,))
        scores = AverageDrop(classifier, AverageDropParameters(levels=(100,))).score(batch, maps).values
        kept = classifier.logits(inputs * maps[:, None]).softmax(1)[:, 1]
    drop = (batch.confidence - kept).clamp(min=0) / batch.confidence
    torch.testing.assert_close(scores["average_drop_100"], drop)
    assert (drop > 0).any()


def test_sparseness_is_that_of_a_texts_own_tokens() -> None:
    found, _ = prepared(texts([[3], [4], [5], [6]]), RAW[:1])
    own = found[0, 1:5].double().sort().values
    expected = sum((2 * i - 5) * float(value) for i, value in enumerate(own, 1)) / (4 * float(own.sum()))
    metric = Sparseness(Words(WEIGHTS), Sparseness.Parameters())
    score = metric.score(metric_batch_of(Words(WEIGHTS), texts([[3], [4], [5], [6]])), found)
    assert float(score.values["sparseness"][0]) == pytest.approx(expected)


@pytest.mark.parametrize(
    "name", [name for name in metrics.names() if Need.PIXELS not in metrics.get(name).needs]
)
def test_a_map_of_nan_has_no_score_and_the_other_texts_have_theirs(name: str) -> None:
    classifier = Words(WEIGHTS)
    cls = metrics.get(name)
    raw = RAW.clone()
    raw[1] = math.nan
    found, statuses = prepared(raw=raw)
    assert statuses[1] == Status.NOT_FINITE
    scores = cls(classifier, cls.Parameters()).score(metric_batch_of(classifier, TEXTS), found)
    for value in scores.values.values():
        assert value.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda c: Insertion(c, InsertionParameters(fill="blur")),
            "'blur' is not for texts; choose mask or remove",
        ),
        (
            lambda c: AverageDrop(c, AverageDropParameters(levels=(100,))),
            "every token is kept; choose levels below 100",
        ),
    ],
)
def test_what_has_no_meaning_for_texts_is_refused(make, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make(Words(WEIGHTS))


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_a_series_is_hidden_whole_also_when_its_fill_is_one_number_a_channel(name: str, fill: str) -> None:
    """The network pools over steps: a fill of one step would be another series."""
    network = torch.nn.Sequential(
        torch.nn.Conv1d(2, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(36, 2)
    )
    inputs = torch.randn(4, 2, 9, generator=torch.Generator().manual_seed(0))
    maps, _ = prepare(torch.rand(4, 9, generator=torch.Generator().manual_seed(1)), (9,))
    kind, parameters = CAUSAL[name]
    with TensorClassifier(network, (2, 9)) as classifier, torch.no_grad():
        metric = kind(classifier, parameters(steps=3, fill=fill))
        together = metric.score(metric_batch_of(classifier, inputs), maps).curves[name]
        hidden = inputs.mean(2, keepdim=True) if fill == "mean" else torch.zeros(1)
        bare = classifier.logits(hidden.expand_as(inputs)).softmax(1)[:, 1]
        torch.testing.assert_close(together[:, 0 if name == "insertion" else -1], bare)
        for row in range(4):
            alone = metric.score(metric_batch_of(classifier, inputs[row : row + 1]), maps[row : row + 1])
            torch.testing.assert_close(alone.curves[name][0], together[row])


def test_a_text_of_one_token_has_no_average_drop() -> None:
    """TEXTS[1] has one."""
    classifier = Words(WEIGHTS)
    metric = AverageDrop(classifier, AverageDropParameters())
    for values in metric.score(metric_batch_of(classifier, TEXTS), prepared()[0]).values.values():
        assert values.isnan().tolist() == [False, True, False]
