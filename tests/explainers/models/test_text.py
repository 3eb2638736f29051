"""Texts as inputs: tokens and words, masked and removed, seen alone or in company."""

import pytest
import torch
from torch import nn

from explainers.models.text import TextClassifier
from text_toys import SPECIAL, TEXTS, WORDS, bytes_as, network_of, text_classifier, tokenizer_of, word_pieces

KINDS = ["bert", "distilbert", "roberta", "bart", "t5", "gpt2", "llama"]
NEGATED = "the film was not very good"


def inputs_of(classifier, *texts):
    rows = [torch.from_numpy(classifier.encode(text)[0]) for text in texts]
    return classifier.inputs_of(torch.stack(rows))


@torch.no_grad()
def logits_of(classifier, *texts):
    return classifier.logits(inputs_of(classifier, *texts))


# Encoding


def test_a_text_becomes_ids_words_and_readable_tokens():
    array, tokens, total = text_classifier(max_length=10).encode("The plot was UNBELIEVABLE, qqq")
    assert array.dtype == "int32"
    assert tokens == ["[CLS]", "the", "plot", "was", "un", "##believ", "##able", ",", "[UNK]", "[SEP]"]
    assert array[0].tolist() == [(SPECIAL + WORDS).index(token) for token in tokens]
    assert array[1].tolist() == [-1, 0, 1, 2, 3, 3, 3, 4, 5, -1]
    assert total == 10


def test_padding_is_minus_one_in_both_channels():
    array, tokens, total = text_classifier(max_length=6).encode("good")
    assert array.tolist() == [[2, 11, 3, -1, -1, -1], [-1, 0, -1, -1, -1, -1]]
    assert (tokens, total) == (["[CLS]", "good", "[SEP]"], 3)


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        ("right", ["[CLS]", "the", "film", "was", "[SEP]"]),
        ("left", ["[CLS]", "not", "very", "good", "[SEP]"]),
    ],
)
def test_a_long_text_is_cut_where_its_tokenizer_cuts_and_its_whole_length_is_told(side, expected):
    tokenizer = word_pieces()
    tokenizer.truncation_side = side
    array, tokens, total = TextClassifier(network_of("bert"), tokenizer, 5).encode(NEGATED)
    assert (tokens, total) == (expected, 8)
    assert (array[1] >= 0).tolist() == [False, True, True, True, False]


def test_tokens_of_bytes_read_as_text_unless_they_are_blank_or_part_of_a_character():
    tokens = text_classifier("gpt2", 24).encode("not good\n\U0001f3a5")[1]
    assert tokens[:3] == ["not", "good", "\u010a"]  # the byte of a new line, as such vocabularies write it
    assert len(tokens) == 3 + len("\U0001f3a5".encode())
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(tokens)


@pytest.mark.parametrize(("kind", "text"), [("bert", ""), ("bert", " \n"), ("roberta", ""), ("gpt2", "")])
def test_a_text_with_nothing_to_hide_is_refused(kind, text):
    with pytest.raises(ValueError, match=r"^has no token to explain$"):
        text_classifier(kind).encode(text)


# Logits


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_transformers_own_whatever_the_company_and_the_padding(kind):
    classifier = text_classifier(kind, max_length=16)
    tokenizer, network = tokenizer_of(kind), network_of(kind).eval()
    with torch.no_grad():
        own = torch.cat(
            [network(input_ids=torch.tensor([tokenizer(text).input_ids])).logits for text in TEXTS]
        )
    torch.testing.assert_close(logits_of(classifier, *TEXTS), own, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        logits_of(classifier, *TEXTS[::-1], *TEXTS).flip(0)[4:], own, rtol=1e-5, atol=1e-5
    )
    for text, expected in zip(TEXTS, own, strict=True):
        torch.testing.assert_close(logits_of(classifier, text)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers_own_padded_batch(kind):
    classifier = text_classifier(kind, max_length=16)
    tokenizer, network = tokenizer_of(kind), network_of(kind).eval()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        network.config.pad_token_id = tokenizer.eos_token_id
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        own = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    torch.testing.assert_close(logits_of(classifier, *TEXTS), own, rtol=1e-5, atol=1e-5)


def test_the_network_runs_on_no_more_than_the_longest_text_of_the_batch():
    classifier, widths = text_classifier(max_length=20), []
    classifier.network.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    logits_of(classifier, "good", "the film was dull")
    assert widths == [(2, 6)]


# Hiding


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_removing_tokens_is_never_having_written_them(kind):
    classifier = text_classifier(kind)
    inputs = inputs_of(classifier, NEGATED)
    words = torch.tensor([[[0, 1, 2, 5]]])  # the film was good
    keep = (inputs[:, 1:] == words.mT).any(1) | ~classifier.sites(inputs)
    with torch.no_grad():
        found = classifier.logits(torch.where(keep[:, None], inputs, classifier.fill(inputs, "remove")))
    torch.testing.assert_close(found, logits_of(classifier, "the film was good"), rtol=1e-5, atol=1e-5)
    assert (found - logits_of(classifier, NEGATED)).abs().max() > 0.01


@pytest.mark.parametrize(("kind", "mask"), [("bert", "[MASK]"), ("roberta", "<mask>")])
def test_masking_tokens_is_writing_the_mask_token_in_their_place(kind, mask):
    classifier = text_classifier(kind)
    inputs = inputs_of(classifier, NEGATED)
    keep = inputs[:, 1:] != 3  # not
    masked = torch.where(keep, inputs, classifier.fill(inputs, "mask"))
    tokenizer = tokenizer_of(kind)
    not_, hidden = tokenizer(" not", add_special_tokens=False).input_ids, tokenizer.mask_token_id
    expected = [hidden if token in not_ else token for token in tokenizer(NEGATED).input_ids]
    assert masked[0, 0, : len(expected)].tolist() == expected
    assert tokenizer.convert_ids_to_tokens(hidden) == mask
    with torch.no_grad():
        own = network_of(kind).eval()(input_ids=torch.tensor([expected])).logits
        torch.testing.assert_close(classifier.logits(masked), own, rtol=1e-5, atol=1e-5)


def test_only_tokens_of_words_are_hidden_and_words_keep_their_numbers():
    classifier = text_classifier(max_length=6)
    inputs = inputs_of(classifier, "not good", "unbelievable")
    expected = [[False, True, True, False, False, False], [False, True, True, True, False, False]]
    assert classifier.sites(inputs).tolist() == expected
    masked, removed = (classifier.fill(inputs, how) for how in ("mask", "remove"))
    assert masked[:, 0].tolist() == [[2, 4, 4, 3, -1, -1], [2, 4, 4, 4, 3, -1]]
    assert removed[:, 0].tolist() == [[2, -1, -1, 3, -1, -1], [2, -1, -1, -1, 3, -1]]
    assert torch.equal(masked[:, 1], inputs[:, 1])
    assert torch.equal(removed[:, 1], inputs[:, 1])
    assert torch.equal(classifier.sites(removed), classifier.sites(inputs))


def test_a_text_of_which_nothing_is_left_still_has_logits():
    classifier = text_classifier("gpt2")
    inputs = inputs_of(classifier, *TEXTS[:2])
    with torch.no_grad():
        found = classifier.logits(torch.cat([classifier.fill(inputs, "remove")[:1], inputs]))
        alone = classifier.network(input_ids=torch.tensor([[0]])).logits[0]  # the end of text, which pads
    torch.testing.assert_close(found[0], alone)
    torch.testing.assert_close(found[1:], logits_of(classifier, *TEXTS[:2]))


def test_fills_are_those_that_the_tokenizer_has():
    bert, gpt2 = text_classifier(), text_classifier("gpt2")
    assert (bert.fills, gpt2.fills) == (("mask", "remove"), ("remove",))
    with pytest.raises(ValueError, match=r"^fill: 'blur' is not for texts; choose mask or remove$"):
        bert.fill(inputs_of(bert, "good"), "blur")
    with pytest.raises(ValueError, match=r"^fill: 'mask' is not for texts; choose remove$"):
        gpt2.fill(inputs_of(gpt2, "good"), "mask")


# The network and its fingerprint


def test_what_is_changed_in_the_network_is_restored():
    network = network_of("gpt2").train()
    with TextClassifier(network, bytes_as("gpt2"), 12) as classifier:
        assert (classifier.num_classes, classifier.input_shape, classifier.layer) == (3, (2, 12), None)
        assert (classifier.modality, classifier.graded) == ("text", False)
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert (network.config.pad_token_id, network.config.use_cache) == (0, False)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert (network.config.pad_token_id, network.config.use_cache) == (None, True)


def test_a_refused_network_is_restored():
    network = network_of("bert").train()
    with pytest.raises(ValueError, match=r"^model.max_length: 2 leaves no room for a token"):
        TextClassifier(network, word_pieces(), 2)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_fingerprint_is_of_weights_and_tokenizer_and_not_of_what_was_read():
    classifier = text_classifier(max_length=5)
    assert classifier.encode(NEGATED)[2] > 5  # cut, which the tokenizer remembers
    first = classifier.fingerprint
    assert text_classifier(max_length=5).fingerprint == first
    others = [
        TextClassifier(network_of("bert", seed=1), word_pieces(), 5),
        TextClassifier(network_of("bert"), word_pieces((WORDS[1], WORDS[0], *WORDS[2:])), 5),
        TextClassifier(network_of("bert"), word_pieces(), 5),
    ]
    others[2]._tokenizer.mask_token = "[UNK]"
    assert len({first, *(other.fingerprint for other in others)}) == 4


# Refusals


class _MeanOfAll(nn.Module):
    """It looks at padding as at any other token."""

    def __init__(self):
        super().__init__()
        self.inner = network_of("bert")
        self.config = self.inner.config

    def forward(self, input_ids, **rest):  # noqa: ARG002
        return self.inner(input_ids=input_ids)


def test_a_network_to_which_padding_makes_a_difference_is_refused():
    with pytest.raises(
        ValueError, match=r"^model.name: the network gives a text other logits when it is pad"
    ):
        TextClassifier(_MeanOfAll(), word_pieces(), 12)


def test_a_causal_network_without_any_token_to_pad_with_is_refused():
    tokenizer = bytes_as("gpt2")
    tokenizer.eos_token = None
    with pytest.raises(
        ValueError, match=r"^model.name: neither configuration nor tokenizer has a padding or"
    ):
        TextClassifier(network_of("gpt2"), tokenizer, 12)


@pytest.mark.parametrize(("length", "special"), [(1, 2), (2, 2)])
def test_a_length_without_room_for_a_token_is_refused(length, special):
    expected = f"^model.max_length: {length} leaves no room for a token beside {special} special ones$"
    with pytest.raises(ValueError, match=expected):
        text_classifier(max_length=length)


def test_more_tokens_than_the_network_has_positions_are_refused():
    with pytest.raises(ValueError, match=r"^model.name: the network does not run on texts of 25 tokens"):
        text_classifier(max_length=25)


def test_a_vocabulary_that_the_network_does_not_know_is_refused():
    tokenizer = word_pieces((*WORDS, *(f"word{i}" for i in range(9))))
    with pytest.raises(ValueError, match=r"^model.name: the network does not run on texts of 24 tokens"):
        TextClassifier(network_of("bert"), tokenizer, 24)


def test_a_tokenizer_that_numbers_the_parts_of_a_text_is_refused():
    from tokenizers.processors import TemplateProcessing

    tokenizer = word_pieces()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A [SEP] [CLS]:2", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(ValueError, match=r"numbers the segments of a text .*, which is not supported; give"):
        TextClassifier(network_of("bert"), tokenizer, 12)


def test_special_tokens_that_a_text_spells_out_are_ordinary_characters():
    classifier = text_classifier("bert", 16)
    array, _, _ = classifier.encode("the [SEP] film [MASK]")
    special = {2, 3, 4}
    assert not special & set(array[0, array[1] >= 0].tolist())


def test_the_words_of_a_text_cut_at_its_beginning_are_counted_from_zero():
    tokenizer = tokenizer_of("bert")
    tokenizer.truncation_side = "left"
    with TextClassifier(network_of("bert"), tokenizer, 6) as classifier:
        array, tokens, total = classifier.encode("the film was good the plot was bad")
    assert total == 10
    assert tokens[1:-1] == ["the", "plot", "was", "bad"]
    assert array[1].tolist() == [-1, 0, 1, 2, 3, -1]
