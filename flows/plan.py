"""What is left to do: all shards x stages minus what the store says is done. Pure, no Prefect."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from storage.records import Step

TASK_RUNS = 300  # a Prefect task run costs about 0.1 s of the flow's time: keep a job within a few hundred
# Steps of explainers differ a hundredfold in length, and at the end all wait for the last long one:
# with one shard a worker 0.7 of their time is work, with six 0.93.
WORKER_SHARDS = 6
SHARD_PIXELS = 64 * 224 * 224  # enough work per task to be worth that
SHARD_BYTES = 1 << 30  # of a shard's activations or maps, which a worker holds in memory
INNER_CHUNK = 16


def shard_images(images: int, explainers: int, workers: int, pixels: int, activation_bytes: int) -> int:
    """Images per shard: few enough task runs, several shards for every worker, bounded memory.

    Every worker has one shard at least, and ``WORKER_SHARDS`` where that leaves enough work in each.

    Parameters
    ----------
    images, explainers, workers
        Of the job.
    pixels, activation_bytes
        Of one input: H * W, and what its cached activations take.

    Returns
    -------
    int
        A multiple of 16, the stores' inner chunk.
    """
    most_shards = max(WORKER_SHARDS * workers, TASK_RUNS // (2 + 2 * explainers))
    size = max(SHARD_PIXELS // pixels, -(-images // most_shards))
    size = min(size, max(INNER_CHUNK, -(-images // workers)))
    held = max(activation_bytes, 4 * pixels)  # a map may be as large as the input
    size = min(size, max(INNER_CHUNK, SHARD_BYTES // held))
    return -(-size // INNER_CHUNK) * INNER_CHUNK


@dataclass(frozen=True)
class Done:
    """What the done-records say: finished steps, metrics a score file holds, activations since dropped."""

    steps: Set[Step] = frozenset()
    metrics: Mapping[Step, Set[str]] = field(default_factory=dict)
    dropped: Set[Step] = frozenset()


def plan(shards: int, explainers: Mapping[str, bool], metrics: Set[str], done: Done) -> dict[Step, set[Step]]:
    """Each step still to run, with those of the other pending steps it has to wait for.

    Parameters
    ----------
    shards
        Number of shards.
    explainers
        Name to whether it reads the cached activations.
    metrics
        Names of the metrics that every score file must hold.
    done
        What is there already.

    Returns
    -------
    dict
        In the order to start them: shard by shard, so that a shard ends before the next one piles up.
    """
    pending: dict[Step, set[Step]] = {}
    for shard in range(shards):
        inputs, activations = Step("inputs", shard), Step("activations", shard)
        saliency = {e: Step("saliency", shard, e) for e in explainers}
        scores = {e: Step("scores", shard, e) for e in explainers}
        todo = {e for e in explainers if saliency[e] not in done.steps}
        rescore = {
            e
            for e in explainers
            if e in todo or scores[e] not in done.steps or metrics - done.metrics.get(scores[e], set())
        }
        recompute = activations in done.dropped and any(explainers[e] for e in todo)
        steps: dict[Step, set[Step]] = {}
        if inputs not in done.steps:
            steps[inputs] = set()
        if activations not in done.steps or recompute:
            steps[activations] = {inputs}
        for e in explainers:
            if e in todo:
                steps[saliency[e]] = {inputs, activations}
            if e in rescore:
                steps[scores[e]] = {inputs, activations, saliency[e]}
        pending |= {step: needs & steps.keys() for step, needs in steps.items()}
    return pending
