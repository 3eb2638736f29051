"""The search over samples: against a loop over rows, page by page, in both directions."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runs import completed, tiny_job
from storage.parquet import read_table, write_table
from storage.query import QueryError, query
from storage.run import Run
from storage.samples import read_samples
from tasks.page.catalog import Catalog, Search, reference


@pytest.fixture(scope="module")
def catalog(finished: Run) -> Catalog:
    return Catalog({"run": finished})


@pytest.fixture(scope="module")
def rows(finished: Run) -> list[dict[str, Any]]:
    """Each sample with its scores of Grad-CAM and DD-CAM."""
    samples = read_samples(finished.root)
    places = {sample["sample_id"]: sample for sample in samples}
    for score in query(finished.root, "SELECT * FROM scores").to_pylist():
        places[score["sample_id"]][f"{score['explainer']}.{score['metric']}"] = score["value"]
    return samples


def walked(catalog: Catalog, search: Search, most: int) -> list[int]:
    """The rows of all pages of a search."""
    found = catalog.find(search, most)
    rows = found.rows
    while found.more:
        found = catalog.find(Search(**vars(search) | {"after": found.keys[-1]}), most)
        rows = rows + found.rows
    return rows


SORTS = ["", "gradcam.insertion", "gradcam.insertion - ddcam.insertion", "confidence", "sample_id", "label"]


@settings(max_examples=12)
@given(st.sampled_from(SORTS), st.booleans(), st.integers(1, 17))
def test_pages_in_order_hold_each_sample_once(
    catalog: Catalog, rows: list[dict[str, Any]], sort: str, descending: bool, most: int
) -> None:
    def value(row: int) -> Any:
        if " - " in sort:
            one, other = (rows[row][name] for name in sort.split(" - "))
            return None if None in (one, other) else one - other
        return rows[row][sort] if sort else 0

    found = walked(catalog, Search(sort=sort, descending="1" if descending else ""), most)
    known = [row for row in range(len(rows)) if value(row) is not None]
    expected = sorted(known, key=value, reverse=descending)
    ties = {}
    for row in known:  # samples of equal value are in the order of the dataset
        ties.setdefault(value(row), []).append(row)
    expected = [row for chosen in dict.fromkeys(map(value, expected)) for row in ties[chosen]]
    assert found == expected + [row for row in range(len(rows)) if row not in known]


@settings(max_examples=8)
@given(st.sampled_from(SORTS), st.booleans(), st.integers(0, 39))
def test_the_sample_before_the_next_one_is_the_same(
    catalog: Catalog, sort: str, descending: bool, row: int
) -> None:
    search = Search(sort=sort, descending="1" if descending else "")
    here = catalog.key_of(search, row)
    after = catalog.find(Search(**vars(search) | {"after": here}), 1)
    if after.rows:
        back = catalog.find(Search(**vars(search) | {"after": after.keys[0]}), 1, backwards=True)
        assert back.rows == [row]
    else:
        assert walked(catalog, search, 16)[-1] == row


def test_filters_are_those_of_a_loop(catalog: Catalog, rows: list[dict[str, Any]]) -> None:
    def found(**search: str) -> list[int]:
        assert catalog.count(Search(**search)) == len(walked(catalog, Search(**search), 7))
        return walked(catalog, Search(**search), 7)

    def where(condition: Any) -> list[int]:
        return [row for row, sample in enumerate(rows) if condition(sample)]

    assert found(label="3") == where(lambda s: s["label"] == 3)
    assert found(prediction="3") == where(lambda s: s["prediction"] == 3)
    assert found(correct="0") == where(lambda s: s["label"] != s["prediction"])
    assert found(correct="1") == where(lambda s: s["label"] == s["prediction"])
    assert found(score="gradcam.insertion", low="0.6", high="0.9") == where(
        lambda s: s["gradcam.insertion"] is not None and 0.6 <= s["gradcam.insertion"] <= 0.9
    )
    assert found(text=rows[5]["sample_id"].upper()) == where(lambda s: rows[5]["sample_id"] in s["sample_id"])
    assert found(where="confidence > 0.9 AND ddcam.insertion < gradcam.insertion -- better") == where(
        lambda s: (
            s["confidence"] > 0.9
            and None not in (s["ddcam.insertion"], s["gradcam.insertion"])
            and s["ddcam.insertion"] < s["gradcam.insertion"]
        )
    )


def test_an_image_with_any_of_several_labels_counts_and_one_without_a_label_is_not_wrong(
    finished: Run, tmp_path: Path
) -> None:
    shutil.copytree(finished.root, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    table = read_table(run.samples)
    rows = table.to_pylist()
    predicted = [row["prediction"] for row in rows]
    for row in rows:
        row |= {"label": None, "label_name": None, "labels": []}
    rows[1]["labels"] = [predicted[1], 10]
    rows[2] |= {"labels": [10, 11], "label_name": "owl; barn"}
    write_table(pa.Table.from_pylist(rows, table.schema), run.samples)
    catalog = Catalog({"run": run})
    assert catalog.samples["correct"].to_pylist()[:4] == [None, True, False, None]
    assert catalog.find(Search(correct="0")).rows == [2]
    assert catalog.find(Search(label="10")).rows == [1, 2]
    assert catalog.find(Search(label="barn")).rows == [2]


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ({"where": "nonsense > 1"}, "nonsense"),
        ({"where": "true) OR (true; SELECT 1"}, "syntax error"),
        ({"where": "true)); SELECT * FROM ((SELECT 1"}, "one SELECT"),
        ({"where": "1 = (SELECT count(*) FROM read_csv('/etc/passwd'))"}, "disabled"),
        ({"sort": "boxes"}, "boxes"),
        ({"sort": "labels"}, "sort by a number or a text"),
        ({"after": "no key"}, "not a key of this page"),
        ({"score": "confidence", "low": "x"}, "is a number, not 'x'"),
    ],
)
def test_what_cannot_be_understood_is_said_in_one_line(
    catalog: Catalog, search: dict[str, str], told: str
) -> None:
    with pytest.raises(QueryError, match=told) as refusal:
        catalog.find(Search(**search))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("label", ["all", "select", "order", "end", "left", "my-map", "gradcam2"])
def test_an_explainer_may_have_any_label(finished: Run, label: str) -> None:
    catalog = Catalog({"run": finished})
    catalog.sources[label] = catalog.sources["gradcam"]
    own, plain = reference(label, "insertion"), reference("gradcam", "insertion")
    assert catalog.find(Search(sort=own)) == catalog.find(Search(sort=plain))


def test_a_second_run_is_joined_by_sample(finished: Run, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    metrics = [{"name": "insertion", "steps": 4}]
    other = completed(
        tiny_job(
            tmp_path / "other",
            dataset={"kind": "digits", "limit": 12},
            explainers=[{"name": "hirescam"}],
            metrics=metrics,
        )
    )
    both = Catalog({"one": finished, "the other": other})
    column = reference("the other/hirescam", "insertion")
    assert column == '"the other/hirescam".insertion'
    asked = "SELECT * FROM scores WHERE explainer = 'hirescam'"
    values = {score["sample_id"]: score["value"] for score in query(other.root, asked).to_pylist()}
    found = both.scores("the other/hirescam", "insertion").to_pylist()
    assert found == [values.get(sample["sample_id"]) for sample in rows]
    best = both.find(Search(sort=column, descending="1"), 1)
    known = {row: values[s["sample_id"]] for row, s in enumerate(rows) if s["sample_id"] in values}
    assert known[best.rows[0]] == max(value for value in known.values() if value is not None)
    assert not math.isnan(json.loads(best.keys[0])[0])
