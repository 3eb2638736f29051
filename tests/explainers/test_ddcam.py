"""DD-CAM against brute force over all subsets, closed forms and its own certificate, evaluated anew."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional as TF

import toys
from explainers import ddcam
from explainers.base import Batch, Explanation, Status
from explainers.ddcam import DDCam
from explainers.models.classifier import Classifier
from explainers.models.loading import load
from explainers.models.model_spec import ModelSpec
from explainers.probes import additivity
from explainers.probes.additivity import additive_head
from places import REAL

seeds = st.integers(0, 2**31 - 1)


def explain(classifier: Classifier, batch: Batch) -> Explanation:
    return DDCam(classifier, DDCam.Parameters()).explain(batch)


def preserved(classifier: Classifier, activations: Tensor, target: int) -> dict[frozenset[int], bool]:
    """Whether each of the 2^U sets of units preserves the prediction, by one evaluation of the head each."""
    U = classifier.units.count
    sets = [frozenset(s) for size in range(U + 1) for s in itertools.combinations(range(U), size)]
    keep = torch.tensor([[unit in s for unit in range(U)] for s in sets])
    logits = classifier.head(classifier.mask_units(activations.expand(len(sets), *activations.shape), keep))
    stays = logits.argmax(1) == target if classifier.exclusive else logits[:, target] > 0
    return dict(zip(sets, stays.tolist(), strict=True))


def one_minimal(answers: dict[frozenset[int], bool], found: frozenset[int]) -> bool:
    return answers[found] and not any(answers[found - {unit}] for unit in found)


def sets_of(explanation: Explanation) -> list[frozenset[int]]:
    return [frozenset(mask.nonzero()[:, 0].tolist()) for mask in explanation.details["unit_mask"]]


def check_against_brute_force(classifier: Classifier, batch: Batch) -> None:
    explanation = explain(classifier, batch)
    assert batch.activations is not None
    for found, activations, target in zip(
        sets_of(explanation), batch.activations, batch.targets.tolist(), strict=True
    ):
        assert one_minimal(preserved(classifier, activations, target), found)
    assert explanation.details["certificate"].all()


@given(seed=seeds, units=st.integers(1, 8), classes=st.integers(2, 5), biased=st.booleans())
@settings(max_examples=40, deadline=None)
def test_sets_are_one_minimal_by_brute_force_where_units_add_up(
    seed: int, units: int, classes: int, biased: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(units, classes, generator=generator)
    bias = torch.randn(classes, generator=generator) * biased
    means = torch.rand(4, units, generator=generator)
    with toys.linear(weight, bias) as classifier:
        assert additive_head(classifier) is not None
        check_against_brute_force(classifier, toys.batch_of(classifier, toys.constant_maps(means)))


@given(seed=seeds, units=st.integers(1, 8), classes=st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_sets_are_one_minimal_by_brute_force_where_units_interact(
    seed: int, units: int, classes: int
) -> None:
    means = torch.rand(4, units, generator=torch.Generator().manual_seed(seed)) * 3
    with toys.mlp(units, classes, seed) as classifier:
        check_against_brute_force(classifier, toys.batch_of(classifier, toys.constant_maps(means)))


@given(seed=seeds, units=st.integers(1, 7), adds=st.booleans(), biased=st.booleans())
@settings(max_examples=40, deadline=None)
def test_sets_keep_the_decision_on_the_target_alone_where_classes_do_not_exclude_each_other(
    seed: int, units: int, adds: bool, biased: bool
) -> None:
    """Each input is explained for a class of its own, which may be neither the first nor decided for."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.rand(4, units, generator=generator)
    weight, bias = torch.randn(units, 3, generator=generator), torch.randn(3, generator=generator) * biased
    made = toys.linear(weight, bias, "sigmoid") if adds else toys.mlp(units, 3, seed, "sigmoid")
    with made as classifier:
        assert (additive_head(classifier) is not None) or not adds
        black = torch.zeros(4, 3, 8, 8)
        targets = torch.tensor([0, 1, 2, 0])
        batch = Batch(black, targets, torch.arange(4), toys.constant_maps(means), 64)
        explanation = explain(classifier, batch)
        decided = classifier.head(batch.activations).gather(1, targets[:, None])[:, 0] > 0
        assert [status == Status.FAILED for status in explanation.statuses] == (~decided).tolist()
        assert torch.equal(explanation.details["certificate"], decided)
        for image in decided.nonzero()[:, 0].tolist():
            answers = preserved(classifier, batch.activations[image], int(targets[image]))
            assert one_minimal(answers, sets_of(explanation)[image])


def test_a_class_without_bias_needs_a_unit_where_classes_do_not_exclude_each_other() -> None:
    """Without any unit its probability is 0.5, which is no decision; that of the other class is 0.99."""
    weight = torch.tensor([[1.0, 0.0], [0.1, 0.0]])
    with toys.linear(weight, torch.tensor([0.0, 5.0]), "sigmoid") as classifier:
        activations = toys.constant_maps(torch.tensor([[0.4, 0.8]]))
        batch = Batch(torch.zeros(1, 3, 8, 8), torch.tensor([0]), torch.tensor([1]), activations)
        explanation = explain(classifier, batch)
    assert sets_of(explanation) == [frozenset([0])]
    torch.testing.assert_close(explanation.maps, torch.full((1, 2, 2), 0.4 * 0.4))


@pytest.mark.parametrize("name", ["conv_gap", "conv_mlp"])
def test_sets_are_one_minimal_by_brute_force_on_real_activations_of_twelve_units(name: str) -> None:
    with toys.CLASSIFIERS[name]() as classifier:
        check_against_brute_force(classifier, toys.batch(classifier, 6))


def test_three_hundred_additive_heads_of_many_units_get_one_minimal_sets() -> None:
    """Large sets, where one greedy pass is not enough; checked on the sums themselves."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    means = torch.rand(300, 60, generator=generator, dtype=torch.float64)
    with toys.linear(weight, torch.tensor([4.0, 0, 0, 0])) as classifier:
        batch = toys.batch_of(classifier, toys.constant_maps(means))
        explanation = explain(classifier, batch)
    kept = explanation.details["unit_mask"]
    bias = torch.tensor([4.0, 0, 0, 0], dtype=torch.float64)
    logits = (means * kept) @ weight + bias
    assert torch.equal(logits.argmax(1), batch.targets)
    without = logits[:, None] - means[..., None] * weight
    assert not ((without.argmax(2) == batch.targets[:, None]) & kept).any()
    assert explanation.details["kept"].max() > 3
    # The passes did it: falling back on delta debugging would have evaluated the head more often.
    assert torch.equal(explanation.details["head_evaluations"], explanation.details["kept"] + 2)


def test_the_planted_set_is_found_where_it_is_the_only_one() -> None:
    needed = [1, 4, 6]
    means = torch.full((1, 9), 0.3)
    means[0, needed] = torch.tensor([0.9, 0.7, 0.8])
    with toys.pooled(9, toys.Weakest(needed, threshold=0.5)) as classifier:
        batch = toys.batch_of(classifier, toys.constant_maps(means))
        assert batch.targets.tolist() == [1]
        explanation = explain(classifier, batch)
    assert sets_of(explanation) == [frozenset(needed)]
    # Without any one of them the weakest mean is 0: the logit falls from 0.7 - 0.5 to -0.5, each time.
    torch.testing.assert_close(explanation.maps, torch.full((1, 2, 2), 0.7 * (0.9 + 0.7 + 0.8)))


def test_every_unit_is_kept_where_every_unit_is_needed() -> None:
    with toys.pooled(7, toys.Weakest(list(range(7)), threshold=0.5)) as classifier:
        explanation = explain(classifier, toys.batch_of(classifier, toys.constant_maps(torch.ones(1, 7))))
    assert explanation.details["unit_mask"].all()
    assert explanation.details["kept"].tolist() == [7]
    assert explanation.details["certificate"].tolist() == [True]


def test_weights_and_map_are_the_contributions_of_the_kept_units() -> None:
    """Unit 0 alone outweighs the bias of class 0; it weighs 3 times its mean."""
    weight = torch.tensor([[0.0, 3.0], [0.0, 0.1], [0.2, 0.0]])
    activations = torch.rand(1, 3, 2, 2, dtype=torch.float64) + 1
    with toys.linear(weight, torch.tensor([2.0, 0.0])) as classifier:
        explanation = explain(classifier, toys.batch_of(classifier, activations))
    assert explanation.details["unit_mask"].tolist() == [[True, False, False]]
    expected = 3 * activations[0, 0].mean() * activations[0, 0]
    torch.testing.assert_close(explanation.maps[0], expected.float())
    assert explanation.statuses == [Status.OK]


def test_the_set_is_empty_and_the_map_zero_where_the_bias_alone_predicts_the_target() -> None:
    weight = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    with toys.linear(weight, torch.tensor([0.0, 5.0])) as classifier:
        explanation = explain(classifier, toys.batch_of(classifier, toys.constant_maps(torch.ones(2, 2))))
    assert not explanation.details["unit_mask"].any()
    assert explanation.details["certificate"].all()
    assert explanation.statuses == [Status.ALL_ZERO] * 2
    assert not explanation.maps.any()


def test_without_bias_the_empty_set_predicts_class_zero_and_no_other() -> None:
    weight = torch.tensor([[1.0, 0.3], [0.2, 0.9]])
    with toys.linear(weight) as classifier:
        explanation = explain(classifier, toys.batch_of(classifier, toys.constant_maps(torch.eye(2) + 0.1)))
    assert explanation.details["kept"].tolist() == [0, 1]
    assert explanation.details["certificate"].all()
    assert explanation.details["head_evaluations"].tolist() == [2, 3]


def test_an_image_whose_target_is_not_predicted_fails_and_leaves_the_others_alone() -> None:
    with toys.conv_mlp() as classifier:
        batch = toys.batch(classifier, 4)
        alone = explain(classifier, batch)
        targets = batch.targets.clone()
        targets[2] = (targets[2] + 1) % 5
        explanation = explain(classifier, Batch(batch.inputs, targets, batch.seeds, batch.activations))
    assert [status is Status.FAILED for status in explanation.statuses] == [False, False, True, False]
    assert explanation.maps[2].isnan().all()
    for name, values in explanation.details.items():
        assert not values[2].any()
        assert torch.equal(values[[0, 1, 3]], alone.details[name][[0, 1, 3]])
    torch.testing.assert_close(explanation.maps[[0, 1, 3]], alone.maps[[0, 1, 3]])


def test_a_batch_in_which_no_target_is_predicted_fails_as_a_whole() -> None:
    with toys.conv_gap() as classifier:
        batch = toys.batch(classifier, 2)
        wrong = (batch.targets + 1) % 5
        explanation = explain(classifier, Batch(batch.inputs, wrong, batch.seeds, batch.activations))
    assert explanation.statuses == [Status.FAILED] * 2


@pytest.mark.parametrize("name", list(toys.CLASSIFIERS))
def test_the_certificate_holds_when_evaluated_anew(name: str) -> None:
    with toys.CLASSIFIERS[name]() as classifier:
        batch = toys.batch(classifier, 6)
        check_certificates(classifier, batch, explain(classifier, batch))


def check_certificates(classifier: Classifier, batch: Batch, explanation: Explanation) -> None:
    assert batch.activations is not None
    for found, activations, target in zip(
        explanation.details["unit_mask"], batch.activations, batch.targets, strict=True
    ):

        def predicts(keep: Tensor, activations: Tensor = activations, target: Tensor = target) -> bool:
            masked = classifier.mask_units(activations[None], keep[None])
            return bool(classifier.head(masked).argmax() == target)

        assert predicts(found)
        for unit in found.nonzero()[:, 0]:
            assert not predicts(found.index_fill(0, unit, False))
    assert explanation.details["certificate"].all()


def test_working_through_few_images_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with toys.conv_gap() as classifier:
        batch = toys.batch(classifier, 7)
        together = explain(classifier, batch)
        monkeypatch.setattr(ddcam, "_SERIAL", 2 * classifier.num_classes)
        apart = explain(classifier, batch)
    assert torch.equal(together.maps, apart.maps)
    assert torch.equal(together.details["unit_mask"], apart.details["unit_mask"])


class _Capped(nn.Module):
    """Means count up to 10 only: additive on ordinary inputs, and not on what the test makes up."""

    def forward(self, means: Tensor) -> Tensor:
        logit = means.clamp(max=10).sum(1) - (means - 10).clamp(min=0).prod(1) - 15
        return torch.stack([torch.zeros_like(logit), logit], 1)


def test_a_set_from_sums_that_the_head_does_not_confirm_is_searched_again() -> None:
    with toys.pooled(2, _Capped()) as classifier:
        assert additive_head(classifier) is not None
        batch = toys.batch_of(classifier, toys.constant_maps(torch.tensor([[9.0, 9.0], [100.0, 10.0]])))
        assert batch.targets.tolist() == [1, 1]
        explanation = explain(classifier, batch)
    assert explanation.details["certificate"].all()
    assert explanation.details["kept"].tolist() == [2, 2]


def test_additivity_is_seen_in_pooled_linear_heads_with_the_heads_own_weights() -> None:
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    bias = torch.tensor([1.0, 2.0, 3.0])
    with toys.linear(weight, bias) as classifier:
        head = additive_head(classifier)
    assert head is not None
    assert head.per_mean is not None
    torch.testing.assert_close(head.per_mean, weight.double())
    torch.testing.assert_close(head.bias, bias.double())


def test_a_head_that_adds_up_without_pooling_is_additive_and_read_unit_by_unit() -> None:
    with _flat() as classifier:
        head = additive_head(classifier)
        assert head is not None
        assert head.per_mean is None
        batch = toys.batch(classifier, 3, forwards=5)
        assert batch.activations is not None
        sums = head.sums(classifier, batch.activations, forwards=5)
        rows = torch.arange(12).expand(3, 12)
        everything = sums.logits(torch.arange(3), rows, torch.ones(3, 12, dtype=torch.bool))
        torch.testing.assert_close(everything, classifier.head(batch.activations))
        check_against_brute_force(classifier, batch)


def _flat() -> Classifier:
    """The convolutions of a toy under a linear layer that sees every position by itself."""
    with toys.conv_gap() as source:
        network = source.network
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network.classifier = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    return Classifier(network, layer="features", input_size=(toys.SIZE, toys.SIZE))


@pytest.mark.parametrize("name", ["conv_mlp", "vit"])
def test_additivity_is_denied_to_heads_in_which_units_interact(name: str) -> None:
    with toys.CLASSIFIERS[name]() as classifier:
        assert additive_head(classifier) is None


def test_the_head_is_asked_once_per_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    examine = additivity._examine
    monkeypatch.setattr(additivity, "_examine", lambda classifier: calls.append(1) or examine(classifier))
    with toys.conv_gap() as first, toys.conv_gap() as second:
        for classifier in (first, first, second):
            DDCam(classifier, DDCam.Parameters())
    assert len(calls) == 2


def deep_vit() -> Classifier:
    """Two blocks behind the layer, and 36 tokens without which no class stands out."""
    small = {"img_size": 96, "depth": 3, "embed_dim": 24, "num_heads": 2, "num_classes": 5}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = timm.create_model("vit_tiny_patch16_224", **small)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    classifier = Classifier(network, layer="blocks.1:input", input_size=(96, 96))
    with torch.inference_mode():
        activations = classifier.activations(toys.inputs(8, 96))
        network.head.bias.data -= classifier.head(activations.index_fill(1, torch.arange(1, 37), 0)).mean(0)
    return classifier


def deep_batch(classifier: Classifier, count: int, forwards: int = 64) -> Batch:
    inputs = toys.inputs(count, 96)
    with torch.inference_mode():
        activations, targets = classifier.activations(inputs), classifier.logits(inputs).argmax(1)
    return Batch(inputs, targets, torch.arange(count), activations, forwards)


def test_searching_on_few_tokens_finds_the_sets_and_maps_of_the_whole_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with deep_vit() as classifier:
        batch = deep_batch(classifier, 8)
        assert DDCam(classifier, DDCam.Parameters()).few is not None
        found = explain(classifier, batch)
        monkeypatch.setattr(ddcam, "few_tokens", lambda _: None)
        whole = explain(classifier, batch)
    assert found.details["kept"].max() > 1
    assert found.details["certificate"].all()
    assert torch.equal(found.details["unit_mask"], whole.details["unit_mask"])
    torch.testing.assert_close(found.maps, whole.maps, rtol=1e-3, atol=1e-4)


def test_an_image_gets_the_same_set_alone_and_whatever_images_are_searched_beside_it() -> None:
    with deep_vit() as classifier:
        batch = deep_batch(classifier, 6)
        together = explain(classifier, batch)
        for image in range(6):
            rows = slice(image, image + 1)
            one = (batch.inputs[rows], batch.targets[rows], batch.seeds[rows], batch.activations[rows])
            alone = explain(classifier, Batch(*one, forwards=3))
            for name in ("unit_mask", "head_evaluations", "certificate"):
                assert torch.equal(alone.details[name], together.details[name][rows])
            torch.testing.assert_close(alone.maps, together.maps[rows], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", [toys.conv_gap, toys.conv_mlp, toys.vit, deep_vit, _flat])
def test_no_set_of_an_image_is_evaluated_twice_by_the_same_head(
    make: Callable[[], Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search and the certificate ask about some of the same sets: only few tokens stand apart."""
    asked: list[tuple[bool, int, tuple[bool, ...]]] = []
    evaluate = ddcam.MaskedHead._evaluate

    def note(head: ddcam.MaskedHead, images: Tensor, keep: Tensor) -> Tensor:
        few = [head.few is not None] * len(images)
        asked.extend(zip(few, images.tolist(), map(tuple, keep.tolist()), strict=True))
        return evaluate(head, images, keep)

    monkeypatch.setattr(ddcam.MaskedHead, "_evaluate", note)
    with make() as classifier:
        batch = deep_batch(classifier, 5) if classifier.input_size == (96, 96) else toys.batch(classifier, 5)
        found = explain(classifier, batch)
    assert found.details["certificate"].all()
    assert len(asked) == len(set(asked)) > 0


def test_a_set_from_few_tokens_that_the_whole_head_does_not_confirm_is_searched_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with deep_vit() as classifier:
        batch = deep_batch(classifier, 4)
        explainer = DDCam(classifier, DDCam.Parameters())
        logits = explainer.few.logits
        # Negated logits predict other classes, so that they lead the search astray.
        monkeypatch.setattr(explainer.few, "logits", lambda *args: -logits(*args))
        found = explainer.explain(batch)
        monkeypatch.setattr(ddcam, "few_tokens", lambda _: None)
        whole = explain(classifier, batch)
    assert found.details["certificate"].all()
    assert torch.equal(found.details["unit_mask"], whole.details["unit_mask"])
    assert (found.details["head_evaluations"] > whole.details["head_evaluations"]).all()


@pytest.mark.skipif(not (REAL / "weights").is_dir(), reason="real weights are not here (set FLOODLIT_REAL)")
def test_the_real_vit_takes_few_forward_passes_for_sets_that_are_one_minimal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A third of the network lies behind block 8; a set runs on a share of its 197 tokens."""
    spec = ModelSpec(
        source="timm",
        name="vit_tiny_patch16_224",
        weights=str(REAL / "weights/vit_tiny_tinyimagenet200.pth"),
        num_classes=200,
        layer="blocks.8:input",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    passes: list[float] = []
    with load(spec) as classifier:
        files = [REAL / f"images/tinyimagenet_val/val_{number}.JPEG" for number in (68, 1230, 1640)]
        pixels = [TF.resize(Image.open(file).convert("RGB"), 256) for file in files]
        inputs = torch.stack([TF.to_tensor(TF.center_crop(each, 224)) for each in pixels])
        with torch.inference_mode():
            activations, targets = classifier.activations(inputs), classifier.logits(inputs).argmax(1)
        batch = Batch(inputs, targets, torch.arange(len(files)), activations)
        explainer = DDCam(classifier, DDCam.Parameters())
        head = classifier.head
        monkeypatch.setattr(
            classifier, "head", lambda tokens: passes.append(tokens[..., 0].numel() / 197 / 3) or head(tokens)
        )
        found = explainer.explain(batch)
        monkeypatch.undo()
        assert sum(passes) / len(files) < 10
        check_certificates(classifier, batch, found)


def test_head_evaluations_count_what_the_head_saw() -> None:
    with toys.conv_mlp() as classifier:
        seen: list[int] = []

        def count(module: nn.Module, args: tuple[Tensor]) -> None:
            seen.append(len(args[0]))

        handle = classifier.network.classifier[1].register_forward_pre_hook(count)
        explainer = DDCam(classifier, DDCam.Parameters())
        batch = toys.batch(classifier, 5)
        seen.clear()
        explanation = explainer.explain(batch)
        handle.remove()
    assert explanation.details["head_evaluations"].sum() == sum(seen)
