"""What a finished model writes of a source, in place of its transcripts: kept on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import tqdm

from mtp_jax import interrupts
from mtp_jax.config import Config, Heads, Lora
from mtp_jax.data import Batch, DataError, Source, eval_batches
from mtp_jax.decoding import Greedy
from mtp_jax.inference.encoder_cache import audio_digest
from mtp_jax.inference.fallback import MAX_COMPRESSION, compression, token_limit
from mtp_jax.inference.runner import Runner
from mtp_jax.models.build import make_model
from mtp_jax.models.initialization import parameter_shapes
from mtp_jax.models.params import by_path
from mtp_jax.models.recogniser import Recogniser
from mtp_jax.paths import write_whole
from mtp_jax.pretrained.parts import as_stored, digests, import_parts
from mtp_jax.pretrained.source import resolve
from mtp_jax.tokenizer import Tokenizer

_BATCH = 32
_KEEP_EVERY = 16  # batches


def pretrained_model(config: Config, mesh: jax.sharding.Mesh) -> Runner:
    """The model of ``config.pretrained.model`` as it is: without heads, CTC or LoRA.

    Raises:
        PretrainedError, TokenizerError: it cannot be read.
    """
    plain = dataclasses.replace(
        config,
        whisper=dataclasses.replace(config.whisper, lora=Lora()),
        decoder=dataclasses.replace(config.decoder, lora=Lora()),
        whisper_decoder=dataclasses.replace(config.whisper_decoder, lora=Lora()),
        heads=Heads(count=1),
    )
    tokenizer = Tokenizer.load(resolve(config.pretrained.model))
    model = make_model(plain, tokenizer)
    shapes, shardings = parameter_shapes(model, mesh)
    params = import_parts(plain.pretrained, tokenizer, as_stored(shapes, plain), shardings)
    return Runner(model, params, tokenizer, mesh, by_path(params))


def with_greedy_text(source: Source, runner: Runner) -> Source:
    """`source` with the greedy tokens of the pretrained model as its text, made here once.

    Args:
        source: the utterances; whatever text they have is not looked at.
        runner: the pretrained model.

    Raises:
        DataError: what was written cannot be kept.
        Interrupted: between two batches; what was made is kept.
    """
    file = _file(runner.model)
    known: dict[str, list[int]] = _read(file)
    audio = [audio_digest(source, i) or "" for i in range(len(source.utterances))]
    todo = [i for i, digest in enumerate(audio) if digest and digest not in known]
    if todo:
        try:
            _write_all(source, todo, audio, known, runner, file)
        finally:
            _keep(file, known)
    return dataclasses.replace(
        source,
        utterances=[
            dataclasses.replace(
                utterance,
                tokens=tuple(known.get(digest, ())),
                text=runner.tokenizer.decode(known.get(digest, ())),
            )
            for utterance, digest in zip(source.utterances, audio, strict=True)
        ],
    )


def _write_all(
    source: Source,
    todo: list[int],
    audio: list[str],
    known: dict[str, list[int]],
    runner: Runner,
    file: Path,
) -> None:
    """Decodes the utterances `todo` into `known`, by the digests of their audio."""
    features = source.features
    part = dataclasses.replace(
        source,
        utterances=[source.utterances[i] for i in todo],
        waveform=lambda n: source.waveform(todo[n]),
        features=features
        and dataclasses.replace(features, read=lambda n, speed: features.read(todo[n], speed)),
    )
    batches = eval_batches(part, runner.tokenizer, runner.model.config, _BATCH)
    with tqdm.tqdm(total=len(todo), desc=f"decoding {source.title}", dynamic_ncols=True) as bar:
        for n, batch in enumerate(interrupts.checked(batches)):
            limit = _limit(batch, runner.model.config)
            decoded = jax.device_get(runner.run_once(batch, Greedy(), limit).decoded)
            for row in np.flatnonzero(batch.index >= 0):
                tokens = decoded.tokens[row, : decoded.length[row]].tolist()
                ended = tokens[-1:] == [runner.tokenizer.eos]
                tokens = tokens[:-1]
                # Of what has no end or repeats itself nothing is learnt.
                repeats = compression(runner.tokenizer.decode(tokens)) > MAX_COMPRESSION
                known[audio[todo[batch.index[row]]]] = tokens if ended and not repeats else []
                bar.update()
            if n % _KEEP_EVERY == _KEEP_EVERY - 1:
                _keep(file, known)


def _limit(batch: Batch, config: Config) -> int:
    """Tokens that a text may have: more than anybody says, and few enough that one without an end
    does not hold up its batch for long."""
    longest = float(np.max(batch.audio_length)) / config.front_end.sample_rate
    seconds = min((b for b in config.data.bucket_seconds if b >= longest), default=longest)
    return token_limit(round(seconds * config.front_end.sample_rate), config)


def _file(model: Recogniser) -> Path:
    """Where the texts of a model are: one file for its weights and all that decides its text."""
    config, vocabulary = model.config, model.vocabulary
    parts = {
        "weights": digests(config.pretrained).get("model", ""),
        "whisper": dataclasses.asdict(config.whisper),
        "max_tokens": config.data.max_tokens,
        **({"timestamps": True} if config.whisper_decoder.timestamps else {}),
        **({"start": vocabulary.speech.start_tokens()} if vocabulary.speech else {}),
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return Path(config.data.cache_dir).expanduser() / "greedy" / f"{key}.json"


def _read(file: Path) -> dict[str, list[int]]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):  # made anew
        return {}


def _keep(file: Path, known: dict[str, list[int]]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(known).encode())
    except OSError as error:
        raise DataError(
            f"texts cannot be kept in {file.parent} ({error.strerror}): set config.data.cache_dir"
            " to a folder that can be written"
        ) from None
