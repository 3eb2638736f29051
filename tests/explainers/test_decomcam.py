"""DecomCAM against a slow per-image version written from its description, and its parts in closed form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

import toys
from explainers import decomcam
from explainers.base import Batch, Explanation, Status
from explainers.decomcam import DecomCam, decompose, minmax_weights, notebook_weights
from explainers.models.classifier import Classifier
from explainers.models.clip import Clip
from rounding import TOYS, rounding

Array = NDArray[np.float64]


def explain(classifier: Classifier, batch: Batch, **parameters: object) -> Explanation:
    return DecomCam(classifier, DecomCam.Parameters(**parameters)).explain(batch)


# The slow version: one image at a time, in NumPy.


def cubic(distance: Array) -> Array:
    """Keys' kernel with a = -0.75."""
    x = np.abs(distance)
    near = 1.25 * x**3 - 2.25 * x**2 + 1
    far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def bicubic(image: Array, size: int) -> Array:
    """A square image upsampled, pixel centres at half numbers, border pixels repeated."""
    old = len(image)
    operator = np.zeros((size, old))
    for row in range(size):
        centre = (row + 0.5) * old / size - 0.5
        for source in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            operator[row, min(max(source, 0), old - 1)] += cubic(np.array(centre - source))
    return operator @ image @ operator.T


def gradient_by_hooks(classifier: Classifier, pixels: Tensor, target: int) -> tuple[Array, Array]:
    """Channel maps and their gradients (D, h, w) by one pass of the whole network, without the cut."""
    seen: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[0]

    name, _, side = classifier.layer.partition(":")
    layer = classifier.network.get_submodule(name)
    if side:
        handle = layer.register_forward_pre_hook(lambda module, args: (keep(args[0]),))
    else:
        handle = layer.register_forward_hook(lambda module, args, output: keep(output))
    try:
        classifier.logits(pixels[None])[0, target].backward()
    finally:
        handle.remove()
    maps = [classifier.spatial(tensor)[0].double().numpy() for tensor in (seen[0].detach(), seen[0].grad)]
    return maps[0], maps[1]


def slow(classifier: Classifier, pixels: Tensor, target: int, q: int, P: int, rule: str) -> dict[str, Array]:
    def score(image: Array) -> float:
        with torch.inference_mode():
            return float(classifier.logits(torch.from_numpy(image[None]).float())[0, target])

    A, G = gradient_by_hooks(classifier, pixels, target)
    alpha = G.mean((1, 2))
    kept = sorted(range(len(alpha)), key=lambda k: -alpha[k])[:P]
    X = np.stack([(alpha[k] * A[k]).ravel() for k in kept], axis=1)
    X = X - X.mean(0)
    U, S, _ = np.linalg.svd(X, full_matrices=False)
    image = pixels.double().numpy()
    size = image.shape[-1]
    g = np.stack([gaussian_filter(channel, 10, mode="reflect") for channel in image])
    components, H, d = [], [], []
    for i in range(q):
        column = U[:, i] if U[np.abs(U[:, i]).argmax(), i] > 0 else -U[:, i]
        components.append((column * S[i]).reshape(A.shape[1:]))
        H.append(bicubic(np.maximum(components[-1], 0), size))
        M = (H[-1] - H[-1].min()) / (H[-1].max() - H[-1].min())
        d.append(score(np.maximum(image * M, g * (1 - M))) - score(g))
    d = np.array(d)
    w = (d - d.min()) / (d.max() - d.min()) if rule == "minmax" else np.where(d < 0.01, 0, d / d.max())
    saliency = sum(w[i] * H[i] for i in range(q))
    return {
        "components": np.stack(components),
        "singular_values": S[:q],
        "d": d,
        "weights": w,
        "channels": np.array(kept),
        "saliency": saliency,
    }


@pytest.mark.parametrize("rule", ["minmax", "notebook"])
@pytest.mark.parametrize("name", toys.CLASSIFIERS)
def test_it_is_what_the_slow_version_computes(name: str, rule: str) -> None:
    with toys.CLASSIFIERS[name]() as classifier:
        batch = toys.batch(classifier, 3, forwards=5)
        found = explain(classifier, batch, channels=9, components=4, weights=rule)
        for row in range(3):
            expected = slow(classifier, batch.inputs[row], int(batch.targets[row]), 4, 9, rule)
            saliency = expected.pop("saliency")
            for key, values in expected.items():
                torch.testing.assert_close(
                    found.details[key][row].double(),
                    torch.from_numpy(values).double(),
                    rtol=1e-3,
                    atol=1e-4,
                    msg=key,
                )
            upsampled = bicubic(found.maps[row].double().numpy(), toys.SIZE)
            np.testing.assert_allclose(upsampled, saliency, rtol=1e-3, atol=1e-4)


def test_an_image_costs_one_pass_for_each_component_and_one_for_the_blurred_input() -> None:
    with toys.conv_mlp() as classifier:
        rows: list[int] = []
        first = next(m for m in classifier.network.modules() if isinstance(m, nn.Conv2d))
        batch = toys.batch(classifier, 3, forwards=8)
        assert classifier.grid  # asking for it takes passes once
        handle = first.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
        found = explain(classifier, batch, components=5)
        handle.remove()
    assert found.details["forward_passes"].tolist() == [6, 6, 6]
    assert sum(rows) == 3 * 6
    assert rows == [8, 8, 2]


# The decomposition


def random_maps(seed: int = 0) -> Tensor:
    return torch.randn(3, 20, 7, 7, generator=torch.Generator().manual_seed(seed))


def test_components_are_orthogonal_and_as_long_as_their_singular_values() -> None:
    components, singular_values = decompose(random_maps(), 10)
    flat = components.flatten(2)
    expected = torch.diag_embed(singular_values**2)
    assert ((flat @ flat.mT - expected).abs().amax() / expected.amax()).item() < 1e-5
    assert bool((singular_values.diff() <= 0).all())


def test_the_centred_maps_are_the_sum_of_their_projections_on_all_components() -> None:
    maps = random_maps()
    centred = (maps - maps.mean((2, 3), keepdim=True)).flatten(2)
    components, singular_values = decompose(maps, 20)
    directions = components.flatten(2) / singular_values[..., None]
    rebuilt = centred @ directions.mT @ directions
    assert ((rebuilt - centred).abs().amax() / centred.abs().amax()).item() < 1e-5


def test_two_planted_patterns_come_back_with_their_largest_entries_positive() -> None:
    left = torch.zeros(6, 6)
    left[:, :3], left[:, 3:] = -1.0, 1.0
    left[2, 1] = -3.0  # the entry of largest magnitude is to be positive: this pattern is flipped
    top = torch.zeros(6, 6)
    top[0], top[5] = 2.0, -1.9
    left, top = left - left.mean(), top - top.mean()
    top -= left * (top * left).sum() / (left * left).sum()
    shares = torch.linalg.qr(torch.randn(12, 2, generator=torch.Generator().manual_seed(3)))[0]
    maps = 5 * shares[:, 0, None, None] * left + shares[:, 1, None, None] * top
    components, singular_values = decompose(maps[None], 4)
    torch.testing.assert_close(components[0, 0], -5 * left, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(components[0, 1], top, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(singular_values[0, 1], top.norm())
    assert components[0, 2:].count_nonzero() == 0, "what lies beyond the rank is no component"
    assert singular_values[0, 2:].count_nonzero() == 0


def test_the_sign_does_not_depend_on_that_of_the_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = random_maps()
    expected, _ = decompose(maps, 10)
    original = decomcam.svd

    def flipped(matrices: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        U, S = original(matrices, size)
        return -U, S

    monkeypatch.setattr(decomcam, "svd", flipped)
    assert torch.equal(decompose(maps, 10)[0], expected)


# Weights


def test_the_figures_weights_are_the_gains_between_their_smallest_and_largest() -> None:
    d = torch.tensor([[2.0, -2.0, 0.0], [0.5, 0.5, 0.5]])
    everything = torch.ones_like(d, dtype=torch.bool)
    assert minmax_weights(d, everything).tolist() == [[1.0, 0.0, 0.5], [1.0, 1.0, 1.0]]


def test_components_that_are_not_there_weigh_nothing_and_do_not_move_the_others() -> None:
    d = torch.tensor([[-3.0, -1.0, 0.0, 0.0], [-3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    there = torch.tensor([[True, True, False, False], [True, False, False, False], [False] * 4])
    assert minmax_weights(d, there).tolist() == [[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0] * 4]


@pytest.mark.parametrize("rule", [minmax_weights, notebook_weights])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_gain_that_is_not_finite_leaves_no_weight_of_its_image(
    rule: Callable[[Tensor, Tensor], Tensor], broken: float
) -> None:
    d = torch.tensor([[broken, 1.0, 2.0], [0.5, 1.0, 0.75]])
    weights = rule(d, torch.ones_like(d, dtype=torch.bool))
    assert weights[0].isnan().all()
    assert weights[1].isfinite().all()


def test_the_notebooks_weights_are_gains_over_the_largest_and_small_gains_count_nothing() -> None:
    d = torch.tensor([[2.0, -2.0, 0.009], [0.5, 0.25, 0.01], [0.0, -1.0, 0.009]])
    expected = torch.tensor([[1.0, 0, 0], [1.0, 0.5, 0.02], [0, 0, 0]])
    torch.testing.assert_close(notebook_weights(d, torch.ones_like(d, dtype=torch.bool)), expected)


# Channels and degenerate cases


def retargeted(batch: Batch, target: int) -> Batch:
    return Batch(batch.inputs, torch.full_like(batch.targets, target), batch.seeds, batch.activations)


def test_of_equal_gradient_weights_the_lowest_channels_are_kept_and_negative_ones_come_last() -> None:
    weight = torch.tensor([[-5.0], [1.0], [3.0], [1.0], [1.0]]).repeat(1, 2)
    with toys.linear(weight) as classifier:
        batch = toys.batch(classifier, 2)
        kept = explain(classifier, batch, channels=3).details["channels"]
        all_kept = explain(classifier, batch, channels=500).details["channels"]
    assert kept.tolist() == [[2, 1, 3]] * 2
    assert all_kept.tolist() == [[2, 1, 3, 4, 0]] * 2


def test_a_class_without_gradient_has_a_map_of_zero_and_equal_weights() -> None:
    weight = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    with toys.linear(weight) as classifier:
        found = explain(classifier, retargeted(toys.batch(classifier, 2), 1))
    assert found.statuses == [Status.ALL_ZERO] * 2
    assert found.details["d"].count_nonzero() == 0
    assert found.details["weights"].count_nonzero() == 0
    assert found.details["forward_passes"].tolist() == [1, 1]


def test_no_gain_worth_a_weight_by_the_notebooks_rule_is_a_map_of_zero() -> None:
    class Blind(nn.Module):
        def forward(self, means: Tensor) -> Tensor:
            return 1e-6 * means

    with toys.pooled(3, Blind()) as classifier:
        found = explain(classifier, toys.batch(classifier, 2), weights="notebook")
    assert found.statuses == [Status.ALL_ZERO] * 2


def test_an_image_with_activations_that_are_not_finite_is_reported_alone() -> None:
    with toys.conv_gap() as classifier:
        batch = toys.batch(classifier, 3)
        assert batch.activations is not None
        activations = batch.activations.clone()
        activations[1, 0, 0, 0] = torch.nan
        broken = Batch(batch.inputs, batch.targets, batch.seeds, activations)
        found, whole = explain(classifier, broken), explain(classifier, batch)
    assert found.statuses == [Status.OK, Status.NOT_FINITE, Status.OK]
    torch.testing.assert_close(found.maps[[0, 2]], whole.maps[[0, 2]], rtol=1e-4, atol=TOYS)


@pytest.mark.parametrize("grid", [3, 7, 14])
def test_maps_that_are_constant_have_no_component_however_they_round(grid: int) -> None:
    levels = torch.randn(4, 30, 1, 1, generator=torch.Generator().manual_seed(grid)) * 100
    components, singular_values = decompose(levels.expand(-1, -1, grid, grid), 8)
    assert components.count_nonzero() == 0
    assert singular_values.count_nonzero() == 0


def test_scores_that_are_not_finite_make_a_map_that_is_not() -> None:
    class Fragile(nn.Module):
        """Breaks on anything dark."""

        limit = -1.0

        def forward(self, means: Tensor) -> Tensor:
            return torch.where(means[:, :1] < self.limit, torch.nan, means)

    with toys.pooled(3, Fragile()) as classifier:
        classifier.network.head.limit = 0.3
        classifier.network.features[0].weight.data.fill_(1 / 48)
        classifier.network.features[0].bias.data.zero_()
        pixels = torch.full((1, 3, 8, 8), 0.2)
        pixels[..., :6, :] = 1.0
        activations = classifier.activations(pixels)
        assert activations.isfinite().all()
        assert classifier.head(activations).isfinite().all()
        found = explain(classifier, Batch(pixels, torch.tensor([0]), torch.tensor([0]), activations))
        dark = Batch(0.3 * pixels, torch.tensor([0]), torch.tensor([0]), activations)
        broken = explain(classifier, dark)
    assert found.statuses == [Status.OK]
    assert broken.statuses == [Status.NOT_FINITE]


def test_grids_smaller_than_the_components_asked_for_give_fewer() -> None:
    with toys.linear(torch.eye(30)) as classifier:
        explainer = DecomCam(classifier, DecomCam.Parameters())
        assert explainer.describe().details["components"].shape == (3, 2, 2)
        assert explainer.explain(toys.batch(classifier, 2)).details["components"].shape == (2, 3, 2, 2)


def test_scores_of_a_clip_like_model_are_cosine_similarities_whatever_its_logit_scale() -> None:
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 6, 4, stride=4)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.features(inputs).relu().mean((2, 3))

    embeddings = nn.functional.normalize(torch.randn(2, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    tower, found = Tower(), []
    for scale in (1.0, 20.0):
        network = Clip(tower, embeddings, logit_scale=scale, text_fingerprint=bytes(32))
        with Classifier(network, layer="visual.features", input_size=(8, 8)) as classifier:
            found.append(explain(classifier, retargeted(toys.batch(classifier, 2), 0)))
    # Convolutions of 48 products, means of 4, and twice 6 products; weights are gains over their range.
    gains = found[0].details["d"]
    close = rounding(48 + 4 + 6 + 6, magnitude=float(1 / (gains.amax(1) - gains.amin(1)).min()))
    for key in ("components", "d", "weights"):
        torch.testing.assert_close(found[1].details[key], found[0].details[key], rtol=1e-4, atol=close)
    assert found[0].details["d"].abs().max() <= 2
