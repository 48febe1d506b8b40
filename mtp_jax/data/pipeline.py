"""From a source to a stream of batches, on Grain: read ahead, position in checkpoints."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import grain
import numpy as np

from mtp_jax.audio.reading import AudioError, change_speed
from mtp_jax.config import Config, Data
from mtp_jax.data.plan import WHOLE, Rows, Share, TrainPlan, evaluation_plan
from mtp_jax.data.source import DataError, Problem, Report, Source, Utterance
from mtp_jax.tokenizer import Tokenizer

log = logging.getLogger("mtp_jax")
_STEPS = 2**31 - 1  # more than any run makes


class Batch(NamedTuple):
    """Waveforms of utterances of like length; arrays on the host.

    Attributes:
        audio: int16[B, T] samples, zeros after each row's end.
        audio_length: int32[B] samples.
        tokens: int32[B, L] text with EOS, padded.
        token_length: int32[B], EOS included.
        index: int32[B] place of the utterance in its source; -1 where a row is only filler
            (both its lengths are 0).
        labels: int32[B, N] text as CTC's own tokenizer has it, padded; None where CTC's labels are
            `tokens`, EOS apart, and in evaluation.
        label_length: int32[B], or None.
        start: int32[B, P] tokens before the text, for models that begin with some
            (`mtp_jax.tokenizer.whisper_tokens`); None takes the model's own.
        draft: int32[B, R] what another model wrote, in the decoder's tokens, without EOS: drafts
            are read off it in place of the CTC hypothesis; None if there is none.
        draft_length: int32[B], or None.
    """

    audio: np.ndarray
    audio_length: np.ndarray
    tokens: np.ndarray
    token_length: np.ndarray
    index: np.ndarray  # type: ignore[assignment]  # hides tuple.index, which nobody misses
    labels: np.ndarray | None = None
    label_length: np.ndarray | None = None
    start: np.ndarray | None = None
    draft: np.ndarray | None = None
    draft_length: np.ndarray | None = None

    def with_drafts(self, texts: Sequence[Sequence[int]], most: int) -> Self:
        """The batch with texts to draft by.

        Args:
            texts: tokens for the first rows; the other rows get no drafts.
            most: R, where longer texts are cut.
        """
        rows = len(self.index)
        draft, length = np.zeros((rows, most), np.int32), np.zeros(rows, np.int32)
        for row, text in enumerate(texts):
            length[row] = min(len(text), most)
            draft[row, : length[row]] = text[:most]
        return self._replace(draft=draft, draft_length=length)


class FeatureBatch(Batch):
    """A batch that the frozen encoder has seen already: it holds features in place of waveforms.

    Attributes:
        audio: float16[B, T', D] features, zeros after each row's end.
        audio_length: int32[B] samples of the waveforms that they were made of.
    """

    __slots__ = ()


def train_batches(
    source: Source,
    tokenizer: Tokenizer,
    config: Config,
    *,
    multiple: int = 1,
    share: Share = WHOLE,
    start: int = 0,
) -> tuple[grain.DatasetIterator[Batch], Report]:
    """Batches to train on, without end; see `TrainPlan` for their order.

    Args:
        source: what to train on.
        tokenizer: of its texts.
        config: of the run; `data`, `augment`, `seed` and the sample rate matter.
        multiple: every global batch has a multiple of so many rows (devices that share it).
        share: this process reads these rows of each global batch.
        start: the training step to begin with. Batch and step are one number, so a checkpoint
            need not hold more, and any number of processes may go on from it.

    Returns:
        An iterator and the report: what was skipped by the source, what is too long in
        tokens and, as training meets it, audio that cannot be read (its row becomes filler).

    Raises:
        DataError: no text fits, or `config.data.batch_size` cannot be shared out.
    """
    data, rate = config.data, config.front_end.sample_rate
    shares = math.lcm(multiple, share.of)
    if data.batch_size % shares:
        raise DataError(
            f"config.data.batch_size ({data.batch_size}) must be a multiple of {shares}, "
            "over which each batch is shared out"
        )
    lengths = _lengths(source, _tokens, tokenizer, "the tokenizer") + 1  # EOS
    kept = np.flatnonzero(lengths <= data.max_tokens)
    report = Report(source.title, len(kept), source.problems)
    for i in np.flatnonzero(lengths > data.max_tokens).tolist():
        detail = f"{lengths[i]}, more than config.data.max_tokens ({data.max_tokens})"
        report.add(Problem(source.utterances[i].id, "too many tokens", detail))
    if not len(kept):
        raise DataError(f"{source.title} has nothing to train on; skipped: {report.skipped()}")
    bounds = _bounds(data.bucket_seconds, rate)
    has_labels = tokenizer.ctc is not tokenizer
    labels: Sequence[int] | np.ndarray = ()
    if has_labels:
        labels = _lengths(source, _labels, tokenizer.ctc, "CTC's tokenizer")[kept]
    plan = TrainPlan(
        samples=_samples(source, rate)[kept],
        tokens=lengths[kept],
        bounds=bounds,
        rows=_rows_per_bucket(data, shares),
        speeds=config.augment.speeds,
        seed=config.seed,
        labels=labels,
    )
    load = _Loader(source, tokenizer, kept, report, has_labels)
    dataset = grain.MapDataset.range(start, _STEPS).map(
        lambda step: load(plan.batch(step).take(share))
    )
    return iter(dataset.to_iter_dataset(_reading(data))), report


def eval_batches(
    source: Source,
    tokenizer: Tokenizer,
    config: Config,
    batch_size: int,
) -> grain.IterDataset[Batch]:
    """Batches that hold every utterance of `source` once, shortest first, as they were recorded.

    All have `batch_size` rows, which every process reads whole; the last is padded with filler
    rows. Texts of any length are taken.

    Args:
        source, tokenizer, config: as in `train_batches`.
        batch_size: B.
    """
    data, rate = config.data, config.front_end.sample_rate
    every = np.arange(len(source.utterances))
    plan = evaluation_plan(
        samples=_samples(source, rate),
        tokens=_lengths(source, _tokens, tokenizer) + 1,
        bounds=_bounds(config.evaluation.bucket_seconds or data.bucket_seconds, rate),
        rows=batch_size,
    )
    report = Report(source.title, len(every), source.problems)
    load = _Loader(source, tokenizer, every, report)
    dataset = grain.MapDataset.source(plan).map(load)
    return dataset.to_iter_dataset(_reading(data))


class _Loader:
    """Reads the audio of planned rows."""

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        kept: np.ndarray,
        report: Report,
        labels: bool = False,
    ) -> None:
        self._source, self._tokenizer, self._kept = source, tokenizer, kept
        self._report, self._labels = report, labels

    def __call__(self, rows: Rows) -> Batch:
        shape, features = rows.shape, self._source.features
        kind = FeatureBatch if features else Batch
        if features:
            frames = features.frames(shape.samples)
            empty = np.zeros((shape.rows, frames, features.width), np.float16)
        else:
            empty = np.zeros((shape.rows, shape.samples), np.int16)
        batch = kind(
            audio=empty,
            audio_length=np.zeros(shape.rows, np.int32),
            tokens=np.full((shape.rows, shape.tokens), self._tokenizer.pad, np.int32),
            token_length=np.zeros(shape.rows, np.int32),
            index=np.full(shape.rows, -1, np.int32),
        )
        if self._labels:
            batch = batch._replace(
                labels=np.zeros((shape.rows, shape.labels), np.int32),
                label_length=np.zeros(shape.rows, np.int32),
            )
        for row, (planned, speed) in enumerate(zip(rows.index, rows.speed, strict=True)):
            if planned < 0:
                continue
            index = int(self._kept[planned])
            try:
                if features:
                    audio, samples = features.read(index, speed)
                else:
                    audio = change_speed(self._source.waveform(index), speed)
                    samples = len(audio)
            except AudioError as error:
                lost = self._source.utterances[index]
                if self._report.add(Problem(lost.id, "unreadable audio", str(error), lost.text)):
                    log.warning("%s is skipped: %s", lost.id, error)
                continue
            # A header may promise less than the file holds: T is the limit.
            audio, samples = audio[: batch.audio.shape[1]], min(samples, shape.samples)
            text = [*_tokens(self._tokenizer, self._source.utterances[index]), self._tokenizer.eos]
            batch.audio[row, : len(audio)] = audio
            batch.audio_length[row] = samples
            batch.tokens[row, : len(text)] = text
            batch.token_length[row] = len(text)
            if self._labels and batch.labels is not None and batch.label_length is not None:
                label = _labels(self._tokenizer.ctc, self._source.utterances[index])
                batch.labels[row, : len(label)] = label
                batch.label_length[row] = len(label)
            batch.index[row] = index
        return batch


def _tokens(tokenizer: Tokenizer, utterance: Utterance) -> Sequence[int]:
    if utterance.tokens is not None:
        return utterance.tokens
    return tokenizer.encode_transcript(utterance.text)


def _labels(ctc: Tokenizer, utterance: Utterance) -> Sequence[int]:
    return ctc.encode(utterance.text)


def _lengths(
    source: Source,
    ids_of: Callable[[Tokenizer, Utterance], Sequence[int]],
    tokenizer: Tokenizer,
    warned_of: str = "",
) -> np.ndarray:
    """int32[N] tokens of each text, EOS apart; warns of what they do not spell, if asked to."""
    ids = (ids_of(tokenizer, utterance) for utterance in source.utterances)
    pairs = ((len(text), tokenizer.unknown in text) for text in ids)
    found = np.fromiter(pairs, [("length", np.int32), ("unspelled", bool)])
    if warned_of and (unspelled := int(found["unspelled"].sum())):
        log.warning(
            "%d of %d texts of %s have characters that %s does not know, and are learnt with <unk>"
            " in their place: see config.tokenizer",
            *(unspelled, len(found), source.title, warned_of),
        )
    return found["length"]


def _samples(source: Source, rate: int) -> np.ndarray:
    """int64[N] samples of each utterance."""
    seconds = np.fromiter((utterance.seconds for utterance in source.utterances), np.float64)
    return np.rint(seconds * rate).astype(np.int64)


def _bounds(bucket_seconds: Sequence[float], rate: int) -> list[int]:
    return [math.ceil(seconds * rate) for seconds in bucket_seconds]


def _rows_per_bucket(data: Data, shares: int) -> list[int]:
    """B of each bucket: the longest has `batch_size`, shorter ones as many or about the seconds."""
    if not data.batch_seconds_alike:
        return [data.batch_size] * len(data.bucket_seconds)
    longest = data.bucket_seconds[-1]
    return [int(data.batch_size * longest / s / shares) * shares for s in data.bucket_seconds]


def _reading(data: Data) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=data.workers, prefetch_buffer_size=data.prefetch)
