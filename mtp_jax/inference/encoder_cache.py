"""What a frozen pretrained encoder makes of a source, kept on disk for training behind it.

The encoder is Whisper's, or that of a speech LLM. An entry belongs to an audio, a speed, an encoder
(by the digests of its weights, those of a trained LoRA included) and a front end: when any changes,
another entry is made. Entries are float16.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from mtp_jax import interrupts
from mtp_jax.audio.reading import AudioError, change_speed, changed_length
from mtp_jax.config import Config
from mtp_jax.data import DataError, Source, eval_batches
from mtp_jax.data.source import Features
from mtp_jax.distributed import multihost
from mtp_jax.inference.runner import Runner
from mtp_jax.models.params import by_path
from mtp_jax.models.speech_features import encoded_frames, encoded_width, speech_features
from mtp_jax.pretrained.parts import digests

_VERSION = 1  # of the features: raise it when they change for the same config
_BATCH = 8


class EncoderCache:
    """Entries of one encoder: a file of numbers that only grows, and an index of them.

    A process killed while it writes loses only the entry that it was writing.

    Args:
        folder: of the two files; made if need be.
        width: D.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self._folder, self._width = folder, width
        self._numbers, self._index = folder / "features.f16", folder / "index.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._numbers.touch()
            self._index.touch()
        except OSError as error:
            raise _unwritable(folder, error) from None
        self._entries: dict[str, tuple[int, int, int]] = {}
        self._end = 0
        self._load()

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def read(self, key: str) -> tuple[np.ndarray, int]:
        """float16[T, D] features of an entry, and the samples they were made of."""
        start, frames, samples = self._entries[key]
        shape, offset = (frames, self._width), 2 * self._width * start
        return np.memmap(self._numbers, np.float16, "r", offset, shape), samples

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lets one process at a time add entries; takes in those that others have added."""
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            whole = self._load()
            # What a killed process left behind: it is in nobody's index, and nobody else writes.
            os.truncate(self._index, whole)
            os.truncate(self._numbers, 2 * self._width * self._end)
            yield

    def add(self, key: str, features: np.ndarray, samples: int) -> None:
        """Appends an entry: float16[T, D]."""
        entry = (self._end, len(features), samples)
        try:
            with self._numbers.open("ab") as numbers:
                numbers.write(features.astype(np.float16).tobytes())
                numbers.flush()
            with self._index.open("ab") as index:  # last, as an entry counts once it is here
                index.write(json.dumps([key, *entry]).encode() + b"\n")
        except OSError as error:
            raise _unwritable(self._folder, error) from None
        self._entries[key] = entry
        self._end += len(features)

    def _load(self) -> int:
        """Takes in the whole entries; returns how far they reach in the index, in bytes."""
        held = self._numbers.stat().st_size // (2 * self._width)
        self._entries, self._end, whole = {}, 0, 0
        for line in self._index.read_bytes().splitlines(keepends=True):
            try:
                key, start, frames, samples = json.loads(line)
            except (ValueError, TypeError):  # written in part
                break
            if start != self._end or start + frames > held or not line.endswith(b"\n"):
                break
            whole += len(line)
            self._entries[key], self._end = (start, frames, samples), start + frames
        return whole


def with_encoder_cache(source: Source, runner: Runner, speeds: Sequence[float] = (1.0,)) -> Source:
    """`source` with the features that the recogniser's frozen encoder makes of it.

    What the cache does not hold yet is made here, once. Without ``config.whisper.cached`` it is
    `source` itself.

    Args:
        source: the utterances.
        runner: as its training began.
        speeds: at which utterances will be asked for, beside their own.

    Raises:
        DataError: the cache cannot be written.
        Interrupted: between two batches; what was made is kept.
    """
    config = runner.model.config
    if not config.whisper.cached:
        return source
    width = encoded_width(config)
    cache = EncoderCache(_folder(config, _weights(runner)), width)
    audio = [audio_digest(source, i) for i in range(len(source.utterances))]
    longest, rate = config.data.bucket_seconds[-1], config.front_end.sample_rate
    speeds = sorted({1.0, *speeds})

    def key(i: int, speed: float) -> str:
        return f"{audio[i]}@{speed:g}"

    def fits(i: int, speed: float) -> bool:  # what does not is played at its own speed
        samples = round(source.utterances[i].seconds * rate)
        return changed_length(samples, speed) <= math.ceil(longest * rate)

    def missing() -> list[tuple[int, float]]:
        every = ((i, speed) for i, found in enumerate(audio) if found for speed in speeds)
        return [(i, speed) for i, speed in every if key(i, speed) not in cache and fits(i, speed)]

    if missing():
        if jax.process_count() > 1:
            raise DataError(
                f"{len(missing())} outputs of the encoder are not in config.data.cache_dir"
                f" ({config.data.cache_dir}), and several processes cannot make them: start the"
                " run once with one process, or set config.whisper.cached to False"
            )
        with cache.writing():
            todo = missing()
            for (i, speed), features, samples in _encoded(source, todo, runner):
                if key(i, speed) not in cache:  # the same audio may stand in a source twice
                    cache.add(key(i, speed), features, samples)

    def frames(samples: int) -> int:
        return encoded_frames(samples, config)

    def read(i: int, speed: float) -> tuple[np.ndarray, int]:
        if key(i, speed) not in cache:
            raise AudioError(f"{source.utterances[i].id} could not be read to be encoded")
        return cache.read(key(i, speed))

    return dataclasses.replace(source, features=Features(width, frames, read))


def _encoded(
    source: Source, todo: Sequence[tuple[int, float]], runner: Runner
) -> Iterator[tuple[tuple[int, float], np.ndarray, int]]:
    """Features of each utterance and speed of `todo`, and the samples they were made of."""
    config, rate = runner.model.config, runner.model.config.front_end.sample_rate
    # All lengths that training meets have a bucket in config.data.
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, bucket_seconds=())
    )

    def seconds(i: int, speed: float) -> float:
        return changed_length(round(source.utterances[i].seconds * rate), speed) / rate

    played = dataclasses.replace(
        source,
        utterances=[
            dataclasses.replace(source.utterances[i], seconds=seconds(i, speed))
            for i, speed in todo
        ],
        waveform=lambda n: change_speed(source.waveform(todo[n][0]), todo[n][1]),
        features=None,
    )
    listen = jax.jit(speech_features, static_argnums=0)
    batches = eval_batches(played, runner.tokenizer, config, _BATCH)
    with tqdm.tqdm(total=len(todo), desc=f"encoding {source.title}", dynamic_ncols=True) as bar:
        for batch in interrupts.checked(batches):
            batch = batch._replace(tokens=batch.tokens[:, :0])  # fewer shapes to compile
            features, length = jax.device_get(
                listen(runner.model, runner.params, runner.place(batch))
            )
            for row, n in enumerate(batch.index):
                if n >= 0:
                    made = np.asarray(features[row, : length[row]], np.float16)
                    yield todo[n], made, int(batch.audio_length[row])
                    bar.update()


def _weights(runner: Runner) -> str:
    """Digest of the encoder's weights: its source's, and those that a training has changed."""
    found = digests(runner.model.config.pretrained)
    encoder = found.get("model") or found.get("encoder", "")
    part = "encoder" if runner.model.config.speech_llm.present else "whisper"
    leaves = by_path({part: runner.params[part]})
    own = {path: x for path, x in leaves.items() if path not in runner.imported}
    if not own:
        return encoder
    tuned = hashlib.sha256(encoder.encode())
    for path in sorted(own):
        tuned.update(path.encode() + np.asarray(multihost.to_host(own[path])).tobytes())
    return tuned.hexdigest()


def _folder(config: Config, encoder: str) -> Path:
    parts: dict[str, Any] = {
        "version": _VERSION,
        "encoder": encoder,
        "whisper": dataclasses.asdict(config.whisper),
        "front_end": dataclasses.asdict(config.front_end),
        "dtype": config.train.dtype,
    }
    if config.speech_llm.present:
        parts["speech_llm"] = dataclasses.asdict(config.speech_llm.encoder)
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return Path(config.data.cache_dir).expanduser() / "encoder" / key


def audio_digest(source: Source, i: int) -> str | None:
    """Of the audio of an utterance; None if it cannot be read, which training will report."""
    try:
        return source.audio_digest(i)
    except AudioError:
        return None


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"encoder outputs cannot be kept in {folder} ({error.strerror}): set config.data.cache_dir"
        " to a folder that can be written, or config.whisper.cached to False"
    )
