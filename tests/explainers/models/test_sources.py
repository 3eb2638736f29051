"""A file of torchvision's published weights gives what their name gives."""

import hashlib

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models._api import WeightsEnum

from explainers.models.loading import ModelSpec, load, preprocessing
from explainers.models.sources import torchvision_network


@pytest.mark.parametrize(("name", "layer"), [("googlenet", "inception5b"), ("inception_v3", "Mixed_7c")])
def test_a_file_gives_the_same_logits_as_the_published_name(name, layer, tmp_path, monkeypatch):
    torch.manual_seed(0)
    plain = models.get_model(name, weights=None, init_weights=False).eval()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train().momentum = 1.0
    with torch.no_grad():  # so that the layers' outputs neither vanish nor grow
        plain(torch.rand(8, 3, 96, 96))
    state = plain.eval().state_dict()
    assert any(part.startswith(("aux1", "AuxLogits")) for part in state)  # as in the published files
    torch.save(state, tmp_path / "mine.pth")
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
    published, own = (
        load(ModelSpec(source="torchvision", name=name, weights=weights, layer=layer, crop=96, resize=96))
        for weights in ("DEFAULT", str(tmp_path / "mine.pth"))
    )
    inputs = torch.rand(3, 3, 96, 96)
    torch.testing.assert_close(own.logits(inputs), published.logits(inputs), rtol=1e-5, atol=1e-6)
    assert own.network.transform_input
    with torch.no_grad():  # what torchvision builds without weights is another function
        other = plain((inputs - own.mean) / own.std)
    assert float((other - own.logits(inputs)).abs().max()) > 0.1


def _publish(entry, path, monkeypatch):
    """Write a file that has the checksum of published weights."""
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(entry.value, "url", f"https://example.org/x-{digest[:8]}.pth")


def test_a_published_file_is_known_by_its_checksum_whatever_its_name(tmp_path, monkeypatch):
    spec = ModelSpec(source="torchvision", name="resnet50", weights=str(tmp_path / "mine.pth"))
    assert preprocessing(spec).resize == 256
    _publish(models.ResNet50_Weights.IMAGENET1K_V2, tmp_path / "mine.pth", monkeypatch)
    assert preprocessing(spec).resize == 232


def test_a_published_file_for_larger_images_gets_a_network_for_them(tmp_path, monkeypatch):
    _publish(models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1, tmp_path / "mine.pth", monkeypatch)
    spec = ModelSpec(source="torchvision", name="vit_b_16", weights=str(tmp_path / "mine.pth"))
    with torch.device("meta"):  # without memory for the weights
        assert torchvision_network(spec).image_size == 384
    assert preprocessing(spec).size == (384, 384)
