"""Plain tensors as inputs: series of channels and flat rows, from a callable."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from explainers.models.black_box import BlackBox
from explainers.models.loading import ModelSpec, load
from explainers.models.tensors import TensorClassifier

NETWORKS = """
from torch import nn


def series(classes="3"):
    layers = [nn.Conv1d(2, 4, 3), nn.Dropout(), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, int(classes)))


def table(classes="3"):
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, int(classes)))


def steps():
    return nn.Linear(5, 3)
"""


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    path = tmp_path_factory.mktemp("networks") / "nets.py"
    path.write_text(NETWORKS)
    return path


def tensors(spec, shape, **keys):
    return load(ModelSpec(source=spec, **keys), input_size=shape, modality="tensor")


def test_a_series_is_seen_as_it_is_and_a_flat_row_as_one_channel(networks):
    series, table = tensors(f"{networks}:series", (2, 9)), tensors(f"{networks}:table", (5,))
    assert (series.input_shape, table.input_shape) == ((2, 9), (1, 5))
    rows, row = torch.randn(4, 2, 9), torch.randn(4, 5)
    torch.testing.assert_close(series.logits(rows), series.network(rows))
    torch.testing.assert_close(table.logits(row[:, None]), table.network(row))
    assert (series.num_classes, table.num_classes, series.layer) == (3, 3, None)


def test_a_table_of_one_row_of_channels_is_not_flat():
    network = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(12, 2))
    assert TensorClassifier(network, (1, 5)).input_shape == (1, 5)


def test_absent_steps_are_zero_or_their_channels_own_mean(networks):
    classifier = tensors(f"{networks}:series", (2, 3))
    inputs = torch.tensor([[[1.0, 2, 6], [0, 0, -3]]])
    assert classifier.fills == ("zero", "mean")
    expected = {"zero": [[[0, 0, 0], [0, 0, 0]]], "mean": [[[3, 3, 3], [-1, -1, -1]]]}
    for how, values in expected.items():
        assert classifier.fill(inputs, how).expand_as(inputs).tolist() == values
    assert classifier.sites(inputs).tolist() == [[True] * 3]
    with pytest.raises(ValueError, match=r"^fill: 'mask' is not for tensors; choose zero or mean$"):
        classifier.fill(inputs, "mask")


def test_stored_rows_are_the_inputs(networks):
    stored = torch.randn(4, 1, 5)
    classifier: BlackBox = tensors(f"{networks}:table", (5,))
    assert torch.equal(classifier.inputs_of(stored.double()), stored)
    assert (classifier.modality, classifier.graded) == ("tensor", True)


def test_the_network_is_restored():
    network = nn.Sequential(nn.Linear(5, 3), nn.Dropout()).train()
    with TensorClassifier(network, (5,)):
        assert not network[1].training
        assert not network[0].weight.requires_grad
    assert network[1].training
    assert network[0].weight.requires_grad


def test_weights_come_from_a_file_and_decide_the_fingerprint(networks, tmp_path):
    first = tensors(f"{networks}:table", (5,))
    for parameter in first.network.parameters():
        parameter.mul_(2)
    save_file(first.network.state_dict(), tmp_path / "table.safetensors")
    again = tensors(f"{networks}:table", (5,), weights=f"{tmp_path}/table.safetensors")
    other = tensors(f"{networks}:table", (5,))
    assert again.fingerprint == first.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        (
            {"source": "timm"},
            (2, 9),
            "model.source: plain tensors need torchscript or exported, or a callable, not 'timm': ",
        ),
        ({}, (3, 9), r"model.source: the network does not run on rows of shape \(3, 9\): "),
        ({"source": "{}:table"}, (7,), r"model.source: the network does not run on rows of shape \(7,\): "),
        (
            {"source": "{}:steps"},
            (2, 5),
            r"model.source: the network must return logits \(B, K\), and returned \(2, 2, 3\)",
        ),
        ({"name": "0"}, (2, 9), "model.source: the network has no output; a classifier has one or more"),
        ({"num_classes": 4}, (2, 9), "model.num_classes: the network has 3 classes, not 4"),
        ({"weights": "gone.pt"}, (2, 9), "model.weights: there is no file gone.pt"),
        ({}, (2, 9, 9), r"dataset.path: rows must be \(T,\) or \(C, T\), and these are \(2, 9, 9\)"),
        ({}, None, r"input_size: give the shape of the dataset's rows, \(T,\) or \(C, T\)"),
        ({"crop": 8}, (2, 9), "model.crop: is for images, not for plain tensors; leave it out"),
        ({"layer": "0"}, (2, 9), "model.layer: is for images, not for plain tensors; leave it out"),
        ({"classes": ("a",)}, (2, 9), "model.classes: is for images, not for plain tensors; leave it out"),
        ({"max_length": 8}, (2, 9), "model.max_length: is for texts, not for plain tensors; leave it out"),
    ],
)
def test_refusals_name_the_key(spec, shape, message, networks):
    spec = {"source": "{}:series", **spec}
    spec["source"] = spec["source"].format(networks)
    with pytest.raises(ValueError, match=f"^{message}") as refusal:
        load(ModelSpec(**spec), input_size=shape, modality="tensor")
    assert "\n" not in str(refusal.value)
