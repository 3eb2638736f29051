"""Curves over cells against loops, dropped tokens, and MoXI's own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import families
import toys
from explainers.base import Batch
from explainers.models.classifier import Classifier
from explainers.moxi import Moxi, MoxiParameters
from explainers.probes.games import FilledCells
from explainers.probes.masked_forward import target_probability
from metric_toys import ToyClassifier, batch_of, random_inputs, rows_of, small_network
from rounding import SMALL_NETWORK
from tasks.metrics.base import MetricBatch
from tasks.metrics.cell_curves import CellCurves, CellCurvesParameters, means

SIZE = (12, 10)  # of the toy
NAMES = [f"cell_{way}_{what}" for what in ("accuracy", "probability") for way in ("insertion", "deletion")]


def metric(classifier, **parameters):
    return CellCurves(classifier, CellCurvesParameters(**parameters))


def of_classifier(classifier: Classifier, count: int, forwards: int = 64) -> MetricBatch:
    """Random inputs and their predicted classes."""
    inputs = random_inputs(count, classifier.input_size)
    with torch.no_grad():
        confidence, targets = classifier.logits(inputs).softmax(1).max(1)
    boxes = [torch.zeros(0, 4)] * count
    return MetricBatch(inputs, targets, torch.arange(count), confidence.float(), boxes, forwards)


def random_maps(count: int, size: tuple[int, int], seed: int = 1) -> torch.Tensor:
    """Maps of which no two cells have the same mean, as they have where values are few."""
    return random_inputs(count, size, seed)[:, 0]


def slow_curves(answer, saliency: np.ndarray, steps: int) -> np.ndarray:
    """(points, 4) from ``answer``: cells shown -> (probability, predicted); ``saliency`` of each cell."""
    order = np.argsort(-saliency)
    points = []
    for k in range(steps + 1):
        first = np.zeros(order.size, bool)
        first[order[: -(-k * order.size // steps)]] = True
        (p, hit), (q, still) = answer(first), answer(~first)
        points.append([hit, still, p, q])
    return np.array(points)


@pytest.mark.parametrize("grid", [4, 5, 10])
@pytest.mark.parametrize("fill", [None, "black", "blur"])
@pytest.mark.parametrize("steps", [None, 7])
def test_curves_and_areas_equal_a_loop_over_images_and_cells(grid, fill, steps):
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(3, SIZE), forwards=9)
    maps = random_maps(3, SIZE)
    scores = metric(classifier, grid=grid, fill=fill, steps=steps).score(batch, maps)
    assert list(scores.values) == list(scores.curves) == NAMES
    # Cell i has the pixels p with floor(p cells / pixels) = i.
    cell = (np.arange(12) * grid // 12)[:, None] * grid + np.arange(10) * grid // 10
    for row, (image, target) in enumerate(zip(batch.inputs, batch.targets.tolist(), strict=True)):
        hidden = classifier.fill(image[None], fill or "mean").expand(1, 3, *SIZE)[0]

        def answer(shown, image=image, target=target, hidden=hidden):
            with torch.no_grad():
                seen = torch.where(torch.from_numpy(shown[cell]), image, hidden)
                probabilities = classifier.logits(seen[None]).softmax(1)[0]
            return float(probabilities[target]), float(probabilities.argmax() == target)

        saliency = np.array([maps[row].numpy()[cell == i].mean() for i in range(grid**2)])
        count = steps or grid**2
        expected = slow_curves(answer, saliency, count)
        for name, points in zip(NAMES, expected.T, strict=True):
            np.testing.assert_allclose(scores.curves[name][row], points, atol=1e-5)
            area = (points.sum() - (points[0] + points[-1]) / 2) / count
            np.testing.assert_allclose(scores.values[name][row], area, atol=1e-5)


@pytest.mark.parametrize(("size", "grid"), [((64, 64), (14, 14)), ((12, 10), (5, 7)), ((32, 17), (9, 17))])
def test_a_cells_mean_is_over_the_pixels_that_come_and_go_with_it(size, grid):
    """Also where cells are not all of one size."""
    classifier = ToyClassifier(small_network())
    classifier.input_size = size
    seen = []
    classifier.logits = lambda inputs: seen.append(inputs) or torch.zeros(len(inputs), 2)
    n = grid[0] * grid[1]
    inputs = torch.ones(1, 3, *size)
    batch = Batch(inputs, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    FilledCells(classifier, batch, grid, "black", lambda _, logits, __: logits).values(
        torch.zeros(n, dtype=torch.int64), torch.eye(n, dtype=torch.bool)
    )
    drawn = torch.cat(seen)[:, 0].bool()
    assert (drawn.sum(0) == 1).all()
    maps = random_maps(1, size)
    expected = torch.stack([maps[0][one].double().mean() for one in drawn]).float()
    torch.testing.assert_close(means(maps, grid).flatten(), expected)


def test_equal_cells_tie_whatever_stands_beside_them():
    maps = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0)).repeat(1, 5, 5)
    maps[0, 6:12] *= 0.5
    found = means(maps, (5, 5))[0]
    assert len(found[0].unique()) == 1
    assert torch.equal(found[0], found[4])
    assert len(found.unique()) == 2


def test_a_transformer_drops_the_tokens_of_absent_cells_by_default():
    with Classifier(families.small_vit(), input_size=(64, 64)) as classifier:
        batch = of_classifier(classifier, 3, forwards=5)
        maps = random_maps(3, (64, 64))
        scored = metric(classifier)
        assert {column.fill for column in scored.columns()} == {"nothing: tokens of absent cells are dropped"}
        scores = scored.score(batch, maps)
        saliency = F.avg_pool2d(maps[:, None], 16).flatten(1).numpy()
        for row in range(3):

            def answer(shown, row=row):
                with torch.no_grad():
                    keep = torch.from_numpy(shown)[None]
                    logits = classifier.logits_of_patches(batch.inputs[row : row + 1], keep)
                target = batch.targets[row : row + 1]
                return float(target_probability(classifier, logits, target)), float(logits.argmax() == target)

            expected = slow_curves(answer, saliency[row], 16)
            for name, points in zip(NAMES, expected.T, strict=True):
                np.testing.assert_allclose(scores.curves[name][row], points, atol=1e-5)
        filled = metric(classifier, fill="black")
        assert filled.cells.grid == (14, 14)
        assert {column.fill for column in filled.columns()} == {"cells replaced by black"}


@pytest.mark.parametrize("mode", ["insertion", "deletion"])
def test_the_order_that_moxi_found_has_moxis_curve(mode):
    with Classifier(families.small_vit(), input_size=(64, 64)) as classifier:
        batch = of_classifier(classifier, 2)
        moxi = Moxi(classifier, MoxiParameters(mode=mode, full_order=True, reward="confidence"))
        details = moxi.explain(Batch(batch.inputs, batch.targets, batch.seeds)).details
        rank = details[f"{mode}_order"].long().argsort(1).float()
        maps = F.interpolate(1 - rank.view(2, 1, 4, 4) / 15, (64, 64))[:, 0]
        curves = metric(classifier).score(batch, maps).curves
    found = curves[f"cell_{mode}_probability"][:, 1:]
    torch.testing.assert_close(found, details[f"{mode}_reward"], atol=1e-5, rtol=0)
    first = curves[f"cell_{mode}_accuracy"].eq(float(mode == "insertion"))[:, 1:].int().argmax(1) + 1
    steps = details[f"{mode}_steps"].long()
    assert torch.equal(first[steps > 0], steps[steps > 0])


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_no_order_beats_that_of_what_cells_are_worth_where_the_probability_is_their_sum(seed):
    weight = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    weight = weight / weight.sum()
    with toys.proportion(weight) as classifier:
        inputs = torch.ones(1, 3, 8, 8)
        batch = MetricBatch(inputs, torch.tensor([0]), torch.tensor([3]), torch.ones(1), [torch.zeros(0, 4)])
        scored = metric(classifier, grid=4, fill="black")
        terms = F.avg_pool2d(weight.sum(0)[None, None], 2)[0]
        best = scored.score(batch, F.interpolate(terms[None], (8, 8))[0]).values
        other = F.interpolate(random_maps(1, (4, 4), seed)[:, None], (8, 8))[:, 0]
        rest = scored.score(batch, other).values
    assert best["cell_insertion_probability"] > rest["cell_insertion_probability"]
    assert best["cell_deletion_probability"] < rest["cell_deletion_probability"]
    assert best["cell_insertion_accuracy"] >= rest["cell_insertion_accuracy"]
    assert best["cell_deletion_accuracy"] <= rest["cell_deletion_accuracy"]


def test_deletion_is_the_insertion_of_the_least_salient_first_read_backwards():
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(3, SIZE))
    maps = random_maps(3, SIZE)
    scored = metric(classifier, grid=5)
    curves, others = (scored.score(batch, one).curves for one in (maps, 1 - maps))
    for what in ("accuracy", "probability"):
        backwards = others[f"cell_insertion_{what}"].flip(1)
        torch.testing.assert_close(curves[f"cell_deletion_{what}"], backwards, atol=SMALL_NETWORK, rtol=0)


def test_every_set_of_cells_is_passed_once():
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(3, SIZE), forwards=16)
    for parameters, sets in (({"grid": 4}, 2 * 16), ({"grid": 5, "steps": 6}, 2 * 6), ({"grid": 1}, 2)):
        classifier.rows = classifier.largest = 0
        metric(classifier, **parameters).score(batch, random_maps(3, SIZE))
        assert classifier.rows == 3 * sets
        assert classifier.largest <= 16


def test_a_pixel_is_a_cell_where_there_are_fewer_than_cells():
    assert metric(ToyClassifier(small_network())).cells.grid == (12, 10)
    assert metric(ToyClassifier(small_network()), grid=3, steps=100).steps == 9


def test_neither_batches_nor_chunks_change_a_score_and_flat_maps_have_the_seeds_order():
    classifier = ToyClassifier(small_network())
    batch = batch_of(classifier, random_inputs(5, SIZE))
    maps = (random_maps(5, SIZE) * 4).round() / 4
    maps[2], maps[3] = torch.nan, 0.0
    scored = metric(classifier, grid=4)
    together = scored.score(batch, maps)
    for name in NAMES:
        assert together.values[name].isnan().tolist() == [False, False, True, False, False]
        assert together.curves[name].isnan().all(1).tolist() == [False, False, True, False, False]
        for rows in ([0], [3], [4, 2, 0]):
            apart = scored.score(rows_of(batch, rows, forwards=4), maps[rows]).values[name]
            expected = together.values[name][rows]
            torch.testing.assert_close(apart, expected, atol=SMALL_NETWORK, rtol=0, equal_nan=True)
    ones = scored.score(batch, torch.ones(5, *SIZE)).values[NAMES[2]]
    assert torch.equal(ones, scored.score(batch, torch.zeros(5, *SIZE)).values[NAMES[2]])
    alike = rows_of(batch, [0, 0, 0])
    alike = type(alike)(**{**vars(alike), "seeds": torch.arange(3)})
    assert len(scored.score(alike, torch.ones(3, *SIZE)).values[NAMES[2]].unique()) == 3


@pytest.mark.parametrize("wrong", [{"steps": 1}, {"fill": "noise"}, {"grid": 0}])
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CellCurvesParameters(**wrong)


def test_more_cells_than_pixels_are_refused():
    with pytest.raises(ValueError, match="grid: 11x11 cells do not fit into 12x10 pixels"):
        metric(ToyClassifier(small_network()), grid=11)
