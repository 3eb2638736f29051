"""The wheel holds everything, and runs a job in a folder whose modules have the names of ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from places import ROOT
from runs import tiny_job, toml

PACKAGES = ("flows", "tasks", "explainers", "storage", "plugins")
OTHER = "raise RuntimeError('the module of another project')\n"


def tracked() -> list[Path]:
    """Files of the checkout that git knows, or would take, relative to it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    told = subprocess.check_output(command, cwd=ROOT, text=True)
    return [Path(name) for name in told.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy, without a network."""
    if not (ROOT / ".git").exists():
        pytest.skip("what belongs to the wheel is known to git alone")
    copy = tmp_path_factory.mktemp("checkout")
    for file in tracked():
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, copy / file)
    made = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    subprocess.run([*build, "--no-index", "--wheel-dir", str(made), str(copy)], check=True)
    (found,) = made.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel, which sees the dependencies of this one."""
    root = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    place = {"base": str(root), "platbase": str(root)}
    ours = Path(sysconfig.get_path("purelib", vars=place))
    # Python does not process .pth files in a folder that a .pth file names: our editable install is inert.
    (ours / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(root / "bin/python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    return root / "bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of another project, with modules that have the names of ours."""
    (tmp_path / "flows").mkdir()
    for name in ("flows/__init__.py", "tasks.py", "storage.py"):
        (tmp_path / name).write_text(OTHER)
    return tmp_path


def environment() -> dict[str, str]:
    """That of a user's shell: nothing points to the checkout or to a server of the tests."""
    away = {"PYTHONPATH", "PYTHONSAFEPATH", "PREFECT_API_URL", "VIRTUAL_ENV"}
    return {key: value for key, value in os.environ.items() if key not in away}


def python(program: str, installed: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(installed / "python"), *options, "-c", program]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)


def test_the_wheel_holds_the_door_every_module_and_the_markers_of_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {file.as_posix() for file in tracked() if file.suffix == ".py" and file.parts[0] in PACKAGES}
    assert {name for name in names if name.endswith(".py")} == modules | {"floodlit.py"}
    # A marker counts for the packages below it too.
    assert {name for name in names if name.endswith("py.typed")} == {f"{each}/py.typed" for each in PACKAGES}


def test_everything_is_imported_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    program = (
        "import explainers, floodlit, flows, storage, tasks\n"
        "for each in (explainers, floodlit, flows, storage, tasks):\n"
        "    print(each.__file__)\n"
        "print(floodlit.__version__)"
    )
    told = python(program, installed, tmp_path).stdout.split()
    assert len(told) == 6
    assert all(Path(file).is_relative_to(installed.parent) for file in told[:5])


def test_the_door_says_that_one_of_its_packages_is_hidden(installed: Path, folder: Path) -> None:
    refused = python("import floodlit", installed, folder)
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert str(folder / "flows/__init__.py") in last
    assert "python -P" in last
    assert python("import floodlit; floodlit.FloodlitError", installed, folder, "-P").returncode == 0


@pytest.mark.service
def test_a_job_runs_where_other_modules_have_our_names(installed: Path, folder: Path) -> None:
    shutil.copy(ROOT / "examples/digits.py", folder)
    shutil.copy(ROOT / "examples/weights/digits-gap.safetensors", folder)
    model = {"source": "digits.py:gap", "weights": "digits-gap.safetensors", "layer": "features"}
    raw = tiny_job(
        "run",
        model=model,
        dataset={"kind": "digits", "limit": 4},
        explainers=[{"name": "gradcam"}],
        controls=False,
        cluster={"kind": "local", "workers": 1},
    )
    toml(raw, folder / "job.toml")
    command = [str(installed / "floodlit"), "run", "job.toml"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "run/summary.parquet").exists()
