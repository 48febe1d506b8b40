"""A source over any dataset of TensorFlow Datasets that has audio and text.

Read at random through ``as_data_source``, without TensorFlow, unless the dataset uses TFDS' own
Audio feature, as its catalogue's librispeech does: that imports TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from mtp_jax.audio.reading import AudioError, array_blocks, audio_seconds, read_audio, refuse
from mtp_jax.audio.waveform import to_int16
from mtp_jax.data.kept import keep, read_kept
from mtp_jax.data.source import DataError, Problem, Source, Utterance

# Names under which catalogue datasets keep things, the likeliest first.
AUDIO = ("speech", "audio", "flac", "wav")
TEXT = ("text", "transcript", "transcription", "sentence", "normalized_text")
SPEAKER = ("speaker_id", "speaker", "client_id")
LANG = ("lang", "language", "locale")
ID = ("id", "utterance_id", "audio_id", "path")

_INDEX_VERSION = 1


def tfds_builder(name: str, folder: str = "") -> tfds.core.DatasetBuilder:
    """The builder of ``NAME[/CONFIG]``, prepared in its data folder if it is not yet.

    Args:
        name: ``NAME[/CONFIG]``.
        folder: that data folder; empty takes TFDS_DATA_DIR, or TFDS' own.

    Raises:
        DataError: there is none of that name, or it cannot be prepared or read here.
    """
    if "://" in folder:  # examples could be prepared there, but not read
        raise DataError(
            f"config.data.tfds_dir={folder} lies in a bucket, where ArrayRecord cannot read: mount"
            " the bucket as a folder (docs/scaling-data.md) and name that"
        )
    try:
        # Its own data folder; read here, as TFDS itself reads it only when it is imported.
        data_dir = folder or os.environ.get("TFDS_DATA_DIR")
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False, file_format="array_record")
        builder.download_and_prepare()
    except ImportError as error:
        package = error.name or "tensorflow-cpu"  # TFDS tells no name where TensorFlow is missing
        raise DataError(
            f"tfds:{name} needs a package that is not installed: run pip install {package}"
        ) from None
    except Exception as error:  # a builder is third-party code and may raise anything
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"tfds:{name} cannot be prepared: {said}") from None
    return builder


def tfds_source(
    name: str, builder: tfds.core.DatasetBuilder, split: str, sample_rate: int, cache_dir: Path
) -> Source:
    """A source over one split of a prepared dataset.

    The first opening reads every example for its text and its length; the index that comes of
    it is kept below `cache_dir` and serves until the dataset's files change.

    Args:
        name: what messages and tables call the dataset.
        builder: prepared as array_record.
        split: a name or a slice, such as ``train[:10%]``.
        sample_rate: Hz of the waveforms.
        cache_dir: where the index is kept, in ``index/``.

    Raises:
        DataError: no such split, or no telling which feature is the audio or the text.
    """
    try:
        examples: Sequence[dict[str, Any]] = builder.as_data_source(split=split)
        count = len(examples)  # opens the files
    except (ValueError, KeyError, AssertionError, NotImplementedError, RuntimeError) as error:
        known = ", ".join(builder.info.splits) or "none"
        said = (str(error).strip().splitlines() or [""])[0]
        raise DataError(
            f"{name}:{split} cannot be read (its splits are: {known}): {said}"
        ) from None
    decoder = _Decoder(name, builder.info, sample_rate)
    path = cache_dir / "index" / f"{builder.info.name}-{_fingerprint(builder, split)}.json"
    entries = _read_index(path, count)
    if entries is None:
        bar = tqdm.tqdm(range(count), desc=f"indexing {name}:{split}", delay=2)
        entries = [_entry(examples, i, decoder, f"{split}-{i}") for i in bar]
        keep(path, entries)

    good = [i for i, entry in enumerate(entries) if "seconds" in entry]
    utterances = [Utterance(**entries[i]) for i in good]
    problems = [Problem(**entry) for entry in entries if "seconds" not in entry]
    ids = [utterance.id for utterance in utterances]

    def waveform(i: int) -> np.ndarray:
        try:
            return decoder.waveform(examples[good[i]], ids[i])
        except RuntimeError as error:  # of the ArrayRecord reader
            raise AudioError(f"{ids[i]} in {name} is damaged: {error}") from None

    return Source(name, split, utterances, problems, waveform)


def _entry(
    examples: Sequence[dict[str, Any]], i: int, decoder: _Decoder, name: str
) -> dict[str, Any]:
    """Fields of an `Utterance`, or of a `Problem` where the example cannot be read."""
    try:
        return decoder.entry(examples[i], name)
    except RuntimeError as error:
        return {"id": name, "reason": "unreadable record", "detail": str(error)}


class _Decoder:
    """Turns an example into an utterance or a waveform."""

    def __init__(self, name: str, info: tfds.core.DatasetInfo, sample_rate: int) -> None:
        features: dict[str, Any] = dict(info.features)
        self._name = name
        self._rate = sample_rate
        audible = [key for key, feature in features.items() if _audible(key, feature)]
        self._audio = _find(name, "audio", AUDIO, audible)
        texts = [key for key, f in features.items() if isinstance(f, tfds.features.Text)]
        self._text = _find(name, "text", TEXT, [key for key in texts if key != self._audio])
        self._speaker, self._lang, self._id = (
            next((key for key in names if key in features), None) for names in (SPEAKER, LANG, ID)
        )
        # Of a bare tensor only the dataset can tell the rate; 16 kHz is what speech comes at.
        told = getattr(features[self._audio], "sample_rate", None)
        self._stored_rate = int(told or (info.metadata or {}).get("sample_rate") or 16_000)

    def entry(self, example: dict[str, Any], name: str) -> dict[str, Any]:
        """Fields of an `Utterance`, or of a `Problem` where its audio cannot be read."""
        utterance_id = _string(example[self._id]) if self._id else name
        try:
            seconds = self._seconds(example[self._audio])
        except AudioError as error:
            return {
                "id": utterance_id,
                "reason": "unreadable audio",
                "detail": str(error),
                "text": _string(example[self._text]),
            }
        return {
            "id": utterance_id,
            "text": _string(example[self._text]),
            "seconds": seconds,
            "speaker": _string(example[self._speaker]) if self._speaker else "",
            "lang": _string(example[self._lang]) if self._lang else "",
        }

    def waveform(self, example: dict[str, Any], name: str) -> np.ndarray:
        """int16[T] at the sample rate asked for."""
        audio, title = example[self._audio], f"the audio of {name} in {self._name}"
        if isinstance(audio, bytes):
            return read_audio(audio, self._rate, name=title, warn=refuse)
        audio = np.asarray(audio)
        if audio.dtype.kind in "iu":  # 16-bit steps in a wider type
            audio = to_int16(audio)
        try:
            return np.concatenate(list(array_blocks(audio, self._stored_rate, self._rate)))
        except AudioError as error:
            raise AudioError(f"{title}: {error}") from None

    def _seconds(self, audio: Any) -> float:
        return audio_seconds(audio) if isinstance(audio, bytes) else len(audio) / self._stored_rate


def _audible(key: str, feature: Any) -> bool:
    if isinstance(feature, tfds.features.Audio):
        return True
    if isinstance(feature, tfds.features.Text):
        return key in AUDIO  # an audio file
    shape, kind = getattr(feature, "shape", ()), np.dtype(getattr(feature, "np_dtype", object)).kind
    return isinstance(feature, tfds.features.Tensor) and shape[:1] == (None,) and kind in "if"


def _find(name: str, what: str, preferred: tuple[str, ...], found: list[str]) -> str:
    """The feature among `found` that is the audio or the text."""
    named = [key for key in preferred if key in found] or (found if len(found) == 1 else [])
    if named:
        return named[0]
    raise DataError(
        f"{name} has {', '.join(found) or 'no feature'} for {what}: a dataset needs exactly "
        f"one {what} feature, or one called {', '.join(preferred[:2])} or the like"
    )


def _string(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _fingerprint(builder: tfds.core.DatasetBuilder, split: str) -> str:
    """Changes with the files of the dataset."""
    folder = Path(builder.data_dir)
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.iterdir())]
    key = json.dumps([_INDEX_VERSION, os.fspath(folder), split, files])
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _read_index(path: Path, count: int) -> list[dict[str, Any]] | None:
    """The index, or None where there is none, or a damaged one."""
    entries = read_kept(path)
    try:
        for entry in entries:
            Utterance(**entry) if "seconds" in entry else Problem(**entry)
    except TypeError:
        return None
    return entries if len(entries) == count else None
