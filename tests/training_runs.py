"""A small training of P-TAME's head, and ways to stop it; here, where processes that it starts find them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from explainers.models.loading import ModelSpec
from runs import model
from storage.datasets.kinds.digits import Digits
from storage.training import TrainingFolder
from tasks.training.data import Order
from tasks.training.fitting import TrainingSetup
from tasks.training.optimisation import PRESETS, TrainingSettings

SEED = 3


def plan_of(root: Path, steps: int = 12, **changes: Any) -> TrainingSetup:
    """A small training on the demo's digits, of a head for its first network on an untrained one."""
    order = Order(total=64, apart=8, batch=8, processes=1, seed=SEED)
    setup = TrainingSetup(
        folder=TrainingFolder.create_or_open(root, {"steps": steps}, {}),
        model=ModelSpec(**model("gap")),
        auxiliary=ModelSpec(source="toys:tapped", weights="none"),
        taps=("blocks.0", "blocks.1", "blocks.2"),
        dataset=Digits(split="train", limit=64),
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
    return replace(setup, **changes)


def never() -> bool:
    return False


class After:
    """Asks to stop after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


@dataclass(frozen=True)
class SlowFolder(TrainingFolder):
    """One that takes two seconds to say where its checkpoint is, from when there is a file ``slow`` in it."""

    @property
    def checkpoint(self) -> Path:
        if (self.root / "slow").exists():
            time.sleep(2)
        return super().checkpoint
