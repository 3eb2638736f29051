"""Makes the texts and the classifier of the offline demo.

    python examples/reviews.py texts FILE [--count 200] [--split test] [--seed 0]
    python examples/reviews.py train

``texts`` writes short artificial reviews as CSV (id, text, label, evidence). A review says what was tried and
contains some neutral clauses. Unless its label is neutral, exactly one phrase decides the label: its
``evidence``. The evidence occurs once in the text and is one word ("superb"), two words ("falls apart") or a
negated word ("not good"). Neutral clauses contain the same negations and parts of the same phrases ("it is
not blue", "rain falls on the roof"), so that single words do not always decide. What is reviewed is drawn
independently of the label. A text depends on (split, index, seed) alone. A checksum of the text says which
split it belongs to, so no text is in both.

``train`` trains a two-layer DistilBERT from scratch on the train split, prints its accuracy on the test
split, and writes it with its tokenizer to ``weights/reviews`` beside this file. Explanations show the network
texts with masked or removed tokens, so it is trained with such texts too. Four texts in five lose a random
share of their tokens, 0 to 90 %: in half of them the tokens are replaced by [MASK], in the others they are
removed. The label that is taught is that of the text that is left: the text's own label while its evidence is
complete, neutral if it is not, and positive if only "good" is left of "not good".

The texts, the initial weights and the order of training are seeded, and one thread trains. The weights are
therefore reproducible with the same versions on the same kind of processor.
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
# A negation reverses a judgement: positive phrases negate bad words. Four words of each kind can be learnt.
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
    """One review.

    Attributes
    ----------
    text
        The text.
    label
        Index into ``CLASSES``.
    evidence
        The words that decide the label; "" if it is neutral.
    """

    text: str
    label: int
    evidence: str


def review(split: str, index: int, seed: int = 0) -> Review:
    """The review at this index of a split: 10 to 30 words and punctuation marks.

    Splits are unlimited, so any index from 0 is valid.

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
        # One text in five belongs to the test split.
        if fits and (crc32(drawn.text.encode()) % 5 == 0) == (split == "test"):
            return drawn


def composed(label: int, draw: random.Random) -> Review:
    """Draw a review with this label, of any length and either split."""
    subject = draw.choice(list(SUBJECTS))
    # A neutral review has one more neutral clause instead of a judgement; its length must not show the label.
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
    """Draw a clause with a place for a phrase, and a phrase: an adjective, a negated one or a verb phrase."""
    kind = draw.random()
    if kind < 0.4:
        return draw.choice(JUDGEMENTS), draw.choice(ADJECTIVES[label])
    if kind < 0.7:
        return draw.choice(JUDGEMENTS), f"{draw.choice(NEGATIONS)} {draw.choice(NEGATED[label])}"
    return draw.choice(DEEDS), draw.choice(VERBS[label])


def phrases() -> Iterator[tuple[str, int]]:
    """Yield every phrase that decides a label, with the label."""
    for label in (NEGATIVE, POSITIVE):
        for phrase in ADJECTIVES[label] + VERBS[label]:
            yield phrase, label
        for word in NEGATED[label]:
            for negation in NEGATIONS:
                yield f"{negation} {word}", label


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer for the words of some texts, in which the ``ENDINGS`` are separate pieces.

    The vocabulary is made here and not by the library's trainer, because the trainer chooses among equally
    frequent pieces differently in every call.
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
    """The untrained network: two layers of 64 units."""
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        n_layers=2,
        n_heads=4,
        dim=64,
        hidden_dim=128,
        # No dropout, because damaged texts vary enough. So small a network starts better from larger weights.
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
    """Mask or remove a random share of the tokens of a text; one text in five stays complete."""
    if draw.random() < 0.2:
        return tokens
    share = 0.9 * draw.random()
    hidden = [draw.random() < share for _ in tokens]
    if draw.random() < 0.5:
        return [mask if hide else token for token, hide in zip(tokens, hidden, strict=True)]
    return [token for token, hide in zip(tokens, hidden, strict=True) if not hide]


def reading(tokens: list[int], judging: dict[tuple[int, ...], int]) -> int:
    """The label of a text: that of the first phrase in it that decides one, and of the longest one there.

    ``judging`` has the labels of such phrases by their tokens.
    """
    longest = max(map(len, judging))
    for start in range(len(tokens)):
        for length in range(longest, 0, -1):
            if (label := judging.get(tuple(tokens[start : start + length]))) is not None:
                return label
    return NEUTRAL


def trained(tokenizer: PreTrainedTokenizerFast, reviews: list[Review]) -> DistilBertForSequenceClassification:
    """Train the network from scratch on complete and damaged texts."""
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
    """The share of texts whose label is predicted, in [0, 1]."""
    network.eval()
    batch = tokenizer([one.text for one in reviews], padding=True, return_tensors="pt")
    labels = torch.tensor([one.label for one in reviews])
    return float((network(**batch).logits.argmax(1) == labels).float().mean())


def train() -> None:
    """Train, test and write the classifier and its tokenizer."""
    # With more threads the order of additions, and with it the weights, would depend on the machine.
    torch.set_num_threads(1)
    reviews = [review("train", index) for index in range(TRAIN_TEXTS)]
    tokenizer = tokenizer_of([one.text for one in reviews])
    network = trained(tokenizer, reviews)
    network.save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)
    held_out = [review("test", index) for index in range(TEST_TEXTS)]
    print(f"{100 * accuracy(network, tokenizer, held_out):.1f} % of {TEST_TEXTS} test texts")


def export(file: Path, split: str, count: int, seed: int) -> None:
    """Write the listing that ``kind = "text"`` reads; its column ``evidence`` serves to check maps."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        listing = csv.writer(stream, lineterminator="\n")
        listing.writerow(["id", "text", "label", "evidence"])
        for index in range(count):
            text, label, evidence = review(split, index, seed)
            listing.writerow([f"{split}-{index:05d}", text, CLASSES[label], evidence])
    print(f"{count} texts in {file}")


def main() -> None:
    """Run the command that the arguments name."""
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
