"""Tables: what goes in comes out, nulls stay nulls, and the same rows give the same bytes."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from storage import scores

COLUMNS: dict[str, list[Any]] = {
    "sample_id": ["a", "b", "a", "b"],
    "target": [3, None, 3, None],
    "metric": ["insertion", "insertion", "gini", "gini"],
    "value": [0.5, None, 0.1, None],
    "curve": [[0.0, 0.25, 1.0], None, None, None],
    "status": ["ok", "failed", "ok", "failed"],
    "forward_passes": [11, None, 11, None],
}


def test_scores_come_back_with_their_explainer_nulls_and_curves(tmp_path: Path) -> None:
    path = scores.write_scores(tmp_path, "ddcam", 12, COLUMNS)
    assert path == tmp_path / "scores" / "explainer=ddcam" / "shard-00012.parquet"
    table = scores.read_scores(tmp_path)
    assert table.to_pydict() == COLUMNS | {"explainer": ["ddcam"] * 4}
    assert table.schema.field("curve").type == pa.list_(pa.float32())


def test_scores_are_read_by_explainer_and_shard(tmp_path: Path) -> None:
    for explainer, shard in [("sobel", 1), ("package.module:Name", 0), ("sobel", 10), ("sobel", 2)]:
        one = {key: values[:1] for key, values in COLUMNS.items()} | {"value": [float(shard)]}
        scores.write_scores(tmp_path, explainer, shard, one)
    table = scores.read_scores(tmp_path)
    assert list(zip(table["explainer"].to_pylist(), table["value"].to_pylist(), strict=True)) == [
        ("package.module:Name", 0.0),
        ("sobel", 1.0),
        ("sobel", 2.0),
        ("sobel", 10.0),
    ]


def test_no_scores_are_an_empty_table_with_the_columns(tmp_path: Path) -> None:
    table = scores.read_scores(tmp_path)
    assert len(table) == 0
    assert set(table.column_names) == {*COLUMNS, "explainer"}


@pytest.mark.parametrize(
    "broken", [{"value": ["high", 0, 0, 0]}, {"metric": [None, "a", "b", "c"]}, {"value": [0.1]}]
)
def test_columns_of_another_type_or_length_are_refused_and_leave_the_old_file(
    tmp_path: Path, broken: dict[str, Any]
) -> None:
    path = scores.write_scores(tmp_path, "ddcam", 0, COLUMNS)
    before = path.read_bytes()
    with pytest.raises((pa.ArrowException, ValueError)):
        scores.write_scores(tmp_path, "ddcam", 0, COLUMNS | broken)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


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
        scores.write_sample_inputs(root, 1, [input_row("c", label=7)]),
        scores.write_sample_inputs(
            root,
            0,
            [
                input_row("b", boxes=[[0.5, 1.0, 2.0, 3.25], [0, 0, 1, 1]]),
                input_row("a", status="failed", error="empty", width=None, height=None),
            ],
        ),
        scores.write_sample_predictions(root, 0, [prediction_row("b", [4, 2]), prediction_row("a", [])]),
        scores.write_sample_predictions(root, 1, [prediction_row("c", [9])]),
    ]


def test_samples_are_merged_a_row_an_image_in_array_order(tmp_path: Path) -> None:
    write_parts(tmp_path)
    assert scores.merge_samples(tmp_path) == tmp_path / "samples.parquet"
    rows = scores.read_samples(tmp_path)
    assert [row["sample_id"] for row in rows] == ["b", "a", "c"]
    assert tuple(rows[0]) == scores.SAMPLE_COLUMNS
    assert rows[0]["boxes"] == [[0.5, 1.0, 2.0, 3.25], [0.0, 0.0, 1.0, 1.0]]
    assert (rows[0]["prediction"], rows[0]["targets"], rows[0]["label"]) == (4, [4, 2], None)
    assert (rows[0]["probabilities"], rows[1]["probabilities"]) == ([0.75, 0.375], [])
    assert (rows[1]["status"], rows[1]["error"], rows[1]["target"]) == ("failed", "empty", None)
    assert (rows[2]["label"], rows[2]["target"], rows[2]["confidence"]) == (7, 9, 0.75)
    assert scores.read_samples_of_shard(tmp_path, 1) == rows[2:]
    assert scores.read_sample_inputs(tmp_path, 1)[0]["label"] == 7


def test_an_input_that_failed_after_it_was_read_says_so_also_beside_parts_of_older_versions(
    tmp_path: Path,
) -> None:
    write_parts(tmp_path)
    failed = prediction_row("b", []) | {"error": "too large"}
    part = scores.write_sample_predictions(tmp_path, 0, [failed, prediction_row("a", [])])
    older = tmp_path / "samples" / "activations" / part.name.replace("0.", "1.")
    scores.write_table(scores.read_table(older).drop_columns(["error", "probabilities"]), older)
    scores.merge_samples(tmp_path)
    told = {row["sample_id"]: (row["status"], row["error"]) for row in scores.read_samples(tmp_path)}
    assert told == {"b": ("failed", "too large"), "a": ("failed", "empty"), "c": ("ok", None)}


def test_parts_about_different_images_are_not_merged(tmp_path: Path) -> None:
    write_parts(tmp_path)
    scores.write_sample_predictions(tmp_path, 0, [prediction_row("a", [1]), prediction_row("b", [1])])
    with pytest.raises(ValueError, match=r"shard 0 .* different images"):
        scores.merge_samples(tmp_path)


def test_merging_before_the_inputs_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inputs stage has not run"):
        scores.merge_samples(tmp_path)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    hashes = []
    for root in (tmp_path / "one", tmp_path / "two"):
        files = [
            *write_parts(root),
            scores.merge_samples(root),
            scores.write_scores(root, "ddcam", 0, COLUMNS),
        ]
        hashes.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
    assert hashes[0] == hashes[1]
