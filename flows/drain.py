"""Run pending steps on Dask, a bounded number at a time, and let no lost worker pass for a success.

Prefect by itself does not notice that a worker was killed: ``future.wait()`` returns, the task run stays
Running, ``retries`` is ignored and the flow ends Completed. Here every future is read, a killed step is
marked Crashed and submitted again a bounded number of times, and what failed is handed back by name.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import distributed
from distributed.scheduler import KilledWorker
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed
from prefect_dask.task_runners import PrefectDaskFuture

from storage.places import is_away
from storage.records import Step

Submit = Callable[[Step, bool], PrefectDaskFuture]
ATTEMPTS = 2  # the second in half batches
LOOK_SECONDS = 0.05  # between looks at whether a step has ended, each worker having another one to begin
KILLED_ATTEMPTS = 3  # where it was the worker that died, which may have had other reasons


@dataclass
class Queue:
    """Pending steps and what they wait for, steps of their own shard; hands out the ready, shard by shard.

    At most ``most_shards`` shards are begun and not ended at any time, so that memory, disk and work at
    risk stay bounded. A failed step takes the steps that wait for it with it. What a call costs depends on
    the shards that are open, not on how many the job has.
    """

    pending: dict[Step, set[Step]]
    most_shards: int
    running: set[Step] = field(default_factory=set)
    failed: dict[Step, str] = field(default_factory=dict)
    _open: set[int] = field(default_factory=set)
    _shards: dict[int, dict[Step, set[Step]]] = field(init=False)

    def __post_init__(self) -> None:
        self._shards = {}  # the pending steps once more, by shard
        for step, needs in self.pending.items():
            self._shards.setdefault(step.shard, {})[step] = needs

    def take(self, count: int) -> list[Step]:
        """Up to ``count`` steps that may start now; they count as running."""
        taken: list[Step] = []
        for shard, steps in self._shards.items():
            closed = shard not in self._open
            if len(taken) >= count or (closed and len(self._open) >= self.most_shards):
                break  # shards are opened in this order: behind a closed one all are closed
            taken += [step for step, needs in steps.items() if not needs][: count - len(taken)]
            self._open.add(shard)
        for step in taken:
            self._drop(step)
            self.running.add(step)
        return taken

    def succeed(self, step: Step) -> None:
        """``step`` is done: what waited for it may start."""
        for needs in self._shards.get(step.shard, {}).values():
            needs.discard(step)
        self._leave(step)

    def fail(self, step: Step, reason: str) -> list[Step]:
        """``step`` cannot be done, and neither can the steps that need it; returns all of these."""
        lost = [step]
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
        """Start nothing more."""
        self.pending.clear()
        self._shards.clear()

    def _drop(self, step: Step) -> None:
        del self.pending[step]
        steps = self._shards[step.shard]
        del steps[step]
        if not steps:
            del self._shards[step.shard]

    def _leave(self, step: Step) -> None:
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
    """Run every pending step; returns whether each one is done or given up.

    Parameters
    ----------
    pending
        As :func:`flows.plan.plan` returns it.
    submit
        Starts one step, in half batches or whole ones, and returns its future.
    client, workers
        The Dask client behind ``submit``, and its number of workers: each gets one step to run and one to
        wait.
    on_end
        Called after every step that ended, well or not, unless the store is why it did not end well.
    on_failure
        Called with a step that is given up, what it ended with, and after how many attempts.
    stopping, hurrying
        Whether to start nothing more, what is under way being waited for; whether not to wait either.

    Raises
    ------
    OSError
        If the disk is full or S3 is away: nothing more is started, and what is under way is waited for.
    """
    queue = Queue({step: set(needs) for step, needs in pending.items()}, most_shards=2 * workers)
    work = _UnderWay(submit, client)
    no_store: OSError | None = None
    left = False
    while queue.pending or queue.running:
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
        if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or is_away(error):
            no_store = (
                error if isinstance(error, OSError) else OSError(f"the store cannot be reached: {error}")
            )
            queue.abandon()
        elif no_store is None and last:
            on_failure(step, error, work.attempts[step])
        elif no_store is None and not left:
            work.start(step)
            continue
        lost = queue.fail(step, f"{type(error).__name__}: {error}")
        for each in lost if no_store is None else []:
            on_end(each)
    if no_store is not None:
        raise no_store
    return not left


class _UnderWay:
    """The steps that workers have, and how often each was begun."""

    def __init__(self, submit: Submit, client: distributed.Client) -> None:
        self.attempts: dict[Step, int] = {}
        self._submit = submit
        self._futures: dict[distributed.Future, tuple[Step, PrefectDaskFuture]] = {}
        self._ended = distributed.as_completed(loop=client.loop)

    def start(self, *steps: Step) -> None:
        for step in steps:
            self.attempts[step] = self.attempts.get(step, 0) + 1
            future = self._submit(step, self.attempts[step] > 1)
            self._futures[future.wrapped_future] = step, future
            self._ended.add(future.wrapped_future)

    def next_ended(self, hurrying: Callable[[], bool]) -> tuple[Step, Exception | None] | None:
        """Wait for one of them, unless in a hurry; what it ended with, if not well."""
        while not self._ended.has_ready():
            if hurrying():
                return None
            time.sleep(LOOK_SECONDS)
        step, future = self._futures.pop(next(self._ended))
        return step, _error_of(future)


def _allowed(error: Exception) -> int:
    """Attempts at a step that ends like this."""
    return KILLED_ATTEMPTS if isinstance(error, KilledWorker) else ATTEMPTS


def _error_of(future: PrefectDaskFuture[Any]) -> Exception | None:
    """What a step ended with: whatever its task raised, KilledWorker, or nothing."""
    try:
        future.result()
    except KilledWorker as error:
        mark_crashed(future, f"the worker running it was killed: {error}")
        return error
    except Exception as error:  # reported by name, while the other steps go on
        return error
    return None


def mark_crashed(future: PrefectDaskFuture, message: str) -> None:
    """Tell Prefect what it cannot know: the process that ran this task run is gone."""
    # It may have died before anybody told Prefect of the task run.
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        client.set_task_run_state(future.task_run_id, Crashed(message=message), force=True)
