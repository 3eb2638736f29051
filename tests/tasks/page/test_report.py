"""The report: one file, legible without scripts, in which no text from data is markup."""

from __future__ import annotations

import shutil
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runs import completed, tiny_job
from storage.records import Step, write_failure
from storage.run import Run
from storage.samples import each_sample
from storage.verify import verify
from tasks import summary
from tasks.page.report import report_of, write_report
from tasks.page.run_facts import facts_of
from tasks.page.told_paths import common_folder
from tasks.results.calibration import calibration_of
from tasks.results.leaderboard import read_leaderboard
from tasks.results.verdict import verdict

HOSTILE = '</title><script>document.title = "taken"</script> & "quotes" 🦉'


def copy_of(run: Run, folder: Path) -> Run:
    shutil.copytree(run.root, folder / "run")
    return Run.open(folder / "run")


def test_a_finished_job_has_a_report_and_verifies_with_it(finished: Run) -> None:
    assert finished.page.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert not verify(finished.root)


def test_a_report_that_fails_costs_no_results(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run: Run) -> None:
        raise RuntimeError("no picture of this")

    run = copy_of(finished, tmp_path)
    assert run.page.exists()
    summary._tried(broken, run, run.page)
    monkeypatch.setattr(summary, "write_curves", broken)
    written = summary.write_results(run)
    assert run.summary.read_bytes() == finished.summary.read_bytes()
    assert [path.name for path in written.pictures] == ["contact_sheet.png"]
    assert not run.page.exists()
    assert not verify(run.root)


def test_the_report_is_the_same_each_time(finished: Run) -> None:
    assert report_of(finished) == report_of(Run.open(finished.root))


def test_the_job_in_the_report_is_a_job(finished: Run) -> None:
    from flows.job import Job

    told = facts_of(finished)
    job, folder = tomllib.loads(told.job), common_folder(finished.job)
    assert told.folder
    assert job["store"] == finished.root.name
    at_home = Job.model_validate(job, context={"folder": Path(str(folder))})
    assert at_home == Job.model_validate(finished.job)


def test_a_report_tells_no_name_of_a_user(finished: Run) -> None:
    home = "/home/anna.secret"
    places = {
        "store": f"{home}/project/runs/a",
        "dataset": {"kind": "digits", "path": f"{home}/project/data"},
    }
    places["model"] = {"source": f"{home}/nets/net.py:make"}
    job = finished.job | places | {"tracking": f"sqlite:///{home}/mlflow.db"}
    page = report_of(Run(finished.root, finished.manifest.model_copy(update={"job": job})))
    assert "anna" not in page
    assert "digits · data" in page
    assert "~/nets/net.py:make" in page


def test_an_unfinished_run_says_how_much_is_done(finished: Run, tmp_path: Path) -> None:
    run = copy_of(finished, tmp_path)
    lost = next(iter((run.root / "done" / "scores" / "gradcam").iterdir()))
    lost.unlink()
    run.summary.unlink()
    page = write_report(run).read_text("utf-8")
    total = run.layout.steps
    assert f"not complete: {total - 1} steps of {total} are done" in page


def test_a_run_that_lacks_failed_steps_or_new_metrics_says_so(finished: Run, tmp_path: Path) -> None:
    run = copy_of(finished, tmp_path)
    step = Step("scores", 0, "gradcam")
    (run.root / step.path).unlink()
    write_failure(run.root, step, "ValueError: x", "", 2)
    page = report_of(run)
    assert "1 step failed; the job runs failed steps again with" in page
    assert "Run the job again to finish it" not in page
    more = finished.metrics | {"another": next(iter(finished.metrics.values()))}
    extended = Run(finished.root, finished.manifest.model_copy(update={"metrics": more}))
    scored = finished.shards * len(finished.explainers)
    assert facts_of(extended).done == finished.layout.steps - scored


def test_maps_of_labels_that_an_image_does_not_have_are_counted(
    finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"gradcam": Counter(ok=30, no_label=17)}
    known = replace(facts_of(finished), statuses=counts)
    assert "without such a label" not in report_of(finished)
    monkeypatch.setattr("tasks.page.report.facts_of", lambda run, summary: known)
    assert "gradcam: 17 of 47 maps without such a label</li>" in report_of(finished)


def test_the_calibration_error_is_that_of_a_loop_over_bins(finished: Run) -> None:
    samples = list(each_sample(finished.root, ["label", "prediction", "confidence"]))
    error = 0.0
    for index in range(15):
        inside = [s for s in samples if index / 15 < s["confidence"] <= (index + 1) / 15]
        if inside:
            right = np.mean([s["label"] == s["prediction"] for s in inside])
            error += len(inside) / len(samples) * abs(right - np.mean([s["confidence"] for s in inside]))
    found = calibration_of(finished)
    assert found is not None
    assert found.images == len(samples)
    assert found.error == pytest.approx(error, abs=1e-12)
    assert sum(images for _, images, _, _ in found.bins) == len(samples)


def test_names_and_errors_are_shown_as_text(tmp_path: Path, look: Callable[..., Any]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a<img src=x onerror=alert(1)>.png").write_bytes(b"no image")
    Image.new("RGB", (64, 64), "gray").save(folder / "b.png")
    dataset = {"kind": "folder", "path": str(folder)}
    metrics = [{"name": "insertion", "steps": 2}]
    run = completed(tiny_job(tmp_path / "run", name=HOSTILE, dataset=dataset, metrics=metrics))
    with look(write_report(run)) as tab:
        assert tab.title().startswith(HOSTILE)
        assert tab.locator("h1").text_content() == HOSTILE
        assert "a<img src=x onerror=alert(1)>.png" in tab.locator(".failed").text_content()
        assert tab.locator(".failed img").count() == 0


def test_columns_are_sorted_by_keyboard_and_parts_stay_apart(finished: Run, look: Any) -> None:
    board = read_leaderboard(finished)
    with look(finished.page) as tab:
        for down in (True, False):
            button = tab.locator(".board button").first
            assert button.text_content() == "insertion"
            button.focus()
            tab.keyboard.press("Enter")
            for kind, rows in (("own", board.explainers), ("controls", board.controls)):
                found = tab.locator(f".board tbody.{kind}").first.locator("th[scope=row]").all_text_contents()
                by_mean = sorted(rows, key=lambda row: row.cells["insertion"].mean, reverse=down)
                assert found == [row.name for row in by_mean]


def test_the_page_is_legible_without_scripts(finished: Run, look: Any) -> None:
    with look(finished.page, java_script_enabled=False) as tab:
        assert verdict(read_leaderboard(finished)) in tab.locator("#result").inner_text()
        assert "gradcam" in tab.locator("#leaderboard table").first.inner_text()
        assert tab.locator("#charts svg").first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_no_serious_fault_of_access(
    finished: Run, look: Callable[..., Any], scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    with look(finished.page, color_scheme=scheme) as tab:
        found = Axe().run(tab).response["violations"]
    assert [fault["id"] for fault in found if fault["impact"] in {"serious", "critical"}] == []
