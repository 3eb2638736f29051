"""Run folders: files of a finished run that are cut, altered, swapped, removed, or no files any more.

The second check is the bytes of the undamaged run: ``verify`` may call a folder whole only if it holds them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import floodlit
from attempts import attempt, check_line, hostile
from flows.cli import app
from runs import completed, tiny_job
from storage.errors import FloodlitError
from storage.lock import holder

DAMAGES = (
    *("flip", "truncate", "empty", "remove", "swap", "pipe", "zeros", "folder", "loop", "text"),
    *("nothing", "list", "number", "deep", "grown", "foreign", "lock", "huge rows", "other module"),
)
LOCKS = ("[]", "{}", "5", '{"host": "x"}', '{"pid": -5}', "[" * 5000, "\udcff", "", "null", '"x"')


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run that nobody damages."""
    root = tmp_path_factory.mktemp("kept") / "run"
    completed(
        tiny_job(
            root,
            dataset={"kind": "digits", "limit": 12},
            explainers=[{"name": "gradcam"}],
            metrics=[{"name": "insertion", "steps": 2}],
            controls=False,
            batch={"shard": 8},
        )
    )
    return root


def bytes_of(root: Path) -> dict[str, bytes | None]:
    """The bytes of every file by its path; None where something else than a file or a folder lies."""
    found: dict[str, bytes | None] = {}
    for folder, inner, files in os.walk(root):
        for name in [*files, *(name for name in inner if Path(folder, name).is_symlink())]:
            path = Path(folder, name)
            plain = path.is_file() and not path.is_symlink()
            found[str(path.relative_to(root))] = path.read_bytes() if plain else None
        if not inner and not files:
            found[str(Path(folder).relative_to(root))] = None
    return found


def damage(root: Path, how: str, name: str, other: str, where: int) -> None:
    path = root / name
    if how in {"lock", "huge rows", "other module"}:
        rewrite(root, how, where)
    elif path.is_file() and not path.is_symlink():  # else an earlier damage was here
        raw, swapped = path.read_bytes(), root / other
        at = where % max(1, len(raw))
        made = {
            "flip": raw[:at] + bytes([raw[at] ^ 1 << where % 8]) + raw[at + 1 :] if raw else b"x",
            "truncate": raw[:at],
            "empty": b"",
            "grown": raw + raw,
            "swap": swapped.read_bytes() if swapped.is_file() else b"",
            "text": b"<html>",
            "list": b"[]",
            "number": b"5",
            "deep": b"[" * 100_000,
        }
        if how in made:
            path.write_bytes(made[how])
        elif how == "foreign":
            path.with_name(f"foreign-{path.name}").write_bytes(raw)
        elif how != "nothing":
            replace(path, how)


def replace(path: Path, how: str) -> None:
    """Put something else than a file in the place of a file, or nothing."""
    path.unlink()
    if how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how in {"zeros", "loop"}:
        path.symlink_to("/dev/zero" if how == "zeros" else path.name)


def rewrite(root: Path, how: str, where: int) -> None:
    """Write a file as a program might that is none of ours."""
    path = root / "run.json"
    if how == "lock":
        raw = LOCKS[where % len(LOCKS)].encode("utf-8", "surrogateescape")
        root.with_name(f"{root.name}.lock").write_bytes(raw)
        return
    told = json.loads(path.read_bytes()) if path.is_file() and not path.is_symlink() else {}
    if not path.exists() or path.is_file():
        other = {"evilmod:Evil": {"parameters": {}, "grid": [8, 8]}}
        change = {"rows": 10**9} if how == "huge rows" else {"explainers": other}
        path.write_text(json.dumps({**told, **change} if isinstance(told, dict) else change))


def command(*arguments: str) -> Result:
    """Run a command of ``floodlit`` in this process; an exception that is no exit passes through."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code and result.stderr:
        check_line(result.stderr.rstrip("\n"))
    return result


def everything(root: Path) -> dict[str, Result]:
    found = {name: command(name, str(root)) for name in ("status", "verify")}
    for table in ("summary", "samples", "scores", "comparisons"):
        found[table] = command("query", str(root), f"SELECT count(*) FROM {table}", "--format", "json")
    return found


def opened(root: Path) -> tuple[Any, ...]:
    """What the door for Python reads."""
    try:
        run = floodlit.open(root)
        return run.maps("gradcam").values, run.scores(), run.summary()
    except ValueError as error:  # as a run that cannot be read is told
        raise FloodlitError(str(error)) from error


@hostile
@given(
    damages=st.lists(st.sampled_from(DAMAGES), min_size=1, max_size=2),
    seeds=st.lists(st.integers(0, 10**6), min_size=4, max_size=4),
)
def test_only_whole_folders_are_called_whole(
    place: Path, kept: Path, damages: list[str], seeds: list[int]
) -> None:
    root = place / "run"
    shutil.rmtree(root, ignore_errors=True)
    root.with_name("run.lock").unlink(missing_ok=True)
    shutil.copytree(kept, root)
    (place / "evilmod.py").write_text("")
    whole = bytes_of(kept)
    names = sorted(whole)
    for number, how in enumerate(damages):
        damage(root, how, names[seeds[number] % len(names)], names[seeds[2] % len(names)], seeds[3])
    same = bytes_of(root) == whole
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        answers = attempt("run folders", lambda: everything(root)).value
        attempt("run folders", lambda: opened(root))
    assert "evilmod" not in sys.modules
    said_whole = answers["verify"].exit_code == 0
    assert said_whole <= same, f"called whole after {damages}: {answers['verify'].output}"
    if said_whole:
        assert json.loads(answers["samples"].stdout) == [{"count_star()": 12}]
    attempt("locks", lambda: holder(root))
