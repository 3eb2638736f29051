"""Training P-TAME's head on a dataset: what is drawn when, and that neither stops nor processes change it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from explainers.loading import ModelSpec
from explainers.ptame import PTame, load_head
from explainers.ptame_training import PRESETS, DivergedError, TrainingSettings
from runs import model
from storage.datasets import DatasetSpec
from storage.training import TrainingFolder
from tasks.training import DamagedCheckpointError, Event, Plan, StoppedError, fit, fit_in_processes, networks
from tasks.training_data import Crops, Order

SEED = 3


def test_an_epoch_is_a_permutation_of_the_rows_that_train() -> None:
    order = Order(total=25, apart=5, batch=4, processes=1, seed=SEED)
    assert order.held_out == [0, 5, 10, 15, 20]
    assert sorted(order.rows + order.held_out) == list(range(25))
    assert order.steps_per_epoch == 5
    drawn = [key for batch in order.batches(0, 15, rank=0) for key in batch]
    for epoch in range(3):
        assert sorted(row for known, row in drawn if known == epoch) == order.rows
    assert drawn[:20] != [(0, row) for row in order.rows]
    assert [row for _, row in drawn[:20]] != [row for _, row in drawn[20:40]]


def test_a_step_draws_the_same_wherever_the_training_begins() -> None:
    order = Order(total=23, apart=0, batch=4, processes=1, seed=SEED)
    whole = list(order.batches(0, 12, rank=0))
    assert list(order.batches(7, 12, rank=0)) == whole[7:]
    assert all(len(batch) == 4 for batch in whole)


def test_processes_share_a_steps_images() -> None:
    two = Order(total=30, apart=0, batch=3, processes=2, seed=SEED)
    one = Order(total=30, apart=0, batch=6, processes=1, seed=SEED)
    ranks = [list(two.batches(0, 7, rank)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == list(one.batches(0, 7, rank=0))


@pytest.fixture
def photographs(tmp_path: Path) -> DatasetSpec:
    """Ten images of 20x30 whose pixels tell their place; the fourth is damaged."""
    for index in range(10):
        y, x = np.mgrid[:20, :30]
        Image.fromarray(np.stack([y, x, np.full_like(x, index)], -1).astype(np.uint8)).save(
            tmp_path / f"{index}.png"
        )
    (tmp_path / "3.png").write_bytes(b"no image")
    return DatasetSpec(kind="folder", path=tmp_path)


def crops(spec: DatasetSpec, **changes: Any) -> Crops:
    geometry = {"resize": None, "crop": 16, "interpolation": "bilinear"}
    return Crops(spec, geometry, (16, 16), SEED, **{"flip": True} | changes)


def test_crops_are_random_pieces_of_the_image_half_of_them_flipped(photographs: DatasetSpec) -> None:
    data, again = crops(photographs), crops(photographs)
    tops, lefts, flips = set(), set(), 0
    for epoch in range(60):
        piece = data[epoch, 5]
        assert piece.shape == (3, 16, 16)
        assert torch.equal(piece, again[epoch, 5])
        y, x = piece[0], piece[1].int()
        assert (y[1:].int() - y[:-1].int() == 1).all()
        step = x[:, 1:] - x[:, :-1]
        assert (step == 1).all() or (step == -1).all()
        flips += int(step[0, 0] == -1)
        tops.add(int(y.min()))
        lefts.add(int(x.min()))
    assert tops == {0, 1, 2, 3, 4}
    assert len(lefts) > 10
    assert 15 < flips < 45


def test_held_out_images_are_cut_at_the_centre(photographs: DatasetSpec) -> None:
    piece = crops(photographs)[-1, 5]
    assert (int(piece[0].min()), int(piece[1].min())) == (2, 7)
    assert (piece[1][:, 1:].int() - piece[1][:, :-1].int() == 1).all()


def test_nothing_is_flipped_that_must_not_be(photographs: DatasetSpec) -> None:
    data = crops(photographs, flip=False)
    for epoch in range(20):
        piece = data[epoch, 2][1].int()
        assert (piece[:, 1:] - piece[:, :-1] == 1).all()


def test_in_place_of_a_damaged_image_comes_the_next_one(photographs: DatasetSpec) -> None:
    data = crops(photographs)
    assert int(data[-1, 3][2].min()) == 4
    assert torch.equal(data[-1, 3], data[-1, 4])


def plan_of(root: Path, steps: int = 12, **changes: Any) -> Plan:
    """A small training on the demo's digits, of a head for its first network on an untrained one."""
    order = Order(total=64, apart=8, batch=8, processes=1, seed=SEED)
    plan = Plan(
        folder=TrainingFolder.create_or_open(root, {"steps": steps}, {}),
        model=ModelSpec(**model("gap")),
        auxiliary=ModelSpec(source="toys:tapped", weights="none"),
        taps=("blocks.0", "blocks.1", "blocks.2"),
        dataset=DatasetSpec(kind="digits", split="train", limit=64),
        geometry={"resize": None, "crop": None, "interpolation": "bilinear"},
        input_size=(64, 64),
        order=order,
        settings=TrainingSettings(steps, PRESETS["resnet50"], seed=SEED),
        accumulate=1,
        flip=False,
        workers=0,
        numbers=4,
        validation=6,
        checkpoint=1e9,
    )
    return replace(plan, **changes)


def never() -> bool:
    return False


class After:
    """Asks to stop after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, list[Event]]:
    plan, events = plan_of(tmp_path_factory.mktemp("whole")), []
    fit(plan, 0, events.append, never)
    return plan, events


def test_numbers_validations_and_the_head_come_out(whole: tuple[Plan, list[Event]]) -> None:
    plan, events = whole
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
        }
        weights = PRESETS["resnet50"].weights
        total = weights.ce * values["loss_ce"] + weights.area * values["loss_area"]
        assert values["loss"] == pytest.approx(total, rel=1e-5)
        assert 0 < values["mask_area"] < 1
    validated = {event.step: event.values for event in events if event.picture}
    assert list(validated) == [6, 12]
    for values in validated.values():
        assert set(values) == {"held_out_average_drop_15", "held_out_increase_in_confidence_15"}
        assert all(0 <= value <= 1 for value in values.values())
    assert plan.folder.picture.stat().st_size > 5_000
    _, config, _ = load_head(plan.folder.head)
    assert config.training == {"steps": 12, "hash": plan.folder.hash}
    classifier, _ = networks(plan, "cpu")
    with classifier:
        assert PTame(classifier, PTame.Parameters(head=plan.folder.head)).describe().grid == (32, 32)


@pytest.mark.parametrize("stops", [[1], [5, 3], [11]])
def test_a_stopped_training_goes_on_to_the_same_head_bit_for_bit(
    stops: list[int], whole: tuple[Plan, list[Event]], tmp_path: Path
) -> None:
    plan = plan_of(tmp_path / "run")
    done = 0
    for steps in stops:
        done += steps
        with pytest.raises(StoppedError, match=f"stopped after step {done} of 12"):
            fit(plan, 0, lambda _: None, After(steps))
    assert not plan.folder.head.exists()
    fit(plan, 0, lambda _: None, never)
    one, other = load_head(plan.folder.head)[0], load_head(whole[0].folder.head)[0]
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_decoding_ahead_changes_nothing(whole: tuple[Plan, list[Event]], tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "run", workers=1)
    fit(plan, 0, lambda _: None, never)
    one, other = load_head(plan.folder.head)[0], load_head(whole[0].folder.head)[0]
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


def test_two_processes_train_as_one_with_two_parts_a_batch(tmp_path: Path) -> None:
    """Running means apart, which belong to each process's own images."""
    parts = plan_of(tmp_path / "parts", steps=4, accumulate=2, numbers=1)
    fit(parts, 0, lambda _: None, never)
    two = plan_of(tmp_path / "two", steps=4, numbers=1)
    two = replace(two, order=replace(two.order, batch=4, processes=2))
    events: list[Event] = []
    fit_in_processes(two, events.append, never)
    assert [event.step for event in events if not event.picture] == [1, 2, 3, 4]
    one, other = load_head(parts.folder.head)[0], load_head(two.folder.head)[0]
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-4, msg=name)
    assert not list(two.folder.root.glob("rendezvous*"))


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint_is_told_and_left_alone(damage: bytes | None, tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "run")
    with pytest.raises(StoppedError):
        fit(plan, 0, lambda _: None, After(1))
    whole = plan.folder.checkpoint.read_bytes()
    plan.folder.checkpoint.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises(
        DamagedCheckpointError, match=r"checkpoint\.pt cannot be read; restore it, or delete it"
    ):
        fit(plan, 0, lambda _: None, never)
    plan.folder.checkpoint.unlink()
    with pytest.raises(StoppedError, match="after step 2"):
        fit(plan, 0, lambda _: None, After(2))


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "run")
    with pytest.raises(StoppedError):
        fit(plan, 0, lambda _: None, After(3))
    before = plan.folder.checkpoint.read_bytes()
    preset = plan.settings.preset
    weights = replace(preset.weights, ce=float("nan"))
    broken = replace(plan, settings=replace(plan.settings, preset=replace(preset, weights=weights)))
    with pytest.raises(DivergedError, match="loss of step 3 is nan"):
        fit(broken, 0, lambda _: None, never)
    assert plan.folder.checkpoint.read_bytes() == before
    assert not plan.folder.head.exists()
