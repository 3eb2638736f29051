"""Score files: what goes in comes out, nulls stay nulls, and the same rows give the same bytes."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from storage import scores
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
