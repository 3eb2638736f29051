"""Fills the HTML templates of the report. Every text from data is escaped."""

from __future__ import annotations

import math
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from storage.characters import shown
from tasks.page.told_paths import without_home
from tasks.results.numbers import number

_ROOM = "tasks.page"


def render(template: str, **facts: Any) -> str:
    """Fill a template of the folder ``templates`` with facts.

    Parameters
    ----------
    template
        Name of its file.
    facts
        What the template shows, by the name that it uses. Text is escaped.
    """
    return _environment().get_template(template).render(facts)


def inline(suffix: str) -> Markup:
    """Return the files of the folder ``static`` with this suffix, one after the other, as part of a page."""
    found = sorted(
        (file for file in files(_ROOM).joinpath("static").iterdir() if file.name.endswith(suffix)),
        key=lambda file: file.name,
    )
    return Markup("\n".join(file.read_text("utf-8") for file in found))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(_ROOM),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_without_home,
    )
    environment.globals["inline"] = inline
    environment.tests |= {"nan": math.isnan, "all_good": lambda counts: not counts.keys() - {"ok"}}
    environment.filters |= {"number": number, "shown": shown, "count": count}
    return environment


def count(many: int, one: str, several: str | None = None) -> str:
    """Return a number with its noun, such as ``1 image`` and ``2 images``."""
    return f"{many:,} {one if many == 1 else several or one + 's'}"


def _without_home(value: Any) -> Any:
    """Return what a template writes, a text from data without the names of home folders."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return without_home(value) if is_text and not value.startswith("data:") else value
