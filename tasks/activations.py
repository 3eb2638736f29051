"""Stage 2: predictions, target classes and cached activations.

One backbone pass per image serves all explainers that read activations.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from explainers.models.black_box import BlackBox
from explainers.models.classifier import Classifier
from explainers.numerics.batching import chunks
from storage.maps import shard_file, write_shard
from storage.records import StageFacts, Step
from storage.run import Run
from storage.samples import read_sample_inputs, write_sample_predictions
from tasks.perform import Outcome, perform
from tasks.prefetch import prefetched
from tasks.run_parts import class_names_of, classifier_of, compute_of
from tasks.shard_reader import ShardReader

logger = logging.getLogger(__name__)
_TOO_LARGE = "its logits exceed the range of float16; use bfloat16"
_NOT_FINITE = "its logits are infinite or NaN; the network gives no prediction for it"


@task(name="activations", cache_policy=NO_CACHE)
def activations(root: str, shard: int, keep: bool, halve: bool = False) -> dict[str, Any]:
    """Write one shard of predictions and targets, and of ``activations.zarr`` if an explainer reads it.

    An input whose logits are not finite gets no prediction and no target. Its error is stored with the sample
    and logged.

    Parameters
    ----------
    root
        The run folder.
    shard
        Index of the shard, from 0.
    keep
        Whether to store the activations.
    halve
        Whether to halve the batch sizes, as a retry does.

    Returns
    -------
    dict
        The path of the done-record, the rows and the seconds; see :func:`tasks.perform.perform`.
    """
    step = Step("activations", shard)
    return perform(
        root,
        step,
        lambda run: _pass_backbone(run, shard, keep),
        is_done=lambda record: bool(record.facts.cached) or not keep,
        halve=halve,
    )


@torch.inference_mode()
def _pass_backbone(run: Run, shard: int, keep: bool) -> Outcome:
    classifier = classifier_of(run)
    start, stop = run.bounds(shard)
    samples = read_sample_inputs(run.root, shard)
    usable = np.array([sample["status"] == "ok" for sample in samples])
    # A network is cut only where something reads its activations, since not every network can be.
    cut = classifier if keep and isinstance(classifier, Classifier) else None
    store = None if cut is None else np.full((stop - start, *cut.activation_shape), np.nan, np.float32)
    rows: list[dict[str, Any]] = []
    images = ShardReader(run, run.inputs, shard)
    names = class_names_of(run, classifier)

    def read_inputs(chunk: slice) -> dict[str, NDArray[Any]]:
        return {"inputs": images.rows(np.arange(chunk.start, chunk.stop))}

    for chunk, stored in prefetched(chunks(stop - start, run.batch_images), read_inputs, classifier.device):
        inputs = classifier.inputs_of(stored["inputs"])
        if cut is None or store is None:
            logits = _logits_of(classifier, inputs, torch.from_numpy(usable[chunk]).to(inputs.device))
        else:
            features = cut.activations(inputs)
            logits = cut.head(features)
            store[chunk] = features.float().cpu().numpy()
        usable[chunk] &= logits.isfinite().all(1).cpu().numpy()
        probability = classifier.probability(logits.float())
        rows += _predictions(run, samples[chunk], usable[chunk], logits, probability, names)
    files = [write_sample_predictions(run.root, shard, rows)]
    if store is not None:
        store[~usable] = np.nan  # the network saw a placeholder there, or gave no numbers
        write_shard(run.activations, start, store)
        files.append(shard_file(run.activations, shard))
    for row in rows:
        if row["error"]:
            logger.warning("%s: %s", row["sample_id"], row["error"])
    statuses = ["failed" if row["error"] else s["status"] for row, s in zip(rows, samples, strict=True)]
    return Outcome(len(rows), statuses, files, StageFacts(cached=keep))


def _logits_of(classifier: BlackBox, inputs: Tensor, able: Tensor) -> Tensor:
    """Logits (B, classes) of the ``able`` inputs, (B,) bool; zeros for the others.

    Inputs that could not be read are not passed, since not every text network accepts an empty text.
    """
    logits = torch.zeros(len(inputs), classifier.num_classes, device=inputs.device)
    if able.any():
        logits[able] = classifier.logits(inputs[able]).float()
    return logits


def _predictions(
    run: Run,
    samples: list[dict[str, Any]],
    usable: np.ndarray,
    logits: Tensor,
    probability: Tensor,
    names: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """One row per sample for :func:`storage.samples.write_sample_predictions`."""
    predicted = logits.argmax(1, keepdim=True)
    confidence, prediction = probability.gather(1, predicted)[:, 0].tolist(), predicted[:, 0].tolist()
    targets = _targets(run, samples, logits)
    why = _TOO_LARGE if compute_of(run).precision == "float16" else _NOT_FINITE
    probabilities = probability.cpu()
    return [
        {
            "sample_id": sample["sample_id"],
            "label_name": _name(names, sample["label"]) or sample["label_name"],
            "prediction": prediction[i] if usable[i] else None,
            "prediction_name": _name(names, prediction[i]) if usable[i] else None,
            "confidence": confidence[i] if usable[i] else None,
            "target": target[0] if usable[i] and target else None,
            "targets": target if usable[i] else [],
            "target_names": [_name(names, each) for each in target] if usable[i] and names else None,
            "probabilities": probabilities[i, target].tolist() if usable[i] else [],
            "error": None if usable[i] or sample["status"] != "ok" else why,
        }
        for i, (sample, target) in enumerate(zip(samples, targets, strict=True))
    ]


def _name(names: Sequence[str] | None, number: int | None) -> str | None:
    """The name of the model's class; None if the class or its name is not known."""
    return None if names is None or number is None or number >= len(names) else names[number]


def _targets(run: Run, samples: list[dict[str, Any]], logits: Tensor) -> list[list[int]]:
    """The classes to explain per input, as the job's ``target`` says: at most ``run.targets_per_image``."""
    target = run.target
    if run.explains_labels:
        return [list(sample["labels"])[: run.targets_per_image] for sample in samples]
    found: list[list[int]]
    if isinstance(target, dict):
        found = logits.topk(target["top"], 1).indices.tolist()
    elif target == "predicted":
        found = logits.argmax(1, keepdim=True).tolist()
    else:
        found = [[sample["label"] if target == "label" else target] for sample in samples]
    return found
