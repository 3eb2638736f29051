"""The CAM family against pytorch-grad-cam on three kinds of network, and in closed form.

Where that library departs from a method's paper, the test says how and repairs it before comparing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam as theirs
import torch
from pydantic import ValidationError
from pytorch_grad_cam.ablation_layer import AblationLayer
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision import models

import toys
from explainers.base import Batch, Explanation, Status
from explainers.models.classifier import Classifier
from explainers.probes.head_gradient import head_gradient
from explainers.registry import explainers
from families import randomised, small_vit

NEAR = 0.999
TARGETS = [4, 1]


def resnet18() -> tuple[nn.Module, str, int]:
    return models.get_model("resnet18", weights=None, num_classes=7), "layer4", 96


def vgg11() -> tuple[nn.Module, str, int]:
    network = models.vgg.VGG(models.vgg11().features, num_classes=7, init_weights=False)
    network.classifier = nn.Sequential(nn.Linear(512 * 49, 64), nn.ReLU(True), nn.Linear(64, 7))
    return network, "features", 96


def vit() -> tuple[nn.Module, str, int]:
    return small_vit(), "encoder.layers.encoder_layer_1", 64


NETWORKS = {"resnet18": resnet18, "vgg11": vgg11, "vit": vit}


@contextmanager
def network_of(
    name: str, own_layer: str | None = None
) -> Iterator[tuple[nn.Module, nn.Module, Classifier, Batch]]:
    """A network with random weights, its target layer, both ways to explain it, and two inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network, layer, size = NETWORKS[name]()
        layer = own_layer or layer
        randomised(network)
    with Classifier(network, layer=layer, input_size=(size, size)) as classifier:
        pixels = toys.inputs(2, size)
        with torch.inference_mode():
            activations = classifier.activations(pixels)
        batch = Batch(pixels, torch.tensor(TARGETS), torch.arange(2), activations, forwards=32)
        yield network, network.get_submodule(layer), classifier, batch


def grid_of(tokens: Tensor) -> Tensor:
    """pytorch-grad-cam's way to read tokens: without the class token, on their grid."""
    return tokens[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2) if tokens.ndim == 3 else tokens


def raw(cls: type, network: nn.Module, layer: nn.Module, inputs: Tensor, **options: Any) -> Tensor:
    """That library's maps before its ReLU, rescaling and upsampling."""
    seen = []
    with cls(network, [layer], reshape_transform=grid_of, **options) as cam:
        original = cam.get_cam_image

        def keep(*args: Any) -> Any:
            seen.append(original(*args))
            return seen[-1]

        cam.get_cam_image = keep
        cam(inputs.clone().requires_grad_(), [ClassifierOutputTarget(target) for target in TARGETS])
    return torch.as_tensor(np.array(seen[0]))


def ours(name: str, classifier: Classifier, batch: Batch, **parameters: object) -> Explanation:
    return explainers.get(name)(classifier, explainers.get(name).Parameters(**parameters)).explain(batch)


def assert_near(maps: Tensor, expected: Tensor) -> None:
    for one, other in zip(maps.double(), expected.double(), strict=True):
        assert np.corrcoef(one.flatten(), other.flatten())[0, 1] > NEAR
    assert maps.flatten(1).std(1).gt(0).all()


class _Reshaped(theirs.ShapleyCAM):
    """Forgets no longer to lay tokens on their grid after it has weighed them."""

    def get_cam_image(self, *args: Any) -> np.ndarray:
        weights = self.get_cam_weights(*args[:-1])
        return (weights[..., None, None] * grid_of(args[3]).detach().numpy()).sum(1)


GRADIENT_CAMS = {
    "gradcam": theirs.GradCAM,
    "hirescam": theirs.HiResCAM,
    "xgradcam": theirs.XGradCAM,
    "layercam": theirs.LayerCAM,
    "shapleycam": _Reshaped,
}
CASES = [
    (name, network)
    for name in GRADIENT_CAMS
    for network in NETWORKS
    if (name, network) != ("hirescam", "vit")
]


@pytest.mark.parametrize(("name", "network"), CASES)
def test_gradient_cams_agree_with_pytorch_grad_cam(name: str, network: str) -> None:
    with network_of(network) as (module, layer, classifier, batch):
        maps = ours(name, classifier, batch).maps
        module.requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # ShapleyCAM differentiates attention twice
            expected = raw(GRADIENT_CAMS[name], module, layer, batch.inputs)
    assert_near(maps, expected)
    close = 1e-3 * float(expected.abs().max())
    torch.testing.assert_close(maps.double(), expected.double(), rtol=1e-2, atol=close)


def test_in_front_of_a_layer_norm_hirescam_is_zero_where_pytorch_grad_cam_shows_rounding() -> None:
    with network_of("vit") as (module, layer, classifier, batch):
        found = ours("hirescam", classifier, batch)
        terms = ours("layercam", classifier, batch).maps
        noise = raw(theirs.HiResCAM, module, layer, batch.inputs)
    assert noise.abs().max() < 1e-5 * terms.abs().max()
    assert found.statuses == [Status.ALL_ZERO] * 2


@pytest.mark.parametrize("network", NETWORKS)
def test_gradcampp_with_an_epsilon_is_pytorch_grad_cams_and_without_one_the_papers(network: str) -> None:
    """The paper's eq. 19 in float64, term by term and not reduced, beside that library with its 1e-6."""
    with network_of(network) as (module, layer, classifier, batch):
        found = ours("gradcampp", classifier, batch).maps
        with_epsilon = ours("gradcampp", classifier, batch, epsilon=1e-6).maps
        expected = raw(theirs.GradCAMPlusPlus, module, layer, batch.inputs).double()
        g = classifier.spatial(head_gradient(classifier, batch, slice(None))).double()
        A = classifier.spatial(batch.activations).double()
    close = 1e-3 * float(expected.abs().max())
    torch.testing.assert_close(with_epsilon.double(), expected, rtol=1e-3, atol=close)
    alpha = g**2 / (2 * g**2 + g**3 * A.sum((2, 3), keepdim=True))
    weights = (alpha.nan_to_num() * g.relu()).sum((2, 3))
    paper = torch.einsum("bd,bdhw->bhw", weights, A)
    torch.testing.assert_close(found.double(), paper, rtol=1e-3, atol=1e-3 * float(paper.abs().max()))
    assert (found - with_epsilon).abs().max() > 0.05 * found.abs().max()


def test_an_epsilon_that_is_not_a_positive_number_is_refused() -> None:
    for wrong in (-1e-6, float("nan"), float("inf")):
        with pytest.raises(ValidationError, match="epsilon"):
            explainers.get("gradcampp").Parameters(epsilon=wrong)


class _Louder(nn.Module):
    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, inputs: Tensor) -> Tensor:
        return self.factor * self.network(inputs)


@pytest.mark.parametrize("network", NETWORKS)
def test_gradcampp_agrees_once_pytorch_grad_cams_constant_is_small_beside_the_gradients(network: str) -> None:
    """It adds 1e-6 to the denominator 2 g^2 + g^3 sum(A), where g^2 is often smaller than that."""
    with network_of(network) as (module, layer, classifier, batch):
        expected = raw(theirs.GradCAMPlusPlus, _Louder(module, 1e4), layer, batch.inputs)
        louder = Classifier(
            _Louder(module, 1e4), layer=f"network.{classifier.layer}", input_size=classifier.input_size
        )
        maps = ours("gradcampp", louder, batch).maps
    assert_near(maps, expected)


class _Zero(AblationLayer):
    """Takes away one channel a row, of tokens on all patches."""

    def set_next_batch(
        self, input_batch_index: int, activations: Tensor, num_channels_to_ablate: int
    ) -> None:
        self.rows = activations[[input_batch_index] * num_channels_to_ablate]

    def __call__(self, inputs: Tensor) -> Tensor:  # noqa: ARG002
        for row, channel in zip(self.rows, self.indices, strict=False):
            (row if row.ndim == 3 else row[1:].T)[channel] = 0
        return self.rows


@pytest.mark.parametrize("network", NETWORKS)
def test_ablationcam_agrees_once_a_negative_score_no_longer_turns_pytorch_grad_cams_map_around(
    network: str,
) -> None:
    """It divides by the score itself, so that a negative one swaps supporting and opposing channels.

    And where activations can be negative, as a transformer's, it writes -1e7 into a channel instead of the
    paper's zero, into the class token as well.
    """
    with network_of(network) as (module, layer, classifier, batch):
        maps = ours("ablationcam", classifier, batch).maps
        expected = raw(theirs.AblationCAM, module, layer, batch.inputs, ablation_layer=_Zero())
        sign = classifier.logits(batch.inputs).gather(1, batch.targets[:, None])[..., None].sign()
    assert_near(maps, sign * expected)


@pytest.mark.parametrize("network", NETWORKS)
def test_eigencam_projects_without_centring_which_pytorch_grad_cam_adds(network: str) -> None:
    """Centred, as in that library and not in the paper, projections sum to zero and have no natural sign."""
    with network_of(network) as (module, layer, classifier, batch):
        found = ours("eigencam", classifier, batch).maps
        centred = ours("eigencam", classifier, batch, centred=True).maps.double()
        expected = raw(theirs.EigenCAM, module, layer, batch.inputs).double()
        features = classifier.spatial(batch.activations).flatten(2).mT.double().numpy()
    for row, columns in enumerate(features):
        U, S, _ = np.linalg.svd(columns)
        own = U[:, 0] * S[0] * np.sign(U[:, 0].sum())
        np.testing.assert_allclose(found[row].flatten(), own, rtol=1e-3, atol=1e-3 * np.abs(own).max())
    assert (found.flatten(1).sum(1) > 0).all()
    # That library leaves the sign to its SVD; here the value with the largest magnitude is positive.
    flat = expected.flatten(1)
    sign = flat.gather(1, flat.abs().argmax(1, keepdim=True)).sign()[..., None]
    close = 1e-3 * float(expected.abs().max())
    torch.testing.assert_close(centred, sign * expected, rtol=1e-3, atol=close)


def test_channels_that_are_constant_leave_nothing_once_they_are_centred() -> None:
    activations = torch.full((1, 3, 2, 2), 0.1).double() * torch.tensor([1.0, 3, 7]).view(1, 3, 1, 1)
    with toys.linear(WEIGHT) as classifier:
        batch = toys.batch_of(classifier, activations)
        assert ours("eigencam", classifier, batch).statuses == [Status.CONSTANT]
        assert ours("eigencam", classifier, batch, centred=True).statuses == [Status.ALL_ZERO]


@pytest.mark.parametrize(
    ("network", "layer_name"), [("resnet18", "layer1"), ("vgg11", "features.1"), ("vit", None)]
)
def test_scorecam_agrees_once_pytorch_grad_cam_upsamples_like_everyone(
    network: str, layer_name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its masks are stretched so that corner cells' centres lie on the corners (align_corners=True)."""

    def upsampling(size: tuple[int, int]) -> nn.Module:
        return nn.Upsample(size=size, mode="bilinear", align_corners=False)

    monkeypatch.setattr(nn, "UpsamplingBilinear2d", upsampling)
    with network_of(network, layer_name) as (module, layer, classifier, batch):
        found = ours("scorecam", classifier, batch)
        monkeypatch.setattr("tqdm.tqdm", lambda chunks: chunks)
        expected = raw(theirs.ScoreCAM, module, layer, batch.inputs)
    assert_near(found.maps, expected)


# Closed forms

WEIGHT = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0]])


def made_up(seed: int = 0) -> Tensor:
    return torch.rand(2, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def for_class(batch: Batch, target: int) -> Batch:
    targets = torch.full_like(batch.targets, target)
    return Batch(batch.inputs, targets, batch.seeds, batch.activations, batch.forwards)


def test_behind_pooling_and_a_linear_layer_the_gradient_cams_are_cam_over_the_positions() -> None:
    activations = made_up()
    with toys.linear(WEIGHT) as classifier:
        batch = for_class(toys.batch_of(classifier, activations), 1)
        cam = ours("cam", classifier, batch).maps
        others = {
            name: ours(name, classifier, batch).maps
            for name in ("gradcam", "hirescam", "xgradcam", "shapleycam")
        }
    expected = -2 * activations[:, 0] + 3 * activations[:, 1] + activations[:, 2]
    torch.testing.assert_close(cam, expected.float())
    for name, maps in others.items():
        torch.testing.assert_close(4 * maps, cam, msg=name)


def test_layercam_and_gradcampp_there_leave_out_channels_that_oppose_the_class() -> None:
    activations = made_up()
    with toys.linear(WEIGHT) as classifier:
        batch = for_class(toys.batch_of(classifier, activations), 1)
        layercam = ours("layercam", classifier, batch).maps
        gradcampp = ours("gradcampp", classifier, batch).maps
    torch.testing.assert_close(layercam, ((3 * activations[:, 1] + activations[:, 2]) / 4).float())
    expected = torch.zeros(2, 2, 2, dtype=torch.float64)
    for channel, weight in ((1, 3 / 4), (2, 1 / 4)):
        total = activations[:, channel].sum((1, 2), keepdim=True)
        expected += 4 * weight / (2 + weight * total) * activations[:, channel]
    torch.testing.assert_close(gradcampp, expected.float())


@pytest.mark.parametrize(("off", "trusted"), [(1e-6, False), (-1e-6, False), (0.5, True)])
def test_a_map_of_gradcampp_that_rounding_could_turn_around_is_nan(off: float, trusted: bool) -> None:
    """The denominator of channel 1 is ``off``: its gradient is 3 / 4, and its sum is chosen so."""
    activations = made_up()
    activations[0, 1] *= (off - 2) * 4 / 3 / activations[0, 1].sum()
    with toys.linear(WEIGHT) as classifier:
        batch = for_class(toys.batch_of(classifier, activations), 1)
        maps = ours("gradcampp", classifier, batch).maps
    assert bool(maps[0].isfinite().all()) == trusted
    assert bool(maps[0].isnan().all()) != trusted
    assert bool(maps[1].isfinite().all())  # activations that are not negative have denominators of 2 or more


@pytest.mark.parametrize("bias", [0.0, -50.0])
def test_ablationcam_there_weighs_each_channels_term_over_the_size_of_the_score(bias: float) -> None:
    activations = made_up()
    with toys.linear(WEIGHT, torch.tensor([0.0, bias])) as classifier:
        batch = for_class(toys.batch_of(classifier, activations), 1)
        maps = ours("ablationcam", classifier, batch).maps
    terms = activations.mean((2, 3)) * WEIGHT[:, 1]
    weights = terms / (terms.sum(1, keepdim=True) + bias).abs()
    torch.testing.assert_close(maps, torch.einsum("bd,bdhw->bhw", weights, activations).float())


def test_ablationcam_by_passes_is_ablationcam_in_closed_form() -> None:
    with toys.conv_gap() as classifier:
        batch = toys.batch(classifier, 3, forwards=7)
        explainer = explainers.get("ablationcam")(classifier, None)
        closed = explainer.explain(batch).maps
        assert explainer.per_mean is not None
        explainer.per_mean = None
        torch.testing.assert_close(explainer.explain(batch).maps, closed, rtol=1e-4, atol=1e-5)


def test_shapleycam_subtracts_half_the_curvature() -> None:
    """The score m0^2 + 2 m0 m1 of the means has the gradient (2 m0 + 2 m1, 2 m0) / 4."""

    class Quadratic(nn.Module):
        def forward(self, means: Tensor) -> Tensor:
            score = means[:, 0] ** 2 + 2 * means[:, 0] * means[:, 1]
            return torch.stack([score, 0 * score], 1)

    activations = made_up()[:, :2]
    with toys.pooled(2, Quadratic()) as classifier:
        batch = for_class(toys.batch_of(classifier, activations), 0)
        maps = ours("shapleycam", classifier, batch).maps
    m = activations.mean((2, 3))
    gradient = torch.stack([2 * m[:, 0] + 2 * m[:, 1], 2 * m[:, 0]], 1) / 4
    # Of a quadratic score, the Hessian times the activations is the gradient itself: half of it is left.
    torch.testing.assert_close(maps, torch.einsum("bd,bdhw->bhw", gradient / 2, activations).float())


def test_scorecam_scores_each_image_through_each_channel_and_black_once_for_constant_channels() -> None:
    """A head that reads the masked pixels themselves: brightness in the left half."""

    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 3, 4, stride=4)

        def forward(self, inputs: Tensor) -> Tensor:
            left = self.features(inputs)[..., :1].mean((1, 2, 3))
            return torch.stack([left, -left], 1)

    network = Left()
    network.features.weight.data.fill_(1 / 48)
    network.features.bias.data.zero_()
    left_half, right_half = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[0.0, 2], [0, 2]])
    activations = torch.stack([left_half, right_half, torch.full((2, 2), 7.0)])[None]
    white = torch.ones(1, 3, 8, 8)
    with Classifier(network, layer="features", input_size=(8, 8)) as classifier:
        batch = Batch(white, torch.tensor([0]), torch.tensor([0]), activations)
        found = ours("scorecam", classifier, batch)
    # Bilinear from 2 to 8 columns: 1, 1, 7/8, 5/8, 3/8, 1/8, 0, 0.
    scores = torch.tensor([(1 + 1 + 7 / 8 + 5 / 8) / 4, (0 + 0 + 1 / 8 + 3 / 8) / 4, 0.0])
    expected = torch.einsum("d,dhw->hw", scores.softmax(0), activations[0])
    torch.testing.assert_close(found.maps[0], expected)
    assert found.details["forward_passes"].tolist() == [3]


def test_eigencam_of_one_pattern_is_that_pattern_at_its_size() -> None:
    pattern = torch.tensor([[1.0, 2.0], [0.0, 2.0]]).double()
    activations = torch.stack([3 * pattern, 0 * pattern, 4 * pattern])[None]
    with toys.linear(WEIGHT) as classifier:
        maps = ours("eigencam", classifier, toys.batch_of(classifier, activations)).maps
    torch.testing.assert_close(maps[0], (5 * pattern).float())


@pytest.mark.parametrize(
    "name",
    [
        "cam",
        "gradcampp",
        "hirescam",
        "xgradcam",
        "layercam",
        "shapleycam",
        "eigencam",
        "ablationcam",
        "scorecam",
    ],
)
def test_an_image_with_activations_that_are_not_finite_is_reported_alone(name: str) -> None:
    with toys.conv_gap() as classifier:
        batch = toys.batch(classifier, 3)
        assert batch.activations is not None
        activations = batch.activations.clone()
        activations[1, 0, 0, 0] = torch.nan
        found = ours(name, classifier, Batch(batch.inputs, batch.targets, batch.seeds, activations))
    assert found.statuses == [Status.OK, Status.NOT_FINITE, Status.OK]


@pytest.mark.parametrize("make", [toys.conv_gap, toys.vit])
def test_masked_channels_are_zero_on_all_patches_and_prefix_tokens_stay(
    make: Callable[[], Classifier],
) -> None:
    with make() as classifier:
        activations = toys.batch(classifier, 2).activations
        keep = torch.zeros(2, classifier.channels, dtype=torch.bool)
        keep[0, 3] = True
        masked = classifier.mask_channels(activations, keep)
        spatial, before = classifier.spatial(masked), classifier.spatial(activations)
        assert torch.equal(masked[:, : classifier.prefix_tokens], activations[:, : classifier.prefix_tokens])
    assert torch.equal(spatial[0, 3], before[0, 3])
    assert spatial.count_nonzero() == before[0, 3].count_nonzero()
