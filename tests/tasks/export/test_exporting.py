"""The command: what it refuses before it writes, folders that are whole or absent, parts of a run."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.export_commands import TARGETS
from storage.maps import read
from storage.records import Step
from storage.run import Run
from storage.samples import read_samples
from storage.scores import read_values
from tasks.export import reading
from tasks.export.exporting import export
from tasks.export.registry import exports
from tasks.pictures.drawing import pixels_of

runner = CliRunner()


def called(*arguments: Any) -> Any:
    return runner.invoke(app, ["export", *map(str, arguments)])


def test_the_help_names_every_target() -> None:
    assert sorted(TARGETS.replace(" or", ",").split(", ")) == exports.names()


def test_a_wrong_target_is_one_line_that_lists_all(exported_run: Run, tmp_path: Path) -> None:
    ended = called(exported_run.root, "--to", "excel", "--out", tmp_path / "x")
    assert ended.exit_code == 2
    assert ended.stderr == (
        "floodlit: to: there is no target 'excel'; choose from atlas, csv, fiftyone, huggingface, latex, "
        "markdown, npz, virelay\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_refused_and_left_as_it_is(exported_run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    ended = called(exported_run.root, "--to", "csv", "--out", tmp_path)
    assert ended.exit_code == 2
    assert ended.stderr == f"floodlit: out: {tmp_path} is not empty; choose a new or empty folder\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    for wrong, told in ((tmp_path / "mine.txt", "is no folder"), ("s3://bucket/x", "is on S3")):
        with pytest.raises(ValueError, match=rf"^out: .* {told}"):
            export(exported_run, "csv", wrong)


def test_a_run_that_is_not_complete_is_refused(exported_run: Run, tmp_path: Path) -> None:
    shutil.copytree(exported_run.root, tmp_path / "run")
    (tmp_path / "run/summary.parquet").unlink()
    ended = called(tmp_path / "run", "--to", "npz", "--out", tmp_path / "x")
    assert ended.exit_code == 2
    assert ended.stderr == f"floodlit: {tmp_path}/run is not complete; run its job again, then export\n"


def test_images_are_needed_where_a_target_holds_nothing_else(exported_run: Run, tmp_path: Path) -> None:
    text = Run(exported_run.root, exported_run.manifest.model_copy(update={"modality": "text"}))
    with pytest.raises(
        ValueError, match=r"fiftyone holds runs on image .* on text inputs; choose from atlas, csv, h"
    ):
        export(text, "fiftyone", tmp_path / "x")


def test_what_was_written_is_told_and_the_default_folder_is_here(
    exported_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = called(exported_run.root, "--to", "atlas")
    assert ended.exit_code == 0
    assert "samples.parquet: 7 rows" in ended.stdout
    assert str(tmp_path / "run-atlas") in ended.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["run-atlas"]


def test_an_export_that_fails_leaves_nothing(
    exported_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tasks.export.csv.pyarrow.csv.write_csv", full)
    ended = called(exported_run.root, "--to", "csv", "--out", tmp_path / "x")
    assert ended.exit_code == 1
    assert ended.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_left_is_removed_by_the_next_one_and_nothing_else(
    exported_run: Run, tmp_path: Path
) -> None:
    number = "0123456789abcdef" * 2
    left, held = tmp_path / f"x.{number}.partial", tmp_path / f"x.{number[::-1]}.partial"
    others = [tmp_path / f"x-2.{number}.partial", tmp_path / "x.mine.partial"]
    for folder in (left, held, *others):
        folder.mkdir()
        (folder / "part.csv").write_text("half")
    there = os.open(held, os.O_RDONLY)  # as the export does that is still at work
    fcntl.flock(there, fcntl.LOCK_EX)
    export(exported_run, "csv", tmp_path / "x")
    os.close(there)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["x", held.name, *(other.name for other in others)]
    )


@pytest.mark.parametrize("size", [1, 2, 64])
def test_parts_are_the_run_whatever_their_size(
    exported_run: Run, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SAMPLES", size)
    parts = list(reading.each_part(exported_run, scored=True))
    assert max(len(part.samples) for part in parts) == min(size, 3)
    samples = [sample for part in parts for sample in part.samples]
    assert [each["sample_id"] for each in samples] == [
        s["sample_id"] for s in read_samples(exported_run.root)
    ]
    for name in exported_run.explainers:
        maps = np.concatenate([part.maps(name) for part in parts])
        stored = read(exported_run.saliency(name) / "maps", 0, 14)
        np.testing.assert_array_equal(maps.reshape(stored.shape), stored)
        table = read_values(exported_run, name).to_pylist()
        found = [
            part.scores(place, target)[name, "sparseness"]
            for part in parts
            for place in range(len(part.samples))
            for target in range(2)
        ]
        assert found == [row["value"] for row in table if row["metric"] == "sparseness"]
    pictures = [picture for part in parts for picture in part.pictures]
    assert [place for place, picture in enumerate(pictures) if picture is None] == [4]
    assert pictures[6] == reading.png(pixels_of(exported_run, 6))


def test_a_step_that_failed_has_no_maps_and_no_scores(exported_run: Run, tmp_path: Path) -> None:
    shutil.copytree(exported_run.root, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    for stage in ("saliency", "scores"):
        (run.root / Step(stage, 1, "gradcam").path).unlink()
    (run.root / "scores/explainer=gradcam/shard-00001.parquet").unlink()
    (run.root / "saliency.zarr/gradcam/maps/c/1/0/0").unlink()
    first, second, _ = reading.each_part(run, scored=True)
    assert np.isnan(second.maps("gradcam")).all()
    assert not np.isnan(first.maps("gradcam")).any()
    assert second.map_pictures("gradcam") == [[None, None]] * 3
    assert second.scores(0)["gradcam", "sparseness"] is None
    assert second.scores(0)["occ.1", "sparseness"] is not None
    folder, _ = export(run, "npz", tmp_path / "npz")
    assert np.isnan(np.load(folder / "gradcam.npz")["maps"][3:6]).all()
