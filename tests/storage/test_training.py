"""The folder of a training: what lies in the place of training.json is checked, and no pipe is opened."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.training import TrainingFolder


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        os.mkdir,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text('{"identity": 5}'),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_bytes(b"\xff"),
    ],
)
def test_a_damaged_training_json_is_one_line(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path / "training.json")
    with pytest.raises(ValueError, match=r"training\.json cannot be read.*restore it") as refusal:
        TrainingFolder.create_or_open(tmp_path, {"seed": 0}, {})
    assert "\n" not in str(refusal.value)


def test_a_training_of_an_earlier_version_keeps_its_hash(tmp_path: Path) -> None:
    """Its checkpoint holds the hash, and later versions have keys that its training.json does not name."""
    before = TrainingFolder.create_or_open(tmp_path, {"seed": 0, "model": {"name": "a"}}, {})
    after = TrainingFolder.create_or_open(tmp_path, {"seed": 0, "model": {"name": "a", "fit": None}}, {})
    assert after.hash == before.hash
