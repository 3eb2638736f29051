"""The store on S3, against a real server: the guarantees of a folder, kept without renames and file locks."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from upath import UPath

import packed
from flows.server import free_port
from object_store import ObjectStore
from runs import create_array
from storage import lock, lock_slots, maps
from storage.datasets.opening import open_dataset
from storage.datasets.spec import DatasetSpec
from storage.files import UnreadableError, on_this_machine, replacing, sha256_of_file, write_json
from storage.layout import ArrayLayout
from storage.lock import LockedError, LostLockError, held, holder
from storage.manifest import Manifest
from storage.places import OPTIONS, files_under, folders_in, is_remote, place, remove_tree
from storage.records import (
    DamagedRecordError,
    Step,
    drop_record,
    failures,
    finished,
    read_record,
    write_failure,
    write_record,
)
from storage.run import Run
from storage.verify import repair, verify

MANIFEST = Manifest(
    job={"name": "x", "target": 0, "tolerance": 0, "seed": 0, "batch": {"images": 1, "forwards": 1}},
    identity={},
    versions={},
    model_fingerprint="",
    dataset_fingerprint="",
    rows=64,
    shard_rows=16,
    input_shape=(3, 2, 2),
    explainers={},
    metrics={},
)


@pytest.fixture
def root(s3: ObjectStore) -> Path:
    return place(f"{s3.empty()}/runs/one")


def beat_of(path: Path) -> float:
    """In one request, while it may be replaced."""
    fs, key = object_of(path)
    beat: float = json.loads(fs.cat_file(key))["beat"]
    return beat


def object_of(path: Path) -> tuple[Any, str]:
    return cast(Any, path).fs, cast(Any, path).path


@pytest.mark.parametrize("where", ["s3://bucket/a/b", "s3://bucket/a/b/", Path("s3://bucket/a/b")])
def test_an_address_stays_one_even_where_a_path_was_made_of_it(where: str | Path) -> None:
    made = place(where)
    assert is_remote(made)
    assert str(made) == "s3://bucket/a/b"
    assert place(made) == made
    assert str(made.absolute()) == "s3://bucket/a/b"


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("s3://b/run[1]", "bracket"),
        ("gs://b/x", "give a folder or s3"),
        ("https://host/x", "give a folder or s3"),
        ("s3://", "no bucket"),
    ],
)
def test_other_urls_are_refused_in_one_line(where: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as refusal:
        place(where)
    assert "\n" not in str(refusal.value)


def test_a_path_of_this_machine_stays_what_it_is(tmp_path: Path) -> None:
    assert place(tmp_path) == tmp_path
    assert not is_remote(place("c:/x"))


def test_an_object_appears_whole_or_not_at_all(root: Path) -> None:
    with suppress(ZeroDivisionError), replacing(root / "a") as partial:
        partial.write_bytes(b"half of")
        raise ZeroDivisionError
    assert not (root / "a").exists()
    assert files_under(root) == {}
    for text in ("one", "another"):
        write_json(root / "a", {"text": text})
        assert json.loads((root / "a").read_bytes()) == {"text": text}
    assert list(files_under(root)) == ["a"], "a temporary object stays behind"


def test_what_is_larger_than_a_part_of_an_upload_is_sent_whole(root: Path) -> None:
    data = np.random.default_rng(0).bytes(120_000_000)
    with replacing(root / "large") as partial:
        partial.write_bytes(data)
    assert sha256_of_file(root / "large") == hashlib.sha256(data).hexdigest()


def test_records_are_written_listed_checked_and_dropped(root: Path) -> None:
    (root / "data").write_bytes(b"abc")
    steps = [Step("inputs", 0), Step("saliency", 11, "ddcam"), Step("scores", 2, "gradcam")]
    for step in steps:
        record = write_record(
            root, step, rows=1, statuses={}, files=[Path("data"), root / "data"], seconds=1, worker="w"
        )
        assert [file.path for file in record.files] == ["data", "data"]
    assert finished(root) == set(steps)
    write_failure(root, Step("saliency", 3, "ddcam"), "RuntimeError: x", "traceback", 2)
    assert list(failures(root)) == [Step("saliency", 3, "ddcam")]
    assert finished(root) == set(steps), "a failure is no record"
    drop_record(root, steps[0])
    drop_record(root, steps[0])
    assert finished(root) == set(steps[1:])
    assert read_record(root, steps[0]) is None
    (root / steps[1].path).write_bytes(b"{}")
    with pytest.raises(DamagedRecordError, match="is not a done-record"):
        read_record(root, steps[1])


def test_damage_is_found_and_its_step_done_again(root: Path) -> None:
    run = Run.create_or_open(root, MANIFEST)
    parts = []
    for shard in range(4):
        files = [Path(name) for name in sorted(run.layout.files_of(Step("inputs", shard)))]
        for file in files:
            (root / file).write_bytes(b"12345")
        parts.append(root / files[-1])
        counts = {"rows": 16, "statuses": {"ok": 16}}
        write_record(root, Step("inputs", shard), **counts, files=files, seconds=1, worker="w")
    assert verify(root) == []
    parts[0].unlink()
    parts[1].write_bytes(b"12346")
    parts[2].write_bytes(b"1234")
    (root / "inputs.zarr" / "zarr.json").write_bytes(b"{}")
    (root / "foreign").write_bytes(b"1")
    problems = verify(root)
    assert [(str(p.path), p.reason.split()[0]) for p in problems] == [
        ("foreign", "is"),
        ("inputs.zarr/zarr.json", "has"),
        *(
            (f"samples/inputs/shard-0000{shard}.parquet", why)
            for shard, why in enumerate(("is", "has", "has"))
        ),
    ]
    repair(root, problems)
    assert finished(root) == {Step("inputs", 3)}
    Run.create_or_open(root, MANIFEST)
    left = [str(p.path) for p in verify(root)]
    assert "foreign" in left
    assert "inputs.zarr/zarr.json" not in left


def test_arrays_keep_whole_shards_and_tell_gaps_from_data(root: Path) -> None:
    path = root / "maps"
    create_array(path, 40, (3,), "float32", shard_rows=16)
    maps.check_layout(path, ArrayLayout(40, (3,), "float32", 16))
    with pytest.raises(ValueError, match=r"is in run\.json"):
        maps.check_layout(path, ArrayLayout(40, (3,), "float32", 8))
    values = np.arange(120, dtype=np.float32).reshape(40, 3)
    maps.write_shard(path, 0, values[:16])
    maps.write_shard(path, 32, values[32:])
    np.testing.assert_array_equal(maps.read(path, 0, 16), values[:16])
    np.testing.assert_array_equal(maps.read(path, 34, 40), values[34:])
    with pytest.raises(maps.DamagedShardError, match="is missing"):
        maps.read(path, 10, 20)
    with pytest.raises(ValueError, match="are not whole shards"):
        maps.write_shard(path, 8, values[8:24])


def test_a_damaged_shard_is_told_and_replaced(root: Path) -> None:
    path = root / "maps"
    create_array(path, 16, (50,), "float32", shard_rows=16)
    values = np.random.default_rng(0).normal(size=(16, 50)).astype(np.float32)
    maps.write_shard(path, 0, values)
    file = maps.shard_file(path, 0)
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:50] + b"\0\0\0\0" + whole[54:]):
        file.write_bytes(damaged)
        with pytest.raises(maps.DamagedShardError):
            maps.read(path, 0, 16)
        maps.write_shard(path, 0, values)
        np.testing.assert_array_equal(maps.read(path, 0, 16), values)


def test_the_second_job_is_refused_with_the_name_of_the_first(root: Path) -> None:
    assert holder(root) is None
    with held(root, "first") as first:
        with pytest.raises(LockedError, match=rf"job first, process {os.getpid()}"), held(root, "second"):
            pass
        first.check()
        told = holder(root)
        assert told is not None
        assert "job first" in told
    assert holder(root) is None
    with held(root, "second"):
        pass


def test_of_many_that_come_at_once_one_gets_the_lock(root: Path) -> None:
    def attempt(stack: ExitStack) -> bool:
        try:
            stack.enter_context(held(root, "one of many"))
        except LockedError:
            return False
        return True

    for _ in range(5):
        stacks = [ExitStack() for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(attempt, stacks)) == 1
        for stack in stacks:
            stack.close()


def test_a_lock_of_the_dead_is_taken_over_and_its_holder_told(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root.with_name("one.lock")
    with held(root, "first") as first:
        about = json.loads(path.read_bytes())
        # Another machine's clock says nothing: it is the server's that counts.
        path.write_bytes(json.dumps(about | {"host": "elsewhere", "beat": about["beat"] - 1000}).encode())
        with pytest.raises(LockedError, match="on elsewhere"), held(root, "second"):
            pass
        monkeypatch.setattr(lock, "STALE_SECONDS", 0.0)
        with held(root, "second") as second:
            with pytest.raises(LostLockError, match="job second"):
                first.check()
            second.check()
    assert holder(root) is None


def test_the_beat_never_takes_back_a_lock_that_was_lost(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    path = root.with_name("one.lock")
    with held(root, "first") as first:
        since = beat_of(path)
        deadline = time.monotonic() + 20
        while beat_of(path) == since:
            assert time.monotonic() < deadline, "it does not beat"
        fs, key = object_of(path)
        taken = json.dumps(json.loads(fs.cat_file(key)) | {"token": "another's"}).encode()
        path.write_bytes(taken)
        first._left.wait(0.3)
        assert path.read_bytes() == taken
    assert path.read_bytes() == taken


@pytest.mark.parametrize("ignored", ["IfNoneMatch", "IfMatch"])
def test_a_server_that_ignores_conditions_is_refused(
    ignored: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(object_of(root)[0])
    asked = kind.call_s3

    def call(self: Any, method: str, **more: Any) -> Any:
        return asked(self, method, **{key: value for key, value in more.items() if key != ignored})

    monkeypatch.setattr(kind, "call_s3", call)
    with pytest.raises(OSError, match="ignores conditional writes"), held(root, "first"):
        pass


def test_the_beat_outlives_whatever_a_connection_raises(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    path = root.with_name("one.lock")
    with held(root, "first") as first:
        with monkeypatch.context() as broken:
            broken.setattr(lock_slots, "sync", lambda *_: 1 / 0)
            first._left.wait(0.3)
            first.check()
        since = beat_of(path)
        deadline = time.monotonic() + 20
        while beat_of(path) == since:
            assert time.monotonic() < deadline, "it does not beat any more"


def test_a_bucket_that_is_not_there_is_told(s3: ObjectStore) -> None:
    with pytest.raises(OSError, match="bucket does not exist"), held(place("s3://nowhere/run"), "first"):
        pass


def test_a_server_that_is_away_is_told_in_one_line(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"endpoint_url": f"http://127.0.0.1:{free_port()}"}
    nobody = UPath("s3://bucket/run", client_kwargs=there)
    monkeypatch.setattr("storage.run.place", lambda store: nobody)
    with pytest.raises(ValueError, match="cannot be reached: Could not connect") as refusal:
        Run.open("s3://bucket/run")
    assert "\n" not in str(refusal.value)
    patient = UPath("s3://bucket/run", client_kwargs=there, **OPTIONS)
    began = time.monotonic()
    with pytest.raises(OSError, match="cannot be reached: Could not connect") as told, held(patient, "first"):
        pass
    assert time.monotonic() - began < 20
    assert "\n" not in str(told.value)


def test_a_server_that_takes_calls_and_says_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.places.ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        there = {"endpoint_url": f"http://127.0.0.1:{mute.getsockname()[1]}"}
        patient = UPath("s3://bucket/run", key="k", secret="s", client_kwargs=there, **OPTIONS)
        with pytest.raises(OSError, match=r"cannot be reached: Read timeout"), held(patient, "first"):
            pass


def test_a_tree_is_removed_and_nothing_beside_it(root: Path) -> None:
    (root / "a" / "b").write_bytes(b"1")
    (root / "ab").write_bytes(b"1")
    remove_tree(root / "a")
    remove_tree(root / "a")
    assert list(files_under(root)) == ["ab"]


def test_a_library_that_reads_no_s3_gets_a_copy(root: Path) -> None:
    (root / "x.png").write_bytes(b"1")
    with on_this_machine(root / "x.png") as copy:
        assert not is_remote(copy)
        assert (copy.name, copy.read_bytes()) == ("x.png", b"1")
    assert not copy.exists()
    with on_this_machine(root / "y.png") as copy:
        assert not copy.exists()


def put(folder: Path, to: Path) -> None:
    fs, key = object_of(to)
    fs.put(f"{folder}/", f"{key}/", recursive=True)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two classes of two images, a damaged one, a mask, a listing, texts and arrays."""
    random = np.random.default_rng(0)
    for name in ("a/0.png", "a/1.png", "b-/2.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 255, (9, 7, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "b" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "b" / "empty.png").write_bytes(b"")
    Image.fromarray(np.eye(9, 7, dtype=np.uint8)).save(tmp_path / "mask.png")
    (tmp_path / "list.csv").write_text("file,label,mask\na/0.png,1,mask.png\nb/2.png,0,\nb/gone.png,0,\n")
    (tmp_path / "texts.csv").write_text("text,label\ngood,1\nbad,0\n")
    np.savez(tmp_path / "arrays.npz", inputs=random.normal(size=(3, 5)).astype(np.float32))
    np.save(tmp_path / "array.npy", random.normal(size=(3, 5)).astype(np.float32))
    return tmp_path


@pytest.mark.parametrize(
    "keys",
    [
        {"kind": "folder", "path": "b"},
        {"kind": "folder", "path": ""},
        {"kind": "csv", "path": "list.csv"},
        {"kind": "csv", "path": "list.csv", "images": ""},
        {"kind": "text", "path": "texts.csv"},
        {"kind": "tensors", "path": "arrays.npz"},
        {"kind": "tensors", "path": "array.npy"},
        {"kind": "parquet", "path": "rows"},
        {"kind": "parquet", "path": "rows/part-{01..02}.parquet"},
        {"kind": "dicom", "path": "scans"},
        {"kind": "webdataset", "path": "tars"},
        {"kind": "webdataset", "path": "tars/shard-000001.tar"},
    ],
)
def test_a_dataset_is_the_same_in_a_folder_and_on_s3(
    keys: dict[str, str], photographs: Path, s3: ObjectStore
) -> None:
    away = place(f"{s3.empty()}/data")
    if keys["path"] == "":
        (photographs / "mask.png").unlink()
    if keys["kind"] in {"dicom", "parquet", "webdataset"}:
        files = packed.photographs(photographs / "more")
        packed.as_parquet(files, photographs / "rows")
        packed.as_dicom(files, photographs / "scans")
        packed.as_tars(files, photographs / "tars")
    put(photographs, away)

    def opened(base: Path) -> Any:
        paths = {key: str(base / keys[key]) for key in ("path", "images") if key in keys}
        return open_dataset(DatasetSpec.model_validate(keys | paths))

    here, there = opened(photographs), opened(away)
    assert [(s.sample_id, s.label) for s in there.samples] == [(s.sample_id, s.label) for s in here.samples]
    assert there.classes == here.classes
    assert there.fingerprint == here.fingerprint
    for index in range(len(here.samples)):
        try:
            expected = np.asarray(here.load(index))
        except UnreadableError as error:
            with pytest.raises(UnreadableError, match=str(error)):
                there.load(index)
        else:
            np.testing.assert_array_equal(np.asarray(there.load(index)), expected)
    if here.masks is not None:
        np.testing.assert_array_equal(np.asarray(there.masks(0, [])), np.asarray(here.masks(0, [])))


def test_folders_and_files_are_listed_as_on_this_machine(photographs: Path, s3: ObjectStore) -> None:
    away = place(f"{s3.empty()}/data")
    put(photographs, away)
    assert folders_in(away) == folders_in(photographs) == ["a", "b", "b-"]
    assert files_under(away) == files_under(photographs)
    assert list(files_under(away)) == list(files_under(photographs))


def test_at_the_root_of_a_bucket_names_are_whole(s3: ObjectStore) -> None:
    bucket = place("s3://rootbucket")
    bucket.mkdir()
    (bucket / "list.csv").write_bytes(b"12")
    (bucket / "images" / "0.png").write_bytes(b"123")
    assert (
        files_under(bucket) == files_under((bucket / "list.csv").parent) == {"images/0.png": 3, "list.csv": 2}
    )


def test_torchvisions_sets_are_refused_on_s3() -> None:
    spec = DatasetSpec.model_validate({"kind": "torchvision", "name": "CIFAR10", "path": "s3://bucket/sets"})
    with pytest.raises(ValueError, match="from folders, not from S3"):
        open_dataset(spec)
