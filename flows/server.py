"""The Prefect server of a job: the configured one, or one started for as long as the job runs.

Without an address every Dask worker would start a temporary server of its own. ``python -m flows.server
PORT PARENT`` is the process started here: a Prefect server that ends when its parent does, however that ends.
"""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

START_SECONDS = 120


class ServerError(RuntimeError):
    """No Prefect server to be had, said in one line."""


@contextmanager
def prefect_server() -> Iterator[Callable[[], str]]:
    """A Prefect API in the settings and the environment (for workers) while it is entered.

    Yields a function that waits until the server answers and returns the API's address: a local server
    takes seconds to start, in which the caller can get the job ready.

    Raises
    ------
    ServerError
        By the function: if the configured server does not answer, or a local one does not start.
    """
    configured = get_current_settings().api.url
    if configured:
        yield lambda: _configured(configured)
        return
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    server = _Server(port, url)
    with temporary_settings({PREFECT_API_URL: url}):
        os.environ["PREFECT_API_URL"] = url
        try:
            yield server.answer
        finally:
            try:
                APILogHandler().flush()  # the last lines, before there is nobody to take them
            finally:
                del os.environ["PREFECT_API_URL"]
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
        self._process = _start(port, url)
        self._answered, self._left = threading.Event(), threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def answer(self) -> str:
        """Wait until it answers; its address."""
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self._url):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServerError(
                    "the local Prefect server did not start; see what `prefect server start` says"
                )
            time.sleep(0.2)
        self._answered.set()
        return self._url

    def stop(self) -> None:
        self._left.set()
        self._watcher.join()
        self._process.terminate()
        self._process.wait()

    def _watch(self) -> None:
        while not self._left.wait(0.5):
            if self._answered.is_set() and self._process.poll() is not None:
                self._process = _start(self._port, self._url)


def _start(port: int, url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.server", str(port), str(os.getpid())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PREFECT_UI_API_URL": url},  # else its pages ask the default port
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


if __name__ == "__main__":
    # Told and not looked up: it may be gone by now.
    threading.Thread(target=_end_with, args=[int(sys.argv[2])], daemon=True).start()
    sys.argv = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", sys.argv[1]]
    runpy.run_module("prefect", run_name="__main__")
