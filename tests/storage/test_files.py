"""Files that are opened, written and summed."""

import os
from pathlib import Path

import pytest

from storage.files import UnreadableError, regular


def test_a_pipe_a_device_and_a_folder_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    kinds = [("pipe", "a pipe"), ("zero", "a device"), (".", "a folder"), ("loop", "a link to itself")]
    for path, kind in kinds:
        with pytest.raises(UnreadableError, match=f"is {kind}, not a file"):
            regular(tmp_path / path)


def test_a_file_a_link_to_it_and_a_missing_file_are_returned(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link", "missing"):
        assert regular(tmp_path / name) == tmp_path / name
