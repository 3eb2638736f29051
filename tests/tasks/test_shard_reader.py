"""Images read in blocks: the same whatever the block, and read once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs import create_array
from storage import maps
from tasks import shard_reader
from tasks.shard_reader import ShardReader

ROWS, SHARD, ROW_BYTES = 50, 16, 6


class Bounds:
    """Of a run only where its shards are."""

    def bounds(self, shard: int) -> tuple[int, int]:
        return shard * SHARD, min((shard + 1) * SHARD, ROWS)


@pytest.fixture(scope="module")
def array(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("blocks") / "inputs.zarr"
    create_array(path, ROWS, (2, 3), "uint8", shard_rows=SHARD)
    for start in range(0, ROWS, SHARD):
        stop = min(start + SHARD, ROWS)
        maps.write_shard(
            path, start, np.arange(start * 6, stop * 6, dtype=np.uint16).astype(np.uint8).reshape(-1, 2, 3)
        )
    return path


def reading(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The rows of every read from here on."""
    seen: list[tuple[int, int]] = []
    read: Callable[..., np.ndarray] = maps.read

    def noted(path: Path, start: int, stop: int) -> np.ndarray:
        seen.append((start, stop))
        return read(path, start, stop)

    monkeypatch.setattr(shard_reader, "read", noted)
    return seen


@given(
    block=st.integers(1, 200),
    chunk=st.sampled_from([1, 4, 16]),
    shard=st.integers(0, 3),
    asked=st.lists(st.integers(0, SHARD - 1), min_size=1, max_size=30).map(sorted),
    size=st.integers(1, 9),
)
def test_a_batch_has_what_the_array_has_whatever_the_block(
    array: Path, block: int, chunk: int, shard: int, asked: list[int], size: int
) -> None:
    """Rows left out and rows asked for twice, as those of failed images and of several targets, included."""
    first, stop = Bounds().bounds(shard)
    rows = np.array([row for row in asked if first + row < stop], int)
    whole = maps.read(array, first, stop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_reader, "BLOCK_BYTES", block)
        patch.setattr(shard_reader, "chunk_of", lambda _: (chunk, ROW_BYTES))
        images = ShardReader(Bounds(), array, shard)  # type: ignore[arg-type]
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            assert np.array_equal(images.rows(batch), whole[batch])


@pytest.mark.parametrize("block", [8, 11])
def test_a_block_is_read_once_and_ends_where_a_chunk_does(
    array: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """Or two blocks would decode the chunk."""
    monkeypatch.setattr(shard_reader, "chunk_of", lambda _: (4, ROW_BYTES))
    monkeypatch.setattr(shard_reader, "BLOCK_BYTES", block * ROW_BYTES)
    seen = reading(monkeypatch)
    images = ShardReader(Bounds(), array, 1)  # type: ignore[arg-type]
    for start in range(0, SHARD, 2):
        images.rows(np.arange(start, start + 2))
    assert seen == [(16, 24), (24, 32)]
    images.rows(np.arange(2, 15))  # a batch larger than a block
    assert seen[2:] == [(18, 31)]


def test_a_block_is_a_chunk_at_least_and_ends_with_the_shard(
    array: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_reader, "chunk_of", lambda _: (SHARD, ROW_BYTES))
    monkeypatch.setattr(shard_reader, "BLOCK_BYTES", 1)
    seen = reading(monkeypatch)
    images = ShardReader(Bounds(), array, 3)  # type: ignore[arg-type]
    images.rows(np.array([0]))
    images.rows(np.array([1]))
    assert seen == [(48, 50)]


def test_what_is_handed_out_is_not_the_block(array: Path) -> None:
    images = ShardReader(Bounds(), array, 0)  # type: ignore[arg-type]
    images.rows(np.arange(4))[:] = 99
    assert np.array_equal(images.rows(np.arange(4)), maps.read(array, 0, 4))
