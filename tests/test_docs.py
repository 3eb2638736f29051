"""README and the pages in docs/: generated tables are current, links lead somewhere, jobs are valid."""

import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from flows.job import Job, Located
from flows.train_job import TrainJob
from places import ROOT, program

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
TOML = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
LARGEST = 200_000  # bytes of a picture


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The program docs/reference.py."""
    return program("docs/reference.py")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What its headings are called in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_reference_pages_are_current(reference: ModuleType) -> None:
    pages = sorted(page.name for page in reference.stale(reference.DOCS))
    assert not pages, f"{', '.join(pages)}: run `python docs/reference.py`"


def test_every_reference_stands_on_exactly_one_page(reference: ModuleType) -> None:
    found = [name for page in PAGES for name in re.findall(r"<!-- reference: ([\w-]+) -->", prose(page))]
    assert sorted(found) == sorted(reference.BLOCKS)


def test_the_generator_writes_between_the_markers_alone(reference: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    before, after = (
        "By hand.\n<!-- reference: exit-codes -->\n",
        "\n<!-- end of reference -->\nBy hand, too.\n",
    )
    page.write_text(f"{before}old{after}", encoding="utf-8")
    assert reference.main(["--check"], tmp_path) == 1
    assert page.read_text(encoding="utf-8") == f"{before}old{after}"
    assert reference.main([], tmp_path) == 0
    assert page.read_text(encoding="utf-8") == f"{before}\n{reference.exit_codes()}\n{after}"
    assert reference.main(["--check"], tmp_path) == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else page.parent / path
        assert target.exists(), f"{page.name}: {link} leads nowhere"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link} names no heading of {target.name}"


def test_every_page_and_picture_is_linked() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in LINK.findall(prose(page))
    }
    there = {*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "pictures").iterdir()}
    assert there <= linked


def test_readme_is_a_first_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_pictures_are_small() -> None:
    for picture in (ROOT / "docs" / "pictures").iterdir():
        assert picture.stat().st_size <= LARGEST, picture.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_jobs_on_the_pages_are_valid(page: Path) -> None:
    for text in TOML.findall(page.read_text(encoding="utf-8")):
        job = tomllib.loads(text)
        if "store" not in job:  # a part of one
            continue
        kind: type[Located] = Job if "explainers" in job else TrainJob
        kind.model_validate(job, context={"folder": ROOT})


def test_readme_names_every_command(reference: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^### (\w+)$", reference.every_command(), re.MULTILINE)
    assert commands
    assert [name for name in commands if f"`floodlit {name}" not in readme] == []
