"""What every encoder and every decoder must hold, whatever it is made of.

The results of a row depend on its real positions alone: not on the other rows, their order, the
padding (NaN here), how much of it there is, or free slots of a cache. `test_contracts` runs each
law on each model; a new encoder or decoder is one entry there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.models.kv_cache import KVCache

# Tiny programs take longer to optimize than to run.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def draw_params(module: nn.Module, *inputs: Any, seed: int = 1) -> Any:
    """Random parameters, also where they start at 0 or 1, as of norms and low-rank updates."""
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))["params"]
    rng = np.random.default_rng(seed)

    def one(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        drawn = rng.normal(1.0 if name == "scale" else 0.0, 0.3, shape.shape).astype(np.float32)
        return np.exp(drawn) if name == "variance" else drawn

    return jax.tree_util.tree_map_with_path(one, shapes)


# Encoders


@dataclasses.dataclass(frozen=True)
class EncoderCase:
    """An encoder under test.

    Attributes:
        encode: [B, T, Z] and int32[B] lengths to [B, T', D] and theirs; jitted.
        width: Z.
        stacked: frames that become one, of which lengths are multiples: others are left out.
    """

    encode: Callable[[Any, Any], tuple[jax.Array, jax.Array]]
    width: int
    stacked: int = 1

    order = np.array([3, 1, 0, 2])

    @property
    def lengths(self) -> np.ndarray:
        """int[4], with the longest and none among them."""
        return np.array([22, 13 - 13 % self.stacked, self.stacked, 0])

    def features(self, frames: int = 22, padding: float = np.nan) -> np.ndarray:
        """float32[B, frames, Z]: the same real frames whatever `frames` and `padding`."""
        rows = len(self.lengths)
        x = np.full((rows, frames, self.width), padding, np.float32)
        real = np.random.default_rng(2).normal(size=(rows, 22, self.width))
        for row, length in enumerate(self.lengths):
            x[row, :length] = real[row, :length]
        return x

    def rows(self, **options: Any) -> list[np.ndarray]:
        """The real part of each row of the outputs, which must all be finite."""
        y, length = self.encode(self.features(**options), self.lengths)
        assert np.isfinite(y).all()
        return [np.asarray(y[row, :n]) for row, n in enumerate(np.asarray(length))]


def padding_of_audio_is_invisible(case: EncoderCase) -> None:
    """What stands beyond a length, and how much of it, changes no real frame."""
    expected = case.rows(padding=0.0)
    assert len(expected[0]) > len(expected[1]) > len(expected[2]) > len(expected[3]) == 0
    for options in ({}, {"padding": 1e4}, {"frames": 29}):
        for ours, theirs in zip(case.rows(**options), expected, strict=True):
            close(ours, theirs)


def a_recording_alone_is_as_in_its_batch(case: EncoderCase) -> None:
    """Cut to its own length, too."""
    together = case.rows()
    for row in range(3):
        length = case.lengths[row : row + 1]
        y, frames = case.encode(case.features()[row : row + 1, : length[0]], length)
        assert frames[0] == len(together[row])
        close(y[0, : frames[0]], together[row])


def the_order_of_recordings_is_free(case: EncoderCase) -> None:
    y, length = case.encode(case.features(), case.lengths)
    other, other_length = case.encode(case.features()[case.order], case.lengths[case.order])
    np.testing.assert_array_equal(other_length, length[case.order])
    np.testing.assert_array_equal(other, y[case.order])


def gradients_do_not_see_padding_of_audio(case: EncoderCase) -> None:
    """They are finite, 0 in the padding, and reach every real frame."""

    def loss(x: jax.Array) -> jax.Array:
        y, length = case.encode(x, case.lengths)
        real = jnp.arange(y.shape[1]) < length[:, None]
        return jnp.sum(jnp.where(real[..., None], y, 0) ** 3)

    padding = np.arange(22) >= case.lengths[:, None]
    gradient = np.asarray(quick_jit(jax.grad(loss))(case.features()))
    assert np.isfinite(gradient).all()
    assert not np.any(gradient[padding])
    assert np.any(gradient != 0, -1)[~padding].all()


ENCODER_LAWS = (
    padding_of_audio_is_invisible,
    a_recording_alone_is_as_in_its_batch,
    the_order_of_recordings_is_free,
    gradients_do_not_see_padding_of_audio,
)


# Decoders

B, S, WIDTH = 3, 9, 4  # WIDTH: positions per call


@dataclasses.dataclass(frozen=True)
class DecoderCase:
    """A decoder under test.

    Attributes:
        full: [B, S, D] embeddings and bool[B, S] to hidden states [B, S, E]; jitted.
        extend: the same over a cache: hidden states and the longer cache; jitted.
        empty_cache: of so many rows and slots.
        width: D.
        vocabulary: if it is not 0, numbers of so many tokens stand for the embeddings.
    """

    full: Callable[[Any, Any], jax.Array]
    extend: Callable[[Any, Any, KVCache], tuple[jax.Array, KVCache]]
    empty_cache: Callable[[int, int], KVCache]
    width: int
    vocabulary: int = 0

    def empty(self, slots: int = S + 3) -> KVCache:
        return self.empty_cache(B, slots)

    def embeddings(self) -> np.ndarray:
        rng, shape = np.random.default_rng(2), (B, S, self.width)
        drawn = rng.integers(self.vocabulary - 1, size=shape) if self.vocabulary else None
        return (rng.normal(size=shape) if drawn is None else drawn).astype(np.float32)


ALL = np.ones((B, S), bool)
CALL = np.ones((B, WIDTH), bool)


def any_chunking_over_the_cache_equals_the_full_pass(case: DecoderCase) -> None:
    """Each row is fed at its own pace, 0 to WIDTH positions a call, NaN behind them."""
    rng, x = np.random.default_rng(0), case.embeddings()
    expected, cache = case.full(x, ALL), case.empty()
    got = np.zeros_like(expected)
    done = np.zeros(B, int)
    while done.min() < S:
        count = np.minimum(rng.integers(0, WIDTH + 1, B), S - done)
        chunk = np.full((B, WIDTH, case.width), np.nan, np.float32)
        for row in range(B):
            chunk[row, : count[row]] = x[row, done[row] : done[row] + count[row]]
        hidden, cache = case.extend(chunk, np.arange(WIDTH) < count[:, None], cache)
        assert np.isfinite(hidden).all()
        for row in range(B):
            got[row, done[row] : done[row] + count[row]] = hidden[row, : count[row]]
        done += count
        np.testing.assert_array_equal(cache.length, done)
    close(got, expected)


def padding_anywhere_is_invisible(case: DecoderCase) -> None:
    """Real positions scattered among NaN give what they give side by side, cached or not."""
    rng, x = np.random.default_rng(0), case.embeddings()
    lengths = np.array([S, 5, 0])
    real, scattered = np.zeros((B, S), bool), np.full_like(x, np.nan)
    for row, length in enumerate(lengths):
        real[row, rng.choice(S, length, replace=False)] = True
        scattered[row, real[row]] = x[row, :length]
    expected = case.full(x, ALL)
    cached, cache = case.extend(scattered, real, case.empty())
    np.testing.assert_array_equal(cache.length, lengths)
    for hidden in (case.full(scattered, real), cached):
        assert np.isfinite(hidden).all()
        for row, length in enumerate(lengths):
            close(hidden[row, real[row]], expected[row, :length])


def rows_do_not_see_each_other(case: DecoderCase) -> None:
    x, order = case.embeddings(), np.array([2, 0, 1])
    hidden = case.full(x, ALL)
    np.testing.assert_array_equal(case.full(x[order], ALL), hidden[order])
    other = x.copy()
    other[1:] = 7
    np.testing.assert_array_equal(case.full(other, ALL)[0], hidden[0])
    close(case.full(x[1:2], ALL[1:2])[0], hidden[1])


def a_position_sees_those_before_it_and_no_other(case: DecoderCase) -> None:
    x = case.embeddings()
    changed = x.copy()
    changed[:, 5, ::2] += 1  # a LayerNorm would not see what is added to all
    hidden, other = case.full(x, ALL), case.full(changed, ALL)
    np.testing.assert_array_equal(other[:, :5], hidden[:, :5])
    assert np.all(np.abs(other - hidden)[:, 5:].max(-1) > 1e-5)


def rejecting_drafts_is_lowering_length(case: DecoderCase) -> None:
    """Rows that fed 1 to 4 wrong positions and stepped back are as if they never had."""
    x, accepted = case.embeddings(), np.array([0, 1, 3])
    _, start = case.extend(x[:, :WIDTH], CALL, case.empty())
    drafts = x[:, WIDTH : 2 * WIDTH].copy()
    for row, count in enumerate(accepted):
        drafts[row, count:] = -5
    _, drafted = case.extend(drafts, CALL, start)
    _, never = case.extend(drafts, np.arange(WIDTH) < accepted[:, None], start)
    back = drafted.rollback(jnp.asarray(WIDTH - accepted))
    np.testing.assert_array_equal(never.length, back.length)
    hidden, cache = case.extend(x[:, -WIDTH:], CALL, back)
    expected, expected_cache = case.extend(x[:, -WIDTH:], CALL, never)
    np.testing.assert_array_equal(hidden, expected)
    for row, length in enumerate(np.asarray(cache.length)):
        for name in ("keys", "values"):
            ours, theirs = (np.asarray(getattr(c, name)) for c in (cache, expected_cache))
            np.testing.assert_array_equal(ours[:, row, :length], theirs[:, row, :length])
        if cache.tokens is not None:
            np.testing.assert_array_equal(
                cache.tokens[row, :length], expected_cache.tokens[row, :length]
            )


def free_slots_may_hold_anything_finite(case: DecoderCase) -> None:
    x = case.embeddings()
    _, cache = case.extend(x[:, :WIDTH], CALL, case.empty())
    free = np.arange(cache.slots) >= np.asarray(cache.length)[:, None]

    def spoil(store: jax.Array) -> jax.Array:
        return jnp.where(free[None, :, :, None], 1e30, store)

    spoilt = cache.replace(keys=spoil(cache.keys), values=spoil(cache.values))
    if cache.tokens is not None:
        spoilt = spoilt.replace(tokens=jnp.where(free, case.vocabulary - 1, cache.tokens))
    hidden, after = case.extend(x[:, WIDTH : 2 * WIDTH], CALL, cache)
    spoilt_hidden, spoilt_after = case.extend(x[:, WIDTH : 2 * WIDTH], CALL, spoilt)
    np.testing.assert_array_equal(spoilt_hidden, hidden)
    used = slice(0, 2 * WIDTH)
    np.testing.assert_array_equal(spoilt_after.keys[:, :, used], after.keys[:, :, used])


def slack_in_the_cache_changes_nothing(case: DecoderCase) -> None:
    x = case.embeddings()
    tight, _ = case.extend(x, ALL, case.empty(S))
    loose, _ = case.extend(x, ALL, case.empty(4 * S))
    close(tight, loose)


def a_full_cache_drops_what_does_not_fit(case: DecoderCase) -> None:
    """Nothing that was written is overwritten; `length` tells the caller."""
    x = case.embeddings()
    _, cache = case.extend(x[:, :WIDTH], CALL, case.empty(WIDTH + 1))
    _, over = case.extend(x[:, WIDTH : 2 * WIDTH], CALL, cache)
    np.testing.assert_array_equal(over.keys[:, :, :WIDTH], cache.keys[:, :, :WIDTH])
    np.testing.assert_array_equal(over.length, np.full(B, 2 * WIDTH))


DECODER_LAWS = (
    any_chunking_over_the_cache_equals_the_full_pass,
    padding_anywhere_is_invisible,
    rows_do_not_see_each_other,
    a_position_sees_those_before_it_and_no_other,
    rejecting_drafts_is_lowering_length,
    free_slots_may_hold_anything_finite,
    slack_in_the_cache_changes_nothing,
    a_full_cache_drops_what_does_not_fit,
)
