"""Whatever a job holds, it is a job or it is refused in one line: no other error, no wait, no secret."""

import copy
import datetime
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefect import Flow
from prefect.exceptions import ParameterTypeError
from pydantic import ValidationError

from attempts import check_line
from explainers.registry import explainers
from flows.explain import explain
from flows.job import Job, JobError
from flows.job_file import LARGEST, read_job
from flows.train import train_ptame
from flows.train_job import TrainJob
from plugins.registry import complaints
from runs import prepared, tiny_job, toml
from tasks.metrics.registry import metrics

WHOLE: dict[str, Any] = {
    "name": "tiny",
    "store": "runs/tiny",
    "seed": 3,
    "tracking": "http://127.0.0.1:5000",
    "target": {"top": 2},
    "tolerance": 0.5,
    "controls": True,
    "dataset": {"kind": "digits", "limit": 8, "seed": 1, "split": "test"},
    "model": {
        "source": "nets.py:gap",
        "weights": "weights/gap.safetensors",
        "num_classes": 10,
        "resize": 30,
        "crop": 28,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "layer": "features",
        "classes": ["cat", "dog"],
    },
    "batch": {"images": 4, "forwards": 8, "shard": 16},
    "compute": {"precision": "float32", "tf32": False},
    "cluster": {
        "kind": "class",
        "workers": 2,
        "cluster_class": "a.B",
        "arguments": {"queue": ["q", {"n": 1}]},
    },
    "explainers": [
        {"name": "rise", "masks": 10, "probability": 0.5},
        {"name": "pami", "windows": [1, 2], "radius": 30},
        {"name": "ptame", "head": "head.safetensors"},
    ],
    "metrics": [{"name": "insertion", "steps": 4}, {"name": "average_drop", "levels": [50, 15]}],
}
TRAINING: dict[str, Any] = {
    **{key: WHOLE[key] for key in ("name", "store", "seed", "dataset", "model")},
    "auxiliary": {"source": "nets.py:gap", "weights": "none", "taps": ["a", "b"]},
    "loss": {"preset": "resnet50", "ce": 1.0, "learning_rate": 0.1},
    "steps": 100,
    "batch": 8,
    "accumulate": 2,
    "held_out": 4,
    "watch": {"numbers": 10, "checkpoint": 3},
    "register_as": "a head",
}
JOBS = [(Job, WHOLE), (TrainJob, TRAINING)]
SECRET = "hunter2SeCrEt"
KNOWN = [explainers.names(), metrics.names()]  # imported here, so that no refusal waits for it


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in nested tables and lists, the outer ones first."""
    if at:
        yield at
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    )
    for key, inner in entries:
        yield from paths(inner, (*at, key))


def replaced(raw: dict[str, Any], at: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The raw job with another value at a path."""
    changed = copy.deepcopy(raw)
    inner: Any = changed
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return changed


def check(kind: type, raw: dict[str, Any], folder: Path) -> Any:
    """Validate a raw job as the flow does; return it, or the one line of its refusal."""
    start = time.process_time()
    try:
        found: Any = kind.model_validate(raw, context={"folder": folder})  # type: ignore[attr-defined]
    except ValidationError as error:
        found = str(JobError(complaints(error)))
        check_line(found)
        assert SECRET not in found
    assert time.process_time() - start < 2, "a refusal takes no time"
    return found


HOSTILE = st.one_of(
    st.integers(),
    st.integers(-(10**5000), 10**5000),
    st.floats(),
    st.booleans(),
    st.text(max_size=20),
    st.text(st.characters(), max_size=20),
    st.sampled_from(
        [
            "",
            "/",
            "~",
            "~nosuchuser/x",
            "a\0b",
            "[/red]",
            "\x1b[31m",
            "\u202e",
            "x" * 300,
            "x" * 10**6,
            "../" * 2000,
            f"http://user:{SECRET}@host",
            f"s3://KEY:{SECRET}@bucket/x",
            f"s3://KEY:{SECRET} @bucket/x",
            f"https://host/?token={SECRET}",
            "os:system",
            "json:dumps",
            ".x:y",
            ":x",
            "a:",
            "x:y:z",
            "s3://",
            "file:///x",
            datetime.date(2020, 1, 1),
            datetime.time(1, 2),
            [],
            {},
            [[[[]]]],
            {"password": SECRET},
            {"a": {"token": [SECRET]}},
            ["x"] * 1001,
            10**15,
            10**18,
            2**63,
            -1,
            1e300,
            5e-324,
            None,
        ]
    ),
    st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3)),
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_at_any_key_is_a_job_or_one_line(tmp_path: Path, data: st.DataObject) -> None:
    kind, raw = data.draw(st.sampled_from(JOBS))
    at = data.draw(st.sampled_from(sorted(paths(raw), key=str)))
    found = check(kind, replaced(raw, at, data.draw(HOSTILE)), tmp_path)
    if not isinstance(found, str):  # it can be written into the run folder and read again
        text = found.model_dump_json()
        assert SECRET not in text
        assert kind.model_validate(json.loads(text)) == found  # type: ignore[attr-defined]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 900), length=st.integers(0, 30), junk=st.binary(max_size=30))
def test_any_bytes_in_the_file_are_a_job_or_one_line(
    tmp_path: Path, start: int, length: int, junk: bytes
) -> None:
    file = tmp_path / "job.toml"
    text = toml(WHOLE, file).read_bytes()
    file.write_bytes(text[:start] + junk + text[start + length :])
    try:
        read_job(file, Job)
    except JobError as error:
        check_line(str(error))


@pytest.mark.parametrize(("kind", "raw"), JOBS)
def test_the_job_that_the_others_are_made_from_is_valid(
    kind: type, raw: dict[str, Any], tmp_path: Path
) -> None:
    assert isinstance(check(kind, raw, tmp_path), kind)
    assert isinstance(read_job(toml(raw, tmp_path / "job.toml"), kind), kind)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("batch.images", 10**18, "batch.images: .* less than or equal to 100000, not 1000000000000000000$"),
        ("batch.images", True, "batch.images: .*integer, not True"),
        ("batch.images", "16", "batch.images: .*integer$"),
        ("batch.images", 16.0, "batch.images: .*integer, not 16.0"),
        ("batch.forwards", 10**18, "batch.forwards: "),
        ("batch.shard", 10**18, "batch.shard: "),
        ("seed", True, "seed: "),
        ("seed", -1, "seed: .*greater than or equal to 0, not -1"),
        ("seed", 2**63, "seed: is a number of 64 bits"),
        ("controls", 1, "controls: .*boolean, not 1"),
        ("name", 7, "name: .*string, not 7"),
        ("name", "x" * 10**6, "name: has 1000000 characters"),
        ("name", "x" * 251, "name: .*250"),
        ("target", True, "target: .* is no class; write"),
        ("target", 10**30, "target: is a number of 100 bits"),
        ("target", -1, "target: .* is no class; write"),
        ("target.top", 10**9, "target: .* is no class; write"),
        ("tolerance", float("nan"), "tolerance: must be a finite number, and is nan"),
        ("dataset.limit", 10**15, "dataset.limit: "),
        ("dataset.limit", 10**7, "limit: at most 1,000,000 images are drawn, not 10,000,000"),
        ("dataset", {"kind": "text", "path": 5}, "dataset.path: must be a path"),
        ("dataset", {"kind": "text", "path": ""}, "dataset.path: is empty"),
        ("model.resize", 10**7, "model.resize: .*8192, not 10000000"),
        ("model.crop", 10**6, "model.crop: "),
        ("model.weights", "", "model.weights: "),
        ("cluster.workers", 10**6, "cluster.workers: "),
        ("explainers", [{"name": f"x{i}"} for i in range(10**4)], "explainers: .*1000 items"),
        ("explainers.0.masks", 10**12, "explainer rise: masks: .*1000000, not 1000000000000"),
        ("explainers.0.probability", True, "explainer rise: probability: .*number, not True"),
        ("explainers.2.head", 5, "explainer ptame: head: "),
        ("metrics.0.steps", 10**12, "metric insertion: steps: "),
        ("metrics.1.levels", ["50"], "metric average_drop: levels"),
        ("explainers.0.name", "os:system", "explainers: .*not a class"),
        ("explainers.0.name", "json:dumps", "explainers: .*not a class"),
        ("explainers.0.name", ".x:y", "explainers: .*relative module"),
        ("explainers.0.name", ":x", "explainers: .*cannot load"),
        ("explainers.0.name", "json:", "explainers: .*cannot load"),
        ("explainers.0.name", "json:y:z", "explainers: .*cannot load"),
        ("store", "/", "store: / is the root of all files"),
        ("store", "~", "store: .* is your home folder"),
        ("store", "~nosuchuser/x", "store: ~nosuchuser is the home folder of no known user"),
        ("store", "a\0b", "store: has a NUL character"),
        ("store", 5, "store: must be a path"),
        ("store", ["a"], "store: must be a path"),
        ("store", "", "store: is empty"),
        ("store", "x" * 256, "store: a name in the path has more than 255 bytes"),
        ("store", "x/" * 2500, "store: the path has more than 3900 bytes"),
        ("store", "file.txt", "store: .*file.txt is not a folder"),
        ("store", "file.txt/run", "store: .*file.txt is not a folder"),
        ("store", "nowhere", "store: .*nowhere is a link that leads nowhere"),
        ("dataset", datetime.date(2020, 1, 1), "dataset: is a date"),
        ("dataset", {"kind": "folder", "path": "runs"}, "store: lies in the folder of the dataset"),
        ("cluster.arguments", {"a": {"b": [float("inf")]}}, r"cluster.arguments.a.b\[0\]: must be a finite"),
    ],
)
def test_a_refusal_names_the_key_and_what_is_right(tmp_path: Path, key: str, value: Any, said: str) -> None:
    (tmp_path / "file.txt").touch()
    (tmp_path / "nowhere").symlink_to("nothing")
    at = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
    raw = (
        WHOLE if key != "cluster.workers" else replaced(WHOLE, ("cluster",), {"kind": "local", "workers": 1})
    )
    told = check(Job, replaced(raw, at, value), tmp_path)
    assert isinstance(told, str)
    assert re.search(said, told), told


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_where_nothing_can_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    told = check(Job, WHOLE | {"store": "locked/run"}, tmp_path)
    assert "locked cannot be written to" in told


def test_a_link_to_a_folder_is_a_store_and_a_store_beside_the_images_is_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    assert check(Job, WHOLE | {"store": "link"}, tmp_path).store == tmp_path / "link"
    data = {"kind": "folder", "path": "run"}
    assert check(Job, WHOLE | {"store": "runs", "dataset": data}, tmp_path).store == tmp_path / "runs"


CREDENTIALS = [
    (("tracking",), f"http://user:{SECRET}@host"),
    (("tracking",), f"https://{SECRET}@host"),
    (("tracking",), f"https://host/?token={SECRET}"),
    (("tracking",), f"https://host/#{SECRET}"),
    (("tracking",), f"postgresql+psycopg2://user:a/{SECRET}@host/db"),
    (("tracking",), f"mysql://host/db?password={SECRET}"),
    (("store",), f"s3://KEY:{SECRET}@bucket/run"),
    (("store",), f"s3://KEY:a/b{SECRET}@bucket/run"),
    (("store",), f"https://user:{SECRET}@host/run"),
    (("dataset",), {"kind": "csv", "path": f"s3://KEY:{SECRET}@bucket/list.csv"}),
    (("dataset",), {"kind": "csv", "path": "list.csv", "images": f"s3://{SECRET}@bucket/x"}),
    (("dataset",), {"kind": "csv", "path": f"https://host/x?X-Amz-Signature={SECRET}"}),
    (("cluster",), {"kind": "address", "address": f"tcp://user:{SECRET}@host:8786"}),
    (("cluster", "arguments"), {"password": SECRET}),
    (("cluster", "arguments"), {"api_key": 12345}),
    (("cluster", "arguments"), {"env": {"AWS_SECRET_ACCESS_KEY": SECRET}}),
    (("cluster", "arguments"), {"job_script_prologue": [f"export MY_TOKEN='{SECRET}'"]}),
    (("cluster", "arguments"), {"extra": [[{"a": f"--api-key {SECRET}"}]]}),
    (("model", "name"), f"https://user:{SECRET}@host/model"),
    (("explainers", 2, "head"), f"https://user:{SECRET}@host/head"),
    ((SECRET,), f"https://user:{SECRET}@host/unknown-key"),
]


@pytest.mark.parametrize(("at", "value"), CREDENTIALS)
def test_passwords_and_tokens_are_refused_and_not_repeated(
    tmp_path: Path, at: tuple[Any, ...], value: Any
) -> None:
    raw = replaced(WHOLE, at, value)
    if at != (SECRET,):  # which is the key itself
        told = check(Job, raw, tmp_path)
        assert f"{'.'.join(map(str, at[:1]))}" in told
        assert "leave it out and give" in told
    with pytest.raises(JobError) as refused:
        read_job(toml(raw, tmp_path / "job.toml"), Job)
    assert str(value) not in str(refused.value)
    with pytest.raises(ValidationError) as invalid:
        Job.model_validate(raw)
    assert f":{SECRET}@" not in str(invalid.value)  # Python shows it, as does Prefect


@pytest.mark.parametrize(
    "value",
    [
        {"queue": "gpu", "account": "me@lab", "job_extra_directives": ["--gres=gpu:1"]},
        {"job_script_prologue": ["export TOKEN=$TOKEN", "source ~/.profile"], "max_tokens": 5},
        {"token": "", "security": True, "key_name": "mine"},
    ],
)
def test_what_holds_no_secret_is_taken(tmp_path: Path, value: Any) -> None:
    assert check(Job, replaced(WHOLE, ("cluster", "arguments"), value), tmp_path).cluster.arguments == value


@pytest.mark.parametrize(
    "address", ["http://host:5000/mlflow", "sqlite:////tmp/a@b.db", "postgresql://user@host/db", "databricks"]
)
def test_addresses_without_passwords_are_taken(tmp_path: Path, address: str) -> None:
    assert check(Job, WHOLE | {"tracking": address}, tmp_path).tracking == address


def test_the_store_option_is_checked_like_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = toml(WHOLE, tmp_path / "job.toml")
    monkeypatch.chdir(tmp_path)
    for store, said in (
        ("", "store: is empty"),
        ("/", "root of all files"),
        (f"s3://K:{SECRET}@b/c", "store: holds a password"),
        ("ftp://host/x", "is a URL"),
    ):
        with pytest.raises(JobError, match=said) as refused:
            read_job(file, Job, store)
        assert SECRET not in str(refused.value)
    assert read_job(file, Job, "other/run").store == tmp_path / "other/run"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "name: Field required"),
        (b"name = " + b"9" * 6000, "not valid TOML: .*4300 digits"),
        (b"name = 0x" + b"f" * 6000, "name: is a number of 24000 bits"),
        (b"name = " + b"[" * 100_000, "nested too deeply"),
        (b"name." + b"a." * 5000 + b"a = 1", "name.a.*nested more than 20 deep"),
        (b"name = 1\nname = 2", "not valid TOML: Cannot overwrite"),
        (b"name = '\xff'", r"not text in UTF-8 \(byte 8\)"),
        ("name = 'x'".encode("utf-16"), "not text in UTF-8"),
        (b"name = 'x'\x00", "not valid TOML"),
        (b"name = 'x' # " + b"x" * LARGEST, "has more than 4,000,000 bytes"),
        (b"name = nan", "name: must be a finite number"),
        (b"name = 1979-05-27T07:32:00Z", "name: is a date"),
        (b"'\x1b[31m' = 1", "not valid TOML"),
        (b'"\\u001b[31m\\n" = 1', r"\\x1b\[31m\\n: unknown key"),
    ],
)
def test_a_file_that_is_no_job_is_refused_in_one_line(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "job.toml").write_bytes(text)
    with pytest.raises(JobError, match=said) as refused:
        read_job(tmp_path / "job.toml", Job)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 4001


def test_a_mark_of_the_byte_order_and_other_line_ends_are_read(tmp_path: Path) -> None:
    file = toml(WHOLE, tmp_path / "job.toml")
    known = read_job(file, Job)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert read_job(file, Job) == known


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is a pipe"),
        (Path("/dev/zero"), "is a device"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "a\0b", "null byte"),
    ):
        with pytest.raises(JobError, match=said):
            read_job(path, Job)


def test_every_number_of_the_package_has_an_upper_bound() -> None:
    """A job file cannot ask for 10**18 of anything: each number of each key has a largest value."""
    models: list[Any] = [Job, TrainJob]
    models += [
        registry.get(name).Parameters for registry in (explainers, metrics) for name in registry.names()
    ]
    models = [model for model in models if not model.__module__.startswith("test")]
    without = set()
    for model in models:
        schema = model.model_json_schema()
        for title, own in {model.__qualname__: schema, **schema.get("$defs", {})}.items():
            for key, value in own.get("properties", {}).items():
                for each in (value, *value.get("anyOf", []), value.get("items", {})):
                    numeric = (
                        each.get("type") in {"integer", "number"} and not {"enum", "const"} & each.keys()
                    )
                    if numeric and not {"maximum", "exclusiveMaximum"} & each.keys():
                        without.add(f"{title}.{key}")
    assert not without


@pytest.mark.parametrize("key", ["images", "forwards"])
def test_batches_that_do_not_fit_the_machine_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    raw = tiny_job(tmp_path / "run", batch={key: 10})
    input_bytes = 4 * 3 * 64 * 64  # of one of the demo's digits
    memory = SimpleNamespace(total=10 * input_bytes - 1)
    other = {"images", "forwards"} - {key}
    monkeypatch.setattr("flows.prepare.psutil.virtual_memory", lambda: memory)
    raw["batch"] |= dict.fromkeys(other, 1)
    with pytest.raises(JobError, match=rf"batch\.{key}: 10 inputs of 0\.0492 MB are more than"):
        prepared(raw)
    memory.total += 1
    assert prepared(raw).rows == 40


@pytest.mark.parametrize("folder", ["a?b", "p%41"])
def test_a_folder_in_which_mlflow_would_use_another_file_is_refused(tmp_path: Path, folder: str) -> None:
    raw = {key: value for key, value in WHOLE.items() if key != "tracking"}
    assert "store: MLflow cannot keep mlflow.db in " in check(Job, raw | {"store": f"{folder}/run"}, tmp_path)
    assert isinstance(check(Job, raw | {"store": f"runs/{folder}"}, tmp_path), Job)
    assert isinstance(check(Job, WHOLE | {"store": f"{folder}/run"}, tmp_path), Job)


@pytest.mark.parametrize(("flow", "kind", "raw"), [(explain, *JOBS[0]), (train_ptame, *JOBS[1])])
def test_prefect_logs_no_value_of_a_job_that_it_refuses(
    flow: Flow[Any, Any], kind: type, raw: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    bad = raw | {"tracking": f"http://user:{SECRET}@host"}
    with pytest.raises(ParameterTypeError, match="tracking: holds a password") as refused:
        flow.validate_parameters({"job": bad})
    assert SECRET not in str(refused.value)
    assert SECRET not in caplog.text
    found = flow.validate_parameters({"job": json.loads(json.dumps(raw))})["job"]
    assert isinstance(found, kind)  # a form gives lists for tuples, and texts for paths
