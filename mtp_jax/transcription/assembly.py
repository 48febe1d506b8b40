"""From what the device says of a batch to segments with words, times and confidences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mtp_jax.audio.log_mel import feature_length
from mtp_jax.inference.recognizer import Recognizer
from mtp_jax.transcription.alignment import Alignment, align
from mtp_jax.transcription.confidence import Calibration, uncalibrated
from mtp_jax.transcription.repetition import find_repetition, trim_repetitions
from mtp_jax.transcription.results import Segment, Token, Word
from mtp_jax.transcription.segmentation import Chunk
from mtp_jax.transcription.spelling import Spelled, labels_of, spell
from mtp_jax.transcription.step import ScoredBatch, columns

_PER_TOKEN = ("tokens", "call", "log_probs")  # what comes to the host
_PER_ROW = ("length", "calls", "frames", "proposed", "accepted")
_LABELS = 32  # columns are fetched in multiples of it: few shapes
_UNHEARD = -20.0  # log-probability of a word that has no place in the audio
_ONSET, _DECAY = 0.5, 2.0  # frames by which CTC is late with a word, and early with its end


class _Row(NamedTuple):
    """One row of a batch, without EOS.

    Attributes:
        tokens, call, log_probs: of each token.
        end: that of EOS, if it was reached.
        spelled: the text.
        labels: that spell it for CTC; `word`: the place of each one's word.
        looped: a loop was cut.
    """

    tokens: list[int]
    call: list[int]
    log_probs: list[float]
    end: Token | None
    spelled: Spelled
    labels: list[int]
    word: list[int]
    looped: bool


class Reader:
    """Reads what `hear` says, for one model.

    Args:
        recognizer: the model.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        config = recognizer.model.config
        self._tokenizer = recognizer.tokenizer
        rate = config.front_end.sample_rate
        hops = feature_length(2 * rate, config.front_end) - feature_length(rate, config.front_end)
        stride = int(np.prod(config.encoder.subsampling)) * (2 if config.whisper.present else 1)
        self.frame_seconds = stride / hops

    def segments(
        self,
        scored: ScoredBatch,
        pieces: Sequence[Chunk],
        sample_rate: int,
        kind: str,
        calibration: Calibration | None,
    ) -> list[Segment]:
        """A segment for each piece of a batch.

        Args:
            scored: the batch; rows beyond the pieces are filler.
            pieces: its rows.
            sample_rate: Hz of these.
            kind: "decoder" or "ctc": who chose the tokens.
            calibration: of confidences.
        """
        host: dict[str, Any] = {
            name: np.asarray(x)
            for name, x in jax.device_get(
                {name: getattr(scored, name) for name in (*_PER_TOKEN, *_PER_ROW)}
            ).items()
        }
        rows = [self._row(scored, host, row, kind) for row in range(len(pieces))]
        # Of a large vocabulary only what these texts need comes to the host.
        unique = [np.unique(np.array(row.labels, int)) for row in rows]
        width = -(-max(1, *map(len, unique)) // _LABELS) * _LABELS
        wanted = np.zeros((scored.ctc.shape[0], width), np.int32)
        for i, labels in enumerate(unique):
            wanted[i, : len(labels)] = labels
        tables = np.asarray(jax.device_get(columns(scored.ctc, wanted)))
        made = []
        for i, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
            used = np.append(np.arange(len(unique[i])), width)
            table = tables[i, : host["frames"][i]][:, used]
            found = align(table, np.searchsorted(unique[i], row.labels).tolist())
            seconds = len(piece.audio) / sample_rate
            segment = self._segment(row, found, piece.start, seconds, len(table), kind, calibration)
            calls, proposed, accepted = (
                int(host[name][i]) for name in ("calls", "proposed", "accepted")
            )
            made.append(
                dataclasses.replace(
                    segment, decoder_calls=calls, proposed=proposed, accepted=accepted
                )
            )
        return made

    def _row(self, scored: ScoredBatch, host: dict[str, Any], i: int, kind: str) -> _Row:
        length = host["length"][i]
        tokens, call = (host[name][i, :length].tolist() for name in ("tokens", "call"))
        log_probs = host["log_probs"][i, :length].tolist()
        if kind == "ctc":
            spelled = spell(self._tokenizer.ctc, tokens)
            return _Row(tokens, call, log_probs, None, spelled, tokens, spelled.word, False)
        end = None
        if tokens and tokens[-1] == self._tokenizer.eos:
            end = Token(tokens.pop(), "", call.pop(), float(np.exp(log_probs.pop())), -1)
        looped = False
        if find_repetition(tokens):
            ctc = np.asarray(jax.device_get(scored.ctc[i]))[: host["frames"][i]]
            kept, looped = trim_repetitions(tokens, lambda text: self._likelihood(text, ctc))
            tokens, call, log_probs = ([x[j] for j in kept] for x in (tokens, call, log_probs))
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
            evidence[:, 1] = _UNHEARD
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
    spans, scores = np.zeros((count, 2)), np.full(count, _UNHEARD)
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
