"""The search over samples: against a loop over rows, page by page, in both directions."""

from __future__ import annotations

import json
import math
import shutil
import time
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
from tasks.page import catalog as catalog_module
from tasks.page.catalog import Catalog
from tasks.page.expressions import reference
from tasks.page.search import Found, Search


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


def find(catalog: Catalog, search: Search, *how: Any, **more: Any) -> Found:
    with catalog.asking(search) as asking:
        return asking.find(*how, **more)


def walked(catalog: Catalog, search: Search, most: int) -> list[int]:
    """The rows of all pages of a search."""
    found = find(catalog, search, most)
    rows = found.rows
    while found.more:
        found = find(catalog, Search(**vars(search) | {"after": found.keys[-1]}), most)
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

    found = walked(catalog, Search(sort=sort, descending="1" if descending and sort else ""), most)
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
    search = Search(sort=sort, descending="1" if descending and sort else "")
    with catalog.asking(search) as asking:
        here = asking.key_of(row)
    after = find(catalog, Search(**vars(search) | {"after": here}), 1)
    if after.rows:
        back = find(catalog, Search(**vars(search) | {"after": after.keys[0]}), 1, backwards=True)
        assert back.rows == [row]
    else:
        assert walked(catalog, search, 16)[-1] == row


def test_filters_are_those_of_a_loop(catalog: Catalog, rows: list[dict[str, Any]]) -> None:
    def found(**search: str) -> list[int]:
        with catalog.asking(Search(**search)) as asking:
            assert asking.count() == len(walked(catalog, Search(**search), 7))
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
    assert find(catalog, Search(correct="0")).rows == [2]
    assert find(catalog, Search(label="10")).rows == [1, 2]
    assert find(catalog, Search(label="barn")).rows == [2]


@pytest.mark.parametrize(
    ("search", "told"),
    [
        (
            {"where": "nonsense > 1"},
            "condition in SQL: there is no column 'nonsense'; columns are sample_id,",
        ),
        (
            {"where": "confidense > 1"},
            "condition in SQL: there is no column 'confidense'; close are confidence",
        ),
        ({"sort": "boxes"}, "sort by: there is no column 'boxes'"),
        ({"sort": "gradcom.insertion"}, "sort by: there is no explainer 'gradcom'; close are gradcam"),
        ({"sort": "gradcam.insertio"}, "sort by: gradcam has no score 'insertio'; close are insertion"),
        (
            {"where": "true) OR (true"},
            r"condition in SQL: is no expression in SQL: it is wrong at '\)' or before",
        ),
        ({"where": "true; SELECT 1"}, "condition in SQL: must be one expression"),
        ({"where": "confidence > 0,5"}, "a number has a point, not a comma"),
        ({"where": "'a"}, "a quote or a comment has no end"),
        ({"where": "1 = (SELECT count(*) FROM scores)"}, "'scores' cannot be read here; a search reads the"),
        ({"where": "1 = (SELECT count(*) FROM read_csv('/etc/passwd'))"}, "a search reads the table samples"),
        ({"where": "foo(1) = 1"}, "there is no function 'foo'"),
        ({"where": "label_name > 1"}, "a text cannot be compared with a number"),
        ({"where": "confidence > 'x'"}, "'x' is compared with a number and is none"),
        ({"where": "confidence"}, "condition in SQL: is a number; a condition is true or false"),
        ({"where": "count(*) > 1"}, "looks at several samples"),
        ({"where": "? > 1"}, "a value that nobody gives"),
        ({"where": "row << 1000 > 1"}, "'row << 1000 > 1' cannot be computed: Left-shift value 1000"),
        ({"where": "true OR " * 600 + "true"}, "has more than 4,000 characters"),
        ({"where": "(" * 1500 + "true" + ")" * 1500}, "has too many parts"),
        ({"sort": "labels"}, r"sort by: is of the type BIGINT\[\]; sort by a number or a text"),
        ({"sort": "unnest(labels)"}, r"unnest\(\) looks at several samples"),
        ({"sort": "row_number() OVER (ORDER BY row)"}, "looks at several samples"),
        ({"score": "COLUMNS('label.*')"}, "score: stands for several columns; name one"),
        ({"sort": "*"}, "sort by: "),
        ({"sort": "random()"}, r"random\(\) gives another order on every page"),
        ({"sort": "length(repeat('a', 1000000000))"}, r"repeat\(\) makes values of any size"),
        ({"after": "no key"}, "after: is not a key of this page"),
        ({"after": '["x", 3]', "sort": "confidence"}, "after: is not a key of this page"),
        ({"after": "[" * 9999}, "after: is not a key of this page"),
        ({"after": f"[{10**30}, 3]", "sort": "row"}, "after: is not a key of this page"),
        ({"score": "confidence", "low": "x"}, "from: the end of a range is a number such as 0.5, not 'x'"),
        ({"score": "confidence", "high": "nan"}, "to: the end of a range is a number such as 0.5, not 'nan'"),
        ({"score": "confidence", "low": "2", "high": "1"}, "nothing is from 2 to 1; exchange the two"),
        ({"score": "label_name", "low": "2"}, "score: is a text; a range is one of numbers"),
        ({"low": "0.5"}, "from and to: are the range of a score; say which one in the field score"),
        ({"high": "0"}, "from and to: are the range of a score; say which one in the field score"),
        ({"descending": "1"}, "largest first: needs an order; say in the field sort by"),
        ({"descending": "2", "sort": "row"}, "descending: is 1 in the address, not '2'"),
        ({"correct": "yes"}, "correct: is 0 or 1 in the address, not 'yes'"),
        ({"status": "done"}, "status: is ok or failed in the address, not 'done'"),
    ],
)
def test_what_cannot_be_understood_is_said_in_one_line(
    catalog: Catalog, search: dict[str, str], told: str
) -> None:
    with pytest.raises(QueryError, match=told) as refusal:
        find(catalog, Search(**search))
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 600


ENDLESS = "(SELECT count(*) FROM samples a, samples b, samples c, samples d, samples e, samples f) > 1"
LARGE = "(SELECT count(*) FROM (SELECT DISTINCT hash(a.row, b.row, c.row, d.row) FROM {})) > 1"


def test_a_search_without_an_end_is_stopped(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "SECONDS", 0.5)
    catalog, began = Catalog({"run": finished}), time.monotonic()
    with pytest.raises(QueryError, match=r"takes more than 0\.5 seconds and was stopped; make it simpler"):
        find(catalog, Search(where=ENDLESS))
    assert time.monotonic() - began < 10
    assert find(catalog, Search()).rows[:2] == [0, 1]  # others are answered as before


def test_a_search_gets_no_more_memory_than_it_may(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "MEMORY", "24MB")
    catalog = Catalog({"run": finished})
    condition = LARGE.format("samples a, samples b, samples c, samples d")
    with pytest.raises(QueryError, match="the search needs more memory than the 24MB that it may take"):
        find(catalog, Search(where=condition))
    assert find(catalog, Search()).rows[:2] == [0, 1]


@pytest.mark.parametrize(
    "label",
    ["all", "select", "order", "end", "left", "my-map", "gradcam2", "label", "Prediction", "row", 'a"b'],
)
def test_an_explainer_may_have_any_label(finished: Run, label: str) -> None:
    manifest = finished.manifest
    entries = {label: manifest.explainers["gradcam"]} | manifest.explainers
    catalog = Catalog({"run": Run(finished.root, manifest.model_copy(update={"explainers": entries}))})
    stored, own = catalog.scores("gradcam", "insertion"), reference(label, "insertion")
    catalog.scores = lambda source, metric: stored  # type: ignore[method-assign]
    first, second = reference("gradcam", "insertion"), f"{own.upper()} + 0"
    assert find(catalog, Search(sort=own)) == find(catalog, Search(sort=first))
    assert find(catalog, Search(sort=second)).rows == find(catalog, Search(sort=first)).rows
    found = find(catalog, Search(where=f"label = 3 AND {own} IS NOT NULL AND prediction >= 0", sort=own))
    assert found.rows == find(catalog, Search(where=f"{first} IS NOT NULL", label="3", sort=first)).rows


def test_scores_are_found_only_where_sql_has_names(catalog: Catalog) -> None:
    read = catalog.names.read
    assert read("where", "text = 'gradcam.insertion' -- gradcam.insertion").columns == frozenset()
    assert read("where", "'é' < GRADCAM . \"insertion\" /* ddcam.insertion */").columns == {
        ("gradcam", "insertion")
    }
    inner = "(SELECT max(s.gradcam.insertion) FROM samples s) = gradcam.insertion"
    assert len(find(catalog, Search(where=inner)).rows) == 1


def test_a_pooled_score_has_no_values_to_search(finished: Run) -> None:
    changed = finished.manifest.metrics["insertion"].columns["insertion"].model_copy(update={"pooled": True})
    entry = finished.manifest.metrics["insertion"].model_copy(update={"columns": {"insertion": changed}})
    manifest = finished.manifest.model_copy(
        update={"metrics": finished.manifest.metrics | {"insertion": entry}}
    )
    catalog = Catalog({"run": Run(finished.root, manifest)})
    with pytest.raises(QueryError, match=r"sort by: gradcam.insertion is one number for the whole dataset"):
        find(catalog, Search(sort="gradcam.insertion"))


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
    best = find(both, Search(sort=column, descending="1"), 1)
    known = {row: values[s["sample_id"]] for row, s in enumerate(rows) if s["sample_id"] in values}
    assert known[best.rows[0]] == max(value for value in known.values() if value is not None)
    assert not math.isnan(json.loads(best.keys[0])[0])
