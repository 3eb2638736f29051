"""TorchScript modules and exported programs: the same logits as the network they were made from."""

import copy
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import toys
from explainers.base import OF_LAYER, Need
from explainers.control_names import CONTROLS
from explainers.models.classifier import Classifier
from explainers.models.compute import Compute
from explainers.models.loading import ModelSpec, load, network_of
from explainers.models.tensors import TensorClassifier
from explainers.registry import explainers
from explainers.requirements import unmet
from tasks.in_memory import explain

ROWS = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 3)

    def forward(self, rows):
        return self.fc(self.drop(self.act(self.norm(self.conv(rows)))).mean(2))


class Louder(Net):
    """The same weights, and other code."""

    def forward(self, rows):
        return 2 * self.fc(self.drop(self.act(self.norm(self.conv(rows)))).mean(2))


class Shifted(nn.Module):
    """A module with a constant that is no weight."""

    def __init__(self, by):
        super().__init__()
        self.by = torch.full((8,), by)

    def forward(self, rows):
        return rows[:, 0] + self.by


class Twice(nn.Module):
    def forward(self, one, other):
        return one + other


def made(kind=Net):
    torch.manual_seed(0)
    return kind()


def scripted(path, network=None):
    torch.jit.save(torch.jit.script(network or made()), path)
    return {"source": "torchscript", "weights": str(path)}


def traced(path, network=None):
    torch.jit.save(torch.jit.trace((network or made()).eval(), ROWS[:2]), path)
    return {"source": "torchscript", "weights": str(path)}


def frozen(path, network=None):
    torch.jit.save(torch.jit.freeze(torch.jit.script((network or made()).eval())), path)
    return {"source": "torchscript", "weights": str(path)}


def exported(path, network=None, inputs=(ROWS[:2],), dynamic=({0: torch.export.Dim.DYNAMIC},)):
    program = torch.export.export((network or made()).eval(), inputs, dynamic_shapes=dynamic)
    torch.export.save(program, path)
    return {"source": "exported", "weights": str(path)}


FORMS = {"scripted.pt": scripted, "traced.ts": traced, "frozen.pt": frozen, "exported.pt2": exported}


def series(keys, shape=(3, 8)):
    return load(ModelSpec(**keys), input_size=shape, modality="tensor")


def line(keys, shape=(3, 8)):
    with pytest.raises(ValueError, match=r"^model\.") as refused:
        series(keys, shape)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("name", FORMS)
def test_logits_and_their_gradients_are_those_of_the_network(name, tmp_path):
    keys = FORMS[name](tmp_path / name)
    own, wanted, found = made().eval(), ROWS.clone().requires_grad_(), ROWS.clone().requires_grad_()
    with series(keys) as classifier:
        logits = classifier.logits(found)
        torch.testing.assert_close(logits, own(wanted))
        logits[:, 1].sum().backward()
        own(wanted)[:, 1].sum().backward()
        torch.testing.assert_close(found.grad, wanted.grad)
        assert classifier.num_classes == 3
        assert not any(parameter.requires_grad for parameter in classifier.network.parameters())


@pytest.mark.parametrize("name", FORMS)
def test_the_fingerprint_is_that_of_weights_and_code(name, tmp_path):
    torch.manual_seed(0)
    files = [tmp_path / f"{index}{name}" for index in range(3)]
    FORMS[name](files[0])
    files[1].write_bytes(files[0].read_bytes())
    first, again, louder = (
        series(keys).fingerprint
        for keys in (
            {"source": "exported" if "export" in name else "torchscript", "weights": str(files[0])},
            {"source": "exported" if "export" in name else "torchscript", "weights": str(files[1])},
            FORMS[name](files[2], made(Louder)),
        )
    )
    assert first == again != louder


def test_scripts_that_a_callable_returns_have_the_code_in_their_fingerprint_and_not_its_history():
    class Holder(nn.Module):
        def __init__(self, script):
            super().__init__()
            self.inside = script

        def forward(self, rows):
            return self.inside(rows)

    def fingerprint(network):
        return TensorClassifier(network, (3, 8)).fingerprint

    once = [fingerprint(torch.jit.script(made(kind))) for kind in (Net, Louder)]
    again = [fingerprint(torch.jit.script(made(kind))) for kind in (Net, Louder)]  # under mangled names
    assert once == again
    assert len(set(once)) == 2
    held = [fingerprint(Holder(torch.jit.script(made(kind)))) for kind in (Net, Louder)]
    assert len(set(held)) == 2
    shifted = [fingerprint(torch.jit.trace(Shifted(by), ROWS[:2])) for by in (1.0, 2.0, 1.0)]
    assert shifted[0] == shifted[2] != shifted[1]


def test_a_copy_of_a_program_has_weights_of_its_own(tmp_path):
    for name in ("scripted.pt", "exported.pt2"):
        classifier = series(FORMS[name](tmp_path / name))
        before = classifier.logits(ROWS)
        clone = copy.deepcopy(classifier)
        for parameter in clone.network.parameters():
            parameter.data.zero_()
        assert torch.equal(clone.logits(ROWS), torch.zeros(5, 3))
        assert torch.equal(classifier.logits(ROWS), before)


def test_weights_of_a_script_in_half_precision_are_read_in_float32(tmp_path):
    keys = scripted(tmp_path / "half.pt", made().half())
    with series(keys) as classifier:
        expected = made().half().float().eval()(ROWS)
        torch.testing.assert_close(classifier.logits(ROWS), expected)


@pytest.mark.parametrize("name", FORMS)
def test_a_program_is_not_computed_in_lower_precision_which_would_round_its_logits(name, tmp_path):
    with series(FORMS[name](tmp_path / name)) as classifier:
        with pytest.raises(ValueError, match=r"^compute\.precision: .* would be rounded; leave the key out$"):
            classifier.use(Compute(precision="bfloat16"))
        torch.testing.assert_close(classifier.logits(ROWS), made().eval()(ROWS))


def test_a_program_is_not_cut_and_says_what_to_do(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    torch.jit.save(torch.jit.script(network), tmp_path / "image.pt")
    for layer in (None, "0"):
        spec = ModelSpec(source="torchscript", weights=str(tmp_path / "image.pt"), crop=16, layer=layer)
        with pytest.raises(
            ValueError, match=r"^model\.layer: .* is a program .*, which cannot be cut"
        ) as refused:
            load(spec).layer  # noqa: B018
        assert "explainers that need no layer" in str(refused.value)
    with pytest.raises(ValueError, match="cannot be cut"):
        Classifier(torch.jit.script(network), input_size=(16, 16)).layer  # noqa: B018


PROGRAMS = {
    "traced": lambda network, path: torch.jit.trace(network, IMAGES).save(path),
    "scripted": lambda network, path: torch.jit.script(network).save(path),
    "exported": lambda network, path: torch.export.save(
        torch.export.export(network, (IMAGES,), dynamic_shapes=({0: torch.export.Dim("batch")},)), path
    ),
}
IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", PROGRAMS)
def test_every_explainer_that_needs_no_layer_and_no_attention_gives_the_networks_maps(kind, tmp_path):
    """The list is that of docs/explainers.md."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    path = tmp_path / f"net.{'pt2' if kind == 'exported' else 'pt'}"
    PROGRAMS[kind](network.eval(), str(path))
    source = "exported" if kind == "exported" else "torchscript"
    served = set()
    with (
        load(ModelSpec(source=source, weights=str(path), crop=16)) as program,
        Classifier(network, input_size=(16, 16)) as classifier,
    ):
        for name in explainers.names():
            cls = explainers.get(name)
            if cls.needs & OF_LAYER:
                with pytest.raises(ValueError, match=r"^model\.layer: .* is a program"):
                    explain(program, IMAGES, name, targets=None if Need.PREDICTION in cls.needs else 1)
                continue
            if name == "ptame" or Need.GIVEN in cls.needs or unmet(cls.needs, program):
                continue  # a trained head knows its network, and given maps need none
            served.add(name)
            small = toys.SMALL.get(name, {}) | ({"window": 8, "stride": 8} if name == "occlusion" else {})
            found, wanted = (
                explain(each, IMAGES, name, targets=1, **small) for each in (program, classifier)
            )
            torch.testing.assert_close(found.maps, wanted.maps, rtol=1e-3, atol=1e-5)
    assert served == {
        *("rise", "occlusion", "pami", "moxi", "shapley", "kernel_shap", "lime"),
        *("integrated_gradients", "smoothgrad", "gradient_shap", "input_x_gradient", *CONTROLS),
    }


def test_erasure_explains_numbers_that_a_program_reads(tmp_path):
    scripted(tmp_path / "net.pt")
    spec = ModelSpec(source="torchscript", weights=str(tmp_path / "net.pt"))
    program = load(spec, input_size=(3, 8), modality="tensor")
    with program, TensorClassifier(made(), (3, 8)) as classifier:
        found, wanted = (explain(each, ROWS, "erasure", targets=1).maps for each in (program, classifier))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    assert wanted.std() > 0


def test_a_module_of_torchscript_inside_a_network_does_not_keep_it_from_being_cut():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU())
    network = nn.Sequential(
        torch.jit.script(inner), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    network.append(nn.Linear(5, 3))
    with Classifier(network, input_size=(16, 16)) as classifier:
        assert (classifier.layer, classifier.grid) == ("1", (4, 4))
        assert classifier.lacks_patches == "no attention can be intercepted"


def other_files(folder):
    """Files that are no programs, or damaged ones, and what is said of them."""
    whole = (folder / "whole.pt", folder / "whole.pt2")
    scripted(whole[0])
    exported(whole[1])
    files = {
        name: folder / name for name in ("state.pt", "cut.pt", "cut.pt2", "empty.pt", "text.pt", "code.pt")
    }
    torch.save(made().state_dict(), files["state.pt"])
    for path, name in zip(whole, ("cut.pt", "cut.pt2"), strict=True):
        files[name].write_bytes(path.read_bytes()[:-100])
    files["empty.pt"].touch()
    files["text.pt"].write_text("<html>")
    save_file(made().state_dict(), folder / "state.safetensors")
    os.mkfifo(folder / "pipe.pt")
    return {
        ("torchscript", "state.pt"): "is a torch file, and no TorchScript module; give the source of the",
        ("exported", "state.safetensors"): "is a safetensors file, and no program of torch.export",
        ("torchscript", "whole.pt2"): 'is a program of torch.export; set source = "exported"',
        ("exported", "whole.pt"): 'is a TorchScript module; set source = "torchscript"',
        ("torchscript", "cut.pt"): "its end is missing",
        ("exported", "cut.pt2"): "its end is missing",
        ("torchscript", "empty.pt"): "it is empty",
        ("torchscript", "text.pt"): "it is a web page",
        ("exported", "gone.pt2"): "there is no file",
        ("torchscript", "pipe.pt"): "is a pipe, not a file",
        ("torchscript", "."): "is a folder, not a file",
    }


def test_files_that_are_no_such_programs_are_refused_in_one_line(tmp_path):
    for (source, name), reason in other_files(tmp_path).items():
        assert reason in line({"source": source, "weights": str(tmp_path / name)}), name


@pytest.mark.parametrize("name", ["scripted.pt", "exported.pt2"])
def test_a_program_with_a_damaged_member_is_refused_in_one_line(name, tmp_path):
    keys = FORMS[name](tmp_path / name)
    content = bytearray((tmp_path / name).read_bytes())
    for start in range(60, len(content) // 2, 7):
        content[start] ^= 0xFF
    (tmp_path / name).write_bytes(content)
    assert line(keys).startswith("model.weights: ")


def test_programs_as_weights_of_another_source_name_their_own(tmp_path):
    scripted(tmp_path / "net.pt")
    keys = {"source": "torchvision", "name": "resnet18", "weights": str(tmp_path / "net.pt")}
    with pytest.raises(ValueError, match=r'it is a TorchScript module, .*; set source = "torchscript"'):
        network_of(ModelSpec(**keys), "cpu")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"weights": None}, "model.weights: give the file of the TorchScript module"),
        ({"weights": "none"}, "model.weights: give the file of the TorchScript module"),
        ({"name": "net"}, "model.name: a program is read as it is; leave the key out"),
        ({"weights_key": "ema"}, "model.weights_key: a program is read as it is; leave the key out"),
        ({"num_classes": 4}, "model.num_classes: the network has 3 classes, not 4"),
    ],
)
def test_keys_that_a_program_has_no_use_for_are_refused(changes, expected, tmp_path):
    assert line(scripted(tmp_path / "net.pt") | changes) == expected


def test_a_program_for_a_fixed_number_of_inputs_is_refused_with_how_to_export_it(tmp_path):
    refused = line(exported(tmp_path / "fixed.pt2", dynamic=None))
    assert "takes inputs of shape (2, 3, 8) alone" in refused
    assert "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)" in refused
    both = exported(tmp_path / "two.pt2", Twice(), (ROWS, ROWS), dynamic=None)
    assert line(both).endswith("takes 2 inputs, not one")


def test_a_program_for_inputs_of_another_size_is_refused(tmp_path):
    assert line(exported(tmp_path / "net.pt2"), (3, 9)).startswith(
        "model.source: the network does not run on rows of shape (3, 9): "
    )


def test_a_programs_path_is_relative_to_the_job_whatever_its_suffix(tmp_path):
    spec = ModelSpec(source="torchscript", weights="net.ts").relative_to(tmp_path)
    assert spec.weights == str(tmp_path / "net.ts")
