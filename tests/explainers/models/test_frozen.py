"""A network in half precision is computed with in float32 while it is wrapped, and is then as it was."""

import copy

import pytest
import torch
from torch import nn

from explainers.models.checkpoints import taken_for
from explainers.models.tensors import TensorClassifier

ROWS = torch.randn(5, 1, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.register_buffer("shift", torch.tensor([0.1, 0.2, 0.3]))

    def forward(self, rows):
        return self.fc(rows) + self.shift


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_the_logits_are_those_of_the_stored_numbers_in_float32(network, kind):
    halved = network.to(kind)
    stored = {name: value.clone() for name, value in halved.state_dict().items()}
    exact = copy.deepcopy(halved).double()
    with TensorClassifier(halved, (6,)) as classifier, torch.no_grad():
        logits = classifier.logits(ROWS)
        assert logits.dtype == torch.float32
        # In half precision the difference would be about 1e-3.
        torch.testing.assert_close(logits, exact(ROWS[:, 0].double()).float(), rtol=1e-6, atol=1e-6)
        assert taken_for[halved].cast == {str(kind).removeprefix("torch."): 3}
        assert taken_for[halved].key is None
    assert {name: value.dtype for name, value in halved.state_dict().items()} == dict.fromkeys(stored, kind)
    assert all(torch.equal(value, stored[name]) for name, value in halved.state_dict().items())


def test_a_mixture_is_noted_by_type_and_other_types_stay(network):
    network.fc.half()
    network.shift = network.shift.double()
    with TensorClassifier(network, (6,)) as classifier:
        assert taken_for[network].cast == {"float16": 2}
        assert classifier.network.shift.dtype == torch.float64


def test_the_fingerprint_is_that_of_the_numbers_in_float32(network):
    halved, whole = copy.deepcopy(network).half(), copy.deepcopy(network).half().float()
    assert TensorClassifier(halved, (6,)).fingerprint == TensorClassifier(whole, (6,)).fingerprint


def test_nothing_is_noted_for_a_network_in_float32(network):
    TensorClassifier(network, (6,))
    assert network not in taken_for
