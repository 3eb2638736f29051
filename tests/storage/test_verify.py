"""Damage is found, named and repaired by dropping the record; what is whole stays."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.records import Step, finished, write_record
from storage.verify import repair, verify

STEPS = [Step("inputs", 0), Step("saliency", 1, "ddcam"), Step("scores", 1, "ddcam")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, step in enumerate(STEPS):
        file = tmp_path / f"data-{number}"
        file.write_bytes(bytes(range(200)))
        write_record(tmp_path, step, rows=1, statuses={}, files=[file], seconds=0.1, worker="w")
    return tmp_path


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[77] ^= 4
    path.write_bytes(raw)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    ("data-1", flip, r"^data-1: has other contents"),
    ("data-1", truncate, r"^data-1: has 199 bytes instead of 200$"),
    ("data-1", Path.unlink, r"^data-1: is missing$"),
    (
        "done/saliency/ddcam/shard-00001.json",
        flip,
        r"^done/saliency/ddcam/shard-00001.json: (was altered|is not a)",
    ),
    ("done/saliency/ddcam/shard-00001.json", lambda path: path.write_bytes(b""), "is not a done-record"),
]


def test_a_whole_run_has_no_problems(root: Path) -> None:
    assert verify(root) == []


@pytest.mark.parametrize(("name", "damage", "told"), DAMAGES)
def test_damage_is_named_and_repair_drops_that_step_alone(
    root: Path, name: str, damage: Callable[[Path], None], told: str
) -> None:
    damage(root / name)
    (problem,) = verify(root)
    assert problem.step == STEPS[1]
    assert problem.path == Path(name)
    assert re.search(told, str(problem))
    assert repair(root, [problem]) == {STEPS[1]}
    assert finished(root) == {STEPS[0], STEPS[2]}
    assert verify(root) == []


def test_every_file_of_a_step_is_named(root: Path) -> None:
    files = [root / "data-0", root / "data-1"]
    write_record(root, STEPS[0], rows=1, statuses={}, files=files, seconds=0.1, worker="w")
    flip(files[0])
    files[1].unlink()
    problems = verify(root)
    assert [(p.step, str(p.path)) for p in problems] == [
        (STEPS[0], "data-0"),
        (STEPS[0], "data-1"),
        (STEPS[1], "data-1"),
    ]
    assert repair(root, problems) == set(STEPS[:2])


def test_what_killed_writers_left_is_no_damage(root: Path) -> None:
    (root / "data-0.77.partial").write_bytes(b"x")
    assert verify(root) == []
