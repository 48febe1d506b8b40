"""Toy language models in exact integers, as decoding strategies see a model.

A `Toy` draws every next token from a hash of *everything* that stands before it in a real
`KVCache`, so a wrong rollback, slot, position or count anywhere changes the text that follows.
`by_hand` gives the same language model as plain Python over a list of tokens, with no cache, for
the slow reference loops.

All numbers are integers modulo `PRIME`, whose square fits into 31 bits, so that one arithmetic
serves both Python's integers and int32 arrays.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mtp_jax.decoding import DecoderFunctions, Drafts
from mtp_jax.decoding.drafts import MIN_PROBABILITY
from mtp_jax.models.kv_cache import KVCache, write

PRIME = 46_337
VOCABULARY = 7
EOS = 2

# How good the drafts of a row are.
PERFECT, MOSTLY_RIGHT, RANDOM, WRONG, ALWAYS_EOS = range(5)
DRAFTS = {
    "perfect": PERFECT,
    "mostly right": MOSTLY_RIGHT,
    "random": RANDOM,
    "wrong": WRONG,
    "always EOS": ALWAYS_EOS,
}


def mix(x: Any) -> Any:
    """A pseudo-random permutation of the integers below `PRIME` (cubing is one, twice)."""
    for constant in (7_919, 12_345):
        y = (x + constant) % PRIME
        x = y * y % PRIME * y % PRIME
    return x


def weight(slot: Any) -> Any:
    """What a token in `slot` is multiplied by in the hash of a prefix."""
    return mix(slot * 31 + 1)


def score(seed: Any, state: Any, token: Any) -> Any:
    """Logit of an ordinary `token` behind a prefix of hash `state`: 0 to 3, so ties abound."""
    return mix(state + mix(token * 97 + seed)) % 4


def ends(seed: Any, state: Any, eos_every: Any) -> Any:
    """Whether EOS comes behind a prefix: once in `eos_every` prefixes; always if it is 1."""
    return mix(state + 3 * seed + 5) % eos_every == 0


def wrong(state: Any, right: Any, head: Any) -> Any:
    """A token that is not `right`."""
    return (right + 1 + mix(state + head) % (VOCABULARY - 1)) % VOCABULARY


def confidence(seed: Any, state: Any, head: Any) -> Any:
    """Eight times the probability that `head` gives its draft: 0 to 8, so that tau is hit."""
    return mix(state + head * 1_009 + seed) % 9


@struct.dataclass
class Toy:
    """A language model; every leaf is traced, so one compiled program serves all toys of a shape.

    Attributes:
        seed: int32, of the hash.
        eos_every: int32, one prefix in so many is followed by EOS.
        drafts: int32[B], a value of `DRAFTS` a row.
        prompt: int32[B, P] tokens, of which the first int32[B] `prompt_length` are real.
        garbage: int32, what every cache slot holds before it is written.
        heads: M.
        slack: cache slots beyond those needed.
        serial: its heads draft no further than is needed, as serial ones do.
    """

    seed: jax.Array
    eos_every: jax.Array
    drafts: jax.Array
    prompt: jax.Array
    prompt_length: jax.Array
    garbage: jax.Array
    heads: int = struct.field(pytree_node=False)
    slack: int = struct.field(pytree_node=False, default=0)
    serial: bool = struct.field(pytree_node=False, default=False)

    def rows(self, rows: Any) -> Toy:
        """The same model over other rows, given by indices."""
        rows = np.asarray(rows)
        return self.replace(
            drafts=self.drafts[rows],
            prompt=self.prompt[rows],
            prompt_length=self.prompt_length[rows],
        )

    def model(self) -> DecoderFunctions:
        """What a strategy sees."""
        return DecoderFunctions(
            prefill=self._prefill,
            extend=self._extend,
            next_token=self._next_token,
            draft=self._draft,
            heads=self.heads,
            eos=EOS,
        )

    def _prefill(self, capacity: int) -> tuple[jax.Array, KVCache]:
        rows, width = self.prompt.shape
        cache = KVCache.empty(1, rows, width + capacity + self.slack, 1, 1, jnp.int32)
        cache = cache.replace(keys=cache.keys + self.garbage, values=cache.values - self.garbage)
        hidden, cache = self._extend(self.prompt, self.prompt_length, cache)
        return hidden[:, -1], cache

    def _extend(
        self, tokens: jax.Array, count: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """Hidden states (hash of the prefix, its length), from what the cache holds.

        Keys store tokens and values the weights of their positions; as in attention, a position
        sees the slots at or before its own.
        """
        real = jnp.arange(tokens.shape[1]) < count[:, None]
        positions, slots = cache.place(real)
        keys = write(cache.keys, 0, slots, (tokens + 1)[..., None, None])
        values = write(cache.values, 0, slots, weight(positions)[..., None, None])
        seen = cache.visible(positions)
        terms = self._terms(keys, values)
        if cache.prompt is not None:
            before = self._terms(cache.prompt.keys, cache.prompt.values)
            before = jnp.repeat(before, len(terms) // len(before), axis=0)
            terms = jnp.concatenate([before, terms], axis=1)
        state = jnp.sum(jnp.where(seen, terms[:, None], 0), axis=-1) % PRIME
        hidden = jnp.stack([state, positions + 1], axis=-1)
        length = cache.length + jnp.sum(real, axis=1)
        return hidden, dataclasses.replace(cache, keys=keys, values=values, length=length)

    def _terms(self, keys: jax.Array, values: jax.Array) -> jax.Array:
        """int32[B, C]: what each slot adds to the hash."""
        return keys[0, :, :, 0] % PRIME * (values[0, :, :, 0] % PRIME) % PRIME

    def _next_token(self, hidden: jax.Array) -> jax.Array:
        state = hidden[..., :1]
        token = jnp.arange(VOCABULARY)
        ordinary = score(self.seed, state, token)
        over = jnp.where(ends(self.seed, state, self.eos_every), 9, -1)
        return jnp.where(token == EOS, over, ordinary).astype(jnp.float32)

    def _draft(
        self, hidden: jax.Array, last: jax.Array, wanted: jax.Array, min_probability: float
    ) -> Drafts:
        """The tokens that head 1 would predict next, spoilt as `drafts` says."""
        kind = self.drafts

        def ahead(carry: tuple[jax.Array, ...], head: jax.Array) -> tuple[Any, tuple[Any, Any]]:
            state, position, token = carry
            probability = confidence(self.seed, state, head) / 8
            state = (state + (token + 1) * weight(position)) % PRIME
            logits = self._next_token(jnp.stack([state, position + 1], axis=-1))
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            slip = (kind == WRONG) | ((kind == MOSTLY_RIGHT) & (mix(state + 7 * head) % 4 == 0))
            draft = jnp.where(slip, wrong(state, token, head), token)
            draft = jnp.where(kind == RANDOM, mix(state + 11 * head) % VOCABULARY, draft)
            draft = jnp.where(kind == ALWAYS_EOS, EOS, draft)
            return (state, position + 1, token), (draft, probability)

        start = (hidden[:, 0], hidden[:, 1], last)
        _, (tokens, probabilities) = jax.lax.scan(ahead, start, jnp.arange(2, self.heads + 1))
        so_far = jnp.cumprod(probabilities, axis=0)[:-1]
        so_far = jnp.concatenate([jnp.ones((1, len(last))), so_far])[: len(tokens)]
        needed = wanted & ((so_far >= min_probability) | (not self.serial))
        count = jnp.sum(needed, axis=0, dtype=jnp.int32)
        return Drafts(tokens.T, probabilities.T, count)


@dataclasses.dataclass(frozen=True)
class ByHand:
    """One row of a `Toy` as plain Python: the tokens that follow a list of tokens."""

    seed: int
    eos_every: int
    kind: int
    prompt: tuple[int, ...]
    heads: int
    serial: bool

    def _state(self, text: list[int]) -> int:
        terms = [(t + 1) * weight(slot) % PRIME for slot, t in enumerate([*self.prompt, *text])]
        return sum(terms) % PRIME

    def next_token(self, text: list[int]) -> int:
        """Head 1 behind `text`; the lowest id of equals."""
        state = self._state(text)
        if ends(self.seed, state, self.eos_every):
            return EOS
        scores = {t: score(self.seed, state, t) for t in range(VOCABULARY) if t != EOS}
        return min(t for t in scores if scores[t] == max(scores.values()))

    def drafts(self, text: list[int]) -> list[tuple[int, float]]:
        """Tokens and probabilities of heads 2..M behind `text`."""
        before, text = self._state(text), [*text, self.next_token(text)]
        out = []
        for head in range(2, self.heads + 1):
            probability = confidence(self.seed, before, head) / 8
            before, right = self._state(text), self.next_token(text)
            text = [*text, right]
            slips = self.kind == WRONG or (
                self.kind == MOSTLY_RIGHT and mix(before + 7 * head) % 4 == 0
            )
            draft = wrong(before, right, head) if slips else right
            if self.kind == RANDOM:
                draft = mix(before + 11 * head) % VOCABULARY
            if self.kind == ALWAYS_EOS:
                draft = EOS
            out.append((draft, probability))
        return out

    def needed_drafts(self, text: list[int]) -> list[tuple[int, float]]:
        """Those of `drafts` that verification asks for."""
        drafts, needed, so_far = self.drafts(text), [], 1.0
        while len(needed) < len(drafts) and (so_far >= MIN_PROBABILITY or not self.serial):
            needed.append(drafts[len(needed)])
            so_far *= needed[-1][1]
        return needed


def make(
    rows: int,
    heads: int,
    *,
    seed: int = 0,
    eos_every: int = 9,
    drafts: int | list[int] = MOSTLY_RIGHT,
    prompts: list[list[int]] | None = None,
    garbage: int = 1_999_999_999,
    slack: int = 0,
    serial: bool = False,
) -> Toy:
    """A toy; without `prompts` each row has one of its own, of 0 to 3 tokens."""
    width = 3
    if prompts is None:
        prompts = [[mix(50 * seed + 5 * row + i) for i in range(row % 4)] for row in range(rows)]
        prompts = [prompt[:width] for prompt in prompts]
    padded = [prompt + [PRIME - 1] * (width - len(prompt)) for prompt in prompts]
    return Toy(
        seed=jnp.int32(seed),
        eos_every=jnp.int32(eos_every),
        drafts=jnp.broadcast_to(jnp.array(drafts, jnp.int32), (rows,)),
        prompt=jnp.array(padded, jnp.int32),
        prompt_length=jnp.array([len(prompt) for prompt in prompts], jnp.int32),
        garbage=jnp.int32(garbage),
        heads=heads,
        slack=slack,
        serial=serial,
    )


def by_hand(toy: Toy) -> list[ByHand]:
    """The rows of `toy`, each as plain Python."""
    return [
        ByHand(
            seed=int(toy.seed),
            eos_every=int(toy.eos_every),
            kind=int(kind),
            prompt=tuple(prompt[:length].tolist()),
            heads=toy.heads,
            serial=toy.serial,
        )
        for kind, prompt, length in zip(
            np.asarray(toy.drafts),
            np.asarray(toy.prompt),
            np.asarray(toy.prompt_length),
            strict=True,
        )
    ]
