"""Training P-TAME's head on a dataset: what it tells, and that stops do not change it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from explainers.models.loading import ModelSpec
from explainers.models.ptame_head import load_head
from explainers.ptame import PTame
from storage.datasets.kinds.folder import Folder
from storage.datasets.reading import Bands
from tasks.training.data import Order, UnusableImagesError
from tasks.training.fitting import CheckpointError, StoppedError, TrainingEvent, TrainingSetup, fit, networks
from tasks.training.optimisation import PRESETS, DivergedError, Training, TrainingSettings
from training_runs import After, never, plan_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingSetup, list[TrainingEvent]]:
    setup, events = plan_of(tmp_path_factory.mktemp("whole")), []
    fit(setup, 0, events.append, never)
    return setup, events


def test_numbers_validations_and_the_head_come_out(whole: tuple[TrainingSetup, list[TrainingEvent]]) -> None:
    setup, events = whole
    numbers = {event.step: event.values for event in events if not event.picture}
    assert list(numbers) == [4, 8, 12]
    for values in numbers.values():
        assert set(values) == {
            "loss",
            "loss_ce",
            "loss_area",
            "loss_tv",
            "mask_area",
            "learning_rate",
            "images_per_second",
            "images_replaced",
        }
        weights = PRESETS["resnet50"].weights
        total = weights.ce * values["loss_ce"] + weights.area * values["loss_area"]
        assert values["loss"] == pytest.approx(total, rel=1e-5)
        assert 0 < values["mask_area"] < 1
    validated = {event.step: event.values for event in events if event.picture}
    assert list(validated) == [6, 12]
    for values in validated.values():
        names = ("average_drop_15", "increase_in_confidence_15", "average_gain_15")
        assert set(values) == {f"held_out_{name}" for name in (*names, "images_replaced")}
        assert all(0 <= value <= 1 for value in values.values())
    assert setup.folder.picture.stat().st_size > 5_000
    _, config, _ = load_head(setup.folder.head)
    assert config.training == {"steps": 12, "hash": setup.folder.hash}
    classifier, _ = networks(setup, "cpu")
    with classifier:
        assert PTame(classifier, PTame.Parameters(head=setup.folder.head)).describe().grid == (32, 32)


@pytest.mark.parametrize("stops", [[1], [5, 3], [11]])
def test_a_stopped_training_goes_on_to_the_same_head_bit_for_bit(
    stops: list[int], whole: tuple[TrainingSetup, list[TrainingEvent]], tmp_path: Path
) -> None:
    setup = plan_of(tmp_path / "run")
    done = 0
    for steps in stops:
        done += steps
        with pytest.raises(StoppedError, match=f"stopped after step {done} of 12"):
            fit(setup, 0, lambda _: None, After(steps))
    assert not setup.folder.head.exists()
    killed = setup.folder.checkpoint.with_name("checkpoint.pt.0123.partial")
    killed.write_bytes(b"half")
    fit(setup, 0, lambda _: None, never)
    assert not killed.exists()
    one, other = load_head(setup.folder.head)[0], load_head(whole[0].folder.head)[0]
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_decoding_ahead_changes_nothing_nor_do_signals_to_those_who_decode(
    whole: tuple[TrainingSetup, list[TrainingEvent]], tmp_path: Path
) -> None:
    """Ctrl-C goes to every process of a terminal."""
    setup, signalled = plan_of(tmp_path / "run", workers=1), set()

    def interrupted() -> bool:
        for worker in multiprocessing.active_children():
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(worker.pid, number)
            signalled.add(worker)
        return False

    fit(setup, 0, lambda _: None, interrupted)
    assert len(signalled) == 1
    assert not multiprocessing.active_children()
    one, other = load_head(setup.folder.head)[0], load_head(whole[0].folder.head)[0]
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


def test_unusable_images_are_told_and_too_many_refused(tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    generator = np.random.default_rng(0)
    for row in range(64):
        pixels = generator.integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(photographs / f"{row:02}.png")
    for row in (3, 8):  # the second is held out
        (photographs / f"{row:02}.png").write_bytes(b"")
    dataset = Folder(path=photographs)
    setup = plan_of(tmp_path / "run", steps=7, numbers=7, dataset=dataset)
    events: list[TrainingEvent] = []
    fit(setup, 0, events.append, never)
    told = [(event.step, event.picture, event.problems) for event in events]
    held_out, training = ("08.png: the file is empty",), ("03.png: the file is empty",)
    assert told == [(6, True, held_out), (7, False, training), (7, True, held_out)]
    assert events[1].values["images_replaced"] == events[2].values["held_out_images_replaced"] == 1
    for row in range(1, 64, 2):
        (photographs / f"{row:02}.png").write_bytes(b"")
    other = plan_of(tmp_path / "other", dataset=dataset)
    with pytest.raises(
        UnusableImagesError,
        match=r"^dataset: 2. of .. images drawn cannot be used, e\.g\. .*the file is empty; repair",
    ):
        fit(other, 0, events.append, never)
    assert not other.folder.head.exists()


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint_is_told_and_left_alone(damage: bytes | None, tmp_path: Path) -> None:
    setup = plan_of(tmp_path / "run")
    with pytest.raises(StoppedError):
        fit(setup, 0, lambda _: None, After(1))
    whole = setup.folder.checkpoint.read_bytes()
    setup.folder.checkpoint.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt cannot be read; restore it, or delete it"):
        fit(setup, 0, lambda _: None, never)
    setup.folder.checkpoint.unlink()
    with pytest.raises(StoppedError, match="after step 2"):
        fit(setup, 0, lambda _: None, After(2))


def test_a_checkpoint_of_another_training_is_told(tmp_path: Path) -> None:
    one, other = plan_of(tmp_path / "one"), plan_of(tmp_path / "other", steps=13)
    with pytest.raises(StoppedError):
        fit(one, 0, lambda _: None, After(1))
    other.folder.checkpoint.write_bytes(one.folder.checkpoint.read_bytes())
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.pt belongs to another training; delete it to begin again"
    ):
        fit(other, 0, lambda _: None, never)


def test_nobody_is_told_to_delete_a_checkpoint_for_want_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = plan_of(tmp_path)
    with pytest.raises(StoppedError):
        fit(setup, 0, lambda _: None, After(1))

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("of memory")

    for owner, name in ((torch, "load"), (Training, "load_state_dict")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(torch.OutOfMemoryError):
                fit(setup, 0, lambda _: None, never)


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    setup = plan_of(tmp_path / "run")
    with pytest.raises(StoppedError):
        fit(setup, 0, lambda _: None, After(3))
    before = setup.folder.checkpoint.read_bytes()
    preset = setup.settings.preset
    weights = replace(preset.weights, ce=float("nan"))
    broken = replace(setup, settings=replace(setup.settings, preset=replace(preset, weights=weights)))
    with pytest.raises(DivergedError, match="loss of step 3 is nan"):
        fit(broken, 0, lambda _: None, never)
    assert setup.folder.checkpoint.read_bytes() == before
    assert not setup.folder.head.exists()


def test_a_head_is_trained_on_six_bands_of_sixteen_bits(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(24):
        np.save(
            tmp_path / "images" / f"{index}.npy", random.integers(0, 65536, (6, 32, 16)).astype(np.uint16)
        )
    setup = plan_of(
        tmp_path / "head",
        steps=4,
        model=ModelSpec(source="band_toys:cells", name="6", layer="cells", channels=6),
        auxiliary=ModelSpec(source="band_toys:tapped", name="6", channels=6),
        taps=("0", "1"),
        dataset=Folder(path=tmp_path / "images"),
        bands=Bands(6, "uint16"),
        input_size=(32, 16),
        order=Order(total=24, apart=4, batch=4, processes=1, seed=1),
        validation=4,
    )
    setup = replace(setup, settings=TrainingSettings(4, PRESETS["resnet50"], seed=1))
    events: list[TrainingEvent] = []
    fit(setup, 0, events.append, never)
    assert all(np.isfinite(list(event.values.values())).all() for event in events)
    classifier, _ = networks(setup, "cpu")
    explainer = PTame(classifier, PTame.Parameters(head=setup.folder.head))
    assert explainer.describe().grid == (16, 8)
    other = replace(setup, auxiliary=ModelSpec(source="band_toys:tapped", name="3"))
    with pytest.raises(ValueError, match=r"^auxiliary: Sequential does not take 6 channels of 32x16 pixels"):
        networks(other, "cpu")
