"""Each probe refuses a network that goes wrong in its way, and lets a sound one pass."""

import copy
import re

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from explainers.models.classifier import Classifier
from explainers.models.probes_at_load import PROBES, probe
from explainers.models.tensors import TensorClassifier
from families import FAMILIES, MEAN, STD, published, randomised


class Net(nn.Module):
    """A convolution on 8x8 cells of 32x32 pixels, and a linear head; parts can be replaced."""

    def __init__(self, features=None, head=None, last=None):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 4, stride=4)
        self.features = features or nn.Identity()
        self.head = head or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
        self.last = last or nn.Identity()
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, inputs):
        return self.last(self.head(self.features(torch.relu(self.conv(inputs)))))


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(inputs)


def images(network, layer="features", **keys):
    return probe(Classifier(network, layer=layer, input_size=(32, 32), **keys))


def series(last, **keys):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), last)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in network.parameters():
            nn.init.normal_(parameter)
    return probe(TensorClassifier(network, (3, 4), **keys))


def test_a_sound_network_passes_and_every_probe_tells_what_it_saw():
    seen = images(Net())
    assert list(seen) == list(PROBES)
    assert seen["cells"] == "all of 8x8 cells reach the logits"
    assert re.fullmatch(r"correlation (0\.9\d|1\.00), near the patch at 100% of 16 places", seen["patch"])
    assert list(series(nn.Identity())) == ["finite", "twice", "batch", "output"]


# Weights and logits that are no numbers


def test_weights_that_hold_nan_are_refused_by_the_name_of_the_first_tensor():
    network = Net()
    network.head[2].bias.data[1] = float("nan")
    network.conv.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^model\.weights: conv\.weight holds NaN"):
        images(network)


def test_logits_that_are_infinite_for_every_input_are_refused_and_for_some_are_counted():
    with pytest.raises(ValueError, match=r"^model\.source: .*infinite or NaN for all of 4 inputs"):
        images(Net(last=Call(lambda logits: logits / 0)))
    infinite = Net()
    infinite.head[2].bias.data[:] = float("inf")
    with pytest.raises(ValueError, match=r"^model\.weights: head\.2\.bias holds infinite numbers"):
        images(infinite)

    def only_black(inputs):  # black is infinite here, the others are not
        return inputs / (inputs.amax((1, 2, 3), keepdim=True) > 0)

    network = nn.Sequential(nn.Identity(), Call(only_black), Net())
    seen = images(network, layer="2.features")
    assert seen["finite"] == "logits of 3 of 4 inputs are finite"


# Rows that depend on chance, or on each other


def test_dropout_that_is_left_on_is_refused():
    drops = Call(lambda maps: nn.functional.dropout(maps, 0.1, training=True))
    with pytest.raises(ValueError, match=r"^model\.source: the same inputs get other logits the second time"):
        images(Net(features=drops))


class Counts(nn.Module):
    """A network that remembers how often it was called."""

    calls = 0

    def forward(self, inputs):
        self.calls += 1
        return inputs + self.calls


def test_a_network_that_remembers_is_refused():
    with pytest.raises(ValueError, match="the second time"):
        series(Counts())


BATCH = {
    "normalised over the batch": lambda x: (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt(),
    "less the mean of the batch": lambda x: x - x.mean(0),
    "a share of the row before": lambda x: x + 0.01 * x.roll(1, 0),
    "divided by the largest of the batch": lambda x: x / x.abs().max(),
    "another number of rows": lambda x: x * len(x),
    "the mean of large batches alone": lambda x: x - x.mean(0) if len(x) > 8 else x,
}


@pytest.mark.parametrize("case", BATCH)
def test_logits_that_depend_on_other_rows_are_refused_for_images_and_series(case):
    with pytest.raises(
        ValueError, match=r"^model\.source: the logits of an input depend on the other inputs"
    ):
        images(Net(features=Call(BATCH[case])))
    with pytest.raises(ValueError, match="depend on the other inputs"):
        series(Call(BATCH[case]))


@pytest.mark.parametrize("masked", [-1e9, -1e5])
def test_a_dependence_beside_the_huge_logits_of_masked_classes_is_seen(masked):
    mask = torch.tensor([0.0, 0.0, masked, masked])
    images(Net(last=Call(lambda x: x + mask)))
    with pytest.raises(ValueError, match="depend on the other inputs"):
        images(Net(last=Call(lambda x: x + 0.3 * x.roll(1, 0) + mask)))
    with pytest.raises(ValueError, match="the second time"):
        images(Net(last=Call(lambda x: x + torch.rand_like(x) + mask)))


def test_batch_norm_without_running_statistics_is_refused_and_with_them_it_passes():
    with pytest.raises(ValueError, match="depend on the other inputs"):
        images(Net(features=nn.BatchNorm2d(6, track_running_stats=False)))
    assert float(images(Net(features=nn.BatchNorm2d(6)))["batch"].split()[2]) < 1e-5


def test_a_network_that_takes_two_rows_only_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^model\.source: the network stopped at the probe") as refused:
        series(Call(lambda x: x.view(2, 4)))
    assert "\n" not in str(refused.value)


# Logits, or probabilities

ENDS = {
    "softmax": (lambda x: x.softmax(1), 'set output = "probabilities"'),
    "one probability and the rest": (
        lambda x: torch.stack([x[:, 0].sigmoid(), 1 - x[:, 0].sigmoid()], 1), 'set output = "probabilities"'
    ),
    "softmax by hand": (lambda x: x.exp() / x.exp().sum(1, keepdim=True), 'set output = "probabilities"'),
    "log-softmax": (lambda x: x.log_softmax(1), 'set output = "log_probabilities"'),
    "sigmoid": (lambda x: x.sigmoid(), "ends in sigmoid"),
    "sigmoid by hand": (lambda x: 1 / (1 + (-x).exp()), "ends in reciprocal"),
    "sigmoid by tanh": (lambda x: 0.5 * (x / 2).tanh() + 0.5, "ends in tanh"),
    "mean of sigmoids": (lambda x: torch.stack([x.sigmoid(), (2 * x).sigmoid()]).mean(0), "ends in sigmoid"),
    "hard sigmoid": (nn.functional.hardsigmoid, "ends in hardsigmoid"),
    "percent": (lambda x: 100 * x.softmax(1), "ends in _softmax and these are no logits"),
    "percent of sigmoids": (lambda x: 100 * x.sigmoid(), "ends in sigmoid and these are no logits"),
    "log-sigmoid": (nn.functional.logsigmoid, "ends in log_sigmoid_forward and these"),
    "logarithm of sigmoids": (lambda x: x.sigmoid().log(), "ends in sigmoid and these"),
    "softmax in decibels": (lambda x: 10 * x.softmax(1).log10(), "ends in _softmax and these"),
    "softmax times sigmoid": (lambda x: x.softmax(1) * x.sigmoid(), "ends in _softmax and sigmoid and all"),
    "squared softmax": (lambda x: x.softmax(1) ** 2, "ends in pow and all it returns lies within 0 and 1"),
    "rounded": (lambda x: x.sigmoid().round(decimals=3), "ends in round and all"),
    "none below a half": (lambda x: x.sigmoid().masked_fill(x < 0, 0), "ends in sigmoid and all"),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_probabilities_are_refused_with_what_to_do_for_images_and_series(end):
    function, advice = ENDS[end]
    with pytest.raises(ValueError, match=r"^model\.output: ") as refused:
        images(Net(last=Call(function)))
    assert advice in str(refused.value)
    with pytest.raises(ValueError, match=r"^model\.output: "):
        series(Call(function))


@pytest.mark.parametrize(
    ("output", "end"), [("probabilities", torch.softmax), ("log_probabilities", torch.log_softmax)]
)
def test_with_the_key_the_softmax_is_the_networks_own_and_the_head_agrees(output, end):
    plain, ending = Net(), Net(last=Call(lambda x: end(x, 1)))
    with Classifier(ending, layer="features", input_size=(32, 32), output=output) as classifier:
        assert probe(classifier)["output"] == f"{output} that add up to 1"
        inputs = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))
        expected = plain(inputs).softmax(1)
        torch.testing.assert_close(classifier.logits(inputs).softmax(1), expected)
        torch.testing.assert_close(classifier.head(classifier.activations(inputs)).softmax(1), expected)


@pytest.mark.parametrize("output", ["probabilities", "log_probabilities"])
def test_with_the_key_what_does_not_add_up_to_one_is_refused(output):
    for last in (torch.sigmoid, lambda x: x):
        with pytest.raises(ValueError, match=rf'^model\.output: "{output}" must add up to 1'):
            images(Net(last=Call(last)), output=output)


SIGMOIDS = {"probabilities": torch.sigmoid, "log_probabilities": nn.functional.logsigmoid}


@pytest.mark.parametrize("output", SIGMOIDS)
def test_with_the_keys_a_sigmoid_is_the_networks_own_and_the_head_agrees(output):
    plain, ending = Net(), Net(last=Call(SIGMOIDS[output]))
    keys = {"layer": "features", "input_size": (32, 32), "output": output, "activation": "sigmoid"}
    with Classifier(ending, **keys) as classifier:
        assert probe(classifier)["output"] == f"{output} between 0 and 1"
        inputs = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))
        expected = plain(inputs).sigmoid()
        torch.testing.assert_close(classifier.probability(classifier.logits(inputs)), expected)
        logits = classifier.head(classifier.activations(inputs))
        torch.testing.assert_close(classifier.probability(logits), expected)


@pytest.mark.parametrize("output", SIGMOIDS)
def test_a_single_output_that_is_a_probability_says_which_key_it_needs(output):
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 1))
    network = Net(head=head, last=Call(SIGMOIDS[output]))
    network.head[2].weight.data /= 8
    with pytest.raises(ValueError, match=r"^model\.output: ") as refused:
        images(network)
    assert f'set output = "{output}" if it ends in a sigmoid' in str(refused.value)
    assert images(network, output=output)["output"] == f"{output} between 0 and 1"
    assert images(Net(head=head))["output"].startswith("logits from")


def test_a_sigmoid_of_several_classes_says_which_keys_it_needs():
    for output, last in SIGMOIDS.items():
        with pytest.raises(
            ValueError, match=f'set output = "{output}" and activation = "sigmoid" if it ends'
        ):
            images(Net(last=Call(last)))


@pytest.mark.parametrize(
    ("output", "last", "reason"),
    [
        (
            "probabilities",
            lambda x: x,
            r'model.output: "probabilities" must belong to probabilities in \[0, 1',
        ),
        ("log_probabilities", lambda x: x, r'model.output: "log_probabilities" must belong to'),
        ("probabilities", lambda x: x.softmax(1), r'model.activation: "sigmoid" is for classes that do not'),
        ("log_probabilities", lambda x: x.log_softmax(1), r'model.activation: "sigmoid" is for'),
        (None, lambda x: x.softmax(1), "model.output: the network returns probabilities, not logits"),
        (None, torch.sigmoid, "model.output: the network ends in sigmoid and all it returns lies within"),
    ],
)
def test_what_no_sigmoid_gave_is_refused_where_the_job_says_sigmoid(output, last, reason):
    with pytest.raises(ValueError, match=f"^{reason}"):
        images(Net(last=Call(last)), output=output, activation="sigmoid")


def test_logits_of_several_classes_pass_where_the_job_says_sigmoid():
    assert images(Net(), activation="sigmoid")["output"].startswith("logits from")


def test_logits_within_0_and_1_pass_if_a_linear_layer_gives_them_or_the_key_says_so():
    small = Net()
    small.head[2].weight.data *= 1e-4
    small.head[2].bias.data = torch.tensor([0.2, 0.4, 0.6, 0.7])
    assert images(small)["output"] == "logits from 0.1988 to 0.7001"
    pixels = Call(lambda x: x.mean((2, 3)) / 2)  # sums of the input itself
    assert images(nn.Sequential(nn.Identity(), pixels), layer="0")["output"] == "logits from 0 to 0.5"
    padded = Call(lambda x: torch.cat([x[:, :2], torch.zeros_like(x[:, :2])], 1))
    small.last = padded
    assert images(small)["output"].startswith("logits from 0 to 0.4")
    for last in (nn.Sigmoid(), Call(lambda x: 100 * x.softmax(1))):
        assert images(Net(last=last), output="logits")["output"].startswith("logits from")
    with pytest.raises(ValueError, match=r"^model\.output"):  # nothing else makes rows that add up to 1
        images(Net(last=nn.Softmax(1)), output="logits")


# The grid


class ReadsFirst(nn.Module):
    """A head that reads one cell alone."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, maps):
        return self.linear(maps[:, :, 0, 0])


def test_cells_that_the_head_never_reads_are_refused():
    with pytest.raises(
        ValueError, match=r"^model\.layer: 63 of 63 cells .* on the 8x8 grid .* row 0, column 1"
    ):
        images(Net(head=ReadsFirst()))


@pytest.mark.parametrize("name", ["cait_xxs24_224", "xcit_nano_12_p16_224"])
def test_a_layer_behind_which_only_the_class_token_is_read_is_refused(name):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5, depth=2)
    with pytest.raises(ValueError, match=r"^model\.layer: .* cannot reach the logits"):
        probe(Classifier(network, layer="norm", input_size=(224, 224)))


def test_cells_that_reach_the_logits_past_a_relu_or_a_maximum_only_when_strong_pass():
    head = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    assert images(Net(head=head))["cells"] == "all of 8x8 cells reach the logits"
    seen = images(Net(features=Call(lambda x: x), head=nn.Sequential(Call(lambda x: (x - 4).relu()), *head)))
    assert seen["cells"] == "all of 8x8 cells reach the logits"


def test_the_last_cells_may_be_left_out_by_a_stride():
    head = nn.Sequential(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(24, 4))
    assert images(Net(head=head))["cells"].startswith("6x6 of 8x8 cells reach the logits")
    head = nn.Sequential(Call(lambda x: x[:, :, :4].mean((2, 3))), nn.Linear(6, 4))  # the upper half alone
    with pytest.raises(ValueError, match=r"^model\.layer: .* cannot reach the logits"):
        images(Net(head=head))


def test_a_grid_of_one_cell_is_refused():
    with pytest.raises(ValueError, match=r"^model\.layer: the grid of 'features' has one cell"):
        images(Net(features=nn.AdaptiveAvgPool2d(1)))


def test_logits_that_are_the_same_for_all_inputs_say_nothing_of_the_cells():
    torch.manual_seed(0)
    network = models.VisionTransformer(32, 8, 2, 2, 16, 16, num_classes=5)  # its head is zero at first
    seen = probe(Classifier(network, input_size=(32, 32)))
    assert seen["cells"] == "unknown, since all inputs have the same logits"


# Where the grid lies


ORDERS = {
    "at random": torch.randperm(64, generator=torch.Generator().manual_seed(1)),
    "columns for rows": torch.arange(64).view(8, 8).T.flatten(),
    "upside down": torch.arange(64).view(8, 8).flip(0).flatten(),
    "in windows of 4x4": torch.arange(64).view(2, 4, 2, 4).transpose(1, 2).flatten(),
    "by the place in windows of 2x2": torch.arange(64).view(4, 2, 4, 2).permute(1, 3, 0, 2).flatten(),
    "rolled by half": torch.arange(64).roll(32),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("tokens", [False, True])
def test_cells_in_another_order_are_refused(order, tokens):
    def scrambled(maps):
        found = maps.flatten(2)[:, :, ORDERS[order]]
        return found.transpose(1, 2) if tokens else found.view_as(maps)

    head = nn.Sequential(Call(lambda x: x.mean(1)), nn.Linear(6, 4)) if tokens else None
    with pytest.raises(
        ValueError, match=r"^model\.layer: the strongest change at 'features' does not follow"
    ):
        images(Net(features=Call(scrambled), head=head))


def test_tokens_in_order_pass():
    head = nn.Sequential(Call(lambda x: x.mean(1)), nn.Linear(6, 4))
    assert "of 16 places" in images(Net(features=Call(lambda x: x.flatten(2).mT), head=head))["patch"]


def test_pooled_numbers_and_channels_that_are_read_as_tokens_are_refused():
    pooled = Call(lambda x: x.mean((2, 3)).repeat(1, 11)[:, :64, None])  # (64, 1), as 8x8 tokens
    head = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(ValueError, match=r"^model\.layer: "):
        images(Net(features=pooled, head=head))
    channels = Call(lambda x: x.flatten(2).repeat(1, 11, 1)[:, :64])  # (64, 64): channels first
    with pytest.raises(ValueError, match=r"^model\.layer: "):
        images(Net(features=channels, head=nn.Sequential(Call(lambda x: x.mean(2)), nn.Linear(64, 4))))
    spread = Call(lambda x: x.mean((2, 3), keepdim=True).expand_as(x))
    with pytest.raises(ValueError, match=r"^model\.layer: the strongest change"):
        images(Net(features=spread))


def test_hiera_whose_tokens_are_in_the_order_of_mask_units_is_refused():
    torch.manual_seed(0)
    network = timm.create_model("hiera_tiny_224", num_classes=5)
    with pytest.raises(
        ValueError, match=r"^model\.layer: the strongest change at 'blocks.1' does not follow"
    ):
        probe(Classifier(network, layer="blocks.1", input_size=(224, 224)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_supported_family_passes(family):
    torch.manual_seed(0)
    network = randomised(FAMILIES[family][0]())
    before = copy.deepcopy(network.state_dict())
    seen = probe(Classifier(network, input_size=(64, 64), mean=MEAN, std=STD))
    assert seen["cells"].startswith("all of ")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("pull", [0.3, 0.5])
def test_a_change_that_stays_nearer_the_middle_than_the_patch_passes(pull):
    # The cells of a wide receptive field look towards the middle of the input.
    def nearer(maps):
        grid = torch.linspace(-1, 1, 8) * (1 / pull)
        rows, columns = torch.meshgrid(grid, grid, indexing="ij")
        where = torch.stack([columns, rows], -1).expand(len(maps), 8, 8, 2)
        return nn.functional.grid_sample(maps, where, align_corners=True, padding_mode="border")

    assert images(Net(features=Call(nearer)))["patch"].startswith("correlation 0.9")


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x0_5", "regnet_y_400mf"])
def test_published_sizes_pass(name):
    layer = {"shufflenet_v2_x0_5": "conv5", "regnet_y_400mf": "trunk_output"}.get(name)
    torch.manual_seed(0)
    seen = probe(Classifier(published(name)(), layer=layer, input_size=(224, 224), mean=MEAN, std=STD))
    assert seen["cells"] == "all of 7x7 cells reach the logits"
    assert seen["patch"].startswith("correlation")


class Repeating(nn.Module):
    """Runs a layer twice for batches brighter than a threshold, and once for others."""

    def __init__(self, threshold):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv, self.fc = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
        self.threshold = threshold

    def forward(self, inputs):
        maps = self.stem(inputs)
        for _ in range(1 + int(float(inputs.detach().mean()) > self.threshold)):
            maps = self.conv(maps).relu()
        return self.fc(maps.mean((2, 3)))


@pytest.mark.parametrize("threshold", [0.1, 0.4, 0.6, 0.9])
def test_a_layer_that_runs_as_often_as_the_batch_is_bright_is_refused(threshold):
    with (
        Classifier(Repeating(threshold), input_size=(16, 16), layer="conv") as classifier,
        pytest.raises(ValueError, match=r"^model\.source: the logits of an input depend on the other inputs"),
    ):
        probe(classifier)


def test_a_layer_that_runs_less_often_for_some_inputs_is_refused_there_in_one_line():
    with Classifier(Repeating(0.2), input_size=(16, 16), layer="conv") as classifier:
        torch.testing.assert_close(
            classifier.head(classifier.activations(classifier.probed)), classifier.logits(classifier.probed)
        )
        told = r"^model\.layer: for some inputs the network calls the layer 1 times, and .* 2 times; "
        with pytest.raises(ValueError, match=told):
            classifier.activations(torch.zeros(2, 3, 16, 16))
