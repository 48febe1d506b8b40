"""Whisper's fallback: texts that went wrong are decoded again, in the full window.

With less silence behind an utterance than Whisper was trained with, a text may repeat itself
without end. Whether one did is read off its own tokens, so that a row of a batch gets the text that
it gets alone, by every exact strategy the same. A text longer than anybody speaks counts as one
without an end, so that a batch does not wait for it.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.config import Config
from mtp_jax.data import Batch, FeatureBatch
from mtp_jax.decoding import Decoded, Strategy, registry
from mtp_jax.distributed import multihost
from mtp_jax.inference.programs import Inference
from mtp_jax.models.speech_features import window
from mtp_jax.tokenizer import Tokenizer

MAX_COMPRESSION = 2.4  # of a text by zlib, as in Whisper's transcribe.py
_TOKENS_PER_SECOND = 10  # fast English has 5; text in a script that needs more is decoded twice
_EXTRA_TOKENS = 16


def full_window(config: Config) -> Config:
    """`config`, with silence that fills Whisper's window."""
    seconds = config.whisper.positions / 50
    return dataclasses.replace(config, whisper=dataclasses.replace(config.whisper, silence=seconds))


def can_fall_back(config: Config, batch: Batch, strategy: Strategy) -> bool:
    """Whether a text may be decoded again: a Whisper's, of waveforms, by its decoder."""
    return (
        config.whisper_decoder.present
        and full_window(config).whisper.silence > config.whisper.silence
        and not isinstance(batch, FeatureBatch)
        and registry.get(strategy.name).calls_decoder
    )


def is_short(samples: int | np.ndarray, config: Config) -> bool | np.ndarray:
    """Whether so much audio, and the silence behind it, leave a part of the window empty."""
    silence = round(config.whisper.silence * config.front_end.sample_rate)
    return samples + silence < window(config)


def token_limit(samples: int, config: Config) -> int:
    """Tokens that a text of so much audio may have before it counts as one without an end."""
    seconds = samples / config.front_end.sample_rate
    longest = _EXTRA_TOKENS + math.ceil(_TOKENS_PER_SECOND * seconds)
    return min(config.data.max_tokens, longest)


def first_limit(batch: Batch, config: Config) -> int:
    """Tokens that the texts of a batch may have before the first of them is decoded again.

    All that a text may have where the window is full for some row: such a row is not decoded again.
    """
    longest = batch.audio.shape[1]
    return token_limit(longest, config) if is_short(longest, config) else config.data.max_tokens


def with_token_limit(config: Config, limit: int) -> Config:
    """`config`, with texts of at most so many tokens."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, max_tokens=limit))


def compression(text: str) -> float:
    """How many times shorter zlib makes a text; what repeats itself gets much shorter.

    >>> round(compression("so it goes, " * 20), 1)
    10.4
    """
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw))


def went_wrong(tokens: Sequence[int], tokenizer: Tokenizer, limit: int) -> bool:
    """Whether a text has no end, or repeats itself.

    Args:
        tokens: EOS included where it was reached.
        tokenizer: of these.
        limit: `token_limit` of its audio; those of a batch whose audio is longer may have more.
    """
    if not tokens or tokens[-1] != tokenizer.eos or len(tokens) > limit:
        return True
    return compression(tokenizer.decode(tokens[:-1])) > MAX_COMPRESSION


def with_fallback(
    done: Inference,
    batch: Batch,
    config: Config,
    tokenizer: Tokenizer,
    decode: Callable[[Batch], Inference],
) -> Inference:
    """`done`, in which rows that went wrong are decoded again.

    Their calls, and what was proposed and accepted, are those of both times.

    Args:
        done: what was made of `batch`.
        batch: rows with ``index`` -1 are filler.
        config: of the model that `done` is of.
        tokenizer: of its tokens.
        decode: decodes a batch in the full window, as `done` was decoded.
    """
    tokens, length = multihost.to_host((done.decoded.tokens, done.decoded.length))
    audio_length = np.asarray(batch.audio_length)
    short = (np.asarray(batch.index) >= 0) & is_short(audio_length, config)
    rows = [
        row
        for row in np.flatnonzero(short).tolist()
        if went_wrong(
            tokens[row, : length[row]].tolist(),
            tokenizer,
            token_limit(int(audio_length[row]), config),
        )
    ]
    if not rows:
        return done
    again = decode(rows_of(batch, rows, window(config)))
    return _merged(*multihost.to_host((done, again)), rows)


def rows_of(batch: Batch, rows: Sequence[int], samples: int) -> Batch:
    """Some rows of a batch, each of so many samples, in one of few shapes.

    Behind them is filler up to a power of two.
    """
    size = 1 << (len(rows) - 1).bit_length()
    filler = size - len(rows)

    def taken(x: np.ndarray) -> np.ndarray:
        return np.pad(np.asarray(x)[list(rows)], ((0, filler), *[(0, 0)] * (x.ndim - 1)))

    part = batch._replace(
        **{name: taken(x) for name, x in batch._asdict().items() if x is not None}
    )
    beyond = max(0, samples - part.audio.shape[1])
    index = np.where(np.arange(size) < len(rows), part.index, -1)
    return part._replace(
        audio=np.pad(part.audio, ((0, 0), (0, beyond))), index=index.astype(np.int32)
    )


def _merged(done: Inference, again: Inference, rows: list[int]) -> Inference:
    """`done`, on the host, with the first rows of `again` in place of `rows`."""

    def put(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        """With as many frames as the one that has more; nobody looks beyond a row's own."""
        if not old.ndim:
            return new
        longer = np.maximum(old.shape[1:], new.shape[1:])
        old, new = (
            np.pad(x, [(0, 0), *((0, n - m) for n, m in zip(longer, x.shape[1:], strict=True))])
            for x in (old, new)
        )
        old[rows] = new[: len(rows)]
        return old

    first, second = done.decoded, _first_rows(again.decoded, len(rows))
    calls = first.calls[rows]
    second = dataclasses.replace(
        second,
        calls=calls + second.calls,
        proposed=first.proposed[rows] + second.proposed,
        accepted=first.accepted[rows] + second.accepted,
        loop_steps=first.loop_steps + second.loop_steps,
        call=jnp.where(second.call > 0, calls[:, None] + second.call, 0),
    )
    merged: Inference = jax.tree.map(put, done, dataclasses.replace(again, decoded=second))
    return merged


def _first_rows(decoded: Decoded, count: int) -> Decoded:
    first: Decoded = jax.tree.map(lambda x: x[:count] if x.ndim else x, decoded)
    return first
