"""Job files: one to three keys of a valid job get hostile values, or the text itself is damaged.

The second check is a table of which values a key may have at all, apart from the job's own model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attempts import attempt, hostile
from flows.job import Job
from flows.job_file import read_job
from flows.prepare import prepare
from runs import model, toml

KEYS: list[tuple[str | int, ...]] = [
    ("name",),
    ("store",),
    ("seed",),
    ("target",),
    ("tolerance",),
    ("controls",),
    ("tracking",),
    ("dataset",),
    ("dataset", "kind"),
    ("dataset", "path"),
    ("dataset", "limit"),
    ("model",),
    ("model", "source"),
    ("model", "weights"),
    ("model", "layer"),
    ("model", "crop"),
    ("model", "resize"),
    ("model", "num_classes"),
    ("model", "mean"),
    ("model", "std"),
    ("explainers",),
    ("explainers", 0),
    ("explainers", 0, "name"),
    ("explainers", 0, "masks"),
    ("metrics",),
    ("metrics", 0, "name"),
    ("metrics", 0, "steps"),
    ("batch",),
    ("batch", "images"),
    ("batch", "forwards"),
    ("batch", "shard"),
    ("cluster", "kind"),
    ("cluster", "workers"),
    ("unknown",),
    ("batch", "unknown"),
]
HOSTILE: list[Any] = [
    *(0, -1, 1, 3, 10**4, 10**9, 10**18, 10**30, 2**31, 2**63, 2**64),
    *(0.0, 0.5, 1.0, 1e-300, 1e300, math.inf, -math.inf, math.nan),
    *(True, False, "", " ", "none", "nan", "16", "1_0", "label", "predicted", "ddcam", "rise", "insertion"),
    *("/", "~", "~nosuchuser/x", "a\0b", "..", "x" * 5000, "\u202egnp", "[/red]", "\x1b[31m", "$x$", "%s{}"),
    *(
        "os:system",
        "json:dumps",
        ".x:y",
        ":",
        "a:",
        ":b",
        "x:y:z",
        "sys:exit",
        "torchvision",
        "digits",
        "csv",
    ),
    *("s3://", "s3://bucket", "s3://KEY:SECRET@bucket/x", "http://user:PASSWORD@localhost/x", "file:///etc"),
    *("/dev/zero", "/dev/null", "/proc/self/mem", "/etc/passwd", "/nonexistent/file.pth"),
    *(
        [],
        {},
        [[]],
        [1, 2, 3],
        [0.0, 0.0, 0.0],
        [math.nan] * 3,
        {"top": 3},
        {"top": 0},
        {"top": 10**9},
        {"name": 5},
    ),
    [{"name": "rise"}] * 2,
]


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high  # not NaN
    )


def _three(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list) and len(value) == 3 and all(_number(low, high)(part) for part in value)
    )


# What a key may hold; a value outside of it that is accepted is a silent acceptance. Keys that are left out
# take names and tables, which are judged by what the run then has in it.
MAY: dict[tuple[str | int, ...], Callable[[Any], bool]] = {
    ("name",): _text,
    ("seed",): _whole(-(2**63), 2**64 - 1),
    ("target",): lambda value: (
        value in ("predicted", "label")
        or _whole(0, 7)(value)
        or (isinstance(value, dict) and value == {"top": 3})
    ),
    ("tolerance",): _number(0, 1),
    ("controls",): lambda value: isinstance(value, bool),
    ("store",): lambda value: _text(value) and value not in ("/", "~", "..") and "SECRET" not in value,
    ("tracking",): lambda value: _text(value) and "PASSWORD" not in value,
    ("dataset", "limit"): _whole(1, 10**12),
    ("dataset", "kind"): lambda value: value == "digits",
    ("model", "crop"): _whole(1, 10**5),
    ("model", "resize"): _whole(1, 10**5),
    ("model", "num_classes"): lambda value: value == 8,
    ("model", "weights"): lambda value: value == "none",
    ("model", "source"): lambda value: False,
    ("model", "mean"): _three(-1e6, 1e6),
    ("model", "std"): _three(1e-6, 1e6),
    ("explainers", 0, "masks"): _whole(1, 10**8),
    ("metrics", 0, "steps"): _whole(1, 10**6),
    ("batch", "images"): _whole(1, 10**7),
    ("batch", "forwards"): _whole(1, 10**7),
    ("batch", "shard"): _whole(1, 10**12),
    ("cluster", "workers"): _whole(1, 10**5),
    ("unknown",): lambda value: False,
    ("batch", "unknown"): lambda value: False,
}


def valid(folder: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "store": str(folder / "run"),
        "seed": 0,
        "target": "predicted",
        "dataset": {"kind": "digits", "limit": 4},
        "model": model("gap"),
        "explainers": [{"name": "rise", "masks": 20}],
        "metrics": [{"name": "insertion", "steps": 4}],
        "batch": {"images": 2, "forwards": 4},
        "cluster": {"kind": "local", "workers": 1},
    }


def put(job: dict[str, Any], path: tuple[str | int, ...], value: Any) -> bool:
    """Put a value at a path; return whether the path is there (an earlier value may have replaced it)."""
    *parents, last = path
    inner: Any = job
    for key in parents:
        inside = isinstance(inner, dict) and key in inner
        if not inside and not (isinstance(inner, list) and isinstance(key, int) and key < len(inner)):
            return False
        inner = inner[key]
    if isinstance(inner, dict) and isinstance(last, str):
        inner[last] = value
        return True
    if isinstance(inner, list) and isinstance(last, int) and last < len(inner):
        inner[last] = value
        return True
    return False


@hostile
@given(
    changes=st.lists(
        st.tuples(st.sampled_from(KEYS), st.sampled_from(HOSTILE)),
        min_size=1,
        max_size=3,
        unique_by=lambda c: c[0],
    )
)
def test_a_value_that_a_key_cannot_have_is_refused(
    place: Path, changes: list[tuple[tuple[str | int, ...], Any]]
) -> None:
    folder = Path(mkdtemp(dir=place))
    job, put_there = valid(folder), []
    for path, value in changes:
        if put(job, path, deepcopy(value)):
            put_there.append((path, value))
    toml(job, folder / "job.toml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        answer = attempt("job files", lambda: prepare(read_job(folder / "job.toml", Job)))
    if answer.accepted:
        for path, value in put_there:
            assert MAY.get(path, lambda _: True)(value), f"accepted {value!r} at {path}"


NOISE = {
    "byte order mark": "\ufeff",
    "nul": "\0",
    "escape": "\x1b[2J",
    "deep lists": "[" * 3000,
    "deep tables": "{" * 3000,
    "equals": "=",
    "quote": '"',
    "quotes": "'''",
    "second table": "\n[batch]\n",
    "long number": "9" * 6000,
    "not UTF-8": "\udcff",
}
# None of these may stand in a TOML file, but for a byte order mark at its beginning or inside a text.
NEVER = ("nul", "escape", "not UTF-8")


@hostile
@given(noise=st.sampled_from(sorted(NOISE)), where=st.integers(0, 2000))
def test_a_text_with_what_toml_forbids_is_refused(place: Path, noise: str, where: int) -> None:
    folder = Path(mkdtemp(dir=place))
    text = toml(valid(folder), folder / "job.toml").read_text(encoding="utf-8")
    where = where % (len(text) + 1)
    whole = (text[:where] + NOISE[noise] + text[where:]).encode("utf-8", "surrogateescape")
    (folder / "job.toml").write_bytes(whole)
    answer = attempt("job files", lambda: read_job(folder / "job.toml", Job))
    assert not (answer.accepted and noise in NEVER)
