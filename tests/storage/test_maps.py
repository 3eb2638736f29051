"""Arrays: whole shards only, nothing lost between processes, gaps told from zeros, damage told from data."""

import errno
import hashlib
import math
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from runs import create_array
from storage import maps
from storage.layout import ArrayLayout
from storage.places import is_away

ROWS, SHARD = 50, 16


@pytest.fixture
def array(tmp_path: Path) -> Path:
    path = tmp_path / "a.zarr"
    create_array(path, ROWS, (3, 5), "float32", shard_rows=SHARD)
    return path


def rows_from(start: int, stop: int) -> np.ndarray:
    """Values that name their own row, so that a row in the wrong place shows."""
    return np.arange(start * 15, stop * 15, dtype=np.float32).reshape(-1, 3, 5)


def test_what_is_written_is_read_shard_by_shard_and_across_shards(array: Path) -> None:
    assert maps.write_shard(array, 0, rows_from(0, 32)) == [
        maps.shard_file(array, 0),
        maps.shard_file(array, 1),
    ]
    maps.write_shard(array, 32, rows_from(32, 48))
    maps.write_shard(array, 48, rows_from(48, 50))
    assert np.array_equal(maps.read(array, 0, ROWS), rows_from(0, ROWS))
    assert np.array_equal(maps.read(array, 30, 49), rows_from(30, 49))
    assert maps.read(array, 7, 7).shape == (0, 3, 5)


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 15), (1, 16), (8, 24), (16, 50 - 1), (48, 49), (0, 50 + 1), (64, 80), (16, 16), (-16, 0)],
)
def test_a_write_that_is_not_whole_shards_is_refused_with_both_numbers(
    array: Path, start: int, stop: int
) -> None:
    with pytest.raises(ValueError, match=rf"{start} to {stop} .* {SHARD} rows|does not fit"):
        maps.write_shard(array, start, rows_from(start, stop))
    assert not (array / "c").exists()


@given(
    start=st.integers(0, 60),
    count=st.integers(0, 60),
)
def test_alignment_is_refused_exactly_where_a_shard_would_be_shared(
    tmp_path_factory: pytest.TempPathFactory, start: int, count: int
) -> None:
    path = tmp_path_factory.mktemp("aligned") / "a.zarr"
    create_array(path, 21, (), "int64", shard_rows=4)
    covered = set(range(start, start + count))
    shards = [set(range(first, min(first + 4, 21))) for first in range(0, 21, 4)]
    whole = bool(covered) and covered == set().union(*(shard for shard in shards if shard & covered))
    try:
        maps.write_shard(path, start, np.arange(count))
    except ValueError:
        assert not whole
    else:
        assert whole
        assert np.array_equal(maps.read(path, start, start + count), np.arange(count))


def test_aligned_writers_in_four_processes_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "shared.zarr"
    create_array(path, 37 * 4, (3, 5), "float32", shard_rows=4)
    work = [(path, start, rows_from(start, start + 4)) for start in range(0, 37 * 4, 4)]
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.starmap(maps.write_shard, work, chunksize=1)
    assert np.array_equal(maps.read(path, 0, 37 * 4), rows_from(0, 37 * 4))
    assert not list(path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("dtype", "gap"), [("float32", np.nan), ("float16", np.nan), ("int8", -1), ("uint8", 0)]
)
def test_rows_nobody_wrote_hold_what_no_result_is(tmp_path: Path, dtype: str, gap: float) -> None:
    path = tmp_path / "a.zarr"
    create_array(path, 8, (2,), dtype, shard_rows=4)
    maps.write_shard(path, 4, np.zeros((4, 2), dtype))
    everything = zarr.open_array(str(path), mode="r")[:]
    assert np.array_equal(everything, [[gap, gap]] * 4 + [[0, 0]] * 4, equal_nan=True)


def test_reading_rows_nobody_wrote_is_an_error(array: Path) -> None:
    maps.write_shard(array, 16, rows_from(16, 32))
    with pytest.raises(maps.DamagedShardError, match=r"c/0/0/0 is missing"):
        maps.read(array, 10, 20)
    with pytest.raises(ValueError, match=r"rows 40 to 51 .* has 50"):
        maps.read(array, 40, 51)


def test_single_rows_come_in_their_order(array: Path) -> None:
    maps.write_shard(array, 16, rows_from(16, 32))
    maps.write_shard(array, 48, rows_from(48, 50))
    for chosen in ([], [20], [31, 16, 31], [49, 17, 48, 16], [*range(31, 15, -1), 49]):
        np.testing.assert_array_equal(maps.read_rows(array, chosen), rows_from(0, ROWS)[chosen])


def test_single_rows_that_nobody_wrote_or_that_do_not_exist_are_an_error(array: Path) -> None:
    maps.write_shard(array, 16, rows_from(16, 32))
    with pytest.raises(maps.DamagedShardError, match=r"c/0/0/0 is missing"):
        maps.read_rows(array, [20, 3])
    for row in (-1, 50):
        with pytest.raises(ValueError, match=r"not in .* has 50"):
            maps.read_rows(array, [20, row])


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_a_shard_of_fill_values_or_zeros_has_its_file(array: Path, value: float) -> None:
    (file,) = maps.write_shard(array, 48, np.full((2, 3, 5), value, np.float32))
    assert file == maps.shard_file(array, 3) == array / "c" / "3" / "0" / "0"
    assert file.stat().st_size > 0
    assert np.array_equal(maps.read(array, 48, 50), np.full((2, 3, 5), value), equal_nan=True)


def test_arrays_of_scalars_have_one_file_a_shard_too(tmp_path: Path) -> None:
    path = tmp_path / "status"
    create_array(path, 5, (), "int8", shard_rows=4)
    (file,) = maps.write_shard(path, 4, np.array([3], np.int8))
    assert file == path / "c" / "1"
    assert maps.read(path, 4, 5).tolist() == [3]


def test_an_array_of_another_layout_is_refused(array: Path) -> None:
    maps.check_layout(array, ArrayLayout(ROWS, (3, 5), "float32", SHARD))
    for rows, shape, dtype, shard_rows in [
        (51, (3, 5), "float32", SHARD),
        (ROWS, (3, 6), "float32", SHARD),
        (ROWS, (3, 5), "float16", SHARD),
        (ROWS, (3, 5), "float32", 32),
    ]:
        with pytest.raises(ValueError, match=r"\(50, 3, 5\), \(16, 3, 5\), float32, but .* is in run"):
            maps.check_layout(array, ArrayLayout(rows, shape, dtype, shard_rows))


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "missing"])
def test_a_damaged_shard_is_an_error_and_is_replaced_by_writing_it_again(array: Path, damage: str) -> None:
    noise = np.random.default_rng(0).normal(size=(16, 3, 5)).astype(np.float32)
    (file,) = maps.write_shard(array, 16, noise)
    good = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        flipped = bytes([*good[:100], good[100] ^ 1, *good[101:]])
        file.write_bytes({"flipped": flipped, "truncated": good[: len(good) // 2], "empty": b""}[damage])
    with pytest.raises(maps.DamagedShardError, match=r"a\.zarr"):
        maps.read(array, 16, 32)
    maps.write_shard(array, 16, noise)
    assert file.read_bytes() == good


def test_the_same_values_give_the_same_bytes_whatever_lay_there(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(16, 40, 7)).clip(0).astype(np.float32)
    hashes = set()
    for before in (None, values + 1):
        path = tmp_path / f"{before is None}.zarr"
        create_array(path, 16, (40, 7), "float32", shard_rows=16)
        if before is not None:
            maps.write_shard(path, 0, before)
        (file,) = maps.write_shard(path, 0, values)
        hashes.add(hashlib.sha256(file.read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_values_of_another_shape_or_kind_or_range_are_refused(array: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(16, 5, 3\) from row 0 does not fit"):
        maps.write_shard(array, 0, np.zeros((16, 5, 3), np.float32))
    pixels = tmp_path / "u.zarr"
    create_array(pixels, 4, (), "uint8", shard_rows=4)
    with pytest.raises(ValueError, match="holds uint8; float32 does not fit"):
        maps.write_shard(pixels, 0, np.zeros(4, np.float32))
    half = tmp_path / "h.zarr"
    create_array(half, 4, (), "float16", shard_rows=4)
    maps.write_shard(half, 0, np.array([np.nan, np.inf, 65504, -1], np.float32))
    with pytest.raises(ValueError, match="cannot hold 70000; use float32"):
        maps.write_shard(half, 0, np.array([0, 1, -70000, np.nan], np.float32))


def test_no_array_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no readable Zarr array"):
        maps.read(tmp_path / "nothing.zarr", 0, 1)


@given(st.integers(1, 600))
def test_the_inner_chunk_divides_the_shard_and_is_16_large_rows_where_it_can_be(shard_rows: int) -> None:
    chunk = maps._chunk_rows(shard_rows, 3 * 224 * 224)
    assert shard_rows % chunk == 0
    assert chunk == 16 or shard_rows % 16


def test_the_inner_chunk_holds_more_of_small_rows(tmp_path: Path) -> None:
    for name, shape, rows in (("inputs", (3, 32, 32), 64), ("grid", (7, 7), 1024), ("status", (), 1024)):
        create_array(tmp_path / name, 2048, shape, "float32", shard_rows=1024)
        assert maps.chunk_of(tmp_path / name) == (rows, 4 * math.prod(shape))


def test_a_busy_server_is_not_taken_for_a_missing_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As s3fs says SlowDown: the step is not to be marked failed."""

    def busy(*_: object, **__: object) -> None:
        raise OSError(errno.EBUSY, "Please reduce your request rate")

    monkeypatch.setattr("storage.maps.zarr.open_array", busy)
    with pytest.raises(OSError, match="request rate") as told:
        maps.open_array(tmp_path / "maps")
    assert is_away(told.value)


def test_rows_that_claim_more_than_the_memory_are_not_read(tmp_path: Path) -> None:
    create_array(tmp_path / "a.zarr", 2**30, (1024,), "float64", shard_rows=2**30)
    with pytest.raises(maps.DamagedShardError, match=r"claim 8,796,093,022,208 bytes"):
        maps.read(tmp_path / "a.zarr", 0, 2**30)


def test_metadata_that_is_no_file_is_not_opened(array: Path) -> None:
    (array / "zarr.json").unlink()
    os.mkfifo(array / "zarr.json")
    with pytest.raises(maps.DamagedShardError, match="is a pipe, not a file"):
        maps.read(array, 0, 1)
