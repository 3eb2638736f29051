"""The command, as a user types it: what it prints, and that its exit codes mean something."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from flows.explain import explain
from flows.inspect_commands import _flat
from flows.job import Job
from runs import decomposed, tiny_job
from storage.records import Step, drop_record
from storage.run import Run

Raw = Callable[..., dict[str, Any]]
runner = CliRunner()


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Six images, one of them broken, explained by Grad-CAM and a stand-in that decomposes its maps."""
    return decomposed(tmp_path_factory.mktemp("components"))


@pytest.fixture(scope="module")
def complete(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of 16 images."""
    root = tmp_path_factory.mktemp("cli") / "run"
    explain(Job.model_validate(tiny_job(root, dataset={"kind": "digits", "limit": 16})))
    return root


def test_every_explainer_and_metric_is_listed_with_its_parameters() -> None:
    listed = runner.invoke(app, ["explainers"])
    assert listed.exit_code == 0
    for name in ("ddcam", "gradcam", "random", "center_gaussian", "sobel", "all_ones"):
        assert name in listed.output
    listed = runner.invoke(app, ["metrics"])
    assert "insertion" in listed.output
    assert "steps = 28" in listed.output


def test_a_job_that_cannot_run_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("name = 'x'\n")
    refused = runner.invoke(app, ["run", str(tmp_path / "job.toml")])
    assert refused.exit_code == 2
    assert "dataset: Field required" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.service
def test_status_of_a_complete_run_is_0_and_of_an_incomplete_one_1(complete: Path, tmp_path: Path) -> None:
    whole = runner.invoke(app, ["status", str(complete)])
    assert whole.exit_code == 0, whole.output
    assert "complete" in whole.output
    assert re.search(
        r"^accuracy [01]\.\d{3} \(\d+ of 16 labels\); labels: matched with the", whole.output, re.M
    )
    copy = tmp_path / "copy"
    shutil.copytree(complete, copy)
    next((copy / "done" / "scores" / "gradcam").iterdir()).unlink()
    partial = runner.invoke(app, ["status", str(copy)])
    assert partial.exit_code == 1
    assert "incomplete: 1 steps" in partial.output


@pytest.mark.service
def test_query_prints_tables_csv_and_json_of_the_same_rows(complete: Path) -> None:
    sql = "SELECT explainer, n FROM summary WHERE metric = 'insertion' ORDER BY explainer"
    rows = json.loads(runner.invoke(app, ["query", str(complete), sql, "--format", "json"]).output)
    assert [row["explainer"] for row in rows] == sorted(row["explainer"] for row in rows)
    assert {row["n"] for row in rows} == {16}
    assert len(rows) == 6
    csv = runner.invoke(app, ["query", str(complete), sql, "--format", "csv"]).output.splitlines()
    assert csv[0].replace('"', "") == "explainer,n"
    assert len(csv) == 7
    table = runner.invoke(app, ["query", str(complete), sql]).output
    assert "gradcam" in table


@pytest.mark.service
@pytest.mark.parametrize(("view", "column"), [("summary", "excluded_by"), ("samples", "boxes")])
def test_query_prints_structs_and_lists_as_json_in_csv(complete: Path, view: str, column: str) -> None:
    sql = f"SELECT * FROM {view}"
    expected = json.loads(runner.invoke(app, ["query", str(complete), sql, "--format", "json"]).output)
    printed = runner.invoke(app, ["query", str(complete), sql, "--format", "csv"])
    assert printed.exit_code == 0, printed.output
    found = list(csv.DictReader(printed.output.splitlines()))
    assert [json.loads(row[column]) for row in found] == [row[column] for row in expected]


def test_missing_structs_are_empty_cells_and_other_columns_stay(tmp_path: Path) -> None:
    rows = pa.table({"n": [1, 2], "found": [{"a": 1, "b": "x, y"}, None], "name": ["one", "two"]})
    pyarrow.csv.write_csv(_flat(rows), tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"n": "1", "found": '{"a": 1, "b": "x, y"}', "name": "one"},
            {"n": "2", "found": "", "name": "two"},
        ]


@pytest.mark.service
def test_query_refuses_what_is_no_select_with_exit_code_2(complete: Path) -> None:
    refused = runner.invoke(app, ["query", str(complete), "CREATE TABLE t AS SELECT 1"])
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1


@pytest.mark.service
def test_verify_names_what_is_damaged(complete: Path, tmp_path: Path) -> None:
    assert runner.invoke(app, ["verify", str(complete)]).exit_code == 0
    copy = tmp_path / "copy"
    shutil.copytree(complete, copy)
    score = next((copy / "scores" / "explainer=sobel").iterdir())
    score.write_bytes(score.read_bytes()[:-20])
    damaged = runner.invoke(app, ["verify", str(copy)])
    assert damaged.exit_code == 1
    assert "scores/explainer=sobel/shard-00000.parquet" in damaged.output


def test_components_prints_the_path_of_the_picture_it_writes(explained: Run, tmp_path: Path) -> None:
    drawn = runner.invoke(app, ["components", str(explained.root), "--sample", "b/3.png"])
    assert drawn.exit_code == 0, drawn.output
    picture = explained.report / "components" / "runs%3aQuadrants-b%2f3.png.png"
    assert drawn.stdout == f"{picture}\n"
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert image.width == pytest.approx(6 * 165, abs=2)  # the image, the map, four components
    chosen = ["--explainer", "runs:Quadrants", "--output", str(tmp_path / "mine.png")]
    again = runner.invoke(app, ["components", str(explained.root), "--sample", "b/3.png", *chosen])
    assert again.stdout == f"{tmp_path}/mine.png\n"
    assert (tmp_path / "mine.png").read_bytes() == picture.read_bytes()


@pytest.mark.parametrize(
    ("sample", "explainer", "said"),
    [
        ("b/0.png", "ddcam", "has no explainer 'ddcam'; it has gradcam, runs:Quadrants"),
        ("b/0.png", "gradcam", "gradcam does not decompose its maps; choose from runs:Quadrants"),
        ("b/9.png", "runs:Quadrants", "has no sample 'b/9.png'; there are b/"),
        ("b/broken.png", "runs:Quadrants", "the image of b/broken.png could not be read: "),
        ("b/4.png", "runs:Quadrants", "b/4.png has no map of runs:Quadrants yet"),
    ],
)
def test_components_that_cannot_be_drawn_are_one_line_and_exit_code_2(
    explained: Run, tmp_path: Path, sample: str, explainer: str, said: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(explained.root, copy, ignore=shutil.ignore_patterns("report"))
    drop_record(copy, Step("saliency", 1, "runs:Quadrants"))
    refused = runner.invoke(app, ["components", str(copy), "--sample", sample, "--explainer", explainer])
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (copy / "report").exists()


@pytest.mark.parametrize("command", [["status"], ["verify"], ["components", "--sample", "x"]])
def test_a_folder_that_is_no_run_is_exit_code_2(tmp_path: Path, command: list[str]) -> None:
    refused = runner.invoke(app, [*command, str(tmp_path)])
    assert refused.exit_code == 2
    assert "is not a run folder" in refused.stderr
