"""What a recording became: text, words with times, tokens with the calls that emitted them."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, NamedTuple


class Word(NamedTuple):
    """One word.

    Attributes:
        text: without spaces around it.
        start, end: s from the beginning of the recording.
        confidence: that it is right, in [0, 1]; calibrated where the model's folder says how
            (`mtp_jax.calibrate`), else the probability of its tokens.
    """

    text: str
    start: float
    end: float
    confidence: float


class Token(NamedTuple):
    """One token.

    Attributes:
        id: in the tokenizer's vocabulary.
        text: as it adds to the text, spaces and all; empty for EOS.
        call: of the segment's decoder calls the one that emitted it, from 1; 0 without a decoder.
        confidence: its probability by head 1, given those before it (by CTC without a decoder).
        word: place of its word in the segment; -1 for EOS.
    """

    id: int
    text: str
    call: int
    confidence: float
    word: int


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """What was decoded at once, or a phrase of it.

    Attributes:
        start, end: s from the beginning of the recording.
        words: in order.
        tokens: in order, EOS last where it was reached; of Whisper's times none.
        decoder_calls: that it took, the pass over the audio included.
        aligned: False where nothing tells when words were said, or the encoder's output has no room
            for them, and they are spread evenly over the segment.
        looped: a repetition loop was cut.
        complete: EOS was reached.
        evidence: of each word, what its confidence is made of: log-probability of its tokens by
            head 1, and the mean log-probability of its frames in the CTC alignment.
        proposed, accepted: drafts of heads 2..M that were put to the test, and those that passed.
        language: code of the one that is spoken, as it was given or detected; empty of models that
            know one only.
        phrases: of each word when its phrase begins and ends, in s, as a Whisper with timestamps
            says; else empty.
        drafter_calls: of another model's decoder, which drafted for this one; 0 where none did.
    """

    start: float
    end: float
    words: tuple[Word, ...]
    tokens: tuple[Token, ...]
    decoder_calls: int
    aligned: bool = True
    looped: bool = False
    complete: bool = True
    evidence: tuple[tuple[float, float], ...] = ()
    proposed: int = 0
    accepted: int = 0
    language: str = ""
    phrases: tuple[tuple[float, float], ...] = ()
    drafter_calls: int = 0

    @property
    def text(self) -> str:
        """Its words."""
        return " ".join(word.text for word in self.words)

    def kept(self, first: int, stop: int) -> Segment:
        """With the words from `first` to before `stop` only, and their tokens."""
        tokens = tuple(
            token._replace(word=token.word - first if token.word >= 0 else -1)
            for token in self.tokens
            if token.word < 0 or first <= token.word < stop
        )
        return dataclasses.replace(
            self,
            words=self.words[first:stop],
            evidence=self.evidence[first:stop],
            tokens=tokens,
            phrases=self.phrases[first:stop],
        )

    def by_phrase(self) -> list[Segment]:
        """A segment for each phrase; itself where none is known.

        The first has the decoder calls and drafts of all, and the last has EOS.
        """
        parts: list[Segment] = []
        first = 0
        for (start, end), words in itertools.groupby(self.phrases):
            stop = first + len(list(words))
            part = self.kept(first, stop)
            start, end = (min(max(x, self.start), self.end) for x in (start, end))
            part = dataclasses.replace(part, start=start, end=end, phrases=())
            if first:
                part = dataclasses.replace(
                    part, decoder_calls=0, drafter_calls=0, proposed=0, accepted=0
                )
            if stop < len(self.phrases):
                said = tuple(token for token in part.tokens if token.word >= 0)
                part = dataclasses.replace(part, tokens=said)
            parts.append(part)
            first = stop
        return parts or [self]


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What a recording became.

    Attributes:
        segments: in order; they hold no silence, and no word twice.
        audio_seconds: length of the recording.
        decode_seconds: spent on encoding, decoding and aligning it, compilation apart; of a batch
            that it shares with others its share by length.
        decoder_calls: in all, those of attempts that were given up included.
        strategy: that decoded it, by name.
        calibrated: whether confidences are.
        warnings: a sentence for each part of the recording that was promised, or is there, and
            could not be read, with the seconds or bytes.
        drafter_calls: of another model's decoder, in all; 0 where none drafted.
    """

    segments: tuple[Segment, ...]
    audio_seconds: float
    decode_seconds: float
    decoder_calls: int
    strategy: str
    calibrated: bool
    warnings: tuple[str, ...] = ()
    drafter_calls: int = 0

    @property
    def text(self) -> str:
        """All of it; empty where nobody speaks."""
        return " ".join(segment.text for segment in self.segments if segment.words)

    @property
    def language(self) -> str:
        """Code of the language of most words; empty of models that know one only."""
        words: dict[str, int] = {}
        for segment in self.segments:
            words[segment.language] = words.get(segment.language, 0) + len(segment.words)
        return max(words, key=words.__getitem__, default="")

    @property
    def words(self) -> tuple[Word, ...]:
        """Of all segments."""
        return tuple(word for segment in self.segments for word in segment.words)

    @property
    def tokens(self) -> tuple[Token, ...]:
        """Of all segments; their calls and words count within each."""
        return tuple(token for segment in self.segments for token in segment.tokens)

    @property
    def blocks(self) -> tuple[tuple[Token, ...], ...]:
        """Tokens of each decoder call that emitted any that stayed, in order."""
        found: list[tuple[Token, ...]] = []
        for segment in self.segments:
            by_call: dict[int, list[Token]] = {}
            for token in segment.tokens:
                by_call.setdefault(token.call, []).append(token)
            found += [tuple(by_call[call]) for call in sorted(by_call)]
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """All of it, for a file."""
        return {
            "text": self.text,
            **({"language": self.language} if self.language else {}),
            "audio_seconds": round(self.audio_seconds, 3),
            "decode_seconds": round(self.decode_seconds, 3),
            "strategy": self.strategy,
            "decoder_calls": self.decoder_calls,
            **({"drafter_calls": self.drafter_calls} if self.drafter_calls else {}),
            "confidence_calibrated": self.calibrated,
            "warnings": list(self.warnings),
            "segments": [_segment(segment) for segment in self.segments],
        }


def _segment(segment: Segment) -> dict[str, Any]:
    return {
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        **({"language": segment.language} if segment.language else {}),
        "decoder_calls": segment.decoder_calls,
        **({"drafter_calls": segment.drafter_calls} if segment.drafter_calls else {}),
        "aligned": segment.aligned,
        "looped": segment.looped,
        "complete": segment.complete,
        "words": [
            {
                "word": word.text,
                "start": round(word.start, 3),
                "end": round(word.end, 3),
                "confidence": round(word.confidence, 4),
            }
            for word in segment.words
        ],
        "tokens": [
            {
                "id": token.id,
                "text": token.text,
                "call": token.call,
                "confidence": round(token.confidence, 4),
            }
            for token in segment.tokens
        ],
    }
