"""Maps that another program made, as explainers of a job: the forms of their files, refusals and statuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image

from explainers.given_maps import MapsParameters
from explainers.models.loading import ModelSpec, load
from explainers.statuses import STATUSES
from flows.given_maps import with_given_maps
from flows.job import Job, JobError
from places import ROOT
from runs import completed, explained, maps_of, model, prepared, scores_of, tiny_job, wait_for
from storage.datasets.kinds.digits import Digits
from storage.datasets.opening import open_dataset
from storage.files import UnreadableError
from storage.maps import read
from storage.parquet import read_table
from storage.query import query
from storage.records import Step, read_record
from storage.run import Run
from storage.verify import verify
from tasks.activations import activations
from tasks.inputs import inputs
from tasks.results.comparisons import compare
from tasks.results.remarks import notes_of, unscored
from tasks.saliency import saliency

COUNT = 20
METRICS = [{"name": "insertion", "steps": 3}, {"name": "pointing_game"}]


def small(store: Path, **changes: Any) -> dict[str, Any]:
    base = {"dataset": {"kind": "digits", "limit": COUNT}, "metrics": METRICS, "controls": False}
    return tiny_job(store, **base | {"batch": {"shard": 16, "images": 7}} | changes)


def given(path: Path, label: str | None = None, **parameters: Any) -> dict[str, Any]:
    return {"name": "maps", "path": str(path), **({"label": label} if label else {}), **parameters}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of Grad-CAM, whose maps are given to other jobs."""
    return completed(small(tmp_path_factory.mktemp("own") / "run", explainers=[{"name": "gradcam"}]))


@pytest.fixture(scope="module")
def maps(own: Run) -> np.ndarray:
    return read(own.saliency("gradcam") / "maps", 0, COUNT)


def ids() -> list[str]:
    return [f"test/{row:06d}" for row in range(COUNT)]


def in_files(folder: Path, write: Callable[[Path, np.ndarray], None], suffix: str, maps: np.ndarray) -> Path:
    (folder / "test").mkdir(parents=True)
    for name, one in zip(ids(), maps, strict=True):
        write(folder / f"{name}{suffix}", one)
    return folder


def exported(folder: Path, maps: np.ndarray) -> dict[str, Path]:
    """The maps in every form, in another order where they have ids."""
    order = np.random.default_rng(0).permutation(COUNT)
    names, mixed = np.array(ids())[order], maps[order]
    made = {form: folder / form for form in ("a.npy", "b.npz", "c.npz", "d.npz", "e.zarr", "f.zarr")}
    np.save(made["a.npy"], np.asfortranarray(maps[:, None]))
    np.savez(made["b.npz"], maps=mixed[..., None], ids=names)
    np.savez_compressed(made["c.npz"], maps=maps.astype(np.float64))
    np.savez(made["d.npz"], **dict(zip(names, mixed, strict=True)))
    zarr.create_array(str(made["e.zarr"]), data=maps, chunks=(3, *maps.shape[1:]))
    group = zarr.open_group(str(made["f.zarr"]), mode="w", zarr_format=2)
    group.create_array("maps", data=mixed, chunks=(8, 2, 2))
    group.create_array("ids", data=names.astype("S"))
    made["g"] = in_files(folder / "g", np.save, ".npy", maps)
    made["h"] = in_files(folder / "h", lambda path, one: Image.fromarray(one).save(path), ".tiff", maps)
    return made


def test_maps_of_every_form_are_stored_and_scored_as_those_that_were_exported(
    own: Run, maps: np.ndarray, tmp_path: Path
) -> None:
    forms = exported(tmp_path, maps) | {"own": own.saliency("gradcam")}
    chosen = [given(path, form.replace(".", "_")) for form, path in forms.items()]
    run = completed(small(tmp_path / "run", explainers=[{"name": "gradcam"}, *chosen]))
    found, scores = maps_of(run.root), scores_of(run.root)
    for called in (choice["label"] for choice in chosen):
        np.testing.assert_array_equal(found[f"{called}/maps"], maps, err_msg=called)
        assert set(found[f"{called}/status"]) == {STATUSES.index("ok")}
        for sample, target, explainer, metric in list(scores):
            if explainer == called:
                assert scores[sample, target, called, metric] == scores[sample, target, "gradcam", metric]
        entry = run.explainers[called]
        assert entry.name == "maps"
        assert entry.given.startswith("maps of 20 of 20 samples, made by another program; the file does not")
    costs = {row["explainer"]: row for row in query(run.root, "SELECT * FROM costs").to_pylist()}
    assert costs["own"]["milliseconds"] is None
    assert costs["gradcam"]["milliseconds"] > 0


@pytest.fixture(scope="module")
def classifier() -> Iterator[Any]:
    with load(ModelSpec(**model("gap")), input_size=(64, 64)) as loaded:
        yield loaded


@pytest.fixture
def refused(classifier: Any) -> Callable[..., str]:
    """The one line with which a file of maps of the demo's digits is refused."""

    def told(path: Path, targets: int = 1, partial: bool = False, **parameters: Any) -> str:
        dataset = open_dataset(Digits(limit=COUNT))
        with pytest.raises(ValueError, match=r"^(path|grid): ") as refusal:
            with_given_maps(MapsParameters(path=path, **parameters), classifier, dataset, targets, partial)
        assert "\n" not in str(refusal.value)
        return str(refusal.value)

    return told


def test_wrong_counts_ids_and_shapes_are_refused_with_the_numbers(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    maps, names = np.random.default_rng(0).random((COUNT, 8, 8), np.float32), np.array(ids())

    def of(**arrays: Any) -> Path:
        np.savez(tmp_path / "maps.npz", **arrays)
        return tmp_path / "maps.npz"

    assert refused(of(maps=maps[1:])) == (
        f"path: {tmp_path}/maps.npz holds 19 maps without ids, and the dataset has 20 samples; give one map "
        "per sample in the dataset's order, or ids"
    )
    strange = of(maps=maps, ids=np.array([*ids()[:-2], "test/x", "y"]))
    assert "holds 2 maps of no sample of the dataset: 'test/x', 'y'" in refused(strange)
    foreign = "holds no map of any sample: the maps are called 'a', the samples 'test/000000', 'test/00"
    assert foreign in refused(of(a=maps[0]))
    assert foreign in refused(of(a=maps[0]), partial=True)
    assert "holds 20 maps and 19 ids" in refused(of(maps=maps, ids=names[1:]))
    assert "holds two maps of 'test/000000'" in refused(of(maps=maps, ids=names[[0, *range(19)]]))
    assert "ids are float64 (20,); give one text per map" in refused(of(maps=maps, ids=np.ones(COUNT)))
    colours = of(maps=np.repeat(maps[:, None], 3, 1))
    assert "maps are 3x8x8, and one map has 2 axes; add up its channels" in refused(colours)
    assert "of which the first or the last axis may be a channel; set grid" in refused(
        of(maps=maps[:, None, :, :1])
    )
    fine = "the maps are 65x65, finer than the network's input of 64x64; set covers"
    assert fine in refused(of(maps=np.zeros((COUNT, 65, 65))))
    wide = of(maps=np.zeros((COUNT, 8, 16)))
    assert "the maps are 8x16, which are not the proportions of the network's input, 64x64" in refused(wide)
    several = of(**dict.fromkeys(ids()[1:], maps[0]), **{ids()[0]: maps[0, :4, :4]})
    assert "maps of 2 shapes, e.g. 4x4, 8x8; write them in one" in refused(several)
    assert "grid: the maps are 8x8, and not 4x4" in refused(of(maps=maps), grid=[4, 4])
    assert "Object arrays cannot be loaded" in refused(of(maps=maps, ids=np.array([{}] * COUNT, object)))
    assert "holds no numbers" in refused(of(maps=np.array(["a"])))
    assert "maps are a single number" in refused(of(maps=np.array(1.0)))
    assert "maps are single numbers, and one map has 2 axes" in refused(of(maps=np.zeros(COUNT)))


def test_what_is_no_file_of_maps_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "there is no file or folder" in refused(tmp_path / "no.npz")
    assert "s3:/bucket/maps.npy is on S3; copy the maps" in refused(Path("s3://bucket/maps.npy"))
    for name, told in {
        "a.csv": "is no file of maps; give .npy, .npz",
        "a.npz": "is not an .npz file of maps: File is not a zip file",
        "a.npy": "is not an .npy file of numbers",
    }.items():
        (tmp_path / name).write_text("a,b")
        assert told in refused(tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert "holds no map of any sample: it is empty" in refused(tmp_path / "empty")


@pytest.mark.parametrize("path", [None, "no.npz"])
def test_a_refused_job_writes_nothing_and_names_the_explainer(path: str | None, tmp_path: Path) -> None:
    choice = {"name": "maps", "label": "lrp"} | ({} if path is None else {"path": path})
    with pytest.raises(JobError, match=r"^explainers: lrp: path: (say the file|there is no file)"):
        prepared(small(tmp_path / "run", explainers=[choice]))
    assert not (tmp_path / "run").exists()


def test_labels_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    twice = [{"name": "gradcam"}, {"name": "gradcam"}]
    with pytest.raises(ValueError, match="explainer gradcam is named twice; give each a label of its own"):
        Job.model_validate(small(tmp_path, explainers=twice))
    with pytest.raises(ValueError, match="label: rise is the name of an explainer; choose another"):
        Job.model_validate(small(tmp_path, explainers=[{"name": "gradcam", "label": "rise"}]))
    with pytest.raises(ValueError, match="String should match pattern"):
        Job.model_validate(small(tmp_path, explainers=[{"name": "gradcam", "label": "../up"}]))


def ramp(*shape: int) -> np.ndarray:
    """Maps from 0 to 1 along their cells, (*shape) float32."""
    return np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def statuses_of(run: Run, name: str) -> list[str]:
    return [STATUSES[code].value for code in read(run.saliency(name) / "status", 0, run.rows)]


def reasons_of(run: Run, name: str) -> dict[str, int]:
    """Why maps of an explainer failed, over all shards."""
    found: Counter[str] = Counter()
    for shard in range(run.shards):
        record = read_record(run.root, Step("saliency", shard, name))
        assert record is not None
        assert record.facts.cost is None
        found.update(record.facts.reasons)
    return dict(found)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A job of ten digits with maps of all statuses, images of maps, and one explainer twice."""
    folder = tmp_path_factory.mktemp("several")
    maps = dict.fromkeys(ids()[:10], ramp(4, 4) - 2)
    del maps[ids()[0]]
    for row, special in enumerate(
        (np.where(ramp(4, 4) > 0.5, np.nan, 1), np.full((4, 4), 3), np.zeros((4, 4)))
    ):
        maps[ids()[row + 1]] = special
    maps[ids()[4]] = ramp(4, 4)
    np.savez(folder / "statuses.npz", **maps, **{ids()[11]: ramp(4, 4)})  # and one beyond the limit
    images = folder / "images" / "test"
    images.mkdir(parents=True)
    eight, deep = (256 * ramp(8, 8)).clip(0, 255).astype(np.uint8), (65535 * ramp(8, 8)).astype(np.uint16)
    Image.fromarray(eight).save(images / "000000.png")
    Image.fromarray(deep).save(images / "000001.png")
    Image.fromarray(np.repeat(eight[..., None], 3, 2)).save(images / "000002.png")
    Image.fromarray(deep).save(images / "000003.tif")
    Image.fromarray(-ramp(8, 8)).save(images / "000004.tiff")
    np.save(images / "000005.npy", eight > 100)
    Image.fromarray(np.stack([eight, eight, 255 - eight], 2)).save(images / "000006.png")
    (images / "000007.png").write_bytes(b"no image")
    (images / "000008.png").write_bytes((images / "000000.png").read_bytes()[:-40])
    (images / "readme.txt").write_text("no map")
    rise = [{"name": "rise", "masks": 8}, {"name": "rise", "label": "r", "masks": 16}]
    chosen = [given(folder / "statuses.npz"), given(images.parent, "images"), *rise]
    metrics = [*METRICS, {"name": "randomisation", "stages": 1}, {"name": "sensitivity", "samples": 1}]
    ten = {"kind": "digits", "limit": 10}
    return completed(
        small(
            folder / "run", dataset=ten, metrics=metrics, explainers=chosen, batch={"shard": 16, "images": 4}
        )
    )


def test_every_map_has_its_status_and_its_reason(several: Run) -> None:
    expected = ["failed", "not_finite", "constant", "all_zero", *["ok"] * 6]
    assert statuses_of(several, "maps") == expected
    assert reasons_of(several, "maps") == {"there is no map of the sample": 1}
    assert several.explainers["maps"].given.startswith("maps of 9 of 10 samples, ")
    rows = query(several.root, "SELECT * FROM scores WHERE explainer = 'maps' ORDER BY sample_id").to_pylist()
    insertion = [row for row in rows if row["metric"] == "insertion"]
    # As for maps of our own, those without a positive value score as a map of zeros.
    assert [row["status"] for row in insertion] == [*expected[:4], "ok", *["all_zero"] * 5]
    assert [row["value"] is None for row in insertion] == [True, True, *[False] * 8]


def test_images_of_maps_have_the_values_of_their_files(several: Run) -> None:
    maps = read(several.saliency("images") / "maps", 0, 10)
    eight = (256 * ramp(8, 8)).clip(0, 255).astype(np.uint8)
    deep = (65535 * ramp(8, 8)).astype(np.uint16)
    for row, values in {0: eight / 255, 1: deep / 65535, 2: eight / 255, 3: deep / 65535}.items():
        np.testing.assert_array_equal(maps[row], values.astype(np.float32), err_msg=str(row))
    np.testing.assert_array_equal(maps[4], -ramp(8, 8))
    np.testing.assert_array_equal(maps[5], eight > 100)
    assert statuses_of(several, "images") == [*["ok"] * 6, *["failed"] * 4]
    reasons = reasons_of(several, "images")
    assert sum(reasons.values()) == 4
    assert {"there is no map of the sample", "not an image of a known format"} <= reasons.keys()
    assert any(reason.startswith("is in colours or transparent") for reason in reasons)


def test_metrics_that_explain_again_have_no_values_for_given_maps_and_say_why(several: Run) -> None:
    rows = query(several.root, "SELECT explainer, metric, n, reason FROM summary").to_pylist()
    again = [row for row in rows if row["metric"] in {"randomisation", "max_sensitivity"}]
    for row in again:
        told = "the metric does not apply to maps that another program made: it explains again"
        expected = (0, told) if row["explainer"] in {"maps", "images"} else (10, None)
        assert (row["n"], row["reason"]) == expected
    assert len(again) == 8
    lines = unscored(read_table(several.summary))
    assert lines[0].startswith("n = 0 for randomisation, randomisation_ssim, max_sensitivity, average_sensit")
    assert lines[0].endswith(f" of maps, images: {told}")
    assert len(lines) == 1


def test_what_is_known_of_given_maps_is_told_with_the_notes(several: Run) -> None:
    unknown = (
        "the file does not state their classes, so it is not known that they are those which are explained"
    )
    by = "samples, made by another program; "
    notes = notes_of(several, several.records())
    assert [line for line in notes if by in line] == [
        f"maps: maps of 9 of 10 {by}{unknown}",
        f"images: maps of 9 of 10 {by}{unknown}",
    ]
    assert [line for line in notes if line.startswith("images: of ")] == [
        "images: of 10 maps of readable images 4 failed"
    ]


def test_labels_tell_entries_of_one_explainer_apart(several: Run) -> None:
    assert list(several.explainers) == ["maps", "images", "rise", "r"]
    passes = query(several.root, "SELECT DISTINCT explainer, forward_passes AS n FROM scores").to_pylist()
    assert {row["explainer"]: row["n"] for row in passes} == {
        "maps": None,
        "images": None,
        "rise": 8,
        "r": 16,
    }


def test_a_summary_of_no_map_at_all_says_why(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", maps=ramp(COUNT, 2, 2), targets=np.full(COUNT, -1))
    one = [{"name": "pointing_game"}]
    run = completed(small(tmp_path / "run", explainers=[given(tmp_path / "a.npz")], metrics=one))
    row = query(run.root, "SELECT reason FROM summary").to_pylist()[0]
    told = "no map could be scored: 20 failed (the map is not of the class that is explained: 20)"
    assert row["reason"] == told


def test_the_map_of_the_explained_class_is_taken_where_the_file_states_classes(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    every = np.arange(8, dtype=np.float32)[:, None, None] + ramp(3, 3)  # a map per class
    maps, classes = np.tile(every, (COUNT, 1, 1, 1)), np.tile(np.arange(8)[::-1], (COUNT, 1))
    np.savez(tmp_path / "all.npz", maps=maps[:, ::-1], targets=classes)
    classes[5] = -1
    group = zarr.open_group(str(tmp_path / "all.zarr"), mode="w")
    group.create_array("maps", data=maps[:, ::-1, None])
    group.create_array("targets", data=classes.astype(np.int16))
    chosen = [given(tmp_path / "all.npz"), given(tmp_path / "all.zarr", "z")]
    run = explained(prepared(small(tmp_path / "run", explainers=chosen, target={"top": 2})))
    targets = np.array(query(run.root, "SELECT targets FROM samples")["targets"].to_pylist())
    expected = targets.reshape(-1)[:, None, None] + ramp(3, 3)
    for name in ("maps", "z"):
        found = read(run.saliency(name) / "maps", 0, 2 * COUNT)
        rows = np.arange(2 * COUNT) // 2 != 5 if name == "z" else np.full(2 * COUNT, True)
        np.testing.assert_array_equal(found[rows], expected[rows])
        assert np.isnan(found[~rows]).all()
    assert reasons_of(run, "z") == {"the map is not of the class that is explained": 2}
    np.save(tmp_path / "no.npy", maps)
    assert "does not state the classes of its maps, and the job explains 2 per" in refused(
        tmp_path / "no.npy", targets=2
    )
    np.savez(tmp_path / "wrong.npz", maps=maps, targets=classes[:, :3])
    assert "holds 8 maps per sample and 3 targets" in refused(tmp_path / "wrong.npz")
    np.savez(tmp_path / "wrong.npz", maps=maps, targets=classes + 1)
    assert "the target 8 is no class; the model's are 0 to 7" in refused(tmp_path / "wrong.npz")


def test_maps_of_whole_images_are_resized_and_cropped_as_the_images(tmp_path: Path) -> None:
    """The map of an image is the image itself, so that it has to end as the network's input."""
    generator = np.random.default_rng(0)
    for name in ("images", "maps", "small"):
        (tmp_path / name).mkdir()
    for row, (width, height) in enumerate([(130, 90), (90, 130), (70, 70)]):
        noise = Image.fromarray(generator.integers(0, 256, (height // 10, width // 10, 3), np.uint8))
        image = noise.resize((width, height), Image.Resampling.BICUBIC)
        image.save(tmp_path / "images" / f"{row}.png")
        red = np.asarray(image)[..., 0].astype(np.float32)
        np.save(tmp_path / "maps" / f"{row}.npy", red - 100 if row < 2 else np.full_like(red, np.nan))
    np.save(tmp_path / "maps" / "1.npy", np.load(tmp_path / "maps" / "1.npy")[None])
    cropped = model("gap") | {"resize": 80, "crop": 64}
    raw = small(
        tmp_path / "run",
        dataset={"kind": "folder", "path": str(tmp_path / "images")},
        model=cropped,
        explainers=[given(tmp_path / "maps", covers="image")],
        metrics=[{"name": "sparseness"}],
    )
    run = explained(prepared(raw))
    inputs, maps = read(run.inputs, 0, 3), read(run.saliency("maps") / "maps", 0, 3)
    assert run.explainers["maps"].grid == (64, 64)
    assert np.abs(maps[:2] + 100 - inputs[:2, 0]).max() < 0.51 * 2  # pixels are rounded twice, maps never
    assert statuses_of(run, "maps") == ["ok", "ok", "not_finite"]
    np.save(tmp_path / "maps" / "0.npy", ramp(64, 64))
    with pytest.raises(JobError, match=r"the map of '0.png' is 64x64, and its image 90x130, height first"):
        prepared(raw | {"store": str(tmp_path / "other")})
    np.save(tmp_path / "whole.npy", ramp(3, 48, 48))
    for row in range(3):
        Image.new("RGB", (48, 48)).save(tmp_path / "small" / f"{row}.png")
    less = raw | {
        "dataset": {"kind": "folder", "path": str(tmp_path / "small")},
        "store": str(tmp_path / "other"),
    }
    with pytest.raises(
        JobError, match=r"lrp: covers: the maps are 48x48, as large as the images before they are"
    ):
        prepared(less | {"explainers": [given(tmp_path / "whole.npy", "lrp")]})
    assert prepared(less | {"explainers": [given(tmp_path / "whole.npy", covers="input")]}).rows == 3
    plain = raw | {"store": str(tmp_path / "third"), "explainers": [given(tmp_path / "maps")]}
    with pytest.raises(
        JobError, match=r"maps of 3 shapes, e\.g\. 64x64, 130x90, 70x70; .*covers = \"image\""
    ):
        prepared(plain)


def test_maps_that_change_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "maps.npy"
    np.save(path, ramp(COUNT, 4, 4))
    raw = small(tmp_path / "run", explainers=[given(path)])
    run = prepared(raw)
    for shard in range(run.shards):
        inputs.fn(str(run.root), shard)
        activations.fn(str(run.root), shard, keep=False)
    saliency.fn(str(run.root), 0, "maps")
    before = path.read_bytes()
    np.save(path, 1 - ramp(COUNT, 4, 4))
    with pytest.raises(UnreadableError, match=r"maps\.npy has changed since the job was planned; restore it"):
        saliency.fn(str(run.root), 1, "maps")
    with pytest.raises(JobError, match=r"holds another run: explainers\.maps\.files\.path was "):
        prepared(raw)
    path.write_bytes(before)  # the same values, at another time
    saliency.fn(str(run.root), 1, "maps")
    np.testing.assert_array_equal(read(run.saliency("maps") / "maps", 0, COUNT), ramp(COUNT, 4, 4))


@pytest.fixture(scope="module")
def captum(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The example of the docs, with maps by Captum, and the job that scores them beside our own."""
    folder = tmp_path_factory.mktemp("captum")
    chosen = small(folder / "runs" / "digits", explainers=[{"name": "input_x_gradient"}])
    explained(prepared(chosen))
    (folder / "examples").symlink_to(ROOT / "examples")
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```python\n(import captum.*?)^```$", page, re.MULTILINE | re.DOTALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(script, "docs/python.md", "exec"), {})
    both = [*chosen["explainers"], given(folder / "captum.npz", "captum")]
    return completed(chosen | {"store": str(folder / "run"), "explainers": both})


def test_the_maps_that_the_docs_bring_from_captum_are_those_of_captum(captum: Run) -> None:
    ours, theirs = (read(captum.saliency(name) / "maps", 0, COUNT) for name in captum.explainers)
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-6)
    assert (theirs < 0).any()
    scores = scores_of(captum.root)
    assert len(scores) == 2 * COUNT * 3
    for sample, target, explainer, metric in scores:
        if explainer == "captum":
            own = scores[sample, target, "input_x_gradient", metric][0]
            assert scores[sample, target, explainer, metric][0] == pytest.approx(own, abs=1e-3)
    assert (captum.report / "contact_sheet.png").stat().st_size > 10_000
    told = captum.explainers["captum"].given
    assert told == (
        "maps of 20 of 20 samples, made by another program; the file states their classes, which are "
        "compared with those that are explained"
    )


def test_runs_with_given_maps_are_compared_with_others(captum: Run, own: Run) -> None:
    found = compare([captum, own]).comparisons.to_pylist()
    pairs = {(row["explainer"], row["against"]) for row in found}
    assert any("captum" in f"{pair}" and "gradcam" in f"{pair}" for pair in pairs)


def test_a_job_that_is_killed_goes_on_with_given_maps(maps: np.ndarray, own: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "maps.npz", maps=maps)
    raw = small(tmp_path / "run", explainers=[given(tmp_path / "maps.npz")], batch={"shard": 1})
    script = f"import json, runs; runs.completed(json.loads({json.dumps(json.dumps(raw))}))"
    done = tmp_path / "run" / "done" / "saliency" / "maps"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], env=environment) as process:
        wait_for(lambda: len(list(done.glob("shard-*.json"))) >= 3)
        process.kill()
    left = len(list(done.glob("shard-*.json")))
    assert 3 <= left < COUNT
    run = completed(raw)
    assert not verify(run.root)
    np.testing.assert_array_equal(read(run.saliency("maps") / "maps", 0, COUNT), maps)
    scores, expected = scores_of(run.root), scores_of(own.root)
    assert len(scores) == len(expected)
    for (sample, target, _, metric), (value, status) in expected.items():  # in batches of another size
        assert scores[sample, target, "maps", metric] == (pytest.approx(value, abs=1e-5), status)
