"""The Prefect server of a job is started again where it dies, and stays away once the job is over."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.server import free_port, prefect_server
from places import ROOT


def servers() -> list[psutil.Process]:
    children = psutil.Process(os.getpid()).children()
    return [child for child in children if "flows.server" in " ".join(child.cmdline())]


@pytest.mark.service
@pytest.mark.faults
def test_a_killed_server_comes_back_at_the_same_address(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    before = {process.pid for process in servers()}
    # The session may have a server, which would be taken for the user's.
    with temporary_settings(restore_defaults={PREFECT_API_URL}), prefect_server() as address:
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
