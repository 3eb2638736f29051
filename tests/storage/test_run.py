"""The run folder: created, continued, extended, or refused with what differs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from storage import maps
from storage.files import sha256_of_json
from storage.manifest import ExplainerEntry, Manifest, MetricEntry, RunMismatchError
from storage.run import Run

DDCAM = {
    "parameters": {"threshold": 0.5},
    "grid": (2, 3),
    "layer": "features",
    "details": {"mask": {"shape": (8,), "dtype": "bool"}},
}
SOBEL = {"parameters": {}, "grid": (6, 6)}
GINI = {"parameters": {}, "columns": {"gini": {"name": "gini", "low": 0, "high": 1, "better": "higher"}}}


def manifest(**changes: Any) -> Manifest:
    identity = {"seed": 0, "target": {"top": 2}, "model": {"name": "net", "crop": None}}
    known: dict[str, Any] = {
        "job": {
            "name": "net",
            "tolerance": 0,
            **identity,
            "batch": {"images": 16, "forwards": 64},
            "cluster": {"workers": 2},
        },
        "identity": identity,
        "versions": {"torch": "2.6"},
        "model_fingerprint": "a" * 64,
        "dataset_fingerprint": "b" * 64,
        "rows": 10,
        "shard_rows": 4,
        "targets_per_image": 2,
        "input_shape": (3, 6, 6),
        "activation_shape": (8, 2, 3),
        "geometry": {"resize": 8, "crop": 6, "interpolation": "bilinear"},
        "explainers": {"ddcam": DDCAM},
        "metrics": {"gini": GINI},
    }
    return Manifest(**{**known, **changes})


def test_a_new_run_has_run_json_and_its_arrays(tmp_path: Path) -> None:
    run = Run.create_or_open(tmp_path / "new" / "run", manifest())
    saved = json.loads((run.root / "run.json").read_text())
    assert saved["hash"] == run.hash == sha256_of_json(manifest().identity)
    assert saved["created"]
    assert saved["versions"] == {"torch": "2.6"}
    layout = {
        "inputs.zarr": ((10, 3, 6, 6), (4, 3, 6, 6), "uint8"),
        "activations.zarr": ((10, 8, 2, 3), (4, 8, 2, 3), "float32"),
        "saliency.zarr/ddcam/maps": ((20, 2, 3), (8, 2, 3), "float32"),
        "saliency.zarr/ddcam/status": ((20,), (8,), "int8"),
        "saliency.zarr/ddcam/details/mask": ((20, 8), (8, 8), "bool"),
    }
    for name, (shape, shards, dtype) in layout.items():
        array = maps.open_array(run.root / name)
        assert (array.shape, array.shards, array.dtype.name) == (shape, shards, dtype), name
    group = zarr.open_group(str(run.root / "saliency.zarr"), mode="r")
    assert dict(group["ddcam"].attrs) == {
        "parameters": {"threshold": 0.5},
        "grid": [2, 3],
        "layer": "features",
    }


def test_opening_gives_what_was_created(tmp_path: Path) -> None:
    created = Run.create_or_open(tmp_path / "run", manifest())
    run = Run.open(str(tmp_path / "run"))
    assert run == created
    assert run.explainers["ddcam"].parameters == {"threshold": 0.5}
    assert run.metrics["gini"].parameters == {}
    assert run.columns["gini"].better == "higher"
    assert (run.input_size, run.geometry["crop"], run.seed) == ((6, 6), 6, 0)
    assert (run.rows, run.shards, run.targets_per_image) == (10, 3, 2)
    assert (run.batch_images, run.batch_forwards) == (16, 64)
    assert [run.bounds(shard) for shard in range(3)] == [(0, 4), (4, 8), (8, 10)]
    assert [run.rows_of(shard) for shard in range(3)] == [(0, 8), (8, 16), (16, 20)]
    for shard in (-1, 3):
        with pytest.raises(IndexError):
            run.bounds(shard)


@given(rows=st.integers(1, 5000), shard_rows=st.integers(1, 600), targets=st.integers(1, 5))
def test_shards_cut_the_rows_into_whole_shards_and_one_short_one(
    rows: int, shard_rows: int, targets: int
) -> None:
    run = Run(Path("run"), manifest(rows=rows, shard_rows=shard_rows, targets_per_image=targets))
    bounds = [run.bounds(shard) for shard in range(run.shards)]
    assert [row for start, stop in bounds for row in range(start, stop)] == list(range(rows))
    assert all(start % shard_rows == 0 for start, _ in bounds)
    assert all(stop - start == shard_rows for start, stop in bounds[:-1])
    assert [run.rows_of(shard) for shard in range(run.shards)] == [
        (a * targets, b * targets) for a, b in bounds
    ]


def test_the_same_job_continues_and_changes_nothing(tmp_path: Path) -> None:
    run = Run.create_or_open(tmp_path, manifest())
    maps.write_shard(run.inputs, 0, np.ones((4, 3, 6, 6), np.uint8))
    before = (tmp_path / "run.json").read_bytes()
    again = Run.create_or_open(tmp_path, manifest())
    assert again.manifest == run.manifest
    assert (tmp_path / "run.json").read_bytes() == before
    assert maps.read(run.inputs, 0, 4).min() == 1


def test_where_and_how_it_is_computed_does_not_make_another_run(tmp_path: Path) -> None:
    Run.create_or_open(tmp_path, manifest())
    job = manifest().job | {"cluster": {"workers": 8}}
    run = Run.create_or_open(tmp_path, manifest(job=job, shard_rows=5, versions={"torch": "2.7"}))
    assert run.job["cluster"] == {"workers": 8}
    assert run.manifest.shard_rows == 4
    assert run.manifest.versions == {"torch": "2.6"}
    assert [update["versions"] for update in run.manifest.updates] == [{"torch": "2.7"}]


def test_more_explainers_and_metrics_extend_the_run(tmp_path: Path) -> None:
    old = Run.create_or_open(tmp_path, manifest())
    maps.write_shard(old.saliency("ddcam") / "maps", 0, np.ones((8, 2, 3), np.float32))
    bigger = manifest(
        explainers={"sobel": SOBEL, "ddcam": DDCAM},
        metrics={"gini": GINI, "drop": {"parameters": {"fractions": (1.0, 0.5)}, "columns": {}}},
    )
    run = Run.create_or_open(tmp_path, bigger)
    assert list(run.explainers) == ["sobel", "ddcam"]
    assert run.metrics["drop"].parameters == {"fractions": [1.0, 0.5]}
    assert maps.open_array(run.saliency("sobel") / "maps").shape == (20, 6, 6)
    assert maps.read(run.saliency("ddcam") / "maps", 0, 8).min() == 1
    assert run.hash == old.hash
    (update,) = run.manifest.updates
    assert (update["explainers"], update["metrics"]) == (["sobel"], ["drop"])
    assert Run.create_or_open(tmp_path, bigger).manifest == run.manifest


def test_activations_may_come_later_and_are_made_again_when_dropped(tmp_path: Path) -> None:
    run = Run.create_or_open(tmp_path, manifest(activation_shape=None))
    assert not run.activations.exists()
    assert Run.create_or_open(tmp_path, manifest()).activations.exists()
    assert Run.create_or_open(tmp_path, manifest(activation_shape=None)).manifest.activation_shape == (
        8,
        2,
        3,
    )
    with pytest.raises(RunMismatchError, match=r"activation_shape was \[8, 2, 3\] and is \[9, 2, 3\]"):
        Run.create_or_open(tmp_path, manifest(activation_shape=(9, 2, 3)))


def test_a_job_without_a_layer_fits_any_run_and_a_run_without_a_layer_takes_one_once(tmp_path: Path) -> None:
    def wanted(layer: str | None, **changes: Any) -> Manifest:
        return manifest(identity=manifest().identity | {"layer": layer}, **changes)

    free, cam = {"sobel": SOBEL}, {"cam": DDCAM | {"layer": "late"}}
    first = Run.create_or_open(tmp_path / "free", wanted(None, explainers=free))
    assert first.layer is None
    extended = Run.create_or_open(tmp_path / "free", wanted("late", explainers=free | cam))
    assert (extended.layer, extended.hash) == ("late", first.hash)
    assert Run.open(tmp_path / "free").layer == "late"
    early = {"other": DDCAM | {"layer": "early"}}
    with pytest.raises(RunMismatchError, match='layer was "late" and is "early"'):
        Run.create_or_open(tmp_path / "free", wanted("early", explainers=free | cam | early))
    # Earlier versions recorded a layer even if no explainer used it.
    Run.create_or_open(tmp_path / "old", wanted("late", explainers=free))
    assert Run.create_or_open(tmp_path / "old", wanted(None, explainers=free)).layer == "late"


IDENTITY = manifest().identity


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"identity": IDENTITY | {"seed": 1}}, "seed was 0 and is 1"),
        ({"identity": IDENTITY | {"target": "label"}}, 'target was absent and is "label"'),
        (
            {"identity": IDENTITY | {"model": {"name": "other", "crop": 5}}},
            'model.name was "net" and is "other"',
        ),
        ({"identity": IDENTITY | {"model": {"name": "other", "crop": 5}}}, "model.crop was none and is 5"),
        ({"model_fingerprint": "c" * 64}, f'model_fingerprint was "{"a" * 56}... and is "{"c" * 56}...'),
        ({"dataset_fingerprint": "c" * 64, "rows": 11}, "rows was 10 and is 11"),
        ({"geometry": {"resize": 9, "crop": 6}}, "geometry.resize was 8 and is 9"),
        ({"map_dtype": "float16"}, 'map_dtype was "float32" and is "float16"'),
        ({"targets_per_image": 1}, "targets_per_image was 2 and is 1"),
        ({"explainers": {"sobel": SOBEL}}, "explainers.ddcam is no longer there"),
        ({"metrics": {}}, "metrics.gini is no longer there"),
        (
            {"explainers": {"ddcam": DDCAM | {"parameters": {"threshold": 0.6}}, "sobel": SOBEL}},
            "explainers.ddcam.parameters.threshold was 0.5 and is 0.6",
        ),
        (
            {"explainers": {"ddcam": DDCAM | {"layer": None}}},
            'explainers.ddcam.layer was "features" and is none',
        ),
        (
            {"metrics": {"gini": GINI | {"parameters": {"bins": 3}}}},
            "metrics.gini.parameters.bins was absent and is 3",
        ),
    ],
)
def test_another_job_is_refused_with_the_fields_that_differ(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    Run.create_or_open(tmp_path, manifest())
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(RunMismatchError) as refusal:
        Run.create_or_open(tmp_path, manifest(**changes))
    assert told in str(refusal.value)
    assert "Choose another store" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_key_that_came_later_and_is_not_used_changes_nothing(tmp_path: Path) -> None:
    first = Run.create_or_open(tmp_path / "run", manifest())
    newer = manifest(identity=first.manifest.identity | {"templates": None})
    assert Run.create_or_open(tmp_path / "run", newer).manifest.identity == first.manifest.identity


def test_only_the_first_differences_are_spelled_out(tmp_path: Path) -> None:
    Run.create_or_open(tmp_path, manifest(identity={f"field{i}": 0 for i in range(12)}))
    with pytest.raises(RunMismatchError, match="field7 was 0 and is 1 and 4 more"):
        Run.create_or_open(tmp_path, manifest(identity={f"field{i}": 1 for i in range(12)}))


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("!")
    with pytest.raises(RunMismatchError, match=r"no run\.json \(it holds thesis\.tex\)"):
        Run.create_or_open(tmp_path, manifest())
    with pytest.raises(RunMismatchError, match="is a file"):
        Run.create_or_open(tmp_path / "thesis.tex", manifest())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_start_that_was_killed_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "run.json.12ab.partial").write_text("{")
    run = Run.create_or_open(tmp_path, manifest())
    for path in run.saliency("ddcam").rglob("zarr.json"):
        path.unlink()
    Run.create_or_open(tmp_path, manifest())
    assert maps.open_array(run.saliency("ddcam") / "maps").shape == (20, 2, 3)


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "cannot be read"), ("", "cannot be read"), ("[]", "not a run"), ('{"rows": 0}', "job: Field")],
)
def test_an_unreadable_run_json_is_refused_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "run.json").write_text(text)
    for attempt in (lambda: Run.open(tmp_path), lambda: Run.create_or_open(tmp_path, manifest())):
        with pytest.raises(ValueError, match=told) as refusal:
            attempt()
        assert "\n" not in str(refusal.value)
    assert (tmp_path / "run.json").read_text() == text


def test_a_folder_that_is_no_run_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it has no run\.json"):
        Run.open(tmp_path)


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "a=b", "a b"])
def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a folder"):
        Run.create_or_open(tmp_path / "run", manifest(explainers={name: SOBEL}))
    assert not (tmp_path / "run").exists()


def test_entries_refuse_unknown_keys() -> None:
    for entry in (ExplainerEntry, MetricEntry):
        with pytest.raises(ValueError, match="unknown"):
            entry(parameters={}, grid=(1, 1), unknown=1)
