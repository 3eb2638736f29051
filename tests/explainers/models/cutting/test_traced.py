"""Where a network can be cut and what is refused, on networks that make it hard."""

import pytest
import torch
from torch import nn

from explainers.models.classifier import Classifier
from explainers.models.probes_at_load import probe
from families import condition, pixels, small_vit


class Functional(nn.Module):
    """conv -> an activation called as a function -> mean -> linear."""

    def __init__(self, activation):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)
        self.activation = activation

    def forward(self, x):
        batch = x.shape[0]
        x = self.activation(self.conv(x))
        return self.fc(x.mean((2, 3)).reshape(batch, -1))


def _statement(x):
    nn.functional.relu(x, inplace=True)
    return x


ACTIVATIONS = {
    "F.relu": nn.functional.relu,
    "inplace": lambda x: nn.functional.relu(x, inplace=True),
    "statement": _statement,
    "torch.relu_": torch.relu_,
    "method": lambda x: x.relu(),
    "method_": lambda x: x.relu_(),
    "torch.clamp_": lambda x: torch.clamp_(x, min=0),
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_a_functional_activation_belongs_to_its_layer(kind):
    network = Functional(ACTIVATIONS[kind])
    with Classifier(network, layer="conv", input_size=(8, 8)) as classifier:
        convolved = network.conv(pixels(2, (8, 8)))
        activations = classifier.activations(pixels(2, (8, 8)))
        expected = convolved if kind == "torch.clamp_" else convolved.relu()
        torch.testing.assert_close(activations, expected)
        before = activations.clone()
        logits = classifier.head(activations)
        assert torch.equal(activations, before)
        torch.testing.assert_close(logits, network.fc(convolved.relu().mean((2, 3))))


class Residual(nn.Module):
    """Two blocks with a skip connection around the second, one shared ReLU, an optional argument."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 5)
        self.unused = nn.ModuleList([nn.Conv2d(4, 4, 1)])

    def forward(self, x, mask=None):
        if mask is not None:
            x = x * mask
        x = self.relu(self.first(x))
        x = self.relu(x + self.second(x))
        return self.fc(x.mean((2, 3)))


def test_of_a_module_called_twice_the_last_call_counts():
    network = Residual()
    with Classifier(network, layer="relu", input_size=(8, 8)) as classifier:
        first = network.first(pixels(2, (8, 8))).relu()
        expected = (first + network.second(first)).relu()
        torch.testing.assert_close(classifier.activations(pixels(2, (8, 8))), expected)
        torch.testing.assert_close(classifier.head(expected), network.fc(expected.mean((2, 3))))


def test_the_input_of_a_module_can_be_the_layer():
    network = Residual()
    with Classifier(network, layer="second:input", input_size=(8, 8)) as classifier:
        expected = network.first(pixels(2, (8, 8))).relu()
        torch.testing.assert_close(classifier.activations(pixels(2, (8, 8))), expected)
        skipped = network.fc((expected + network.second(expected)).relu().mean((2, 3)))
        torch.testing.assert_close(classifier.head(expected), skipped)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Functional(torch.relu)
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.inner(self.conv(x)) if x.sum() >= 0 else self.inner(x)  # as for all values in [0, 1]


class Skipping(Branching):
    """A branch that cannot be traced, and the input is added behind the layer."""

    def forward(self, x):
        return super().forward(x) + x.mean((2, 3))[:, :1]


class Noisy(Functional):
    def forward(self, x):
        return super().forward(x) + torch.rand(5)


class Aliased(Functional):
    def forward(self, x):
        x = self.conv(x)
        flat = x.flatten(2)
        flat.mul_(3)
        return self.fc(x.mean((2, 3)))


def test_where_a_trace_is_not_the_network_it_is_cut_by_replay():
    torch.manual_seed(0)
    inputs = pixels(2, (8, 8))
    for network, layer, tail in (
        (Branching(), "inner.conv", lambda network, maps: network.inner.fc(maps.relu().mean((2, 3)))),
        (Aliased(torch.relu), "conv", lambda network, maps: network.fc(3 * maps.mean((2, 3)))),
    ):
        with Classifier(network, layer=layer, input_size=(8, 8)) as classifier:
            assert probe(classifier)["head"].endswith("cut with replay")
            maps = classifier.activations(inputs)
            torch.testing.assert_close(classifier.head(maps), network(inputs))
            torch.testing.assert_close(classifier.head(-maps), tail(network, -maps))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.fc = nn.LSTM(8, 6), nn.Linear(6, 5)

    def forward(self, x):
        rows, _ = self.rnn(x.mean(1).transpose(0, 1))
        return self.fc(rows[-1])


REFUSED = {
    "no layer on a grid": (
        Recurrent, None, r"no layer of Recurrent can be the target layer: no tensor on a grid"
    ),
    "an unknown layer lists close matches": (Residual, "secnd", r"no layer 'secnd'; close are second"),
    "a bypassed layer": (Residual, "second", r"has a path around 'second'.*later layer"),
    "a container that is never called": (Residual, "unused", r"'unused' is never called"),
    "a layer of no consequence": (Residual, "unused.0", r"'unused.0' is never called"),
    "a wrong suffix": (Residual, "second:output", r"only ':input' may follow 'second', not ':output'"),
    "a vector": (Residual, "fc", r"cannot explain 'fc': its output has the shape \('B', 5\)"),
    "a tuple": (Recurrent, "rnn", r"cannot explain 'rnn': its output is not a tensor"),
    "a branch on values around it": (Skipping, "inner", r"has a path around 'inner'"),
    "random numbers": (lambda: Noisy(torch.relu), "conv", r"the same inputs get other logits"),
    "inputs of another size": (small_vit, None, r"does not run on inputs of 8x8 pixels: Wrong image"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_explained_is_refused_in_one_line_and_left_as_it_was(case):
    build, layer, message = REFUSED[case]
    network = build().train()
    before = condition(network)
    with pytest.raises(ValueError, match=rf"^model\.\w+: .*({message})") as refusal:  # noqa: SIM117
        with Classifier(network, layer=layer, input_size=(8, 8)) as classifier:
            probe(classifier)
    assert "\n" not in str(refusal.value)
    assert condition(network) == before
