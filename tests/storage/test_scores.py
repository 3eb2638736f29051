"""Score files: what goes in comes out, nulls stay nulls, and the same rows give the same bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from made import made_run, made_scores
from storage import scores
from storage.layout import score_file
from storage.parquet import read_table

COLUMNS: dict[str, list[Any]] = {
    "sample_id": ["a", "b", "a", "b"],
    "target": [3, None, 3, None],
    "metric": ["insertion", "insertion", "gini", "gini"],
    "value": [0.5, None, 0.1, None],
    "curve": [[0.0, 0.25, 1.0], None, None, None],
    "status": ["ok", "failed", "ok", "failed"],
    "forward_passes": [11, None, 11, None],
}


def test_scores_come_back_with_their_nulls_and_curves(tmp_path: Path) -> None:
    path = scores.write_scores(tmp_path, "ddcam", 12, COLUMNS)
    assert path == tmp_path / "scores" / "explainer=ddcam" / "shard-00012.parquet"
    table = read_table(path)
    assert table.to_pydict() == COLUMNS
    assert table.schema.field("curve").type == pa.list_(pa.float32())


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


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    files = [scores.write_scores(tmp_path / name, "ddcam", 0, COLUMNS) for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_columns_and_single_curves_are_those_of_whole_reads_even_where_a_shard_is_missing(
    tmp_path: Path,
) -> None:
    run = made_run(tmp_path / "run", {"one": None}, images=10, targets=2)
    made_scores(run)
    (run.root / score_file("one", 1)).unlink()
    columns = {"insertion", "deletion", "sparseness"}
    found = scores.read_numbers(run, "one", columns)
    assert found.keys() == columns
    for name, values in found.items():
        np.testing.assert_array_equal(values, scores.read_score(run, "one", name))
        assert np.isnan(values[8:16]).all()
        assert np.isfinite(values).any()
    rows = [17, 2, 9, 0]
    curves = scores.read_curves_at(run, "one", {"insertion", "sparseness"}, rows)
    whole = scores.read_curves(run, "one", "insertion")
    assert curves.keys() == {"insertion"}
    assert 9 not in curves["insertion"]  # it is in the missing shard
    wanted = {row: whole[row].tolist() for row in rows if not np.isnan(whole[row, 0])}
    assert {row: curve.tolist() for row, curve in curves["insertion"].items()} == wanted
    assert wanted
