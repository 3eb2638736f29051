"""The target layer of a network of any architecture is found by what its layers do."""

import pytest
import torch
from torch import nn

from explainers.models.classifier import Classifier
from explainers.models.finding import find_layer, places
from explainers.models.probes_at_load import probe
from explainers.numerics.fingerprint import sha256_of
from families import FAMILIES, MEAN, STD, randomised, small_vit


class Patches(nn.Module):
    """Tokens of 8x8-pixel patches of 32x32 pixels, with ``prefix`` tokens before them."""

    def __init__(self, prefix=0, order=None):
        super().__init__()
        self.project = nn.Conv2d(3, 8, 8, stride=8)
        self.first = nn.Parameter(torch.rand(1, prefix, 8))
        self.order = order

    def forward(self, inputs):
        tokens = self.project(inputs).flatten(2).transpose(1, 2)
        tokens = tokens if self.order is None else tokens[:, self.order]
        return torch.cat([self.first.expand(len(inputs), -1, -1), tokens], 1)


class Behind(nn.Module):
    """Moves the first token behind all others."""

    def forward(self, tokens):
        return tokens.roll(-1, 1)


class Mixing(nn.Module):
    """A block in which every token gets a little of the mean of all, beside itself."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, tokens):
        return tokens + self.linear(self.norm(tokens)).mean(1, keepdim=True)


class Scrambled(nn.Module):
    """Puts 8x8-pixel patches of 32x32 pixels into another order."""

    def forward(self, inputs):
        patches = nn.functional.unfold(inputs, 8, stride=8)[:, :, SHUFFLED]
        return nn.functional.fold(patches, (32, 32), 8, stride=8)


class Reading(nn.Module):
    """A head on the token at a position, or on the mean of the tokens from there on."""

    def __init__(self, position, mean=False):
        super().__init__()
        self.position, self.mean = position, mean
        self.fc = nn.Linear(8, 5)

    def forward(self, tokens):
        return self.fc(tokens[:, self.position :].mean(1) if self.mean else tokens[:, self.position])


class Skipping(nn.Module):
    """A convolution, and a last block with a path around it, joined by a sum outside any module."""

    def __init__(self):
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 6, 8, stride=8), nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, inputs):
        maps = self.stem(inputs)
        return self.fc((maps + self.block(maps)).mean((2, 3)))


class Streams(nn.Module):
    """Two streams of two resolutions that part after a stem."""

    def __init__(self, joined):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, stride=4)
        self.fine, self.coarse = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 2, stride=2)
        self.join = nn.Conv2d(6, 6, 2, stride=2) if joined else None
        self.last, self.fc = nn.Identity(), nn.Linear(6, 5)

    def forward(self, inputs):
        maps = self.stem(inputs)
        fine, coarse = self.fine(maps), self.coarse(maps)
        if self.join is None:
            return self.fc(fine.mean((2, 3)) + coarse.mean((2, 3)))
        return self.fc(self.last(self.join(fine) + coarse).mean((2, 3)))


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.fc = nn.Conv2d(3, 8, 8, stride=8), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, inputs):
        return self.fc(self.norm(self.stem(inputs).permute(0, 2, 3, 1)).mean((1, 2)))


class Tuples(nn.Module):
    """A block that returns its maps first in a tuple, and a pooling module that takes the maps alone."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 8, stride=8)

        def forward(self, inputs):
            return torch.relu(self.conv(inputs)), None

    def __init__(self):
        super().__init__()
        self.block, self.pool, self.fc = self.Block(), nn.AdaptiveAvgPool2d(1), nn.Linear(6, 5)

    def forward(self, inputs):
        return self.fc(self.pool(self.block(inputs)[0]).flatten(1))


class Pooled(nn.Module):
    """A tower that returns its last block's maps and, beside them, their means, which alone are read."""

    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Tuples.Block()

        def forward(self, inputs):
            maps = self.block(inputs)[0]
            return maps, maps.flatten(2).mean(2)

    def __init__(self):
        super().__init__()
        self.tower, self.fc = self.Tower(), nn.Linear(6, 5)

    def forward(self, inputs):
        return self.fc(self.tower(inputs)[1])


SHUFFLED = torch.randperm(16, generator=torch.Generator().manual_seed(3))
SNAKE = torch.tensor([0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11, 15, 14, 13, 12])
WINDOWS = torch.tensor([0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15])
CONV = nn.Sequential(nn.Conv2d(3, 6, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

# What is built, and the layer, the grid, the kind of its units and its prefix tokens.
TOYS = {
    "pooled to one cell": (lambda: nn.Sequential(*CONV, nn.Linear(6, 5)), "1", (4, 4), "channels", 0),
    "a path around the last block": (Skipping, "stem", (4, 4), "channels", 0),
    "two streams that join": (lambda: Streams(True), "last", (4, 4), "channels", 0),
    "two streams that do not": (lambda: Streams(False), "stem", (8, 8), "channels", 0),
    "channels last": (ChannelsLast, "norm", (4, 4), "tokens", 0),
    "the first of a tuple": (Tuples, "pool:input", (4, 4), "channels", 0),
    "a tower that returns what is read beside it": (Pooled, "tower.block", (4, 4), "channels", 0),
    "tokens that are averaged": (
        lambda: nn.Sequential(Patches(), Mixing(), Mixing(), Reading(0, mean=True)), "2", (4, 4), "tokens", 0
    ),
    "a class token": (
        lambda: nn.Sequential(Patches(1), Mixing(), Mixing(), Reading(0)), "2:input", (4, 4), "tokens", 1
    ),
    "five prefix tokens": (
        lambda: nn.Sequential(Patches(5), Mixing(), Mixing(), Reading(0)), "2:input", (4, 4), "tokens", 5
    ),
    "a class token behind the patches": (
        lambda: nn.Sequential(nn.Sequential(Patches(1), Behind()), Mixing(), Mixing(), Reading(-1)),
        "0.0.project", (4, 4), "channels", 0,
    ),
    "tokens of which every other row is reversed": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), Patches(0, SNAKE), Reading(0, mean=True)),
        "1.project", (4, 4), "channels", 0,
    ),
    "tokens in windows of 2x2": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), Patches(0, WINDOWS), Reading(0, mean=True)),
        "1.project", (4, 4), "channels", 0,
    ),
    "maps of the classes": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 8, stride=8), nn.Conv2d(6, 5, 1), *CONV[2:]), "0", (4, 4),
        "channels", 0,
    ),
    "tokens in another order": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), Patches(0, SHUFFLED), Reading(0, mean=True)),
        "1.project", (4, 4), "channels", 0,
    ),
}  # fmt: skip


def seeded(build):
    """A network with seeded random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build()


@pytest.mark.parametrize("case", TOYS)
def test_the_layer_of_a_toy_is_the_one_known_by_hand(case):
    build, *expected = TOYS[case]
    with Classifier(seeded(build), input_size=(32, 32)) as found:
        assert [found.layer, found.grid, found.units.kind, found.prefix_tokens] == expected
        probe(found)


def test_the_network_is_not_cut_again_where_the_layer_was_found(monkeypatch):
    build, _, grid, *_ = TOYS["two streams that join"]
    with Classifier(seeded(build), input_size=(32, 32)) as classifier:
        monkeypatch.setattr("explainers.models.classifier.cut", None)
        assert classifier.grid == grid
        logits = classifier.head(classifier.activations(classifier.probed))
        torch.testing.assert_close(logits, classifier.logits(classifier.probed))


def test_a_layer_whose_class_token_is_behind_the_patches_is_refused_by_name():
    build, *_ = TOYS["a class token behind the patches"]
    told = r"^model\.layer: cannot explain '1': its 17 tokens are no grid of patches"
    with (
        Classifier(seeded(build), layer="1", input_size=(32, 32)) as classifier,
        pytest.raises(ValueError, match=told),
    ):
        classifier.layout  # noqa: B018


def test_a_network_without_a_place_is_refused_with_what_was_seen():
    network = seeded(lambda: nn.Sequential(Scrambled(), Patches(), Reading(0, mean=True)))
    with pytest.raises(ValueError, match=r"^model\.layer: no layer of Sequential .* 1 \(its cells do not fo"):
        Classifier(network, input_size=(32, 32)).layer  # noqa: B018


def test_places_are_judged_from_the_end_and_say_what_is_wrong():
    network = seeded(lambda: nn.Sequential(Patches(1), Mixing(), Mixing(), Reading(0)))
    with Classifier(network, layer="0", input_size=(32, 32)) as classifier:
        told = {place.layer: place.refused for place in places(classifier)}
    assert told["2"] == "no cell reaches the logits"
    assert told["3"] == "no grid"
    assert told["2:input"] is told["0"] is None
    assert list(told).index("3") < list(told).index("2") < list(told).index("2:input")


# Published architectures

# Where the table's name is another name of the same tensor: the last block, rather than all blocks.
ALSO = {"timm_vit_mean": "blocks", "timm_vit_mean_class_token": "blocks"}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_found_is_what_the_table_says(family):
    build, layer, shape, prefix = FAMILIES[family]
    with Classifier(randomised(build()), input_size=(64, 64), mean=MEAN, std=STD) as classifier:
        found = find_layer(classifier)
        assert (classifier.layer, found.layer) == (layer, ALSO.get(family, layer))
        assert (found.values.shape[1:], found.layout.prefix_tokens) == (shape, prefix)
        torch.testing.assert_close(classifier.activations(classifier.probed), found.values)


def test_weights_that_are_all_zero_are_drawn_while_the_layer_is_sought_and_zero_again():
    network = small_vit()  # its head is zero before it is trained
    assert not network.heads.head.weight.any()
    before = sha256_of(network.state_dict()).hexdigest()
    with Classifier(network, input_size=(64, 64)) as classifier:
        found = find_layer(classifier)
        assert found.layer == "encoder.layers.encoder_layer_2:input"
        assert found.parts is None  # what was cut while they were drawn is not kept
    assert sha256_of(network.state_dict()).hexdigest() == before
