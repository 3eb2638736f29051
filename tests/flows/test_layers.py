"""`floodlit layers`: what a job's model could be explained at."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from explainers.models import classifier
from explainers.models.finding import TargetLayer
from flows.cli import app
from runs import model, prepared, tiny_job, toml

runner = CliRunner()


def listed(tmp_path: Path, **changes: object) -> list[list[str]]:
    """The cells of the rows that ``floodlit layers`` prints."""
    job = toml(tiny_job(tmp_path / "run", **changes), tmp_path / "job.toml")
    result = runner.invoke(app, ["layers", str(job)])
    assert result.exit_code == 0, result.output
    rows = [line.split("│")[1:-1] for line in result.output.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_layer_that_the_job_takes_is_marked_and_every_row_says_what_was_seen(tmp_path: Path) -> None:
    rows = listed(tmp_path)
    marked = [row for row in rows if row[0] == "*"]
    assert [row[1] for row in marked] == [prepared(tiny_job(tmp_path / "run")).layer]
    assert all(row[8] for row in rows if row[1])
    assert marked[0][6:8] == ["fx", "0%"]  # behind it are a pooling and one small linear layer
    costs = [int(row[7].rstrip("%")) for row in rows if row[7]]
    assert costs == sorted(costs)  # the earlier the layer, the more lies behind it
    assert 50 < costs[-1] < 100  # the first convolution lies before the first layer


def test_the_layer_that_a_run_recorded_is_marked_even_if_another_one_would_be_found_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = prepared(tiny_job(tmp_path / "run")).layer
    other = listed(tmp_path)[-1][1]
    assert other not in ("", recorded)
    monkeypatch.setattr(classifier, "resolve_layer", lambda _, layer: TargetLayer(layer or other))
    assert [row[1] for row in listed(tmp_path) if row[0] == "*"] == [recorded]


def test_a_layer_that_is_listed_under_another_name_gets_a_row_of_its_own(tmp_path: Path) -> None:
    default = prepared(tiny_job(tmp_path / "run")).layer
    rows = listed(tmp_path, model=model("gap") | {"layer": "features.14"})
    marked = [row for row in rows if row[0] == "*"]
    assert [row[1] for row in marked] == ["features.14"]
    same = next(row for row in rows if row[1] == default)
    assert marked[0][2:8] == same[2:8]


def test_a_job_that_is_none_ends_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    job = toml(tiny_job(tmp_path / "run", model={"source": "nothing"}), tmp_path / "job.toml")
    for path in (job, tmp_path / "absent.toml"):
        result = runner.invoke(app, ["layers", str(path)])
        assert result.exit_code == 2
        assert len(result.output.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [job]
