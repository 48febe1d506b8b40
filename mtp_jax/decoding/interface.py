"""What decoding needs of a model, and what every strategy returns.

The loops import no model. They are programs over a set of functions that are made inside the same
``jit`` as the loop, so that a function may close over parameters and over the encoder's output.
Strategies never look into a hidden state [D]: only these functions do, so it may hold more than the
decoder's width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from mtp_jax.decoding.alignment import DraftText
from mtp_jax.decoding.pace import Pace
from mtp_jax.models.kv_cache import KVCache


class Drafts(NamedTuple):
    """Drafts of the tokens behind head 1's.

    Attributes:
        tokens: int32[B, M - 1], of heads 2..M.
        probabilities: float32[B, M - 1], of each token by its head.
        drafted: int32[B], how many of each row there are; behind them is padding.
    """

    tokens: jax.Array
    probabilities: jax.Array
    drafted: jax.Array


class DecoderFunctions(NamedTuple):
    """The decoder of a model, for a batch of audio that is already encoded.

    Attributes:
        prefill: capacity -> (hidden [B, D] that predicts the first token, cache with as many free
            slots behind the prompt).
        extend: (tokens int32[B, S], count int32[B], cache) -> (hidden [B, S, D], cache); feeds the
            first `count` tokens of each row.
        next_token: hidden [..., D] -> logits [..., V] of head 1.
        draft: (hidden [B, D] at the last accepted position, int32[B], what head 1 predicts there,
            bool[B], which rows want drafts, the probability of all drafts of a row so far below
            which it needs no more) -> `Drafts` of heads 2..M.
        heads: M.
        eos: the token that ends a text.
        ctc_labels: the best path of the encoder's CTC head, in the labels of CTC; None without one.
        ctc_hypothesis: the same text in the decoder's tokens; None where it cannot be had in these.
        token_kinds: int8[V], by which an output is aligned with it; None takes all for one kind.
    """

    prefill: Callable[[int], tuple[jax.Array, KVCache]]
    extend: Callable[[jax.Array, jax.Array, KVCache], tuple[jax.Array, KVCache]]
    next_token: Callable[[jax.Array], jax.Array]
    draft: Callable[[jax.Array, jax.Array, jax.Array, float], Drafts]
    heads: int
    eos: int
    ctc_labels: DraftText | None = None
    ctc_hypothesis: DraftText | None = None
    token_kinds: jax.Array | None = None


@struct.dataclass
class NBest:
    """A list of hypotheses for each utterance, the best first.

    Attributes:
        tokens: int32[B, K, L], EOS included where it was reached, 0 beyond `length`.
        length: int32[B, K].
        log_probs: float32[B, K, L] of each token, 0 beyond `length`.
        real: bool[B, K]; lists may be shorter than K.
    """

    tokens: jax.Array
    length: jax.Array
    log_probs: jax.Array
    real: jax.Array


@struct.dataclass
class Decoded:
    """What a strategy returns.

    Attributes:
        tokens: int32[B, L], EOS included where it was reached, 0 beyond `length`.
        log_probs: float32[B, L] of each token, given those before it, by the head that emitted it
            (head 1 in every exact strategy); 0 beyond `length`, and without a decoder.
        length: int32[B].
        calls: int32[B], forward passes of the decoder while the row was unfinished, the pass over
            the prompt included.
        proposed, accepted: int32[B, M - 1], drafts of heads 2..M that were tested, the drafts
            before them having been accepted, and those that were accepted; int32[B, S - 1] where
            drafts are read off a text and a call is S tokens wide.
        loop_steps: int32, forward passes of the batch.
        call: int32[B, L], the row's call, counted from 1, that emitted each token; 0 beyond
            `length`.
        nbest: of strategies that make a list.
        pace: of the next batch; of `Auto`.
    """

    tokens: jax.Array
    log_probs: jax.Array
    length: jax.Array
    calls: jax.Array
    proposed: jax.Array
    accepted: jax.Array
    loop_steps: jax.Array
    call: jax.Array
    nbest: NBest | None = None
    pace: Pace | None = None


def best_of(
    nbest: NBest, call: jax.Array, calls: jax.Array, steps: jax.Array, heads: int
) -> Decoded:
    """What a search returns: its n-best list, and the first of it as the text.

    Args:
        nbest: the hypotheses, the best first.
        call: int32[B, K, L], the call that emitted each of their tokens.
        calls: int32[B] decoder calls; `steps`: int32[], of the loop.
        heads: M; no draft of theirs is counted.
    """
    none = jnp.zeros((len(calls), heads - 1), jnp.int32)
    return Decoded(
        tokens=nbest.tokens[:, 0],
        log_probs=nbest.log_probs[:, 0],
        length=nbest.length[:, 0],
        calls=calls,
        proposed=none,
        accepted=none,
        loop_steps=steps,
        call=call[:, 0],
        nbest=nbest,
    )


class Strategy(Protocol):
    """A frozen pytree dataclass: what shapes the program is static, what a sweep varies is a leaf.

    Strategies whose outputs are compared to the last bit reserve the same `max_tokens` slots behind
    the prompt: attention over more slots may differ in the last bits. Drafts beyond the limit have
    no slot and are never needed.
    """

    @property
    def name(self) -> str:
        """The name that `mtp_jax.decoding.registry` knows it by."""

    def decode(self, model: DecoderFunctions, active: jax.Array, max_tokens: int) -> Decoded:
        """Decodes every row where bool[B] `active` is True, to at most `max_tokens` tokens."""
