"""Logits from what networks return: exact where they can be, finite everywhere, and with right gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from explainers.models.classifier import Classifier
from explainers.models.loading import ModelSpec, load
from explainers.models.outputs import Outputs
from explainers.models.tensors import TensorClassifier

READ = {"logits": lambda z: z, "probabilities": torch.sigmoid, "log_probabilities": nn.functional.logsigmoid}


@pytest.mark.parametrize("output", READ)
@given(z=st.lists(st.floats(-15, 15), min_size=3, max_size=3))
def test_what_a_sigmoid_was_given_is_found_again(output, z):
    z = torch.tensor([z], dtype=torch.float64)
    for columns in (1, 3):
        outputs = Outputs(output, "sigmoid")
        found = outputs.logits(READ[output](z[:, :columns]))
        expected = torch.cat([torch.zeros(1, 1), z[:, :1]], 1) if columns == 1 else z
        torch.testing.assert_close(found, expected.double(), rtol=1e-8, atol=1e-8)
        assert outputs.exclusive == (columns == 1)


def test_log_probabilities_are_read_exactly_far_out_where_probabilities_are_0_or_1():
    z = torch.tensor([[-300.0, -90.0, -20.0, 20.0, 80.0]])
    found = Outputs("log_probabilities", "sigmoid").logits(nn.functional.logsigmoid(z))
    torch.testing.assert_close(found, z, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_are_finite_and_ordered_at_the_ends(dtype):
    for output, ends in {
        "probabilities": (0, 1e-30, 0.5, 1),
        "log_probabilities": (-math.inf, -69, -1, 0),
    }.items():
        found = Outputs(output, "sigmoid").logits(torch.tensor([ends], dtype=dtype))[0]
        assert found.isfinite().all()
        assert (found.diff() > 0).all()
        assert Outputs(output, "sigmoid").probability(found[None]).isfinite().all()


@pytest.mark.parametrize("output", READ)
@pytest.mark.parametrize("columns", [1, 3])
def test_gradients_are_those_of_the_sigmoids_own_logits(output, columns):
    z = torch.linspace(-4, 4, 2 * columns, dtype=torch.float64).view(2, columns).requires_grad_()
    outputs = Outputs(output, "sigmoid")
    (gradient,) = torch.autograd.grad(outputs.logits(READ[output](z))[:, -1].sum(), z)
    expected = torch.zeros_like(z)
    expected[:, -1] = 1
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("activation", [None, "softmax", "sigmoid"])
@pytest.mark.parametrize("axes", [1, 2])
def test_a_single_logit_is_two_classes_whose_softmax_is_its_sigmoid(activation, axes):
    z = torch.tensor([-3.0, 0.0, 0.7])
    outputs = Outputs(None, activation)
    logits = outputs.logits(z if axes == 1 else z[:, None])
    assert torch.equal(logits, torch.stack([torch.zeros(3), z], 1))
    p = outputs.probability(logits)
    torch.testing.assert_close(p[:, 1], z.sigmoid())
    torch.testing.assert_close(p.sum(1), torch.ones(3))
    torch.testing.assert_close(outputs.log_probability(logits).exp(), p)


def test_a_sigmoid_reads_every_class_for_itself():
    z = torch.tensor([[2.0, 3.0, -1.0]])
    outputs = Outputs(None, "sigmoid")
    assert torch.equal(outputs.logits(z), z)
    expected = torch.tensor([[1 / (1 + math.exp(-each)) for each in (2, 3, -1)]])
    torch.testing.assert_close(outputs.probability(z), expected)
    torch.testing.assert_close(outputs.log_probability(z).exp(), expected)


class Mean(nn.Module):
    """One number per image: the mean of its pixels, behind a layer that can be cut."""

    def __init__(self, squeezed=False):
        super().__init__()
        self.features, self.squeezed = nn.Identity(), squeezed

    def forward(self, inputs):
        found = self.features(inputs).mean((1, 2, 3))
        return found if self.squeezed else found[:, None]


@pytest.mark.parametrize("squeezed", [False, True])
def test_a_network_of_one_output_is_cut_and_has_two_classes(squeezed):
    with Classifier(Mean(squeezed), layer="features", input_size=(8, 8)) as classifier:
        assert (classifier.num_classes, classifier.exclusive) == (2, True)
        inputs = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        expected = torch.stack([torch.zeros(3), inputs.mean((1, 2, 3))], 1)
        assert torch.equal(classifier.logits(inputs), expected)
        assert torch.equal(classifier.head(classifier.activations(inputs)), expected)
        assert torch.equal(classifier.returned(inputs), expected)


@pytest.mark.parametrize("classes", [None, 1, 2])
def test_the_job_may_count_one_output_or_two_classes(tmp_path, classes):
    file = tmp_path / "net.py"
    file.write_text("from torch import nn\ndef one():\n    return nn.Linear(4, 1)\n")
    names = tmp_path / "names.txt"
    names.write_text("no\nyes\n")
    spec = ModelSpec(source=f"{file}:one", num_classes=classes, class_names=str(names))
    with load(spec, input_size=(4,), modality="tensor") as classifier:
        assert isinstance(classifier, TensorClassifier)
        assert [each.name for each in classifier.class_names] == ["no", "yes"]
    with pytest.raises(ValueError, match=r"^model.num_classes: the network has 2 classes, not 3$"):
        load(spec.model_copy(update={"num_classes": 3}), input_size=(4,), modality="tensor")


def test_a_network_that_returns_one_number_per_image_without_an_axis_for_it_can_be_cut():
    class Squeezed(torch.nn.Sequential):
        def forward(self, inputs):
            return super().forward(inputs)[:, 0]

    parts = torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 1)
    with Classifier(Squeezed(*parts), input_size=(8, 8)) as classifier, torch.no_grad():
        found = classifier.head(classifier.activations(classifier.probed))
        torch.testing.assert_close(found, classifier.logits(classifier.probed))
