"""The sweep over image classifiers: its checks find what is wrong, and a limit costs one row."""

import argparse
import copy
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toys
from explainers.models.classifier import Classifier
from places import ROOT, program


@pytest.fixture(scope="module")
def models() -> ModuleType:
    """The program benchmarks/models.py."""
    return program("benchmarks/models.py")


@pytest.fixture
def checks(models: ModuleType) -> ModuleType:
    return importlib.import_module("sweep.checks")


@pytest.fixture
def examined(models: ModuleType) -> ModuleType:
    return importlib.import_module("sweep.examined")


class Grid(nn.Module):
    """Means of blocks of the input, each 4x6 pixels, on an 8x4 grid that ``wiring`` may rearrange."""

    def __init__(self, wiring: Callable[[Tensor], Tensor], read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, (4, 6), (4, 6))
        self.wired = Wired(wiring)
        self.last = nn.Linear(6, 5)
        self.read = read

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.read(self.wired(self.conv(inputs))))


class Wired(nn.Module):
    """A function as a module, so that its output can be named."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, found: Tensor) -> Tensor:
        return self.function(found)


def mean(maps: Tensor) -> Tensor:
    return maps.mean((2, 3))


def grid(
    wiring: Callable[[Tensor], Tensor] = lambda maps: maps, read: Callable[[Tensor], Tensor] = mean
) -> Classifier:
    return Classifier(Grid(wiring, read), layer="wired", input_size=(32, 24))


def test_a_sound_network_passes_every_check(checks: ModuleType) -> None:
    with grid() as sound:
        assert [each(sound) for each in (checks.head, checks.reach, checks.follows)] == [None] * 3


@pytest.mark.parametrize(
    "wiring",
    [
        lambda maps: maps.flip(2),
        lambda maps: maps.flip(3),
        lambda maps: maps.mT.reshape(maps.shape),  # cells column by column
        lambda maps: maps.flatten(2)[
            ..., torch.randperm(32, generator=torch.Generator().manual_seed(1))
        ].view(maps.shape),
        lambda maps: maps.mean((2, 3), keepdim=True).expand_as(maps),
    ],
    ids=["upside down", "mirrored", "by columns", "shuffled", "all alike"],
)
def test_the_moving_patch_finds_cells_that_lie_elsewhere(
    checks: ModuleType, wiring: Callable[[Tensor], Tensor]
) -> None:
    with grid(wiring) as scrambled:
        assert checks.follows(scrambled).startswith("patch: ")


def test_cells_that_change_nearly_alike_are_said_to_tell_nothing(checks: ModuleType) -> None:
    def mixed(maps: Tensor) -> Tensor:
        return maps.mean((2, 3), keepdim=True) + 0.01 * maps.flip(2, 3)

    with grid(mixed) as washed_out:
        assert checks.follows(washed_out).startswith("unclear: all cells change nearly alike; patch: ")


def test_cells_that_the_head_does_not_read_are_found(checks: ModuleType) -> None:
    with grid(read=lambda maps: maps[:, :, 1:].mean((2, 3))) as deaf:
        assert checks.reach(deaf).startswith("reach: 4 of 8x4 cells do not reach the logits, such as (0, 0)")
    with grid(read=lambda maps: maps[:, :, :7].mean((2, 3))) as strided:
        assert checks.reach(strided) is None  # as a pooling with a stride leaves the last row out


def test_a_cell_without_a_gradient_may_still_reach_the_logits(checks: ModuleType) -> None:
    with grid(read=lambda maps: (maps - 3).clamp(min=0).mean((2, 3))) as behind_a_threshold:
        assert checks.reach(behind_a_threshold) is None


def test_a_head_that_reads_something_else_is_found(
    checks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with grid() as sound:
        last: list[Tensor] = []
        whole = sound.activations
        monkeypatch.setattr(sound, "activations", lambda inputs: (last.append(inputs), whole(inputs))[1])
        # It gives the logits of whatever ran last, which is right for an input that nothing came after.
        monkeypatch.setattr(sound, "head", lambda maps: sound.logits(last[-1])[: len(maps)])
        assert checks.head(sound).startswith("head: the logits of three inputs differ")


def test_a_head_that_ignores_its_input_is_found_beside_a_large_bias(checks: ModuleType) -> None:
    network = Grid(lambda maps: maps, mean)
    with torch.no_grad():
        network.last.weight.mul_(1e-2)
        network.last.bias.copy_(torch.linspace(0, 100, 5))
    with Classifier(network, layer="wired", input_size=(32, 24)) as blind:
        constant = SimpleNamespace(
            input_shape=blind.input_shape,
            device=blind.device,
            activations=blind.activations,
            logits=blind.logits,
            head=lambda maps: blind.head(torch.zeros_like(maps)),
        )
        assert "of their change" in checks.head(constant)


def test_maps_of_another_layer_are_no_maps_of_the_layer_named_by_hand(checks: ModuleType) -> None:
    network = Grid(lambda maps: maps.relu(), mean)
    with (
        Classifier(network, layer="wired", input_size=(32, 24)) as found,
        Classifier(copy.deepcopy(network), layer="wired", input_size=(32, 24)) as same,
        Classifier(copy.deepcopy(network), layer="conv", input_size=(32, 24)) as other,
    ):
        assert checks.maps_by_hand(found, same) is None
        assert checks.maps_by_hand(found, other).startswith("by hand: maps differ from those at conv")


def test_tokens_and_attention_of_a_transformer_pass(checks: ModuleType) -> None:
    with toys.vit() as sound:
        assert checks.token_dropping(sound) is None
        assert checks.attention(sound) is None


def test_tokens_that_are_masked_in_the_pixels_are_found(
    checks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with toys.vit() as sound:
        whole = sound.logits_of_patches

        def leaks(inputs: Tensor, keep: Tensor) -> Tensor:
            return whole(inputs, keep) + inputs[..., -1].mean((1, 2))[:, None] * ~keep.all(1, keepdim=True)

        monkeypatch.setattr(sound, "logits_of_patches", leaks)
        assert checks.token_dropping(sound).startswith("token dropping: absent patches change the logits")
        monkeypatch.setattr(sound, "logits_of_patches", lambda inputs, keep: sound.logits(inputs))
        assert checks.token_dropping(sound) == "token dropping: leaving patches out changes nothing"


def test_parameters_that_hide_a_branch_are_drawn_and_others_stay(examined: ModuleType) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(16, 16)
    )
    with torch.no_grad():
        network[4].weight.mul_(0.01)
        for parameter in (network[0].weight, network[1].weight, network[0].bias):
            parameter.zero_()
        network[3].weight.fill_(1e-6)
    before = copy.deepcopy(network.state_dict())
    examined.draw(network)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"0.weight", "1.weight", "3.weight", "4.weight"}
    assert float(network[4].weight.detach().std()) == pytest.approx(1 / 4)  # each number keeps its size
    assert bool(((network[3].weight >= 0.1) & (network[3].weight <= 0.3)).all())


class Fake:
    """A process that neither ends nor answers."""

    pid, exitcode = -1, -9

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.calls.append(name)


@pytest.mark.parametrize(
    ("age", "gigabytes", "told"), [(11, 1, "more than 10 s"), (1, 3, "more than 2 GB"), (1, 1, None)]
)
def test_a_model_that_reaches_a_limit_is_killed_and_gets_a_row(
    models: ModuleType, monkeypatch: pytest.MonkeyPatch, age: float, gigabytes: float, told: str | None
) -> None:
    monkeypatch.setattr(models, "memory", lambda process: gigabytes)
    process = Fake()
    entry = models.Entry("timm", "endless", "module")
    answer = SimpleNamespace(poll=lambda: False, close=lambda: None)
    model = models.Running(entry, process, answer, time.monotonic() - age)
    row = models.ended(model, argparse.Namespace(seconds=10, memory=2))
    assert (row is None) == (told is None)
    assert process.calls == ([] if told is None else ["kill", "join"])
    if told is not None:
        assert row["status"] == "failed"
        assert told in row["reason"]


def test_a_sweep_adds_the_rows_that_are_missing(
    models: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []

    def rows(waiting: list[Any], _: argparse.Namespace) -> list[dict[str, Any]]:
        asked.append([each.name for each in waiting])
        found = {"source": "torchvision", "status": "works", "reason": "", "layer": "layer4", "listed": "yes"}
        return [
            found | {"name": each.name, "passes_to_find": 26, "seconds_to_find": 6} for each in waiting[:1]
        ]

    monkeypatch.setattr(models, "rows", rows)
    command = f"--out {tmp_path}/m.csv --sources torchvision --only resnet18 resnet34".split()
    models.main(command)
    models.main(command)
    assert asked == [["resnet18", "resnet34"], ["resnet34"]]
    told = capsys.readouterr().out
    assert "works 2, refused 0, wrong 0, unclear 0, failed 0, of 2" in told
    assert "for 2 models\n  resnet18: 26 passes, 6 s" in told


def test_the_page_counts_every_row_and_lists_those_that_are_listed(
    models: ModuleType, examined: ModuleType
) -> None:
    row = dict.fromkeys(examined.COLUMNS, "")
    row |= {"source": "timm", "status": "works", "listed": "yes", "parameters": "1500000", "layer": "stages"}
    rows = [
        row | {"name": "small", "versions": "torch 2, timm 1"},
        row | {"name": "other", "listed": "no"},
        row | {"name": "third", "listed": "no", "status": "refused", "reason": "model.layer: a|b"},
        row | {"name": "fourth", "status": "refused", "reason": "model.layer: a|b"},
    ]
    told = models.page(rows, {"torchvision": 80, "timm": 98, "open_clip": 23, "huggingface": 44})
    assert "| timm | the smallest model of every module | 2 of 98 | 1 | 1 | 0 | 0 |" in told
    assert "| timm | every model below 60 million parameters | 4 | 2 | 2 | 0 | 0 |" in told
    assert "| small |  | 1.5 |" in told
    assert "| other |" not in told
    assert "| fourth | refused | model.layer: a\\|b |" in told
    assert "Versions: timm 1, torch 2." in told


def test_the_page_is_made_of_the_rows_in_the_file(models: ModuleType) -> None:
    told = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    current = told == models.page(models.read(models.OUT), models.totals())
    assert current, "run `python benchmarks/models.py --table docs/models.md`"


def test_nothing_in_the_file_is_wrong(models: ModuleType) -> None:
    assert [row["name"] for row in models.read(models.OUT) if row["status"] == "wrong"] == []
