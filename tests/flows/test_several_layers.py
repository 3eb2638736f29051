"""Jobs that name several layers: their runs hold the mean of the layers' maps, and say which layers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from flows.cli import app
from flows.explain import explain
from flows.job import Job, JobError
from flows.resume import remaining
from runs import completed, explained, model, prepared, scores_of, tiny_job, toml
from storage.maps import read
from storage.records import Step, read_record
from storage.run import Run
from storage.verify import verify
from tasks.activations import activations
from tasks.run_parts import classifier_of

LAYERS = ["features.5", "features"]  # 16x16 and 8x8 cells


def job(store: Path, *names: str, layer: Any = LAYERS, **changes: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        "dataset": {"kind": "digits", "limit": 24},
        "model": model("gap") | {"layer": layer},
        "explainers": [{"name": name} for name in names],
        "controls": False,
        "metrics": [{"name": "pointing_game"}],
    }
    return tiny_job(store, **chosen | changes)


def maps_of(run: Run, name: str) -> torch.Tensor:
    return torch.from_numpy(read(run.saliency(name) / "maps", 0, run.rows))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """One run of Grad-CAM and LayerCAM at each of the two layers."""
    folder = tmp_path_factory.mktemp("alone")
    jobs = [job(folder / layer, "gradcam", "layercam", layer=layer) for layer in LAYERS]
    return [explained(prepared(one)) for one in jobs]


def mean_of(runs: list[Run], name: str) -> torch.Tensor:
    maps = [maps_of(run, name) for run in runs]
    scaled = [each / each.abs().amax((1, 2), keepdim=True) for each in maps]
    fine = F.interpolate(scaled[1][:, None], scaled[0].shape[1:], mode="bilinear")[:, 0]
    return (scaled[0] + fine) / 2


@pytest.mark.service
@pytest.mark.usefixtures("server")
def test_a_whole_job_gives_the_mean_of_the_maps_that_runs_of_each_layer_have(
    tmp_path: Path, alone: list[Run]
) -> None:
    raw = job(tmp_path / "run", "gradcam", cluster={"kind": "local", "workers": 1})
    explain(Job.model_validate(raw))
    run = Run.open(tmp_path / "run")
    torch.testing.assert_close(maps_of(run, "gradcam"), mean_of(alone, "gradcam"), rtol=1e-4, atol=1e-5)
    assert len(scores_of(run.root)) == 24 * 2
    assert not verify(run.root)
    assert not run.activations.exists()
    # They are computed again for an explainer that is added.
    added = completed(job(tmp_path / "run", "gradcam", "layercam"))
    torch.testing.assert_close(maps_of(added, "layercam"), mean_of(alone, "layercam"), rtol=1e-4, atol=1e-5)
    assert remaining(added) == {}


def test_run_json_holds_the_layers_in_order_and_what_each_of_them_was_asked(tmp_path: Path) -> None:
    run = prepared(job(tmp_path / "run", "gradcam", "rise"))
    told = json.loads((run.root / "run.json").read_text())
    assert told["identity"]["layer"] == told["explainers"]["gradcam"]["layer"] == LAYERS
    assert told["explainers"]["rise"]["layer"] is None
    assert told["explainers"]["gradcam"]["grid"] == [16, 16]
    assert told["activation_shape"] == [32 * 16 * 16 + 64 * 8 * 8]
    assert run.layer == Run.open(run.root).layer == tuple(LAYERS)
    assert all(told["probes"][name].startswith("features.5: ") for name in ("head", "cells", "patch"))
    assert all("; features: " in told["probes"][name] for name in ("head", "cells", "patch"))
    classifier = classifier_of(run)
    assert getattr(classifier, "layers") == tuple(LAYERS)  # noqa: B009  a black box need not have them


def test_shards_of_cached_activations_hold_each_layers_in_turn(tmp_path: Path) -> None:
    from tasks.inputs import inputs

    run = prepared(job(tmp_path / "run", "gradcam"))
    inputs.fn(str(run.root), 0)
    activations.fn(str(run.root), 0, keep=True)
    stored = torch.from_numpy(read(run.activations, 0, 3))
    classifier = classifier_of(run)
    pixels = classifier.inputs_of(torch.from_numpy(read(run.inputs, 0, 3)))
    with torch.no_grad():
        modules = dict(classifier.network.named_modules())  # type: ignore[attr-defined]
        first = modules["features"][:6](classifier.normalised(pixels))  # type: ignore[attr-defined]
        second = modules["features"][6:](first)
    torch.testing.assert_close(stored, torch.cat([first.flatten(1), second.flatten(1)], 1))


def test_the_order_and_the_number_of_layers_make_another_run_and_a_list_of_one_the_same(
    tmp_path: Path,
) -> None:
    run = prepared(job(tmp_path / "run", "gradcam"))
    told = r"model\.layer was \[\"features\.5\", \"features\"\] and is"
    for other in (LAYERS[::-1], LAYERS[0], LAYERS[1:], None):
        with pytest.raises(JobError, match=told):
            prepared(job(tmp_path / "run", "gradcam", layer=other))
    assert prepared(job(tmp_path / "run", "gradcam")).manifest == run.manifest
    one = prepared(job(tmp_path / "one", "gradcam", layer="features"))
    assert prepared(job(tmp_path / "one", "gradcam", layer=["features"])).hash == one.hash
    assert one.manifest.identity["model"]["layer"] == "features"


def test_a_run_whose_first_job_read_no_layer_learns_the_layers(tmp_path: Path, alone: list[Run]) -> None:
    assert completed(job(tmp_path / "run", "all_ones")).layer is None
    run = completed(job(tmp_path / "run", "all_ones", "gradcam"))
    assert run.layer == tuple(LAYERS)
    torch.testing.assert_close(maps_of(run, "gradcam"), mean_of(alone, "gradcam"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layer", "told"),
    [
        (
            "ddcam",
            LAYERS,
            r"^explainers: ddcam: it describes one layer .* model\.layer names 2",
        ),
        (
            "decomcam",
            LAYERS,
            r"^explainers: decomcam: it describes one layer .* model\.layer names 2",
        ),
        ("cam", LAYERS, r"^explainers: cam needs a head .* behind 'features\.5' is not"),
        ("gradcam", ["features", "head.0"], r"^model\.layer: the grid of 'head\.0' has one cell"),
        ("rise", ["features", "feature"], r"^model\.layer: the network has no layer 'feature'; close are"),
    ],
)
def test_what_has_no_mean_over_the_layers_is_refused_before_any_work(
    tmp_path: Path, name: str, layer: list[str], told: str
) -> None:
    with pytest.raises(JobError, match=told) as refused:
        prepared(job(tmp_path / "run", name, layer=layer))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_floodlit_layers_marks_each_layer_of_the_job(tmp_path: Path) -> None:
    path = toml(job(tmp_path / "run", "gradcam"), tmp_path / "job.toml")
    result = CliRunner().invoke(app, ["layers", str(path)])
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.split("│")] for line in result.output.splitlines() if "│" in line]
    assert {row[2] for row in rows if row[1] == "*"} == set(LAYERS)


def test_lower_precision_is_compared_with_float32_at_all_layers(tmp_path: Path) -> None:
    raw = job(tmp_path / "run", "gradcam", compute={"precision": "bfloat16"})
    run = explained(prepared(raw))
    record = read_record(run.root, Step("saliency", 0, "gradcam"))
    assert record is not None
    assert record.facts.agreement is not None
    assert 0.9 < (record.facts.agreement.rank_correlation or 0) < 1
