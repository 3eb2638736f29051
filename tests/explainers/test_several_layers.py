"""Several target layers: the mean of their maps, in closed form and beside pytorch-grad-cam's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import pytorch_grad_cam as theirs
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

import toys
from explainers.base import OF_LAYER, Batch, Description, Detail, Explanation, Need, Parameters, Status
from explainers.models.classifier import Classifier
from explainers.models.compute import Compute
from explainers.models.model_spec import ModelSpec
from explainers.models.probes_at_load import probe
from explainers.registry import explainers
from explainers.requirements import unmet
from explainers.several_layers import make_explainer
from tasks.in_memory import explain, score

LAYERS = ("features.1", "features")  # 16x16 and 4x4 cells
OF_ONE_LAYER = {"ddcam", "decomcam"}


def conv_mlp(layer: Any) -> Classifier:
    with toys.conv_mlp() as one:
        network = one.network
    return Classifier(network, layer=layer, input_size=(toys.SIZE, toys.SIZE))


@pytest.fixture
def both() -> Iterator[Classifier]:
    with conv_mlp(LAYERS) as classifier:
        yield classifier


def explained(name: str, classifier: Classifier, batch: Batch) -> Explanation:
    cls = explainers.get(name)
    return make_explainer(cls, classifier, cls.Parameters(**toys.SMALL.get(name, {}))).explain(batch)


def on(grid: tuple[int, int], maps: Tensor) -> Tensor:
    """Maps over their largest magnitudes on another grid, each cell by hand: NumPy's linear interpolation."""
    found = np.zeros((len(maps), *grid))
    for row, one in enumerate(maps.double().numpy()):
        centres = [(np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(grid, one.shape, strict=True)]
        down = np.stack([np.interp(centres[0], range(one.shape[0]), column) for column in one.T], 1)
        found[row] = np.stack([np.interp(centres[1], range(one.shape[1]), line) for line in down])
        found[row] /= np.abs(one).max()
    return torch.from_numpy(found)


def served() -> list[str]:
    """Every explainer that reads a layer, for which the network has what it needs at both layers."""
    with conv_mlp(LAYERS) as classifier:
        of_layers = [name for name in explainers.names() if explainers.get(name).needs & OF_LAYER]
        return [name for name in of_layers if unmet(explainers.get(name).needs, classifier) is None]


@pytest.mark.parametrize("name", sorted(set(served()) - OF_ONE_LAYER))
def test_the_map_is_the_mean_of_the_layers_maps_over_their_magnitudes_on_the_finest_grid(name: str) -> None:
    with conv_mlp(LAYERS) as classifier:
        batch = toys.batch(classifier, 3)
        found = explained(name, classifier, batch)
    alone = []
    for layer in LAYERS:
        with conv_mlp(layer) as classifier:
            own = replace(batch, activations=classifier.activations(batch.inputs))
            alone.append(explained(name, classifier, own))
    assert [each.maps.shape[1:] for each in alone] == [(16, 16), (4, 4)]
    expected = (on((16, 16), alone[0].maps) + on((16, 16), alone[1].maps)) / 2
    torch.testing.assert_close(found.maps.double(), expected, rtol=1e-4, atol=1e-5)
    assert found.statuses == [Status.OK] * 3
    assert found.details.keys() == alone[0].details.keys()
    for key in found.details:
        assert torch.equal(found.details[key], alone[0].details[key] + alone[1].details[key])


@pytest.mark.parametrize("name", sorted(OF_ONE_LAYER))
def test_an_explainer_that_describes_one_layer_is_refused_in_one_line(both: Classifier, name: str) -> None:
    told = r"^it describes one layer \(\w+\), .* model\.layer names 2: features\.1, features; name one"
    with pytest.raises(ValueError, match=told) as refused:
        explained(name, both, toys.batch(both, 1))
    assert "\n" not in str(refused.value)


def test_tokens_are_laid_on_their_grid_at_each_layer() -> None:
    network = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=5)
    layers = ("blocks.1:input", "blocks.2:input")
    with Classifier(network, layer=layers, input_size=(32, 32)) as classifier:
        inputs = toys.inputs(2)
        found = explain(classifier, inputs, "gradcam", targets=1).maps
        apart = [explain(each, inputs, "gradcam", targets=1).maps for each in classifier.at_each_layer]
    assert not torch.allclose(apart[0], apart[1], rtol=0.1)
    scaled = [maps / maps.abs().amax((1, 2), keepdim=True) for maps in apart]
    torch.testing.assert_close(found, (scaled[0] + scaled[1]) / 2)


def test_explainers_that_need_no_layer_do_not_care(both: Classifier) -> None:
    with conv_mlp("features") as one:
        batch = replace(toys.batch(one, 2), activations=None)
        expected = explained("rise", one, batch)
    found = explained("rise", both, batch)
    assert torch.equal(found.maps, expected.maps)
    assert both.layer_in_use is None


def test_what_needs_one_layer_is_refused_wherever_it_asks(both: Classifier) -> None:
    for asks in ("layer", "grid", "units", "channels", "layout", "way"):
        told = r"^model\.layer: one layer is needed here, and 2 are named: features\.1, features; name one"
        with pytest.raises(ValueError, match=told):
            getattr(both, asks)


def test_a_need_has_to_be_met_at_each_layer() -> None:
    with toys.conv_gap() as one:
        network = one.network
    with Classifier(network, layer=("features.1", "features"), input_size=(32, 32)) as classifier:
        assert unmet(explainers.get("gradcam").needs, classifier) is None
        assert str(unmet(explainers.get("cam").needs, classifier)).endswith("behind 'features.1' is not")


# Activations at several layers


def test_activations_are_in_one_row_layer_by_layer_and_the_last_ones_give_the_logits(
    both: Classifier,
) -> None:
    inputs = toys.inputs(3)
    rows = both.activations(inputs)
    assert rows.shape == (3, *both.activation_shape) == (3, 8 * 16 * 16 + 12 * 4 * 4)
    parts = both.split(rows)
    for each, part in zip(both.at_each_layer, parts, strict=True):
        assert torch.equal(part, each.activations(inputs))
        torch.testing.assert_close(each.head(part), both.logits(inputs))
    torch.testing.assert_close(both.head(rows), both.logits(inputs))
    assert both.layer_in_use == both.layers == LAYERS


def test_all_layers_are_computed_as_the_classifier_is_told_and_closed_with_it() -> None:
    both = conv_mlp(LAYERS)
    network = both.network
    with closing(both):
        whole = both.activations(toys.inputs(1))
        both.use(Compute(precision="bfloat16"))
        lowered = both.activations(toys.inputs(1))
        assert {each.compute.precision for each in both.at_each_layer} == {"bfloat16"}
        for one, other in zip(both.split(whole), both.split(lowered), strict=True):
            assert 0 < float((one - other).abs().max()) < 0.1 * float(one.abs().max())
    assert all(parameter.requires_grad for parameter in network.parameters())


# Maps that are not plain


class _Given:
    """Gives the maps and statuses that the test says, by the number of cells of the layer."""

    name: ClassVar[str] = "given"
    title: ClassVar[str] = "given"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})
    Parameters: ClassVar[type[Parameters]] = Parameters
    maps: ClassVar[dict[tuple[int, int], tuple[Tensor, Status]]] = {}
    details: ClassVar[dict[str, Detail]] = {}

    def __init__(self, classifier: Classifier, parameters: Parameters) -> None:  # noqa: ARG002
        self.grid = classifier.grid

    def describe(self) -> Description:
        return Description(self.grid, self.details)

    def explain(self, batch: Batch) -> Explanation:
        maps, status = self.maps[self.grid]
        return Explanation(maps.expand(len(batch), *self.grid).clone(), [status] * len(batch))


def given(
    both: Classifier,
    monkeypatch: pytest.MonkeyPatch,
    fine: Tensor,
    coarse: Tensor,
    status: Status = Status.OK,
) -> Explanation:
    monkeypatch.setattr(_Given, "maps", {(16, 16): (fine, Status.OK), (4, 4): (coarse, status)})
    return make_explainer(_Given, both, Parameters()).explain(toys.batch(both, 1))


def test_signs_stay_layers_count_alike_and_a_map_of_zeros_counts_as_zero(
    both: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine, coarse = torch.zeros(16, 16), torch.full((4, 4), -0.01)
    fine[0, 0], fine[0, 1] = 100.0, -50.0
    found = given(both, monkeypatch, fine, coarse)
    expected = torch.full((16, 16), -0.5)
    expected[0, 0], expected[0, 1] = 0.0, -0.75
    torch.testing.assert_close(found.maps[0], expected)
    found = given(both, monkeypatch, fine, torch.zeros(4, 4))
    torch.testing.assert_close(found.maps[0], fine / 200)
    found = given(both, monkeypatch, torch.zeros(16, 16), torch.zeros(4, 4))
    assert (found.statuses, bool(found.maps.any())) == ([Status.ALL_ZERO], False)


def test_a_map_that_is_not_finite_or_failed_at_one_layer_is_so_in_the_mean(
    both: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    ramp = torch.arange(16.0).view(4, 4)
    for wrong in (torch.nan, torch.inf):
        fine = torch.ones(16, 16)
        fine[3, 3] = wrong
        assert given(both, monkeypatch, fine, ramp).statuses == [Status.NOT_FINITE]
    assert given(both, monkeypatch, torch.ones(16, 16), ramp, Status.FAILED).statuses == [Status.FAILED]
    assert given(both, monkeypatch, torch.ones(16, 16), ramp).statuses == [Status.OK]


def test_a_map_does_not_depend_on_its_batch(both: Classifier) -> None:
    batch = toys.batch(both, 3)
    whole = explained("gradcam", both, batch)
    assert batch.activations is not None
    for row in range(3):
        own = [row]
        alone = Batch(batch.inputs[own], batch.targets[own], batch.seeds[own], batch.activations[own])
        torch.testing.assert_close(explained("gradcam", both, alone).maps[0], whole.maps[row])
    with torch.inference_mode():
        assert torch.equal(explained("gradcam", both, batch).maps, whole.maps)


# Beside pytorch-grad-cam


class _Positive(nn.Module):
    """Two layers whose Grad-CAMs are not negative and zero somewhere: one cell per pixel, and 4x4 cells."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(5, 6, 4, stride=4, bias=False), nn.ReLU())
        self.fc = nn.Linear(6, 4)
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            parameter.data = torch.rand(parameter.shape, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(self.second(self.first(inputs)).mean((2, 3)))


def by_pytorch_grad_cam(network: nn.Module, layers: tuple[str, ...], inputs: Tensor, target: int) -> Tensor:
    network.requires_grad_()
    modules = [network.get_submodule(layer) for layer in layers]
    with theirs.GradCAM(network, modules) as cam:
        return torch.from_numpy(cam(inputs, [ClassifierOutputTarget(target)] * len(inputs))).double()


def shown(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps as they are read: ReLU, upsampled, and scaled to [0, 1]."""
    return scaled(F.interpolate(maps.double().relu()[:, None], size, mode="bilinear")[:, 0])


def scaled(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


def test_where_no_map_is_negative_the_mean_is_pytorch_grad_cams() -> None:
    inputs = toys.inputs(2, 16)
    inputs[:, :, :, :8] = 0  # no activations there, so that each map is zero somewhere
    with Classifier(_Positive(), layer=("first", "second"), input_size=(16, 16)) as classifier:
        maps = explain(classifier, inputs, "gradcam", targets=2).maps
    expected = by_pytorch_grad_cam(_Positive().eval(), ("first", "second"), inputs, 2)
    assert float(maps.min()) >= 0
    assert float(expected[:, 3:13, 9:15].std()) > 0.02
    torch.testing.assert_close(shown(maps, (16, 16)), expected, rtol=1e-4, atol=1e-4)


def test_where_maps_have_both_signs_the_mean_of_their_positive_parts_is_pytorch_grad_cams(
    both: Classifier,
) -> None:
    """CHOICE: that library clips each layer before the mean, and here the mean is clipped when it is read."""
    inputs = toys.inputs(4)
    maps = explain(both, inputs, "gradcam", targets=2).maps
    expected = by_pytorch_grad_cam(both.network, LAYERS, inputs, 2)
    apart = [explain(each, inputs, "gradcam", targets=2).maps for each in both.at_each_layer]
    assert all(float(each.min()) < 0 < float(each.max()) for each in apart)
    clipped = [on((32, 32), scaled(each.double().relu())).float() for each in apart]
    their_way = scaled(torch.stack(clipped).double().mean(0))
    torch.testing.assert_close(their_way, expected, rtol=1e-3, atol=1e-3)
    assert float((shown(maps, both.input_size) - expected).abs().max()) > 0.1


# Names


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ([], "must be the name of a layer, or a list of names"),
        ([""], "must be the name of a layer, or a list of names"),
        ("", "must be the name of a layer, or a list of names"),
        ([3], "must be the name of a layer, or a list of names"),
        ([None], "must be the name of a layer, or a list of names"),
        ([None, "features"], "must be the name of a layer, or a list of names"),
        (3, "must be the name of a layer, or a list of names"),
        (["features", None], "must be the name of a layer, or a list of names"),
        (["features", "features"], "names 'features' twice; name each layer once"),
    ],
)
def test_wrong_names_are_refused_in_one_line(wrong: Any, told: str) -> None:
    with pytest.raises(ValueError, match=rf"layer\n  Value error, {told}"):
        ModelSpec(source="timm", layer=wrong)
    with pytest.raises(ValueError, match=f"^layer: {told}$"):
        conv_mlp(wrong)


def test_a_list_of_one_is_the_layer_and_every_name_of_a_list_has_to_exist() -> None:
    assert ModelSpec(source="timm", layer=["a"]) == ModelSpec(source="timm", layer="a")  # type: ignore[arg-type]
    assert ModelSpec.model_validate_json('{"source": "timm", "layer": ["a", "b"]}').layer == ("a", "b")
    with conv_mlp(("features",)) as classifier:
        assert (classifier.layer, classifier.layers) == ("features", ("features",))
    with pytest.raises(ValueError, match=r"^model\.layer: the network has no layer 'feature'; close are"):
        conv_mlp(("features", "feature"))


# Probes, and the door


def test_each_layer_is_asked_the_probes(both: Classifier) -> None:
    seen = probe(both, of_layers=True)
    assert seen.keys() == {"head", "cells", "patch"}
    for told in seen.values():
        assert told.startswith("features.1: ")
        assert "; features: " in told
    with conv_mlp(("features", "classifier.0")) as classifier:
        with pytest.raises(ValueError, match=r"^model\.layer: cannot explain 'classifier\.0': "):
            probe(classifier, of_layers=True)
        assert "head" not in probe(classifier, of_layers=False)


def test_the_probes_of_all_layers_share_the_logits_of_their_inputs(
    both: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []

    def logits(self: Classifier, inputs: torch.Tensor) -> torch.Tensor:
        passes.append(len(inputs))
        return whole(self, inputs)

    whole = Classifier.logits
    monkeypatch.setattr(Classifier, "logits", logits)
    probe(both, of_layers=True)
    assert passes == [4]


def test_the_door_scores_maps_of_several_layers_and_explains_them_again(
    both: Classifier, tmp_path: Path
) -> None:
    inputs = toys.inputs(2)
    found = explain(both, inputs, "gradcam")
    assert found.maps.shape == (2, 16, 16)
    assert torch.equal(explain(both, inputs, "gradcam").maps, found.maps)
    values = score(both, inputs, found, "sensitivity", radius=1e-6).values
    assert all(bool((value < 1e-2).all()) for value in values.values())
    drawn = score(both, inputs, found, "randomisation").values  # explains copies with other weights
    assert drawn
    assert all(bool(value.isfinite().all()) for value in drawn.values())
