"""Forward passes in lower precision, in TF32 and compiled: close to float32, and float32 where it matters."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import toys
from explainers.base import Batch
from explainers.models.classifier import Classifier
from explainers.models.clip import Clip
from explainers.models.compute import Compute, full_precision, tf32
from explainers.models.tensors import TensorClassifier
from explainers.numerics.batching import in_chunks
from explainers.probes.additivity import additive_head
from explainers.probes.head_gradient import head_gradient
from explainers.probes.masked_forward import MaskedForward, target_logit
from explainers.registry import explainers
from explainers.requirements import unmet
from text_toys import TEXTS, text_classifier

EPS = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
lower = pytest.mark.parametrize("precision", EPS)


def used(classifier: Classifier, **compute: object) -> Classifier:
    classifier.use(Compute.model_validate(compute))
    return classifier


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@lower
@pytest.mark.parametrize("make", toys.CLASSIFIERS.values(), ids=list(toys.CLASSIFIERS))
@torch.inference_mode()
def test_passes_are_rounded_and_come_out_in_float32(make: Callable[[], Classifier], precision: str) -> None:
    inputs = toys.inputs(4)
    whole, low = make(), used(make(), precision=precision)
    for found, expected in (
        (low.logits(inputs), whole.logits(inputs)),
        (low.activations(inputs), whole.activations(inputs)),
    ):
        assert found.dtype == torch.float32
        assert 0 < relative(found, expected) < 8 * EPS[precision]
    with full_precision():
        torch.testing.assert_close(low.logits(inputs), whole.logits(inputs), rtol=0, atol=0)


@lower
@torch.inference_mode()
def test_logits_are_not_rounded_to_the_precision_of_the_passes(precision: str) -> None:
    logits = used(toys.conv_gap(), precision=precision).logits(toys.inputs(4))
    assert relative(logits.to(getattr(torch, precision)).float(), logits) > EPS[precision] / 8
    clip = Clip(
        nn.Sequential(nn.Identity(), nn.Flatten()),
        torch.eye(12)[:3],
        logit_scale=100.0,
        text_fingerprint=bytes(32),
    )
    classifier = Classifier(clip, layer="visual.0", input_size=(2, 2))
    expected = classifier.logits(inputs := torch.rand(5, 3, 2, 2))
    for found in (used(classifier, precision=precision).logits, classifier.head):
        torch.testing.assert_close(found(inputs), expected)


@lower
def test_gradients_are_those_of_float32_where_lower_precision_loses_them(precision: str) -> None:
    def faint() -> Classifier:
        classifier = toys.conv_mlp()
        classifier.network.get_submodule("classifier")[3].weight.data.mul_(1e-10)  # type: ignore[operator, union-attr]
        return classifier

    low = used(faint(), precision=precision)
    batch = toys.batch(low, 3)
    gradient = head_gradient(low, batch, slice(0, 3))
    assert (gradient != 0).any()
    torch.testing.assert_close(gradient, head_gradient(faint(), batch, slice(0, 3)), rtol=0, atol=0)


@lower
@pytest.mark.parametrize("kind", toys.CLASSIFIERS)
def test_every_explainer_has_nearly_the_same_maps(kind: str, precision: str, tmp_path: Path) -> None:
    with toys.CLASSIFIERS[kind]() as whole, used(toys.CLASSIFIERS[kind](), precision=precision) as low:
        batches = [toys.batch(classifier, 3) for classifier in (whole, low)]
        for name in explainers.names():
            needs = explainers.get(name).needs
            assert unmet(needs, low) == unmet(needs, whole)
            if unmet(needs, low) is not None:
                continue
            parameters = explainers.get(name).Parameters(**toys.parameters(name, whole, tmp_path))
            expected, found = (
                explainers.get(name)(classifier, parameters).explain(batch)
                for classifier, batch in zip((whole, low), batches, strict=True)
            )
            assert found.maps.dtype == torch.float32, name
            assert found.statuses == expected.statuses, name
            if name not in {"moxi", "gradcampp"}:  # an order of few patches; ratios of small numbers
                assert (found.maps - expected.maps).norm() <= 40 * EPS[precision] * expected.maps.norm(), name


@lower
def test_a_head_that_adds_up_is_still_known_to(precision: str) -> None:
    head = additive_head(used(toys.conv_gap(), precision=precision))
    assert head is not None
    assert head.per_mean is not None


@lower
@torch.inference_mode()
def test_texts_and_numbers_are_passed_in_lower_precision_too(precision: str) -> None:
    numbers = TensorClassifier(nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3)), (6,))
    texts = text_classifier()
    tokens = texts.inputs_of(torch.from_numpy(np.stack([texts.encode(text)[0] for text in TEXTS])))
    for classifier, inputs in ((numbers, torch.rand(4, 1, 6)), (texts, tokens)):
        expected = classifier.logits(inputs)
        classifier.use(Compute.model_validate({"precision": precision}))
        assert 0 < relative(classifier.logits(inputs), expected) < 8 * EPS[precision]
        assert classifier.logits(inputs).dtype == torch.float32


class _Mean(nn.Module):
    """Two heads, whose mean the logits are."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)])

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.heads[0](inputs) + self.heads[1](inputs)) / 2


@lower
@torch.inference_mode()
def test_logits_are_not_rounded_where_they_are_a_mean_of_heads(precision: str) -> None:
    classifier = TensorClassifier(_Mean(), (6,))
    classifier.use(Compute.model_validate({"precision": precision}))
    logits = classifier.logits(torch.rand(4, 1, 6))
    assert not torch.equal(logits.to(getattr(torch, precision)).float(), logits)


class _Collects(nn.Module):
    """Puts what a linear layer gives into a tensor of float32, which lower precision does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = torch.arange(len(inputs))
        return inputs.new_zeros(len(inputs), 4).index_put_((rows,), self.linear(inputs))[:, :3]


@lower
def test_a_network_that_cannot_run_in_it_is_refused_in_one_line(precision: str) -> None:
    classifier = TensorClassifier(_Collects(), (6,))
    words = f"compute: the network does not run on cpu in {precision}: Index put"
    with pytest.raises(ValueError, match=words) as told:
        classifier.use(Compute.model_validate({"precision": precision}))
    assert "\n" not in str(told.value)


def test_a_network_too_large_for_float16_is_refused_and_bfloat16_holds_it() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    network[0].weight.data.fill_(1e5)
    classifier = Classifier(network, layer="0", input_size=(4, 4))
    with pytest.raises(ValueError, match=r"compute\.precision: .* beyond float16; use bfloat16"):
        used(classifier, precision="float16")
    classifier.close()
    used(classifier, precision="bfloat16")


def test_closing_and_copying_give_back_what_was_there() -> None:
    classifier = toys.conv_gap()
    network, before = classifier.network, [type(module) for module in classifier.network.modules()]
    used(classifier, precision="bfloat16", compile=True)
    assert [type(module) for module in network.modules()] != before
    clone = copy.deepcopy(classifier)
    with torch.no_grad():
        for parameter in clone.network.parameters():
            parameter.zero_()
        assert not clone.logits(toys.inputs(2)).any()
        assert classifier.logits(toys.inputs(2)).any()
    classifier.close()
    assert [type(module) for module in network.modules()] == before
    assert classifier.compute == Compute()


def test_tf32_holds_for_passes_alone_and_is_put_back() -> None:
    seen: list[tuple[bool, bool]] = []

    def look(*_: object) -> None:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))

    classifier, inputs = toys.conv_gap(), toys.inputs(2)
    used(classifier, tf32=True)
    classifier.network.register_forward_hook(look)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with tf32(False):
        classifier.logits(inputs)
        classifier.logits(inputs.requires_grad_())
        with classifier.differentiating():
            classifier.logits(inputs)
        with full_precision(), classifier.differentiating():
            classifier.logits(inputs)
        look()
    assert seen == [(True, True), (False, False), (True, True), (False, False), (False, False)]
    assert before == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)


@pytest.mark.parametrize("make", [toys.conv_gap, toys.vit], ids=["conv_gap", "vit"])
def test_a_compiled_network_gives_the_same_for_batches_of_any_size(make: Callable[[], Classifier]) -> None:
    plain, compiled = make(), used(make(), compile=True)
    inputs = toys.inputs(5)
    with torch.inference_mode():
        for rows in (inputs, inputs[:3], inputs[:1]):
            torch.testing.assert_close(compiled.logits(rows), plain.logits(rows), rtol=1e-4, atol=1e-5)
        activations = compiled.activations(inputs)
        torch.testing.assert_close(activations, plain.activations(inputs), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled.head(activations), plain.logits(inputs), rtol=1e-4, atol=1e-5)
    batches = [Batch(inputs, torch.zeros(5).long(), torch.arange(5), activations)] * 2
    for name in (
        ("gradcam", "rollout") if make is toys.vit else ("gradcam",)
    ):  # gradients, and hooks put on later
        cls = explainers.get(name)
        maps, expected = (
            cls(classifier, cls.Parameters()).explain(batch).maps
            for classifier, batch in zip((compiled, plain), batches, strict=True)
        )
        torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-5)


def test_without_a_compiler_the_network_runs_as_it_is_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(config, "force_disable_caches", True)
    plain = toys.conv_mlp()
    network = nn.Sequential(plain.network, nn.Tanh())  # one that no other test has compiled
    with caplog.at_level(logging.WARNING, "explainers.models.compute"):
        classifier = used(Classifier(network, layer="0.features", input_size=plain.input_size), compile=True)
        with torch.inference_mode():
            for _ in range(2):
                found = classifier.logits(toys.inputs(3))
    torch.testing.assert_close(found, plain.logits(toys.inputs(3)).tanh())
    (line,) = [record.message for record in caplog.records if record.name == "explainers.models.compute"]
    assert line.startswith("compute.compile: Sequential is not compiled: ")
    assert "\n" not in line


class _Full:
    """A compiled network on a device that holds ``memory`` rows."""

    def __init__(self, run: Callable[[Tensor], Tensor], memory: int) -> None:
        self.run, self.memory, self.asked = run, memory, list[int]()

    def __call__(self, inputs: Tensor) -> Tensor:
        self.asked.append(len(inputs))
        if len(inputs) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.run(inputs)


@torch.inference_mode()
def test_a_full_device_halves_the_batch_under_a_compiler_in_lower_precision_too() -> None:
    classifier = used(toys.conv_gap(), precision="bfloat16", compile=True)
    compiled = classifier._compiled[classifier.network]
    inputs, targets = toys.inputs(8), torch.zeros(8).long()
    full = _Full(classifier.network, 3)
    compiled._run = full
    masked = MaskedForward(classifier, targets, 8, target_logit)
    found = masked.scores(torch.arange(8), lambda rows: inputs[rows])
    assert full.asked == [8, 4, 2, 2, 2, 2]
    assert compiled._run is full  # a full device is no failure of the compiler
    expected = in_chunks(lambda rows: classifier.logits(inputs[rows])[:, 0], 8, 2)
    torch.testing.assert_close(found, expected)
