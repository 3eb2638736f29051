"""A job that cannot run is refused in one line that names the key and the choices."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from flows.job import Job, JobError
from flows.job_file import read_job
from runs import tiny_job

JOB = """
name = "tiny"
store = "runs/tiny"
[dataset]
kind = "digits"
limit = 8
[model]
source = "nets.py:gap"
weights = "weights/gap.safetensors"
[[explainers]]
name = "gradcam"
[[metrics]]
name = "insertion"
"""


def job(tmp_path: Path, text: str = JOB) -> Job:
    file = tmp_path / "job.toml"
    file.write_text(text)
    return read_job(file, Job)


def test_relative_paths_start_at_the_job_file(tmp_path: Path) -> None:
    read = job(tmp_path)
    assert read.store == tmp_path / "runs/tiny"
    assert read.model.source == f"{tmp_path}/nets.py:gap"
    assert read.model.weights == str(tmp_path / "weights/gap.safetensors")


def test_store_option_replaces_the_jobs_own(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(JOB)
    assert read_job(file, Job, tmp_path / "elsewhere").store == tmp_path / "elsewhere"


def test_names_of_published_weights_are_no_paths(tmp_path: Path) -> None:
    text = JOB.replace("weights/gap.safetensors", "IMAGENET1K_V2").replace("nets.py:gap", "torchvision")
    assert (
        job(tmp_path, text.replace("[[expl", 'name = "resnet50"\n[[expl', 1)).model.weights == "IMAGENET1K_V2"
    )


def test_classes_and_templates_come_through_the_job_file_and_the_record_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    keys = 'name = "clip"\nclasses = ["cat", "a dog"]\ntemplates = ["a {}.", "{}"]\n'
    model = f'source = "huggingface"\nweights = "pretrained"\n{keys}'
    before, after = JOB.index('source = "nets'), JOB.index("[[expl")
    read = job(tmp_path, JOB[:before] + model + JOB[after:])
    assert (read.model.classes, read.model.templates) == (("cat", "a dog"), ("a {}.", "{}"))
    assert read.model.name == str(tmp_path / "clip")
    again = Job.model_validate(json.loads(read.model_dump_json()))
    assert again.model == read.model
    assert hash(again.model) == hash(read.model)  # workers keep the classifier under it
    assert again.identity() == read.identity()
    changed = job(tmp_path, (JOB[:before] + model + JOB[after:]).replace('"cat", "a dog"', '"a dog", "cat"'))
    assert changed.identity() != read.identity()


def test_controls_are_added_unless_switched_off(tmp_path: Path) -> None:
    assert list(job(tmp_path).explainer_parameters()) == [
        "gradcam",
        "random",
        "center_gaussian",
        "sobel",
        "all_ones",
    ]
    assert list(job(tmp_path, "controls = false\n" + JOB).explainer_parameters()) == ["gradcam"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"gradcam"', '"gradcamm"', r"explainers: unknown explainer 'gradcamm'; close are .*gradcam"),
        ('"insertion"', '"inserton"', r"metrics: unknown metric 'inserton'; close are .*insertion"),
        (
            "limit = 8",
            "limt = 8",
            r'dataset: kind = "digits" does not take the key limt; it takes split, seed, limit,',
        ),
        ('name = "tiny"', 'nmae = "tiny"', r"name: Field required; nmae: unknown key"),
        (
            '"insertion"',
            '"insertion"\nstepz = 3',
            r"insertion has no parameter 'stepz'; close are steps",
        ),
        ('"insertion"', '"insertion"\nsteps = 0', r"metric insertion: steps: .*greater"),
        ('"insertion"', '"insertion"\n[[metrics]]\nname = "insertion"', r"metric insertion is named twice"),
        ('store = "runs/tiny"', 'store = "runs/tiny"\ntarget = "best"', r"target"),
        ('store = "runs/tiny"', 'store = "runs/tiny"\n[cluster]\nkind = "address"', r"address"),
        ('name = "tiny"', "name = ", r"not valid TOML"),
    ],
)
def test_refusals_name_the_key_in_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(JobError, match=said) as refused:
        job(tmp_path, JOB.replace(old, new, 1))
    assert "\n" not in str(refused.value)


def test_a_missing_job_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"cannot read the job file .*none\.toml: No such file"):
        read_job(tmp_path / "none.toml", Job)


def test_how_and_where_it_runs_is_no_part_of_what_it_is(tmp_path: Path) -> None:
    text = JOB + "[cluster]\nworkers = 3\n[batch]\nimages = 2\nshard = 16\n"
    assert job(tmp_path, text).identity() == job(tmp_path).identity()
    assert job(tmp_path, JOB.replace("limit = 8", "limit = 9")).identity() != job(tmp_path).identity()


def test_form_of_the_job_has_words_and_defaults() -> None:
    schema = Job.model_json_schema()
    assert schema["properties"]["target"]["default"] == "predicted"
    assert set(schema["required"]) == {"name", "store", "dataset", "model", "explainers", "metrics"}


def test_how_it_computes_is_part_of_what_a_run_is(tmp_path: Path) -> None:
    plain = job(tmp_path).identity()
    assert set(plain) == {"name", "target", "seed", "dataset", "model", "compute"}
    assert job(tmp_path, JOB + '[compute]\nprecision = "float32"\ntf32 = false\n').identity() == plain
    low = job(tmp_path, JOB + '[compute]\nprecision = "bfloat16"\ntf32 = false\n').identity()
    assert low == plain | {"compute": plain["compute"] | {"precision": "bfloat16"}}


@pytest.mark.parametrize("key", ['precision = "int8"', "tf32 = 3", "cudnn = true"])
def test_an_unknown_way_to_compute_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(JobError, match=rf"compute\.{key.split(maxsplit=1)[0]}: ") as told:
        job(tmp_path, f"{JOB}[compute]\n{key}\n")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("store", "tracking", "told"),
    [
        ("s3://bucket", "http://host", "a bucket alone is not enough; give s3://bucket/prefix"),
        ("s3://bucket/run", None, "needs the address of MLflow"),
        ("s3://bucket/run", "postgresql://user@host/mlflow", "needs the address of MLflow"),
    ],
)
def test_a_store_on_s3_needs_a_prefix_and_a_place_to_track(
    store: str, tracking: str | None, told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        Job.model_validate(tiny_job(store, tracking=tracking))
    kept = Job.model_validate(tiny_job("s3://bucket/run", tracking="http://host"))
    assert kept.model_dump(mode="json")["store"] == "s3://bucket/run"
