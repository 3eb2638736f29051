"""Weights under names that are not the network's are noticed; what an optimizer keeps is no weights."""

import random
from collections import OrderedDict

import pytest
import torch
from torch import nn

from explainers.models.checkpoint_rest import of_optimizer
from explainers.models.checkpoints import load_weights, taken_for


def network(seed=0):
    torch.manual_seed(seed)
    layers = {"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4), "fc": nn.Linear(4, 2)}
    return nn.Sequential(OrderedDict(layers))


STATE, EMA = network(1).state_dict(), network(2).state_dict()
PARAMETERS = {name: value for name, value in EMA.items() if name in dict(network().named_parameters())}
RAW = {f"model.{name}": value for name, value in STATE.items()}


def renamed(state, separator="", start=""):
    return {f"{start}{name.replace('.', separator)}": value for name, value in state.items()}


def numbered(state):
    return dict(enumerate(state.values()))


def shuffled(state):
    names = list(state)
    random.Random(0).shuffle(names)
    return {name: state[name] for name in names}


LIT = {
    **renamed(PARAMETERS, start="model_ema."),
    "model_ema.decay": torch.tensor(0.9999),
    "model_ema.num_updates": torch.tensor(7, dtype=torch.int),
}


def load(content, folder, key=None):
    torch.save(content, folder / "file.pth")
    found = network()
    load_weights(found, folder / "file.pth", key)
    return found.state_dict(), taken_for[found].key


def refusal(content, folder, key=None):
    with pytest.raises(ValueError, match=r"^model\.weights(_key)?: ") as refused:
        load(content, folder, key)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def same(found, state):
    return all(torch.equal(found[name], value) for name, value in state.items())


# The file, where the raw weights are, and where the averages.
AVERAGES = {
    "LitEma": ({"state_dict": RAW | LIT}, "state_dict.model", "state_dict.model_ema"),
    "LitEma at the top": (RAW | LIT, "model", "model_ema"),
    "LitEma in a table": ({"model": STATE, "ema": renamed(PARAMETERS)}, "model", "ema"),
    "underscores": ({"model": STATE, "ema": renamed(EMA, "_")}, "model", "ema"),
    "underscores at the top": (RAW | renamed(PARAMETERS, "_", "ema_"), "model", "ema"),
    "slashes": ({"model": STATE, "swa": renamed(EMA, "/")}, "model", "swa"),
    "numbers": ({"model": STATE, "ema": numbered(PARAMETERS)}, "model", "ema"),
    "numbers in a table": ({"model": STATE, "ema": {"n": 1, "shadow": numbered(EMA)}}, "model", "ema.shadow"),
    "another order": ({"model": STATE, "ema": renamed(shuffled(EMA), "_")}, "model", "ema"),
    "list": (
        {"model": STATE, "ema": {"decay": 0.99, "shadow_params": list(PARAMETERS.values())}},
        "model",
        "ema.shadow_params",
    ),
    "tables in a list": ({"model": STATE, "averages": [0.99, renamed(EMA)]}, "model", "averages.1"),
    "without buffers": ({"model": STATE, "ema": PARAMETERS}, "model", "ema"),
    "other endings": (
        {"model": STATE, "more": {f"{name}_ema": value for name, value in PARAMETERS.items()}},
        "model",
        "more",
    ),
    "one value differs": (
        {"model": STATE, "ema": renamed(STATE | {"fc.bias": STATE["fc.bias"] + 1e-6})},
        "model",
        "ema",
    ),
    "other types": (
        {"model": STATE, "ema": {name: value.half() for name, value in renamed(EMA).items()}},
        "model",
        "ema",
    ),
    "more tensors": ({"model": STATE, "ema": renamed(EMA) | {"loss": torch.ones(9)}}, "model", "ema"),
    "one value shared": (
        {"model": STATE, "ema": renamed(EMA | {"fc.bias": STATE["fc.bias"]})},
        "model",
        "ema",
    ),
    "state at the top": (
        {"model": STATE, "state": {}, "param_groups": [], "ema": renamed(EMA)},
        "model",
        "ema",
    ),
    "beside an optimizer": (
        {"model": STATE, "optimizer": {"state": numbered(EMA)}, "ema": renamed(EMA)},
        "model",
        "ema",
    ),
}


@pytest.mark.parametrize("content", AVERAGES)
def test_averages_under_other_names_are_not_passed_over(content, tmp_path):
    written, raw, averages = AVERAGES[content]
    assert refusal(written, tmp_path).endswith(
        f"holds several sets of weights that differ, '{raw}', '{averages}'; name the one to take "
        f"('{averages}' can be taken only after it was saved with all of the network's names)"
    )
    found, key = load(written, tmp_path, raw)
    assert same(found, STATE)
    assert key == raw
    refusal(written, tmp_path, averages)  # never the raw ones


EQUAL = {name: value.clone() for name, value in STATE.items()}
OTHERS = {
    "an equal copy": renamed(EQUAL, "_"),
    "an equal list": [EQUAL[name] for name in PARAMETERS],
    "one tensor less": {name: value for name, value in renamed(PARAMETERS).items() if name != "fcbias"},
    "another size": renamed(EMA | {"fc.weight": torch.ones(7, 4)}),
    "numbers": {"best": 3.0, "history": [0.1] * 100, "rng": torch.get_rng_state()},
}


@pytest.mark.parametrize("content", OTHERS)
def test_what_is_no_other_set_is_passed_over(content, tmp_path):
    found, key = load({"model": STATE, "more": OTHERS[content]}, tmp_path)
    assert same(found, STATE)
    assert key == "model"


def test_averages_of_what_is_trained_alone_are_noticed(tmp_path):
    class Frozen(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.position = nn.Parameter(torch.ones(5), requires_grad=False)

    averages = [torch.zeros(2, 3), torch.zeros(2)]
    torch.save({"model": Frozen().state_dict(), "ema": averages}, tmp_path / "frozen.pth")
    with pytest.raises(ValueError, match=r"^model\.weights_key: .*'model', 'ema'; name the one"):
        load_weights(Frozen(), tmp_path / "frozen.pth")


def trained(kind, **options):
    """Weights after two steps, and the state of the optimizer."""
    model = network(3)
    optimizer = kind(model.parameters(), lr=0.1, **options)
    for _ in range(2):
        optimizer.zero_grad()
        model.fc(model.norm(model.conv(torch.rand(4, 3, 3, 3))).flatten(1)).square().sum().backward()
        optimizer.step()
    return model, optimizer


OPTIMIZERS = {
    "Adam": (torch.optim.Adam, {"amsgrad": True}),
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "RMSprop": (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    "Adadelta": (torch.optim.Adadelta, {}),
    "Adagrad": (torch.optim.Adagrad, {}),
    "Adamax": (torch.optim.Adamax, {}),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_checkpoints_of_a_training_load_beside_the_state_of_its_optimizer(kind, tmp_path):
    model, optimizer = trained(OPTIMIZERS[kind][0], **OPTIMIZERS[kind][1])
    state, kept = model.state_dict(), optimizer.state_dict()
    names = [name for name, _ in model.named_parameters()]
    named = {name: kept["state"][number] for number, name in enumerate(names)}
    for content in (
        {"model": state, "optimizer": kept, "epoch": 3},
        {"model": state, "optim_state": kept["state"]},
        {"model": state, kind.lower(): kept},
        {"state_dict": state, "optimizer_states": [kept], "lr_schedulers": [{"last_epoch": 3}]},
        {"model": state, "optimizer": {"state": named, "param_groups": [{"params": names}]}},
        {"model": state, "training": {"solver": {"state": named, "param_groups": []}}},
        {"model": state, **kept},
    ):
        found, key = load(content, tmp_path)
        assert same(found, state)
        assert key in {"model", "state_dict"}


@pytest.mark.parametrize(
    "moment", ["exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "optimizer.m"]
)
@pytest.mark.parametrize("values", [EMA, PARAMETERS, renamed(EMA), numbered(EMA), list(EMA.values())])
def test_moments_in_a_table_of_their_own_are_no_weights(moment, values, tmp_path):
    for table in (moment, f"more.{moment}"):
        found, _ = load({"model": STATE, table: values}, tmp_path)
        assert same(found, STATE)


def test_a_file_of_moments_alone_is_told_as_such(tmp_path):
    assert "holds the state of an optimizer and no weights" in refusal({"optimizer": {"m": EMA}}, tmp_path)


@pytest.mark.parametrize(
    "name", ["optimal", "optimized.fc", "swa", "average_model", "momentum_encoder", "adam"]
)
def test_words_that_only_look_like_an_optimizer_are_none(name):
    assert not of_optimizer(name)
