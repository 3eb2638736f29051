"""The report's section on findings, on a network whose fault is known."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finding_toys import PATCH, job
from runs import prepared
from storage.run import Run
from tasks.findings.words import class_told, place_of, sentence
from tasks.page.findings import findings_of
from tasks.page.rendering import render


def pixels(address: str) -> np.ndarray:
    encoded = base64.b64decode(address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def test_a_finding_has_pictures_of_both_interventions(found: Run) -> None:
    section = findings_of(found)
    assert section is not None
    assert [each.row["class"] for each in section.shown] == [0]
    assert section.counts == {"finding": 1, "not confirmed": 2}
    first = section.shown[0]
    assert len(first.exemplars) == 6
    assert first.region_told == "refined place in the tested region"
    for before, after, there in [
        *((pair.before, pair.after, True) for pair in first.removals),
        *((pair.before, pair.after, False) for pair in first.transplants),
    ]:
        had, has = (pixels(address)[*PATCH].mean() > 200 for address in (before, after))
        assert (had, has) == (there, not there)
    assert len(first.removals) == len(first.transplants) == 4
    assert float(first.removals[0].told.split()[0]) < -8
    assert float(re.findall(r"[+-][\d.]+", first.transplants[0].told)[0]) > 8
    assert section.notes == []
    assert [(view.name, view.classes) for view in section.views] == [("strategies", 3)]


def test_the_section_is_whole_and_escapes_what_comes_from_data(found: Run) -> None:
    section = findings_of(found)
    assert section is not None
    section.shown[0].row["told"] = "<script>alert(1)</script>"
    html = render("findings.html", findings=section)
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "Suspected and not confirmed (2)" in html
    assert "class 1" in html


def test_a_run_without_findings_has_no_section(tmp_path: Path) -> None:
    assert findings_of(prepared(job(tmp_path / "run", findings=[]))) is None
    assert findings_of(prepared(job(tmp_path / "other"))) is None  # not looked for yet


def region(rows: slice, columns: slice) -> np.ndarray:
    made = np.zeros((64, 64), bool)
    made[rows, columns] = True
    return made


@pytest.mark.parametrize(
    ("rows", "columns", "told"),
    [
        (slice(54, 62), slice(2, 10), "the lower left corner"),
        (slice(0, 12), slice(48, 64), "the upper right corner"),
        (slice(0, 10), slice(0, 64), "the upper part"),
        (slice(0, 64), slice(58, 64), "the right part"),
        (slice(26, 38), slice(26, 38), "the centre"),
        (slice(0, 60), slice(0, 60), "most of the image"),
        (slice(0, 0), slice(0, 0), "no place"),
    ],
)
def test_places_have_plain_names(rows: slice, columns: slice, told: str) -> None:
    assert place_of(region(rows, columns)) == told


def test_a_frame_is_the_border_and_a_class_has_one_name() -> None:
    frame = ~region(slice(3, -3), slice(3, -3))
    assert place_of(frame) == "the border"
    assert class_told(3, "3") == class_told(3, None) == "class 3"
    assert class_told(3, "dog") == "dog (class 3)"


def test_a_suspicion_that_was_not_tested_says_why() -> None:
    row = {"class": 2, "class_name": "cat", "share": 0.1, "status": "not tested", "reason": "no passes left"}
    assert sentence(row, "the border", 40) == "Cat (class 2): the border is suspected (no passes left)."


@pytest.mark.parametrize(("paired", "where"), [(True, "elsewhere"), (False, "in images of other classes")])
def test_a_finding_says_what_was_measured_and_where_its_control_is(paired: bool, where: str) -> None:
    row = {"class": 2, "class_name": None, "status": "finding", "images": 24, "removal": 6.9, "flips": 0.6}
    row |= {"removal_control": 0.1, "flips_control": 0.02}
    assert sentence(row, "the border", 40, paired) == (
        "Class 2: the maps of 24 of 40 images taken for it point to the border; in those that do so most, "
        f"other content in the region costs 6.9 nats, {where} 0.1; its own content, pasted into images of "
        "other classes, turns 60% of them into this class, content of random images 2%."
    )
