"""The browser: pages of samples over whole runs, reached by nobody but who knows the address."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from flows.browser import browser
from runs import completed, tiny_job
from storage.parquet import read_table, write_table
from storage.run import Run
from storage.samples import read_samples
from storage.scores import read_score
from tasks.results.numbers import number

HOSTILE = "<img src=x onerror=alert(1)> & \"'"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 60 digits with Grad-CAM twice, once under a label that holds markup."""
    folder = tmp_path_factory.mktemp("browser")
    return completed(
        tiny_job(
            folder / "run",
            name=HOSTILE,
            dataset={"kind": "digits", "limit": 60},
            explainers=[{"name": "gradcam"}, {"name": "ddcam"}],
            metrics=[{"name": "insertion", "steps": 4}, {"name": "pointing_game"}],
        )
    )


@pytest.fixture(scope="module")
def client(run: Run) -> Iterator[TestClient]:
    """Asks the browser below its secret address."""
    with TestClient(browser({"one": run}, "secret"), base_url="http://127.0.0.1:1234/secret/") as made:
        yield made


def check_fence(answer: Any) -> None:
    """An answer's page may ask nobody else for anything, and says nothing of how it was made."""
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Traceback" not in answer.text
    assert "site-packages" not in answer.text


PARTS = ["label", "prediction", "correct", "status", "score", "low", "high", "text", "where", "sort"]
PARTS += ["descending", "after", "map"]
VALUES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "9" * 5000,
            "-1",
            "1e400",
            "nan",
            "\0",
            "\ud800",
            "[null, 0]",
            '[{"a": 1}, 2]',
            f"[{'9' * 400}, 1]",
            f'["x", {"9" * 30}]',
            "[" * 3000,
            "gradcam.insertion",
            "gradcam.insertion / 0",
            "sqrt(-1)",
            "error('boom')",
            "-9223372036854775808 - row",
            "CAST(label AS DECIMAL(38, 3))",
            "('a' || row)::BLOB",
            "labels",
            "samples",
            "NULL",
            "*",
            "COLUMNS('.*')",
            "$search_low",
            "confidence > 0.5 --",
            "1=1) OR (1=1",
            '"" . ""',
            "1",
            "0",
            "ok",
        ]
    ),
)


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.one_of(st.sampled_from(PARTS), st.text(max_size=4)), VALUES), max_size=4), st.data()
)
def test_no_address_makes_the_browser_fail(
    client: TestClient, parts: list[tuple[str, str]], data: st.DataObject
) -> None:
    number = data.draw(
        st.sampled_from(["0", "59", "60", "-1", "9" * 5000, "1e3", "٣", "0x1", "%00", "", "1.5"])
    )
    place = data.draw(
        st.sampled_from(["", "sample/{}", "input/{}.webp", "map/gradcam/{}.png", "{}/", "sample/{}/"])
    )
    query = "&".join(
        f"{quote(name, errors='surrogatepass')}={quote(value, errors='surrogatepass')}"
        for name, value in parts
    )
    answer = client.request(
        data.draw(st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "PUT"])),
        f"{place.format(number)}?{query}",
    )
    assert answer.status_code in {200, 400, 404, 405}
    check_fence(answer)


def test_a_damaged_run_and_a_fault_are_told_in_one_line(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "run")
    (tmp_path / "run/saliency.zarr/gradcam/maps/zarr.json").write_text("{}")
    for file in (tmp_path / "run/scores").rglob("*.parquet"):
        file.write_bytes(b"no Parquet")
    app = browser({"one": Run.open(tmp_path / "run")}, "t")
    with TestClient(app, "http://localhost/t/", raise_server_exceptions=False) as client:
        for path in ("map/gradcam/0.png", "sample/0", "?sort=gradcam.insertion"):
            answer = client.get(path)
            assert answer.status_code == 500
            assert str(tmp_path / "run") in answer.text
            check_fence(answer)
        assert client.get("").status_code == 200


def ids_in(page: str) -> list[str]:
    return re.findall(r'class="id">([^<]+)<', page)


def test_only_who_knows_the_address_is_served(client: TestClient) -> None:
    assert client.get("").status_code == 200
    for path in (
        "http://127.0.0.1:1234/",
        "http://127.0.0.1:1234/wrong/",
        "http://127.0.0.1:1234/input/0.webp",
    ):
        assert client.get(path).status_code == 404
        check_fence(client.get(path))
    stranger = client.get("", headers={"Host": "somebody.example"})
    assert stranger.status_code == 400
    check_fence(stranger)
    assert client.post("").status_code == 405
    check_fence(client.post(""))
    check_fence(client.get(""))


def test_pages_follow_each_other_and_hold_every_sample_once(client: TestClient, run: Run) -> None:
    page = client.get("?sort=confidence&descending=1").text
    found = ids_in(page)
    assert len(found) == 48
    following = re.search(r'rel="next" href="([^"]+)"', page)
    assert following
    found += ids_in(client.get(f"http://127.0.0.1:1234{unescape(following[1])}").text)
    samples = sorted(read_samples(run.root), key=lambda sample: -sample["confidence"])
    assert found == [sample["sample_id"] for sample in samples]


def test_a_sample_knows_its_neighbours_in_the_search(client: TestClient, run: Run) -> None:
    by_confidence = sorted(enumerate(read_samples(run.root)), key=lambda pair: pair[1]["confidence"])
    rows = [row for row, _ in by_confidence]
    page = client.get(f"sample/{rows[7]}?sort=confidence").text
    link = r'<a rel="(prev|next)" accesskey="[pn]" [^>]*href="/secret/sample/(\d+)\?sort=confidence"'
    assert re.findall(link, page) == [("prev", str(rows[6])), ("next", str(rows[8]))]
    for row, neighbour in ((rows[0], ("next", str(rows[1]))), (rows[-1], ("prev", str(rows[-2])))):
        assert re.findall(link, client.get(f"sample/{row}?sort=confidence").text) == [neighbour]
    assert client.get("sample/60").status_code == 404


def test_what_cannot_be_understood_is_said_on_the_page(client: TestClient) -> None:
    answer = client.get("?label=3&where=" + quote("<b>nonsense</b> > 1"))
    assert answer.status_code == 400
    assert 'value="&lt;b&gt;nonsense&lt;/b&gt; &gt; 1"' in answer.text  # the form is kept
    assert 'name="label" list="classes" value="3"' in answer.text
    assert 'role="alert"' in answer.text
    assert "<b>nonsense" not in answer.text
    assert "<img src=x" not in answer.text
    answer = client.get("sample/3?sort=nonsense")
    assert answer.status_code == 400
    assert "there is no column" in answer.text
    assert '<article class="sample' in answer.text


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ("lable=3", "the address has an unknown part 'lable'; close are label"),
        ("label=3&label=4", "the address has label 2 times; leave one"),
        ("map=gradkam", "map: there is no 'gradkam'; close are gradcam"),
        ("low=0.5", "from and to: are the range of a score; say which one in the field score"),
        ("descending=1", "largest first: needs an order; say in the field sort by what is to be largest"),
        ("where=1%3D(SELECT+count(*)+FROM+scores)", "'scores' cannot be read here"),
    ],
)
def test_nothing_in_the_address_is_left_out_without_a_word(
    client: TestClient, search: str, told: str
) -> None:
    answer = client.get(f"?{search}")
    assert answer.status_code == 400
    assert told in unescape(re.findall('role="alert">([^<]*)<', answer.text)[0])
    assert ids_in(answer.text) == []


def test_fields_keep_what_was_typed_although_pages_shorten_home_folders(client: TestClient) -> None:
    asked = "uri <> '/home/anna/a.png'"
    for field in ("where", "text"):
        page = unescape(client.get("", params={field: asked}).text)
        assert f'name="{field}" value="{asked}"' in page


def test_a_search_that_finds_nothing_is_a_page(client: TestClient) -> None:
    for search in ("text=nowhere", "after=[0,99]", "score=confidence&low=2"):
        answer = client.get(f"?{search}")
        assert answer.status_code == 200
        assert ids_in(answer.text) == []
    assert "is not a key of this page" in client.get("?after=[0,1e400]").text


def test_a_value_that_is_not_known_and_a_truth_are_no_numbers(client: TestClient) -> None:
    for score, expected in (("nullif(row,0)", "-"), ("confidence>2", "False"), ("row/1e6", "0.000")):
        told = re.findall("<span><small>score</small> ([^<]*)</span>", client.get(f"?score={score}").text)
        assert told[0] == expected


def test_pictures_are_those_of_the_run(client: TestClient, run: Run) -> None:
    from storage.maps import read

    picture = Image.open(BytesIO(client.get("input/5.webp").content))
    stored = np.moveaxis(read(run.inputs, 5, 6)[0], 0, -1)
    assert np.abs(np.asarray(picture, int) - stored).max() <= 1
    assert Image.open(BytesIO(client.get("map/gradcam/5.png").content)).size == (8, 8)
    for path in ("map/nobody/5.png", "map/gradcam/60.png", "input/60.webp"):
        assert client.get(path).status_code == 404


def test_runs_on_other_inputs_stand_beside_each_other(run: Run, tmp_path: Path) -> None:
    other = completed(
        tiny_job(
            tmp_path / "other",
            dataset={"kind": "digits", "limit": 20},
            explainers=[{"name": "gradcam"}],
            metrics=[{"name": "insertion", "steps": 4}],
            controls=False,
        )
    )
    with TestClient(browser({"one": run, "two": other}, "t"), base_url="http://localhost/t/") as client:
        both = client.get("sample/3").text
        assert both.count('<article class="sample') == 2
        check_differences(both, run, other)
        assert client.get("sample/40").text.count('<article class="sample') == 1
        column = quote('gradcam.insertion - "two/gradcam".insertion')
        assert len(ids_in(client.get(f"?where={column} IS NOT NULL".replace(" ", "%20")).text)) == 20


def check_differences(page: str, one: Run, other: Run) -> None:
    """A sample's page has both scores of the explainer that the runs share, and their difference."""
    first, second = (read_score(run, "gradcam", "insertion")[3] for run in (one, other))
    cells = re.findall(
        "gradcam</th><td>insertion</td><td>two</td><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", page
    )
    assert cells == [tuple(number(value) for value in (first, second, second - first))]


def test_models_are_counted_against_each_other(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "run")
    other = Run.open(tmp_path / "run")
    table = read_table(other.samples)
    predicted = [
        (each + 1) % 10 if row % 3 == 0 else each for row, each in enumerate(table["prediction"].to_pylist())
    ]
    at = table.column_names.index("prediction")
    write_table(table.set_column(at, table.schema.field(at), pa.array(predicted, pa.int64())), other.samples)
    rows = [
        (a["label"] == a["prediction"], a["label"] == b, a["prediction"] != b)
        for a, b in zip(read_samples(run.root), predicted, strict=True)
    ]
    expected = {
        "one and two right": sum(a and b for a, b, _ in rows),
        "only one right": sum(a and not b for a, b, _ in rows),
        "only two right": sum(b and not a for a, b, _ in rows),
        "one and two wrong": sum(not a and not b for a, b, _ in rows),
        "two predicts another class": sum(differ for _, _, differ in rows),
    }
    with TestClient(browser({"one": run, "two": other}, "t"), base_url="http://localhost/t/") as client:
        found = re.findall(r'<li><a href="([^"]*)">([^<]*)</a>: (\d+)', client.get("").text)
        assert {words: int(count) for _, words, count in found} == expected
        for to, words, _ in found:
            status = re.findall('role="status">([^<]*)<', client.get(f"http://localhost{unescape(to)}").text)[
                0
            ]
            assert int(status.split()[0]) == expected[words]
        page = client.get("sample/0").text
    for name, each in (("one", read_samples(run.root)[0]["prediction"]), ("two", predicted[0])):
        assert f'<th scope="row">{name}</th><td>{each}</td>' in page


def test_an_id_that_stands_for_other_inputs_in_another_run_is_refused(run: Run, tmp_path: Path) -> None:
    other = completed(
        tiny_job(
            tmp_path / "other",
            dataset={"kind": "digits", "limit": 8, "seed": 7},
            explainers=[{"name": "gradcam"}],
            metrics=[{"name": "insertion", "steps": 4}],
            controls=False,
        )
    )
    with pytest.raises(ValueError, match="is not the same image in two and one"):
        browser({"one": run, "two": other}, "t")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_works_by_keyboard_without_faults_of_access(run: Run, chromium: Any, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    with served(run) as address, chromium.new_context(color_scheme=scheme) as context:
        tab, told = context.new_page(), []
        tab.on("console", lambda message: told.append(message.text))
        tab.on("request", lambda request: told.append(request.url))
        tab.goto(address)
        tab.locator("[name=where]").focus()
        tab.keyboard.type("confidence < 0.9")
        tab.keyboard.press("Enter")
        tab.wait_for_url("**where=**")
        count = tab.get_by_role("status").text_content()
        expected = sum(sample["confidence"] < 0.9 for sample in read_samples(run.root))
        assert count == f"{expected} sample{'s' * (expected != 1)} of 60"
        serious = {"serious", "critical"}
        faults = [
            fault["id"] for fault in Axe().run(tab).response["violations"] if fault["impact"] in serious
        ]
        tab.locator(".cards a").first.focus()
        tab.keyboard.press("Enter")
        tab.wait_for_url("**/sample/**")
        faults += [
            fault["id"] for fault in Axe().run(tab).response["violations"] if fault["impact"] in serious
        ]
        assert faults == []
        tab.go_back()
        assert tab.locator("[name=where]").input_value() == "confidence < 0.9"
        assert [line for line in told if not line.startswith((address, "data:"))] == []


def serious(found: Any) -> list[str]:
    """The serious faults that axe found."""
    return [
        fault["id"] for fault in found.response["violations"] if fault["impact"] in {"serious", "critical"}
    ]


@contextmanager
def served(run: Run) -> Iterator[str]:
    """Serve the browser at a real address."""
    import socket
    import threading
    import time

    import uvicorn

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(browser({"one": run}, "t"), log_level="error"))
        thread = threading.Thread(target=server.run, args=[[listening]])
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/t/"
        server.should_exit = True
        thread.join()
