"""SQL over a run: the three views, nothing but reading, nothing outside."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.manifest import Manifest
from storage.query import QueryError, query
from storage.run import Run
from storage.scores import write_scores


def scores_of(values: list[float]) -> dict[str, list[object]]:
    names = [f"i{number}" for number in range(len(values))]
    return {
        "sample_id": names,
        "target": [0] * len(values),
        "metric": ["gini", "drop"] * (len(values) // 2),
        "value": values,
        "curve": [None] * len(values),
        "status": ["ok"] * len(values),
        "forward_passes": [None] * len(values),
    }


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    known = {"job": {}, "identity": {}, "versions": {}, "model_fingerprint": "", "dataset_fingerprint": ""}
    layout = {"rows": 4, "shard_rows": 2, "input_shape": (3, 2, 2), "metrics": {}}
    entry = {"parameters": {}, "grid": (2, 2)}
    layout["explainers"] = {"ddcam": entry, "package.module:Name": entry}
    return Run.create_or_open(tmp_path / "run[1]*", Manifest(**known, **layout)).root


@pytest.fixture
def root(empty: Path) -> Path:
    write_scores(empty, "ddcam", 0, scores_of([1.0, 2.0]))
    write_scores(empty, "ddcam", 1, scores_of([3.0, 4.0]))
    write_scores(empty, "package.module:Name", 0, scores_of([5.0, 6.0]))
    pq.write_table(pa.table({"sample_id": ["i0", "i1"], "label": [3, 4]}), empty / "samples.parquet")
    return empty


def test_scores_have_their_explainer_and_join_with_samples(root: Path) -> None:
    rows = query(
        root,
        """SELECT explainer, metric, avg(value) AS mean, any_value(label) AS label
           FROM scores JOIN samples USING (sample_id) GROUP BY ALL ORDER BY ALL""",
    ).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("ddcam", "drop", 3.0, 4),
        ("ddcam", "gini", 2.0, 3),
        ("package.module:Name", "drop", 6.0, 4),
        ("package.module:Name", "gini", 5.0, 3),
    ]


def test_columns_that_a_run_of_an_earlier_version_lacks_are_null(root: Path) -> None:
    rows = query(root, "SELECT sample_id, labels, labels[1] AS first FROM samples").to_pylist()
    assert rows == [{"sample_id": f"i{i}", "labels": None, "first": None} for i in range(2)]


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("FROM scores WHERE value > 4", 2),
        ("WITH a AS (SELECT * FROM scores) SELECT * FROM a;", 6),
        ("PIVOT scores ON metric USING avg(value) GROUP BY explainer", 2),
        ("DESCRIBE scores", 8),
        ("SUMMARIZE samples", 4),
        ("SHOW TABLES", 2),
        ("-- a remark\nSELECT ';'", 1),
    ],
)
def test_everything_that_only_reads_is_allowed(root: Path, sql: str, rows: int) -> None:
    assert len(query(root, sql)) == rows


@pytest.mark.parametrize(
    "sql",
    [
        "COPY scores TO '{out}'",
        "COPY (SELECT 1) TO '{out}' (FORMAT parquet)",
        "EXPORT DATABASE '{out}'",
        "ATTACH '{out}' AS other",
        "CREATE TABLE t AS SELECT 1",
        "INSERT INTO samples VALUES ('x', 1)",
        "DELETE FROM samples",
        "UPDATE samples SET label = 0",
        "DROP VIEW samples",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "PRAGMA database_list",
        "CALL pragma_version()",
        "EXPLAIN ANALYZE COPY scores TO '{out}'",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY scores TO '{out}'",
        "",
        "-- nothing",
    ],
)
def test_anything_but_one_select_is_refused_and_writes_nothing(root: Path, tmp_path: Path, sql: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(QueryError, match="a query must be one SELECT statement; this is"):
        query(root, sql.format(out=tmp_path / "out"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM '{secret}'",
        "SELECT * FROM glob('{secret}')",
        "SELECT * FROM read_parquet('https://example.org/x.parquet')",
        "SELECT * FROM query('COPY scores TO ''{secret}''')",
        "SELECT getenv('HOME')",
        "SELECT * FROM views",  # a variable of the Python code that asks
        "WITH t AS (INSERT INTO samples VALUES ('x', 1) RETURNING *) FROM t",
    ],
)
def test_a_select_reaches_no_file_no_network_and_no_variable(root: Path, tmp_path: Path, sql: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    with pytest.raises(QueryError) as refusal:
        query(root, sql.format(secret=secret))
    assert "\n" not in str(refusal.value)
    assert secret.read_text() == "a,b\n1,2\n"


def test_what_does_not_fit_into_memory_is_not_written_to_the_working_directory(root: Path) -> None:
    found = query(root, "SELECT current_setting('temp_directory') AS folder")
    assert found.to_pylist() == [{"folder": ""}]


def test_a_view_that_is_not_there_yet_says_when_it_will_be(root: Path, empty: Path) -> None:
    with pytest.raises(
        QueryError, match=r"no view summary yet: .* when all shards are done .*samples, scores\)"
    ):
        query(root, "SELECT * FROM summary")
    (empty / "samples.parquet").unlink()
    with pytest.raises(QueryError, match="no view samples yet"):
        query(root, "SELECT * FROM samples")


def test_before_anything_is_computed_there_is_no_view(empty: Path) -> None:
    with pytest.raises(QueryError, match=r"no shard has been scored \(existing views: none\)"):
        query(empty, "SELECT * FROM scores")


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("SELECT nope FROM scores", 'Referenced column "nope" not found'),
        ("SELEC 1", "syntax error at or near"),
        ("SELECT CAST(sample_id AS INT) FROM samples", "Could not convert string 'i0'"),
        ("SELECT * FROM elsewhere", "there is no view elsewhere; there are "),
        ("SELECT * FROM sampels", "there is no view sampels; close are samples"),
    ],
)
def test_a_wrong_query_is_one_clear_line(root: Path, sql: str, told: str) -> None:
    with pytest.raises(QueryError, match=told) as refusal:
        query(root, sql)
    assert "\n" not in str(refusal.value)


def test_a_damaged_table_is_one_clear_line(root: Path) -> None:
    (root / "samples.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(QueryError, match=r"samples\.parquet") as refusal:
        query(root, "SELECT * FROM samples")
    assert "\n" not in str(refusal.value)


def test_no_run_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run\.json"):
        query(tmp_path, "SELECT 1")
