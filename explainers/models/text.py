"""A classifier of texts: tokens, and the words they belong to, to logits."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from explainers.models.black_box import check_fill
from explainers.models.class_names import names_of_labels
from explainers.models.frozen import Frozen
from explainers.models.modality import MODALITIES, NO_TOKEN, ModalityName
from explainers.models.model_spec import Activation, Output
from explainers.models.outputs import Outputs
from explainers.numerics.fingerprint import sha256_of

_TEXTS = MODALITIES["text"]


class TextClassifier(Frozen):
    """A sequence classifier with its tokenizer: a :class:`BlackBox`.

    An input is (2, T): the id of each token, and the number of the word it belongs to; see
    :mod:`explainers.models.black_box`. The network sees only the tokens that are present, next to each other,
    as if the others had never been written: the present tokens get consecutive positions. While it is
    wrapped, the network is in eval mode, its parameters require no gradient, and its configuration has a
    padding token and does not cache keys and values. :meth:`close`, or leaving the ``with`` block, restores
    all of that.

    Parameters
    ----------
    network
        A Hugging Face model. Called with ``input_ids`` and ``attention_mask`` (B, n), it returns an object
        whose ``logits`` are (B, K), or (B, 1): a single logit.
    tokenizer
        The network's tokenizer. It has to know which word each token belongs to, as "fast" tokenizers do.
    max_length
        T, in tokens, including special tokens.
    device
        The device that the network is moved to.
    output, activation
        What the network returns, and how logits become probabilities: see
        :class:`explainers.models.outputs.Outputs`.

    Raises
    ------
    ValueError
        In one line that names the key: the tokenizer is of another kind, the network does not run on T
        tokens, or padding changes its logits.
    """

    modality: ClassVar[ModalityName] = "text"
    graded: ClassVar[bool] = _TEXTS.graded
    layer: ClassVar[None] = None

    def __init__(
        self,
        network: nn.Module,
        tokenizer: Any,
        max_length: int,
        device: str | torch.device = "cpu",
        output: Output | None = None,
        activation: Activation | None = None,
    ) -> None:
        _check_tokenizer(tokenizer)
        super().__init__(network, device, Outputs(output, activation))
        self._logits = _Logits(self.network)
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        can_mask = bool(tokenizer.mask_token)
        self.fills = tuple(fill for fill in _TEXTS.fills if can_mask or fill != "mask")
        self.input_shape = (2, max_length)
        try:
            self._pad = self._configure()
            self.num_classes = self._try_out()
            config: Any = self.network.config
            self.class_names = names_of_labels(config.id2label, self.num_classes)
        except BaseException:
            self.close()
            raise

    def _configure(self) -> int:
        """The id of the padding token; causal networks search for it to find the last token of a text."""
        config: Any = self.network.config
        config = config.get_text_config()
        if hasattr(config, "use_cache"):
            self._set(config, "use_cache", False)
        if config.pad_token_id is None:
            ends = (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id)
            known = [token for token in ends if token is not None]
            if not known:
                raise ValueError("model.name: neither configuration nor tokenizer has a padding or end token")
            self._set(config, "pad_token_id", known[0])
        return int(config.pad_token_id)

    def _try_out(self) -> int:
        """The number of classes; the network is run on a text of one token, alone and padded to T.

        Raises
        ------
        ValueError
            In one line that names the key: T leaves no room for a token, the network does not run on T
            tokens, or padding changes its logits.
        """
        length = self.input_shape[1]
        special = self._tokenizer("").input_ids
        if length <= len(special):
            raise ValueError(
                f"model.max_length: {length} leaves no room for a token beside {len(special)} special ones"
            )
        # Tokens from the whole vocabulary, so that one larger than the network's table of embeddings fails.
        ordinary = sorted(set(self._tokenizer.get_vocab().values()) - self._special)
        room = length - len(special)
        some = [ordinary[i * len(ordinary) // room] for i in range(room)]
        texts = torch.full((2, 2, length), NO_TOKEN, device=self.device)
        for text, tokens in zip(texts, (some, some[:1]), strict=True):
            ids = special[:1] + tokens + special[1:]
            text[0, : len(ids)] = torch.tensor(ids)
        alone = self._probe(texts[1:], "model.name", "a text of one token")[0]
        together = self._probe(texts, "model.name", f"texts of {length} tokens")[1]
        if not torch.allclose(together, alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max())):
            raise ValueError(
                "model.name: the network gives a text other logits when it is padded to the length of another"
            )
        return len(alone)

    def encode(self, text: str) -> tuple[NDArray[np.int32], list[str], int]:
        """Turn a text into an input.

        A longer text is cut to T tokens, at its end or at its beginning, as the tokenizer does; special
        tokens stay. Special tokens that the text itself spells out, such as "[SEP]", are ordinary characters.

        Returns
        -------
        array
            (2, T) int32, ids and word numbers, padded with -1 at the end.
        tokens
            The token on each site that holds one, in a form that people can read.
        total
            Number of tokens of the whole text, including special tokens.

        Raises
        ------
        ValueError
            If the text has no token that can be hidden.
        """
        length = self.input_shape[1]
        found = self._tokenizer(text, verbose=False, split_special_tokens=True)
        total = len(found.input_ids)
        if total > length:
            found = self._tokenizer(text, truncation=True, max_length=length, split_special_tokens=True)
        words = [NO_TOKEN if word is None else word for word in found.word_ids()]
        if not any(word >= 0 for word in words):
            raise ValueError("has no token to explain")
        first = min(word for word in words if word >= 0)  # more than 0 if the text was cut at its beginning
        words = [word if word < 0 else word - first for word in words]
        array = np.full((2, length), NO_TOKEN, np.int32)
        array[:, : len(words)] = found.input_ids, words
        return array, [self._shown(token) for token in found.input_ids], total

    def _shown(self, token: int) -> str:
        """A token as it reads in a text; for part of a character, or a blank, the vocabulary's spelling."""
        name: str = self._tokenizer.convert_ids_to_tokens(token)
        read: str = "" if token in self._special else self._tokenizer.decode([token]).strip()
        return name if not read or "\N{REPLACEMENT CHARACTER}" in read else read

    def inputs_of(self, stored: Tensor) -> Tensor:
        return stored.long()

    def logits(self, inputs: Tensor) -> Tensor:
        # The tokens of each text are packed to the left and padded to the longest text of the batch, on the
        # right whatever the tokenizer does, so that positions begin at the first token. A text without any
        # token, not even a special one, is shown as one padding token: no network takes an empty sequence.
        ids = inputs[:, 0]
        there = ids != NO_TOKEN
        lengths = there.sum(1, keepdim=True)
        sites = torch.arange(max(1, int(lengths.max())), device=ids.device)
        order = there.logical_not().byte().argsort(dim=1, stable=True)[:, : len(sites)]
        packed = torch.where(sites < lengths, ids.gather(1, order), self._pad)
        seen = (sites < lengths.clamp(min=1)).long()
        return self._as_logits(self._pass(self._logits, packed, seen))

    def sites(self, inputs: Tensor) -> Tensor:
        return _TEXTS.sites(inputs)

    def fill(self, inputs: Tensor, how: str) -> Tensor:
        check_fill(self, how)
        hidden = self._tokenizer.mask_token_id if how == "mask" else NO_TOKEN
        return torch.stack([torch.where(self.sites(inputs), hidden, inputs[:, 0]), inputs[:, 1]], 1)

    @cached_property
    def fingerprint(self) -> str:
        tokenizer = self._tokenizer
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        # These two were set by the last call, and are no property of the tokenizer.
        del rules["truncation"], rules["padding"]
        digest = sha256_of(self.network.state_dict())
        read = [rules, tokenizer.special_tokens_map, tokenizer.truncation_side]
        digest.update(json.dumps(read, sort_keys=True).encode())
        return digest.hexdigest()


class _Logits(nn.Module):
    """A Hugging Face model as a function of tensors alone; it is in eval mode, as the model is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.network(input_ids=ids, attention_mask=mask).logits
        return logits


def _check_tokenizer(tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise ValueError(
            f"model.name: {type(tokenizer).__name__} does not say which word each token belongs to; give a "
            "model with a tokenizer.json"
        )
    # Without a tokenizer's files the library makes one that knows special tokens and a blank at most.
    if len(tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)) < 2:
        raise ValueError("model.name: the tokenizer knows no words; put its files beside the configuration")
    if any(tokenizer("", return_token_type_ids=True).token_type_ids):
        raise ValueError(
            f"model.name: {type(tokenizer).__name__} numbers the segments of a text (token_type_ids), which "
            "is not supported; give another model"
        )
