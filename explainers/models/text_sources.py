"""Load classifiers of texts: the sequence classifiers of Hugging Face."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from explainers.models.huggingface import (
    check_problem,
    configuration,
    from_pretrained,
    pretrained_model,
)
from explainers.models.model_spec import DEFAULT_MAX_LENGTH, ModelSpec
from explainers.models.text import TextClassifier
from explainers.numerics.randomness import global_generators


def load_text(spec: ModelSpec, device: str | torch.device) -> TextClassifier:
    """Load the sequence classifier of a repository or a folder, with its tokenizer.

    Raises
    ------
    ValueError
        In one line that begins with the key: the source is another one, there is no such model, it does not
        classify texts, its weights lack tensors, or it does not take as many tokens.
    """
    from transformers import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    if spec.source != "huggingface":
        raise ValueError(f"model.source: texts need huggingface, not {spec.source!r}")
    if spec.returns is not None:
        raise ValueError("model.returns: the logits of a classifier of texts are known; leave the key out")
    config = configuration(spec, "distilbert/distilbert-base-uncased-finetuned-sst-2-english")
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"model.name: {spec.name} classifies no texts; its model type is {config.model_type!r}"
        )
    check_problem(spec, config)
    tokenizer = from_pretrained(spec, AutoTokenizer.from_pretrained, trust_remote_code=False)
    if spec.weights == "none":
        with global_generators(0, torch.device("cpu")):  # seeded: every worker must draw the same weights
            network = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    else:
        network = pretrained_model(spec, AutoModelForSequenceClassification)
    length = _max_length(spec, network, tokenizer)
    return TextClassifier(network, tokenizer, length, device, spec.output, spec.activation)


def _max_length(spec: ModelSpec, network: Any, tokenizer: Any) -> int:
    longest = _positions(network)
    if spec.max_length is None:
        return min(DEFAULT_MAX_LENGTH, tokenizer.model_max_length, longest or DEFAULT_MAX_LENGTH)
    if longest is not None and spec.max_length > longest:
        raise ValueError(
            f"model.max_length: {spec.max_length} tokens are more than the {longest} that {spec.name} takes"
        )
    return spec.max_length


def _positions(network: Any) -> int | None:
    """Number of tokens that have a position of their own; None where positions are relative."""
    count = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if count is None or count < 1:
        return None
    for name, module in network.named_modules():
        # RoBERTa and models like it begin to count positions after the padding token's position.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return int(count) if module.padding_idx is None else int(count) - module.padding_idx - 1
    return int(count)
