"""One model, examined in a process of its own: what Floodlit finds, and whether that is right."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from explainers.base import Need
from explainers.models import cutting, finding, loading
from explainers.models.classifier import Classifier
from explainers.models.loading import ModelSpec
from explainers.models.probes_at_load import probe
from explainers.numerics.differences import difference
from explainers.requirements import unmet
from plugins.reasons import first_line
from sweep import checks
from sweep.families import CLASSES
from sweep.listed import Entry

COLUMNS = (
    "source",
    "name",
    "family",
    "parameters",
    "input",
    "status",
    "reason",
    "layer",
    "cut",
    "grid",
    "units",
    "channels",
    "prefix_tokens",
    "token_dropping",
    "attention",
    "seconds_to_build",
    "seconds_to_find",
    "passes_to_find",
    "seconds_to_cut",
    "passes_to_cut",
    "seconds_to_probe",
    "passes_to_probe",
    "by_hand",
    "listed",
    "versions",
)
_LIBRARIES = {"open_clip": "open_clip_torch", "huggingface": "transformers"}
_DIES_OUT = 0.3  # of its size that a signal keeps behind a layer
_ROUNDING = 2e-5  # of the largest logit: batches of other sizes stay below it
_NEARLY_NOTHING = 0.05  # a constant parameter below it hides the branch that it scales


@torch.no_grad()
def draw(network: nn.Module) -> None:
    """Give random values to parameters that start as zero or as a small constant and so hide a branch.

    These are last layers, class tokens, and the scales of residual branches. Biases stay as they are. Weights
    so small that a signal would die out in a narrow network are scaled up.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        values = parameter.detach().float()
        if not values.numel():
            continue
        constant = bool(values.min() == values.max() and values.abs().max() <= _NEARLY_NOTHING)
        if sum(length > 1 for length in parameter.shape) > 1:
            if constant:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
            gain = float(parameter.std()) * (parameter.numel() / len(parameter)) ** 0.5
            if 0 < gain < _DIES_OUT:
                parameter.mul_(1 / gain)
        elif not constant:
            continue
        elif "bias" not in name and "beta" not in name:
            parameter.copy_(torch.rand(parameter.shape, generator=generator) * 0.2 + 0.1)


@torch.no_grad()
def calibrate(classifier: Classifier) -> None:
    """Let every BatchNorm normalise by what it sees of four seeded inputs, as after a training.

    With the statistics that a new network has, a signal shrinks from layer to layer, and whatever is added to
    it behind an attention drowns it. A network in which this blows up rounding is left as it was.
    """
    norms = [each for each in classifier.network.modules() if isinstance(each, _BatchNorm)]
    if not norms:
        return
    kept = [(each.momentum, {name: it.clone() for name, it in each.named_buffers()}) for each in norms]
    inputs = checks.fresh(classifier, 4, 12)
    for each in norms:
        each.train()
        each.momentum = 1.0
    try:
        classifier.logits(inputs)
    finally:
        for each, (momentum, _) in zip(norms, kept, strict=True):
            each.eval()
            each.momentum = momentum
    tried = torch.cat([inputs, classifier.probed])
    alone = torch.cat([classifier.logits(each[None]) for each in tried])
    if difference(alone, classifier.logits(tried)) <= _ROUNDING:
        return
    for each, (_, buffers) in zip(norms, kept, strict=True):
        each.load_state_dict(buffers, strict=False)


class Counted:
    """Loads classifiers with drawn weights, and counts the inputs that pass through the whole network."""

    def __init__(self) -> None:
        self.inputs = 0

    def load(self, table: dict[str, Any], device: str) -> Classifier:
        """The classifier of a ``[model]`` table, loaded as a job loads it."""
        build = loading.network_of

        def network_of(*args: Any) -> nn.Module:
            network = build(*args)
            draw(network)
            network.register_forward_hook(self._count)
            return network

        with patch.object(loading, "network_of", network_of):
            classifier = loading.load(ModelSpec(**table), device)
        calibrate(classifier)
        return classifier

    def _count(self, _: nn.Module, inputs: tuple[Any, ...], __: Any) -> None:
        if inputs and type(inputs[0]) is Tensor:  # neither tracing nor export runs the network
            self.inputs += len(inputs[0])


def examine(entry: Entry, device: str) -> dict[str, Any]:
    """The row of one model.

    Parameters
    ----------
    entry
        The model.
    device
        Where the network runs.

    Returns
    -------
    dict
        A value for each of ``COLUMNS``. ``status`` is "works", "refused" (in one line, before any work),
        "wrong" (accepted, and a check of its own fails), "unclear" (accepted, and random weights hide where
        the cells lie) or "failed" (another error than a refusal).
    """
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    library = _LIBRARIES.get(entry.source, entry.source)
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {
        "source": entry.source,
        "name": entry.name,
        "family": entry.family,
        "listed": "yes" if entry.listed else "no",
        "versions": f"torch {version('torch')}, {library} {version(library)}",
    }
    try:
        with _table(entry) as table:
            _fill(row, entry, table, device)
    except ValueError as error:
        if not str(error).startswith(("model.", "input_size:")):
            return row | {"status": "failed", "reason": _where(error)}
        row |= {"status": "refused", "reason": first_line(error)}
    except Exception as error:
        row |= {"status": "failed", "reason": _where(error)}
    return row


def _where(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {first_line(error)} ({Path(last.filename).name}:{last.lineno})"


@contextmanager
def _table(entry: Entry) -> Iterator[dict[str, Any]]:
    """The ``[model]`` table of an entry; for Hugging Face, of a folder that is made for it."""
    if entry.configuration is None:
        yield entry.table
        return
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    kind, cls, side, values = entry.configuration
    with TemporaryDirectory() as folder:
        configuration = AutoConfig.for_model(kind, num_labels=CLASSES, **values)
        configuration.architectures = [cls or MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[kind]]
        configuration.save_pretrained(folder)
        size = {"height": side, "width": side}
        processor = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": size}
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
        yield {"source": "huggingface", "name": folder, "weights": "none"}


def _fill(row: dict[str, Any], entry: Entry, table: dict[str, Any], device: str) -> None:
    """Fill a row; what is known when a model is refused stays in it."""
    counted, start = Counted(), time.perf_counter()
    with counted.load(table, device) as classifier:
        row["seconds_to_build"] = round(time.perf_counter() - start, 2)
        row["parameters"] = sum(each.numel() for each in classifier.network.parameters())
        row["input"] = "x".join(map(str, classifier.input_shape))
        row |= _cost_of_finding(classifier, counted)
        row["layer"] = classifier.layer
        row["grid"] = "x".join(map(str, classifier.grid))
        row["cut"] = classifier.way
        row["units"] = f"{classifier.units.count} {classifier.units.kind}"
        row["channels"] = classifier.channels
        row["prefix_tokens"] = classifier.prefix_tokens
        start, counted.inputs = time.perf_counter(), 0
        probe(classifier)
        row["seconds_to_probe"] = round(time.perf_counter() - start, 2)
        row["passes_to_probe"] = counted.inputs
        wrong = [each(classifier) for each in (checks.head, checks.reach, checks.follows)]
        row["by_hand"], problem = _by_hand(entry, table, classifier, device)
        wrong.append(problem)
        for need, check in _TOKENS.items():
            lacks = unmet({need}, classifier)
            row[_NAMES[need]] = "yes" if lacks is None else f"no: {lacks}"
            if lacks is None:
                wrong.append(check(classifier))
    told = [each for each in wrong if each is not None]
    unclear = all(each.startswith(checks.UNCLEAR) for each in told)
    row["status"] = "works" if not told else checks.UNCLEAR if unclear else "wrong"
    row["reason"] = "; ".join(told)


def _cost_of_finding(classifier: Classifier, counted: Counted) -> dict[str, float]:
    """What finding the layer costs, and apart from it the cuts: a layer that is named needs one as well."""
    spent = dict.fromkeys(("seconds_to_cut", "passes_to_cut"), 0.0)

    def cut(*args: Any) -> Any:
        start, before = time.perf_counter(), counted.inputs
        try:
            return cutting.cut(*args)
        finally:
            spent["seconds_to_cut"] += time.perf_counter() - start
            spent["passes_to_cut"] += counted.inputs - before

    start, counted.inputs = time.perf_counter(), 0
    with patch.object(finding, "cut", cut):
        classifier.target_layer  # noqa: B018  looked up when it is asked for
    spent["seconds_to_find"] = time.perf_counter() - start - spent["seconds_to_cut"]
    spent["passes_to_find"] = counted.inputs - spent["passes_to_cut"]
    return {name: round(value, 2) if "seconds" in name else int(value) for name, value in spent.items()}


_TOKENS: dict[Need, Callable[[Classifier], str | None]] = {
    Need.PATCHES: checks.token_dropping,
    Need.ATTENTION: checks.attention,
}
_NAMES = {Need.PATCHES: "token_dropping", Need.ATTENTION: "attention"}


def _by_hand(
    entry: Entry, table: dict[str, Any], classifier: Classifier, device: str
) -> tuple[str, str | None]:
    """The layer that is named by hand, if there is one, and how its maps differ from the classifier's."""
    layer = checks.BY_HAND.get((entry.source, entry.name))
    if layer is None:
        return "", None
    with Counted().load(table | {"layer": layer}, device) as other:
        return layer, checks.maps_by_hand(classifier, other)
