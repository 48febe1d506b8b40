"""Which tokens the heads draft, where these are not all."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np

from mtp_jax.config import ConfigError
from mtp_jax.data import Source
from mtp_jax.distributed import multihost
from mtp_jax.models.heads import DRAFT_TOKENS
from mtp_jax.models.params import by_path, merge, nested
from mtp_jax.tokenizer import Tokenizer
from mtp_jax.training.step import TrainState


def draft_tokens(source: Source, tokenizer: Tokenizer, count: int) -> np.ndarray:
    """int32[count], the tokens that a source has most often, and EOS, in ascending order.

    Where it has fewer, the first of the vocabulary follow, which a BPE has merged first as they
    are frequent.

    Raises:
        ConfigError: the vocabulary has no more than `count`.
    """
    size = tokenizer.vocab_size
    if count >= size:
        raise ConfigError(
            f"config.heads.vocabulary ({count}) must be below the tokenizer's {size} tokens:"
            " 0 stands for all"
        )
    found: Counter[int] = Counter()
    for utterance in source.utterances:
        text = utterance.tokens
        found.update(tokenizer.encode_transcript(utterance.text) if text is None else text)
    found[tokenizer.eos] = found.total() + 1
    often = np.array([found[token] for token in range(size)])
    return np.sort(np.argsort(-often, kind="stable")[:count]).astype(np.int32)


def with_draft_tokens(state: TrainState, shardings: TrainState, tokens: np.ndarray) -> TrainState:
    """`state` of heads that draft int32[N] `tokens`."""
    placed = multihost.place_whole(tokens, by_path(shardings.frozen)[DRAFT_TOKENS])
    return dataclasses.replace(state, frozen=merge(state.frozen, nested({DRAFT_TOKENS: placed})))
