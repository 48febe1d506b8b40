"""A trained model over a data set: every strategy, timed, with what it cost."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Collection, Iterable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.data import Batch, Source
from mtp_jax.decoding import Decoded, NBest, Strategy
from mtp_jax.distributed import multihost, sharding
from mtp_jax.inference.decode_step import bind_decoder, ctc_greedy, decode, encode
from mtp_jax.models.speech_llama import SpeechLlama
from mtp_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Alternative:
    """One text of an n-best list.

    Attributes:
        text: what was recognised.
        score: its log-probability, in nats.
        tokens: EOS included where it was reached.
        confidences: the probability of each token, given those before it.
    """

    text: str
    score: float
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """What one strategy made of one utterance.

    Attributes:
        id: of the utterance.
        reference, text: what was said, and what was recognised.
        tokens: recognised tokens, EOS included where it was reached.
        calls: decoder calls.
        nbest: of strategies that make a list, the best first.
    """

    id: str
    reference: str
    text: str
    tokens: tuple[int, ...]
    calls: int
    nbest: tuple[Alternative, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one strategy made of a data set at one batch size.

    Attributes:
        hypotheses: in the order of the source.
        proposed, accepted: int[M - 1] drafts of heads 2..M that were tested, and that passed; of
            drafts of CTC as many as a call is wide, less one.
        loop_steps: forward passes of the decoder over whole batches.
        at_length_limit: utterances that did not reach EOS.
        audio_seconds: decoded.
        wall_seconds: spent on it, reading of audio and compilation apart.
        compile_seconds: spent compiling.
        batch_size: rows a batch.
    """

    hypotheses: tuple[Hypothesis, ...]
    proposed: np.ndarray
    accepted: np.ndarray
    loop_steps: int
    at_length_limit: int
    audio_seconds: float
    wall_seconds: float
    compile_seconds: float
    batch_size: int

    @property
    def calls(self) -> int:
        """Decoder calls, summed over utterances."""
        return sum(h.calls for h in self.hypotheses)

    @property
    def tokens(self) -> int:
        """Tokens, EOS included, summed over utterances."""
        return sum(len(h.tokens) for h in self.hypotheses)


class Recognizer:
    """A model, its parameters and its tokenizer; keeps what it has compiled.

    Args:
        model, params: what decodes.
        tokenizer: turns tokens into text.
        mesh: batches that its devices divide are split over them.
        imported: paths of the parameters that are just as ``config.pretrained`` has them.
    """

    def __init__(
        self,
        model: SpeechLlama,
        params: Any,
        tokenizer: Tokenizer,
        mesh: jax.sharding.Mesh,
        imported: Collection[str] = (),
    ) -> None:
        self.model, self.params, self.tokenizer, self.mesh = model, params, tokenizer, mesh
        self.imported = frozenset(imported)
        self._compiled: dict[Any, Any] = {}

    def place(self, batch: Batch) -> Batch:
        """`batch`, which every process has whole, on the devices."""
        divides = len(batch.index) % sharding.batch_divisor(self.mesh) == 0
        split = sharding.batch_sharding if divides else sharding.replicated
        return multihost.place_whole(batch, split(self.mesh))

    def run(self, source: Source, batches: Iterable[Batch], strategy: Strategy | None) -> Outcome:
        """Decodes every batch.

        Args:
            source: that the rows of `batches` are of.
            batches: each utterance once.
            strategy: of the decoder; None reads the encoder's CTC output, at no decoder call.
        """
        hypotheses: dict[int, Hypothesis] = {}
        proposed = accepted = np.zeros(1, int)  # as many drafts as the strategy has
        steps = limit = rows = 0
        audio = wall = compiling = 0.0
        if strategy is not None:  # leaves as arrays of one type: sweeping one compiles nothing anew
            strategy = jax.tree.map(jnp.float32, strategy)
        for batch in batches:
            rows = len(batch.index)
            compiling += self._compile(batch, strategy)
            start = time.perf_counter()
            decoded = self._decode(self.place(batch), strategy)
            wall += time.perf_counter() - start
            proposed = proposed + decoded.proposed.sum(0)
            accepted = accepted + decoded.accepted.sum(0)
            steps += int(decoded.loop_steps)
            audio += float(batch.audio_length.sum()) / self.model.config.front_end.sample_rate
            for row, index in enumerate(batch.index):
                if index < 0:
                    continue
                tokens = tuple(decoded.tokens[row, : decoded.length[row]].tolist())
                limit += strategy is not None and not self._ended(tokens)
                utterance = source.utterances[index]
                hypotheses[int(index)] = Hypothesis(
                    id=utterance.id,
                    reference=utterance.text,
                    text=self._text(tokens) if strategy else self.tokenizer.ctc.decode(tokens),
                    tokens=tokens,
                    calls=int(decoded.calls[row]),
                    nbest=self._alternatives(decoded.nbest, row),
                )
        return Outcome(
            hypotheses=tuple(hypotheses[i] for i in sorted(hypotheses)),
            proposed=proposed,
            accepted=accepted,
            loop_steps=steps,
            at_length_limit=limit,
            audio_seconds=audio,
            wall_seconds=wall,
            compile_seconds=compiling,
            batch_size=rows,
        )

    def _ended(self, tokens: tuple[int, ...]) -> bool:
        return bool(tokens) and tokens[-1] == self.model.vocabulary.eos

    def _text(self, tokens: tuple[int, ...]) -> str:
        return self.tokenizer.decode(tokens[:-1] if self._ended(tokens) else tokens)

    def _alternatives(self, nbest: NBest | None, row: int) -> tuple[Alternative, ...]:
        if nbest is None:
            return ()
        found = []
        for place in np.flatnonzero(nbest.real[row]):
            length = int(nbest.length[row, place])
            tokens = tuple(nbest.tokens[row, place, :length].tolist())
            log_probs = np.asarray(nbest.log_probs[row, place, :length])
            confidences = tuple(np.exp(log_probs).tolist())
            score = float(log_probs.sum())
            found.append(Alternative(self._text(tokens), score, tokens, confidences))
        return tuple(found)

    def _key(self, batch: Batch, strategy: Strategy | None) -> Any:
        return batch.audio.shape, type(strategy), jax.tree.structure(strategy)

    def _compile(self, batch: Batch, strategy: Strategy | None) -> float:
        """Compiles what `batch` needs, unless it was; seconds it took."""
        key = self._key(batch, strategy)
        if key in self._compiled:
            return 0.0
        start = time.perf_counter()
        placed = self.place(batch._replace(tokens=batch.tokens[:, :0]))
        with sharding.use_mesh(self.mesh):
            if strategy is None:
                lowered = ctc_greedy.lower(self.model, self.params, placed)
            else:
                kind = type(strategy)
                lowered = decode.lower(self.model, kind, self.params, placed, strategy)
        self._compiled[key] = lowered.compile()
        return time.perf_counter() - start

    def _decode(self, batch: Batch, strategy: Strategy | None) -> Decoded:
        """Decodes one batch; NumPy arrays."""
        compiled = self._compiled[self._key(batch, strategy)]
        batch = batch._replace(tokens=batch.tokens[:, :0])  # references are not looked at
        if strategy is not None:
            decoded: Decoded = multihost.to_host(compiled(self.params, batch, strategy))
            return decoded
        tokens, length = multihost.to_host(compiled(self.params, batch))
        none: Any = np.zeros((len(length), self.model.config.heads.count - 1), int)
        no_calls, no_steps = np.zeros_like(length), cast(jax.Array, np.zeros((), int))
        return Decoded(
            tokens, length, no_calls, none, none, no_steps, cast(jax.Array, np.zeros_like(tokens))
        )

    def top2_gap(self, batch: Batch, row: int, tokens: tuple[int, ...]) -> float:
        """How far apart head 1 puts its two best tokens behind `tokens`, in logits.

        Where two computations of one output part, a gap of the size of rounding errors explains
        it; a larger one is a bug.
        """
        one = jax.tree.map(lambda x: np.asarray(x)[row : row + 1], batch)
        size = max(self.model.config.data.max_tokens, len(tokens))
        text = np.zeros((1, size), np.int32)
        text[0, : len(tokens)] = tokens
        count = np.array([len(tokens)], np.int32)
        best = multihost.to_host(_two_best(self.model, self.params, one, text, count))
        return float(best[0] - best[1])


@functools.partial(jax.jit, static_argnums=0)
def _two_best(
    model: SpeechLlama, params: Any, batch: Batch, text: jax.Array, count: jax.Array
) -> jax.Array:
    """float32[2], head 1's greatest logits behind the first int32[1] `count` of int32[1, L]."""
    seen = bind_decoder(model, params, encode(model, params, batch))
    first, cache = seen.prefill(text.shape[1])
    hidden, _ = seen.extend(text, count, cache)
    last = jnp.where(count[0], hidden[:, count[0] - 1], first)
    return jax.lax.top_k(seen.next_token(last)[0], 2)[0]
