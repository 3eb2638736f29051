"""Stage 2: one backbone pass an image for all explainers; predictions and target classes on the way."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from explainers.models.black_box import BlackBox
from explainers.models.classifier import Classifier
from storage.maps import shard_file, write_shard
from storage.records import Step
from storage.run import Run
from storage.scores import read_sample_inputs, write_sample_predictions
from tasks.perform import Outcome, chunks, classifier_of, compute_of, perform
from tasks.prefetch import ahead
from tasks.shard_reader import Images

logger = logging.getLogger(__name__)
_TOO_LARGE = "its logits are beyond float16; use bfloat16"


@task(name="activations", cache_policy=NO_CACHE)
def activations(root: str, shard: int, keep: bool, halve: bool = False) -> dict[str, Any]:
    """Write one shard of predictions and targets, and of ``activations.zarr`` if some explainer reads it.

    An input whose logits float16 cannot hold has neither, and the log names it.
    """
    step = Step("activations", shard)
    return perform(
        root,
        step,
        lambda run: _pass_backbone(run, shard, keep),
        is_done=lambda record: record["cached"] or not keep,
        halve=halve,
    )


@torch.inference_mode()
def _pass_backbone(run: Run, shard: int, keep: bool) -> Outcome:
    classifier = classifier_of(run)
    start, stop = run.bounds(shard)
    samples = read_sample_inputs(run.root, shard)
    usable = np.array([sample["status"] == "ok" for sample in samples])
    cut = classifier if isinstance(classifier, Classifier) else None
    store = np.full((stop - start, *cut.activation_shape), np.nan, np.float32) if keep and cut else None
    rows: list[dict[str, Any]] = []
    images = Images(run, run.inputs, shard)

    def read_inputs(chunk: slice) -> dict[str, NDArray[Any]]:
        return {"inputs": images.of(np.arange(chunk.start, chunk.stop))}

    for chunk, stored in ahead(chunks(stop - start, run.batch_images), read_inputs, classifier.device):
        inputs = classifier.inputs_of(stored["inputs"])
        if cut is None:
            logits = _logits_of(classifier, inputs, torch.from_numpy(usable[chunk]).to(inputs.device))
        else:
            features = cut.activations(inputs)
            logits = cut.head(features)
            if store is not None:
                store[chunk] = features.float().cpu().numpy()
        if compute_of(run).precision == "float16":
            usable[chunk] &= logits.isfinite().all(1).cpu().numpy()
        rows += _predictions(run, samples[chunk], usable[chunk], logits)
    files = [write_sample_predictions(run.root, shard, rows)]
    if store is not None:
        store[~usable] = np.nan
        write_shard(run.activations, start, store)
        files.append(shard_file(run.activations, shard))
    for row in rows:
        if row["error"]:
            logger.warning("%s: %s", row["sample_id"], row["error"])
    statuses = ["failed" if row["error"] else s["status"] for row, s in zip(rows, samples, strict=True)]
    return Outcome(len(rows), statuses, files, {"cached": keep})


def _logits_of(classifier: BlackBox, inputs: Tensor, able: Tensor) -> Tensor:
    """Zeros for what could not be read: not every network takes nothing for a text."""
    logits = torch.zeros(len(inputs), classifier.num_classes, device=inputs.device)
    if able.any():
        logits[able] = classifier.logits(inputs[able]).float()
    return logits


def _predictions(
    run: Run, samples: list[dict[str, Any]], usable: np.ndarray, logits: Tensor
) -> list[dict[str, Any]]:
    probability = logits.float().softmax(1)
    confidence, prediction = (values.tolist() for values in probability.max(1))
    targets = _targets(run, samples, logits).to(logits.device)
    probabilities = probability.gather(1, targets).tolist()
    return [
        {
            "sample_id": sample["sample_id"],
            "prediction": prediction[i] if usable[i] else None,
            "confidence": confidence[i] if usable[i] else None,
            "target": target[0] if usable[i] else None,
            "targets": target if usable[i] else [],
            "probabilities": probabilities[i] if usable[i] else [],
            "error": None if usable[i] or sample["status"] != "ok" else _TOO_LARGE,
        }
        for i, (sample, target) in enumerate(zip(samples, targets.tolist(), strict=True))
    ]


def _targets(run: Run, samples: list[dict[str, Any]], logits: Tensor) -> Tensor:
    """(B, k) classes to explain."""
    target = run.job["target"]
    if isinstance(target, dict):
        return logits.topk(target["top"], 1).indices
    if target == "predicted":
        return logits.argmax(1, keepdim=True)
    fixed = [sample["label"] for sample in samples] if target == "label" else [target] * len(samples)
    return torch.tensor(fixed)[:, None]
