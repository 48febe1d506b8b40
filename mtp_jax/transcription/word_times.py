"""When each word of a text was said: by the alignment of CTC, or by the decoder's attention."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.audio.log_mel import feature_length
from mtp_jax.config import Config
from mtp_jax.inference.programs import Inference
from mtp_jax.inference.runner import Runner
from mtp_jax.models.speech_windows import frames_per_state
from mtp_jax.tokenizer import Tokenizer
from mtp_jax.transcription.alignment import Alignment, align
from mtp_jax.transcription.attention_times import (
    FRAME_SECONDS,
    align_attention,
    frames_early,
    silent_frames,
    until_silence,
)
from mtp_jax.transcription.spelling import Spelled, labels_of, spell

log = logging.getLogger("mtp_jax")

UNALIGNED = -20.0  # log-probability of a word that has no place in the audio
_LABELS = 32  # columns of CTC come to the host in multiples of it: few shapes
_SAID = "%‰&@#*/§"  # signs that Unicode calls punctuation
_ONSET, _DECAY = 0.5, 2.0  # frames by which CTC is late with a word, and early with its end


class Text(NamedTuple):
    """A text to align, without EOS.

    Attributes:
        tokens: of the tokenizer that made it.
        spelled: they.
        places: of the tokens among those that the model emitted; some may have been left out.
        is_ctc: CTC chose the tokens, which are its labels.
    """

    tokens: list[int]
    spelled: Spelled
    places: list[int]
    is_ctc: bool


class WordTimes(NamedTuple):
    """Times within a chunk.

    Attributes:
        spans: float[W, 2] s at which each word begins and ends.
        scores: float[W], mean log-probability of each word's frames; 0 where that is not known.
        log_probs: of each token that CTC chose, the mean over its frames; None of others.
    """

    spans: np.ndarray
    scores: np.ndarray
    log_probs: list[float] | None = None


class Aligner(Protocol):
    """What tells the times of words."""

    def likelihood(self, inference: Inference, row: int, tokens: Sequence[int]) -> float | None:
        """Log-probability of a text in a row of a batch; None where it is not known."""

    def times(
        self, inference: Inference, texts: Sequence[Text], audio: Sequence[np.ndarray]
    ) -> list[WordTimes | None]:
        """Of each row, which is int16[T] `audio`; None where that has no room for the words."""


def make_aligner(runner: Runner) -> Aligner:
    """That of a model: CTC's where it has a CTC head."""
    if runner.model.vocabulary.has_ctc:
        return CtcAligner(runner)
    if runner.model.config.whisper_decoder.present:
        return AttentionAligner(runner.model.config)
    log.info(
        "the model has nothing that tells when a word was said: words are spread evenly over the"
        " chunk that they are of"
    )
    return NoAligner()


class CtcAligner:
    """By the likeliest path of CTC that spells the words.

    Args:
        runner: the model.
    """

    def __init__(self, runner: Runner) -> None:
        config = runner.model.config
        self._tokenizer: Tokenizer = runner.tokenizer
        rate = config.front_end.sample_rate
        hops = feature_length(2 * rate, config.front_end) - feature_length(rate, config.front_end)
        each: float = 2 if config.whisper.present else 1
        if config.speech_llm.present:
            each = frames_per_state(config)
        self.frame_seconds = each * int(np.prod(config.encoder.subsampling)) / hops

    def likelihood(self, inference: Inference, row: int, tokens: Sequence[int]) -> float | None:
        """As of every `Aligner`."""
        assert inference.ctc_log_probs is not None
        frames = int(inference.frames[row])
        table = np.asarray(jax.device_get(inference.ctc_log_probs[row]))[:frames]
        labels, _ = labels_of(self._tokenizer.ctc, spell(self._tokenizer, tokens).words)
        found = align(table, labels)
        return -np.inf if found is None else found.score

    def times(
        self, inference: Inference, texts: Sequence[Text], audio: Sequence[np.ndarray]
    ) -> list[WordTimes | None]:
        """As of every `Aligner`."""
        del audio  # CTC has heard it
        ctc = inference.ctc_log_probs
        assert ctc is not None
        frames = np.asarray(inference.frames)
        spelled = [
            (text.tokens, text.spelled.word)
            if text.is_ctc
            else labels_of(self._tokenizer.ctc, text.spelled.words)
            for text in texts
        ]
        # Of a large vocabulary only the labels of these texts come to the host.
        unique = [np.unique(np.array(labels, int)) for labels, _ in spelled]
        width = -(-max(1, *map(len, unique)) // _LABELS) * _LABELS
        wanted = np.zeros((ctc.shape[0], width), np.int32)
        for i, columns in enumerate(unique):
            wanted[i, : len(columns)] = columns
        tables = np.asarray(jax.device_get(_columns(ctc, wanted)))
        found = []
        for i, (text, (labels, word)) in enumerate(zip(texts, spelled, strict=True)):
            table = tables[i, : frames[i]][:, np.append(np.arange(len(unique[i])), width)]
            path = align(table, np.searchsorted(unique[i], labels).tolist())
            found.append(path and self._times(text, path, word, len(table)))
        return found

    def _times(self, text: Text, path: Alignment, word: list[int], frames: int) -> WordTimes:
        spans, scores = word_spans(path, word, len(text.spelled.words), frames)
        log_probs = None
        if text.is_ctc:
            log_probs = (path.log_probs / (path.last - path.first + 1)).tolist()
        return WordTimes(spans * self.frame_seconds, scores, log_probs)


class NoAligner:
    """Of a model whose decoder has the audio in its prompt, and that has no CTC head."""

    def likelihood(self, inference: Inference, row: int, tokens: Sequence[int]) -> float | None:
        """Not known."""
        return None

    def times(
        self, inference: Inference, texts: Sequence[Text], audio: Sequence[np.ndarray]
    ) -> list[WordTimes | None]:
        """None of them is known."""
        return [None for _ in texts]


class AttentionAligner:
    """By the weights of the decoder's alignment heads, and by where the audio is silent.

    A word lasts from the first frame of what is said of it to the last: its punctuation may stand
    in a pause.

    Args:
        config: of the model.
    """

    def __init__(self, config: Config) -> None:
        self._sample_rate = config.front_end.sample_rate
        self._early = frames_early(config.whisper_decoder.alignment_heads)

    def likelihood(self, inference: Inference, row: int, tokens: Sequence[int]) -> float | None:
        """Not known: attention says where a token is spoken, not whether."""
        return None

    def times(
        self, inference: Inference, texts: Sequence[Text], audio: Sequence[np.ndarray]
    ) -> list[WordTimes | None]:
        """As of every `Aligner`."""
        weights, length = jax.device_get((inference.attention, inference.decoded.length))
        found: list[WordTimes | None] = []
        for i, (text, samples) in enumerate(zip(texts, audio, strict=True)):
            silent = silent_frames(samples, self._sample_rate)
            own = np.asarray(weights[i, : length[i], : len(silent)], np.float64)
            path = align_attention(own, silent[: own.shape[1]], self._early)
            found.append(path and self._times(text, path, silent))
        return found

    def _times(self, text: Text, path: Alignment, silent: np.ndarray) -> WordTimes:
        word, places = np.array(text.spelled.word, int), np.array(text.places, int)
        said = np.array([not _is_punctuation(added) for added in text.spelled.added], bool)
        rows, following = set(places[said].tolist()), len(silent)
        spans = np.zeros((len(text.spelled.words), 2))
        for w in reversed(range(len(spans))):
            mine = places[(word == w) & said]
            if not len(mine):
                mine = places[word == w]
            spans[w] = following
            if len(mine):
                end, behind = int(path.last[mine[-1]]) + 1, int(mine[-1]) + 1
                if behind < len(path.last) and behind not in rows:
                    end = min(until_silence(end, silent), following)
                spans[w] = path.first[mine[0]], end
            following = int(spans[w, 0])
        return WordTimes(spans * FRAME_SECONDS, np.zeros(len(spans)))


def _is_punctuation(text: str) -> bool:
    """Whether it has signs, none of which is said."""
    signs = [sign for sign in text if not sign.isspace()]
    return bool(signs) and all(
        unicodedata.category(sign).startswith("P") and sign not in _SAID for sign in signs
    )


def word_spans(
    found: Alignment, word: Sequence[int], count: int, frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """When words were said.

    Args:
        found: the alignment of their labels.
        word: of each label its word; a word without labels has no length, behind the one before.
        count: W.
        frames: in all.

    Returns:
        Frames float[W, 2], fractions included, at which each begins and ends, and float[W], the
        mean log-probability of its labels.
    """
    spans, scores = np.zeros((count, 2)), np.full(count, UNALIGNED)
    place, end = np.array(word, int), 0.0
    for w in range(count):
        mine = place == w
        if mine.any():
            first, last = found.first[mine].min(), found.last[mine].max()
            scored = (found.last - found.first + 1)[mine].sum()
            spans[w], scores[w] = (first, last + 1), found.log_probs[mine].sum() / scored
        else:
            spans[w] = end
        end = spans[w, 1]
    # CTC says a label for a frame or two, once it is sure: half a frame behind its onset, and the
    # rest of its sound is blank.
    spans[:, 0] = np.maximum(spans[:, 0] - _ONSET, 0)
    following = np.append(spans[1:, 0], frames)
    spans[:, 1] = np.clip(following, spans[:, 0], np.maximum(spans[:, 1] + _DECAY, spans[:, 0]))
    return spans, scores


@jax.jit
def _columns(ctc: jax.Array, labels: jax.Array) -> jax.Array:
    """float32[B, T, N + 1]: of [B, T, V + 1] the columns int32[B, N] `labels`, and the blank."""
    blank = jnp.full_like(labels[:, :1], ctc.shape[-1] - 1)
    chosen = jnp.concatenate([labels, blank], axis=1)
    return jnp.take_along_axis(ctc, chosen[:, None, :], axis=2)
