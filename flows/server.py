"""The Prefect server of a job: the configured one, or one started for as long as the job runs.

Without an address every Dask worker would start a temporary server of its own. ``python -P -m flows.server
PORT PARENT`` is the process started here: a Prefect server that ends when its parent does, however that ends.
It listens on this machine only, and refuses what the web pages of others make a browser send to it.

The working directory of a job may hold a folder ``flows``, as Prefect projects do, or a ``tasks.py``. Python
started with ``-m`` would import those; with ``-P``, or ``PYTHONSAFEPATH`` in the environment, it does not.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import httpx
from prefect.logging.handlers import APILogHandler
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    PREFECT_SERVER_CORS_ALLOWED_ORIGINS,
    get_current_settings,
    temporary_settings,
)
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from flows.environment import restored
from storage.errors import LONGEST, FloodlitError

START_SECONDS = 120
MOST_ERRORS = 1_000_000  # bytes of a server's standard error that are kept, about; older ones are dropped


class ServerError(FloodlitError, RuntimeError):
    """There is no Prefect server; the message says why, in one line."""


@contextmanager
def prefect_server() -> Iterator[Callable[[], str]]:
    """A Prefect API in the settings and the environment (for workers) while it is entered.

    Yields a function that waits until the server answers and returns the API's address: a local server
    takes seconds to start, in which the caller can get the job ready. Python processes that are started
    meanwhile do not import from the working directory.

    Raises
    ------
    ServerError
        By the function: if the configured server does not answer, or a local one does not start.
    """
    configured = get_current_settings().api.url
    with restored(["PYTHONSAFEPATH"]):
        os.environ["PYTHONSAFEPATH"] = "1"
        if configured:
            yield lambda: _configured(configured)
        else:
            with _local() as answer:
                yield answer


@contextmanager
def _local() -> Iterator[Callable[[], str]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    server = _Server(port, url)
    try:
        # Each task run has a client, which would first ask this server for a token that it does not use.
        changed = {PREFECT_API_URL: url, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}
        with temporary_settings(changed), restored(["PREFECT_API_URL"]):
            os.environ["PREFECT_API_URL"] = url
            try:
                yield server.answer
            finally:
                APILogHandler().flush()  # the last lines, while the server is there to take them
    finally:
        server.stop()


def _configured(url: str) -> str:
    if not _answers(url):
        raise ServerError(
            f"the Prefect server at {url} does not answer; start it, or unset PREFECT_API_URL "
            "(`prefect config unset PREFECT_API_URL`) to have one started for the job"
        )
    return url


class _Server:
    """A local server, which is started again where it dies while it is needed.

    Prefect's clients try for a while before they give up, and its database is a file: nothing is lost.
    """

    def __init__(self, port: int, url: str) -> None:
        self._port, self._url = port, url
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by stop
        # A process then goes on at the end of the file, wherever that is after the file was emptied.
        fcntl.fcntl(self._errors, fcntl.F_SETFL, os.O_APPEND)
        self._process = self._start()
        self._answered, self._left = threading.Event(), threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def answer(self) -> str:
        """Wait until it answers; its address."""
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self._url):
            if self._process.poll() is not None:
                raise ServerError(f"the local Prefect server did not start: {self._last_words()}")
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the local Prefect server did not answer within {START_SECONDS} s "
                    f"({self._last_words()}); run the same job again, or start a server with "
                    "`prefect server start` and set PREFECT_API_URL to its address"
                )
            time.sleep(0.2)
        self._answered.set()
        return self._url

    def _last_words(self) -> str:
        """The last error that the server's process wrote to its standard error, else the last line."""
        file = self._errors.fileno()
        tail = os.pread(file, 10_000, max(0, os.fstat(file).st_size - 10_000))  # moves no writer's place
        lines = [line.strip() for line in tail.decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        told = (errors or lines or ["it said nothing; see what `prefect server start` says"])[-1]
        return told[:LONGEST]

    def stop(self) -> None:
        self._left.set()
        self._watcher.join()
        self._process.terminate()
        self._process.wait()
        self._errors.close()

    def _watch(self) -> None:
        while not self._left.wait(0.5):
            if os.fstat(self._errors.fileno()).st_size > MOST_ERRORS:
                self._errors.truncate(0)
            if self._answered.is_set() and self._process.poll() is not None:
                self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "flows.server", str(self._port), str(os.getpid())],
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            # Nobody who runs a job has been asked whether Prefect may count it. Without the second variable,
            # the server's pages would ask the default port.
            env={"PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
            | os.environ
            | {"PREFECT_UI_API_URL": self._url},
            start_new_session=True,  # Ctrl-C is for the flow, which still has its last state to report
        )


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.HTTPError:
        return False


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


class _OwnPages:
    """ASGI middleware that refuses requests of a web page that this server has not served.

    A browser sends them, although it keeps the answer from the page, and they could change runs.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        foreign = False
        if scope["type"] in {"http", "websocket"}:
            origin = Headers(scope=scope).get("origin")  # only browsers send it
            foreign = origin is not None and origin not in self._origins
        answer = PlainTextResponse("This page is not one of this server's.", 403) if foreign else self._app
        await answer(scope, receive, send)


def _serve(port: int) -> None:
    """Run Prefect's server in this process until it is told to end."""
    # What only this process needs, and not the one that starts it.
    import uvicorn
    from prefect.server.api.server import create_app
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    names = ["127.0.0.1", "localhost"]
    origins = [f"http://{name}:{port}" for name in names]
    with temporary_settings({PREFECT_SERVER_CORS_ALLOWED_ORIGINS: ",".join(origins)}):
        app = create_app(final=True)
        app.add_middleware(_OwnPages, origins=origins)
        # A page can give its own name this machine's address after it was loaded (DNS rebinding).
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=names)
        uvicorn.run(app, host=names[0], port=port, log_level="warning")


if __name__ == "__main__":
    # Told and not looked up: it may be gone by now.
    threading.Thread(target=_end_with, args=[int(sys.argv[2])], daemon=True).start()
    _serve(int(sys.argv[1]))
