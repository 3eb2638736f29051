"""``floodlit.open``: maps with their coordinates, tables, SQL, and a picture of one sample."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from PIL import Image

import floodlit
from runs import completed, tiny_job
from storage.files import UnreadableError
from storage.maps import DamagedShardError, read
from storage.records import Step
from storage.run import Run
from storage.samples import read_samples

COUNT = 9


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A complete run in shards of four images, of which one cannot be read."""
    folder = tmp_path_factory.mktemp("opened")
    lines = ["file,label"]
    for index in range(COUNT):
        pixels = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(index)).mul(255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{index}.png")
        lines.append(f"{index}.png,{index % 8}")
    (folder / "2.png").write_bytes(b"no image")
    (folder / "listing.csv").write_text("\n".join(lines))
    return completed(
        tiny_job(
            folder / "run",
            dataset={"kind": "csv", "path": str(folder / "listing.csv")},
            target={"top": 2},
            explainers=[{"name": "gradcam"}, {"name": "occlusion", "window": 32, "stride": 16}],
            metrics=[{"name": "sparseness"}],
            controls=False,
            batch={"shard": 4},
        )
    )


def stored(run: Run, explainer: str = "gradcam") -> np.ndarray:
    return read(run.saliency(explainer) / "maps", 0, run.rows * run.targets_per_image)


def test_maps_are_those_of_the_store_with_the_facts_of_each(finished: Run) -> None:
    maps = floodlit.open(finished.root).maps("gradcam")
    assert maps.dims == ("sample_id", "y", "x")
    assert maps.attrs == {"explainer": "gradcam"}
    np.testing.assert_array_equal(maps.values, stored(finished))
    samples = [sample for sample in read_samples(finished.root) for _ in range(2)]
    assert maps.sample_id.values.tolist() == [sample["sample_id"] for sample in samples]
    for name in ("label", "prediction"):
        wanted = [np.nan if sample[name] is None else sample[name] for sample in samples]
        np.testing.assert_array_equal(maps[name].values, wanted)
    targets = [
        sample["targets"][place % 2] if sample["targets"] else np.nan for place, sample in enumerate(samples)
    ]
    np.testing.assert_array_equal(maps.target.values, targets)
    assert np.isnan(maps.prediction.values).nonzero()[0].tolist() == [4, 5]


@pytest.mark.parametrize(
    "part",
    [
        np.s_[3],
        np.s_[-1, 2],
        np.s_[5:11],
        np.s_[::-1],
        np.s_[15:2:-4, ::2, 3],
        np.s_[[11, 0, 0, 7]],
        np.s_[2:2],
        np.s_[:, [1, 6], :],
        np.s_[np.array([1, 5]), 1:3, np.array([7, 0])],
    ],
)
def test_any_part_is_that_of_the_whole(finished: Run, part: Any) -> None:
    whole = xarray.DataArray(stored(finished), dims=("sample_id", "y", "x"))
    np.testing.assert_array_equal(
        floodlit.open(finished.root).maps("gradcam")[part].values, whole[part].values
    )


def test_only_the_shards_that_are_asked_for_are_read(finished: Run, tmp_path: Path) -> None:
    """The others may be damaged or missing; asking for them is an error, and not NaN."""
    shutil.copytree(finished.root, tmp_path / "run")
    (tmp_path / "run/saliency.zarr/gradcam/maps/c/1/0/0").unlink()
    maps = floodlit.open(tmp_path / "run").maps("gradcam")
    np.testing.assert_array_equal(maps[:8].values, stored(finished)[:8])
    np.testing.assert_array_equal(maps[-1].values, stored(finished)[-1])
    with pytest.raises(DamagedShardError, match="c/1/0/0 is missing"):
        _ = maps[7:9].values


def test_a_run_without_its_tables_has_the_same_coordinates(finished: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.root, tmp_path / "run")
    (tmp_path / "run/samples.parquet").unlink()
    xarray.testing.assert_identical(
        floodlit.open(tmp_path / "run").maps("gradcam"), floodlit.open(finished.root).maps("gradcam")
    )


def test_a_run_whose_samples_are_not_all_known_is_refused(finished: Run, tmp_path: Path) -> None:
    """The ids of the others would be empty."""
    shutil.copytree(finished.root, tmp_path / "run")
    (tmp_path / "run/samples.parquet").unlink()
    (tmp_path / "run" / Step("activations", 1).path).unlink()
    with pytest.raises(UnreadableError, match=r"the samples of 1 of \d shards are not known yet"):
        floodlit.open(tmp_path / "run").maps("gradcam")


def test_tables_are_those_of_the_run(finished: Run) -> None:
    run = floodlit.open(finished.root)
    assert run.root == finished.root
    assert run.explainers == ["gradcam", "occlusion"]
    assert run.metrics == ["sparseness"]
    assert run.samples()["status"].to_pylist().count("failed") == 1
    assert run.scores().num_rows == COUNT * 2 * 2 * len(finished.columns)
    assert set(run.summary()["explainer"].to_pylist()) == {"gradcam", "occlusion"}
    assert run.costs()["explainer"].to_pylist() == ["gradcam", "occlusion"]
    assert run.comparisons().num_rows == run.sql("SELECT count(*) AS n FROM comparisons")["n"][0].as_py() > 0


def test_what_the_run_does_not_have_is_one_line(finished: Run, tmp_path: Path) -> None:
    run = floodlit.open(finished.root)
    with pytest.raises(ValueError, match=r"^the run has no explainer 'gradcm'; close are gradcam$"):
        run.maps("gradcm")
    with pytest.raises(ValueError, match=r"has no sample '11\.png'; there are .*1\.png"):
        run.show("11.png")
    with pytest.raises(ValueError, match=r"^the image of 2\.png could not be read"):
        run.show("2.png")
    shutil.copytree(finished.root, tmp_path / "run")
    (tmp_path / "run/summary.parquet").unlink()
    with pytest.raises(ValueError, match="there is no view summary yet"):
        floodlit.open(tmp_path / "run").summary()
    (tmp_path / "run/done/saliency/occlusion/shard-00000.json").unlink()
    with pytest.raises(ValueError, match=r"^1\.png has no map of occlusion yet: its shard 1/3 is not done"):
        floodlit.open(tmp_path / "run").show("1.png")


def test_a_sample_is_a_figure_that_a_notebook_shows(finished: Run) -> None:
    figure = floodlit.open(finished.root).show("1.png")
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["", "gradcam", "occlusion"]
    np.testing.assert_array_equal(
        figure.axes[0].images[0].get_array(), np.moveaxis(read(finished.inputs, 1, 2)[0], 0, -1)
    )
    assert figure._repr_html_().startswith('<img alt="maps" src="data:image/png;base64,iVBORw0KGgo')
