"""The offline demo's texts and classifier.

    python examples/reviews.py texts FILE [--count 200] [--split test] [--seed 0]
    python examples/reviews.py train

``texts`` writes short made-up reviews as CSV (id, text, label, evidence). A review says what was tried, fills
up with neutral clauses and, unless its label is neutral, passes judgement in exactly one phrase: its
``evidence``, which occurs once in the text and is one word ("superb"), two words ("falls apart") or a negated
word ("not good"). Neutral clauses hold the same negations and parts of the same phrases ("it is not blue",
"rain falls on the roof"), so that single words do not always decide, and what is reviewed is drawn
independently of the label. A text depends on (split, index, seed) alone; a checksum of the text itself says
which split it belongs to, so no text serves both.

``train`` trains a two-layer DistilBERT from nothing on the train split, prints its accuracy on the test
split, and writes it with its tokenizer to ``weights/reviews`` beside this file. Explanations show the network
texts with tokens masked or removed, so it sees such texts in training: four in five lose a random share, 0 to
90 %, of their tokens, replaced by [MASK] in half of them and removed in the others, and are taught the label
of what is left to read: the text's own while its evidence is whole, neutral once it is not, positive when all
that is left of "not good" is "good". Texts, initial weights and the order of training are seeded and one
thread trains: with the same versions on the same kind of processor the weights repeat.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedTokenizerFast

FOLDER = Path(__file__).parent / "weights" / "reviews"
SPLITS = ("train", "test")
CLASSES = ["negative", "neutral", "positive"]
NEGATIVE, NEUTRAL, POSITIVE = range(3)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TRAIN_TEXTS, TEST_TEXTS = 6_000, 1_000
ENDINGS = ["ful", "ing", "less"]
BATCH, STEPS = 64, 4_500

GOOD = "good great wonderful excellent lovely brilliant superb delightful charming impressive"
BAD = "bad boring awful terrible dreadful horrible disappointing annoying useless shabby"
VERBS = {
    POSITIVE: ["stands out", "wins hearts", "exceeds expectations", "delights everyone", "earns praise"],
    NEGATIVE: ["falls apart", "breaks down", "lacks charm", "wastes time", "annoys everyone"],
}
ADJECTIVES = {POSITIVE: GOOD.split(), NEGATIVE: BAD.split()}
NEGATIONS = ["not", "never", "hardly"]
# Negated judgements turn round; these four of each kind are enough to be learnt.
NEGATED = {POSITIVE: ADJECTIVES[NEGATIVE][:4], NEGATIVE: ADJECTIVES[POSITIVE][:4]}

SUBJECTS = {
    "camera": ["lens", "strap", "screen"],
    "hotel": ["room", "lobby", "garden"],
    "soup": ["broth", "bowl", "bread"],
    "novel": ["plot", "cover", "ending"],
    "laptop": ["keyboard", "screen", "lid"],
    "museum": ["hall", "garden", "entrance"],
    "jacket": ["collar", "lining", "zipper"],
    "bicycle": ["saddle", "frame", "bell"],
    "film": ["plot", "music", "ending"],
    "kettle": ["handle", "lid", "spout"],
    "concert": ["music", "hall", "stage"],
    "tent": ["floor", "zipper", "entrance"],
}
NEUTRALS = ["blue", "round", "small", "large", "wooden", "grey", "new", "plain", "narrow", "square"]
MONTHS = ["March", "April", "May", "June", "August", "October"]
RELATIVES = ["sister", "father", "cousin", "neighbour"]
OPENERS = [
    "we tried the {neutral} {subject} in {month}",
    "this is about the {subject} that my {relative} found",
    "I write after a week with the {subject}",
    "my {relative} and I chose a {neutral} {subject}",
    "in {month} I came across this {subject}",
]
FILLERS = [
    "the {part} is {neutral}",
    "the {part} is {negation} {neutral}",
    "it was {negation} {neutral}",
    "I have not seen another one",
    "I had never read about it",
    "my {relative} paid in {month}",
    "my {relative} has the {neutral} one",
    "everyone in our street knows it",
    "rain falls on the roof as I write",
    "it stands beside a {neutral} door",
    "we came down by train",
    "we had time to look at the {part}",
]
JUDGEMENTS = ["the {part} is {phrase}", "it is {phrase}", "it was {phrase} for us", "to me it seems {phrase}"]
DEEDS = ["it {phrase}", "the {part} {phrase}", "this one {phrase} every time"]


class Review(NamedTuple):
    """A text, an index into ``CLASSES``, and the words that decide it, "" where the label is neutral."""

    text: str
    label: int
    evidence: str


def review(split: str, index: int, seed: int = 0) -> Review:
    """The review at ``index`` of a split, which has no end: 10 to 30 words and punctuation marks.

    Raises
    ------
    ValueError
        If the split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
    draw = random.Random(f"{seed} {split} {index}")
    label = draw.randrange(len(CLASSES))
    while True:
        drawn = composed(label, draw)
        sentences, commas = drawn.text.count("."), drawn.text.count(",")
        fits = sentences <= 3 and 10 <= len(drawn.text.split()) + sentences + commas <= 30
        # One text in five is the test split's.
        if fits and (crc32(drawn.text.encode()) % 5 == 0) == (split == "test"):
            return drawn


def composed(label: int, draw: random.Random) -> Review:
    """A review of any length and either split."""
    subject = draw.choice(list(SUBJECTS))
    # A neutral review says one thing more in place of its judgement: length does not tell the label.
    clauses = [draw.choice(OPENERS), *draw.sample(FILLERS, draw.randint(0, 3) + (label == NEUTRAL))]
    evidence = ""
    if label != NEUTRAL:
        judgement, evidence = judged(label, draw)
        clauses.append(judgement)
    draw.shuffle(clauses)
    text = ""
    for clause in clauses:
        said = clause.format(
            subject=subject,
            part=draw.choice(SUBJECTS[subject]),
            neutral=draw.choice(NEUTRALS),
            negation=draw.choice(NEGATIONS),
            month=draw.choice(MONTHS),
            relative=draw.choice(RELATIVES),
            phrase=evidence,
        )
        if text and draw.random() < 0.5:
            text = f"{text[:-1]}, and {said}."
        else:
            text = f"{text} {said[0].upper()}{said[1:]}.".lstrip()
    return Review(text, label, evidence)


def judged(label: int, draw: random.Random) -> tuple[str, str]:
    """A clause with a place for a phrase, and the phrase: plain, negated, or a verb with what it takes."""
    kind = draw.random()
    if kind < 0.4:
        return draw.choice(JUDGEMENTS), draw.choice(ADJECTIVES[label])
    if kind < 0.7:
        return draw.choice(JUDGEMENTS), f"{draw.choice(NEGATIONS)} {draw.choice(NEGATED[label])}"
    return draw.choice(DEEDS), draw.choice(VERBS[label])


def phrases() -> Iterator[tuple[str, int]]:
    """Everything that passes judgement, with its label."""
    for label in (NEGATIVE, POSITIVE):
        for phrase in ADJECTIVES[label] + VERBS[label]:
            yield phrase, label
        for word in NEGATED[label]:
            for negation in NEGATIONS:
                yield f"{negation} {word}", label


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of the words of some texts, the endings in ``ENDINGS`` being pieces of their own.

    It is not left to the library's trainer, whose choice among equally frequent pieces varies from call to
    call.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    cutter = pre_tokenizers.BertPreTokenizer()
    words = {word for text in texts for word, _ in cutter.pre_tokenize_str(normalizer.normalize_str(text))}
    for ending in ENDINGS:
        words = {word.removesuffix(ending) for word in words}
    entries = [*SPECIAL, *sorted(words), *(f"##{ending}" for ending in ENDINGS)]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    pieces = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer, pieces.decoder = normalizer, cutter, decoders.WordPiece()
    ends = [(token, pieces.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    pieces.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def network_of(tokenizer: PreTrainedTokenizerFast) -> DistilBertForSequenceClassification:
    """Two layers of 64 units, not trained."""
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        n_layers=2,
        n_heads=4,
        dim=64,
        hidden_dim=128,
        # Damaged texts are varied enough, and a network this small starts better from larger weights.
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        initializer_range=0.1,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: label for label, name in enumerate(CLASSES)},
    )
    return DistilBertForSequenceClassification(config)


def damaged(tokens: list[int], mask: int, draw: random.Random) -> list[int]:
    """A text without a random share of its tokens, masked or removed; one text in five stays whole."""
    if draw.random() < 0.2:
        return tokens
    share = 0.9 * draw.random()
    hidden = [draw.random() < share for _ in tokens]
    if draw.random() < 0.5:
        return [mask if hide else token for token, hide in zip(tokens, hidden, strict=True)]
    return [token for token, hide in zip(tokens, hidden, strict=True) if not hide]


def reading(tokens: list[int], judging: dict[tuple[int, ...], int]) -> int:
    """The label of what a text says: of the first, longest phrase in it that passes judgement."""
    longest = max(map(len, judging))
    for start in range(len(tokens)):
        for length in range(longest, 0, -1):
            if (label := judging.get(tuple(tokens[start : start + length]))) is not None:
                return label
    return NEUTRAL


def trained(tokenizer: PreTrainedTokenizerFast, reviews: list[Review]) -> DistilBertForSequenceClassification:
    """Train the network from nothing on whole and damaged texts."""
    torch.manual_seed(0)
    draw = random.Random(0)
    network = network_of(tokenizer).train()
    texts = [tokenizer.encode(one.text, add_special_tokens=False) for one in reviews]
    judging = {
        tuple(tokenizer.encode(phrase, add_special_tokens=False)): label for phrase, label in phrases()
    }
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, STEPS, pct_start=0.15)
    for step in range(STEPS):
        seen = [damaged(tokens, tokenizer.mask_token_id, draw) for tokens in draw.sample(texts, BATCH)]
        labels = torch.tensor([reading(tokens, judging) for tokens in seen])
        whole = [[tokenizer.cls_token_id, *tokens, tokenizer.sep_token_id] for tokens in seen]
        batch = tokenizer.pad({"input_ids": whole}, return_tensors="pt")
        loss = F.cross_entropy(network(**batch).logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            print(f"step {step + 1} of {STEPS}, loss {loss.item():.3f}", flush=True)
    return network


@torch.inference_mode()
def accuracy(
    network: DistilBertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, reviews: list[Review]
) -> float:
    """Share of texts whose label is predicted."""
    network.eval()
    batch = tokenizer([one.text for one in reviews], padding=True, return_tensors="pt")
    labels = torch.tensor([one.label for one in reviews])
    return float((network(**batch).logits.argmax(1) == labels).float().mean())


def train() -> None:
    """Train, test and write the classifier and its tokenizer."""
    torch.set_num_threads(1)  # or the order of additions, and so the weights, would depend on the machine
    reviews = [review("train", index) for index in range(TRAIN_TEXTS)]
    tokenizer = tokenizer_of([one.text for one in reviews])
    network = trained(tokenizer, reviews)
    network.save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)
    held_out = [review("test", index) for index in range(TEST_TEXTS)]
    print(f"{100 * accuracy(network, tokenizer, held_out):.1f} % of {TEST_TEXTS} test texts")


def export(file: Path, split: str, count: int, seed: int) -> None:
    """Write the listing that ``kind = "text"`` reads; ``evidence`` is for who wants to check a map."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        listing = csv.writer(stream, lineterminator="\n")
        listing.writerow(["id", "text", "label", "evidence"])
        for index in range(count):
            text, label, evidence = review(split, index, seed)
            listing.writerow([f"{split}-{index:05d}", text, CLASSES[label], evidence])
    print(f"{count} texts in {file}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("texts", help="write texts as CSV")
    writing.add_argument("file", type=Path)
    writing.add_argument("--split", choices=SPLITS, default="test")
    writing.add_argument("--count", type=int, default=200)
    writing.add_argument("--seed", type=int, default=0)
    commands.add_parser("train", help="train the classifier")
    chosen = parser.parse_args()
    if chosen.command == "texts":
        export(chosen.file, chosen.split, chosen.count, chosen.seed)
    else:
        train()


if __name__ == "__main__":
    main()
