"""Weights from files of every kind that training leaves behind, and refusals that say where it fails."""

import os
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from explainers.models.loading import ModelSpec, load

RESNET = {"source": "torchvision", "name": "resnet18"}


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return models.resnet18(weights=None, num_classes=6).eval()


def _save(state, path):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


WRAPPINGS = {
    "plain.safetensors": lambda state: state,
    "plain.pth": lambda state: state,
    "training.pt": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
    "deit.bin": lambda state: {"model": state},
    "parallel.tar": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
}


@pytest.mark.parametrize("file", WRAPPINGS)
def test_a_checkpoint_file_round_trips(file, resnet, tmp_path):
    _save(WRAPPINGS[file](resnet.state_dict()), tmp_path / file)
    spec = ModelSpec(
        **RESNET, weights=str(tmp_path / file), num_classes=6, crop=64, mean=(0,) * 3, std=(1,) * 3
    )
    inputs = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(load(spec).logits(inputs), resnet(inputs))


def test_torchvisions_published_densenet_names_are_understood(tmp_path):
    torch.manual_seed(0)
    network = models.densenet121(weights=None)
    published = {
        re.sub(r"(denselayer\d+)\.(norm|conv)(\d)", r"\1.\2.\3", name): value
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in published
    torch.save(published, tmp_path / "densenet121.pth")
    spec = ModelSpec(source="torchvision", name="densenet121", weights=f"{tmp_path}/densenet121.pth", crop=64)
    loaded = load(spec)
    assert torch.equal(
        loaded.network.features.denseblock4.denselayer16.conv2.weight,
        network.features.denseblock4.denselayer16.conv2.weight,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state | {"fc.weight": torch.zeros(9, 512), "fc.bias": torch.zeros(9)},
            r"fc.weight is \(9, 512\) in the file and \(6, 512\) in the network; if it has 9 classes, set",
        ),
        (
            lambda state: {name: value for name, value in state.items() if "layer4" not in name},
            r"25 tensors are missing, such as layer4.0.conv1.weight; check model.name",
        ),
        (
            lambda state: state | {"extra": torch.zeros(1)},
            r"1 tensors are unknown to the network, such as extra; check model.name",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_says_where(change, message, resnet, tmp_path):
    torch.save(change(dict(resnet.state_dict())), tmp_path / "other.pth")
    spec = ModelSpec(**RESNET, weights=f"{tmp_path}/other.pth", num_classes=6, crop=64)
    with pytest.raises(
        ValueError, match=rf"^model.weights: .*other.pth does not fit the network: {message}"
    ) as refusal:
        load(spec)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", r"cannot read .*\.pth: "),
        (b"", r"cannot read .*\.pth: "),
        ([1, 2], r"holds no state dict"),
        ({"layers": 3}, r"holds no state dict"),
        (nn.Linear(2, 2), r"cannot read .*\.pth: "),  # a pickled module could run code, and is not unpickled
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "broken.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=f"^model.weights: .*{message}") as refusal:
        load(ModelSpec(**RESNET, weights=str(path), crop=64))
    assert "\n" not in str(refusal.value)


def test_a_callables_file_that_is_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "mine.py")
    with pytest.raises(ValueError, match=r"^model.source: .*mine.py is a pipe, not a file"):
        load(ModelSpec(source=f"{tmp_path}/mine.py:build", crop=32))
