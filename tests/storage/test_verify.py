"""Every damage of a run folder is named, and the same job again repairs it; what is foreign stays."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runs import completed, prepared, tiny_job
from storage.files import UnreadableError, sha256_of_json, write_json
from storage.layout import SIGNED
from storage.parquet import read_table
from storage.records import SUMMARY, DamagedRecordError, Step, finished, read_record
from storage.run import Run
from storage.run_json import DamagedRunError
from storage.verify import check_results, repair, verify

MEASURED = {"seconds", "worker", "explain_seconds", "peak_bytes", "checksum"}  # differ from run to run
FLIPPED = "has other contents"


class Complete:
    """A complete run, which can be put back as it was, at the same place."""

    def __init__(self, folder: Path) -> None:
        self.root, self.kept = folder / "run", folder / "kept"
        self.job = tiny_job(
            self.root,
            dataset={"kind": "digits", "limit": 20},
            explainers=[{"name": "gradcam"}],
            metrics=[{"name": "insertion", "steps": 2}],
            controls=False,
        )
        completed(self.job)
        shutil.copytree(self.root, self.kept)
        self.files = sorted(p.relative_to(self.root) for p in self.root.rglob("*") if p.is_file())

    def restore(self) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self.kept, self.root)

    def repeated(self) -> None:
        """Run the job again, and assert that the run is as it was, to the byte but for what is measured."""
        completed(self.job)
        assert self.contents(self.root) == self.contents(self.kept)

    @staticmethod
    def contents(root: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path in root.rglob("*"):
            name = path.relative_to(root).as_posix()
            if path.is_file() and name.startswith("done/"):
                told = json.loads(path.read_bytes())
                files = [file for file in told["files"] if file["path"] != "costs.parquet"]
                found[name] = {key: told[key] for key in told.keys() - MEASURED} | {"files": files}
            elif name == "costs.parquet":
                found[name] = read_table(path).select(["explainer", "forward_passes", "images"]).to_pylist()
            elif path.is_file():
                found[name] = path.read_bytes()
        return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Complete:
    return Complete(tmp_path_factory.mktemp("verify"))


@pytest.fixture
def run(whole: Complete) -> Complete:
    whole.restore()
    return whole


def named(root: Path) -> dict[str, str]:
    problems = verify(root)
    assert all("\n" not in str(problem) for problem in problems)
    return {problem.path.as_posix(): problem.reason for problem in problems}


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    """Replace the file by a link to a copy outside of the run."""
    outside = next(parent for parent in path.parents if parent.name == "run").with_name("outside")
    shutil.move(path, outside)
    path.symlink_to(outside)


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by(other: Path) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(other.read_bytes()) and None


DAMAGES: list[Callable[[Path], None]] = [flip, truncate, empty, pipe, link, endless, folder, Path.unlink]


def test_a_whole_run_has_no_problems(run: Complete) -> None:
    assert verify(run.root) == []
    run.repeated()
    assert verify(run.root) == []


DAMAGED: list[tuple[str, Callable[[Path], None], str]] = [
    ("summary.parquet", flip, FLIPPED),
    ("summary.parquet", truncate, "has {half} bytes instead of {size}"),
    ("samples.parquet", empty, "has 0 bytes instead of {size}"),
    ("comparisons.parquet", Path.unlink, "is missing"),
    ("costs.parquet", flip, FLIPPED),
    ("report/curves.png", truncate, "has {half} bytes instead of {size}"),
    ("inputs.zarr/zarr.json", Path.unlink, "is missing"),
    ("saliency.zarr/gradcam/maps/zarr.json", flip, FLIPPED),
    ("saliency.zarr/zarr.json", empty, "has 0 bytes instead of {size}"),
    ("saliency.zarr/gradcam/maps/c/1/0/0", flip, FLIPPED),
    ("inputs.zarr/c/0/0/0/0", pipe, "is a pipe, not a file"),
    ("masks.zarr/c/0/0/0", link, "is a link, not a file"),
    ("samples/inputs/shard-00000.parquet", endless, "is a link, not a file"),
    ("scores/explainer=gradcam/shard-00001.parquet", folder, "is a folder, not a file"),
    ("done/saliency/gradcam/shard-00001.json", flip, "is not a done-record"),
    ("done/inputs/shard-00000.json", pipe, "is a pipe, not a file"),
    ("done/arrays.json", Path.unlink, "is missing"),
    ("done/summary.json", truncate, "is not a done-record"),
]


@pytest.mark.parametrize(("name", "damage", "told"), DAMAGED)
def test_damage_is_named(run: Complete, name: str, damage: Callable[[Path], None], told: str) -> None:
    size = (run.root / name).stat().st_size
    damage(run.root / name)
    problems = named(run.root)
    assert list(problems) == [name]
    assert told.format(half=size // 2, size=size) in problems[name]


def test_repair_drops_the_damaged_step_alone_and_each_of_its_files_is_named(run: Complete) -> None:
    before, step = finished(run.root), Step("saliency", 1, "gradcam")
    flip(run.root / "saliency.zarr/gradcam/maps/c/1/0/0")
    (run.root / "saliency.zarr/gradcam/status/c/1").unlink()
    problems = verify(run.root)
    assert [(problem.step, problem.path.as_posix()) for problem in problems] == [
        (step, "saliency.zarr/gradcam/maps/c/1/0/0"),
        (step, "saliency.zarr/gradcam/status/c/1"),
    ]
    assert repair(run.root, problems) == {step}
    assert finished(run.root) == before - {step}


def test_all_damages_at_once_are_repaired_by_the_same_job(run: Complete) -> None:
    for name, damage in {name: damage for name, damage, _ in DAMAGED}.items():
        damage(run.root / name)
    run.repeated()
    assert verify(run.root) == []


def test_metadata_of_another_type_is_written_again_and_good_shards_are_kept(run: Complete) -> None:
    path = run.root / "saliency.zarr/gradcam/maps/zarr.json"
    path.write_text(path.read_text().replace('"data_type": "float32"', '"data_type": "int32"'))
    assert list(named(run.root)) == ["saliency.zarr/gradcam/maps/zarr.json"]
    record = (run.root / "done/saliency/gradcam/shard-00000.json").read_bytes()
    run.repeated()
    assert (run.root / "done/saliency/gradcam/shard-00000.json").read_bytes() == record, "it ran again"


def test_metadata_that_nobody_signed_makes_its_steps_run_again(run: Complete) -> None:
    (run.root / "done/arrays.json").unlink()
    flip(run.root / "saliency.zarr/gradcam/maps/zarr.json")
    problems = named(run.root)
    assert problems["saliency.zarr/gradcam/maps/zarr.json"] == "is not the metadata that run.json describes"
    Run.create_or_open(run.root, Run.open(run.root).manifest)
    assert Step("saliency", 0, "gradcam") not in finished(run.root), "nobody knows how its shard was written"
    assert Step("inputs", 0) in finished(run.root)
    run.repeated()


def test_a_step_that_is_gone_with_its_files_is_missed_once_the_tables_are_made(run: Complete) -> None:
    gone = ["done/scores/gradcam/shard-00000.json", "scores/explainer=gradcam/shard-00000.parquet"]
    for name in gone:
        (run.root / name).unlink()
    assert named(run.root) == {gone[0]: "is missing, and the tables of the run need its step"}
    run.repeated()
    assert verify(run.root) == []
    # Before the tables are made, it is a step that has yet to be done.
    coordinates = Run.open(run.root).layout.results.difference(SIGNED)
    for name in (*gone, "done/summary.json", *SIGNED, *coordinates):
        (run.root / name).unlink()
    assert verify(run.root) == []


def test_the_record_of_the_metadata_behind_a_link_is_a_file_again(run: Complete) -> None:
    link(run.root / "done" / "arrays.json")
    run.repeated()
    assert not verify(run.root)


def test_metadata_behind_a_link_is_a_file_again_before_a_step_writes_its_shard(run: Complete) -> None:
    link(run.root / "saliency.zarr/gradcam/maps/zarr.json")
    flip(run.root / "saliency.zarr/gradcam/status/c/0")
    run.repeated()
    assert verify(run.root) == []


def test_an_explainer_that_is_added_is_not_missed(run: Complete) -> None:
    prepared(run.job | {"explainers": [{"name": "gradcam"}, {"name": "rise", "masks": 4}]})
    assert verify(run.root) == []


def test_a_disk_that_cannot_be_read_is_named(run: Complete, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, *args: Any) -> Any:
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("storage.verify.sha256_of_file", broken)
        assert named(run.root)["summary.parquet"].startswith("cannot be read: [Errno 5] Input/output error")
        patch.setattr("storage.verify.read_record", broken)
        assert named(run.root)["done/inputs/shard-00000.json"].startswith("cannot be read: [Errno 5]")
        patch.setattr("storage.contents.os.scandir", broken)
        with pytest.raises(UnreadableError, match=r"run cannot be listed: \[Errno 5\]"):
            verify(run.root)


def test_without_records_everything_is_unsigned_and_runs_again(run: Complete) -> None:
    shutil.rmtree(run.root / "done")
    problems = named(run.root)
    for name in ("summary.parquet", "inputs.zarr/c/1/0/0/0", "scores/explainer=gradcam/shard-00000.parquet"):
        assert problems[name].startswith("is not signed by any record; run the job again")
    run.repeated()
    assert verify(run.root) == []


FOREIGN = [
    "notes.txt",
    "inputs.zarr/c/9/0/0/0",
    "inputs.zarr/c/00/0/0/0",
    "saliency.zarr/gradcam/more/c/0",
    "saliency.zarr/other/zarr.json",
    "scores/explainer=other/shard-00000.parquet",
    "scores/explainer=gradcam/shard-00002.parquet",
    "samples/inputs/shard-00002.parquet",
    "done/inputs/shard-00002.json",
    "done/inputs/shard-000000.json",
    "done/saliency/other/shard-00000.json",
    "report/another.png",
]


def test_foreign_files_are_named_and_neither_read_nor_deleted(run: Complete) -> None:
    for name in FOREIGN:
        path = run.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        original = path.with_name("shard-00000" + path.suffix)
        path.write_bytes(original.read_bytes() if original.exists() else b"x")
    problems = named(run.root)
    assert sorted(problems) == sorted(FOREIGN)
    assert all(reason.startswith("is foreign") and "move it away" in reason for reason in problems.values())
    before = (run.root / "samples.parquet").read_bytes()
    completed(run.job)
    assert (run.root / "samples.parquet").read_bytes() == before, "the samples of a foreign shard were merged"
    assert sorted(named(run.root)) == sorted(FOREIGN)


def resigned(path: Path, **changes: Any) -> None:
    """Change a record and make its checksum right again."""
    told = json.loads(path.read_bytes()) | changes
    del told["checksum"]
    write_json(path, told | {"checksum": sha256_of_json(told)})


FILE = {"size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"files": []}, "does not sign "),
        ({"files": [FILE | {"path": "../outside"}]}, "signs ../outside, which the step does not write"),
        ({"files": [FILE | {"path": "/etc/passwd"}]}, "signs /etc/passwd"),
        ({"files": [FILE | {"path": "inputs.zarr/../../x"}]}, "signs inputs.zarr/../../x"),
        ({"rows": 15}, "has 15 rows"),
        ({"rows": "16"}, "is not a done-record"),
        ({"rows": -16}, "has -16 rows"),
        ({"statuses": {"ok": 3}}, "statuses of 3"),
        ({"statuses": {"ok": "16"}}, "is not a done-record"),
        ({"files": None}, "is not a done-record"),
        ({"files": [{"path": 5, "size": 1, "sha256": ""}]}, "is not a done-record"),
        ({"seconds": "1"}, "is not a done-record"),
        ({"shard": 1}, "is the record of another step"),
        ({"stage": 5}, "is not a done-record"),
    ],
)
def test_a_record_that_is_signed_and_wrong_is_named_and_dropped(
    run: Complete, changes: dict[str, Any], told: str
) -> None:
    path = run.root / "done/inputs/shard-00000.json"
    resigned(path, **changes)
    problems = named(run.root)
    assert told in problems["done/inputs/shard-00000.json"]
    assert Step("inputs", 0) in repair(run.root, verify(run.root))
    assert Step("inputs", 0) not in finished(run.root), "it does not run again"


def test_what_blocks_the_run_is_named_and_the_job_refuses_to_start(run: Complete) -> None:
    (run.root / "inputs.zarr").rename(run.root.parent / "moved.zarr")
    (run.root / "inputs.zarr").symlink_to(run.root.parent / "moved.zarr")
    (run.root / "summary.parquet").unlink()
    (run.root / "summary.parquet").mkdir()
    (run.root / "summary.parquet" / "mine").touch()
    problems = named(run.root)
    assert problems["inputs.zarr"] == "is a link, but the run needs a folder there; move it away"
    assert problems["summary.parquet"].endswith("needs a file there; move the folder away")
    with pytest.raises(ValueError, match=r"inputs\.zarr is a link, but the run needs a folder"):
        completed(run.job)
    assert (run.root / "summary.parquet" / "mine").exists()
    shutil.rmtree(run.root.parent / "moved.zarr")


def test_a_run_of_an_older_version_is_told_to_be_signed(run: Complete) -> None:
    told = json.loads((run.root / "run.json").read_bytes())
    del told["checksum"]
    write_json(run.root / "run.json", told)
    for name in ("arrays.json", "summary.json"):
        (run.root / "done" / name).unlink()
    problems = named(run.root)
    assert problems["run.json"].startswith("is not signed by any record; run the job again")
    assert problems["summary.parquet"] == problems["run.json"]
    check_results(run.root, ["summary.parquet"])  # it can be read meanwhile
    run.repeated()
    assert verify(run.root) == []


def test_a_changed_job_is_not_believed(run: Complete) -> None:
    path = run.root / "run.json"
    path.write_text(path.read_text().replace('"steps": 2', '"steps": 3'))
    with pytest.raises(DamagedRunError, match=r"run\.json was altered"):
        verify(run.root)


def test_tables_are_checked_before_they_are_read(run: Complete) -> None:
    check_results(run.root, ["summary.parquet"])
    flip(run.root / "summary.parquet")
    with pytest.raises(UnreadableError, match=r"summary\.parquet has other contents than were"):
        check_results(run.root, ["summary.parquet"])
    truncate(run.root / SUMMARY.path)
    with pytest.raises(DamagedRecordError):
        check_results(run.root, ["samples.parquet"])


def test_a_failure_that_cannot_be_read_is_deleted_and_the_step_is_not_skipped(run: Complete) -> None:
    step = Step("scores", 1, "gradcam")
    (run.root / step.failure_path).write_text('{"stage": "scores"}')
    problems = verify(run.root)
    assert [(problem.step, problem.path) for problem in problems] == [(step, step.failure_path)]
    repair(run.root, problems)
    assert not (run.root / step.failure_path).exists()


def test_what_killed_writers_left_is_no_damage(run: Complete) -> None:
    (run.root / "data-0.77.partial").write_bytes(b"x")
    assert verify(run.root) == []


def test_every_signed_file_is_read_once(run: Complete, monkeypatch: pytest.MonkeyPatch) -> None:
    from storage import verify as room

    read: list[Path] = []
    real = room.sha256_of_file
    monkeypatch.setattr(room, "sha256_of_file", lambda path: (read.append(path), real(path))[1])
    assert verify(run.root) == []
    signed = [file.path for step in finished(run.root) for file in (read_record(run.root, step)).files]
    assert len(read) == len(set(read))
    assert {run.root / path for path in signed} < set(read)


def anything_damaged(run: Complete, data: st.DataObject) -> None:
    """Damage one to three files in any way; verify names them, and the job again gives the same run."""
    run.restore()
    chosen = data.draw(st.lists(st.sampled_from(run.files), min_size=1, max_size=3, unique=True))
    for name in chosen:
        other = run.kept / data.draw(st.sampled_from(run.files))
        damage = data.draw(st.sampled_from([*DAMAGES, replaced_by(other)]))
        damage(run.root / name)
    if Path("run.json") in chosen:
        with pytest.raises(ValueError, match=r"run") as refusal:
            verify(run.root)
        assert "\n" not in str(refusal.value)
        return
    problems = named(run.root)
    for name in chosen:
        path, kept = run.root / name, run.kept / name
        same = path.is_file() and not path.is_symlink() and path.read_bytes() == kept.read_bytes()
        # Without its record, a step is named by the files that it wrote; with a damaged one, by the record.
        recorded = name.parts[0] == "done" or any(path.startswith("done/") for path in problems)
        assert name.as_posix() in problems or same or (problems and recorded)
    run.repeated()
    assert verify(run.root) == []


SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=6, suppress_health_check=SLOW)
@given(st.data())
def test_any_damage_is_named_and_repaired(whole: Complete, data: st.DataObject) -> None:
    anything_damaged(whole, data)


@pytest.mark.long
@settings(max_examples=150, suppress_health_check=SLOW)
@given(st.data())
def test_any_damage_is_named_and_repaired_in_many_examples(whole: Complete, data: st.DataObject) -> None:
    anything_damaged(whole, data)
