"""Training P-TAME's head: who learns, where the mask goes, and what an interruption changes: nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import toys
from explainers.models.auxiliary import Auxiliary
from explainers.models.classifier import Classifier
from explainers.models.ptame_head import maps_of
from tasks.training.loss import LossWeights
from tasks.training.optimisation import PRESETS, DivergedError, Preset, Training, TrainingSettings, new_head


def training(
    classifier: Classifier, steps: int = 20, preset: Preset | None = None, **changes: object
) -> Training:
    auxiliary = Auxiliary(toys.tapped(), toys.TAPS)
    settings = TrainingSettings(steps, preset or PRESETS["resnet50"], **changes)
    return Training(classifier, auxiliary, new_head(classifier, auxiliary, settings.seed), settings)


def pixels(step: int) -> Tensor:
    return toys.inputs(6, seed=step)


def test_only_the_head_learns_and_the_others_stay_in_eval_mode() -> None:
    with toys.conv_mlp() as classifier:
        one = training(classifier)
        frozen = {
            "f": {k: v.clone() for k, v in classifier.network.state_dict().items()},
            "g": {k: v.clone() for k, v in one.auxiliary.network.state_dict().items()},
        }
        before = {k: v.clone() for k, v in one.module.state_dict().items()}
        one.train([pixels(0)])
        for name, network in (("f", classifier.network), ("g", one.auxiliary.network)):
            assert not network.training
            assert all(p.grad is None for p in network.parameters())
            assert all(torch.equal(value, frozen[name][k]) for k, value in network.state_dict().items())
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in one.module.parameters())
        assert any(not torch.equal(value, before[k]) for k, value in one.module.state_dict().items())


def test_the_classifier_sees_pixels_times_the_mask_before_they_are_normalised() -> None:
    """Masked out is black: the mean and deviation of this classifier are not 0 and 1."""
    with toys.vit() as classifier:
        one = training(classifier)
        seen: list[Tensor] = []
        logits = classifier.logits
        classifier.logits = lambda inputs: seen.append(inputs.detach().clone()) or logits(inputs)
        images = pixels(0)
        head = one.module.train()
        with torch.no_grad():
            targets = logits(images).argmax(1)
            maps = head(one.auxiliary.features(classifier.normalised(images)), targets).sigmoid()
        one.module.load_state_dict(new_head(classifier, one.auxiliary, 0).state_dict())
        one.train([images])
    own = torch.stack([maps[b, b] for b in range(6)])
    mask = nn.functional.interpolate(own[:, None], (32, 32), mode="bilinear", align_corners=False)
    assert torch.equal(seen[0], images)
    torch.testing.assert_close(seen[1], images * mask, atol=1e-5, rtol=1e-4)


def test_the_loss_of_a_multi_label_network_is_that_of_the_targets_own_probability() -> None:
    with toys.conv_gap(activation="sigmoid") as classifier:
        one = training(classifier)
        found: list[Tensor] = []
        logits = classifier.logits
        classifier.logits = lambda inputs: found.append(logits(inputs)) or found[-1]
        loss = one.train([pixels(0)]).ce
    whole, masked = found
    z = masked.gather(1, whole.argmax(1, keepdim=True)).detach()
    assert float(loss) == pytest.approx(float((1 + (-z).exp()).log().mean()), rel=1e-5)


def test_the_mask_goes_to_the_patch_that_the_classifier_reads() -> None:
    """Brightness of the patch decides; the head learns to show it and to hide the rest."""
    weight = torch.zeros(3, 32, 32)
    weight[:, 8:16, 16:24] = 1 / 192
    with toys.proportion(weight) as classifier:
        one = training(classifier, 150, Preset(LossWeights(1.0, 0.5, 0.0, 1.0), 0.03, 0.0))
        generator = torch.Generator().manual_seed(0)

        def bright(count: int) -> Tensor:
            images = 0.3 * torch.rand(count, 3, 32, 32, generator=generator)
            images[:, :, 8:16, 16:24] += 0.65
            return images

        first = one.train([bright(8)])
        for _ in range(149):
            last = one.train([bright(8)])
        one.module.eval()
        images = bright(4)
        maps = maps_of(one.module, one.auxiliary, classifier, images, torch.zeros(4, dtype=torch.int64))
    assert float(last.total) < 0.7 * float(first.total)
    inside = maps[:, 4:8, 8:12].mean()
    outside = (maps.sum() - maps[:, 4:8, 8:12].sum()) / (maps.numel() - 4 * 16)
    assert float(inside) > 3 * float(outside)


@pytest.mark.parametrize("stop", [1, 7, 19])
def test_an_interrupted_training_ends_with_the_same_bits(stop: int) -> None:
    with toys.conv_mlp() as classifier:
        whole = training(classifier)
        for step in range(20):
            whole.train([pixels(step)])
        first = training(classifier)
        for step in range(stop):
            first.train([pixels(step)])
        second = training(classifier, seed=5)
        second.load_state_dict(first.state_dict())
        assert second.step == stop
        for step in range(stop, 20):
            second.train([pixels(step)])
        assert second.learning_rate == whole.learning_rate
        for name, value in whole.module.state_dict().items():
            assert torch.equal(value, second.module.state_dict()[name])


def test_gradients_of_several_batches_are_averaged() -> None:
    """Two batches that are the same teach what one of them does."""
    with toys.conv_mlp() as classifier:
        one, two = training(classifier), training(classifier)
        one.train([pixels(0)])
        found = two.train([pixels(0), pixels(0)])
        assert float(found.mask_area) > 0
        for (name, p), q in zip(one.module.named_parameters(), two.module.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_a_loss_that_is_no_number_stops_before_the_weights_change() -> None:
    with toys.conv_mlp() as classifier:
        one = training(classifier)
        one.train([pixels(0)])
        before = {name: value.clone() for name, value in one.module.state_dict().items()}
        with pytest.raises(DivergedError, match="loss of step 1 is nan; lower the learning rate"):
            one.train([pixels(1), torch.full((2, 3, 32, 32), torch.nan)])
        assert one.step == 1
        for name, value in one.module.state_dict().items():
            assert torch.equal(value, before[name]), name


class _Overflow(torch.autograd.Function):
    """The identity, with a gradient that is too large."""

    @staticmethod
    def forward(_ctx, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(_ctx, gradient: Tensor) -> Tensor:
        return gradient * torch.inf


def test_a_finite_loss_with_a_gradient_that_is_not_stops_as_well() -> None:
    with toys.conv_mlp() as classifier:
        one = training(classifier)
        logits = classifier.logits
        classifier.logits = lambda inputs: _Overflow.apply(logits(inputs))
        before = {name: value.clone() for name, value in one.module.state_dict().items()}
        with pytest.raises(DivergedError, match=r"the gradient of step 0 is (nan|inf)"):
            one.train([pixels(0)])
        for name, value in one.module.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_the_learning_rate_is_one_cycle_of_the_presets() -> None:
    with toys.conv_mlp() as classifier:
        one = training(classifier, 10)
        rates = []
        for step in range(10):
            rates.append(one.learning_rate)
            one.train([pixels(step)])
    assert max(rates) == pytest.approx(1e-4, rel=1e-3)
    assert rates[0] == pytest.approx(1e-4 / 25)
    assert rates[-1] < rates[0] / 10
    assert one.optimiser.param_groups[0]["amsgrad"]
    assert one.optimiser.param_groups[0]["weight_decay"] == 2.4e-4


def test_bf16_trains_and_its_loss_is_near_that_of_float32() -> None:
    with toys.conv_mlp() as classifier:
        exact = training(classifier).train([pixels(0)])
        rough = training(classifier, precision="bf16").train([pixels(0)])
    assert float(rough.total) == pytest.approx(float(exact.total), rel=0.05)


def test_a_new_head_depends_on_its_seed_and_disturbs_nobody() -> None:
    with toys.conv_mlp() as classifier:
        auxiliary = Auxiliary(toys.tapped(), toys.TAPS)
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        first, again, other = (new_head(classifier, auxiliary, seed) for seed in (0, 0, 1))
        assert torch.rand(1) == expected
    assert torch.equal(first.classes.weight, again.classes.weight)
    assert not torch.equal(first.classes.weight, other.classes.weight)
