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

from flows.server import ServerError, _Server, free_port, prefect_server
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


@pytest.mark.service
@pytest.mark.parametrize("path", ["/api/admin/version", "/api/events/filter", "/ui-settings"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:1"])
def test_pages_of_others_are_refused_and_no_browser_shows_them_an_answer(
    server: str, origin: str, method: str, path: str
) -> None:
    url = server.removesuffix("/api") + path
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    answer = httpx.request(method, url, headers=headers)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.service
def test_its_own_pages_are_answered_under_both_names_of_the_machine(server: str) -> None:
    port = httpx.URL(server).port
    for name in ("127.0.0.1", "localhost"):
        origin = f"http://{name}:{port}"
        headers = {"Origin": origin, "Host": f"{name}:{port}"}
        answer = httpx.post(f"{server}/flow_runs/filter", json={"limit": 1}, headers=headers)
        assert answer.is_success
        assert answer.headers["access-control-allow-origin"] == origin
    assert "<html" in httpx.get(server.removesuffix("/api"), follow_redirects=True).text


@pytest.mark.service
@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1]", ""])
def test_a_name_that_was_bound_to_this_machine_afterwards_is_refused(server: str, host: str) -> None:
    """DNS rebinding: the page's own name leads here, so that the browser takes the answer for the page's."""
    answer = httpx.get(f"{server}/admin/version", headers={"Host": host})
    assert answer.status_code == 400
    assert "3." not in answer.text


@pytest.mark.service
def test_streams_of_events_are_closed_to_pages_of_others(server: str) -> None:
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    url = f"{server.replace('http', 'ws', 1)}/events/in"
    with connect(url):
        pass
    for wrong in ({"origin": "http://evil.example"}, {"additional_headers": {"Host": "evil.example"}}):
        with pytest.raises(InvalidStatus, match=r"HTTP 40[03]"):
            connect(url, **wrong)


@pytest.mark.service
def test_what_it_writes_to_its_standard_error_does_not_fill_the_disk(
    without_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.server.MOST_ERRORS", 2000)
    monkeypatch.setattr("flows.server._answers", lambda url: False)
    talks = (
        "import os, time\nfor i in range(300): os.write(2, b'%d %b\\n' % (i, b'x' * 99)); time.sleep(0.01)"
    )
    real = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **rest: real([sys.executable, "-c", talks], **rest)
    )
    told = _Server(1, "http://127.0.0.1:1/api")
    try:
        with pytest.raises(ServerError, match=r"did not start: 299 x"):
            told.answer()
        assert os.fstat(told._errors.fileno()).st_size < 20_000  # it wrote 31,000 bytes
        assert os.fstat(told._errors.fileno()).st_mode & 0o077 == 0
    finally:
        told.stop()


@pytest.mark.service
def test_it_asks_for_the_password_that_the_environment_gives_it(
    without_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with other users; the job finds the password in the environment too."""
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "me:secret")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:secret")
    with prefect_server() as address:
        url = f"{address()}/admin/version"
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, auth=("me", "wrong")).status_code == 401
        assert httpx.get(url, auth=("me", "secret")).is_success
