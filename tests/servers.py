"""Servers as a team runs them, for tests: a private PostgreSQL, and Prefect's and MLflow's server on it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg2
import pytest

from flows.server import free_port


def _program(name: str) -> str:
    """On the path, or where Debian keeps the newest one."""
    kept = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
    newest = max(kept, key=lambda path: float(path.parts[-3]), default=None)
    found = shutil.which(name) or newest
    if found is None:
        pytest.skip(f"PostgreSQL's {name} is not installed")
    return str(found)


def _unprivileged() -> str | None:
    """The user to start PostgreSQL as, which refuses root; None: the one who runs the tests."""
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
            subprocess.run(["true"], user=name, group=pwd.getpwnam(name).pw_gid, extra_groups=[], check=True)
        except (KeyError, OSError):
            continue
        return name
    pytest.skip("PostgreSQL does not run as root, and no other user can be had")


@contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL that trusts this machine; yields USER@HOST:PORT."""
    initdb, postgres, user = _program("initdb"), _program("postgres"), _unprivileged()
    group = pwd.getpwnam(user).pw_gid if user else None
    groups = [] if user else None
    # Not in the test's own folder, which nobody but the tests' user may enter.
    with tempfile.TemporaryDirectory(prefix="floodlit-postgres-", ignore_cleanup_errors=True) as folder:
        data, port = f"{folder}/data", free_port()
        if user:
            shutil.chown(folder, user)
        initialise = [initdb, "-D", data, "-U", "floodlit", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(
            [*initialise, "--locale=C"],
            cwd=folder,
            user=user,
            group=group,
            extra_groups=groups,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        settings = [
            f"port={port}",
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={folder}",
            "fsync=off",
        ]
        server = subprocess.Popen(
            [postgres, "-D", data, *(word for each in settings for word in ("-c", each))],
            cwd=folder,
            user=user,
            group=group,
            extra_groups=groups,
            stderr=subprocess.DEVNULL,
        )
        address = f"floodlit@127.0.0.1:{port}"
        try:
            _until(lambda: _connects(address), server)
            yield address
        finally:
            server.send_signal(signal.SIGINT)  # at once, whoever is connected
            server.wait()


def ask(address: str, database: str, sql: str) -> list[tuple[object, ...]]:
    """The rows a statement answers with, none where it answers nothing."""
    connection = psycopg2.connect(f"postgresql://{address}/{database}")
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


@contextmanager
def prefect_and_mlflow(prefect: str, mlflow: str, artifacts: Path) -> Iterator[tuple[str, str]]:
    """Both servers on databases of their own; yields the address of Prefect's API and that of MLflow."""
    api, tracking = free_port(), free_port()
    environment = os.environ | {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": prefect,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes
    }
    kept = ["--backend-store-uri", mlflow, "--artifacts-destination", str(artifacts), "--workers", "1"]
    commands = [
        ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(api)],
        ["mlflow", "server", "--host", "127.0.0.1", "--port", str(tracking), *kept],
    ]
    with (artifacts.parent / "servers.log").open("wb") as log:
        servers = [
            subprocess.Popen(
                [sys.executable, "-m", *command], env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            for command in commands
        ]
    addresses = f"http://127.0.0.1:{api}/api", f"http://127.0.0.1:{tracking}"
    try:
        for address, server in zip(addresses, servers, strict=True):
            _until(lambda url=f"{address}/health": _answers(url), server)
        yield addresses
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait()


def _until(ready: Callable[[], bool], server: subprocess.Popen[bytes], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert server.poll() is None, f"{server.args} has ended"
        assert time.monotonic() < deadline, f"{server.args} does not answer"
        time.sleep(0.2)


def _connects(address: str) -> bool:
    try:
        ask(address, "postgres", "SELECT 1")
    except psycopg2.OperationalError:
        return False
    return True


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False
