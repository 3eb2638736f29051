"""Coordinates beside the maps: xarray reads a run alone, without a warning; earlier runs get them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from zarr.storage import MemoryStore

import floodlit
from runs import completed, prepared, tiny_job
from storage import maps
from storage.coordinates import NOTHING, coordinates_of
from storage.files import sha256_of_json, write_json
from storage.layout import COORDINATES, Layout
from storage.metadata import earlier, expected
from storage.records import ARRAYS, SUMMARY, finished, write_record
from storage.run import Run
from storage.verify import repair, verify


def job(root: Path) -> dict[str, Any]:
    chosen = {"explainers": [{"name": "ddcam"}, {"name": "gradcam"}], "controls": False}
    dataset, metrics = {"kind": "digits", "limit": 10}, [{"name": "sparseness"}]
    return tiny_job(root, dataset=dataset, metrics=metrics, batch={"shard": 4}, **chosen)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = completed(job(tmp_path_factory.mktemp("coordinates") / "run"))
    shutil.copytree(run.root, run.root.with_name("kept"))
    return run


@pytest.fixture
def run(whole: Run) -> Iterator[Run]:
    """The run, which is put back as it was."""
    yield whole
    shutil.rmtree(whole.root)
    shutil.copytree(whole.root.with_name("kept"), whole.root)


@pytest.fixture
def strict() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_xarray_reads_a_run_alone_and_without_a_warning(run: Run, strict: None) -> None:
    for name in run.explainers:
        with xarray.open_zarr(run.saliency(name)) as found:
            assert set(found.coords) == set(COORDINATES)
            assert set(found.data_vars) == {"maps", "status"}
            xarray.testing.assert_equal(found.maps.load(), floodlit.open(run.root).maps(name))
            one = found.maps.sel(sample_id="test/000007")
            np.testing.assert_array_equal(one, maps.read(run.saliency(name) / "maps", 7, 8)[0])
    with xarray.open_datatree(run.root / "saliency.zarr", engine="zarr", consolidated=False) as tree:
        details = tree["ddcam/details"].to_dataset()
        assert details.unit_mask.dims == ("sample_id", "unit_mask_0")
        assert details.sample_id.values.tolist() == [f"test/{row:06d}" for row in range(10)]


def test_every_array_names_its_axes(run: Run) -> None:
    names = {
        path: zarr.open_array(str(run.root / path)).metadata.dimension_names for path in run.layout.arrays
    }
    del names["activations.zarr"]
    assert names.pop("inputs.zarr") == ("sample_id", "channel", "y", "x")
    assert names.pop("masks.zarr", None) in {None, ("sample_id", "y", "x")}
    assert names.pop("saliency.zarr/gradcam/maps") == ("sample_id", "y", "x")
    assert names.pop("saliency.zarr/gradcam/status") == ("sample_id",)
    assert all(each[0] == "sample_id" and len(set(each)) == len(each) for each in names.values())


@pytest.mark.parametrize(
    ("key", "shape", "grid", "modality", "names"),
    [
        ("components", (4, 7, 7), (7, 7), "image", ("components_0", "y", "x")),
        ("maps", (7, 7), (7, 7), "image", ("y", "x")),
        ("status", (), (7, 7), "image", ()),
        ("order", (49,), (7, 7), "image", ("order_0",)),
        ("maps", (12,), (12,), "text", ("token",)),
        ("maps", (12,), (12,), "tensor", ("position",)),
        ("weights", (3, 12), (12,), "tensor", ("weights_0", "position")),
        ("odd", (5, 5), (5,), "image", ("odd_0", "odd_1")),
    ],
)
def test_axes_of_details_are_those_of_the_grid_where_they_end_with_it(
    run: Run, key: str, shape: tuple[int, ...], grid: tuple[int, ...], modality: Any, names: tuple[str, ...]
) -> None:
    layout = Layout(run.manifest.model_copy(update={"modality": modality}))
    assert layout._axes(key, shape, grid) == names


def test_each_map_has_its_own_target_and_missing_classes_are_nothing(run: Run) -> None:
    layout = Layout(run.manifest.model_copy(update={"targets_per_image": 3}))
    samples = [
        {"sample_id": "añ😀", "targets": [4, 2], "label": None, "prediction": 4},
        {"sample_id": "b", "targets": [], "label": 5, "prediction": None},
    ]
    found = {name: values.tolist() for name, values in coordinates_of(samples, layout).items()}
    assert found == {
        "sample_id": ["añ😀"] * 3 + ["b"] * 3,
        "target": [4, 2, NOTHING, NOTHING, NOTHING, NOTHING],
        "label": [NOTHING] * 3 + [5] * 3,
        "prediction": [4] * 3 + [NOTHING] * 3,
    }


def test_the_metadata_that_a_group_repeats_is_what_zarr_would_repeat() -> None:
    plain = maps.array_metadata(4, (2,), "float32", 2, ("sample_id", "x"), {"a": "b"})
    inner = maps.group_metadata({}, {"c": plain})
    found = maps.group_metadata({"k": [1]}, {"maps": plain, "details": inner, "details/c": plain})
    held: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(held), attributes={"k": [1]})
    details = group.create_group("details")
    for place in (group, details):
        place.create_array(
            "maps" if place is group else "c",
            shape=(4, 2),
            chunks=(2, 2),
            shards=(2, 2),
            dtype="float32",
            compressors=maps.CODEC,
            fill_value=np.nan,
            attributes={"a": "b"},
            dimension_names=("sample_id", "x"),
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(MemoryStore(held))
    assert json.loads(found) == json.loads(held["zarr.json"].to_bytes())


def as_earlier(run: Run) -> None:
    """Make a run what an earlier version would have left: without names of axes and coordinates."""
    before = earlier(run.layout)
    for path in expected(run.layout):
        if path not in before:
            shutil.rmtree((run.root / path).parent)
        elif (run.root / path).exists():
            (run.root / path).write_bytes(before[path])
    told = json.loads((run.root / SUMMARY.path).read_bytes())
    del told["checksum"]
    told["files"] = [file for file in told["files"] if not file["path"].endswith("/c/0")]
    write_json(run.root / SUMMARY.path, told | {"checksum": sha256_of_json(told)})
    files = [Path(path) for path in before if (run.root / path).exists()]
    write_record(run.root, ARRAYS, rows=run.rows, statuses={}, files=files, seconds=0.0, worker="")


def test_an_earlier_run_is_whole_opens_and_gets_them_without_repeating_a_step(run: Run) -> None:
    wanted = floodlit.open(run.root).maps("ddcam").load()
    as_earlier(run)
    assert verify(run.root) == []
    assert not (run.saliency("ddcam") / "label").exists()
    xarray.testing.assert_identical(floodlit.open(run.root).maps("ddcam").load(), wanted)
    steps = finished(run.root)
    prepared(job(run.root))
    assert finished(run.root) == steps
    completed(job(run.root))
    assert verify(run.root) == []
    with xarray.open_zarr(run.saliency("ddcam")) as found:
        xarray.testing.assert_equal(found.maps.load(), wanted)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"x" * path.stat().st_size)])
def test_a_damaged_coordinate_is_named_and_written_again(run: Run, damage: Any) -> None:
    file = run.root / "saliency.zarr/gradcam/label/c/0"
    good = file.read_bytes()
    damage(file)
    (problem,) = verify(run.root)
    assert problem.path.as_posix() == "saliency.zarr/gradcam/label/c/0"
    assert repair(run.root, [problem]) == {SUMMARY}
    completed(job(run.root))
    assert file.read_bytes() == good
    assert verify(run.root) == []
