"""Small random classifiers of texts, and tokenizers made here: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
)

from explainers.models.text import TextClassifier

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("a", "the", "film", "plot", "was", "is", "good", "bad", "not", "very", "dull", "fine")
WORDS += ("un", "##believ", "##able", ",", ".")
TEXTS = [
    "The film was not very good.",
    "Unbelievable, a plot",
    "dull",
    "the plot is fine , the film is bad .",
]
_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_ROUGH = {"initializer_range": 0.3}  # so that every token matters


def word_pieces(words: Iterable[str] = WORDS) -> PreTrainedTokenizerFast:
    """Lower-case word pieces between [CLS] and [SEP], as BERT's."""
    model = models.WordPiece({word: i for i, word in enumerate((*SPECIAL, *words))}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(names))


def bytes_as(kind: str) -> PreTrainedTokenizerFast:
    """Pairs of bytes: bare ones, as ``gpt2``'s, or between ``<s>`` and ``</s>``, as ``roberta``'s."""
    special = ["<|end|>"] if kind == "gpt2" else ["<s>", "<pad>", "</s>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    if kind == "gpt2":
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="<s>",
        pad_token="<pad>",
        sep_token="</s>",
        eos_token="</s>",
        mask_token="<mask>",
    )


def config_of(kind: str, **changes: object) -> PreTrainedConfig:
    """A small network's configuration, for three classes; 24 tokens have positions."""
    pieces = {"vocab_size": len(SPECIAL) + len(WORDS), "pad_token_id": 0, "num_labels": 3}
    pairs = {"vocab_size": 320, "num_labels": 3}
    ends = pairs | {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    parts = {"d_model": 32, "num_decoder_layers": 2, "decoder_start_token_id": 2}
    rotary = {"max_position_embeddings": 24, "num_key_value_heads": 2, "pad_token_id": None}
    configs = {
        "bert": (BertConfig, pieces | _SIZE | _ROUGH | {"max_position_embeddings": 24}),
        "distilbert": (
            DistilBertConfig,
            pieces | _ROUGH | {"dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 24},
        ),
        "roberta": (RobertaConfig, ends | _SIZE | _ROUGH | {"max_position_embeddings": 26}),
        "bart": (
            BartConfig,
            ends
            | parts
            | {"init_std": 0.3, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 24}
            | {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
            | {"encoder_attention_heads": 2, "decoder_attention_heads": 2},
        ),
        "t5": (T5Config, ends | parts | {"d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}),
        "gpt2": (
            GPT2Config,
            pairs
            | _ROUGH
            | {
                "n_embd": 32,
                "n_layer": 2,
                "n_head": 2,
                "n_positions": 24,
                "bos_token_id": 0,
                "eos_token_id": 0,
            },
        ),
        "llama": (LlamaConfig, pairs | _SIZE | _ROUGH | rotary),
    }
    cls, settings = configs[kind]
    return cls(**settings | changes)


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    if kind in {"bert", "distilbert"}:
        return word_pieces()
    return bytes_as("gpt2" if kind in {"gpt2", "llama"} else "roberta")


def network_of(kind: str, seed: int = 0, **changes: object) -> nn.Module:
    """An untrained sequence classifier, with dropout that training would switch on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_config(config_of(kind, **changes))


def text_classifier(kind: str = "bert", max_length: int = 12) -> TextClassifier:
    return TextClassifier(network_of(kind), tokenizer_of(kind), max_length)


def saved(folder: Path, kind: str = "bert", **changes: object) -> Path:
    """A folder with a network and its tokenizer, as the library writes them."""
    network_of(kind, **changes).save_pretrained(folder)
    tokenizer_of(kind).save_pretrained(folder)
    return folder
