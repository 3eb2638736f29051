"""What is known of samples: two parts per shard become one table, and the same rows give the same bytes."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import samples


def input_row(name: str, **known: Any) -> dict[str, Any]:
    empty = {
        "uri": f"/{name}",
        "label": None,
        "width": 640,
        "height": 480,
        "boxes": [],
        "status": "ok",
        "error": None,
    }
    return {"sample_id": name} | empty | known


def prediction_row(name: str, targets: list[int]) -> dict[str, Any]:
    first = targets[0] if targets else None
    return {
        "sample_id": name,
        "prediction": first,
        "confidence": 0.75 if targets else None,
        "target": first,
        "targets": targets,
        "probabilities": [0.75 / place for place in range(1, 1 + len(targets))],
    }


def write_parts(root: Path) -> list[Path]:
    return [
        samples.write_sample_inputs(root, 1, [input_row("c", label=7)]),
        samples.write_sample_inputs(
            root,
            0,
            [
                input_row("b", boxes=[[0.5, 1.0, 2.0, 3.25], [0, 0, 1, 1]]),
                input_row("a", status="failed", error="empty", width=None, height=None),
            ],
        ),
        samples.write_sample_predictions(root, 0, [prediction_row("b", [4, 2]), prediction_row("a", [])]),
        samples.write_sample_predictions(root, 1, [prediction_row("c", [9])]),
    ]


def test_samples_are_merged_a_row_an_image_in_array_order(tmp_path: Path) -> None:
    write_parts(tmp_path)
    assert samples.merge_samples(tmp_path, 2) == tmp_path / "samples.parquet"
    rows = samples.read_samples(tmp_path)
    assert [row["sample_id"] for row in rows] == ["b", "a", "c"]
    assert tuple(rows[0]) == samples.SAMPLE_COLUMNS
    assert rows[0]["boxes"] == [[0.5, 1.0, 2.0, 3.25], [0.0, 0.0, 1.0, 1.0]]
    assert (rows[0]["prediction"], rows[0]["targets"], rows[0]["label"]) == (4, [4, 2], None)
    assert (rows[0]["probabilities"], rows[1]["probabilities"]) == ([0.75, 0.375], [])
    assert (rows[1]["status"], rows[1]["error"], rows[1]["target"]) == ("failed", "empty", None)
    assert (rows[2]["label"], rows[2]["target"], rows[2]["confidence"]) == (7, 9, 0.75)
    assert samples.read_samples_of_shard(tmp_path, 1) == rows[2:]
    assert samples.read_sample_inputs(tmp_path, 1)[0]["label"] == 7


@pytest.mark.parametrize(("least", "groups"), [(1, [2, 1, 2]), (3, [3, 2]), (1000, [5])])
def test_a_large_table_is_written_in_parts_that_change_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int, groups: list[int]
) -> None:
    write_parts(tmp_path)
    samples.write_sample_inputs(tmp_path, 2, [input_row("d", notes=["turned"]), input_row("e")])
    samples.write_sample_predictions(tmp_path, 2, [prediction_row("d", [1]), prediction_row("e", [2, 3])])
    monkeypatch.setattr("storage.parquet.GROUP_ROWS", least)
    file = pq.ParquetFile(samples.merge_samples(tmp_path, 3))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == groups
    rows = samples.read_samples(tmp_path)
    assert rows == [row for shard in range(3) for row in samples.read_samples_of_shard(tmp_path, shard)]
    some = list(samples.each_sample(tmp_path, ["notes", "sample_id"]))
    assert some == [{"notes": row["notes"], "sample_id": row["sample_id"]} for row in rows]


def test_an_input_that_failed_after_it_was_read_says_so(tmp_path: Path) -> None:
    write_parts(tmp_path)
    failed = prediction_row("b", []) | {"error": "too large"}
    samples.write_sample_predictions(tmp_path, 0, [failed, prediction_row("a", [])])
    samples.merge_samples(tmp_path, 2)
    told = {row["sample_id"]: (row["status"], row["error"]) for row in samples.read_samples(tmp_path)}
    assert told == {"b": ("failed", "too large"), "a": ("failed", "empty"), "c": ("ok", None)}


def test_parts_about_different_images_are_not_merged(tmp_path: Path) -> None:
    write_parts(tmp_path)
    samples.write_sample_predictions(tmp_path, 0, [prediction_row("a", [1]), prediction_row("b", [1])])
    with pytest.raises(ValueError, match=r"shard 0 .* different images"):
        samples.merge_samples(tmp_path, 2)


def test_merging_before_the_inputs_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"shard-00000\.parquet cannot be read \(it is missing\); run the job again"
    ):
        samples.merge_samples(tmp_path, 2)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    hashes = []
    for root in (tmp_path / "one", tmp_path / "two"):
        files = [
            *write_parts(root),
            samples.merge_samples(root, 2),
        ]
        hashes.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
    assert hashes[0] == hashes[1]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.none() | st.integers(0, 3),
            st.none() | st.lists(st.integers(0, 3)),
            st.none() | st.integers(0, 3),
        ),
        min_size=1,
    )
)
def test_hits_are_those_that_are_counted_one_by_one(
    tmp_path_factory: pytest.TempPathFactory,
    facts: list[tuple[int | None, list[int] | None, int | None]],
) -> None:
    root = tmp_path_factory.mktemp("hits")
    halves = [facts[: len(facts) // 2], facts[len(facts) // 2 :]]
    for shard, part in enumerate(halves):
        rows = [input_row(f"{i}", label=label, labels=labels) for i, (label, labels, _) in enumerate(part)]
        found = [{"sample_id": f"{i}", "prediction": prediction} for i, (*_, prediction) in enumerate(part)]
        samples.write_sample_inputs(root, shard, rows)
        samples.write_sample_predictions(root, shard, found)
    every = [([label] if label is not None else labels or [], p) for label, labels, p in facts]
    known = [(labels, p) for labels, p in every if labels and p is not None]
    several = any(label is None and labels for label, labels, _ in facts)
    expected = (len(known), sum(p in labels for labels, p in known), several)
    assert samples.read_hits(root, 2) == expected
