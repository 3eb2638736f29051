"""The queue starts what is ready, keeps few shards open, and takes dependents down with what failed."""

from flows.drain import Queue
from flows.plan import Done, pending_steps
from storage.records import Step

PENDING = pending_steps(6, {"a": True, "b": False}, {"insertion"}, Done())


def run_all(queue: Queue) -> list[Step]:
    order = []
    while queue.pending or queue.running:
        taken = queue.take(3)
        order += taken
        queue.succeed((taken or list(queue.running))[0])
        while queue.running:
            queue.succeed(next(iter(queue.running)))
    return order


def fresh(most_shards: int) -> Queue:
    return Queue({step: set(needs) for step, needs in PENDING.items()}, most_shards)


def test_every_step_starts_once_and_after_all_it_needs() -> None:
    order = run_all(fresh(2))
    assert sorted(map(str, order)) == sorted(map(str, PENDING))
    place = {step: i for i, step in enumerate(order)}
    assert all(place[need] < place[step] for step, needs in PENDING.items() for need in needs)


def test_no_more_shards_are_open_than_allowed() -> None:
    queue = fresh(2)
    begun: set[int] = set()
    while queue.pending or queue.running:
        begun |= {step.shard for step in queue.take(100)}
        unfinished = {s.shard for s in [*queue.pending, *queue.running]} & begun
        assert len(unfinished) <= 2
        queue.succeed(next(iter(queue.running)))
    assert begun == set(range(6))


def test_a_failure_takes_its_dependents_and_nothing_else() -> None:
    queue = fresh(1)
    for step in (Step("inputs", 0), Step("activations", 0)):
        assert step in queue.take(1)
        queue.succeed(step)
    started = queue.take(1)
    assert started == [Step("saliency", 0, "a")]
    lost = queue.fail(started[0], "bug")
    assert set(lost) == {Step("saliency", 0, "a"), Step("scores", 0, "a")}
    rest = run_all(queue)
    assert len(rest) == len(PENDING) - 4
    assert set(queue.failed) == set(lost)
    assert queue.failed[started[0]] == "bug"


def test_an_abandoned_queue_starts_nothing_more() -> None:
    queue = fresh(6)
    running = queue.take(1)
    queue.abandon()
    assert queue.take(10) == []
    queue.succeed(running[0])
    assert not queue.running


class Counted(set[Step]):
    """What a step waits for; counts how often anything is asked of it."""

    asked = 0

    def __len__(self) -> int:
        Counted.asked += 1
        return super().__len__()

    def discard(self, step: Step) -> None:
        Counted.asked += 1
        super().discard(step)


def asked_per_step(shards: int) -> float:
    pending = pending_steps(shards, {"a": True, "b": False}, {"insertion"}, Done())
    Counted.asked = 0
    run_all(Queue({step: Counted(needs) for step, needs in pending.items()}, 4))
    return Counted.asked / len(pending)


def test_a_step_costs_the_same_in_a_job_of_many_shards() -> None:
    assert asked_per_step(10) <= asked_per_step(500) < 1.5 * asked_per_step(10)
