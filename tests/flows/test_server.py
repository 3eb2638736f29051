"""The Prefect server of a job starts in any folder, comes back where it dies, and ends with the job."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.server import ServerError, free_port, prefect_server
from places import ROOT


@pytest.fixture
def without_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No configured server: the session may have one, which would be taken for the user's."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield


def servers() -> list[psutil.Process]:
    children = psutil.Process(os.getpid()).children()
    return [child for child in children if "flows.server" in " ".join(child.cmdline())]


@pytest.mark.service
@pytest.mark.faults
def test_a_killed_server_comes_back_at_the_same_address(server: str, without_server: None) -> None:
    before = {process.pid for process in servers()}
    with prefect_server() as address:
        url = address()
        (first,) = [process for process in servers() if process.pid not in before]
        first.kill()
        deadline = time.monotonic() + 120
        while True:
            assert time.monotonic() < deadline, "it did not come back"
            time.sleep(0.2)
            try:
                if httpx.get(f"{url}/health", timeout=5).is_success and not first.is_running():
                    break
            except httpx.HTTPError:
                continue
        (second,) = [process for process in servers() if process.pid not in before]
        assert second.pid != first.pid
    assert not second.is_running() or second.status() == psutil.STATUS_ZOMBIE


@pytest.mark.service
def test_a_server_whose_parent_was_gone_before_it_could_look_ends(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    command = [sys.executable, "-m", "flows.server", str(free_port()), str(gone.pid)]
    server = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PREFECT_HOME": str(tmp_path)})
    try:
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()


@pytest.mark.service
def test_it_starts_in_a_folder_with_modules_of_our_names(
    without_server: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Prefect projects have a folder ``flows``; with ``python -m`` the child would import it."""
    (tmp_path / "flows").mkdir()
    for name in ("flows/__init__.py", "tasks.py", "storage.py", "prefect.py"):
        (tmp_path / name).write_text("raise RuntimeError('the module of another project')\n")
    monkeypatch.chdir(tmp_path)
    with prefect_server() as address:
        assert httpx.get(f"{address()}/health", timeout=5).is_success


@pytest.mark.service
def test_what_keeps_it_from_starting_is_said_in_one_line(
    without_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = "sqlite+aiosqlite:////no/such/folder/prefect.db"
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", database)
    whole = r"^the local Prefect server did not start: sqlalchemy[^\n]*unable to open database file[^\n]*$"
    with prefect_server() as address, pytest.raises(ServerError, match=whole):
        address()


@pytest.mark.parametrize("before", [None, "yes"])
def test_processes_of_a_job_do_not_import_from_the_working_directory(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is None:
        monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONSAFEPATH", before)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}), prefect_server():
        safe = subprocess.check_output([sys.executable, "-c", "import sys; print(sys.flags.safe_path)"])
        assert safe.strip() == b"True"
    assert os.environ.get("PYTHONSAFEPATH") == before
