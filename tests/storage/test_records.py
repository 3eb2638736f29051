"""Done-records: what they hold, where they lie, and that a damaged one is not believed."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.records import (
    STAGES,
    Agreement,
    Cost,
    CoveredFile,
    DamagedRecordError,
    DoneRecord,
    StageFacts,
    Step,
    drop_record,
    failures,
    finished,
    read_record,
    write_record,
)

STEP = Step("saliency", 2, "ddcam")


def record(root: Path, step: Step = STEP, facts: StageFacts | None = None) -> DoneRecord:
    (root / "data").mkdir(exist_ok=True)
    (root / "data" / "a").write_bytes(b"abc")
    return write_record(
        root,
        step,
        rows=3,
        statuses={"ok": 2, "failed": 1},
        files=[Path("data/a")],
        seconds=1.23456,
        worker="w",
        facts=facts,
    )


def test_a_record_tells_rows_statuses_and_checksums_of_its_files(tmp_path: Path) -> None:
    written = record(tmp_path, facts=StageFacts(metrics=("insertion", "gini")))
    found = read_record(tmp_path, STEP)
    assert found is not None
    assert found == written
    assert found.rows == 3
    assert found.statuses == {"ok": 2, "failed": 1}
    assert found.facts == StageFacts(metrics=("insertion", "gini"))
    assert found.files == [CoveredFile("data/a", 3, hashlib.sha256(b"abc").hexdigest())]


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (StageFacts(), {}),
        (StageFacts(cached=False), {"cached": False}),
        (StageFacts(metrics=()), {"metrics": []}),
        (
            StageFacts(cost=Cost(3, 0.5, 7), agreement=Agreement(0.9, None, 0.1, 0.2)),
            {
                "explained": 3,
                "explain_seconds": 0.5,
                "peak_bytes": 7,
                "rank_correlation": 0.9,
                "worst_rank_correlation": None,
                "difference": 0.1,
                "worst_difference": 0.2,
            },
        ),
    ],
)
def test_what_a_stage_notes_stands_beside_the_rest_and_comes_back(
    tmp_path: Path, facts: StageFacts, told: dict[str, object]
) -> None:
    record(tmp_path, facts=facts)
    found = read_record(tmp_path, STEP)
    assert found is not None
    assert found.facts == facts
    text = json.loads((tmp_path / STEP.path).read_text())
    common = {"stage", "shard", "explainer", "rows", "statuses", "seconds", "worker", "files", "checksum"}
    assert {key: value for key, value in text.items() if key not in common} == told


def test_files_may_be_given_inside_the_run_folder_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    kept = {"rows": 0, "statuses": {}, "seconds": 0.0, "worker": ""}
    written = write_record(tmp_path, STEP, files=[tmp_path / "a"], **kept)
    assert written.files[0].path == "a"
    with pytest.raises(ValueError, match="not in the subpath"):
        write_record(tmp_path / "run", STEP, files=[tmp_path / "a"], **kept)


def test_paths_and_labels() -> None:
    assert Step("saliency", 12, "ddcam").path == Path("done/saliency/ddcam/shard-00012.json")
    assert Step("inputs", 0).path == Path("done/inputs/shard-00000.json")
    assert Step("saliency", 2, "ddcam").label(12) == "saliency ddcam shard 3/12"
    assert Step("inputs", 0).label(1) == "inputs shard 1/1"


@given(
    st.sets(
        st.builds(
            Step,
            st.sampled_from(STAGES),
            st.integers(0, 200_000),
            st.sampled_from(["", "ddcam", "package.module:Name"]),
        ),
        max_size=8,
    )
)
def test_finished_lists_exactly_the_recorded_steps(
    tmp_path_factory: pytest.TempPathFactory, steps: set[Step]
) -> None:
    root = tmp_path_factory.mktemp("run")
    for step in steps:
        record(root, step)
    assert finished(root) == steps
    for step in steps:
        drop_record(root, step)
        drop_record(root, step)
    assert finished(root) == set()


def test_half_written_files_and_strangers_are_no_records(tmp_path: Path) -> None:
    record(tmp_path)
    folder = (tmp_path / STEP.path).parent
    (folder / "shard-00003.json.1234.partial").write_text("{")
    (folder / "notes.json").write_text("{}")
    (tmp_path / "done" / "elsewhere").mkdir()
    (tmp_path / "done" / "elsewhere" / "shard-00000.json").write_text("{}")
    assert finished(tmp_path) == {STEP}


def test_no_record_is_none(tmp_path: Path) -> None:
    assert read_record(tmp_path, STEP) is None
    assert finished(tmp_path) == set()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '"a"', "7", "null", "{}", '{"rows": 3}', '{"checksum": "0"}', "\xff"]
)
def test_a_file_that_is_no_record_is_damage_and_not_absence(tmp_path: Path, text: str) -> None:
    path = tmp_path / STEP.path
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedRecordError, match=r"done/saliency/ddcam/shard-00002\.json"):
        read_record(tmp_path, STEP)


def test_an_altered_number_is_noticed(tmp_path: Path) -> None:
    record(tmp_path)
    path = tmp_path / STEP.path
    path.write_text(path.read_text().replace('"rows": 3', '"rows": 4'))
    with pytest.raises(DamagedRecordError, match="was altered"):
        read_record(tmp_path, STEP)


def test_the_record_of_another_step_is_noticed(tmp_path: Path) -> None:
    record(tmp_path)
    other = Step("saliency", 3, "ddcam")
    (tmp_path / other.path).write_bytes((tmp_path / STEP.path).read_bytes())
    with pytest.raises(DamagedRecordError, match="another step"):
        read_record(tmp_path, other)


def test_a_record_is_whole_or_absent(tmp_path: Path) -> None:
    before = record(tmp_path)
    text = (tmp_path / STEP.path).read_bytes()
    with pytest.raises(TypeError):
        record(tmp_path, facts=StageFacts(cached=object()))  # type: ignore[arg-type]
    assert read_record(tmp_path, STEP) == before
    assert [path.name for path in (tmp_path / STEP.path).parent.iterdir()] == ["shard-00002.json"]
    assert (tmp_path / STEP.path).read_bytes() == text


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}"])
def test_a_damaged_failure_is_named_with_what_to_do(tmp_path: Path, text: str) -> None:
    path = tmp_path / STEP.failure_path
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(DamagedRecordError, match=r"shard-00002\.failed\.json cannot be read .*; delete it"):
        failures(tmp_path)
