"""Damaged run folders, and those that somebody else made, end each command in one line and run no code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from places import ROOT
from storage.files import sha256_of_json
from storage.manifest import Manifest
from storage.run import Run

runner = CliRunner()
COMMANDS = [
    ["status", "DIR"],
    ["verify", "DIR"],
    ["query", "DIR", "SELECT 1"],
    ["compare", "DIR", "DIR"],
    ["components", "DIR", "--sample", "x"],
    ["export", "DIR", "--to", "csv"],
]
ENTRY = {"parameters": {}, "grid": [2, 2], "layer": "features"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    job = {"name": "x", "target": 0, "tolerance": 0, "seed": 0, "batch": {"images": 1, "forwards": 1}}
    known: dict[str, Any] = {"job": job, "identity": {"seed": 0}, "versions": {}, "metrics": {}}
    known |= {"model_fingerprint": "", "dataset_fingerprint": "", "rows": 4, "shard_rows": 2}
    known |= {"input_shape": (3, 2, 2), "explainers": {"gradcam": ENTRY}}
    return Run.create_or_open(tmp_path / "run", Manifest(**known)).root


def signed(root: Path, **changes: Any) -> None:
    """Change run.json as somebody would who knows how its checksum is made."""
    told = json.loads((root / "run.json").read_bytes()) | changes
    del told["checksum"]
    (root / "run.json").write_text(json.dumps(told | {"checksum": sha256_of_json(told)}))


def text(value: str) -> Callable[[Path], None]:
    return lambda root: (root / "run.json").write_text(value) and None


def instead(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Put something else in the place of run.json."""

    def do(root: Path) -> None:
        (root / "run.json").unlink()
        make(root / "run.json")

    return do


DAMAGES: list[Callable[[Path], None]] = [
    text(""),
    text("[]"),
    text("{"),
    text("[" * 100_000),
    text("9" * 10_000),
    lambda root: (root / "run.json").write_bytes(b"\xff") and None,
    instead(Path.mkdir),
    instead(os.mkfifo),
    instead(lambda path: path.symlink_to("/dev/zero")),
    lambda root: signed(root, rows=10**9),
    lambda root: signed(root, rows=10**9, shard_rows=10**12),
    lambda root: signed(root, rows=10**30),
    lambda root: signed(root, input_shape=[10**9, 10**9]),
    lambda root: signed(root, explainers={"../../x": ENTRY}),
    lambda root: signed(root, explainers={"x": ENTRY | {"details": {"d": {"shape": [1], "dtype": "O"}}}}),
    lambda root: signed(root, identity={"seed": 1}),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_json_is_one_line_and_exit_code_1(root: Path, damage: Callable[[Path], None]) -> None:
    damage(root)
    for command in COMMANDS:
        began = time.monotonic()
        ended = runner.invoke(app, [str(root) if part == "DIR" else part for part in command])
        assert time.monotonic() - began < 20, command
        assert ended.exit_code == 1, (command, ended.output, ended.exception)
        assert isinstance(ended.exception, SystemExit), command
        assert ended.stderr.count("\n") == 1, ended.stderr


@pytest.mark.parametrize("name", ["samples", "summary", "comparisons", "costs"])
@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b"x"), os.mkfifo, os.mkdir])
def test_a_damaged_table_is_one_line_and_exit_code_1(
    root: Path, name: str, make: Callable[[Path], Any]
) -> None:
    make(root / f"{name}.parquet")
    ended = runner.invoke(app, ["query", str(root), f"SELECT * FROM {name}"])
    assert ended.exit_code == 1
    assert ended.stderr.count("\n") == 1
    assert f"{name}.parquet" in ended.stderr


def test_status_says_what_to_do_with_a_damaged_record(root: Path) -> None:
    path = root / "done" / "inputs" / "shard-00000.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    ended = runner.invoke(app, ["status", str(root)])
    assert ended.exit_code == 1
    assert "done/inputs/shard-00000.json is not a done-record" in ended.stderr
    assert "run the job again" in ended.stderr


def test_commands_that_look_import_nothing_that_the_folder_names(root: Path) -> None:
    signed(root, explainers={"evilmod:y": ENTRY}, metrics={"evilmod:z": {"parameters": {}, "columns": {}}})
    (root / "evilmod.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    code = (
        "import sys, runpy, floodlit\n"
        "from typer.testing import CliRunner\nfrom flows.cli import app\n"
        f"for command in {COMMANDS!r}:\n"
        "    ended = CliRunner().invoke(app, ['.' if part == 'DIR' else part for part in command])\n"
        "    assert isinstance(ended.exception, (SystemExit, type(None))), ended.exception\n"
        "floodlit.open('.').sql('SELECT 1')\n"
        "assert 'evilmod' not in sys.modules\n"
    )
    # The folder is even on the path, as it is for a user who works in it with PYTHONPATH=. set.
    path = os.pathsep.join([str(ROOT), str(root)])
    subprocess.run([sys.executable, "-c", code], cwd=root, env=os.environ | {"PYTHONPATH": path}, check=True)
    assert not (root / "ran").exists()
