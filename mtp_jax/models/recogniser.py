"""What decoding and training ask of a recogniser, whatever it is made of.

Three kinds exist: `mtp_jax.models.speech_llama` and `mtp_jax.models.speech_llm` put the audio into
the decoder's prompt, `mtp_jax.models.whisper` lets the decoder attend to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import flax.linen as nn
import jax
from flax import struct

from mtp_jax.config import Config
from mtp_jax.models.bpe import Merges, retokenize
from mtp_jax.models.ctc import best_labels
from mtp_jax.models.heads import Projection
from mtp_jax.models.kv_cache import CrossCache, KVCache
from mtp_jax.tokenizer.speech_prompts import SpeechPrompt
from mtp_jax.tokenizer.whisper_tokens import WhisperTokens

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound="Recogniser")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What the model must know of its tokenizer.

    Attributes:
        size: V.
        bos: token that starts the text.
        eos: token that ends it.
        prompt_before, prompt_after: tokens put before and after the audio.
        labels: size of the encoder's CTC vocabulary; 0 if its labels are the decoder's tokens.
        merges: with which CTC's labels are made into the decoder's tokens, if they are to be; with
            no labels, those of a CTC head inside the encoder of a finished model.
        whisper: the special tokens of a Whisper.
        speech: the prompt of a released speech LLM.
        ends: tokens that end a text beside `eos`, which stands for all of them.
        kinds: of tokens, a character each (`mtp_jax.tokenizer.kinds`); empty if they are not known.
    """

    size: int
    bos: int
    eos: int
    prompt_before: tuple[int, ...] = ()
    prompt_after: tuple[int, ...] = ()
    labels: int = 0
    merges: Merges | None = None
    whisper: WhisperTokens | None = None
    speech: SpeechPrompt | None = None
    ends: tuple[int, ...] = ()
    kinds: str = dataclasses.field(default="", repr=False)

    @property
    def has_ctc_hypothesis(self) -> bool:
        """Whether the CTC hypothesis exists in the decoder's tokens."""
        return self.merges is not None or (self.has_ctc and not self.labels)

    @property
    def has_ctc(self) -> bool:
        """Whether a CTC head writes texts: that inside of a finished model drafts at most."""
        added = self.whisper is not None or self.speech is not None
        return self.labels > 0 or not added

    @property
    def prompts(self) -> WhisperTokens | SpeechPrompt | None:
        """What makes the tokens before a text, of models that are told something there."""
        return self.whisper or self.speech


@struct.dataclass
class Encoded:
    """What the encoder makes of a batch.

    Attributes:
        audio: [B, T, D] embeddings of the decoder's width, or the encoder's hidden states.
        length: int32[B], how many of them are real.
        ctc_logits: float32[B, T, labels + 1]; the last class is the blank. None without a CTC head.
        ctc_length: int32[B] real frames of these.
        ctc_hypothesis: CTC's best labels as the decoder's tokens, int32[B, R], and their int32[B]
            count; None if CTC has labels of its own that are not made into these.
        cross: of a decoder that attends to the audio: its keys and values.
        start: of such a decoder, and of a speech LLM: int32[B, P], the tokens before the text;
            `NO_TOKEN` is padding, and `AUDIO` stands for the rows of `audio`.
        drafting: of a decoder that has the audio in its prompt: keys and values of the audio for
            serial heads.
    """

    audio: jax.Array
    length: jax.Array
    ctc_logits: jax.Array | None
    ctc_length: jax.Array
    ctc_hypothesis: tuple[jax.Array, jax.Array] | None = None
    cross: CrossCache | None = None
    start: jax.Array | None = None
    drafting: CrossCache | None = None

    @property
    def seen(self) -> CrossCache:
        """What serial heads attend to."""
        found = self.drafting or self.cross
        assert found is not None
        return found


class Recogniser(nn.Module):
    """A speech encoder, a decoder and M prediction heads; `call` runs its methods.

    A subclass sets up ``whisper`` (where it has one), ``decoder`` and ``heads``.

    Attributes:
        config: the run's.
        vocabulary: the tokenizer's.
    """

    config: Config
    vocabulary: Vocabulary

    def encode_speech(self, features: jax.Array, length: jax.Array) -> jax.Array:
        """A pretrained encoder's hidden states [B, T', D] of log-mel [B, T, Z], int32[B] frames."""
        x, _ = self.whisper(features, length)
        return x

    def encode(self, features: jax.Array, length: jax.Array, deterministic: bool = True) -> Encoded:
        """Encodes `features` [B, T, Z], log-mel or from `encode_speech`, of int32[B] `length`."""
        raise NotImplementedError

    def __call__(
        self,
        features: jax.Array,
        length: jax.Array,
        tokens: jax.Array,
        token_length: jax.Array,
        deterministic: bool = True,
    ) -> tuple[jax.Array, Encoded]:
        """The teacher-forced pass.

        Args:
            features: [B, T, Z], as in `encode`; `length`: int32[B].
            tokens: int32[B, L], EOS included; `token_length`: int32[B].

        Returns:
            Hidden states [B, L, E], of which the one at i predicts ``tokens[:, i + m - 1]`` through
            head m, and what the encoder made of the audio.
        """
        raise NotImplementedError

    def with_ctc(
        self,
        encoded: Encoded,
        reader: nn.Module,
        heard: jax.Array,
        length: jax.Array,
        training: bool,
    ) -> Encoded:
        """`encoded`, with what a CTC head that was added to a finished model reads.

        It leaves what the decoder sees alone.

        Args:
            encoded: without CTC.
            reader: a Conformer, behind which the CTC head stands.
            heard: [B, T, D] hidden states of the encoder; `length`: int32[B].
            training: whether dropout is on.
        """
        x, frames = reader(jax.lax.stop_gradient(heard), length, not training)
        logits = self.ctc(x)
        found = dataclasses.replace(encoded, ctc_logits=logits, ctc_length=frames)
        if self.vocabulary.merges is None:
            return found
        return dataclasses.replace(found, ctc_hypothesis=self.ctc_hypothesis(logits, frames))

    def ctc_hypothesis(self, logits: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
        """CTC's text as `Encoded` has it, of logits [B, T, labels + 1] and int32[B] frames."""
        most, bytes_a_token = self.config.data.max_tokens, 4
        assert self.vocabulary.merges is not None
        cut = retokenize(
            self.vocabulary.merges,
            *best_labels(logits, length),
            capacity=bytes_a_token * most,
            most=most,
            space_first=self.vocabulary.whisper is not None,
        )
        return cut.tokens, cut.length

    def prompt(self, encoded: Encoded) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Everything that the decoder is given before the text.

        Returns:
            Embeddings [B, P, D], bool[B, P] which are real, and int32[B, P], by how much their
            rotary positions lag.
        """
        raise NotImplementedError

    def cache(self, encoded: Encoded, slots: int) -> KVCache:
        """An empty cache with `slots` for the prompt and the text of each row."""
        raise NotImplementedError

    def extend_prompt(
        self, x: jax.Array, real: jax.Array, position_offset: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """Feeds a part [B, S, D] of the prompt; hidden states [B, S, E]."""
        raise NotImplementedError

    def prefill(self, encoded: Encoded, capacity: int) -> tuple[jax.Array, KVCache]:
        """Runs the decoder over the whole prompt.

        Args:
            encoded: the audio.
            capacity: slots kept free behind the prompt for text.

        Returns:
            Hidden state [B, E] that predicts the first token, and the cache.
        """
        x, real, position_offset = self.prompt(encoded)
        cache = self.cache(encoded, x.shape[1] + capacity)
        hidden, filled = self.extend_prompt(x, real, position_offset, cache)
        return hidden[:, -1], filled

    def extend(
        self, tokens: jax.Array, count: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """Feeds the first int32[B] `count` of int32[B, S] `tokens`; hidden states [B, S, E]."""
        raise NotImplementedError

    @property
    def hidden_width(self) -> int:
        """E of the hidden states."""
        raise NotImplementedError

    @property
    def auxiliary(self) -> tuple[str, ...]:
        """How the paths of parameters begin that have no part in what head 1 says."""
        return ("heads/",)

    def head_logits(self, hidden: jax.Array, head: jax.Array | int) -> jax.Array:
        """float32[..., V] logits of one `head`, 2 <= head <= M, at hidden states [..., E]."""
        return self.heads(self.of_later_heads(hidden), self.decoder.unembedding(), head)

    def projections(
        self, hidden: jax.Array, targets: jax.Array, encoded: Encoded
    ) -> list[Projection]:
        """How each head's logits are made of the states of a known text, for losses.

        Args:
            hidden: [B, L, E].
            targets: int32[M, B, L], what each head is to predict there; serial heads take those of
                the heads before them.
            encoded: the audio.
        """
        first, later = self.of_head_1(hidden), self.of_later_heads(hidden)
        lm_head = self.decoder.unembedding()
        if not self.config.heads.serial:
            return self.heads.projections(first, later, lm_head)
        tokens = self.decoder.embed(targets[:-1])
        return self.heads.serial_projections(first, later, tokens, encoded.seen, lm_head)

    def of_head_1(self, hidden: jax.Array) -> jax.Array:
        """[..., D], what head 1 reads of hidden states [..., E]."""
        raise NotImplementedError

    def of_later_heads(self, hidden: jax.Array) -> jax.Array:
        """[..., D], what heads 2..M read of hidden states [..., E]."""
        raise NotImplementedError

    def next_token(self, hidden: jax.Array) -> jax.Array:
        """float32[..., V] logits of head 1 at hidden states [..., E]."""
        raise NotImplementedError

    def draft_logits(self, hidden: jax.Array) -> jax.Array:
        """float32[..., M - 1, V or N] logits of heads 2..M at hidden states [..., E]."""
        return self.heads.all(self.of_later_heads(hidden), self.decoder.unembedding())

    def next_draft(
        self, encoded: Encoded, state: jax.Array, token: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """A step of serial heads, which begin with what `of_later_heads` gives.

        Args:
            encoded: the audio of B utterances.
            state: [B K, D], of the head before.
            token: int32[B K], which that head drafted.

        Returns:
            The state of the next head, and its float32[B K, V or N] logits.
        """
        token = self.decoder.embed(token)[:, None]
        state = self.heads.step(state[:, None], token, encoded.seen)[:, 0]
        return state, self.heads.read(state, self.decoder.unembedding())

    def draft_tokens(self, places: jax.Array) -> jax.Array:
        """The tokens of int32[...] places in the logits of heads 2..M."""
        return self.heads.drafted(places)


def in_type(model: M, dtype: str) -> M:
    """`model` with activations, and products, in `dtype`."""
    train = dataclasses.replace(model.config.train, dtype=dtype)
    return model.clone(config=dataclasses.replace(model.config, train=train))


def call(
    method: Callable[Concatenate[Any, P], R],
    model: Recogniser,
    params: Any,
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """``method(model, *args, **kwargs)`` with `params`, as a pure function.

    Of a method of `Recogniser` that of the model's own class runs.

    >>> encoded = call(Recogniser.encode, model, params, features, length)  # doctest: +SKIP
    """
    given: dict[str, Any] = dict(kwargs)
    own = getattr(type(model), method.__name__)
    return cast(R, model.apply({"params": params}, *args, method=own, **given))
