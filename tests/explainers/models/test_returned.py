"""Networks that return several things: which part is the logits, and that nothing else changes."""

import copy
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from explainers.models.classifier import Classifier
from explainers.models.tensors import TensorClassifier

Pair = namedtuple("Pair", ["logits", "aux_logits"])


@dataclass
class Answer:
    loss: torch.Tensor | None
    scores: torch.Tensor


class Net(nn.Module):
    """Logits of rows (B, 4), put into something by ``answer``."""

    def __init__(self, answer):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.other = nn.Linear(4, 5)
        self.answer = answer
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, rows):
        return self.answer(self.fc(rows), self.other(rows))


ANSWERS = {
    "a ModelOutput": (lambda a, b: ImageClassifierOutput(logits=a, hidden_states=(b, b)), None, "fc"),
    "a dictionary with another matrix": (lambda a, b: {"aux": b, "logits": a}, None, "fc"),
    "a dictionary with one matrix": (lambda a, b: {"loss": b.sum(), "y": a, "maps": b[None]}, None, "fc"),
    "a part that is named": (lambda a, b: {"logits": a, "aux": b}, "aux", "other"),
    "a tuple of a matrix and a loss": (lambda a, b: (b.sum(), a), None, "fc"),
    "a list, and an index": (lambda a, b: [a, b], 1, "other"),
    "a named tuple, and an index": (Pair, 1, "other"),
    "a dataclass": (lambda a, b: Answer(None, b), None, "other"),
    "indices beside the logits": (lambda a, b: (a.argmax(1)[:, None], b), None, "other"),
}
ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ANSWERS)
def test_the_logits_are_found_in_what_a_network_returns(kind):
    answer, returns, head = ANSWERS[kind]
    with TensorClassifier(Net(answer), (4,), returns=returns) as classifier, torch.no_grad():
        expected = getattr(classifier.network, head)(ROWS)
        torch.testing.assert_close(classifier.logits(ROWS[:, None]), expected, rtol=0, atol=0)
        torch.testing.assert_close(classifier.network(ROWS), expected, rtol=0, atol=0)  # everyone sees this
        assert classifier.num_classes == expected.shape[1]


REFUSED = {
    "two matrices": (
        lambda a, b: (a, b),
        None,
        "returns: the network returns a tuple of 0 (2, 3), 1 (2, 5); say which are the logits, such as "
        "returns = 0",
    ),
    "two named ones": (lambda a, b: {"x": a, "y": b}, None, 'such as returns = "x"'),
    "no matrix": (
        lambda a, b: {"x": a.sum(), "y": None},
        None,
        "returns: the network returns a dict of x (), y (NoneType), none of which is (B, K); return the "
        "logits as well",
    ),
    "an unknown name": (lambda a, b: {"x": a, "y": b}, "z", "'z' is none of its parts; give the name"),
    "an index beyond": (lambda a, b: (a, b), 2, "2 is none of its parts"),
    "no tensor": (lambda a, b: {"x": a, "y": None}, "y", "'y' is no tensor"),
    "a tensor after all": (lambda a, b: a, 0, "returns: the network returns one tensor; leave the key out"),
    "a part of another shape": (lambda a, b: {"x": a, "y": b[None]}, "y", "source: the network must return"),
    "nothing": (
        lambda a, b: None,
        None,
        "source: the network must return logits (B, K), and returned a None",
    ),
    "very many": (lambda a, b: (a,) * 900, None, "7 (2, 3) and 892 more; say which"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_chosen_is_refused_in_one_line_that_lists_the_parts(kind):
    answer, returns, expected = REFUSED[kind]
    network = Net(answer)
    with pytest.raises(ValueError, match=r"^model\.") as refused:
        TensorClassifier(network, (4,), returns=returns)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)
    assert type(network) is Net
    assert network.training


def test_a_network_keeps_its_names_and_weights_and_is_restored():
    network = Net(lambda a, b: (b, a))
    own, output = type(network), network(ROWS)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    classifier = TensorClassifier(network, (4,), returns=1)
    assert isinstance(network, Net)
    assert type(network).__qualname__ == "Net"
    assert list(network.state_dict()) == list(state)
    plain = TensorClassifier(Net(lambda a, b: a), (4,))
    assert classifier.fingerprint == plain.fingerprint
    classifier.close()
    assert type(network) is own
    assert all(torch.equal(one, other) for one, other in zip(network(ROWS), output, strict=True))


def test_a_copy_runs_on_its_own_weights():
    classifier = TensorClassifier(Net(lambda a, b: (b, a)), (4,), returns=1)
    copied = copy.deepcopy(classifier.network)
    nn.init.zeros_(copied.fc.weight)
    nn.init.ones_(copied.fc.bias)
    assert torch.equal(copied(ROWS), torch.ones(6, 3))
    assert not torch.equal(classifier.network(ROWS), copied(ROWS))


class Maps(nn.Module):
    """Logits of images beside maps of an early layer, which pass by the target layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, stride=4)
        self.last = nn.Conv2d(4, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, pixels):
        early = self.stem(pixels)
        return {"maps": early, "logits": self.fc(self.last(early).mean((2, 3)))}


def test_a_network_with_several_outputs_is_cut_as_one_with_its_logits_alone():
    network = Maps()
    pixels = torch.rand(3, 3, 32, 32)
    with Classifier(network, layer="last", input_size=(32, 32)) as classifier, torch.no_grad():
        logits = classifier.head(classifier.activations(pixels))
        torch.testing.assert_close(logits, classifier.logits(pixels))
    torch.testing.assert_close(logits, network(pixels)["logits"])


def test_probabilities_of_a_part_are_read_as_probabilities():
    network = Net(lambda a, b: {"loss": b.sum(), "y": a.softmax(1)})
    with TensorClassifier(network, (4,), output="probabilities") as classifier, torch.no_grad():
        torch.testing.assert_close(classifier.logits(ROWS[:, None]).softmax(1), network.fc(ROWS).softmax(1))
