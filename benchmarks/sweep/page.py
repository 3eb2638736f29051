"""The page about the models that Floodlit explains as they are, made from the rows of a sweep."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sweep.listed import LARGEST, SOURCES

STATES = ("works", "refused", "wrong", "unclear", "failed")
_TITLES = {
    "torchvision": "torchvision",
    "timm": "timm",
    "open_clip": "open_clip",
    "huggingface": "Hugging Face",
}
_SWEPT = {
    "torchvision": "every image classifier",
    "timm": "the smallest model of every module",
    "open_clip": "one or two of each kind of image tower",
    "huggingface": "every family of image classifiers, in a small configuration",
}
_HEAD = """# Models whose layer is found

<!-- This page is generated: `python benchmarks/models.py --table docs/models.md`. -->

A job that names no [`layer`](job.md#model) works with these image classifiers. `benchmarks/models.py` loaded
each of them with random weights, as a job does, and checked what was found with code of its own: the head
gives the network's logits, every cell of the grid reaches them, and the change on the grid follows a patch
that is moved over the input.

- A model *works* if it is accepted and passes these checks.
- It is *refused* if a job without a layer ends with one line before any work. A layer that the job names, or
  an explainer that needs no layer, may still do.
- It is *wrong* if it is accepted and fails a check.
- It is *unclear* if it is accepted and passes the checks but for one: with random weights all cells change
  nearly alike, wherever the patch is, so that nothing is known of where they lie.
- It *failed* if another error, or a limit of time or memory, ended the check.
"""


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a sweep."""
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def page(rows: Sequence[dict[str, str]], listed: Mapping[str, int]) -> str:
    """The text of the page.

    Parameters
    ----------
    rows
        Those of the sweep.
    listed
        How many models of each source the sweep has, without those that are swept on request.
    """
    parts = [_HEAD, _counts(rows, listed), _versions(rows)]
    for source in SOURCES:
        own = [row for row in rows if row["source"] == source and row["listed"] == "yes"]
        if own:
            parts.append(_section(source, own))
    return "\n".join(parts)


def _table(titles: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    titles = list(titles)
    every = [titles, ["---"] * len(titles), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in every)


def _counts(rows: Sequence[dict[str, str]], listed: Mapping[str, int]) -> str:
    groups = []
    for source in SOURCES:
        own = [row for row in rows if row["source"] == source and row["listed"] == "yes"]
        groups.append((_TITLES[source], _SWEPT[source], f"{len(own)} of {listed[source]}", own))
    whole = [row for row in rows if row["source"] == "timm"]
    if any(row["listed"] == "no" for row in whole):
        below = _below(whole)
        groups.insert(2, ("timm", "every model below 60 million parameters", str(len(below)), below))
    lines = []
    for title, what, swept, own in groups:
        counts = Counter(row["status"] for row in own)
        lines.append([title, what, swept, *(str(counts[state]) for state in STATES)])
    return _table(["source", "models", "swept", *STATES], lines)


def _below(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of all models below 60 million parameters; the smallest of a module may be larger."""
    return [row for row in rows if row["listed"] == "no" or int(row["parameters"] or 0) < LARGEST]


def _versions(rows: Sequence[dict[str, str]]) -> str:
    found = sorted({each for row in rows for each in row["versions"].split(", ") if each})
    return f"Versions: {', '.join(found)}.\n"


def _section(source: str, rows: Sequence[dict[str, str]]) -> str:
    lines = [
        [
            row["name"],
            row["family"],
            f"{int(row['parameters']) / 1e6:.1f}",
            row["input"],
            f"`{row['layer']}`",
            row["cut"],
            row["grid"],
            row["units"],
            row["prefix_tokens"],
            *("yes" if row[key] == "yes" else "no" for key in ("token_dropping", "attention")),
        ]
        for row in rows
        if row["status"] == "works"
    ]
    titles = ["model", "family", "million parameters", "input", "layer found", "cut by", "grid", "units"]
    titles += ["prefix tokens", "tokens dropped", "attention read"]
    told = f"## {_TITLES[source]}\n\n{_table(titles, lines)}"
    others = [row for row in rows if row["status"] != "works"]
    if others:
        what = [[row["name"], row["status"], _cell(row["reason"])] for row in others]
        told += f"\n{_table(['model', 'result', 'reason'], what)}"
    return told


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("_", "\\_")
