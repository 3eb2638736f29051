"""Explain and score a few inputs in memory, without a run: what :mod:`floodlit` offers in Python.

The results are those of a job, which goes through the same explainers and metrics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from explainers.base import OF_LAYER, Explainer, Explanation, Need, Parameters, Status
from explainers.models import loading
from explainers.models.black_box import BlackBox
from explainers.models.class_matching import match
from explainers.models.compute import tf32
from explainers.models.frozen import Frozen
from explainers.models.modality import MODALITIES, ModalityName
from explainers.models.model_spec import ModelSpec
from explainers.models.probes_at_load import probe
from explainers.numerics.randomness import seed_of
from explainers.probes.masked_forward import target_probability
from explainers.registry import explainers
from explainers.requirements import unmet
from explainers.several_layers import make_explainer
from plugins.registry import validated
from tasks.explain_again import ExplainAgain, explained
from tasks.given_inputs import GivenInputs, preprocessing_of
from tasks.metrics.base import Metric, MetricBatch, Scores
from tasks.metrics.base import Need as MetricNeed
from tasks.metrics.preparation import prepare
from tasks.metrics.registry import metrics


@dataclass(frozen=True, eq=False, repr=False)
class Found:
    """Saliency maps of B inputs, and how they were made.

    Attributes
    ----------
    maps
        (B, \\*grid) float32, raw and signed, on the explainer's native grid.
    statuses
        One :class:`explainers.base.Status` per map.
    details
        What else the explainer found, by name; the first axis is B.
    targets
        (B,) int64, the class that was explained.
    explainer, parameters
        Name and parameters of the explainer.
    seed, ids
        What the random numbers of each input follow from.
    model
        The fingerprint of the model's weights.
    digests
        One per input: what tells inputs apart, so that maps are not scored on others.
    """

    maps: Tensor
    statuses: list[Status]
    details: Mapping[str, Tensor]
    targets: Tensor
    explainer: str
    parameters: Parameters
    seed: int
    ids: Sequence[object]
    model: str
    digests: Sequence[str]

    def __repr__(self) -> str:
        grid = "x".join(map(str, self.maps.shape[1:]))
        return f"<{len(self.maps)} maps of {grid} by {self.explainer}>"


def load(
    source: str,
    name: str | None = None,
    *,
    device: str | torch.device | None = None,
    modality: ModalityName = "image",
    input_size: tuple[int, ...] | None = None,
    **keys: Any,
) -> Any:
    """The classifier that the ``[model]`` table of a job describes.

    Parameters
    ----------
    source, name
        Where the network comes from, and its name there.
    device
        Where it computes; by default a GPU, if there is one.
    modality
        What its inputs are: "image", "text" or "tensor".
    input_size
        (H, W) of images, where neither ``crop`` nor the source says it; (T,) or (C, T) of plain tensors.
    keys
        The other keys of the table: ``weights``, ``layer``, ``resize``, ``crop``, ``num_classes``, ...

    Returns
    -------
    model
        A ``Classifier``, ``TextClassifier`` or ``TensorClassifier``.

    Raises
    ------
    ValueError
        In one line that names the key and says what to do.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality: there is no {modality!r}; choose {', '.join(MODALITIES)}")
    spec = validated(ModelSpec, {"source": source, "name": name, **keys}, "model").relative_to(Path.cwd())
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    steps = loading.preprocessing(spec) if modality == "image" else None
    if steps is not None and steps.size is not None and input_size not in (None, steps.size):
        height, width = steps.size
        raise ValueError(f"input_size: {source} {name} takes {height}x{width} pixels; set crop instead")
    with torch.inference_mode(False):  # or no explainer could take gradients through the weights
        model = loading.load(spec, where, input_size, modality)
    _probe(model)
    if steps is not None:
        preprocessing_of[model] = steps
    return model


def explain(
    model: BlackBox,
    inputs: Any,
    explainer: str,
    *,
    targets: Any = None,
    seed: int = 0,
    ids: Iterable[object] | None = None,
    batch: int = 16,
    forwards: int = 64,
    **parameters: Any,
) -> Found:
    """Saliency maps of some inputs, as a job computes them.

    Parameters
    ----------
    model
        What :func:`load` returned, or a ``Classifier`` of your own network.
    inputs
        Images: (B, C, H, W) in [0, 1], uint8 or uint16; or files or PIL images, which go through the
        preprocessing of a loaded model. Texts: strings. Plain tensors: (B, T) or (B, C, T). A single input
        may stand alone.
    explainer
        A name that ``floodlit explainers`` lists, or ``package.module:Name``.
    targets
        The class to explain: one number, or one per input; or names, if ``model.class_names`` knows them. By
        default it is the predicted class.
    seed, ids
        The random numbers of an input follow from the seed and the input's position, so that the same input
        has others at another position. ``ids`` gives each input a name to be used in place of its position:
        with the seed and the sample ids of a run, random numbers are those of the run.
    batch, forwards
        Inputs per step, and forward passes per perturbation step. They bound memory.
    parameters
        Parameters of the explainer.

    Raises
    ------
    ValueError
        In one line: which name, parameter, target or input is wrong, what the model lacks, or which probe
        refuses it (see :mod:`explainers.models.probes_at_load`; every model is asked once).
    """
    _check_arguments(model, batch=batch, forwards=forwards)
    _probe(model)
    given = GivenInputs(model, inputs)
    chosen = explainers.parameters(explainer, parameters)
    if explainers.get(explainer).needs & OF_LAYER:
        _probe(model, of_layers=True)
    made = _explainer(explainer, model, chosen)
    if Need.PREDICTION in made.needs and targets is not None and model.exclusive:
        raise ValueError(f"explainer {explainer} explains the predicted class only; leave targets out")
    names = list(range(len(given)) if ids is None else ids)
    _check_counts(len(given), ids=names)
    wanted = _targets(_numbered(targets, model), model.num_classes, len(given))
    seeds = _seeds(seed, "saliency", names)
    found, digests = [], []
    with _computing():
        for rows in given.steps(batch):
            values, _ = given.read(rows)
            digests += _digests(values)
            classes = None if wanted is None else wanted[rows].to(model.device)
            its, one = explained(made, model, values, classes, seeds[rows].to(model.device), forwards)
            details = {key: detail.cpu() for key, detail in one.details.items()}
            found.append((its.cpu(), Explanation(one.maps.float().cpu(), one.statuses, details)))
    explanations = [explanation for _, explanation in found]
    return Found(
        maps=torch.cat([each.maps for each in explanations]),
        statuses=[status for each in explanations for status in each.statuses],
        details=_joined([each.details for each in explanations]),
        targets=torch.cat([classes for classes, _ in found]),
        explainer=explainer,
        parameters=chosen,
        seed=seed,
        ids=names,
        model=model.fingerprint,
        digests=digests,
    )


def score(
    model: BlackBox,
    inputs: Any,
    found: Found,
    metric: str,
    *,
    boxes: Sequence[Any] | None = None,
    masks: Sequence[Any] | None = None,
    batch: int = 16,
    forwards: int = 64,
    **parameters: Any,
) -> Scores:
    """Scores of maps: ``values``, {column: (B,)}, and ``curves``, {column: (B, points)}.

    Parameters
    ----------
    model, inputs
        The ones that were explained.
    found
        What :func:`explain` returned. A metric that runs the explainer again makes it as it was made there.
    metric
        A name that ``floodlit metrics`` lists, or ``package.module:Name``.
    boxes
        Per input the boxes of its object, each xmin, ymin, xmax, ymax in pixels of what is given.
    masks
        Per input the pixels of its object: a file or PIL image as large as the given one, or an array (H, W)
        as large as the model's input.
    batch, forwards
        Inputs per step, and forward passes per perturbation step. They bound memory.
    parameters
        Parameters of the metric.

    Raises
    ------
    ValueError
        In one line: which name, parameter or input is wrong, or what the metric needs.
    """
    _check_arguments(model, batch=batch, forwards=forwards)
    if not isinstance(found, Found):
        raise ValueError(f"found: give what explain returned; this is a {type(found).__name__}")
    if found.model != model.fingerprint:
        raise ValueError("found: the maps are those of another model; explain the inputs with this one first")
    given = GivenInputs(model, inputs)
    boxes = [boxes] if boxes is not None and len(given) == 1 and _is_one_box(boxes) else boxes
    _check_counts(len(given), maps=found.maps, boxes=boxes, masks=masks)
    made = _metric(metric, model, parameters, boxes=boxes, masks=masks)
    seeds = _seeds(found.seed, "scores", found.ids)
    own_seeds = _seeds(found.seed, "saliency", found.ids)
    parts = []
    with _computing():
        asks = MetricNeed.EXPLAINER in made.needs
        explainer = _explainer(found.explainer, model, found.parameters) if asks else None
        for rows in given.steps(batch):
            values, its_boxes = given.read(rows, None if boxes is None else boxes[rows])
            if _digests(values) != found.digests[rows]:
                raise ValueError(
                    "found: the maps are those of other inputs; give the same ones in the same order"
                )
            targets = found.targets[rows].to(model.device)
            again = None
            if explainer is not None:
                again = ExplainAgain(
                    explainer,
                    model,
                    lambda asked: _explainer(found.explainer, asked, found.parameters),
                    targets,
                    own_seeds[rows].to(model.device),
                    batch,
                    forwards,
                )
            with torch.no_grad():
                confidence = target_probability(model, model.logits(values), targets)
            one = MetricBatch(
                inputs=values,
                targets=targets,
                seeds=seeds[rows].to(model.device),
                confidence=confidence,
                boxes=its_boxes,
                forwards=forwards,
                masks=None if masks is None else given.masks(masks[rows], rows.start),
                explain=again,
            )
            maps = found.maps[rows].to(model.device)
            parts.append(made.score(one, prepare(maps, model.input_shape[1:], model.sites(values))[0]))
    return Scores(_joined([part.values for part in parts]), _joined([part.curves for part in parts]))


# The classifiers that answered the probes at load: those of their layer (True), and the others (False).
_probed: dict[bool, WeakSet[Frozen]] = {True: WeakSet(), False: WeakSet()}


def _probe(model: Any, of_layers: bool = False) -> None:
    """Ask a classifier the probes at load, once; other black boxes answer for themselves."""
    if isinstance(model, Frozen) and model not in _probed[of_layers]:
        probe(model, of_layers)
        _probed[of_layers].add(model)


def _explainer(name: str, model: BlackBox, parameters: Parameters) -> Explainer:
    cls = explainers.get(name)
    lacking = unmet(cls.needs, model)
    if lacking is not None:
        raise ValueError(f"explainer {name} {lacking}")
    try:
        return make_explainer(cls, model, parameters)
    except ValueError as error:
        raise ValueError(f"explainer {name}: {error}") from error


def _metric(name: str, model: BlackBox, parameters: Mapping[str, Any], **given: Any) -> Metric:
    """The metric of that name, if it can score maps of ``model`` with the boxes and masks that are given."""
    cls, chosen = metrics.get(name), metrics.parameters(name, parameters)
    if MetricNeed.PIXELS in cls.needs and model.modality != "image":
        raise ValueError(
            f"metric {name} scores maps of images, and the model takes {MODALITIES[model.modality].plural}"
        )
    for need in (MetricNeed.BOXES, MetricNeed.MASKS):
        if need in cls.needs and given[need.value] is None:
            raise ValueError(
                f"metric {name} needs the {need} of the objects; give {need}=, one entry per input"
            )
    try:
        made: Metric = cls(model, chosen)
    except ValueError as error:
        raise ValueError(f"metric {name}: {error}") from error
    return made


def _check_arguments(model: Any, **sizes: Any) -> None:
    if not (isinstance(model, Frozen) or hasattr(model, "modality")):
        raise ValueError(
            f"model: give what floodlit.load returned, or floodlit.Classifier(network, input_size=(H, W)); "
            f"this is a {type(model).__name__}"
        )
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}: give a whole number of at least 1, not {size!r}")


def _is_one_box(boxes: Any) -> bool:
    """Whether it is xmin, ymin, xmax, ymax of a single box."""
    return len(boxes) == 4 and all(isinstance(each, int | float) for each in boxes)


def _digests(inputs: Tensor) -> list[str]:
    """One digest per input of (b, C, \\*sites)."""
    return [hashlib.sha256(each.contiguous().numpy().tobytes()).hexdigest() for each in inputs.detach().cpu()]


def _check_counts(inputs: int, **given: Any) -> None:
    for name, each in given.items():
        if each is not None and len(each) != inputs:
            raise ValueError(f"{name}: there are {inputs} inputs and {len(each)} {name}; give one per input")


def _numbered(given: Any, model: BlackBox) -> Any:
    """Targets that are names as the numbers of the model's classes; all others as they are."""
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return given
    if not names or model.class_names is None:
        return given
    found = match(names, model.class_names, model.num_classes)
    for reason in found.reasons.values():
        raise ValueError(f"targets: {reason}")
    numbers = list(found.indices.values())
    return numbers[0] if isinstance(given, str) else numbers


def _targets(given: Any, classes: int, count: int) -> Tensor | None:
    """(count,) classes; None where the predicted ones are wanted."""
    if given is None:
        return None
    wanted = f"targets: give one class number, or one for each of the {count} inputs"
    try:
        targets = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{wanted}; this is {given!r}") from error
    targets = targets.expand(count) if targets.ndim == 0 else targets
    if targets.dtype.is_floating_point or targets.dtype == torch.bool or targets.shape != (count,):
        raise ValueError(wanted)
    wrong = targets[(targets < 0) | (targets >= classes)]
    if len(wrong):
        raise ValueError(f"targets: {int(wrong[0])} is no class of the model; choose 0 to {classes - 1}")
    return targets.long()


def _seeds(seed: int, purpose: str, names: Sequence[object]) -> Tensor:
    return torch.tensor([seed_of(seed, purpose, name) for name in names])


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([part[key].cpu() for part in parts]) for key in parts[0]}


@contextmanager
def _computing() -> Iterator[None]:
    """As in a job: gradients can be taken, and float32 products are not rounded to TF32."""
    with torch.inference_mode(False), torch.enable_grad(), tf32(False):
        yield
