"""Weights are found however they are wrapped; what is ambiguous or damaged is refused in one line."""

import argparse
import json
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from explainers.models.checkpoint_sets import MisfitError
from explainers.models.checkpoints import load_weights, taken_for


def network(seed=0):
    torch.manual_seed(seed)
    layers = {"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4), "fc": nn.Linear(4, 2)}
    return nn.Sequential(OrderedDict(layers))


STATE, EMA = network(1).state_dict(), network(2).state_dict()


def prefixed(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


def load(content, folder, key=None, name="file.pth"):
    """The network with the weights of a file, and what was taken."""
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    found = network()
    load_weights(found, path, key)
    return found.state_dict(), taken_for[found]


def refusal(content, folder, key=None, name="file.pth"):
    with pytest.raises(ValueError, match=r"^model\.weights(_key)?: ") as refused:
        load(content, folder, key, name)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def same(found, state):
    return all(torch.equal(found[name], value.to(found[name].dtype)) for name, value in state.items())


def averaged(state):
    model = network()
    model.load_state_dict(state)
    return AveragedModel(model).state_dict()


def inside(state, *, start="", wrapper="_orig_mod"):
    """Names with a wrapper behind their first part, as a wrapped part of a network has them."""
    return {f"{start}{name.replace('.', f'.{wrapper}.', 1)}": value for name, value in state.items()}


WRAPPED = {
    "plain": (STATE, ""),
    "state_dict": (
        {"state_dict": STATE, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": EMA}}}},
        "state_dict",
    ),
    "model_state_dict": ({"model_state_dict": STATE, "loss": torch.tensor(0.5)}, "model_state_dict"),
    "net": ({"net": STATE, "acc": 91.2}, "net"),
    "network": ({"network": {"weights": STATE}}, "network.weights"),
    "params": ({"params_of_anything": STATE}, "params_of_anything"),
    "parallel": (prefixed(STATE, "module."), "module"),
    "compiled": (prefixed(STATE, "_orig_mod."), "_orig_mod"),
    "parallel compiled": ({"model": prefixed(STATE, "module._orig_mod.")}, "model.module._orig_mod"),
    "compiled inside": (inside(STATE), ""),
    "parallel inside": ({"net": inside(STATE, start="model.", wrapper="module")}, "net.model"),
    "lightning": (
        {
            "state_dict": prefixed(STATE, "model.") | {"criterion.weight": torch.ones(2)},
            "callbacks": {"ModelCheckpoint": {"best": torch.tensor(1.0)}},
            "loops": {},
        },
        "state_dict.model",
    ),
    "lightning net": ({"state_dict": prefixed(STATE, "net.backbone.")}, "state_dict.net.backbone"),
    "unknown beginning": (prefixed(STATE, "my.classifier."), "my.classifier"),
    "averaged": (averaged(STATE), "module"),
    "averaged in a table": ({"swa": averaged(STATE)}, "swa.module"),
    "parts": (
        {
            part: {
                name.removeprefix(f"{part}."): value for name, value in STATE.items() if name.startswith(part)
            }
            for part in ("conv", "norm", "fc")
        },
        "",
    ),
    "equal sets": ({"model": STATE, "model_ema": prefixed(STATE, "module.")}, "model"),
    "another set of another size": (
        {"model": STATE, "ema": STATE | {"fc.weight": torch.ones(7, 4)}},
        "model",
    ),
    "settings": ({"model": STATE, "args": argparse.Namespace(lr=1), "best": np.float64(3)}, "model"),
    "without counters": ({name: value for name, value in STATE.items() if "tracked" not in name}, ""),
}


@pytest.mark.parametrize("content", WRAPPED)
def test_known_and_unknown_wrappings_are_opened_and_told(content, tmp_path):
    written, key = WRAPPED[content]
    found, taken = load(written, tmp_path)
    assert same(found, STATE if "counters" not in content else written)
    assert taken.key == key


TWO = {
    "timm": ({"state_dict": STATE, "state_dict_ema": EMA}, "state_dict", "state_dict_ema"),
    "deit": ({"model": STATE, "model_ema": prefixed(EMA, "module.")}, "model", "model_ema"),
    "at the top": (STATE | {"ema": EMA}, "", "ema"),
    "averaged": ({"model": STATE, "averaged_model": averaged(EMA)}, "model", "averaged_model"),
    "lightning": (
        {"state_dict": prefixed(STATE, "model.") | prefixed(EMA, "ema_model.")},
        "state_dict.model",
        "state_dict.ema_model",
    ),
    "callback": (
        {
            "state_dict": prefixed(STATE, "net."),
            "callbacks": {"EMA": {"ema_state_dict": prefixed(EMA, "net.")}},
        },
        "state_dict",
        "callbacks.EMA",
    ),
    "teacher": (
        {"teacher": prefixed(EMA, "backbone."), "student": prefixed(STATE, "module.")},
        "student",
        "teacher",
    ),
}


@pytest.mark.parametrize("content", TWO)
def test_one_of_several_sets_is_taken_only_by_its_key(content, tmp_path):
    written, raw, ema = TWO[content]
    assert "several sets of weights that differ" in refusal(written, tmp_path)
    for key, state in ((raw, STATE), (ema, EMA)):
        found, taken = load(written, tmp_path, key)
        assert same(found, state)
        assert taken.key.startswith(key)
        assert len(taken.others) == 1
    for named in load(written, tmp_path, raw)[1].others:
        assert same(load(written, tmp_path, named)[0], EMA)


def test_a_key_that_is_not_there_names_those_that_are(tmp_path):
    told = refusal({"state_dict": STATE, "state_dict_ema": EMA}, tmp_path, "ema")
    assert told.endswith("has no 'ema' that fits; it has 'state_dict', 'state_dict_ema'")
    assert refusal({"model": {"conv.weight": torch.ones(1)}}, tmp_path, "ema").endswith(
        "has no weights of the network at 'ema'"
    )


# Types and values


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_cast_and_counted(kind, tmp_path):
    state = {name: value.to(kind) if value.is_floating_point() else value for name, value in STATE.items()}
    for name in ("file.pth", "file.safetensors"):
        found, taken = load(state, tmp_path, name=name)
        assert same(found, state)
        assert taken.cast == {str(kind).removeprefix("torch."): 8}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_quantised_tensors_become_the_numbers_that_they_stand_for(tmp_path):
    quantised = torch.quantize_per_tensor(STATE["fc.weight"], 0.01, 3, torch.qint8)
    found, taken = load(STATE | {"fc.weight": quantised}, tmp_path)
    assert torch.equal(found["fc.weight"], quantised.dequantize())
    assert taken.cast == {"qint8": 1}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (torch.full((2, 4), float("nan")), "fc.weight in .* has values that are not finite"),
        (torch.full((2, 4), float("inf")), "fc.weight in .* has values that are not finite"),
        (torch.full((2, 4), 1e300, dtype=torch.float64), "fc.weight in .* has values that are not finite"),
        (torch.ones(2, 4, dtype=torch.int8), "fc.weight in .* is int8, and float32 in the network"),
        (torch.ones(2, 4, dtype=torch.complex64), "fc.weight in .* is complex64, and float32"),
        (torch.ones(2, 4).to_sparse(), "fc.weight in .* is no dense tensor"),
        ([[1.0] * 4] * 2, "1 tensors are missing, such as fc.weight"),
    ],
)
def test_values_that_say_nothing_are_refused_by_name(value, told, tmp_path):
    assert re.search(told, refusal(STATE | {"fc.weight": value}, tmp_path))


def test_infinities_that_the_network_itself_has_are_kept(tmp_path):
    class Masked(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    torch.save(Masked().state_dict(), tmp_path / "masked.pth")
    load_weights(Masked(), tmp_path / "masked.pth")
    torch.save(Masked().state_dict() | {"mask": torch.tensor([-torch.inf, 0.0])}, tmp_path / "masked.pth")
    with pytest.raises(ValueError, match=r"mask in .* has values that are not finite"):
        load_weights(Masked(), tmp_path / "masked.pth")


def test_layers_that_learn_their_size_from_the_first_input_take_that_of_the_file(tmp_path):
    def lazy():
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))

    made = lazy()
    made(torch.rand(1, 3, 4, 4))
    torch.save({"model": made.state_dict()}, tmp_path / "lazy.pth")
    found = lazy()
    load_weights(found, tmp_path / "lazy.pth")
    assert torch.equal(found[1].weight, made[1].weight)
    torch.save({"model": made.state_dict() | {"1.bias": torch.full((3,), torch.nan)}}, tmp_path / "lazy.pth")
    with pytest.raises(ValueError, match=r"1\.bias in .* has values that are not finite"):
        load_weights(lazy(), tmp_path / "lazy.pth")


# What does not fit


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            prefixed({**STATE, "fc.weight": torch.ones(9, 4)}, "encoder."),
            "its names begin with 'encoder.'; without that, fc.weight is (9, 4) in the file and (2, 4) in",
        ),
        (
            {"net": {name: value for name, value in prefixed(STATE, "enc.").items() if "norm" not in name}},
            "begin with 'net.enc.'; without that, 4 tensors are missing, such as norm.weight; compare the",
        ),
        (
            prefixed(STATE, "net.") | {"net.head.weight": torch.ones(2)},
            "begin with 'net.'; without that, 1 tensors are unknown to the network, such as head.weight; ",
        ),
        ({"a.b": torch.ones(1)}, "no name is known, such as a.b, not conv.weight; check model.name"),
        (STATE | {"module.fc.bias": torch.ones(2)}, "holds fc.bias and module.fc.bias, which differ"),
        ({0: torch.ones(1)}, "holds no state dict (a mapping of names to tensors): its keys are no names"),
        ({"state_dict": {0: torch.ones(1)}}, "holds no state dict"),
        ({"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]}, "the state of an optimizer"),
        (torch.ones(3), "holds no state dict"),
        (None, "holds no state dict"),
        ({}, "holds no state dict"),
    ],
)
def test_what_does_not_fit_is_told_with_what_its_names_begin_with(content, told, tmp_path):
    assert told in refusal(content, tmp_path)


# Other names, in the network's order


def renamed(state, *changes):
    """The same tensors under names in which parts are replaced."""
    names = list(state)
    for old, new in changes:
        names = [re.sub(old, new, name) for name in names]
    return dict(zip(names, state.values(), strict=True))


OTHER = renamed(STATE, ("conv", "stem"), ("norm", "_bn1"), ("fc", "classifier"))


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
def test_other_names_in_the_networks_order_are_taken_and_this_is_noted_and_told(wrap, tmp_path, caplog):
    found, taken = load(wrap(OTHER), tmp_path)
    assert same(found, {name: value for name, value in STATE.items() if "num_batches" not in name})
    assert taken.in_order
    assert "file.pth has other names than the network: its 8 tensors were taken in their order" in caplog.text
    caplog.clear()
    assert not load(STATE, tmp_path)[1].in_order
    assert not caplog.text


def test_counters_of_batches_do_not_matter_to_the_order(tmp_path):
    without = {name: value for name, value in OTHER.items() if not name.endswith("num_batches_tracked")}
    assert same(load(without, tmp_path)[0], {name: STATE[name] for name in ("conv.weight", "fc.bias")})


@pytest.mark.parametrize(
    "content",
    [
        dict(reversed(OTHER.items())),
        {name: value for name, value in OTHER.items() if name != "stem.bias"},
        {**OTHER, "classifier.weight": torch.ones(2, 5)},
        {**OTHER, "more.weight": torch.ones(1)},
        renamed(OTHER, ("running_var", "running_std")),
    ],
    ids=["backwards", "one too few", "another shape", "one too many", "another kind"],
)
def test_tensors_of_other_kinds_shapes_or_order_are_refused(content, tmp_path):
    assert refusal(content, tmp_path).endswith("check model.name")


def test_a_safetensors_file_has_no_order_of_its_own(tmp_path):
    same_order = dict(zip(["a.weight", "b.weight", "b.bias"], torch.ones(3, 2, 2), strict=True))
    save_file(same_order, tmp_path / "file.safetensors")
    layers = {"x": nn.Linear(2, 2, bias=False), "y": nn.Linear(2, 2)}
    found = nn.Sequential(OrderedDict(layers))
    with pytest.raises(ValueError, match="no name is known"):
        load_weights(found, tmp_path / "file.safetensors")


def test_values_that_are_not_finite_are_refused_in_order_too(tmp_path):
    broken = {**OTHER, "stem.bias": torch.tensor([1.0, torch.nan, 0, 0])}
    assert "has values that are not finite" in refusal(broken, tmp_path)


class Attention(nn.Module):
    """Layers that could change places with each other, and blocks that are counted."""

    def __init__(self, names):
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(3, 3))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3)) for _ in range(12))


def loaded(own, content, folder):
    torch.save(content, folder / "file.pth")
    load_weights(own, folder / "file.pth")
    return own.state_dict()


def test_neighbours_of_one_shape_are_told_apart_by_numbers_alone(tmp_path):
    state = Attention(["first1", "first2"]).state_dict()
    other = renamed(state, ("first", "map"), ("blocks", "layers"))
    assert same(loaded(Attention(["first1", "first2"]), other, tmp_path), state)
    told = r"some could be confused; if both are the same network, .*dict\(zip\(network\.state_dict\(\)"
    for own, found in (
        (["q", "k"], renamed(state, ("first1", "key"), ("first2", "query"), ("blocks", "layers"))),
        (["q", "k"], other),
        (["first1", "first2"], renamed(state, ("first1", "a"), ("first2", "b"), ("blocks", "layers"))),
        (["first1", "first2"], renamed(state, ("first1", "f2"), ("first2", "f1"), ("blocks", "layers"))),
    ):
        with pytest.raises(ValueError, match=told):
            loaded(Attention(own), found, tmp_path)


class Gated(nn.Sequential):
    """A gated network, whose first and last projection may stand in either order."""

    def __init__(self, *names):
        super().__init__(
            OrderedDict(zip(names, (nn.Linear(3, 5), nn.Linear(5, 3), nn.Linear(3, 5)), strict=True))
        )


def test_modules_of_one_shape_are_told_apart_where_another_one_stands_between(tmp_path):
    state = Gated("w1", "w2", "w3").state_dict()
    assert same(loaded(Gated("v1", "v2", "v3"), state, tmp_path), renamed(state, ("^w", "v")))
    with pytest.raises(ValueError, match="some could be confused"):
        loaded(Gated("up", "down", "gate"), state, tmp_path)


def test_blocks_whose_numbers_do_not_grow_are_refused(tmp_path):
    """As in a file that was sorted by name, where block 10 comes before block 2."""
    state = Attention([]).state_dict()
    order = sorted(range(12), key=str)
    moved = {
        f"layers.{number}.{rest}": state[f"blocks.{number}.{rest}"]
        for number in order
        for rest in ("0.weight", "0.bias", "1.weight", "1.bias")
    }
    with pytest.raises(ValueError, match="some could be confused"):
        loaded(Attention([]), moved, tmp_path)


def test_a_name_of_the_network_is_given_to_no_other_tensor(tmp_path):
    layers = {"one": nn.Linear(2, 2), "norm": nn.LayerNorm(2), "two": nn.Linear(2, 2)}
    own = nn.Sequential(OrderedDict(layers))
    swapped = renamed(own.state_dict(), ("one", "0"), ("two", "one"), ("0", "two"), ("norm", "ln"))
    with pytest.raises(ValueError, match="does not fit the network"):
        loaded(own, swapped, tmp_path)


def test_another_file_than_the_networks_is_a_misfit_and_leaves_no_record(tmp_path):
    torch.save({"conv.weight": torch.ones(1)}, tmp_path / "other.pth")
    found = network()
    with pytest.raises(MisfitError):
        load_weights(found, tmp_path / "other.pth")
    assert found not in taken_for


def test_a_network_whose_own_names_have_wrappers_parts_takes_its_own_file(tmp_path):
    both = nn.ModuleDict({"module": nn.Linear(2, 2)})
    both.register_buffer("weight", torch.ones(2, 2))  # without module, two tensors would be called weight
    torch.save(both.state_dict(), tmp_path / "both.pth")
    other = nn.ModuleDict({"module": nn.Linear(2, 2)})
    other.register_buffer("weight", torch.zeros(2, 2))
    load_weights(other, tmp_path / "both.pth")
    assert same(other.state_dict(), both.state_dict())


# Files


def zipped(name, content=b""):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)

    return write


def cut(path):
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-300])


def cut_safetensors(path):
    header = json.dumps({"fc.bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header[:-5])


def scripted(path):
    torch.jit.save(torch.jit.script(network()), path)


FILES = {
    "empty.pth": (lambda path: path.write_bytes(b""), "it is empty"),
    "cut.pth": (cut, "its end is missing"),
    "cut.safetensors": (cut_safetensors, "its end is missing"),
    "script.pt": (
        scripted,
        'it is a TorchScript module, which is a network with its weights; set source = "torchscript"',
    ),
    "module.pth": (lambda path: torch.save(network(), path), "save network.state_dict() alone"),
    "pickle.bin": (
        lambda path: path.write_bytes(pickle.dumps(pickle.Pickler)),
        "torch.save did not write it",
    ),
    "photos.pth": (zipped("photo.jpg"), "it is a zip file that holds photo.jpg, and no weights"),
    "zip.pth": (zipped("x/data.pkl", b"junk"), "it is damaged"),
    "pointer.bin": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
    "page.pth": (lambda path: path.write_text("<!doctype html>"), "it is a web page"),
    "packed.tar": (lambda path: path.write_bytes(b"\x1f\x8b\x08\0"), "unpack it first"),
    "text.ckpt": (lambda path: path.write_text("not a checkpoint"), "neither a safetensors file nor a torch"),
    "torch.safetensors": (lambda path: torch.save(STATE, path), "rename it so that it ends in .pth"),
    "safe.pth": (lambda path: save_file(STATE, path), "rename it so that it ends in .safetensors"),
    "folder.pth": (lambda path: path.mkdir(), "is a folder, not a file"),
    "pipe.pth": (os.mkfifo, "is a pipe, not a file"),
    "zero.pth": (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
    "gone.pth": (lambda path: None, "there is no file"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_kind_is_refused_with_what_to_do(name, tmp_path):
    make, told = FILES[name]
    make(tmp_path / name)
    with pytest.raises(ValueError, match=r"^model\.weights: ") as refused:
        load_weights(network(), tmp_path / name)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


values = st.recursive(
    st.sampled_from(
        [torch.ones(2), torch.ones(2, 3), torch.tensor(float("nan")), 3, None, "x", [1], STATE, EMA]
    ),
    lambda inner: st.dictionaries(
        st.sampled_from(["model", "module", "ema", "fc.weight", "fc", "", "state", 0, "a.b"]),
        inner,
        max_size=4,
    ),
    max_leaves=6,
)


@given(content=values)
@settings(max_examples=60, deadline=None)
def test_any_content_is_loaded_whole_or_refused_in_one_line(content, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    try:
        found, _ = load(content, folder)
    except ValueError:
        refusal(content, folder)
    else:
        assert same(found, STATE) or same(found, EMA)
