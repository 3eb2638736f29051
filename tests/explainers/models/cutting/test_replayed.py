"""Networks cut by replay, many of which no tracer reads: the parts are compared with known ones."""

import copy
import threading
from collections import namedtuple

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import ViTConfig, ViTForImageClassification

from explainers.models.classifier import Classifier
from explainers.models.compute import Compute, lowered
from explainers.models.cutting import cut, replayed
from families import condition, randomised

Pair = namedtuple("Pair", "maps, rest")


class Base(nn.Module):
    """stem -> block -> conv (the layer, 4 channels) -> tail of the subclass."""

    def __init__(self):
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.conv, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)

    def before(self, x):
        return self.conv(F.relu(self.block(self.stem(x).tanh())))

    def tail(self, maps):
        return self.fc(maps.mean((2, 3)))

    def forward(self, x):
        return self.tail(self.before(x))


class OnValues(Base):
    """Branches on what the activations are, and on what the input is."""

    def before(self, x):
        return super().before(x if float(x.detach().sum()) < 1e9 else -x)

    def tail(self, maps):
        for _ in range(2 if float(maps.detach()[0, 0, 0, 0]) > -1e9 else 1):
            maps = maps.tanh()
        return super().tail(maps)


class OnShape(Base):
    def tail(self, maps):
        batch, channels, height, width = map(int, maps.shape)
        if height != width:
            raise ValueError("square only")
        return self.fc(maps.reshape(batch, channels, height * width).amax(2))


class Tuple(Base):
    """The layer gives maps, and a second tensor that nobody reads."""

    def __init__(self, kind=Pair):
        super().__init__()
        self.kind, self.conv = kind, _Pairing(kind)

    def tail(self, given):
        maps = given[0] if isinstance(given, tuple) else given["maps"]
        return super().tail(maps.sigmoid() if float(maps.detach().sum()) < 1e9 else maps)


class _Pairing(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.conv, self.kind = nn.Conv2d(4, 4, 3, padding=1), kind

    def forward(self, x):
        x = self.conv(x)
        return {"maps": x, "rest": -x} if self.kind is dict else self.kind(x, -x)


class Twice(Base):
    """The layer runs twice, and once more inside of a module that is done before its last call."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), self.conv)

    def before(self, x):
        x = self.shared(x)
        x = self.conv(x if float(x.detach().sum()) < 1e9 else -x)
        return self.conv(x.tanh())


class InPlace(Base):
    """Writes to the outputs of the layer and of modules before it, and reads the batch size before it."""

    def before(self, x):
        self.batch = int(x.shape[0])
        x = self.stem(x)
        x += 1
        x = self.block(x)
        x.mul_(2)
        return self.conv(x)

    def tail(self, maps):
        assert len(maps) == self.batch
        flat = maps.view(self.batch, 4, -1)
        flat.mul_(3)
        return self.fc(F.relu(maps, inplace=True).mean((2, 3)))


class Constants(Base):
    """Reads, behind the layer, what modules made before it that is the same for every input."""

    def __init__(self):
        super().__init__()
        self.places = nn.Embedding(64, 4)

    def before(self, x):
        self.added = self.places(torch.arange(64, device=x.device)) if float(x.detach().sum()) < 1e9 else 0
        return super().before(x)

    def tail(self, maps):
        return super().tail((maps.flatten(2) + self.added.T).tanh().unflatten(2, maps.shape[2:]))


class Windows(Base):
    """A module before the layer gives windows, the parts of one image apart from one another."""

    def __init__(self, apart):
        super().__init__()
        self.apart, self.stem, self.parts = apart, nn.Identity(), nn.Conv2d(3, 4, 3, padding=1)

    def before(self, x):
        b = int(x.shape[0])
        windows = torch.stack(x.split(4, 3), 0 if self.apart else 1).flatten(0, 1)  # 2 of 8 x 4 each
        windows = self.parts(windows).unflatten(0, (2, b) if self.apart else (b, 2))
        return self.conv(torch.cat(windows.unbind(0 if self.apart else 1), 3))


NETWORKS = {
    "plain": Base,
    "a branch on values": OnValues,
    "a branch on the shape": OnShape,
    "a named tuple": Tuple,
    "a tuple": lambda: Tuple(lambda *parts: parts),
    "a dictionary": lambda: Tuple(dict),
    "called twice": Twice,
    "written to": InPlace,
    "constants from before the layer": Constants,
    "windows": lambda: Windows(apart=False),
    "windows apart": lambda: Windows(apart=True),
}


def network_and_inputs(name, count=3):
    torch.manual_seed(0)
    network = NETWORKS[name]().eval().requires_grad_(False)
    return network, torch.rand(count, 3, 8, 8)


def known(network, inputs):
    """Activations at the layer, by calling the first half of the network."""
    given = network.before(inputs)
    return (
        given if isinstance(given, torch.Tensor) else given["maps"] if isinstance(given, dict) else given[0]
    )


def tail(network, maps, inputs):
    """Logits of activations, by calling the second half of the network."""
    network.before(inputs)  # sets what the tail reads besides its argument
    given = {"maps": maps} if getattr(network, "kind", None) is dict else maps
    return network.tail((given,) if isinstance(network, Tuple) and isinstance(given, torch.Tensor) else given)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("count", [1, 3])
def test_replay_gives_the_known_parts_with_and_without_a_record(name, count):
    network, inputs = network_and_inputs(name)
    before = condition(network)
    backbone, plain, (lending, copying) = replayed.split(network, "conv", inputs)
    inputs = torch.rand(count, 3, 8, 8)
    maps = known(network, inputs)
    torch.testing.assert_close(backbone(inputs), maps, rtol=0, atol=0)
    given = torch.randn_like(maps)  # no activations of any input
    for head in (plain, copying, *[lending][: name != "written to"]):
        leaf, its = given.clone().requires_grad_(), given.clone().requires_grad_()
        expected, found = tail(network, its.clone(), inputs), head(leaf)
        torch.testing.assert_close(found, expected)
        weights = torch.randn_like(expected)
        (wanted,) = torch.autograd.grad((expected * weights).sum(), its)
        (gradient,) = torch.autograd.grad((found * weights).sum(), leaf)
        torch.testing.assert_close(gradient, wanted)
        assert gradient.abs().max() > 0
        assert torch.equal(leaf, given)
    assert condition(network) == before
    assert_untouched(network)


def assert_untouched(network):
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_head_that_is_chosen_computes_neither_the_layer_nor_what_comes_before_it(name):
    network, inputs = network_and_inputs(name)
    chosen = cut(network, "conv", inputs)
    assert chosen.way == ("fx" if name == "plain" else "replay")
    given = torch.randn_like(known(network, inputs))
    expected = tail(network, given.clone(), inputs)
    with torch.no_grad():  # what was recorded does not change with these
        for key, parameter in network.named_parameters():
            if not key.startswith("fc"):
                parameter.fill_(torch.nan)
    torch.testing.assert_close(chosen.head(given), expected)


def around(network, kind):
    """The network with a path around its layer."""
    forward = type(network).forward

    def bypassing(x):
        size = {"plain": 1, "faint": 1e-7}[kind]
        return forward(network, x) + size * x.mean((2, 3))[:, :1].tanh()

    network.forward = bypassing
    return network


@pytest.mark.parametrize("kind", ["plain", "faint"])
def test_a_path_around_the_layer_is_refused(kind):
    network, inputs = network_and_inputs("a branch on values")
    with pytest.raises(ValueError, match=r"^model\.layer: the network has a path around 'conv'"):
        cut(around(network, kind), "conv", inputs)
    del network.forward
    assert_untouched(network)


def test_a_path_around_is_refused_where_equal_logits_of_all_inputs_hide_it():
    network, inputs = network_and_inputs("a branch on values")
    nn.init.zeros_(network.fc.weight)
    assert cut(network, "conv", inputs).way == "replay"
    last = nn.Linear(1, 5).requires_grad_(False)
    nn.init.zeros_(last.weight)
    forward = network.forward
    network.forward = lambda x: forward(x) + last(x.mean((1, 2, 3))[:, None])
    with pytest.raises(ValueError, match=r"^model\.layer: the network has a path around 'conv'"):
        cut(network, "conv", inputs)


class Recurrent(nn.Module):
    """The second output of the layer matters as well, or the batch is its second axis."""

    def __init__(self, batch_first):
        super().__init__()
        self.rnn, self.fc, self.batch_first = (
            nn.LSTM(8, 6, batch_first=batch_first),
            nn.Linear(6, 5),
            batch_first,
        )

    def forward(self, x):
        rows = x.mean(1)
        seen, (last, _) = self.rnn(rows if self.batch_first else rows.transpose(0, 1))
        seen = seen if float(seen.detach().sum()) < 1e9 else -seen
        return self.fc(seen.mean(1 if self.batch_first else 0) + last[0])


@pytest.mark.parametrize(
    ("batch_first", "told"),
    [(True, "has a path around 'rnn'"), (False, "its output is not a tensor whose first axis is the batch")],
)
def test_a_layer_whose_first_output_is_not_all_is_refused(batch_first, told):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=rf"^model\.layer: .*{told}"):
        cut(Recurrent(batch_first).eval(), "rnn", torch.rand(2, 3, 8, 8))


def test_a_network_that_stops_in_the_middle_is_left_as_it_was():
    network, inputs = network_and_inputs("a branch on the shape")
    chosen = cut(network, "conv", inputs)
    with pytest.raises(ValueError, match="square only"):
        chosen.head(torch.rand(2, 4, 8, 4))
    with pytest.raises(RuntimeError):
        chosen.backbone(torch.rand(2, 5, 8, 8))
    assert_untouched(network)


def test_parts_in_other_threads_and_the_network_itself_do_not_disturb_each_other():
    network, inputs = network_and_inputs("a branch on values")
    chosen = cut(network, "conv", inputs)
    maps, logits = chosen.backbone(inputs), network(inputs)
    wrong = []

    def often(run, expected):
        wrong.extend(run for _ in range(50) if not torch.allclose(run(), expected, atol=1e-6))

    runs = [
        (lambda: chosen.head(maps), logits),
        (lambda: chosen.head(-maps), chosen.head(-maps)),
        (lambda: network(inputs), logits),
        (lambda: chosen.backbone(inputs), maps),
    ]
    threads = [threading.Thread(target=often, args=run) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert_untouched(network)


class Doubled(Base):
    """While the thread that made it runs it, another one runs it as well, at every call of a module."""

    def __init__(self):
        super().__init__()
        self.maker, self.others, self.seen = threading.get_ident(), torch.rand(3, 3, 8, 8), []

    def forward(self, x):
        if threading.get_ident() == self.maker:
            x = x if float(x.detach().sum()) < 1e9 else -x  # cannot be traced
            thread = threading.Thread(target=lambda: self.seen.append(self(self.others).detach()))
            thread.start()
            thread.join()
        return super().forward(x)


def test_another_thread_may_run_the_network_while_it_is_cut():
    network, inputs = Doubled().eval().requires_grad_(False), torch.rand(2, 3, 8, 8)
    chosen = cut(network, "conv", inputs)
    torch.testing.assert_close(chosen.head(chosen.backbone(inputs)), network(inputs))
    expected = Base.forward(network, network.others)
    assert len(network.seen) > 10
    assert all(torch.equal(each, expected) for each in network.seen)


def test_a_copy_with_other_weights_makes_a_record_of_its_own():
    network, inputs = network_and_inputs("constants from before the layer")
    chosen = cut(network, "conv", inputs)
    other, its = copy.deepcopy((network, chosen))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    maps = its.backbone(inputs)
    torch.testing.assert_close(maps, known(other, inputs))
    torch.testing.assert_close(its.head(maps), other(inputs))
    torch.testing.assert_close(chosen.head(chosen.backbone(inputs)), network(inputs))


def test_views_of_a_record_are_lent_only_where_nothing_writes_to_them():
    network, inputs = network_and_inputs("written to")
    _, _, (lending, copying) = replayed.split(network, "conv", inputs)
    lending(torch.rand(1, 4, 8, 8))
    copying(torch.rand(1, 4, 8, 8))
    assert (lending.intact, copying.intact) == (False, True)
    assert cut(network, "conv", inputs).head._lend is False


def timm_vit():
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=3, embed_dim=48, num_heads=3, dynamic_img_size=True
    )


class Logits(ViTForImageClassification):
    """A Hugging Face network that returns its logits alone."""

    def forward(self, pixels):
        return super().forward(pixels).logits


def hugging_face_vit():
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=64, image_size=64,
        num_labels=7,
    )  # fmt: skip
    return Logits(config)


def timm_tail(network, tokens):
    return network.head(network.norm(network.blocks[2](tokens))[:, 0])


def hugging_face_tail(network, tokens):
    tokens = network.vit.layers[2](tokens)
    tokens = tokens[0] if isinstance(tokens, tuple) else tokens
    return network.classifier(network.vit.layernorm(tokens)[:, 0])


@pytest.mark.parametrize(
    ("build", "layer", "its_tail"),
    [
        (timm_vit, "blocks.2:input", timm_tail),
        (hugging_face_vit, "vit.layers.2:input", hugging_face_tail),
        (hugging_face_vit, "vit.layers.1", hugging_face_tail),
    ],
)
def test_transformers_that_no_tracer_reads_are_cut_before_their_last_block(build, layer, its_tail):
    torch.manual_seed(0)
    network = randomised(build()).eval().requires_grad_(False)

    chosen = cut(network, layer, torch.rand(2, 3, 64, 64))
    assert chosen.way == "replay"
    tokens = chosen.backbone(torch.rand(3, 3, 64, 64))
    assert tokens.shape == (3, 17, 48)
    leaf, its = tokens.clone().requires_grad_(), tokens.clone().requires_grad_()
    found, expected = chosen.head(leaf), its_tail(network, its)
    torch.testing.assert_close(found, expected)
    assert found.std(0).mean() > 1e-3
    (gradient,) = torch.autograd.grad(found[:, 2].sum(), leaf)
    (wanted,) = torch.autograd.grad(expected[:, 2].sum(), its)
    torch.testing.assert_close(gradient, wanted)
    assert chosen.head._recorded()
    assert_untouched(network)


def test_parts_are_not_compiled():
    network, _ = network_and_inputs("a branch on values")
    with Classifier(network, layer="conv", input_size=(8, 8)) as classifier:
        expected = classifier.activations(classifier.probed)
        assert classifier.way == "replay"
        classifier.compute = Compute(compile=True)
        assert torch.equal(classifier.activations(classifier.probed), expected)
        classifier.head(expected)
        assert not classifier._compiled


class Checkpointed(OnValues):
    """Computes a part, or what is behind the layer, once more in the backward pass."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def before(self, x):
        return (
            checkpoint(super().before, x, use_reentrant=False) if self.part == "layer" else super().before(x)
        )

    def tail(self, maps):
        whole = super().tail
        return (
            checkpoint(lambda x: whole(x).tanh(), maps, use_reentrant=False)
            if self.part == "tail"
            else whole(maps)
        )

    def forward(self, x):
        return (
            checkpoint(super().forward, x, use_reentrant=False) if self.part == "all" else super().forward(x)
        )


def test_a_gradient_that_would_be_computed_from_the_carrier_is_refused():
    inputs = torch.rand(2, 3, 8, 8)
    for part in ("layer", "tail"):  # the first is done before the layer's output is replaced
        torch.manual_seed(0)
        network = Checkpointed(part).eval().requires_grad_(False)
        chosen = cut(network, "conv", inputs)
        leaf, its = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)) for _ in range(2))
        leaf.requires_grad_(), its.requires_grad_()
        (gradient,) = torch.autograd.grad(chosen.head(leaf)[:, 1].sum(), leaf)
        (wanted,) = torch.autograd.grad(network.tail(its)[:, 1].sum(), its)
        torch.testing.assert_close(gradient, wanted)
    network = Checkpointed("all").eval().requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"^model\.layer: the network computes 'conv' again in its backward pass"
    ):
        cut(network, "conv", inputs)
    assert_untouched(network)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_head_in_lower_precision_gives_nearly_the_same(precision):
    torch.manual_seed(0)
    network = randomised(timm_vit()).eval().requires_grad_(False)
    chosen = cut(network, "blocks.2:input", torch.rand(2, 3, 64, 64))
    inputs = torch.rand(3, 3, 64, 64)
    tokens, expected = chosen.backbone(inputs), network(inputs)
    with lowered(Compute(precision=precision), inputs.device):
        found = chosen.head(tokens).float()
    assert not torch.equal(found, expected)
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()


class Remembering(Base):
    """A module keeps a mean of what it sees, and one behind the layer reads it from there."""

    class Keeping(nn.Module):
        def forward(self, maps):
            self.kept = maps.mean((2, 3))
            return maps

    class Reading(nn.Module):
        def __init__(self, keeping):
            super().__init__()
            self.keeping, self.fc = [keeping], nn.Linear(4, 5)

        def forward(self, maps):
            return self.fc(maps.mean((2, 3)) + self.keeping[0].kept)

    def __init__(self):
        super().__init__()
        self.keeping = self.Keeping()
        self.reading = self.Reading(self.keeping)

    def before(self, x):
        return self.conv(F.relu(self.block(self.keeping(self.stem(x)))))

    def tail(self, maps):
        return self.reading(maps)


def test_what_a_module_keeps_of_its_last_input_is_a_path_around_the_layer():
    network, inputs = Remembering().eval().requires_grad_(False), torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"^model\.layer: cut at 'conv', .* keeps values of an earlier pass"):
        cut(network, "conv", inputs)
    assert cut(network, "stem", inputs).way == "fx"


@pytest.mark.parametrize("gate", ["no gradient", "a gradient of zero"])
def test_a_path_that_opens_for_red_images_alone_is_refused(gate):
    network, inputs = network_and_inputs("a branch on values")
    forward = network.forward

    def opening(x):
        red = x[:, :1].mean((2, 3)) - x[:, 1:2].mean((2, 3)) - 0.4  # noise is far from it
        return forward(x) + ((red > 0).to(x) if gate == "no gradient" else F.relu(red))

    network.forward = opening
    assert torch.equal(network(inputs), forward(inputs))
    with pytest.raises(ValueError, match=r"^model\.layer: the network has a path around 'conv'"):
        cut(network, "conv", inputs)


class Hungry(nn.Module):
    """Wants 4 PiB of memory from its second call on."""

    def __init__(self):
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 4, 1), 0

    def forward(self, x):
        self.calls += 1
        if self.calls > 1:
            torch.empty(1 << 50)
        return self.conv(x).mean((2, 3))


def test_a_lack_of_memory_is_no_fault_of_the_layer():
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        cut(Hungry().eval(), "conv", torch.rand(2, 3, 8, 8))
