"""MoXI on games whose orders are known, its passes and tokens counted, and Shapley values by brute force."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

import families
import toys
from explainers.base import Batch, Explanation, Status
from explainers.models.classifier import Classifier
from explainers.moxi import Moxi, MoxiParameters, greedy, sorted_once
from explainers.probes.games import Cells
from explainers.probes.narrowing import class_token_alone
from explainers.shapley import Shapley, sampled


class Table:
    """A game of n players given by the values of all its sets, one table an image; target above ``limit``."""

    def __init__(self, seed: int, images: int, n: int, limit: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.worth = torch.randn(images, 2**n, generator=generator)
        self.limit, self.n = limit, n
        self.passes = torch.zeros(images, dtype=torch.int64)
        self.tokens = self.passes.clone()

    def values(self, images: Tensor, present: Tensor) -> Tensor:
        self.passes += images.bincount(minlength=len(self.passes))
        worth = self.worth[images, (present.long() << torch.arange(self.n)).sum(1)]
        return torch.stack([worth, (worth > self.limit).float()], 1)

    def value(self, image: int, cells: set[int]) -> float:
        return float(self.worth[image, sum(1 << cell for cell in cells)])


def slow_greedy(game: Table, image: int, inserting: bool) -> list[int]:
    """The two algorithms as the paper prints them."""
    order: list[int] = []
    while len(order) < game.n:
        left = [cell for cell in range(game.n) if cell not in order]
        if inserting:
            best = max(left, key=lambda b: game.value(image, {*order, b}))
        else:
            best = min(left, key=lambda b: game.value(image, set(range(game.n)) - {*order, b}))
        order.append(best)
    return order


@pytest.mark.parametrize("inserting", [True, False])
def test_the_order_is_that_of_the_papers_algorithm_on_random_games(inserting: bool) -> None:
    game = Table(0, images=20, n=6, limit=100)
    found = greedy(game, 20, 6, inserting, full=True)
    for image in range(20):
        expected = slow_greedy(game, image, inserting)
        assert found.order[image].tolist() == expected
        chosen: set[int] = set()
        for rank, cell in enumerate(expected):
            chosen.add(cell)
            present = chosen if inserting else set(range(6)) - chosen
            assert found.reward[image, rank].item() == pytest.approx(game.value(image, present))
    assert game.passes.tolist() == [6 * 7 // 2] * 20
    assert found.steps.tolist() == ([0] * 20 if inserting else [1] * 20)


@pytest.mark.parametrize("inserting", [True, False])
def test_an_early_stop_is_the_beginning_of_the_full_order_and_saves_the_rest(inserting: bool) -> None:
    limit = 1.2 if inserting else -1.0
    full = greedy(Table(1, 30, 6, limit), 30, 6, inserting, full=True)
    game = Table(1, 30, 6, limit)
    early = greedy(game, 30, 6, inserting, full=False)
    assert torch.equal(early.steps, full.steps)
    assert len(set(full.steps.tolist())) > 2
    m = torch.where(full.steps > 0, full.steps, 6)
    inside = torch.arange(6) < m[:, None]
    assert torch.equal(early.order, full.order.masked_fill(~inside, -1))
    assert early.reward.isnan().equal(~inside)
    assert game.passes.tolist() == [sum(6 - k for k in range(steps)) for steps in m.tolist()]
    assert torch.equal(early.saliency(), full.saliency())


def test_the_cell_at_rank_j_gets_m_less_j_and_the_rest_nothing() -> None:
    game = Table(2, 1, 4, limit=100)
    order = greedy(game, 1, 4, True, full=True)
    stopped = type(order)(order.order, order.reward, torch.tensor([2]))
    expected = torch.zeros(4)
    expected[order.order[0, 0]], expected[order.order[0, 1]] = 2, 1
    assert stopped.saliency().tolist() == [expected.tolist()]
    assert sorted(order.saliency()[0].tolist()) == [1, 2, 3, 4]


@pytest.mark.parametrize("inserting", [True, False])
@pytest.mark.parametrize("full", [True, False])
def test_without_interactions_cells_come_in_the_order_of_their_own_effect(
    inserting: bool, full: bool
) -> None:
    game = Table(3, 10, 5, limit=0.8 if inserting else -0.8)
    found = sorted_once(game, 10, 5, inserting, full)
    blocks = [1, 2, 4, 5]  # cells in the order after each evaluation
    m = torch.where((found.steps > 0) & (not full), found.steps, 5)
    assert game.passes.tolist() == [5 + min(b for b in blocks if b >= steps) for steps in m.tolist()]
    everything = set(range(5))
    for image in range(10):
        alone = [game.value(image, {b} if inserting else everything - {b}) for b in range(5)]
        expected = sorted(range(5), key=lambda b: -alone[b] if inserting else alone[b])
        sets = [set(expected[: k + 1]) for k in range(5)]
        rewards = [game.value(image, s if inserting else everything - s) for s in sets]
        flips = [k + 1 for k, reward in enumerate(rewards) if (reward > game.limit) == inserting]
        assert found.steps[image] == (flips[0] if flips else 0)
        shown = 5 if full or not flips else flips[0]
        assert found.order[image].tolist() == expected[:shown] + [-1] * (5 - shown)
        assert found.reward[image, :shown].tolist() == pytest.approx(rewards[:shown])


def test_two_cells_that_matter_only_together_are_found_once_one_of_them_is_in() -> None:
    """Cells 1 and 4 each add 0.1 alone and 5 together; cell 2 adds 1."""

    class Planted:
        passes = tokens = torch.zeros(1, dtype=torch.int64)

        def values(self, images: Tensor, present: Tensor) -> Tensor:  # noqa: ARG002
            p = present.float()
            worth = 0.1 * p[:, 1] + 0.1 * p[:, 4] + p[:, 2] + 5 * p[:, 1] * p[:, 4]
            return torch.stack([worth, (worth > 5.9).float()], 1)

    found = greedy(Planted(), 1, 6, True, full=False)
    assert found.order.tolist() == [[2, 1, 4, -1, -1, -1]]
    assert found.steps.tolist() == [3]


# On networks


def batch_of(classifier: Classifier, count: int = 3, forwards: int = 16) -> Batch:
    pixels = families.pixels(count, classifier.input_size)
    with torch.inference_mode():
        targets = classifier.logits(pixels).argmax(1)
    return Batch(pixels, targets, torch.arange(count), forwards=forwards)


def vit(**options: object) -> Classifier:
    network = families.randomised(families.small_vit())
    return Classifier(network, input_size=(64, 64), mean=families.MEAN, std=families.STD, **options)


def explain(classifier: Classifier, batch: Batch, **parameters: object) -> Explanation:
    return Moxi(classifier, MoxiParameters(**parameters)).explain(batch)


def test_passes_and_tokens_of_full_orders_are_the_least_there_are() -> None:
    n = 16
    with vit() as classifier:
        batch = batch_of(classifier)
        insertion = explain(classifier, batch, full_order=True).details
        deletion = explain(classifier, batch, full_order=True, mode="deletion").details
    assert (
        insertion["forward_passes"].tolist() == deletion["forward_passes"].tolist() == [n * (n + 1) // 2] * 3
    )
    assert insertion["tokens"].tolist() == [sum((n - k + 1) * (k + 1) for k in range(1, n + 1))] * 3
    assert deletion["tokens"].tolist() == [sum((n - k + 1) ** 2 for k in range(1, n + 1))] * 3


def test_the_formulas_of_passes_and_tokens_give_the_published_counts() -> None:
    n = 196
    assert n * (n + 1) // 2 == 19_306
    assert sum((n - k + 1) * (k + 1) for k in range(1, n + 1)) == 1_293_502
    assert sum((n - k + 1) ** 2 for k in range(1, n + 1)) == 2_529_086


def test_a_transformers_rewards_are_its_log_odds_on_the_tokens_present() -> None:
    with vit() as classifier:
        batch = batch_of(classifier)
        details = explain(classifier, batch, full_order=True).details
        for image in range(3):
            keep = torch.zeros(1, 16, dtype=torch.bool)
            for rank in (0, 1, 5, 15):
                keep[0, details["insertion_order"][image, : rank + 1].long()] = True
                with torch.inference_mode():
                    logits = classifier.logits_of_patches(batch.inputs[image : image + 1], keep)
                p = logits.double().softmax(1)[0, batch.targets[image]]
                found = details["insertion_reward"][image, rank].double()
                torch.testing.assert_close(found, (p / (1 - p)).log(), rtol=1e-4, atol=1e-4)


def test_other_networks_see_the_mean_in_absent_cells() -> None:
    with toys.conv_mlp() as classifier:
        batch = toys.batch(classifier, 2)
        details = explain(classifier, batch, grid=4, mode="deletion", full_order=True).details
        for image in range(2):
            pixels = batch.inputs[image].clone()
            for rank in range(3):
                row, column = divmod(int(details["deletion_order"][image, rank]), 4)
                pixels[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 0
                with torch.inference_mode():
                    p = classifier.logits(pixels[None]).softmax(1)[0, batch.targets[image]]
                found = details["deletion_reward"][image, rank]
                torch.testing.assert_close(found, (p / (1 - p)).log(), rtol=1e-3, atol=1e-3)
    assert details["tokens"].tolist() == [0, 0]
    assert details["forward_passes"].tolist() == [16 * 17 // 2] * 2


def test_both_modes_together_are_the_two_apart_and_the_map_is_the_insertions() -> None:
    with vit() as classifier:
        batch = batch_of(classifier)
        both, insertion, deletion = (
            explain(classifier, batch, mode=m) for m in ("both", "insertion", "deletion")
        )
    torch.testing.assert_close(both.maps, insertion.maps)
    for key, values in (insertion.details | deletion.details).items():
        if key not in ("forward_passes", "tokens"):
            torch.testing.assert_close(both.details[key], values, equal_nan=True)
    passes = insertion.details["forward_passes"] + deletion.details["forward_passes"]
    assert torch.equal(both.details["forward_passes"], passes)


def test_an_image_with_pixels_that_are_not_finite_is_reported_alone() -> None:
    with toys.conv_gap() as classifier:
        batch = toys.batch(classifier, 3)
        pixels = batch.inputs.clone()
        pixels[1] = torch.nan
        found = explain(classifier, Batch(pixels, batch.targets, batch.seeds), grid=3)
    assert found.statuses == [Status.OK, Status.NOT_FINITE, Status.OK]


def test_cells_that_cut_through_patches_or_outnumber_pixels_are_refused() -> None:
    with vit() as classifier:
        refusal = "3x3 cells do not consist of whole patches, of which there are 4x4; choose"
        with pytest.raises(ValueError, match=refusal):
            Moxi(classifier, MoxiParameters(grid=3))
        with pytest.raises(ValueError, match="65x65 cells do not fit into 64x64 pixels"):
            Moxi(classifier, MoxiParameters(grid=65, fill="mean"))
        assert Moxi(classifier, MoxiParameters(grid=2)).describe().grid == (2, 2)
        assert Moxi(classifier, MoxiParameters(grid=3, fill="mean")).describe().grid == (3, 3)


def test_a_cell_of_several_patches_drops_all_of_them() -> None:
    with vit() as classifier:
        batch = batch_of(classifier, 2)
        game = Cells(classifier, MoxiParameters(grid=2)).game(batch)
        with torch.inference_mode():
            found = game.values(torch.tensor([1, 0]), torch.tensor([[True, False, False, True]] * 2))
            keep = torch.zeros(4, 4, dtype=torch.bool)
            keep[:2, :2] = keep[2:, 2:] = True
            logits = classifier.logits_of_patches(batch.inputs[[1, 0]], keep.flatten().expand(2, 16))
        p = logits.softmax(1).gather(1, batch.targets[[1, 0], None])[:, 0]
        torch.testing.assert_close(found[:, 0], (p / (1 - p)).log(), rtol=1e-3, atol=1e-3)
    assert game.tokens.tolist() == [9, 9]


@pytest.mark.parametrize(
    "name", ["vit", "timm_vit", "timm_vit_registers", "timm_deit", "timm_deit_distilled"]
)
def test_the_last_block_for_the_class_token_alone_gives_the_same_logits(name: str) -> None:
    network = families.randomised(families.FAMILIES[name][0]())
    with Classifier(network, input_size=(64, 64)) as classifier, torch.inference_mode():
        before = families.condition(network)
        narrowed = class_token_alone(classifier)
        tokens = classifier.embed(families.pixels(3))[:, :9]
        rows: list[int] = []
        last = classifier.network.get_submodule(classifier.layer.partition(":")[0])
        linear = [module for module in last.modules() if isinstance(module, nn.Linear)][-1]
        handle = linear.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[1]))
        torch.testing.assert_close(narrowed(tokens), classifier.encode(tokens), rtol=1e-4, atol=1e-5)
        handle.remove()
        assert families.condition(network) == before
    if name == "timm_deit_distilled":  # its head reads two tokens
        assert rows == [9, 9]
    else:
        assert rows == [1, 9]


# Shapley values


def test_all_permutations_give_shapleys_values() -> None:
    game = Table(4, 2, 4, limit=0)
    every = torch.tensor(list(permutations(range(4)))).expand(2, -1, -1)
    found = sampled(game, every)
    for image in range(2):
        for cell in range(4):
            gains = []
            for order in permutations(range(4)):
                before = set(order[: order.index(cell)])
                gains.append(game.value(image, before | {cell}) - game.value(image, before))
            assert found[image, cell].item() == pytest.approx(sum(gains) / 24, abs=1e-5)


def test_sampled_values_sum_to_the_whole_less_nothing_and_cost_what_they_say() -> None:
    with vit() as classifier:
        batch = batch_of(classifier, 2)
        found = Shapley(classifier, Shapley.Parameters(samples=3)).explain(batch)
        none = torch.zeros(2, 16, dtype=torch.bool)
        with torch.inference_mode():
            logits = [classifier.logits_of_patches(batch.inputs, keep) for keep in (none, ~none)]
    odds = [each.softmax(1).gather(1, batch.targets[:, None])[:, 0] for each in logits]
    low, high = ((p / (1 - p)).log() for p in odds)
    torch.testing.assert_close(found.maps.sum((1, 2)), high - low, rtol=1e-3, atol=1e-3)
    assert found.details["forward_passes"].tolist() == [3 * 15 + 2] * 2


def test_an_additive_networks_values_are_its_terms_from_any_single_permutation() -> None:
    """Two classes: the log-odds are a difference of logits, linear in the pixels of each cell."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 2, 4, stride=4)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.features(inputs).sum((2, 3))

    pixels = families.pixels(2, (16, 16))
    with Classifier(Sum(), layer="features", input_size=(16, 16)) as classifier:
        batch = Batch(pixels, torch.tensor([0, 1]), torch.arange(2))
        found = Shapley(classifier, Shapley.Parameters(samples=1, grid=4)).explain(batch)
        network = classifier.network
        terms = network.features(pixels) - network.features(torch.zeros_like(pixels))
    expected = torch.stack([terms[0, 0] - terms[0, 1], terms[1, 1] - terms[1, 0]])
    torch.testing.assert_close(found.maps, expected, rtol=1e-4, atol=1e-5)
