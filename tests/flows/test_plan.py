"""The plan is all shards x stages minus what is done, and nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from flows.plan import (
    INNER_CHUNK,
    SHARD_BYTES,
    SHARD_PIXELS,
    TASK_RUNS,
    WORKER_SHARDS,
    Done,
    pending_steps,
    shard_images,
)
from storage.records import Step

EXPLAINERS = {"ddcam": True, "sobel": False}


def test_fresh_run_needs_every_step_of_every_shard() -> None:
    pending = pending_steps(3, EXPLAINERS, {"insertion"}, Done())
    assert len(pending) == 3 * (2 + 2 * 2)
    assert pending[Step("scores", 1, "ddcam")] == {
        Step("inputs", 1),
        Step("activations", 1),
        Step("saliency", 1, "ddcam"),
    }


def test_shards_are_started_in_order() -> None:
    shards = [step.shard for step in pending_steps(4, EXPLAINERS, {"insertion"}, Done())]
    assert shards == sorted(shards)


def everything(shards: int = 2, metrics: frozenset[str] = frozenset({"insertion"})) -> Done:
    steps = set(pending_steps(shards, EXPLAINERS, metrics, Done()))
    return Done(steps, {step: metrics for step in steps if step.stage == "scores"})


def test_nothing_is_left_of_a_complete_run() -> None:
    assert pending_steps(2, EXPLAINERS, {"insertion"}, everything()) == {}


def test_only_what_is_missing_is_planned_and_waits_for_nothing_that_is_done() -> None:
    done = everything()
    lost = Step("scores", 1, "sobel")
    left = Done(done.steps - {lost}, done.metrics, done.dropped)
    assert pending_steps(2, EXPLAINERS, {"insertion"}, left) == {lost: set()}


def test_a_lost_map_is_scored_again() -> None:
    done = everything()
    lost = Step("saliency", 0, "sobel")
    pending = pending_steps(2, EXPLAINERS, {"insertion"}, Done(done.steps - {lost}, done.metrics))
    assert pending == {lost: set(), Step("scores", 0, "sobel"): {lost}}


def test_an_added_metric_rescores_and_explains_nothing() -> None:
    pending = pending_steps(2, EXPLAINERS, {"insertion", "deletion"}, everything())
    assert {step.stage for step in pending} == {"scores"}
    assert len(pending) == 4


def test_an_added_explainer_recomputes_dropped_activations_only_if_it_reads_them() -> None:
    done = everything()
    dropped = Done(done.steps, done.metrics, {step for step in done.steps if step.stage == "activations"})
    assert pending_steps(2, EXPLAINERS, {"insertion"}, dropped) == {}
    reads = pending_steps(2, EXPLAINERS | {"gradcam": True}, {"insertion"}, dropped)
    assert {(s.stage, s.explainer) for s in reads} == {
        ("activations", ""),
        ("saliency", "gradcam"),
        ("scores", "gradcam"),
    }
    blind = pending_steps(2, EXPLAINERS | {"random": False}, {"insertion"}, dropped)
    assert {(s.stage, s.explainer) for s in blind} == {("saliency", "random"), ("scores", "random")}


@given(
    st.integers(1, 2_000_000),
    st.integers(1, 20),
    st.integers(1, 64),
    st.integers(32, 512),
    st.integers(0, 4_000_000),
)
def test_shards_are_aligned_bounded_in_memory_and_few(
    images: int, explainers: int, workers: int, side: int, size: int
) -> None:
    rows = shard_images(images, explainers, workers, side * side, size)
    assert rows % INNER_CHUNK == 0
    assert rows > 0
    held = max(size, 4 * side**2)
    assert rows * held <= SHARD_BYTES + INNER_CHUNK * held
    if held * images <= SHARD_BYTES:
        assert -(-images // rows) <= max(
            TASK_RUNS // (2 + 2 * explainers), WORKER_SHARDS * workers, images * side**2 / SHARD_PIXELS + 1
        )


def test_every_worker_of_a_small_job_has_a_shard() -> None:
    assert shard_images(104, 6, 2, 224 * 224, 0) == 64
    assert shard_images(1000, 6, 2, 64 * 64, 0) == 512


def test_every_worker_of_a_large_job_has_several_shards_to_even_out_slow_steps() -> None:
    assert shard_images(1_000_000, 10, 64, 224 * 224, 0) == 2608  # 384 shards, six for each of 64 workers
    assert shard_images(1_000_000, 10, 2, 32 * 32, 0) == 76_928  # 13 shards, 300 task runs


def test_a_shard_of_full_size_maps_fits_in_memory() -> None:
    assert shard_images(1_300_000, 10, 1, 224 * 224, 0) == 5360  # 1 GiB of maps, or 0.8 GB of pixels


def test_a_shard_of_many_bands_fits_in_memory() -> None:
    """Thirteen bands of 16 bits are 26 bytes a pixel."""
    rows = shard_images(1_300_000, 10, 1, 224 * 224, 26 * 224 * 224)
    assert rows == (1 << 30) // (26 * 224 * 224) // INNER_CHUNK * INNER_CHUNK + INNER_CHUNK


def test_shards_of_small_images_are_larger() -> None:
    assert shard_images(50_000, 6, 2, 224 * 224, 0) == 2384  # 21 shards: what the number of task runs allows
    assert shard_images(5_000, 6, 2, 224 * 224, 0) == 240
    assert shard_images(5_000, 6, 2, 64 * 64, 0) == 784
