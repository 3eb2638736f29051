"""The door: explanations and scores in Python are those of a job, and refusals are one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import floodlit
from explainers.models.class_names import ClassName
from explainers.models.tensors import TensorClassifier
from explainers.statuses import STATUSES
from places import ROOT
from runs import explained, model, prepared, tiny_job, toml
from storage.datasets import digits
from storage.errors import FloodlitError
from storage.maps import read
from storage.run import Run
from storage.samples import read_samples
from tasks.scores import scores

EXPLAINERS = [{"name": "ddcam"}, {"name": "gradcam"}, {"name": "occlusion", "window": 64, "stride": 48}]
METRICS = [
    {"name": "insertion", "steps": 4},
    {"name": "average_drop"},
    {"name": "pointing_game"},
    {"name": "pixel_precision"},
    {"name": "random_logit"},
]
COUNT = 6


def image(index: int) -> Image.Image:
    return Image.fromarray(digits.sample("test", index).image)


IMAGES = [image(index) for index in range(COUNT)]
BOXES = [digits.sample("test", index).box for index in range(COUNT)]
MASKS = [Image.fromarray(digits.sample("test", index).mask) for index in range(COUNT)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of a job on the same images, explained and scored by the tasks."""
    store = tmp_path_factory.mktemp("door") / "run"
    dataset = {"kind": "digits", "limit": COUNT}
    raw = tiny_job(store, dataset=dataset, explainers=EXPLAINERS, metrics=METRICS, batch={"shard": 4})
    run = explained(prepared(raw))
    for shard in range(run.shards):
        for name in run.explainers:
            scores.fn(str(run.root), shard, name)
    return run


@pytest.fixture(scope="module")
def gap() -> Any:
    """The demo's network, loaded by the door."""
    given = model("gap")
    return floodlit.load(given.pop("source"), input_size=(64, 64), **given)


@pytest.fixture(scope="module")
def ids(finished: Run) -> list[str]:
    return [sample["sample_id"] for sample in read_samples(finished.root)]


def maps_of(run: Run, explainer: str, key: str = "maps") -> np.ndarray:
    return read(run.saliency(explainer) / key, 0, run.rows)


# Maps


@pytest.mark.parametrize("name", ["ddcam", "gradcam", "occlusion", "sobel", "random"])
@pytest.mark.parametrize("batch", [4, 16])
def test_maps_are_those_of_a_job(name: str, batch: int, gap: Any, finished: Run, ids: list[str]) -> None:
    """Of the random control as well, since the inputs have the sample ids of the run."""
    parameters = {"window": 64, "stride": 48} if name == "occlusion" else {}
    found = floodlit.explain(gap, IMAGES, name, ids=ids, batch=batch, **parameters)
    assert np.allclose(found.maps.numpy(), maps_of(finished, name), rtol=1e-5, atol=1e-6)
    assert found.statuses == [STATUSES[code] for code in maps_of(finished, name, "status")]
    targets = [sample["target"] for sample in read_samples(finished.root)]
    assert found.targets.tolist() == targets
    assert set(found.details) == set(finished.explainers[name].details)


def test_details_are_those_of_a_job(gap: Any, finished: Run) -> None:
    found = floodlit.explain(gap, IMAGES, "ddcam")
    assert (found.details["unit_mask"].numpy() == maps_of(finished, "ddcam", "details/unit_mask")).all()
    assert found.details["certificate"].all()


def test_files_images_and_tensors_are_the_same_inputs(gap: Any, tmp_path: Path) -> None:
    paths = []
    for index, one in enumerate(IMAGES[:2]):
        paths.append(tmp_path / f"{index}.png")
        one.save(paths[-1])
    pixels = torch.from_numpy(np.stack([np.moveaxis(np.asarray(one), -1, 0) for one in IMAGES[:2]]))
    expected = floodlit.explain(gap, IMAGES[:2], "gradcam").maps
    for same in (
        paths,
        [str(path) for path in paths],
        pixels,
        pixels.numpy(),
        pixels.float() / 255,
        list(pixels),
    ):
        assert torch.equal(floodlit.explain(gap, same, "gradcam").maps, expected)
    for one in (paths[0], str(paths[0]), IMAGES[0], pixels[0], (pixels.float() / 255)[0]):
        assert torch.allclose(floodlit.explain(gap, one, "gradcam").maps, expected[:1], atol=1e-6)


def test_files_go_through_the_preprocessing_of_the_model(tmp_path: Path) -> None:
    given = model("gap")
    cropping = floodlit.load(given.pop("source"), resize=80, crop=64, **given)
    large = IMAGES[0].resize((160, 160), Image.Resampling.BILINEAR)
    large.save(tmp_path / "large.png")
    by_hand = large.resize((80, 80), Image.Resampling.BILINEAR).crop((8, 8, 72, 72))
    found = floodlit.explain(cropping, tmp_path / "large.png", "gradcam")
    pixels = torch.from_numpy(np.moveaxis(np.asarray(by_hand), -1, 0).copy())
    assert torch.equal(found.maps, floodlit.explain(cropping, pixels, "gradcam").maps)
    # The box of the whole image is that of the whole input, and that of a corner is cropped away.
    whole, corner = [(0, 0, 160, 160)], [(0, 0, 15, 15)]
    hits = [
        floodlit.score(cropping, large, found, "pointing_game", boxes=[boxes], tolerance=0).values
        for boxes in (whole, corner)
    ]
    assert hits[0]["pointing_game"].item() == 1
    assert hits[1]["pointing_game"].isnan().item()


def test_files_and_images_are_turned_upright_with_their_masks_and_boxes(gap: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    IMAGES[0].transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.png", exif=exif)
    MASKS[0].transpose(Image.Transpose.ROTATE_90).save(tmp_path / "mask.png", exif=exif)
    upright = floodlit.explain(gap, IMAGES[0], "gradcam")
    for given in (tmp_path / "lying.png", Image.open(tmp_path / "lying.png")):
        found = floodlit.explain(gap, given, "gradcam")
        assert torch.equal(found.maps, upright.maps)
        for metric, more in (
            ("energy_pointing_game", {"boxes": BOXES[:1]}),
            ("relevance_mass_accuracy", {"masks": [tmp_path / "mask.png"]}),
        ):
            scores = floodlit.score(gap, given, found, metric, **more).values[metric]
            expected = {"boxes": BOXES[:1]} if "boxes" in more else {"masks": MASKS[:1]}
            assert torch.equal(
                scores, floodlit.score(gap, IMAGES[0], upright, metric, **expected).values[metric]
            )
    with pytest.raises(ValueError, match=r"^boxes: one of .*lying\.png lies within 0\.\.1"):
        floodlit.score(gap, tmp_path / "lying.png", upright, "pointing_game", boxes=[[(0.1, 0.1, 0.5, 0.5)]])


def test_targets_are_one_class_or_one_per_input_or_the_predicted_ones(gap: Any) -> None:
    predicted = floodlit.explain(gap, IMAGES, "gradcam")
    again = floodlit.explain(gap, IMAGES, "gradcam", targets=predicted.targets)
    assert torch.equal(again.maps, predicted.maps)
    third = floodlit.explain(gap, IMAGES, "gradcam", targets=3, batch=4)
    assert third.targets.tolist() == [3] * COUNT
    assert torch.equal(floodlit.explain(gap, IMAGES, "gradcam", targets=[3] * COUNT).maps, third.maps)
    gap.class_names = tuple(ClassName(f"digit {number}") for number in range(8))
    assert floodlit.explain(gap, IMAGES, "gradcam", targets="Digit_3").targets.tolist() == [3] * COUNT
    named = [f"digit {number}" for number in predicted.targets.tolist()]
    assert floodlit.explain(gap, IMAGES, "gradcam", targets=named).targets.equal(predicted.targets)
    with pytest.raises(ValueError, match="targets: 'digit 8' is none of the model's classes"):
        floodlit.explain(gap, IMAGES, "gradcam", targets="digit 8")
    gap.class_names = None
    other = (predicted.targets + 1) % 8
    with pytest.raises(ValueError, match="explains the predicted class only; leave targets out"):
        floodlit.explain(gap, IMAGES, "ddcam", targets=other)


def test_random_numbers_follow_seed_and_position_or_name(gap: Any) -> None:
    def maps(images: Any, **how: Any) -> Tensor:
        return floodlit.explain(gap, images, "random", **how).maps

    same = [IMAGES[0], IMAGES[0]]
    assert not torch.equal(*maps(same))
    assert torch.equal(maps(same), maps(same, batch=1))
    assert not torch.equal(maps(same), maps(same, seed=1))
    assert torch.equal(maps(same, ids=["a", "b"])[1], maps(IMAGES[0], ids=["b"])[0])


def test_gradients_are_taken_whatever_mode_the_caller_is_in(gap: Any) -> None:
    with torch.inference_mode():
        pixels = torch.rand(2, 3, 64, 64)
        inside = floodlit.explain(gap, pixels, "input_x_gradient").maps
    assert torch.equal(inside, floodlit.explain(gap, pixels, "input_x_gradient").maps)


def test_an_own_network_is_wrapped_and_left_as_it_was() -> None:
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), *pooled).train()
    with floodlit.Classifier(network, layer="0", input_size=(32, 32)) as wrapped:
        found = floodlit.explain(wrapped, torch.rand(3, 3, 32, 32), "gradcam")
        assert len(found.maps) == 3
        assert repr(found) == "<3 maps of 16x16 by gradcam>"
    assert network.training


# Scores


@pytest.mark.parametrize("choice", METRICS, ids=lambda choice: choice["name"])
@pytest.mark.parametrize("explainer", ["gradcam", "ddcam"])
def test_scores_are_those_of_a_job(
    explainer: str, choice: dict[str, Any], gap: Any, finished: Run, ids: list[str]
) -> None:
    found = floodlit.explain(gap, IMAGES, explainer, ids=ids)
    objects = {"pointing_game": {"boxes": BOXES}, "pixel_precision": {"masks": MASKS}}.get(choice["name"], {})
    given = {key: value for key, value in choice.items() if key != "name"}
    scored = floodlit.score(gap, IMAGES, found, choice["name"], batch=4, **objects, **given)
    table = floodlit.open(finished.root).scores().to_pylist()
    rows = {(row["metric"], row["sample_id"]): row for row in table if row["explainer"] == explainer}
    assert set(scored.values) | set(scored.curves) == set(finished.metrics[choice["name"]].columns)
    for column, values in scored.values.items():
        wanted = [rows[column, name]["value"] for name in ids]
        wanted = [np.nan if value is None else value for value in wanted]
        assert np.allclose(values.numpy(), wanted, rtol=1e-4, atol=1e-5, equal_nan=True)
    for column, curves in scored.curves.items():
        assert np.allclose(
            curves.numpy(), [rows[column, name]["curve"] for name in ids], rtol=1e-4, atol=1e-5
        )


def test_masks_are_files_images_or_arrays(gap: Any, tmp_path: Path) -> None:
    found = floodlit.explain(gap, IMAGES[:1], "gradcam")
    MASKS[0].save(tmp_path / "mask.png")
    array = np.asarray(MASKS[0])
    given = [[MASKS[0]], [tmp_path / "mask.png"], [array], torch.from_numpy(array.copy())[None]]
    values = [
        floodlit.score(gap, IMAGES[0], found, "relevance_mass_accuracy", masks=masks).values
        for masks in given
    ]
    assert len({float(each["relevance_mass_accuracy"]) for each in values}) == 1


# Other inputs


def test_texts_are_explained() -> None:
    reviews = floodlit.load(
        "huggingface",
        str(ROOT / "examples/weights/reviews"),
        weights="pretrained",
        modality="text",
        max_length=40,
    )
    texts = ["The food was wonderful.", "The room was awful, and the food was cold."]
    found = floodlit.explain(reviews, texts, "erasure")
    assert found.maps.shape == (2, 40)
    assert torch.allclose(floodlit.explain(reviews, texts[1], "erasure").maps, found.maps[1:], atol=1e-5)
    assert floodlit.score(reviews, texts, found, "insertion", steps=4).values["insertion"].isfinite().all()
    with pytest.raises(ValueError, match=r"^the text '' has no token to explain$"):
        floodlit.explain(reviews, "", "erasure")
    with pytest.raises(ValueError, match=r"^explainer gradcam "):
        floodlit.explain(reviews, texts, "gradcam")
    with pytest.raises(ValueError, match=r"^metric road scores maps of images, and the model takes texts$"):
        floodlit.score(reviews, texts, found, "road")


@pytest.mark.parametrize("shape", [(5,), (2, 5)])
def test_plain_tensors_are_explained(shape: tuple[int, ...]) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3))
    series = TensorClassifier(network, shape)
    values = torch.rand(4, *shape)
    found = floodlit.explain(series, values, "erasure")
    assert found.maps.shape == (4, 5)
    assert torch.allclose(
        floodlit.explain(series, values[1].numpy(), "erasure").maps, found.maps[1:2], atol=1e-6
    )
    with pytest.raises(ValueError, match=r"^the model takes inputs \(B, [12], 5\), and these are \(4, 7\)$"):
        floodlit.explain(series, torch.rand(4, 7), "erasure")


def test_a_model_of_plain_tensors_needs_the_shape_of_its_rows() -> None:
    with pytest.raises(ValueError, match=r"^input_size: "):
        floodlit.load(f"{ROOT}/examples/digits.py:gap", weights="none", modality="tensor")


# Refusals

Refused = tuple[Callable[[Any], Any], str]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda gap: floodlit.explain(gap, IMAGES, "gradcm"),
            "unknown explainer 'gradcm'; close are gradcam",
        ),
        (
            lambda gap: floodlit.explain(gap, IMAGES, "rise", mask=9),
            "explainer rise has no parameter 'mask'; close",
        ),
        (
            lambda gap: floodlit.explain(gap, IMAGES, "rise", masks=0),
            "explainer rise: masks: Input should be",
        ),
        (
            lambda gap: floodlit.explain(gap, IMAGES, "rollout"),
            "explainer rollout needs a vision transformer",
        ),
        (
            lambda gap: floodlit.explain(gap, IMAGES, "erasure"),
            "explainer erasure explains texts and numbers",
        ),
        (lambda gap: floodlit.explain(gap, IMAGES, "ptame", head="no.safetensors"), "explainer ptame: "),
        (
            lambda gap: floodlit.explain(gap, IMAGES, "ddcam", targets=3),
            "explainer ddcam explains the predicted",
        ),
        (
            lambda gap: floodlit.explain(gap, IMAGES, "gradcam", targets=8),
            "targets: 8 is no class of the model;",
        ),
        (
            lambda gap: floodlit.explain(gap, IMAGES, "gradcam", targets=[1]),
            "targets: give one class number, or",
        ),
        (
            lambda gap: floodlit.explain(gap, IMAGES, "gradcam", targets=0.5),
            "targets: give one class number, or",
        ),
        (
            lambda gap: floodlit.explain(gap, IMAGES, "gradcam", ids="ab"),
            "ids: there are 6 inputs and 2 ids;",
        ),
        (lambda gap: floodlit.explain(gap, [], "gradcam"), "no inputs were given; give one at least"),
        (
            lambda gap: floodlit.explain(gap, "no.png", "gradcam"),
            "no.png cannot be read: there is no such file",
        ),
        (lambda gap: floodlit.explain(gap, __file__, "gradcam"), f"{__file__} cannot be read: not an image"),
        (
            lambda gap: floodlit.explain(gap, image(0).resize((32, 40)), "gradcam"),
            "the image has 40x32 pixels",
        ),
        (
            lambda gap: floodlit.explain(gap, torch.rand(2, 3, 32, 32), "gradcam"),
            "the model takes inputs (B, 3,",
        ),
        (
            lambda gap: floodlit.explain(gap, torch.rand(2, 3, 64, 64) - 0.5, "gradcam"),
            "images are numbers in [0",
        ),
        (
            lambda gap: floodlit.explain(gap, torch.full((3, 64, 64), torch.nan), "gradcam"),
            "images are numbers",
        ),
        (
            lambda gap: floodlit.load("timm", "resnet18", weight="none"),
            "model has no parameter 'weight'; close are",
        ),
        (
            lambda gap: floodlit.load("timm", "resnet18", crop="x"),
            "model: crop: must be [height, width] or a whole number from 1 to",
        ),
        (lambda gap: floodlit.load("tim", "resnet18"), "model.source: unknown source 'tim'; choose"),
        (
            lambda gap: floodlit.load("timm", "resnet18", modality="x"),
            "modality: there is no 'x'; choose image",
        ),
        (lambda gap: floodlit.open("/no/run"), "/no/run is not a run folder"),
    ],
    ids=lambda value: value[:45] if isinstance(value, str) else "",
)
def test_what_cannot_be_explained_is_refused_in_one_line(
    call: Callable[[Any], Any], told: str, gap: Any
) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011  # the message is checked below
        call(gap)
    assert str(refused.value).startswith(told)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("metric", "how", "told"),
    [
        ("insertio", {}, "unknown metric 'insertio'; close are insertion"),
        ("insertion", {"step": 4}, "metric insertion has no parameter 'step'; close are steps"),
        ("pointing_game", {}, "metric pointing_game needs the boxes of the objects; give boxes="),
        ("pixel_precision", {}, "metric pixel_precision needs the masks of the objects; give masks="),
        ("pointing_game", {"boxes": BOXES[:2]}, "boxes: there are 6 inputs and 2 boxes; give one per input"),
        ("pixel_precision", {"masks": torch.ones(6, 32, 32)}, "masks: 32x32 does not fit 64x64"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(
    metric: str, how: dict[str, Any], told: str, gap: Any
) -> None:
    found = floodlit.explain(gap, IMAGES, "gradcam")
    with pytest.raises(ValueError) as refused:  # noqa: PT011  # the message is checked below
        floodlit.score(gap, IMAGES, found, metric, **how)
    assert str(refused.value).startswith(told)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"^maps: there are 2 inputs and 6 maps; give one per input$"):
        floodlit.score(gap, IMAGES[:2], found, "insertion")


# The door itself


def test_the_door_imports_nothing_before_it_is_used() -> None:
    program = (
        "import time, sys\n"
        "start = time.perf_counter()\n"
        "import floodlit\n"
        "taken = time.perf_counter() - start\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'prefect', 'pyarrow'} & set(sys.modules)\n"
        "floodlit.explain\n"
        "heavy |= {'captum', 'skimage', 'prefect', 'dask', 'zarr', 'mlflow', 'timm'} & set(sys.modules)\n"
        "print(taken < 1, sorted(heavy))"
    )
    told = subprocess.check_output([sys.executable, "-c", program], text=True, cwd=ROOT)
    assert told.strip() == "True []"


def test_every_name_of_the_door_is_there() -> None:
    for name in floodlit.__all__:
        assert getattr(floodlit, name) is not None
    assert floodlit.FloodlitError is FloodlitError
    assert sorted(dir(floodlit)) == sorted(floodlit.__all__)
    with pytest.raises(AttributeError, match="module 'floodlit' has no attribute 'explian'"):
        floodlit.explian  # noqa: B018


@pytest.mark.parametrize("hidden", ["tasks.py", "flows/__init__.py", "storage/other.txt"])
def test_a_hidden_package_is_told_in_one_line(hidden: str, tmp_path: Path) -> None:
    (tmp_path / hidden).parent.mkdir(exist_ok=True)
    (tmp_path / hidden).write_text("raise RuntimeError\n")
    # With either of these, Python would not look in the working directory first.
    user = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    imported = [sys.executable, "-c", "import floodlit"]
    refused = subprocess.run(imported, cwd=tmp_path, env=user, capture_output=True, text=True, check=False)
    where = tmp_path / hidden if hidden.endswith(".py") else tmp_path / "storage"
    last = refused.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {where} would be imported in the place of Floodlit's package ")
    assert last.endswith("start Python in another folder, or as `python -P`")
    subprocess.run([sys.executable, "-P", "-c", "import floodlit"], cwd=tmp_path, env=user, check=True)


@pytest.mark.service
def test_a_job_runs_from_python(server: str, tmp_path: Path) -> None:
    raw = tiny_job(
        tmp_path / "unused",
        dataset={"kind": "digits", "limit": 4},
        explainers=[{"name": "gradcam"}],
        controls=False,
        cluster={"kind": "local", "workers": 1},
    )
    run = floodlit.run(toml(raw, tmp_path / "job.toml"), tmp_path / "run")
    assert run.maps("gradcam").shape == (4, 8, 8)
    assert (tmp_path / "run/summary.parquet").exists()
    assert not (tmp_path / "unused").exists()
    again = floodlit.run(floodlit.Job.model_validate(raw | {"store": tmp_path / "run"}))
    assert again.scores().equals(run.scores())


def test_a_wrong_job_is_refused_before_a_server_starts(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("name = 'x'\n")
    with pytest.raises(FloodlitError, match="dataset: Field required"):
        floodlit.run(tmp_path / "job.toml")


def test_a_script_that_a_worker_imports_does_not_start_the_job_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        "import floodlit\n"
        "if __name__ == '__mp_main__':  # what multiprocessing calls the script in the process it starts\n"
        "    floodlit.run('job.toml')\n"
        "else:\n"
        "    multiprocessing.get_context('spawn').Process(target=print).start()\n"
    )
    told = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False).stderr
    assert told.splitlines()[-1].endswith('call it under `if __name__ == "__main__":`')


PIXELS = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"forwards": 0}, "forwards: give a whole number of at least 1, not 0"),
        ({"batch": 2.5}, "batch: give a whole number of at least 1, not 2.5"),
        ({"model": nn.Flatten()}, r"model: give what floodlit\.load returned, or floodlit\.Classifier"),
        (
            {"inputs": (PIXELS * 255).long()},
            r"images are floats in \[0, 1\], uint8 or uint16, .* torch\.int64",
        ),
        (
            {"inputs": None},
            "inputs are files, PIL images, texts, .*; this is a NoneType",
        ),
        ({"inputs": [PIXELS[0], "a.png"]}, "all of one kind; among these is a Tensor"),
        ({"inputs": [PIXELS[0], PIXELS[0, :, :9]]}, "these tensors have several shapes"),
        ({"targets": "predicted"}, "targets: give one class number, .*; this is 'predicted'"),
        ({"targets": True}, "targets: give one class number"),
    ],
)
def test_what_cannot_be_explained_is_one_line(gap: Any, changes: dict[str, Any], said: str) -> None:
    given = {"model": gap, "inputs": PIXELS, "explainer": "gradcam"} | changes
    with pytest.raises(ValueError, match=said) as refusal:
        floodlit.explain(**given)
    assert "\n" not in str(refusal.value)


def test_maps_are_scored_on_the_inputs_and_the_model_that_they_are_of(gap: Any) -> None:
    found = floodlit.explain(gap, PIXELS, "gradcam")
    with pytest.raises(ValueError, match="the maps are those of other inputs; give the same"):
        floodlit.score(gap, PIXELS.flip(0), found, "sparseness")
    other = floodlit.load(**model("mlp"), input_size=(64, 64))
    with pytest.raises(ValueError, match="the maps are those of another model"):
        floodlit.score(other, PIXELS, found, "sparseness")
    with pytest.raises(ValueError, match="found: give what explain returned; this is a Tensor"):
        floodlit.score(gap, PIXELS, found.maps, "sparseness")


@pytest.mark.parametrize("boxes", [[[9, 9, 1, 1]], [[1, 2, 3]], ["box"]])
def test_boxes_that_are_none_are_one_line(gap: Any, boxes: Any) -> None:
    found = floodlit.explain(gap, PIXELS[:1], "gradcam")
    with pytest.raises(ValueError, match="boxes: give per input a list of xmin, ymin, xmax, ymax"):
        floodlit.score(gap, PIXELS[:1], found, "pointing_game", boxes=[boxes])
    with pytest.raises(ValueError, match=r"boxes: one lies within 0..1; give boxes in pixels of the model's"):
        floodlit.score(gap, PIXELS[:1], found, "pointing_game", boxes=[0.1, 0.1, 0.5, 0.5])
    one = floodlit.score(gap, PIXELS[:1], found, "pointing_game", boxes=[0, 0, 64, 64])
    assert one.values["pointing_game"].tolist() == [1]


def test_a_mask_beside_pixels_is_not_resized_and_one_of_another_size_is_refused() -> None:
    resized = floodlit.load(**model("gap"), resize=80, crop=64)
    corner = np.zeros((64, 64), np.uint8)
    corner[:16, :16] = 255
    found = floodlit.explain(resized, PIXELS[:1], "gradcam")

    def area(mask: Any) -> float:
        scored = floodlit.score(resized, PIXELS[:1], found, "relevance_mass_accuracy", masks=[mask])
        return float(scored.values["relevance_mass_accuracy_area"][0])

    assert area(corner) == area(Image.fromarray(corner)) == (16 * 16) / (64 * 64)
    picture = Image.fromarray(np.zeros((100, 80, 3), np.uint8))
    seen = floodlit.explain(resized, [picture], "gradcam")
    mask = Image.fromarray(corner)
    with pytest.raises(ValueError, match="masks: one is 64x64 where its image is 80x100"):
        floodlit.score(resized, [picture], seen, "relevance_mass_accuracy", masks=[mask])


def test_a_job_and_another_store_are_refused(tmp_path: Path) -> None:
    job = floodlit.Job.model_validate(tiny_job(tmp_path / "run"))
    with pytest.raises(FloodlitError, match="leave store out"):
        floodlit.run(job, tmp_path / "other")
    assert not (tmp_path / "run").exists()
