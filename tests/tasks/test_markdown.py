"""Names and paths in Markdown stay what they are, as an independent renderer shows them."""

import html
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from runs import prepared, tiny_job
from storage.characters import shown
from tasks.artifacts import _links
from tasks.markdown import code, words


def rendered(markdown: str) -> str:
    """The HTML of a text in Markdown, with tables."""
    return MarkdownIt("commonmark").enable("table").render(markdown)


def test_the_name_and_the_store_of_a_run_are_no_markup_in_its_links(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)> [a](http://b) | `c` **d** \x1b[31m"
    run = prepared(tiny_job(tmp_path / "a`b``c <i>", name=name))
    links = _links(run, "https://mlflow.org:8080/", "#/there?flow=%3Cb%3E")
    page = rendered(links)
    assert "<img" not in page
    assert "<i>" not in page
    assert re.findall('href="(.*?)"', page) == [
        "https://mlflow.org:8080/#/there/artifactPath/index.html?flow=%3Cb%3E",
        "https://mlflow.org:8080/#/there?flow=%3Cb%3E",
    ]
    assert f"<h1>{html.escape(shown(name), quote=False)}</h1>" in page
    assert f"<code>{html.escape(str(run.summary), quote=False)}</code>" in page


@pytest.mark.parametrize("path", ["a`b", "``", "`a", "a|b", "<img src=x>", "a\nb"])
def test_a_path_is_code_whatever_it_holds(path: str) -> None:
    assert rendered(f"In {code(path)}.") == f"<p>In <code>{html.escape(shown(path))}</code>.</p>\n"


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
def test_any_name_is_shown_as_it_is(name: str) -> None:
    page = rendered(f"The name **x{words(name)}x** is.")
    told = re.sub(r"\s+", " ", f"x{shown(name)}x")
    assert (
        re.sub(r"\s+", " ", html.unescape(re.sub("</?(p|strong)>", "", page))).strip()
        == f"The name {told} is."
    )
