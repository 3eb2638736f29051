"""The demo's own jobs by the command, of fewer images: what `make demo` promises."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.job import Job
from flows.job_file import read_job
from places import ROOT
from runs import maps_of, toml
from storage.verify import verify

pytestmark = pytest.mark.service


def means_of(job: str, store: Path, samples: int) -> dict[tuple[str, str], float]:
    """Mean by explainer and metric, after the command has done the job and said where to look."""
    raw = read_job(ROOT / "examples" / job, Job).model_dump(mode="json", exclude_unset=True)
    raw["dataset"]["limit"] = samples
    file = toml(raw, store.with_suffix(".toml"))
    command = [sys.executable, "-m", "flows.cli", "run", str(file), "--store", str(store)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for shown in ("best control", "beats every control", "server start", "mlflow ui"):
        assert done.stdout.count(shown) == 1
    assert done.stdout.endswith(f"  {store}/report/index.html\n")
    assert done.stderr == ""
    rows = pq.read_table(store / "summary.parquet").to_pylist()
    assert {row["n"] + row["excluded"] for row in rows} == {samples}
    assert (store / "report" / "contact_sheet.png").stat().st_size > 50_000
    assert not verify(store)
    return {(row["explainer"], row["metric"]): row["mean"] for row in rows}


def test_the_demo_explains_images_better_than_every_control(server: str, tmp_path: Path) -> None:
    store = tmp_path / "demo"
    mean = means_of("demo.toml", store, 100)
    controls = ("random", "center_gaussian", "sobel", "all_ones")
    for metric in ("insertion", "pointing_game", "energy_pointing_game"):
        for explainer in ("ddcam", "decomcam", "gradcam"):
            assert mean[explainer, metric] > max(mean[control, metric] for control in controls)
    for control in controls:
        assert mean["ptame", "average_drop_15"] < mean[control, "average_drop_15"] - 0.3
        assert mean["ptame", "increase_in_confidence_15"] > mean[control, "increase_in_confidence_15"] + 0.2
        assert mean["ptame", "pointing_game"] > mean[control, "pointing_game"] + 0.2
        assert mean["ptame", "energy_pointing_game"] > mean[control, "energy_pointing_game"] + 0.1
    assert maps_of(store)["ddcam/details/certificate"].all()


@pytest.mark.long
def test_the_demo_explains_texts_better_than_every_control(server: str, tmp_path: Path) -> None:
    mean = means_of("reviews.toml", tmp_path / "reviews", 50)
    for explainer in ("pami", "erasure"):
        for control in ("random", "all_ones"):
            assert mean[explainer, "insertion"] > mean[control, "insertion"] + 0.2
            assert mean[explainer, "deletion"] < mean[control, "deletion"] - 0.1
            assert mean[explainer, "average_drop_50"] < mean[control, "average_drop_50"] - 0.2
