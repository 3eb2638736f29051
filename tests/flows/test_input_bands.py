"""Whole jobs on images of one band and of six, with 8 bits, 16 bits and floats, against closed forms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import band_toys
import matplotlib.image
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import floodlit
from flows.job import Job, JobError
from runs import completed, prepared, tiny_job
from storage.maps import read
from storage.query import query
from storage.run import Run
from storage.verify import verify
from tasks.pictures.drawing import pixels_of, told_bands

# Explainers of each kind, with few forward passes.
EXPLAINERS: dict[str, dict[str, Any]] = {
    "gradcam": {},
    "hirescam": {},
    "ablationcam": {},
    "occlusion": {"window": 112, "stride": 112},
    "rise": {"masks": 8},
    "input_x_gradient": {},
    "kernel_shap": {"cells": 2, "samples": 10},
}
METRICS: dict[str, dict[str, Any]] = {
    "insertion": {"steps": 4},
    "average_drop": {},
    "road": {},
    "infidelity": {},
    "sensitivity": {"samples": 1},
    "relevance_rank_accuracy": {},
}


def images(folder: Path, bands: np.ndarray, save: Callable[[Path, np.ndarray], Any], suffix: str) -> Path:
    """A listing of images (N, C, H, W) with a box and a mask each; returns its folder."""
    lines = ["file,label,xmin,ymin,xmax,ymax,mask"]
    for number, each in enumerate(bands):
        save(folder / f"{number}{suffix}", each)
        mask = np.zeros(each.shape[1:], np.uint8)
        mask[8:24, 4:20] = 255
        Image.fromarray(mask).save(folder / f"mask{number}.png")
        lines.append(f"{number}{suffix},1,4,8,20,24,mask{number}.png")
    (folder / "listing.csv").write_text("\n".join(lines))
    return folder


def sixteen_bits(count: int = 4, channels: int = 6) -> np.ndarray:
    """(count, channels, 48, 32) uint16 blobs whose lowest bits matter."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 60_000, (count, channels, 6, 4)).repeat(8, 2).repeat(8, 3)
    return (coarse + random.integers(0, 256, coarse.shape)).astype(np.uint16)


def job(folder: Path, channels: int, **changes: Any) -> dict[str, Any]:
    wanted: dict[str, Any] = {
        "dataset": {"kind": "csv", "path": str(folder / "listing.csv")},
        "model": {"source": "band_toys:cells", "name": str(channels), "layer": "cells", "channels": channels},
        "target": 1,
        "explainers": [{"name": name} | EXPLAINERS[name] for name in EXPLAINERS],
        "metrics": [{"name": name} | METRICS[name] for name in METRICS],
        "batch": {"shard": 3, "images": 2},
    }
    return tiny_job(folder / "run") | wanted | changes


def check_maps(run: Run, inputs: np.ndarray) -> None:
    """Compare the maps of ``inputs`` (N, C, H, W) in [0, 1] with their closed forms."""
    n = len(inputs)
    cells, gradients = band_toys.means(inputs), band_toys.gradients(inputs)

    def maps(name: str) -> np.ndarray:
        return read(run.saliency(name) / "maps", 0, n)

    np.testing.assert_allclose(maps("hirescam"), (gradients * cells).sum(1), rtol=1e-4)
    gradcam = (gradients.mean((1, 2))[:, None, None] * cells).sum(1)
    np.testing.assert_allclose(maps("gradcam"), gradcam, rtol=1e-4)
    np.testing.assert_allclose(maps("occlusion"), band_toys.occluded(inputs), atol=2e-6)


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of six bands of 16 bits, 48x32 pixels, and of two files that cannot be read."""
    folder = images(tmp_path_factory.mktemp("six"), sixteen_bits(), np.save, ".npy")
    np.save(folder / "five.npy", sixteen_bits(1, 5)[0])
    np.save(folder / "nan.npy", np.full((6, 48, 32), np.nan))
    with (folder / "listing.csv").open("a") as file:
        file.write("\nfive.npy,1,4,8,20,24,mask0.png\nnan.npy,1,4,8,20,24,mask0.png")
    return completed(job(folder, 6, shown_bands=[4, 2, 0]))


def test_six_bands_of_sixteen_bits_are_kept_and_explained_as_computed_by_hand(six: Run) -> None:
    assert (six.manifest.input_shape, six.manifest.input_dtype) == ((6, 48, 32), "uint16")
    stored = read(six.inputs, 0, 6)
    np.testing.assert_array_equal(stored[:4], sixteen_bits())
    check_maps(six, sixteen_bits() / 65535)
    assert not verify(six.root)


def test_rows_of_other_bands_and_of_nan_fail_with_their_reason(six: Run) -> None:
    rows = query(six.root, "SELECT * FROM samples ORDER BY sample_id").to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["failed"] * 2
    assert (rows[0]["width"], rows[0]["height"], rows[0]["boxes"]) == (32, 48, [[4, 8, 20, 24]])
    assert "has the shape (5, 48, 32), and the model takes 6 bands (model.channels)" in rows[4]["error"]
    assert "has values that are not finite" in rows[5]["error"]


def test_every_explainer_and_metric_gives_numbers_for_six_bands(six: Run) -> None:
    found = query(
        six.root, "SELECT explainer, metric, status, value FROM scores WHERE sample_id < '4'"
    ).to_pylist()
    assert {row["explainer"] for row in found} == set(six.explainers)
    columns = {column for entry in six.manifest.metrics.values() for column in entry.columns}
    for name in EXPLAINERS:
        scored = {row["metric"] for row in found if row["explainer"] == name and row["value"] is not None}
        assert scored == columns, name


def test_pictures_show_the_bands_that_the_job_names(six: Run) -> None:
    assert told_bands(six) == "bands 4, 2, 0 as RGB\n2nd to 98th percentile"
    shown = pixels_of(six, 1)
    assert (shown.shape, shown.dtype) == ((48, 32, 3), np.uint8)
    band = sixteen_bits()[1, 4].astype(float)
    low, high = np.percentile(band, (2, 98))
    expected = np.rint(((band - low) / (high - low)).clip(0, 1) * 255)
    np.testing.assert_array_equal(shown[..., 0], expected)
    sheet = matplotlib.image.imread(six.report / "contact_sheet.png")
    assert sheet.shape[0] > 4 * 1.5 * 110  # four rows of upright images


def test_python_gives_the_maps_of_the_job(six: Run) -> None:
    model = floodlit.load(
        "band_toys:cells", "6", layer="cells", channels=6, input_size=(48, 32), device="cpu"
    )
    files = [str(six.root.parent / f"{number}.npy") for number in range(4)]
    inputs = sixteen_bits()
    for given in (files, inputs, torch.from_numpy(inputs), (inputs / 65535).astype(np.float32)):
        found = floodlit.explain(model, given, "gradcam", targets=1)
        np.testing.assert_allclose(found.maps, read(six.saliency("gradcam") / "maps", 0, 4), rtol=1e-5)
    model.close()


@pytest.mark.parametrize(
    ("stored", "bands", "save", "suffix"),
    [
        (
            "uint8",
            (sixteen_bits(3, 1) >> 8).astype(np.uint8),
            lambda path, each: Image.fromarray(each[0]).save(path),
            ".png",
        ),
        ("uint16", sixteen_bits(3, 1), lambda path, each: Image.fromarray(each[0]).save(path), ".png"),
        ("float32", sixteen_bits(3, 1) / np.float32(65535), tifffile.imwrite, ".tif"),
        (
            "uint16",
            sixteen_bits(3, 4),
            lambda path, each: tifffile.imwrite(
                path, each, planarconfig="separate", photometric="minisblack"
            ),
            ".tif",
        ),
    ],
)
def test_other_bands_and_bits_give_the_maps_computed_by_hand(
    tmp_path: Path, stored: str, bands: np.ndarray, save: Callable[[Path, np.ndarray], Any], suffix: str
) -> None:
    few = [{"name": "hirescam"}, {"name": "gradcam"}, {"name": "occlusion"} | EXPLAINERS["occlusion"]]
    folder = images(tmp_path, bands, save, suffix)
    run = completed(job(folder, bands.shape[1], explainers=few, metrics=[{"name": "pointing_game"}]))
    assert (run.manifest.input_shape, run.manifest.input_dtype) == (bands.shape[1:], stored)
    np.testing.assert_array_equal(read(run.inputs, 0, 3), bands)
    check_maps(run, bands / {"uint8": 255, "uint16": 65535, "float32": 1}[stored])
    assert not verify(run.root)


def test_a_stated_range_and_depth_decide_what_is_stored(tmp_path: Path) -> None:
    bands = sixteen_bits(2, 6) >> 4  # 12 bits
    folder = images(tmp_path, bands, np.save, ".npy")
    dataset = {"kind": "csv", "path": str(folder / "listing.csv"), "range": 4095}
    few: dict[str, Any] = {"explainers": [{"name": "gradcam"}], "metrics": [{"name": "pointing_game"}]}
    shares = np.minimum(bands / 4095, 1)
    for depth, largest in ((8, 255), (16, 65535), (32, 1)):
        chosen = {"dataset": dataset | {"depth": depth}, "store": str(tmp_path / f"run{depth}")}
        run = completed(job(folder, 6, **few, **chosen))
        tolerance = 1e-7 if depth == 32 else 0.51 / largest
        np.testing.assert_allclose(read(run.inputs, 0, 2) / largest, shares, atol=tolerance * 2)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"model": {"name": "5", "channels": 6}},
            "model.source: the network does not run on inputs of 6 channels",
        ),
        (
            {"model": {"name": "5", "channels": 5}},
            r"dataset: no image can be read \(0.npy has the shape .*5 bands",
        ),
        (
            {"model": {"name": "6", "channels": 6, "mean": [0.5] * 5}},
            "mean has 5 numbers where channels says 6",
        ),
        (
            {"model": {"name": "6", "mean": [0.5] * 6, "std": [1.0] * 3}},
            "std has 3 numbers where mean says 6",
        ),
        ({"shown_bands": [0, 1, 6]}, "shown_bands: there is no band 6; inputs have 6, counted from 0"),
        ({"shown_bands": [0, 1]}, "give one band, or three"),
        ({"dataset": {"depth": 12}}, "depth"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(tmp_path: Path, changes: Any, told: str) -> None:
    raw = job(images(tmp_path, sixteen_bits(1), np.save, ".npy"), 6)
    for key, value in changes.items():
        if key == "model":
            raw["model"] = {"source": "band_toys:cells", "layer": "cells", "crop": [48, 32]} | value
        else:
            raw[key] = raw[key] | value if isinstance(value, dict) else value
    with pytest.raises((JobError, ValueError), match=told):
        prepared(raw)


def test_an_array_is_an_image_of_a_folder_that_holds_no_other(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        np.save(tmp_path / "set" / name / "0.npy", sixteen_bits(1)[0])
    folder = {"dataset": {"kind": "folder", "path": str(tmp_path / "set")}, "store": str(tmp_path / "run")}
    few: dict[str, Any] = {"explainers": [{"name": "gradcam"}], "metrics": [{"name": "insertion"}]}
    assert prepared(job(tmp_path, 6, **few, **folder)).rows == 2
    Image.new("RGB", (64, 64)).save(tmp_path / "set" / "a" / "0.png")
    raw = tiny_job(tmp_path / "other", dataset=folder["dataset"], **few)
    assert prepared(raw).manifest.left_out == {"*.npy": 2, "class folders without an image": 1}


def test_networks_of_timm_are_built_for_the_channels_and_others_refused() -> None:
    keys = {"weights": "none", "resize": 64, "fit": "squash"}
    six: dict[str, Any] = {"mean": (0.5,) * 6, "std": (0.25,) * 6}
    model = floodlit.load("timm", "resnet10t", device="cpu", **keys, **six)
    assert model.input_shape == (6, 64, 64)
    assert model.network.conv1[0].in_channels == 6
    model.close()
    with pytest.raises(ValueError, match=r"^model.mean: resnet10t states it for 3 channels.*give 6 numbers"):
        floodlit.load("timm", "resnet10t", device="cpu", channels=6, **keys)
    with pytest.raises(
        ValueError, match=r"^model.channels: the published weights of resnet10t.* take 3 channels"
    ):
        floodlit.load("timm", "resnet10t", device="cpu", **keys | {"weights": "pretrained"}, **six)
    with pytest.raises(ValueError, match=r"^model.channels: resnet18 takes 3, not 6; for others give a timm"):
        floodlit.load("torchvision", "resnet18", device="cpu", **keys, **six)


def test_a_job_takes_shown_bands_without_becoming_another_run(tmp_path: Path) -> None:
    raw = tiny_job(tmp_path / "run")
    assert Job.model_validate(raw | {"shown_bands": [2]}).identity() == Job.model_validate(raw).identity()
