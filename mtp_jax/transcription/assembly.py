"""Decoded batches to segments: words with times and confidences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from mtp_jax.audio.segmentation import Chunk
from mtp_jax.decoding import Decoded
from mtp_jax.inference.programs import Inference
from mtp_jax.inference.runner import Runner
from mtp_jax.transcription.confidence import Calibration, uncalibrated
from mtp_jax.transcription.phrases import Span, of_words, phrase_spans
from mtp_jax.transcription.repetition import find_repetition, trim_repetitions
from mtp_jax.transcription.results import Segment, Token, Word
from mtp_jax.transcription.spelling import spell
from mtp_jax.transcription.word_times import UNALIGNED, Text, WordTimes, make_aligner

# Whisper's own rule of when a text is invented (transcribe.py): nobody seems to speak, and the
# tokens are unlikely, on average.
NO_SPEECH, UNLIKELY = 0.6, -1.0


class _Row(NamedTuple):
    """One row of a batch, without EOS.

    Attributes:
        text: its tokens.
        call, log_probs: of each token.
        end: the token EOS, if it was reached.
        looped: a repetition was trimmed.
        invented: nobody speaks, and what was written is left out.
        phrases: of each token, where the model tells their times.
        language: code of the one that the model wrote before its text, if it did.
    """

    text: Text
    call: list[int]
    log_probs: list[float]
    end: Token | None
    looped: bool
    invented: bool = False
    phrases: list[Span] | None = None
    language: str = ""


class SegmentAssembler:
    """Turns decoded batches into segments, for one model.

    Args:
        runner: the model.
    """

    def __init__(self, runner: Runner) -> None:
        self._tokenizer = runner.tokenizer
        self._aligner = make_aligner(runner)
        special = runner.model.vocabulary.whisper
        self._first_time = special.first_time if special else runner.tokenizer.vocab_size
        self._timestamps = special is not None and special.timestamps
        self._languages = {token: code for code, token in special.languages} if special else {}
        self._speech = runner.model.vocabulary.speech

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
            inference: the batch, with alignment; rows beyond the chunks are filler.
            chunks: its rows.
            sample_rate: Hz of these.
            kind: "decoder" or "ctc": who chose the tokens.
            calibration: of confidences.
        """
        decoded = dataclasses.replace(inference.decoded, nbest=None)
        decoded, frames, start, no_speech, drafter_calls = jax.device_get(
            (
                *(decoded, inference.frames, inference.start, inference.no_speech),
                inference.drafter_calls,
            )
        )
        inference = dataclasses.replace(
            inference, decoded=decoded, frames=frames, no_speech=no_speech
        )
        rows = [self._row(inference, i, kind) for i in range(len(chunks))]
        texts, audio = [row.text for row in rows], [chunk.audio for chunk in chunks]
        times = self._aligner.times(inference, texts, audio)
        segments = []
        for i, (row, found, chunk) in enumerate(zip(rows, times, chunks, strict=True)):
            seconds = len(chunk.audio) / sample_rate
            segment = self._segment(row, found, chunk.start, seconds, kind, calibration)
            segments.append(
                dataclasses.replace(
                    segment,
                    decoder_calls=int(decoded.calls[i]),
                    drafter_calls=0 if drafter_calls is None else int(drafter_calls[i]),
                    proposed=int(decoded.proposed[i].sum()),
                    accepted=int(decoded.accepted[i].sum()),
                    language=row.language or self._language(None if start is None else start[i]),
                )
            )
        return segments

    def _language(self, start: np.ndarray | None) -> str:
        """The code of the one among the tokens before a text, if any."""
        tokens = [] if start is None else start.tolist()
        if self._speech and tokens:
            return self._speech.language_in(tokens)
        return next((self._languages[t] for t in tokens if t in self._languages), "")

    def _row(self, inference: Inference, i: int, kind: str) -> _Row:
        decoded: Decoded = inference.decoded
        length = int(decoded.length[i])
        tokens, call, log_probs = (
            np.asarray(x)[i, :length].tolist()
            for x in (decoded.tokens, decoded.call, decoded.log_probs)
        )
        places = list(range(length))
        if kind == "ctc":
            text = Text(tokens, spell(self._tokenizer.ctc, tokens), places, True)
            return _Row(text, call, log_probs, None, False)
        if is_invented(inference, i):
            return _Row(Text([], spell(self._tokenizer, []), [], False), [], [], None, False, True)
        end = None
        if tokens and tokens[-1] == self._tokenizer.eos:
            places.pop()
            end = Token(tokens.pop(), "", call.pop(), float(np.exp(log_probs.pop())), -1)
        heading, language = self._tokenizer.heading(tokens)
        places = places[heading:]
        # What repeats itself does so at other times, which are no words.
        places = [j for j in places if tokens[j] < self._first_time]
        words, looped = [tokens[j] for j in places], False
        if find_repetition(words):

            def likelihood(text: Sequence[int]) -> float | None:
                return self._aligner.likelihood(inference, i, text)

            kept, looped = trim_repetitions(words, likelihood, ended=end is not None)
            places = [places[j] for j in kept]
        phrases = None
        if self._timestamps:
            spans = phrase_spans(tokens, self._first_time)
            phrases = [spans[j] for j in places]
        tokens, call, log_probs = ([x[j] for j in places] for x in (tokens, call, log_probs))
        text = Text(tokens, spell(self._tokenizer, tokens), places, False)
        return _Row(text, call, log_probs, end, looped, phrases=phrases, language=language)

    def _segment(
        self,
        row: _Row,
        found: WordTimes | None,
        start: float,
        seconds: float,
        kind: str,
        calibration: Calibration | None,
    ) -> Segment:
        words, log_probs, spelled = row.text.spelled.words, row.log_probs, row.text.spelled
        evidence = np.zeros((len(words), 2))
        if found is None:
            spans = np.linspace(0, seconds, len(words) + 1)
            spans = np.column_stack([spans[:-1], spans[1:]])
            evidence[:, 1] = UNALIGNED
        else:
            spans, evidence[:, 1] = np.minimum(found.spans, seconds), found.scores
            log_probs = found.log_probs or log_probs
        phrases: list[Span] = []
        if row.phrases is not None and words:
            phrases = of_words(row.phrases, spelled.word, len(words))
            phrases = [(min(a, seconds), min(b, seconds)) for a, b in phrases]
            spans = np.clip(spans, *np.array(phrases).T[..., None])
        if kind == "decoder" and words:  # tokens may spell none
            np.add.at(evidence[:, 0], spelled.word, log_probs)
        sure = calibration(evidence, kind) if calibration else uncalibrated(evidence, kind)
        tokens = [
            Token(token, text, call, float(np.exp(log_prob)), word)
            for token, text, call, log_prob, word in zip(
                row.text.tokens, spelled.added, row.call, log_probs, spelled.word, strict=True
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
            complete=kind == "ctc" or row.end is not None or row.invented,
            evidence=tuple((float(a), float(b)) for a, b in evidence),
            phrases=tuple((start + a, start + b) for a, b in phrases),
        )


def is_invented(inference: Inference, row: int) -> bool:
    """Whether a Whisper wrote a text where nobody speaks; of other models it is not known."""
    length, no_speech = int(inference.decoded.length[row]), inference.no_speech
    if no_speech is None or not length:
        return False
    mean = float(np.mean(inference.decoded.log_probs[row, :length]))
    return float(no_speech[row]) > NO_SPEECH and mean < UNLIKELY
