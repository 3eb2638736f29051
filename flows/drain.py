"""Run pending steps on Dask, a bounded number at a time, and report steps whose worker was killed.

Prefect by itself does not notice that a worker was killed: ``future.wait()`` returns, the task run stays
Running, ``retries`` is ignored and the flow ends Completed. Here the result of every future is read. A killed
step is marked Crashed and submitted again a bounded number of times, and failed steps are returned by name.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import distributed
import httpx
from distributed.scheduler import KilledWorker
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed
from prefect_dask.task_runners import PrefectDaskFuture

from storage.datasets.opening import ChangedDatasetError
from storage.errors import FloodlitError
from storage.places import is_away
from storage.records import Step

Submit = Callable[[Step, bool], PrefectDaskFuture]
ATTEMPTS = 2  # the second one uses half batches
LOOK_SECONDS = 0.05  # between two checks for an ended step; meanwhile each worker has another step to start
ALONE_SECONDS = 600.0  # without any worker, until the job gives up; a cluster may have to start machines
ASK_SECONDS = 5.0  # between two questions to the scheduler whether it has workers
KILLED_ATTEMPTS = 3  # if the worker died, for which another step may have been the reason


class LostClusterError(FloodlitError):
    """The scheduler or all of its workers are gone; the message says what to do."""


@dataclass
class Queue:
    """Pending steps; steps that are ready are handed out shard by shard.

    A step waits only for steps of its own shard. At any time at most ``most_shards`` shards are open, which
    means started and not ended, so that memory, disk and unfinished work stay bounded. If a step fails, the
    steps that wait for it fail too. The cost of a call depends on the number of open shards, not on the
    number of shards of the job.

    Attributes
    ----------
    pending
        Each step that has not started, with the steps for which it waits.
    most_shards
        Most shards that may be open.
    running
        Steps that were handed out and have not ended.
    failed
        Failed steps, and steps that waited for them, with the reason.
    """

    pending: dict[Step, set[Step]]
    most_shards: int
    running: set[Step] = field(default_factory=set)
    failed: dict[Step, str] = field(default_factory=dict)
    _open: set[int] = field(default_factory=set)
    _shards: dict[int, dict[Step, set[Step]]] = field(init=False)

    def __post_init__(self) -> None:
        self._shards = {}  # the pending steps again, by shard, sharing the sets of `pending`
        for step, needs in self.pending.items():
            self._shards.setdefault(step.shard, {})[step] = needs

    def take(self, count: int) -> list[Step]:
        """Return up to ``count`` steps that may start now, and count them as running."""
        taken: list[Step] = []
        for shard, steps in self._shards.items():
            closed = shard not in self._open
            if len(taken) >= count or (closed and len(self._open) >= self.most_shards):
                break  # shards open in this order, so all shards after a closed one are closed
            taken += [step for step, needs in steps.items() if not needs][: count - len(taken)]
            self._open.add(shard)
        for step in taken:
            self._drop(step)
            self.running.add(step)
        return taken

    def succeed(self, step: Step) -> None:
        """Mark ``step`` as done, so that the steps that waited for it may start."""
        for needs in self._shards.get(step.shard, {}).values():
            needs.discard(step)
        self._leave(step)

    def fail(self, step: Step, reason: str) -> list[Step]:
        """Mark ``step`` and all steps that need it as failed; return these steps."""
        lost = [step]  # grows in the loop: a step may need one that was lost a moment ago
        for other, needs in list(self._shards.get(step.shard, {}).items()):
            if needs & set(lost):
                self._drop(other)
                lost.append(other)
        self.failed |= {
            gone: reason if gone == step else f"waits for a failed step: {reason}" for gone in lost
        }
        self._leave(step)
        return lost

    def abandon(self) -> None:
        """Drop all pending steps, so that no more steps start."""
        self.pending.clear()
        self._shards.clear()

    def _drop(self, step: Step) -> None:
        """Remove a step from the pending ones."""
        del self.pending[step]
        steps = self._shards[step.shard]
        del steps[step]
        if not steps:
            del self._shards[step.shard]

    def _leave(self, step: Step) -> None:
        """Remove a step from the running ones, and close its shard if that was the shard's last step."""
        self.running.discard(step)
        if step.shard not in self._shards and all(step.shard != other.shard for other in self.running):
            self._open.discard(step.shard)


def drain(
    pending: dict[Step, set[Step]],
    submit: Submit,
    *,
    client: distributed.Client,
    workers: int,
    on_end: Callable[[Step], None],
    on_failure: Callable[[Step, Exception, int], None],
    stopping: Callable[[], bool],
    hurrying: Callable[[], bool],
) -> bool:
    """Run every pending step.

    Parameters
    ----------
    pending
        Steps and their needs, as :func:`flows.plan.pending_steps` returns them.
    submit
        Function that starts one step and returns its future; its second argument asks for half batches.
    client
        The Dask client that ``submit`` uses.
    workers
        Number of workers. Each of them gets one step to run and one step that waits.
    on_end
        Called after every step that succeeded or was given up, unless the store is the reason of a failure.
    on_failure
        Called with a step that is given up, its last error and the number of attempts.
    stopping
        Function that says whether to start no more steps; running steps are waited for.
    hurrying
        Function that says whether to return without waiting for the running steps.

    Returns
    -------
    bool
        Whether each step is done or given up.

    Raises
    ------
    OSError
        If the disk is full or S3 does not answer. No more steps start, and running steps are waited for.
    storage.datasets.opening.ChangedDatasetError
        If the dataset is not what it was when the job was planned; running steps are waited for.
    LostClusterError
        If the scheduler is gone, or if it has had no workers for ten minutes.
    """
    # A copy, because the queue removes needs from the sets.
    queue = Queue({step: set(needs) for step, needs in pending.items()}, most_shards=2 * workers)
    work = _UnderWay(submit, client)
    ends_all: Exception | None = None
    left = False
    while queue.pending or queue.running:
        # A worker that ends its step has the next one already, and does not wait for the flow.
        work.start(*queue.take(2 * workers - len(queue.running)))
        ended = work.next_ended(hurrying)
        if ended is None:
            return False
        step, error = ended
        if stopping():
            left = True
            queue.abandon()
        if error is None:
            queue.succeed(step)
            on_end(step)
            continue
        last = work.attempts[step] >= _allowed(error)
        # These fail every step. No step is marked, so that the next run does them.
        if (told := _of_every_step(error)) is not None:
            ends_all = told
            queue.abandon()
        elif ends_all is None and last:
            on_failure(step, error, work.attempts[step])
        elif ends_all is None and not left:
            work.start(step)
            continue
        lost = queue.fail(step, f"{type(error).__name__}: {error}")
        for each in lost if ends_all is None else []:
            on_end(each)
    if ends_all is not None:
        raise ends_all
    return not left


class _UnderWay:
    """The steps that were sent to workers, and the number of attempts at each step."""

    def __init__(self, submit: Submit, client: distributed.Client) -> None:
        self.attempts: dict[Step, int] = {}
        self._submit = submit
        self._client = client
        self._futures: dict[distributed.Future, tuple[Step, PrefectDaskFuture]] = {}
        self._ended = distributed.as_completed(loop=client.loop)

    def start(self, *steps: Step) -> None:
        """Submit steps; every attempt after the first uses half batches."""
        for step in steps:
            self.attempts[step] = self.attempts.get(step, 0) + 1
            future = self._submit(step, self.attempts[step] > 1)
            self._futures[future.wrapped_future] = step, future
            self._ended.add(future.wrapped_future)

    def next_ended(self, hurrying: Callable[[], bool]) -> tuple[Step, Exception | None] | None:
        """Wait for a step to end; return it with its error, which is None if it succeeded.

        Returns None, without a step, if ``hurrying`` says so. Raises LostClusterError if no step can end.
        """
        asked = with_workers = time.monotonic()
        while not self._ended.has_ready():
            if hurrying():
                return None
            time.sleep(LOOK_SECONDS)
            now = time.monotonic()
            if now - asked > ASK_SECONDS:
                asked = now
                if self._client.scheduler_info()["workers"]:
                    with_workers = now
                if now - with_workers > ALONE_SECONDS:
                    raise LostClusterError(
                        f"the job has had no worker for {ALONE_SECONDS:.0f} s; see why its workers end, and "
                        "run the same job again to continue"
                    )
        step, future = self._futures.pop(next(self._ended))
        return step, _error_of(future)


def _of_every_step(error: Exception) -> Exception | None:
    """Return the error that ends the job if it would occur in every step: a full disk, a lost server, or a
    dataset that changed; else None.
    """
    if isinstance(error, ChangedDatasetError) or (
        isinstance(error, OSError) and (error.errno == errno.ENOSPC or is_away(error))
    ):
        return error
    return OSError(f"the store cannot be reached: {error}") if is_away(error) else None


def _allowed(error: Exception) -> int:
    """Return how often a step that ends with this error is tried."""
    return KILLED_ATTEMPTS if isinstance(error, KilledWorker) else ATTEMPTS


def _error_of(future: PrefectDaskFuture[Any]) -> Exception | None:
    """Return the error of an ended step: the one its task raised, or KilledWorker; None if it succeeded."""
    try:
        future.result()
    except KilledWorker as error:
        mark_crashed(future, f"the worker running it was killed: {error}")
        return error
    except CancelledError as error:  # nobody here cancels a step
        raise LostClusterError(
            "the connection to the Dask scheduler was lost; run the same job again to continue"
        ) from error
    except Exception as error:  # the caller reports it, and the other steps continue
        return error
    return None


def mark_crashed(future: PrefectDaskFuture, message: str) -> None:
    """Set a task run to Crashed, since Prefect does not notice that its process has died."""
    # The process may have died before Prefect knew the task run, and Prefect's server with it. What a server
    # lacks is only a note: the step is done again in any case.
    with get_client(sync_client=True) as client, suppress(ObjectNotFound, httpx.HTTPError):
        client.set_task_run_state(future.task_run_id, Crashed(message=message), force=True)
