"""`floodlit doctor`: what is well is said, what is not is said with what to do."""

from __future__ import annotations

import json
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from flows import doctor
from flows.cli import app
from flows.doctor import examine
from flows.server import free_port
from object_store import ObjectStore
from runs import explained, prepared, tiny_job
from storage.lock import held
from storage.places import files_under, place
from storage.records import Step, write_failure


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PROBE", 1024)


def found(store: Path, tracking: str | None = None) -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in examine(store, tracking)}


def test_this_environment_is_well_and_nothing_is_left_behind(tmp_path: Path) -> None:
    findings = found(tmp_path / "run")
    assert [what for what, each in findings.items() if each.state == "bad"] == []
    assert "torch " in findings["versions"].told
    assert "there is no run" in findings["store"].told
    assert list(tmp_path.iterdir()) == []


def test_requirements_that_are_not_met_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=99", "no-such-package>=1", "zarr>=3.1.2,<4", 'pytest>=99; extra == "test"']
    monkeypatch.setattr(doctor, "requires", lambda name: lines)
    finding = found(tmp_path)["versions"]
    assert finding.state == "bad"
    assert "torch is " in finding.told
    assert "no-such-package is missing" in finding.told
    assert "zarr" not in finding.told
    assert "pytest" not in finding.told
    assert "install again" in finding.advice


class _Server(BaseHTTPRequestHandler):
    answer: Any = "3.0.0"
    allowed = 200

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(self.answer).encode())

    def do_POST(self) -> None:
        """MLflow's, which answers a name that it does not know with a refusal, though its health is well."""
        self.send_response(self.allowed)
        self.end_headers()
        self.wfile.write(b"{}" if self.allowed == 200 else b"Invalid Host header")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(("secret", "state"), [("me:a:b", "ok"), ("me:a", "bad"), (None, "bad")])
def test_a_server_that_wants_a_password_is_asked_with_it(
    tmp_path: Path, secret: str | None, state: str
) -> None:
    class Locked(_Server):
        answer = version("prefect")

        def send_response(self, code: int, message: str | None = None) -> None:
            known = self.headers["Authorization"] == "Basic bWU6YTpi"  # me:a:b
            super().send_response(code if known else 401, message)

    server = HTTPServer(("127.0.0.1", 0), Locked)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/api"
    try:
        with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: secret}):
            assert doctor._prefect().state == state
    finally:
        server.shutdown()


def test_servers_that_are_silent_or_refuse_or_are_of_another_version_are_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with temporary_settings({PREFECT_API_URL: f"{nobody}/api"}):
        findings = found(tmp_path, nobody)
    assert findings["Prefect"].state == findings["MLflow"].state == "bad"
    assert "does not answer" in findings["Prefect"].told
    server = HTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        with temporary_settings({PREFECT_API_URL: f"{url}/api"}):
            findings = found(tmp_path, url)
            monkeypatch.setattr(_Server, "allowed", 403)
            refused = found(tmp_path, url)["MLflow"]
    finally:
        server.shutdown()
    assert "has version 3.0.0, but" in findings["Prefect"].told
    assert findings["MLflow"].state == "ok"
    assert refused.state == "bad"
    assert "Invalid Host header" in refused.told


def test_a_damaged_database_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database at all, but words" * 40)
    finding = found(tmp_path / "run")["MLflow"]
    assert finding.state == "bad"
    assert "\n" not in finding.told


def test_a_full_disk_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(10, 9, 1))
    assert found(tmp_path)["disk"].state == "bad"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(10, 9, 3e9))
    assert "3 GB free" in found(tmp_path)["disk"].told
    assert found(tmp_path)["disk"].state == "note"


def test_a_store_on_s3_is_locked_and_written(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place(f"{s3.empty()}/run")
    findings = found(store)
    assert findings["disk"].state == "ok"
    assert "has conditional writes, written at" in findings["disk"].told
    assert findings["MLflow"].state == "note"
    assert findings["store"].told == f"there is no run in {store} yet"
    assert files_under(store.parent) == {}, "it leaves nothing behind"
    nowhere = found(place("s3://nowhere/run"))["disk"]
    assert nowhere.state == "bad"
    assert "bucket does not exist" in nowhere.told


def test_a_run_folder_is_looked_into(tmp_path: Path) -> None:
    job = tiny_job(tmp_path / "run", explainers=[{"name": "gradcam"}], controls=False)
    run = explained(prepared(job))
    run.samples.unlink()  # belongs to a run whose last step has signed it
    assert "steps to do" in found(run.root)["store"].told
    write_failure(run.root, Step("scores", 0, "gradcam"), "ValueError: x", "", 2)
    assert "1 failed" in found(run.root)["store"].told
    with held(run.root, "another"):
        assert "in use: job another" in found(run.root)["store"].told
    (run.root / "done" / "saliency" / "gradcam" / "shard-00000.json").write_text("{}")
    finding = found(run.root)["store"]
    assert (finding.state, finding.advice) == ("bad", "run the job again to repair it")


def test_the_command_prints_a_line_each_and_fails_where_something_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    well = CliRunner().invoke(app, ["doctor", str(tmp_path)])
    assert well.exit_code == 0, well.output
    assert len(well.output.strip().splitlines()) == 9
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=99"])
    ill = CliRunner().invoke(app, ["doctor", str(tmp_path)])
    assert ill.exit_code == 1
    assert "torch is " in ill.output
