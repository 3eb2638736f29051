"""A real S3 server, SeaweedFS, for as long as tests need it."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from flows.server import free_port

START_SECONDS = 40.0
PORTS = tuple(f"{part}.port{kind}" for part in ("master", "volume", "filer") for kind in ("", ".grpc"))


class ObjectStore:
    """SeaweedFS with its data in a folder: it can be killed and started again with everything in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self._ports = {name: free_port() for name in (*PORTS, "s3.port.grpc")} | {"s3.port": self.port}
        self._places = count()

    def start(self) -> None:
        """Start it and wait until it answers."""
        import httpx

        fixed = ["-ip=127.0.0.1", f"-dir={self._folder}", "-volume.max=50", "-master.telemetry=false"]
        fixed += ["-s3", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        ports = [f"-{name}={port}" for name, port in self._ports.items()]
        self._process = subprocess.Popen(
            [str(Path(sys.executable).with_name("weed")), "server", *fixed, *ports],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{self.port}/healthz", timeout=5).is_success:
                    return
            assert time.monotonic() < deadline, "the S3 server does not start"
            time.sleep(0.3)

    def kill(self) -> None:
        """Kill it; what it holds stays in its folder."""
        self._process.kill()
        self._process.wait()

    def empty(self) -> str:
        """Address of an empty place."""
        return f"s3://tests/{next(self._places)}"


@contextmanager
def serving() -> Iterator[ObjectStore]:
    """A server, to which the environment points."""
    from storage.places import place

    folder = Path(tempfile.mkdtemp(prefix="floodlit-s3-"))
    server = ObjectStore(folder)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
    }
    try:
        server.start()
        place("s3://tests").mkdir()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
