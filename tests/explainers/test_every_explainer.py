"""What every registered explainer has to hold on every kind of classifier; new ones appear by themselves."""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import toys
from explainers.base import OF_LAYER, Batch, Explainer, Explanation, Need, Status
from explainers.control_names import CONTROLS
from explainers.models.classifier import Classifier
from explainers.registry import explainers
from explainers.requirements import unmet

COUNT = 4
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def made(name: str, classifier: Classifier, folder: Path) -> Explainer:
    cls = explainers.get(name)
    explainer: Explainer = cls(classifier, cls.Parameters(**toys.parameters(name, classifier, folder)))
    return explainer


def cases() -> list[tuple[str, str]]:
    """Every explainer on every classifier that can serve it."""
    found = []
    for kind, make in toys.CLASSIFIERS.items():
        with make() as classifier:
            found += [
                (name, kind)
                for name in explainers.names()
                if unmet(explainers.get(name).needs, classifier) is None
            ]
    return found


@pytest.fixture(params=cases(), ids="-".join, scope="module")
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Explainer, Classifier]]:
    name, kind = request.param
    with toys.CLASSIFIERS[kind]() as classifier:
        yield made(name, classifier, tmp_path_factory.mktemp(name)), classifier


def rows(batch: Batch, index: list[int]) -> Batch:
    assert batch.activations is not None
    return Batch(
        batch.inputs[index],
        batch.targets[index],
        batch.seeds[index],
        batch.activations[index],
        batch.forwards,
    )


def assert_same(one: Explanation, other: Explanation) -> None:
    """Equal up to the rounding of differently sized matrix products."""
    assert one.statuses == other.statuses
    assert one.details.keys() == other.details.keys()
    torch.testing.assert_close(one.maps, other.maps, rtol=1e-4, atol=1e-5)
    for name, values in one.details.items():
        torch.testing.assert_close(values, other.details[name], rtol=1e-4, atol=1e-5, equal_nan=True)


def joined(parts: list[Explanation]) -> Explanation:
    return Explanation(
        torch.cat([part.maps for part in parts]),
        [status for part in parts for status in part.statuses],
        {name: torch.cat([part.details[name] for part in parts]) for name in parts[0].details},
    )


def test_every_explainer_of_images_is_tried_on_some_classifier() -> None:
    others = {Need.SEQUENCE, Need.GIVEN}
    of_images = {name for name in explainers.names() if not explainers.get(name).needs & others}
    assert {name for name, _ in cases()} == of_images


@pytest.mark.parametrize("kind", toys.CLASSIFIERS)
def test_only_explainers_that_say_so_cut_the_network(kind: str, tmp_path: Path) -> None:
    with toys.CLASSIFIERS[kind]() as classifier:
        free = [name for name in explainers.names() if not explainers.get(name).needs & OF_LAYER]
        served = [name for name in free if unmet(explainers.get(name).needs, classifier) is None]
        assert {"rise", "occlusion", "pami", "ptame", "gradient_shap"} <= set(served)
        targets = torch.zeros(2, dtype=torch.int64)
        for name in served:
            made(name, classifier, tmp_path).explain(Batch(toys.inputs(2), targets, torch.arange(2)))
            assert classifier.layer_in_use is None, name
        classifier.head(classifier.activations(toys.inputs(2)))
        assert classifier.layer_in_use == classifier.layer


@pytest.mark.parametrize("name", explainers.names())
def test_it_says_what_it_is_and_which_paper_it_follows(name: str) -> None:
    cls = explainers.get(name)
    assert cls.name == name
    assert cls.title
    assert "\n" not in cls.title
    if name not in CONTROLS and Need.GIVEN not in cls.needs:
        assert re.search(r"\b(19|20)\d\d\b|arXiv", cls.__doc__)
    assert cls.needs <= set(Need)


@pytest.mark.parametrize("name", explainers.names())
def test_its_parameters_have_defaults_are_frozen_and_refuse_unknown_keys(name: str) -> None:
    cls = explainers.get(name)
    parameters = cls.Parameters()
    assert cls.Parameters.__doc__
    with pytest.raises(ValidationError, match="no_such_parameter"):
        cls.Parameters(no_such_parameter=1)
    for field in cls.Parameters.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(parameters, field, getattr(parameters, field))


def test_what_comes_out_is_finite_and_as_described(case: tuple[Explainer, Classifier]) -> None:
    explainer, classifier = case
    explanation = explainer.explain(toys.batch(classifier, COUNT))
    description = explainer.describe()
    assert explanation.maps.shape == (COUNT, *description.grid)
    assert explanation.maps.dtype == torch.float32
    assert explanation.maps.isfinite().all()
    assert len(explanation.statuses) == COUNT
    assert not {Status.FAILED, Status.NOT_FINITE} & set(explanation.statuses)
    assert explanation.details.keys() == description.details.keys()
    for name, detail in description.details.items():
        values = explanation.details[name]
        assert values.shape == (COUNT, *detail.shape)
        assert str(values.dtype) == f"torch.{detail.dtype}"
        assert not values.is_floating_point() or not values.isinf().any()


def test_a_batch_gives_what_its_images_give_one_by_one(case: tuple[Explainer, Classifier]) -> None:
    explainer, classifier = case
    batch = toys.batch(classifier, COUNT)
    alone = [explainer.explain(rows(batch, [image])) for image in range(COUNT)]
    assert_same(explainer.explain(batch), joined(alone))


def test_order_does_not_matter(case: tuple[Explainer, Classifier]) -> None:
    explainer, classifier = case
    batch = toys.batch(classifier, COUNT)
    order = [2, 0, 3, 1]
    shuffled = explainer.explain(rows(batch, order))
    back = [order.index(image) for image in range(COUNT)]
    restored = Explanation(
        shuffled.maps[back],
        [shuffled.statuses[image] for image in back],
        {name: values[back] for name, values in shuffled.details.items()},
    )
    assert_same(explainer.explain(batch), restored)


def test_the_same_seeds_give_the_same_bits_again(case: tuple[Explainer, Classifier], tmp_path: Path) -> None:
    explainer, classifier = case
    batch = toys.batch(classifier, COUNT)
    torch.manual_seed(1)
    first = explainer.explain(batch)
    torch.manual_seed(2)
    second = made(explainer.name, classifier, tmp_path).explain(batch)
    assert first.statuses == second.statuses
    assert torch.equal(first.maps, second.maps)
    for name, values in first.details.items():
        torch.testing.assert_close(values, second.details[name], rtol=0, atol=0, equal_nan=True)


def test_inference_mode_around_it_makes_no_difference(case: tuple[Explainer, Classifier]) -> None:
    explainer, classifier = case
    batch = toys.batch(classifier, COUNT)
    outside = explainer.explain(batch)
    with torch.inference_mode():
        assert_same(explainer.explain(batch), outside)


def test_the_batch_is_left_as_it_was(case: tuple[Explainer, Classifier]) -> None:
    explainer, classifier = case
    batch = toys.batch(classifier, COUNT)
    before = [value.clone() for value in vars(batch).values() if isinstance(value, Tensor)]
    explainer.explain(batch)
    after = [value for value in vars(batch).values() if isinstance(value, Tensor)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("forwards", [2, 7])
def test_no_forward_is_larger_than_asked(case: tuple[Explainer, Classifier], forwards: int) -> None:
    """Not more at once than forwards per step, or images per step where those are more.

    What counts is the size of what a layer is given, in whole inputs: of inputs with few tokens each, a
    transformer can take more. Pooled features (B, D) are small, and left out.
    """
    explainer, classifier = case
    batch = toys.batch(classifier, COUNT, forwards)
    whole: dict[nn.Module, int] = {}
    sizes = [0.0]

    def note_whole(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        whole[module] = args[0].numel()

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].ndim > 2 and module in whole:
            sizes.append(args[0].numel() / whole[module])

    with hooks(classifier, note_whole):
        classifier.logits(batch.inputs[:1])
    with hooks(classifier, note):
        different = explainer.explain(batch)
    assert max(sizes) <= max(COUNT, forwards)
    assert_same(different, explainer.explain(toys.batch(classifier, COUNT)))


class _CrashError(Exception):
    pass


def crash(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    raise _CrashError


@contextlib.contextmanager
def hooks(classifier: Classifier, hook: Callable[..., None]) -> Iterator[None]:
    """``hook`` before every module without children."""
    leaves = [module for module in classifier.network.modules() if not list(module.children())]
    handles = [leaf.register_forward_pre_hook(hook) for leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def traces(network: nn.Module) -> list[object]:
    """Everything that an explainer could leave behind on a network."""
    left: list[object] = [getattr(module, kind).copy() for module in network.modules() for kind in HOOKS]
    left += [module.training for module in network.modules()]
    left += [(parameter.requires_grad, parameter.grad) for parameter in network.parameters()]
    return left


def test_nothing_is_left_on_the_network_after_success(case: tuple[Explainer, Classifier]) -> None:
    explainer, classifier = case
    before = traces(classifier.network)
    explainer.explain(toys.batch(classifier, COUNT))
    assert traces(classifier.network) == before


def test_nothing_is_left_on_the_network_after_a_crash(case: tuple[Explainer, Classifier]) -> None:
    explainer, classifier = case
    batch = toys.batch(classifier, COUNT)
    before = traces(classifier.network)
    calls: list[bool] = []
    with hooks(classifier, lambda *_: calls.append(True)):
        explainer.explain(batch)
    expectation = pytest.raises(_CrashError) if calls else contextlib.nullcontext()
    with hooks(classifier, crash), expectation:
        explainer.explain(batch)
    assert traces(classifier.network) == before


def tensors_alive() -> int:
    gc.collect()
    return sum(1 for thing in gc.get_objects() if isinstance(thing, Tensor))


@pytest.mark.parametrize(("name", "kind"), dict(cases()).items())
def test_memory_stays_flat_over_200_batches(name: str, kind: str, tmp_path: Path) -> None:
    """No tensor more is alive after batch 200 than after batch 5, and the process has not grown."""
    process = psutil.Process()
    with toys.CLASSIFIERS[kind]() as classifier:
        explainer = made(name, classifier, tmp_path)
        batch = rows(toys.batch(classifier, COUNT), [0])
        for _ in range(5):
            explainer.explain(batch)
        alive, resident = tensors_alive(), process.memory_info().rss
        for _ in range(195):
            explainer.explain(batch)
        assert tensors_alive() <= alive
        assert process.memory_info().rss - resident < 8 * 2**20
