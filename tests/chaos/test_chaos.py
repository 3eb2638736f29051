"""Thirty seeded runs under random faults: each must end as the undisturbed run does, nothing lost or doubled.

    python -m pytest -m chaos tests/chaos

Not among the usual tests: it takes half an hour. Every run is a job by the command, in a process of its own.
While it works some of these happen to it: a worker is killed; workers are stopped for a while; the flow is
killed, or its Prefect server, or the Dask scheduler; the disk is full for a while; bytes of a finished shard
change. Whenever the job ends or
hangs it is run again.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import distributed
import psutil
import pytest

from flows.resume import remaining
from flows.server import free_port
from places import ROOT
from runs import SLOW, assert_same_results, model
from storage.records import failures, finished
from storage.run import Run
from storage.verify import verify

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

SEEDS = range(30)
ATTEMPTS = 8  # runs of the job until it has to be complete
HANGING = 150.0  # seconds without an end, after which the flow is killed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("chaos")
    (made / "slow_plugin.py").write_text(SLOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(made))
        yield made


def job(folder: Path, store: Path, address: str | None) -> Path:
    classifier = "\n".join(f"{key} = {json.dumps(value)}" for key, value in model("gap").items())
    where = f'kind = "address"\naddress = "{address}"' if address else 'kind = "local"\nworkers = 2'
    path = folder / f"{store.name}.toml"
    path.write_text(
        f"""name = "{store.name}"
store = "{store}"
tracking = "sqlite:///{folder}/{store.name}.db"
controls = false
explainers = [{{name = "gradcam"}}, {{name = "slow_plugin:Slow"}}]
metrics = [{{name = "insertion", steps = 4}}, {{name = "pointing_game"}}]
[dataset]
kind = "digits"
limit = 96
[model]
{classifier}
[batch]
shard = 16
images = 4
[cluster]
{where}
"""
    )
    return path


def environment(folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT")}
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return kept | {"PYTHONPATH": path, "PREFECT_HOME": str(folder / "prefect"), "OMP_NUM_THREADS": "1"}


def start(folder: Path, file: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "flows.cli", "run", str(file), *options]
    log = (folder / f"{file.stem}.log").open("ab")
    return subprocess.Popen(command, cwd=ROOT, env=environment(folder), stdout=log, stderr=log)


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Path:
    store = folder / "undisturbed"
    assert start(folder, job(folder, store, None)).wait(600) == 0
    return store


@contextlib.contextmanager
def disk(path: Path) -> Iterator[Path]:
    """A file system of 24 MB where the machine allows to mount one."""
    path.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)], check=False
        ).returncode
    )
    try:
        yield path
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=True)


class Cluster:
    """A Dask scheduler and two workers in processes of their own, all started again when they are gone."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.port, self.rng = folder, free_port(), rng
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def revive(self) -> None:
        """Start what is gone, until all are together, as whoever keeps a cluster does.

        A worker that lost its scheduler takes a minute to end if its last logs find no Prefect server.
        """
        deadline = time.monotonic() + HANGING
        self._start_missing()
        with distributed.Client(self.address, timeout=60) as client:
            while len(client.scheduler_info(n_workers=-1)["workers"]) < 2:
                assert time.monotonic() < deadline, "the cluster does not come up"
                time.sleep(0.5)
                self._start_missing()

    def _start_missing(self) -> None:
        commands = {
            "scheduler": ["scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard"]
        }
        for number in range(2):
            options = ["--nthreads", "1", "--no-dashboard", "--death-timeout", "30"]
            commands[f"worker{number}"] = ["worker", self.address, *options]
        for name, command in commands.items():
            if name not in self.processes or self.processes[name].poll() is not None:
                log = (self.folder / "cluster.log").open("ab")
                self.processes[name] = subprocess.Popen(
                    [sys.executable, "-m", "dask", *command],
                    cwd=ROOT,
                    env=environment(self.folder),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    def close(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Scene:
    """One run, and what can happen to it."""

    def __init__(
        self, folder: Path, store: Path, flow: subprocess.Popen[bytes], cluster: Cluster | None
    ) -> None:
        self.folder, self.store, self.flow, self.cluster = folder, store, flow, cluster

    def of_flow(self, word: str) -> list[psutil.Process]:
        try:
            children = psutil.Process(self.flow.pid).children(recursive=True)
            return [child for child in children if word in " ".join(child.cmdline())]
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[psutil.Process]:
        if self.cluster is None:
            found = self.of_flow("spawn_main")
        else:
            found = [
                child
                for name, process in self.cluster.processes.items()
                if name != "scheduler" and process.poll() is None
                for child in psutil.Process(process.pid).children(recursive=True)
            ]
        return [process for process in found if "resource_tracker" not in " ".join(process.cmdline())]

    def kill_worker(self, rng: random.Random) -> None:
        workers = self.workers()
        if workers:
            rng.choice(workers).kill()

    def stop_workers(self, rng: random.Random) -> None:
        workers = self.workers()
        for worker in workers:
            worker.suspend()
        time.sleep(rng.uniform(1, 8))
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.resume()

    def kill_flow(self, _: random.Random) -> None:
        self.flow.kill()

    def kill_server(self, _: random.Random) -> None:
        for process in self.of_flow("flows.server"):
            process.kill()

    def kill_scheduler(self, rng: random.Random) -> None:
        if self.cluster is None:  # it lives in the flow
            self.kill_flow(rng)
        else:
            self.cluster.processes["scheduler"].kill()

    def fill_disk(self, rng: random.Random) -> None:
        if shutil.disk_usage(self.store.parent).total > 30_000_000:
            return
        filler = self.store.parent / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"x" * 65536)
                file.flush()
        time.sleep(rng.uniform(1, 4))
        filler.unlink()

    def corrupt(self, rng: random.Random) -> None:
        """Bytes of a file that some done-record covers."""
        records = [json.loads((self.store / step.path).read_bytes()) for step in sorted(finished(self.store))]
        files = [self.store / file["path"] for record in records for file in record["files"]]
        if not files:
            return
        path = rng.choice(files)
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 0xFF
        path.write_bytes(data)


FAULTS: list[Callable[[Scene, random.Random], None]] = [
    Scene.kill_worker,
    Scene.stop_workers,
    Scene.kill_flow,
    Scene.kill_server,
    Scene.kill_scheduler,
    Scene.fill_disk,
    Scene.corrupt,
]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_survives_what_happens_to_it(seed: int, folder: Path, undisturbed: Path) -> None:
    rng = random.Random(seed)
    cluster = Cluster(folder, rng) if rng.random() < 0.4 else None
    with disk(folder / f"disk{seed}") as place:
        store = place / f"run{seed}"
        try:
            file = job(folder, store, cluster.address if cluster else None)
            told = disturbed(rng, folder, store, file, cluster)
            whole(store)
            assert_same_results(store, undisturbed)
            print(f"seed {seed}: survived {', '.join(told)}")  # noqa: T201
        finally:
            if cluster:
                cluster.close()


def disturbed(
    rng: random.Random, folder: Path, store: Path, file: Path, cluster: Cluster | None
) -> list[str]:
    """Run the job until it is complete, with faults in the first runs; returns what they were."""
    wanted = rng.choices(FAULTS, k=rng.randint(1, 4))
    told: list[str] = []
    for _ in range(ATTEMPTS):
        if cluster:
            cluster.revive()
        flow = start(folder, file, "--retry-failed")
        scene = Scene(folder, store, flow, cluster)
        begun = time.monotonic()
        while flow.poll() is None:
            time.sleep(0.2)
            if time.monotonic() - begun > HANGING:
                flow.kill()
            if wanted and working(store):
                time.sleep(rng.uniform(0, 3))
                fault = wanted.pop()
                told.append(fault.__name__)
                fault(scene, rng)
        if flow.returncode == 0 and not wanted and not verify(store):
            return told
    raise AssertionError(f"not complete after {ATTEMPTS} runs; faults: {told}")


def working(store: Path) -> bool:
    """Whether some work is done and some is not: only then can a fault do harm."""
    return (store / "run.json").exists() and 0 < len(finished(store)) < 36


def whole(store: Path) -> None:
    run = Run.open(store)
    assert not verify(store)
    assert not remaining(run)
    assert not failures(store)
