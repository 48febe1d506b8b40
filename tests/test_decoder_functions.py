"""The decode contract once more, on tiny real models with random weights."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from mtp_jax.config import Adaptor, Config, Data, Decoder, Encoder, FrontEnd, Heads
from mtp_jax.data import Batch
from mtp_jax.decoding import (
    CtcGreedy,
    Decoded,
    DecoderFunctions,
    Greedy,
    PrefixBeam,
    Strategy,
    Threshold,
    Verify,
)
from mtp_jax.inference import decoder_functions
from mtp_jax.inference.decoder_functions import bind_decoder
from mtp_jax.inference.programs import infer
from mtp_jax.models.kv_cache import KVCache
from mtp_jax.models.recogniser import Encoded, Vocabulary, call, in_type
from mtp_jax.models.speech_llama import SpeechLlama

M = 4
LIMIT = 20
ROWS = 8
CONFIG = Config(
    front_end=FrontEnd(mel_bins=8),
    data=Data(max_tokens=LIMIT),
    encoder=Encoder(subsampling=(2,), width=16, layers=1, heads=2, feedforward=2, kernel=3),
    decoder=Decoder(
        width=16, layers=2, query_heads=4, kv_heads=2, head_size=4, feedforward=32, tied=False
    ),
    heads=Heads(count=M),
)
PLAIN = Vocabulary(size=11, bos=1, eos=2)
PROMPTED = Vocabulary(size=11, bos=1, eos=2, prompt_before=(5, 6, 7), prompt_after=(8, 9))


def build(
    kind: str,
    vocabulary: Vocabulary,
    seed: int = 0,
    adaptor: Adaptor = CONFIG.adaptor,
    layers: int = 0,
) -> tuple[SpeechLlama, Any]:
    """A model whose every weight is drawn large enough for texts and acceptances to vary."""
    heads = Heads(kind=kind, count=M, layers=layers)
    config = dataclasses.replace(CONFIG, heads=heads, adaptor=adaptor)
    model = SpeechLlama(config, vocabulary)
    one = jnp.ones(1, jnp.int32)
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = nn.unbox(
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2, 8)), one, tokens, one)
    )["params"]
    rng = np.random.default_rng(seed)

    def draw(shape: jax.ShapeDtypeStruct) -> jax.Array:
        matrix = len(shape.shape) > 1
        scale = 2 / np.sqrt(shape.shape[-2]) if matrix else 0.3
        return jnp.array(rng.normal(size=shape.shape) * scale + (not matrix), jnp.float32)

    params = jax.tree.map(draw, shapes)
    # Head m is the LM head but for some noise, so that some of its drafts are right.
    kernel = params["heads"]["kernel"]
    like = np.eye(16) if kind == "latent" else params["decoder"]["lm_head"].T
    params["heads"]["kernel"] = jnp.asarray(like + 0.3 * kernel, jnp.float32)
    return model, params


@functools.partial(jax.jit, static_argnums=0)
def encode(model: SpeechLlama, params: Any, features: jax.Array, length: jax.Array) -> Encoded:
    return call(SpeechLlama.encode, model, params, features, length)


@functools.partial(jax.jit, static_argnums=0)
def run(model: SpeechLlama, params: Any, encoded: Encoded, strategy: Strategy) -> Decoded:
    active = jnp.ones(encoded.length.shape, bool)
    return strategy.decode(bind_decoder(model, params, encoded), active, LIMIT)


def drawn(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features and lengths of a batch, padding filled with NaN; one row has no audio at all."""
    rng = np.random.default_rng(seed)
    length = np.array([12, 7, 0, 9, 1, 12, 4, 10], np.int32)
    features = 3 * rng.normal(size=(ROWS, 12, 8)).astype(np.float32)
    features[np.arange(12) >= length[:, None]] = np.nan
    return features, length


VOCABULARIES = pytest.mark.parametrize("vocabulary", [PLAIN, PROMPTED], ids=["plain", "prompted"])


@pytest.mark.parametrize(
    ("kind", "vocabulary", "layers"),
    [("latent", PLAIN, 0), ("independent", PROMPTED, 0), ("latent", PROMPTED, 2)],
    ids=["latent", "independent, prompted", "with layers of their own"],
)
def test_verify_is_identical_to_greedy_of_its_width(
    kind: str, vocabulary: Vocabulary, layers: int
) -> None:
    lengths, accepted, proposed = set(), 0, 0
    for seed in range(4):
        model, params = build(kind, vocabulary, seed, layers=layers)
        encoded = encode(model, params, *drawn(seed))
        greedy = jax.device_get(run(model, params, encoded, Greedy(M)))
        verify = jax.device_get(run(model, params, encoded, Verify()))
        np.testing.assert_array_equal(verify.tokens, greedy.tokens)
        np.testing.assert_array_equal(verify.length, greedy.length)
        np.testing.assert_array_equal(greedy.calls, greedy.length)
        assert np.all(verify.calls <= greedy.calls)
        lengths |= set(greedy.length.tolist())
        accepted, proposed = accepted + verify.accepted.sum(), proposed + verify.proposed.sum()
    assert len(lengths) > 3, "the texts should differ, or this shows little"
    assert 0.1 < accepted / proposed < 0.9


def test_verify_is_identical_to_greedy_with_what_ctc_reads() -> None:
    """What its CTC does read, which is noise, and what the decoder will say, up to the middle."""
    proposed, accepted = 0, 0
    for seed in range(4):
        model, params = build("latent", PLAIN, seed)
        encoded = encode(model, params, *drawn(seed))
        greedy = jax.device_get(run(model, params, encoded, Greedy(3)))
        read = jnp.asarray(greedy.tokens), jnp.asarray(greedy.length // 2)
        for reading in (encoded.ctc_hypothesis, read):
            found = jax.device_get(
                run(model, params, encoded.replace(ctc_hypothesis=reading), Verify(3))
            )
            np.testing.assert_array_equal(found.tokens, greedy.tokens)
            np.testing.assert_array_equal(found.length, greedy.length)
            assert np.all(found.calls <= greedy.calls)
        proposed, accepted = proposed + found.proposed.sum(), accepted + found.accepted.sum()
    assert 0.1 < accepted / proposed < 0.95


def test_threshold_above_1_is_greedy() -> None:
    model, params = build("latent", PLAIN)
    encoded = encode(model, params, *drawn())
    greedy, threshold = (
        jax.device_get(run(model, params, encoded, s)) for s in (Greedy(M), Threshold(1.1))
    )
    np.testing.assert_array_equal(threshold.tokens, greedy.tokens)
    np.testing.assert_array_equal(threshold.calls, greedy.calls)
    eager = jax.device_get(run(model, params, encoded, Threshold(0.0)))
    np.testing.assert_array_equal(eager.calls, -(-eager.length // M))


# Every prompt and every size of its blocks; all pairs are slow.
FORMS = {
    "plain": (PLAIN, Adaptor(), 0),
    "prompted, layers of the heads": (PROMPTED, Adaptor(), 1),
    "compressed, aligned": (PROMPTED, Adaptor(ctc_compression=True, aligned_positions=True), 0),
}
QUICK = {
    *(("plain", 0), ("prompted, layers of the heads", 4), ("prompted, layers of the heads", 64)),
    ("compressed, aligned", 4),
}


@pytest.mark.parametrize(
    ("vocabulary", "adaptor", "layers", "positions"),
    [
        pytest.param(
            *(*form, positions),
            id=f"{name}, prompt in blocks of {positions}",
            marks=() if (name, positions) in QUICK else pytest.mark.slow,
        )
        for name, form in FORMS.items()
        for positions in (0, 4, 64)
    ],
)
def test_prefill_and_extend_equal_the_full_pass(
    vocabulary: Vocabulary,
    adaptor: Adaptor,
    layers: int,
    positions: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In chunks of any size, each row its own, with rejected drafts in between."""
    model, params = build("latent", vocabulary, adaptor=adaptor, layers=layers)
    features, length = drawn()
    rng = np.random.default_rng(1)
    text_length = np.array([LIMIT, 5, 1, 13, 20, 8, 2, 17], np.int32)
    tokens = rng.integers(3, 11, (ROWS, LIMIT)).astype(np.int32)

    full = jax.jit(lambda *args: model.apply({"params": params}, *args))
    whole, encoded = full(features, length, tokens, text_length)
    monkeypatch.setattr(decoder_functions, "PROMPT_BLOCK", positions)

    @jax.jit
    def prefill(encoded: Encoded) -> tuple[jax.Array, KVCache]:
        if positions:
            return bind_decoder(model, params, encoded).prefill(LIMIT + M)
        return call(
            SpeechLlama.prefill, model, params, encoded, LIMIT + M
        )  # the whole prompt at once

    extend = jax.jit(lambda *args: call(SpeechLlama.extend, model, params, *args))

    hidden, cache = prefill(encoded)
    steps = [[row] for row in np.asarray(hidden)]
    fed = np.zeros(ROWS, np.int32)
    while np.any(fed < text_length - 1):
        count = np.minimum(rng.integers(0, M + 1, ROWS), text_length - 1 - fed).astype(np.int32)
        chunk = rng.integers(0, 11, (ROWS, M)).astype(np.int32)  # junk behind the real tokens
        for row in range(ROWS):
            chunk[row, : count[row]] = tokens[row, fed[row] : fed[row] + count[row]]
        if rng.random() < 0.5:  # the junk is fed as well, and rejected
            hidden, cache = extend(chunk, np.full(ROWS, M, np.int32), cache)
            cache = cache.rollback(jnp.asarray(M - count))
        else:
            hidden, cache = extend(chunk, count, cache)
        for row in range(ROWS):
            steps[row] += list(np.asarray(hidden)[row, : count[row]])
        fed += count

    whole = np.asarray(whole)
    assert whole.shape == (ROWS, LIMIT, model.hidden_width)
    rounding = 1e-5 * np.max(np.abs(whole))  # float32 has 6e-8 an operation
    for row in range(ROWS):
        np.testing.assert_allclose(
            np.stack(steps[row]), whole[row, : text_length[row]], rtol=0, atol=rounding
        )
    frames = np.asarray(encoded.length)
    before = len(vocabulary.prompt_before) + len(vocabulary.prompt_after) + 1
    np.testing.assert_array_equal(cache.length, frames + before + text_length - 1)


def test_on_a_cpu_a_decoder_is_float32_behind_an_encoder_in_bfloat16() -> None:
    model, params = build("latent", PROMPTED)
    low = in_type(model, "bfloat16")
    encoded = encode(low, params, *drawn())
    assert encoded.audio.dtype == jnp.bfloat16
    found, expected = run(low, params, encoded, Verify()), run(model, params, encoded, Verify())
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    hidden, cache = bind_decoder(low, params, encoded).prefill(LIMIT)
    assert (hidden.dtype, cache.keys.dtype) == (jnp.float32, jnp.float32)


def test_padding_and_neighbours_are_invisible() -> None:
    """A row alone, cut to its own length, has the hidden states and logits it has in a batch."""
    model, params = build("latent", PROMPTED)
    features, length = drawn()
    tokens = np.random.default_rng(2).integers(3, 11, (ROWS, 6)).astype(np.int32)
    text_length = np.full(ROWS, 6, np.int32)

    @jax.jit
    def heads(*args: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden, _ = model.apply({"params": params}, *args)
        return hidden, call(SpeechLlama.all_logits, model, params, hidden)

    together = heads(features, length, tokens, text_length)
    assert together[1].shape == (ROWS, 6, M, 11)
    one = slice(1, 2)
    alone = heads(features[one, : length[1]], length[one], tokens[one], text_length[one])
    for ours, theirs in zip(alone, together, strict=True):
        np.testing.assert_allclose(ours[0], theirs[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strategy", [Greedy(M), Threshold(0.3), Verify()], ids=repr)
def test_free_slots_of_the_cache_may_hold_anything_finite(strategy: Strategy) -> None:
    model, params = build("latent", PLAIN)
    encoded = encode(model, params, *drawn())

    def littered(cache: KVCache, junk: jax.Array) -> KVCache:
        free = (jnp.arange(cache.slots) >= cache.length[:, None])[..., None]
        return cache.replace(
            keys=jnp.where(free, junk, cache.keys), values=jnp.where(free, -junk, cache.values)
        )

    @jax.jit
    def decoded(junk: jax.Array) -> Decoded:
        seen = bind_decoder(model, params, encoded)

        def prefill(capacity: int) -> tuple[jax.Array, KVCache]:
            hidden, cache = seen.prefill(capacity)
            return hidden, littered(cache, junk)

        return strategy.decode(seen._replace(prefill=prefill), jnp.ones(ROWS, bool), LIMIT)

    clean, dirty = decoded(jnp.float32(0)), decoded(jnp.float32(1e30))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


@pytest.mark.parametrize(("kind", "layers"), [("latent", 1), ("independent", 0)])
def test_a_beam_of_one_is_greedy(kind: str, layers: int) -> None:
    for seed in range(3):
        model, params = build(kind, PROMPTED, seed, layers=layers)
        encoded = encode(model, params, *drawn(seed))
        greedy = jax.device_get(run(model, params, encoded, Greedy(M)))
        beam = jax.device_get(run(model, params, encoded, PrefixBeam(1)))
        np.testing.assert_array_equal(beam.tokens, greedy.tokens)
        assert np.all(beam.calls <= greedy.calls)


def test_a_beam_does_not_see_padding_or_the_batch() -> None:
    model, params = build("latent", PLAIN)
    features, length = drawn()
    strategy = PrefixBeam(3)
    whole = jax.device_get(run(model, params, encode(model, params, features, length), strategy))
    assert whole.nbest is not None
    for row in (0, 2, 6):
        cut = features[row : row + 1, : max(2, -(-length[row] // 2) * 2)]
        encoded = encode(model, params, cut, length[row : row + 1])
        alone = jax.device_get(run(model, params, encoded, strategy))
        np.testing.assert_array_equal(alone.nbest.tokens[0], whole.nbest.tokens[row])
        np.testing.assert_allclose(
            alone.nbest.log_probs[0], whole.nbest.log_probs[row], rtol=1e-3, atol=1e-4
        )
        assert alone.calls[0] == whole.calls[row]


def test_waveforms_to_tokens_with_filler_and_empty_audio() -> None:
    model, params = build("latent", PLAIN)
    rng = np.random.default_rng(0)
    audio = (3_000 * rng.normal(size=(4, 4_000))).astype(np.int16)
    length = np.array([4_000, 0, 2_500, 0], np.int32)
    audio[np.arange(4_000) >= length[:, None]] = 0
    none = np.zeros((4, 0), np.int32), np.zeros(4, np.int32)
    batch = Batch(audio, length, *none, index=np.array([0, 1, 2, -1], np.int32))
    greedy = jax.device_get(infer(model, Greedy, False, params, batch, Greedy(M)).decoded)
    verify = jax.device_get(infer(model, Verify, False, params, batch, Verify()).decoded)
    np.testing.assert_array_equal(verify.tokens, greedy.tokens)
    assert greedy.calls[3] == greedy.length[3] == verify.calls[3] == 0
    assert np.all(greedy.length[:3] > 0)
    ctc = infer(model, CtcGreedy, True, params, batch, CtcGreedy())
    tokens, count = ctc.decoded.tokens, ctc.decoded.length
    assert ctc.ctc_log_probs is not None and ctc.ctc_log_probs.shape[1] == tokens.shape[1]
    assert not ctc.decoded.calls.any()
    assert count.tolist()[1::2] == [0, 0]
    assert np.all(np.asarray(tokens)[np.arange(tokens.shape[1]) >= np.asarray(count)[:, None]] == 0)


def test_strategies_whose_fields_are_alike_are_told_apart() -> None:
    """One in seven were not, when only the structure of a strategy told JAX which it is."""
    model, params = build("latent", PLAIN)
    none = np.zeros((1, 0), np.int32), np.zeros(1, np.int32)
    batch = Batch(
        np.zeros((1, 400), np.float32), np.array([400], np.int32), *none, np.zeros(1, int)
    )
    for drafts in range(40):

        @struct.dataclass
        class Empty:
            width: int = struct.field(pytree_node=False, default=16)
            name = "empty"

            def decode(
                self, model: DecoderFunctions, active: jax.Array, limit: int, drafts: int = drafts
            ) -> Decoded:
                tokens, row = jnp.zeros((1, limit), jnp.int32), jnp.zeros(1, jnp.int32)
                tested = jnp.zeros((1, drafts), jnp.int32)
                return Decoded(tokens, 0.0 * tokens, row, row, tested, tested, jnp.int32(0), tokens)

        made = infer.eval_shape(model, Empty, False, params, batch, Empty())
        assert made.decoded.proposed.shape == (1, drafts)


def test_ctc_greedy_merges_repeats_and_drops_blanks() -> None:
    blank = 11
    best = np.array([[3, 3, blank, 3, 4, 4], [blank, 5, 5, 6, 7, 7], [1, 1, 1, 1, 1, 1]])
    encoded = Encoded(
        audio=jnp.zeros((3, 6, 16)),
        length=jnp.array([6, 4, 0]),
        ctc_logits=jax.nn.one_hot(best, blank + 1),
        ctc_length=jnp.array([6, 4, 0]),
    )
    model, params = build("latent", PLAIN)
    made = run(model, params, encoded, CtcGreedy())
    assert made.length.tolist() == [3, 2, 0]
    assert made.tokens[0, :3].tolist() == [3, 3, 4]
    assert made.tokens[1, :2].tolist() == [5, 6]
    assert not made.calls.any() and int(made.loop_steps) == 0


@pytest.mark.parametrize(
    "strategy", [Greedy(), Greedy(M), Verify(), Verify(5), Threshold(2.0), PrefixBeam(3)], ids=repr
)
def test_strategies_return_the_log_probabilities_of_their_tokens(strategy: Strategy) -> None:
    """Those of head 1, by the pass that training makes; 0 beyond the text."""
    model, params = build("latent", PLAIN)
    features, length = drawn()
    made = jax.device_get(run(model, params, encode(model, params, features, length), strategy))
    hidden, _ = call(
        SpeechLlama.__call__, model, params, features, length, made.tokens, made.length
    )
    expected = jax.nn.log_softmax(call(SpeechLlama.next_token, model, params, hidden))
    expected = np.take_along_axis(np.asarray(expected), made.tokens[..., None], axis=-1)[..., 0]
    real = np.arange(LIMIT) < made.length[:, None]
    assert real.any(axis=1).all() and not made.log_probs[~real].any()
    np.testing.assert_allclose(made.log_probs[real], expected[real], rtol=1e-3, atol=1e-4)


def test_threshold_returns_the_log_probabilities_of_the_heads_that_emitted_its_tokens() -> None:
    model, params = build("latent", PLAIN)
    encoded = encode(model, params, *drawn())
    made = jax.device_get(run(model, params, encoded, Threshold(0.0)))
    hidden, _ = bind_decoder(model, params, encoded).prefill(LIMIT)
    logits = jax.nn.log_softmax(call(SpeechLlama.all_logits, model, params, hidden))
    first = np.arange(LIMIT) < np.minimum(made.length, M)[:, None]  # tokens of the first call
    expected = np.max(np.asarray(logits), axis=-1)
    expected = np.pad(expected, ((0, 0), (0, LIMIT - M)))
    np.testing.assert_allclose(made.log_probs[first], expected[first], rtol=1e-4, atol=1e-5)


def test_aligned_text_stands_where_the_audio_began() -> None:
    """The keys of its tokens are turned by positions that do not count the audio."""
    model, params = build("latent", PLAIN, adaptor=Adaptor(aligned_positions=True))
    plain, _ = build("latent", PLAIN)
    encoded = encode(model, params, *drawn())
    tokens = np.full((ROWS, 3), 4, np.int32)
    count = np.full(ROWS, 3, np.int32)
    for one, position_offset in ((model, encoded.length), (plain, jnp.zeros(ROWS, jnp.int32))):
        _, cache = call(SpeechLlama.prefill, one, params, encoded, LIMIT)
        np.testing.assert_array_equal(cache.position_offset, position_offset)
        _, longer = call(SpeechLlama.extend, one, params, tokens, count, cache)
        np.testing.assert_array_equal(longer.position_offset, position_offset)
        keys = np.asarray(longer.keys[0])  # of the first layer: embedding and position, no context
        for row, frames in enumerate(np.asarray(encoded.length)):
            first = frames + 1  # slot behind BOS
            position = first - position_offset[row]
            expected = _turned(params, 4, np.arange(position, position + 3))
            np.testing.assert_allclose(keys[row, first : first + 3], expected, rtol=1e-4, atol=1e-4)


def _turned(params: Any, token: int, positions: np.ndarray) -> np.ndarray:
    """Keys [S, G H] of the first layer for one token at some positions, step by step."""
    decoder, c = jax.device_get(params["decoder"]), CONFIG.decoder
    x = decoder["embedding"][token]
    x = x / np.sqrt(np.mean(x * x) + c.norm_epsilon)
    x = x * decoder["layers"]["attention_norm"]["scale"][0]
    key = (x @ decoder["layers"]["attention"]["key"]["kernel"][0]).reshape(c.kv_heads, -1)
    half = c.head_size // 2
    angles = positions[:, None, None] / c.rope_theta ** (np.arange(half) / half)
    a, b = key[:, :half], key[:, half:]
    turned = a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)
    return np.concatenate(turned, axis=-1).reshape(len(positions), -1)
