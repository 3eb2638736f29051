"""Maps that another program made, as explainers of a job: the forms of their files, refusals and statuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image

from explainers.given_maps import MapsParameters
from explainers.models.loading import ModelSpec, load
from flows.given_maps import with_given_maps
from flows.job import Job, JobError
from runs import completed, maps_of, model, prepared, scores_of, tiny_job
from storage.datasets.kinds.digits import Digits
from storage.datasets.opening import open_dataset
from storage.maps import read
from storage.query import query
from storage.run import Run
from tasks.shard_rows import STATUSES

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


def test_labels_tell_entries_apart(tmp_path: Path) -> None:
    twice = [{"name": "gradcam"}, {"name": "gradcam"}]
    with pytest.raises(ValueError, match="explainer gradcam is named twice; give each a label of its own"):
        Job.model_validate(small(tmp_path, explainers=twice))
    with pytest.raises(ValueError, match="label: rise is the name of an explainer; choose another"):
        Job.model_validate(small(tmp_path, explainers=[{"name": "gradcam", "label": "rise"}]))
    with pytest.raises(ValueError, match="String should match pattern"):
        Job.model_validate(small(tmp_path, explainers=[{"name": "gradcam", "label": "../up"}]))
    rise = [{"name": "rise", "masks": 8}, {"name": "rise", "label": "r", "masks": 16}]
    three = {"kind": "digits", "limit": 3}
    run = completed(small(tmp_path / "run", explainers=[{"name": "gradcam"}, *rise], dataset=three))
    assert list(run.explainers) == ["gradcam", "rise", "r"]
    passes = query(run.root, "SELECT DISTINCT explainer, forward_passes AS n FROM scores").to_pylist()
    assert {row["explainer"]: row["n"] for row in passes} == {"gradcam": None, "rise": 8, "r": 16}
