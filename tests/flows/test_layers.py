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


def printed(tmp_path: Path, **changes: object) -> str:
    job = toml(tiny_job(tmp_path / "run", **changes), tmp_path / "job.toml")
    result = runner.invoke(app, ["layers", str(job)])
    assert result.exit_code == 0, result.output
    return result.output


def listed(tmp_path: Path, **changes: object) -> list[list[str]]:
    """The cells of the rows that ``floodlit layers`` prints."""
    rows = [line.split("│")[1:-1] for line in printed(tmp_path, **changes).splitlines() if "│" in line]
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


NETWORK = """
from torch import nn

def net():
    pieces = [nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 5, 2, 2), nn.ReLU(), nn.Conv2d(5, 6, 2, 2)]
    return nn.Sequential(*pieces, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 24))
"""
CHOICE = "found; earlier, on other grids and not tried: 2 (8x8), 0 (16x16)"


def test_how_the_layer_was_chosen_stands_below_the_table(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    own = {"source": f"{tmp_path}/net.py:net"}
    assert "*: what the job takes (named by the job). cost: " in printed(tmp_path, model=own | {"layer": "0"})
    assert "*: what the job takes (found). cost: " in printed(tmp_path, model=own)
    published = {"source": "timm", "name": "test_resnet", "weights": "none", "num_classes": 24}
    assert "*: what the job takes (known for ResNet). cost: " in printed(tmp_path, model=published)


def test_a_run_says_how_its_layer_was_chosen_and_which_others_there_are(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    free, reads = [{"name": "all_ones"}], [{"name": "all_ones"}, {"name": "gradcam"}]
    raw = tiny_job(tmp_path / "run", model={"source": f"{tmp_path}/net.py:net"}, explainers=free)
    assert prepared(raw).manifest.layer_choice == ""
    assert "layer" not in runner.invoke(app, ["status", str(tmp_path / "run")]).output
    run = prepared(raw | {"explainers": reads})  # it learns its layer now
    assert (run.layer, run.manifest.layer_choice) == ("3", CHOICE)
    assert f"layer 3 ({CHOICE})\n" in runner.invoke(app, ["status", str(run.root)]).output
    assert prepared(raw | {"explainers": reads}).manifest == run.manifest
    named = prepared(tiny_job(tmp_path / "named", model=raw["model"] | {"layer": "3"}))
    assert named.manifest.layer_choice == ""
    assert "layer 3\n" in runner.invoke(app, ["status", str(named.root)]).output
