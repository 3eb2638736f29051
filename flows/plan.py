"""The plan of a run: all shards x stages, minus the finished steps. Pure functions without Prefect."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from storage.records import Step

TASK_RUNS = 300  # most task runs of a job; each costs about 0.1 s of the flow's time
# Steps of different explainers differ a hundredfold in length, and at the end all workers wait for the last
# long step. Workers compute 0.7 of the time with one shard per worker, and 0.93 with six.
WORKER_SHARDS = 6
SHARD_PIXELS = 64 * 224 * 224  # least pixels of a shard, so that the work outweighs a task run's cost
SHARD_BYTES = 1 << 30  # most bytes of a shard's activations or maps, since a worker holds them in memory
INNER_CHUNK = 16  # rows; a shard is a whole number of the stores' inner chunks


def shard_images(images: int, explainers: int, workers: int, pixels: int, bytes_each: int) -> int:
    """Return the number of images per shard: few task runs, several shards per worker, bounded memory.

    Every worker gets at least one shard, and ``WORKER_SHARDS`` if each shard then has enough work.

    Parameters
    ----------
    images, explainers, workers
        Numbers of the job's images, explainers and workers.
    pixels
        Pixels of one input, H * W.
    bytes_each
        Bytes of one input as it is stored, of its cached activations or of its masks, whichever are most.

    Returns
    -------
    int
        A multiple of 16, the stores' inner chunk.
    """
    # A shard takes one task run for the inputs, one for the activations, and two per explainer.
    most_shards = max(WORKER_SHARDS * workers, TASK_RUNS // (2 + 2 * explainers))
    size = max(SHARD_PIXELS // pixels, -(-images // most_shards))
    size = min(size, max(INNER_CHUNK, -(-images // workers)))
    held = max(bytes_each, 4 * pixels)  # a float32 map may be as large as the input
    size = min(size, max(INNER_CHUNK, SHARD_BYTES // held))
    return -(-size // INNER_CHUNK) * INNER_CHUNK


@dataclass(frozen=True)
class Done:
    """The state of a run as its done-records describe it.

    Attributes
    ----------
    steps
        Steps that are finished.
    metrics
        Metrics that the score file of a step holds.
    dropped
        Steps of the stage activations whose arrays were deleted after they were finished.
    """

    steps: Set[Step] = frozenset()
    metrics: Mapping[Step, Set[str]] = field(default_factory=dict)
    dropped: Set[Step] = frozenset()


def pending_steps(
    shards: int, explainers: Mapping[str, bool], metrics: Set[str], done: Done
) -> dict[Step, set[Step]]:
    """Return each step that is still to run, with the pending steps for which it has to wait.

    Parameters
    ----------
    shards
        Number of shards.
    explainers
        For each explainer's name, whether it reads the cached activations.
    metrics
        Names of the metrics that every score file must hold.
    done
        The steps that are finished.

    Returns
    -------
    dict
        The steps in the order in which to start them: shard by shard, so that few shards are open at a time.
    """
    pending: dict[Step, set[Step]] = {}
    for shard in range(shards):
        inputs, activations = Step("inputs", shard), Step("activations", shard)
        saliency = {e: Step("saliency", shard, e) for e in explainers}
        scores = {e: Step("scores", shard, e) for e in explainers}
        todo = {e for e in explainers if saliency[e] not in done.steps}
        # A new map needs new scores, and a score file is written again as a whole to add a metric.
        rescore = {
            e
            for e in explainers
            if e in todo or scores[e] not in done.steps or metrics - done.metrics.get(scores[e], set())
        }
        # Dropped activations are needed again only if a pending explainer reads them.
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
