"""P-TAME's head, loss and file: sizes as released, the loss by hand, and what a head refuses to explain."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

import toys
from explainers.models.auxiliary import Auxiliary
from explainers.models.classifier import Classifier
from explainers.models.ptame_head import Head, load_head
from explainers.models.tensors import TensorClassifier
from explainers.ptame import PTame
from explainers.registry import explainers
from sequences import LinearSeries
from tasks.training.loss import LossWeights, losses


def explainer_of(head: Path, classifier: object) -> PTame:
    return PTame(classifier, PTame.Parameters(head=head))


def test_the_head_of_resnet18_and_a_thousand_classes_has_the_released_size() -> None:
    auxiliary = Auxiliary(models.resnet18())
    shapes = auxiliary.shapes((224, 224))
    assert shapes == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]
    head = Head([channels for channels, _, _ in shapes], 1000)
    assert sum(parameter.numel() for parameter in head.parameters()) == 1_311_040


@pytest.mark.parametrize(
    ("network", "taps", "channels"),
    [
        ("mobilenet_v3_small", [f"features.{i}" for i in range(9, 13)], [96, 96, 96, 576]),
        ("mnasnet0_5", [f"layers.{i}" for i in range(13, 17)], [160, 160, 1280, 1280]),
    ],
)
def test_taps_of_the_other_released_networks_are_known(
    network: str, taps: list[str], channels: list[int]
) -> None:
    auxiliary = Auxiliary(models.get_model(network))
    assert list(auxiliary.taps) == taps
    shapes = auxiliary.shapes((64, 64))
    assert [len(shape) for shape in shapes] == [3] * 4
    if network == "mobilenet_v3_small":
        assert [shape[0] for shape in shapes] == channels


def test_features_are_the_taps_outputs_and_leave_no_hook() -> None:
    network = toys.tapped().train()
    pixels = toys.inputs(2)
    with Auxiliary(network, toys.TAPS) as auxiliary:
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
        found = auxiliary.features(pixels)
        expected = pixels
        for block, feature in zip(network.blocks, found, strict=True):
            expected = block(expected)
            torch.testing.assert_close(feature, expected)
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_what_follows_a_tap_does_not_write_into_it() -> None:
    """MNASNet's layers.16 rectifies layers.15 in place."""
    normed, rectified = Auxiliary(models.mnasnet0_5(), ["layers.15", "layers.16"]).features(
        torch.rand(1, 3, 32, 32)
    )
    assert float(normed.min()) < 0
    assert torch.equal(normed.relu(), rectified)


def test_nothing_runs_behind_the_last_tap() -> None:
    network = toys.tapped()
    ran = []
    for name, block in network.blocks.named_children():
        block.register_forward_hook(lambda *_, name=name: ran.append(name))
    Auxiliary(network, ["blocks.1", "blocks.0"]).features(toys.inputs(2))
    assert ran == ["0", "1"]


def test_a_refused_network_is_left_as_it_was() -> None:
    network = toys.tapped()
    with pytest.raises(ValueError, match="has no module"):
        Auxiliary(network, ["blocks.7"])
    assert network.training
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(
    ("network", "taps", "told"),
    [
        (toys.tapped, None, "auxiliary.taps: none are known for Tapped; name the modules"),
        (toys.tapped, ["blocks.7"], "auxiliary.taps: Tapped has no module 'blocks.7'"),
        (toys.tapped, ["blocks.2", "blocks.0"], "auxiliary.taps: the maps of blocks.0 are larger"),
        (lambda: models.get_model("squeezenet1_0"), ["classifier"], None),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), ["1"], r"1 gives \(4,\), not maps"),
    ],
)
def test_wrong_taps_are_refused(network, taps: list[str] | None, told: str | None) -> None:
    if told is None:
        assert Auxiliary(network(), taps).shapes((64, 64))
        return
    with pytest.raises(ValueError, match=told):
        Auxiliary(network(), taps).shapes((32, 32))


class Peculiar(nn.Module):
    """Has a module that it never runs, one that gives a pair, and takes 32 pixels alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.idle = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.pool = nn.MaxPool2d(2, return_indices=True)

    def forward(self, pixels: Tensor) -> Tensor:
        assert pixels.shape[-1] == 32, "Input height (64) doesn't match model (32)."
        return self.pool(self.body(pixels))[0]


@pytest.mark.parametrize(
    ("taps", "size", "told"),
    [
        (["body", "idle"], 32, "^auxiliary.taps: Peculiar does not run idle; name modules that it runs$"),
        (["pool"], 32, "^auxiliary.taps: pool gives a tuple, not maps; name a convolution$"),
        (["body"], 64, r"^auxiliary: Peculiar does not take 64x64 pixels \(Input height \(64\) .*; choose"),
    ],
)
def test_networks_that_cannot_be_read_so_are_refused_in_one_line(
    taps: list[str], size: int, told: str
) -> None:
    with pytest.raises(ValueError, match=told) as refusal:
        Auxiliary(Peculiar(), taps).shapes((size, size))
    assert "\n" not in str(refusal.value)


def features(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, c, s, s, generator=generator) for c, s in ((4, 16), (6, 8), (8, 4))]


def test_chosen_classes_have_the_maps_they_have_among_all() -> None:
    head = Head([4, 6, 8], 5).eval()
    every = head(features(), torch.arange(5))
    assert every.shape == (3, 5, 16, 16)
    common, own = torch.tensor([3, 0, 3]), torch.tensor([[1], [4], [1]])
    torch.testing.assert_close(head(features(), common), every[:, common])
    torch.testing.assert_close(
        head(features(), own), every.gather(1, own[..., None, None].expand(3, 1, 16, 16))
    )


def test_a_head_is_convolutions_norms_skips_and_doublings() -> None:
    """The page once more, tap by tap, with the norms in use."""
    head = Head([4, 6, 8], 5)
    head(features(1), torch.arange(5))  # running means away from zero
    head.eval()
    joined = []
    for tap, convolution, norm in zip(features(), head.convolutions, head.norms, strict=True):
        out = norm(nn.functional.conv2d(tap, convolution.weight, convolution.bias)) + tap
        out = out.clamp(min=0)
        while out.shape[-1] < 16:
            out = nn.functional.interpolate(out, scale_factor=2, mode="bilinear", align_corners=False)
        joined.append(out)
    expected = head.classes(torch.cat(joined, 1))
    torch.testing.assert_close(head(features(), torch.arange(5)), expected)


def test_sides_that_are_no_powers_of_two_apart_meet_the_first_ones() -> None:
    head = Head([4, 6], 2)
    taps = [torch.randn(2, 4, 14, 14), torch.randn(2, 6, 5, 5)]
    assert head(taps, torch.arange(2)).shape == (2, 2, 14, 14)


def slow_loss(logits: Tensor, targets: list[int], maps: Tensor, weights: LossWeights) -> float:
    """Loops over everything."""
    B, _, H, W = maps.shape
    ce = -sum(float(logits[b].log_softmax(0)[t]) for b, t in enumerate(targets)) / B
    values = [float(v) for v in maps.flatten()]
    if weights.power == 1:
        area = sum(values) / len(values)
    else:
        area = sum((v + 0.0005) ** weights.power for v in values) / len(values)
    tv = 0.0
    for one in maps.flatten(0, 1).tolist():
        for y in range(H):
            for x in range(W):
                tv += (one[y][x] - one[y - 1][x]) ** 2 if y else 0.0
                tv += (one[y][x] - one[y][x - 1]) ** 2 if x else 0.0
                edges = (y == 0) + (y == H - 1) + (x == 0) + (x == W - 1)
                tv += weights.border * edges * one[y][x] ** 2
    return weights.ce * ce + weights.area * area + weights.tv * tv / (2 * B)


@pytest.mark.parametrize("power", [0.3, 1.0])
@pytest.mark.parametrize("border", [0.0, 0.3])
def test_the_loss_is_the_one_by_hand(power: float, border: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, maps = torch.randn(3, 4, generator=generator), torch.rand(3, 3, 5, 6, generator=generator)
    weights = LossWeights(1.5, 2.0, 0.7, power, border)
    found = losses(logits.log_softmax(1), torch.tensor([2, 0, 2]), maps, weights)
    assert float(found.total) == pytest.approx(slow_loss(logits, [2, 0, 2], maps, weights), rel=1e-5)
    assert float(found.mask_area) == pytest.approx(float(torch.stack([maps[i, i] for i in range(3)]).mean()))


def test_maps_are_the_heads_for_each_target_stretched_or_as_in_training(tmp_path: Path) -> None:
    with toys.conv_mlp() as classifier:
        head = toys.untrained_head(classifier, tmp_path / "head.safetensors").eval()
        batch = toys.batch(classifier, 5, forwards=2)
        path = tmp_path / "head.safetensors"
        found = explainer_of(path, classifier).explain(batch)
        masks = PTame(classifier, PTame.Parameters(head=path, output="sigmoid")).explain(batch)
        auxiliary = Auxiliary(toys.tapped(), toys.TAPS)
        with torch.no_grad():
            every = head(auxiliary.features(classifier.normalised(batch.inputs)), torch.arange(5))
    for saliency, mask, one, target in zip(found.maps, masks.maps, every, batch.targets, strict=True):
        raw = one[target]
        torch.testing.assert_close(saliency, (raw - raw.min()) / (raw.max() - raw.min()))
        torch.testing.assert_close(mask, 1 / (1 + (-raw).exp()))


def test_a_head_comes_back_from_its_file_with_its_auxiliary_weights(tmp_path: Path) -> None:
    """Weights that no source has lie in the file itself."""
    with toys.conv_mlp() as classifier:
        path = tmp_path / "head.safetensors"
        head = toys.untrained_head(classifier, path)
        loaded, config, auxiliary = load_head(path)
        assert not loaded.training
        for name, value in head.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)
        assert config.num_classes == 5
        assert auxiliary.taps == toys.TAPS


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"exclusive": False}, "trained for another classifier, whose probabilities are sigmoids, here a"),
        ({"num_classes": 7}, "trained for another classifier, whose classes are 7, here 5"),
        ({"input_size": (64, 64)}, "trained for another classifier, whose pixels are 64x64, here 32x32"),
        ({"mean": (0.5, 0.5, 0.5)}, r"whose mean and std are \[\(0.5, 0.5, 0.5\), .*, here \[\(0.0"),
        ({"classifier_fingerprint": "0123456789abcdef"}, "whose weights are 0123456789ab, here "),
        ({"auxiliary_fingerprint": "0123"}, "auxiliary network with other weights than toys:tapped has now"),
    ],
)
def test_a_head_of_another_classifier_is_refused_in_one_line(
    changes: dict[str, object], told: str, tmp_path: Path
) -> None:
    with toys.conv_mlp() as classifier:
        toys.untrained_head(classifier, tmp_path / "head.safetensors", **changes)
        with pytest.raises(ValueError, match=told) as refusal:
            explainer_of(tmp_path / "head.safetensors", classifier)
    assert "\n" not in str(refusal.value)


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[tuple[Classifier, Path]]:
    """A classifier and a head, whose auxiliary network a Python file builds that lies beside its folder."""
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "digits.py").write_text("import toys\n\n\ndef small():\n    return toys.tapped()\n")
    (tmp_path / "run").mkdir()
    with toys.conv_mlp() as classifier:
        path = tmp_path / "run" / "head.safetensors"
        auxiliary = {"source": "../nets/digits.py:small", "weights": "none"}
        toys.untrained_head(classifier, path, auxiliary=auxiliary)
        yield classifier, path


def copied(head: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    return Path(shutil.copy(head, folder))


@pytest.mark.parametrize("folder", ["", "a/b", "a/b/c/d"])
def test_a_copied_head_says_which_file_it_lacks_and_is_told_where_it_lies(
    trained: tuple[Classifier, Path], folder: str, tmp_path: Path
) -> None:
    classifier, head = trained
    copy = copied(head, tmp_path / "copies" / "of" / folder)
    noted = os.path.normpath(copy.parent / "../nets/digits.py")
    with pytest.raises(ValueError, match=r"^head: ") as refusal:
        explainer_of(copy, classifier)
    assert str(refusal.value) == (
        f"head: {copy} reads an auxiliary network built by digits.py:small, and {noted} is not there; "
        'say where it lies: auxiliary = "PATH/digits.py"'
    )
    batch = toys.batch(classifier, 2)
    parameters = PTame.Parameters(head=copy, auxiliary=tmp_path / "nets" / "digits.py")
    found = PTame(classifier, parameters).explain(batch)
    assert torch.equal(found.maps, explainer_of(head, classifier).explain(batch).maps)


def test_a_copied_head_beside_the_file_needs_no_telling(
    trained: tuple[Classifier, Path], tmp_path: Path
) -> None:
    classifier, head = trained
    assert explainer_of(copied(head, tmp_path / "beside"), classifier).auxiliary.taps == toys.TAPS


def test_a_file_that_builds_another_auxiliary_network_is_refused(
    trained: tuple[Classifier, Path], tmp_path: Path
) -> None:
    classifier, head = trained
    other = tmp_path / "nets" / "other.py"
    other.write_text("from torch import nn\n\n\ndef small():\n    return nn.Conv2d(3, 4, 1)\n")
    missing = tmp_path / "none.py"
    for file, told in (
        (other, "do not fit Conv2d"),
        (missing, f"^auxiliary: there is no Python file {missing}$"),
    ):
        with pytest.raises(ValueError, match=told):
            PTame(classifier, PTame.Parameters(head=head, auxiliary=file))


def test_a_head_whose_auxiliary_network_comes_from_no_file_takes_none(tmp_path: Path) -> None:
    (tmp_path / "digits.py").touch()
    with toys.conv_mlp() as classifier:
        head = tmp_path / "head.safetensors"
        toys.untrained_head(classifier, head)
        parameters = PTame.Parameters(head=head, auxiliary=tmp_path / "digits.py")
        with pytest.raises(ValueError, match=r"^auxiliary: ") as refusal:
            PTame(classifier, parameters)
    assert str(refusal.value) == (
        f"auxiliary: no file builds the auxiliary network of {head}, which is toys:tapped; leave the key out"
    )


def test_a_head_without_one_of_its_tensors_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    with toys.conv_mlp() as classifier:
        toys.untrained_head(classifier, path)
        with safe_open(path, "pt") as file:
            tensors, facts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        del tensors["head.classes.weight"]
        save_file(tensors, path, facts)
        with pytest.raises(ValueError, match="do not fit Head; train it again") as refusal:
            explainer_of(path, classifier)
    assert "\n" not in str(refusal.value)


def test_files_that_are_no_heads_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no head")
    save_file({"weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with toys.conv_mlp() as classifier:
        for name, told in (
            ("none", "there is no file"),
            ("text", "holds no head"),
            ("weights.safetensors", "holds"),
        ):
            with pytest.raises(ValueError, match=f"head: .*{told}"):
                explainer_of(tmp_path / name, classifier)
        with pytest.raises(ValueError, match="head: say the file of a trained head"):
            PTame(classifier, PTame.Parameters())


def test_it_explains_images_alone() -> None:
    with TensorClassifier(LinearSeries(torch.ones(1, 4)), (1, 4)) as classifier:
        from explainers.requirements import unmet

        assert "explains images" in str(unmet(explainers.get("ptame").needs, classifier))
