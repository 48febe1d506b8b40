"""A whole Whisper (Radford et al., 2022): a text decoder that attends to the encoder's output.

A text is laid out as ``[earlier text] start language task [no_timestamps] text``. Behind the
decoder's features, hidden states carry what its rules need: with timestamps `RULES` features, and
at last 1 where they predict the first token of the text, which must not be one of a few tokens.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.models.decoders.whisper import WhisperDecoder
from mtp_jax.models.encoders.conformer import Conformer, frames_mask
from mtp_jax.models.encoders.whisper import WhisperEncoder
from mtp_jax.models.kv_cache import CrossCache, KVCache, no_tokens
from mtp_jax.models.layers import Linear
from mtp_jax.models.recogniser import Encoded, Recogniser
from mtp_jax.models.whisper_heads import WhisperHeads
from mtp_jax.models.whisper_timestamps import RULES, apply_rules, rule_features
from mtp_jax.tokenizer.whisper_tokens import DETECTED, WhisperTokens

_NEVER = float(np.finfo(np.float32).min)  # logit of a token that may not be


class WhisperRecogniser(Recogniser):
    """Whisper with M prediction heads, of which the first is its own."""

    def setup(self) -> None:
        c, size = self.config, self.vocabulary.size
        dtype = jnp.dtype(c.train.dtype)
        self.whisper = WhisperEncoder(c.whisper, dtype)
        self.decoder = WhisperDecoder(c.whisper_decoder, size, dtype, c.heads.layers)
        self.heads = WhisperHeads(c.heads, c.whisper_decoder, size, dtype)
        if self.vocabulary.has_ctc:
            self.encoder = Conformer(c.encoder, dtype)
            self.ctc = Linear(self.vocabulary.labels + 1, ("embed", None), True, jnp.float32)

    @property
    def special(self) -> WhisperTokens:
        """Special tokens."""
        assert self.vocabulary.whisper is not None
        return self.vocabulary.whisper

    def encode(self, features: jax.Array, length: jax.Array, deterministic: bool = True) -> Encoded:
        """What the decoder attends to, of [B, T, D] `encode_speech` makes, int32[B] `length`.

        The tokens before the text leave the language to be `detected`. CTC stands behind a
        Conformer of its own, and leaves what the decoder attends to alone.
        """
        real = frames_mask(length, features.shape[1])
        start = jnp.array(self.special.start_tokens(), jnp.int32)
        encoded = Encoded(
            audio=features,
            length=length,
            ctc_logits=None,
            ctc_length=length,
            cross=self._attend_to(features, real),
            start=jnp.broadcast_to(start, (len(features), len(start))),
        )
        if not self.vocabulary.has_ctc:
            return encoded
        return self.with_ctc(encoded, self.encoder, features, length, not deterministic)

    def _attend_to(self, audio: jax.Array, real: jax.Array) -> CrossCache:
        """Keys and values of the decoder's layers, and behind them of the heads' own."""
        cross = self.decoder.attend_to(audio, real)
        if not self.config.heads.own_states:
            return cross
        return cross + self.heads.attend_to(audio, real)

    def _decode(
        self, x: jax.Array, real: jax.Array, cache: KVCache | CrossCache
    ) -> tuple[jax.Array, KVCache | None]:
        """Hidden states of `x` [B, S, D], without the mark, and the longer cache."""
        run_above = self.heads.run if self.config.heads.own_states else None
        hidden, longer, _ = self.decoder(x, real, cache, run_above)
        return hidden, longer

    def detected(self, encoded: Encoded) -> Encoded:
        """`encoded`, with the detected language where its tokens say `DETECTED`."""
        if not self.special.languages:
            return encoded
        start = cast(jax.Array, encoded.start)
        start = jnp.where(start == DETECTED, self.language(encoded)[:, None], start)
        return dataclasses.replace(encoded, start=start)

    def language(self, encoded: Encoded) -> jax.Array:
        """int32[B], the token of the likeliest language."""
        tokens = jnp.array([token for _, token in self.special.languages], jnp.int32)
        return tokens[jnp.argmax(self.language_logits(encoded), axis=-1)]

    def language_logits(self, encoded: Encoded) -> jax.Array:
        """float32[B, languages], how likely each is, as the vocabulary lists them."""
        tokens = np.array([token for _, token in self.special.languages])
        return self._logits_at_start(encoded)[:, tokens]

    def no_speech(self, encoded: Encoded) -> jax.Array:
        """float32[B], the probability that nobody speaks: that of the token which says so."""
        return jax.nn.softmax(self._logits_at_start(encoded))[:, self.special.no_speech]

    def _logits_at_start(self, encoded: Encoded) -> jax.Array:
        """float32[B, V] of the token behind the very first."""
        rows = len(encoded.audio)
        first = jnp.full((rows, 1), self.special.start, jnp.int32)
        hidden, _, _ = self.decoder(
            self.decoder.embed(first), jnp.ones((rows, 1), bool), self._cross(encoded)
        )
        return self.decoder.unembed(hidden[:, 0])

    def __call__(
        self,
        features: jax.Array,
        length: jax.Array,
        tokens: jax.Array,
        token_length: jax.Array,
        deterministic: bool = True,
    ) -> tuple[jax.Array, Encoded]:
        """The teacher-forced pass, as of every `Recogniser`."""
        encoded = self.detected(self.encode(features, length, deterministic))
        x, real, _ = self.prompt(encoded)
        text_real = jnp.arange(1, tokens.shape[1]) < token_length[:, None]
        hidden, _ = self._decode(
            jnp.concatenate([x, self.decoder.embed(tokens[:, :-1])], axis=1),
            jnp.concatenate([real, text_real], axis=1),
            self._cross(encoded),
        )
        hidden = hidden[:, x.shape[1] - 1 :]
        before = jnp.broadcast_to(jnp.arange(-1, tokens.shape[1] - 1), tokens.shape)
        hidden = self._marked(self._with_rules(hidden, tokens, before), first=1)
        if self.is_initializing():
            if self.config.heads.serial:
                self.next_draft(encoded, self.of_later_heads(hidden[:, -1]), tokens[:, -1])
            else:
                self.draft_logits(hidden[:, -1:])
        return hidden, encoded

    def prompt(self, encoded: Encoded) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The tokens before the text, as of every `Recogniser`."""
        start = cast(jax.Array, encoded.start)
        return self.decoder.embed(jnp.maximum(start, 0)), start >= 0, jnp.zeros_like(start)

    def cache(self, encoded: Encoded, slots: int) -> KVCache:
        """An empty cache for the tokens before the text and for the text."""
        cache = self.decoder.empty_cache(self._cross(encoded), slots)
        if not self.special.timestamps:
            return cache
        return dataclasses.replace(cache, tokens=no_tokens(len(encoded.audio), slots))

    def extend_prompt(
        self, x: jax.Array, real: jax.Array, position_offset: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """Feeds a part [B, S, D] of the prompt; hidden states [B, S, E]."""
        del position_offset  # positions are learnt, and count from the first token
        hidden, filled = self._decode(x, real, cache)
        nothing = no_tokens(len(x), 1), jnp.full(real.shape, -1)
        hidden = self._marked(self._with_rules(hidden, *nothing), first=hidden.shape[1])
        return hidden, cast(KVCache, filled)

    def extend(
        self, tokens: jax.Array, count: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """Feeds the first int32[B] `count` of int32[B, S] `tokens`; hidden states [B, S, E]."""
        return self.extend_real(tokens, jnp.arange(tokens.shape[1]) < count[:, None], cache)

    def extend_real(
        self, tokens: jax.Array, real: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """`extend` by those of int32[B, S] `tokens` that are bool[B, S] `real`."""
        hidden, decoded = self._decode(self.decoder.embed(tokens), real, cache)
        longer = cast(KVCache, decoded)
        if cache.tokens is not None:
            positions, slots = cache.place(real)
            at = jnp.arange(len(slots))[:, None], slots
            kept = cache.tokens.at[at].set(tokens, mode="drop")
            longer = dataclasses.replace(longer, tokens=kept)
            hidden = self._with_rules(hidden, kept, positions - cache.start[:, None])
        return self._marked(hidden, first=0), longer

    def attention(
        self, tokens: jax.Array, real: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """How positions weigh the audio, in the mean of the decoder's alignment heads.

        Args:
            tokens: int32[B, S], of which bool[B, S] are `real`; those of the prompt too.
            cache: what was seen before.

        Returns:
            float32[B, S, T], which sum to 1 over the frames, and the longer cache.
        """
        c, cross = self.config.whisper_decoder, cast(CrossCache, cache.cross)
        _, longer, queries = self.decoder(self.decoder.embed(tokens), real, cache)
        upper = [(i, n) for i in range(c.layers // 2, c.layers) for n in range(c.heads)]
        weights = self.decoder.attention(queries, cross, c.alignment_heads or tuple(upper))
        return jnp.mean(weights, axis=0), cast(KVCache, longer)

    @property
    def hidden_width(self) -> int:
        """D, or 2 D where heads 2..M read other states, and what the rules need."""
        decoder = self.config.whisper_decoder.width * (2 if self.config.heads.own_states else 1)
        return decoder + (RULES if self.special.timestamps else 0) + 1

    def _with_rules(self, hidden: jax.Array, tokens: jax.Array, slot: jax.Array) -> jax.Array:
        """[B, S, D'] and, with timestamps, behind it `rule_features` of tokens and slots."""
        if not self.special.timestamps:
            return hidden
        features = rule_features(tokens, slot, self.special)
        return jnp.concatenate([hidden, features.astype(hidden.dtype)], axis=-1)

    @property
    def auxiliary(self) -> tuple[str, ...]:
        """As of every `Recogniser`: nothing of CTC has a part in it either."""
        return ("heads/", "encoder/", "ctc/")

    def _marked(self, hidden: jax.Array, first: int) -> jax.Array:
        """[B, S, E]: the `first` positions may predict the first token of a text."""
        mark = (jnp.arange(hidden.shape[1]) < first).astype(hidden.dtype)
        mark = jnp.broadcast_to(mark[:, None], (*hidden.shape[:2], 1))
        return jnp.concatenate([hidden, mark], axis=-1)

    def _cross(self, encoded: Encoded) -> CrossCache:
        return cast(CrossCache, encoded.cross)

    def of_head_1(self, hidden: jax.Array) -> jax.Array:
        """[..., D], what head 1 reads of hidden states [..., E]."""
        return hidden[..., : self.config.whisper_decoder.width]

    def of_later_heads(self, hidden: jax.Array) -> jax.Array:
        """[..., D], what heads 2..M read of hidden states [..., E]."""
        width = self.config.whisper_decoder.width
        if self.config.heads.own_states:
            return hidden[..., width : 2 * width]
        return self.heads.alone(hidden[..., :width])

    def next_token(self, hidden: jax.Array) -> jax.Array:
        """float32[..., V] logits at hidden states [..., E]; of what may not be there the lowest."""
        first = hidden[..., -1:] > 0
        never = self._among(self.special.suppressed)
        never = never | self._among(self.special.suppressed_first) & first
        logits = jnp.where(never, _NEVER, self.decoder.unembed(self.of_head_1(hidden)))
        if not self.special.timestamps:
            return logits
        rules = hidden[..., -RULES - 1 : -1]
        return apply_rules(logits, rules, first, self.special, self.vocabulary.eos)

    def _among(self, tokens: tuple[int, ...]) -> np.ndarray:
        """bool[V], which tokens are some of these."""
        return np.isin(np.arange(self.vocabulary.size), tokens)

    def draft_logits(self, hidden: jax.Array) -> jax.Array:
        """As of every `Recogniser`; of what no text holds the lowest."""
        return self._that_may_be(super().draft_logits(hidden))

    def _that_may_be(self, logits: jax.Array) -> jax.Array:
        """Logits [..., V or N] of heads 2..M, the lowest of what no text holds."""
        never = jnp.array(self._among(self.special.suppressed))
        return jnp.where(never[self.draft_tokens(jnp.arange(logits.shape[-1]))], _NEVER, logits)

    def next_draft(
        self, encoded: Encoded, state: jax.Array, token: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """As of every `Recogniser`; of what no text holds the lowest."""
        state, logits = super().next_draft(encoded, state, token)
        return state, self._that_may_be(logits)
