"""`floodlit doctor`: check what a job needs, and say how to solve each problem."""

from __future__ import annotations

import base64
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import httpx
import psutil
from packaging.requirements import Requirement

from storage.errors import one_line
from storage.files import replacing
from storage.lock import held
from storage.places import is_remote, is_there, place

_PROBE = 64 * 1024 * 1024  # bytes that are written to measure the speed of a disk
_SLOW = 50.0  # MB/s; a disk below this speed is reported
_LITTLE = 5e9  # bytes; less free space than this is reported


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes
    ----------
    what
        The thing that was checked.
    state
        "ok"; "note" if a job can run all the same; "bad" if it cannot, or if data is damaged.
    told
        The result in one line.
    advice
        The remedy; empty if there is nothing to do.
    """

    what: str
    state: Literal["ok", "note", "bad"]
    told: str
    advice: str = ""


def examine(store: Path | None, tracking: str | None) -> Iterator[Finding]:
    """Make all checks, one after another; a check that raises an error is reported as bad.

    Parameters
    ----------
    store
        A run folder, or the place of a future one. None stands for the working directory.
    tracking
        MLflow's address. None stands for the database beside the store.
    """
    folder = place(store or Path.cwd()).absolute()
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("Python", _python),
        ("versions", _versions),
        ("torchvision", _torchvision),
        ("GPU", _gpu),
        ("cores, memory", _machine),
        ("Prefect", _prefect),
        ("MLflow", lambda: _mlflow(folder, tracking)),
        ("disk", lambda: _disk(folder)),
        ("store", lambda: _store(folder)),
    ]
    for what, look in checks:
        try:
            yield look()
        except Exception as error:  # a broken installation may raise anything; the error is the finding
            yield Finding(what, "bad", f"{type(error).__name__}: {one_line(error)}")


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} ({sys.executable})")


def _versions() -> Finding:
    """Compare every requirement of the package with the installed version."""
    wrong = []
    for line in requires("floodlit") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue  # a requirement of an extra, or of another platform
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name} is {found}, needed is {wanted.specifier}")
    if wrong:
        advice = "install again: pip install --constraint constraints.txt --editable ."
        return Finding("versions", "bad", "; ".join(wrong), advice)
    shown = ", ".join(f"{name} {version(name)}" for name in ("torch", "prefect", "dask", "zarr", "mlflow"))
    return Finding("versions", "ok", f"all requirements are met: {shown}")


def _torchvision() -> Finding:
    """Check that torchvision's operators load; they do not if torch is from another build."""
    import torch
    from torchvision.ops import nms

    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    return Finding("torchvision", "ok", "its operators load")


def _gpu() -> Finding:
    import torch

    count = torch.cuda.device_count()
    if not count:
        return Finding("GPU", "note", "PyTorch sees no GPU", 'jobs run on the CPU; cluster.kind = "local"')
    free, total = torch.cuda.mem_get_info(0)
    told = f"{count} x {torch.cuda.get_device_name(0)}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free"
    if find_spec("dask_cuda") is None:
        return Finding(
            "GPU", "note", told, 'pip install .[cuda], then cluster.kind = "cuda" uses all of them'
        )
    return Finding("GPU", "ok", f'{told}; cluster.kind = "cuda" uses all of them')


def _machine() -> Finding:
    memory = psutil.virtual_memory()
    told = f"{os.cpu_count()} cores, {memory.available / 1e9:.0f} of {memory.total / 1e9:.0f} GB free"
    if memory.available < 4e9:
        return Finding("cores, memory", "bad", told, "a worker needs 1 to 3 GB; set cluster.workers = 1")
    return Finding("cores, memory", "ok", told)


def _prefect() -> Finding:
    from prefect.settings import get_current_settings

    settings = get_current_settings().api
    url, secret = settings.url, settings.auth_string
    if not url:
        return Finding("Prefect", "ok", "no server is configured; every job starts its own server")
    try:
        login = base64.b64encode(secret.get_secret_value().encode()).decode() if secret else ""
        headers = {"Authorization": f"Basic {login}"} if secret else {}
        answer = httpx.get(f"{url}/admin/version", timeout=5, headers=headers)
        theirs = str(answer.raise_for_status().json())
    except (httpx.HTTPError, ValueError) as error:
        advice = "start it, or run `prefect config unset PREFECT_API_URL`, so that each job starts a server"
        return Finding("Prefect", "bad", f"{url} does not answer ({type(error).__name__})", advice)
    ours = version("prefect")
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        told = f"{url} has version {theirs}, but {ours} is installed here"
        return Finding("Prefect", "bad", told, "install the same version on both")
    return Finding("Prefect", "ok", f"{url} answers, version {theirs}")


def _mlflow(folder: Path, tracking: str | None) -> Finding:
    from storage.tracking import default_uri, problem_with

    if tracking is None and is_remote(folder):
        return Finding("MLflow", "note", "no address is given", "a job on S3 needs one; use --tracking")
    uri = tracking or default_uri(folder)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return Finding("MLflow", "ok", f"the first job will create {uri}")
    problem = problem_with(uri)
    if problem:
        return Finding("MLflow", "bad", f"{uri}: {problem}", "start it, or correct the job's `tracking`")
    return Finding("MLflow", "ok", f"{uri} answers")


def _disk(folder: Path) -> Finding:
    """Check the free space at the place of the store, and the speed at which a file is written and synced."""
    if is_remote(folder):
        return _object_store(folder)
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if free < 2 * _PROBE:
        return Finding("disk", "bad", f"{free / 1e9:.1f} GB free in {there}", "free some space")
    block = os.urandom(_PROBE)  # random bytes, since a file system that compresses would write zeros too fast
    start = time.perf_counter()
    with replacing(there / "floodlit-doctor") as partial, partial.open("wb") as file:
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
    speed = _PROBE / 1e6 / (time.perf_counter() - start)
    (there / "floodlit-doctor").unlink()
    told = f"{free / 1e9:.0f} GB free in {there}, written at {speed:.0f} MB/s"
    if free < _LITTLE:
        advice = "50,000 images of 224x224 take 8 GB, and their activations up to 20 GB"
        return Finding("disk", "note", told, advice)
    if speed < _SLOW:
        return Finding("disk", "note", told, "this is slow; put the store on a local disk")
    return Finding("disk", "ok", told)


def _object_store(folder: Path) -> Finding:
    """Check that a store on S3 can be locked, and the speed at which an object is sent."""
    probe = folder.with_name(f"{folder.name}.floodlit-doctor")
    block = os.urandom(_PROBE)
    try:
        with held(probe, "doctor"):
            start = time.perf_counter()
            with replacing(probe) as partial:
                partial.write_bytes(block)
            speed = _PROBE / 1e6 / (time.perf_counter() - start)
            probe.unlink()
    except Exception as error:  # an error of botocore, s3fs or the lock
        advice = "check AWS_ENDPOINT_URL, the credentials and the bucket"
        return Finding("disk", "bad", f"{folder} cannot be used: {one_line(error)}", advice)
    return Finding("disk", "ok", f"{folder} has conditional writes, written at {speed:.0f} MB/s")


def _store(folder: Path) -> Finding:
    """Check the run in a folder: who uses it, whether it is damaged, and what is left to do."""
    from flows.resume import remaining
    from storage.errors import FloodlitError
    from storage.lock import holder
    from storage.records import failures
    from storage.run import Run
    from storage.verify import verify

    if not is_there(folder / "run.json"):
        return Finding("store", "ok", f"there is no run in {folder} yet")
    try:
        by = holder(folder)
        if by is not None:  # the files of a running job change, so they cannot be checked
            return Finding("store", "note", f"in use: {by}")
        run = Run.open(folder)
        told, damaged = f"{run.name}: {run.rows} images", verify(folder)
    except FloodlitError as error:  # a damaged lock or run.json
        return Finding("store", "bad", str(error))
    if damaged:
        return Finding("store", "bad", f"{told}, {len(damaged)} damaged", "run the job again to repair it")
    failed = failures(folder)
    told = f"{told}, {len(remaining(run))} steps to do"
    if failed:
        return Finding("store", "note", f"{told}, {len(failed)} failed", "`floodlit status` lists them")
    return Finding("store", "ok", told)
