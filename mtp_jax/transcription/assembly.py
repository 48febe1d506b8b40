"""Decoded batches to segments: words with times and confidences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.audio.log_mel import feature_length
from mtp_jax.decoding import Decoded
from mtp_jax.inference.programs import Inference
from mtp_jax.inference.runner import Runner
from mtp_jax.transcription.alignment import Alignment, align
from mtp_jax.transcription.confidence import Calibration, uncalibrated
from mtp_jax.transcription.repetition import find_repetition, trim_repetitions
from mtp_jax.transcription.results import Segment, Token, Word
from mtp_jax.transcription.segmentation import Chunk
from mtp_jax.transcription.spelling import Spelled, labels_of, spell

_LABELS = 32  # columns of CTC come to the host in multiples of it: few shapes
_UNALIGNED = -20.0  # log-probability of a word that has no place in the audio
_ONSET, _DECAY = 0.5, 2.0  # frames by which CTC is late with a word, and early with its end


class _Row(NamedTuple):
    """One row of a batch, without EOS.

    Attributes:
        tokens, call, log_probs: of each token.
        end: the token EOS, if it was reached.
        spelled: the text.
        labels: that spell it for CTC; `word`: the place of each one's word.
        looped: a repetition was trimmed.
    """

    tokens: list[int]
    call: list[int]
    log_probs: list[float]
    end: Token | None
    spelled: Spelled
    labels: list[int]
    word: list[int]
    looped: bool


class SegmentAssembler:
    """Turns decoded batches into segments, for one model.

    Args:
        runner: the model.
    """

    def __init__(self, runner: Runner) -> None:
        config = runner.model.config
        self._tokenizer = runner.tokenizer
        rate = config.front_end.sample_rate
        hops = feature_length(2 * rate, config.front_end) - feature_length(rate, config.front_end)
        stride = int(np.prod(config.encoder.subsampling)) * (2 if config.whisper.present else 1)
        self.frame_seconds = stride / hops

    def segments(
        self,
        inference: Inference,
        chunks: Sequence[Chunk],
        sample_rate: int,
        kind: str,
        calibration: Calibration | None,
    ) -> list[Segment]:
        """A segment for each chunk of a batch.

        Args:
            inference: the batch, with CTC; rows beyond the chunks are filler.
            chunks: its rows.
            sample_rate: Hz of these.
            kind: "decoder" or "ctc": who chose the tokens.
            calibration: of confidences.
        """
        ctc = inference.ctc_log_probs
        assert ctc is not None
        decoded = dataclasses.replace(inference.decoded, nbest=None)
        decoded, frames = jax.device_get((decoded, inference.ctc_length))
        rows = [self._row(decoded, ctc, frames, i, kind) for i in range(len(chunks))]
        # Of a large vocabulary only the labels of these texts come to the host.
        unique = [np.unique(np.array(row.labels, int)) for row in rows]
        width = -(-max(1, *map(len, unique)) // _LABELS) * _LABELS
        wanted = np.zeros((ctc.shape[0], width), np.int32)
        for i, labels in enumerate(unique):
            wanted[i, : len(labels)] = labels
        tables = np.asarray(jax.device_get(_columns(ctc, wanted)))
        segments = []
        for i, (row, chunk) in enumerate(zip(rows, chunks, strict=True)):
            used = np.append(np.arange(len(unique[i])), width)
            table = tables[i, : frames[i]][:, used]
            alignment = align(table, np.searchsorted(unique[i], row.labels).tolist())
            seconds = len(chunk.audio) / sample_rate
            segment = self._segment(
                row, alignment, chunk.start, seconds, len(table), kind, calibration
            )
            segments.append(
                dataclasses.replace(
                    segment,
                    decoder_calls=int(decoded.calls[i]),
                    proposed=int(decoded.proposed[i].sum()),
                    accepted=int(decoded.accepted[i].sum()),
                )
            )
        return segments

    def _row(self, decoded: Decoded, ctc: jax.Array, frames: np.ndarray, i: int, kind: str) -> _Row:
        length = int(decoded.length[i])
        tokens, call, log_probs = (
            np.asarray(x)[i, :length].tolist()
            for x in (decoded.tokens, decoded.call, decoded.log_probs)
        )
        if kind == "ctc":
            spelled = spell(self._tokenizer.ctc, tokens)
            return _Row(tokens, call, log_probs, None, spelled, tokens, spelled.word, False)
        end = None
        if tokens and tokens[-1] == self._tokenizer.eos:
            end = Token(tokens.pop(), "", call.pop(), float(np.exp(log_probs.pop())), -1)
        looped = False
        if find_repetition(tokens):
            row = np.asarray(jax.device_get(ctc[i]))[: frames[i]]
            places, looped = trim_repetitions(tokens, lambda text: self._likelihood(text, row))
            tokens, call, log_probs = ([x[j] for j in places] for x in (tokens, call, log_probs))
        spelled = spell(self._tokenizer, tokens)
        labels, word = labels_of(self._tokenizer.ctc, spelled.words)
        return _Row(tokens, call, log_probs, end, spelled, labels, word, looped)

    def _likelihood(self, tokens: Sequence[int], ctc: np.ndarray) -> float:
        labels, _ = labels_of(self._tokenizer.ctc, spell(self._tokenizer, tokens).words)
        found = align(ctc, labels)
        return -np.inf if found is None else found.score

    def _segment(
        self,
        row: _Row,
        found: Alignment | None,
        start: float,
        seconds: float,
        frames: int,
        kind: str,
        calibration: Calibration | None,
    ) -> Segment:
        words, log_probs = row.spelled.words, row.log_probs
        evidence = np.zeros((len(words), 2))
        if found is None:
            spans = np.linspace(0, seconds, len(words) + 1)
            spans = np.column_stack([spans[:-1], spans[1:]])
            evidence[:, 1] = _UNALIGNED
        else:
            spans, evidence[:, 1] = word_spans(found, row.word, len(words), frames)
            spans = np.minimum(spans * self.frame_seconds, seconds)
            if kind == "ctc":  # the tokens are the labels
                log_probs = (found.log_probs / (found.last - found.first + 1)).tolist()
        if kind == "decoder" and words:  # tokens may spell none
            np.add.at(evidence[:, 0], row.spelled.word, log_probs)
        sure = calibration(evidence, kind) if calibration else uncalibrated(evidence, kind)
        tokens = [
            Token(token, text, call, float(np.exp(log_prob)), word)
            for token, text, call, log_prob, word in zip(
                row.tokens, row.spelled.added, row.call, log_probs, row.spelled.word, strict=True
            )
        ]
        return Segment(
            start=start,
            end=start + seconds,
            words=tuple(
                Word(text, start + float(a), start + float(b), float(c))
                for text, (a, b), c in zip(words, spans, sure, strict=True)
            ),
            tokens=(*tokens, row.end) if row.end else tuple(tokens),
            decoder_calls=0,
            aligned=found is not None,
            looped=row.looped,
            complete=kind == "ctc" or row.end is not None,
            evidence=tuple((float(a), float(b)) for a, b in evidence),
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
    spans, scores = np.zeros((count, 2)), np.full(count, _UNALIGNED)
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
