"""Maps and scores that are not good ones are counted, and their samples named, as the run's tables say."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

from explainers.base import Status
from storage.parquet import read_table
from storage.query import query
from storage.records import Step
from storage.run import Run
from tasks.page.counted import counted_maps, counted_scores
from tasks.page.report import report_of
from tasks.page.run_facts import facts_of


def samples_with(run: Run, explainer: str, metric: str, condition: str) -> list[str]:
    """The ids of the samples whose score meets a condition, in the order of the run."""
    of_explainer = f"explainer = '{explainer}' AND metric = '{metric}'"
    rows = query(run.root, f"SELECT sample_id FROM scores WHERE {of_explainer} AND {condition}")
    return sorted(rows["sample_id"].to_pylist())


def test_maps_are_counted_by_status_and_those_of_the_gallery_come_first(finished: Run) -> None:
    zero = samples_with(finished, "ddcam", "insertion", "status = 'all_zero'")
    rows = [int(name.split("/")[1]) for name in zero]
    assert len(rows) > 2
    (of_ddcam, of_ones) = counted_maps(finished, facts_of(finished).statuses, {rows[2], 1})
    assert of_ddcam.told.startswith(f"ddcam: {len(zero)} of 40 maps zero everywhere (no unit is kept")
    assert of_ddcam.samples == [
        (zero[2], f"sample-{rows[2]}"),
        *((name, "") for name in zero if name != zero[2]),
    ]
    assert of_ddcam.more == 0
    assert (of_ones.told, of_ones.samples) == ("all_ones: 40 of 40 maps constant", [])


def test_a_control_that_is_constant_names_no_samples_while_its_run_goes_on(
    finished: Run, tmp_path: Path
) -> None:
    shutil.copytree(finished.root, tmp_path / "run")
    (tmp_path / "run" / Step("saliency", 2, "all_ones").path).unlink()
    run = Run.open(tmp_path / "run")
    *_, of_ones = counted_maps(run, facts_of(run).statuses, set())
    assert (of_ones.told, of_ones.samples) == ("all_ones: 32 of 32 maps constant", [])


def test_of_many_samples_a_few_are_named(finished: Run) -> None:
    many = {"ddcam": Counter({Status.OK: 40})}
    codes = facts_of(finished).statuses["ddcam"]
    assert counted_maps(finished, many, set()) == []
    (found,) = counted_maps(finished, {"ddcam": codes}, set())
    assert len(found.samples) + found.more == codes[Status.ALL_ZERO]


def test_maps_without_a_score_are_those_of_the_tables(finished: Run) -> None:
    summary = read_table(finished.summary)
    (found,) = counted_scores(finished, summary, set())
    lost = samples_with(finished, "ddcam", "sparseness", "value IS NULL")
    assert found.told == f"sparseness: no score for {len(lost)} maps of ddcam, which are zero everywhere"
    assert [name for name, _ in found.samples] == lost[:6]
    assert found.more == max(0, len(lost) - 6)


def test_links_lead_to_samples_of_the_page(finished: Run) -> None:
    page = report_of(finished)
    targets = set(re.findall(r'<a href="#(sample-\d+)">', page))
    assert targets
    assert targets <= set(re.findall(r'<article class="[^"]*" id="(sample-\d+)"', page))
