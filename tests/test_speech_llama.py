"""The recogniser as a whole: what each position sees, and that padding is not seen at all."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.config import Config, Decoder, Encoder, FrontEnd, Heads
from mtp_jax.models.recogniser import Vocabulary, call
from mtp_jax.models.speech_llama import SpeechLlama
from tests.contracts import draw_params, quick_jit

B, T, Z, L, V = 3, 12, 4, 6, 9
CONFIG = Config(
    front_end=FrontEnd(mel_bins=Z),
    encoder=Encoder(
        subsampling=(2,), subsampling_kernel=3, width=8, layers=1, heads=2, feedforward=2, kernel=3
    ),
    decoder=Decoder(width=8, layers=2, query_heads=2, kv_heads=1, head_size=4, feedforward=12),
    heads=Heads("latent", 3),
)
PROMPTED = SpeechLlama(CONFIG, Vocabulary(V, 1, 2, prompt_before=(5, 6), prompt_after=(7,)))
PLAIN = dataclasses.replace(PROMPTED, vocabulary=Vocabulary(V, bos=1, eos=2))
LENGTHS, TOKEN_LENGTHS = np.array([12, 5, 0]), np.array([6, 3, 0])


def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(3, V, (B, L)).astype(np.int32)


def features(frames: int = T, padding: float = np.nan) -> np.ndarray:
    """The same real frames whatever `frames` and `padding`."""
    x = np.full((B, frames, Z), padding, np.float32)
    real = np.random.default_rng(1).normal(size=(B, T, Z))
    for row, length in enumerate(LENGTHS):
        x[row, :length] = real[row, :length]
    return x


@functools.cache
def params():
    return draw_params(PROMPTED, features(), LENGTHS, tokens(), TOKEN_LENGTHS, seed=2)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, x, length, tokens, token_length):
    return call(SpeechLlama.__call__, model, params(), x, length, tokens, token_length)


def test_a_position_sees_the_tokens_before_it_and_no_other():
    """Hidden state i feeds the prediction of token i: it sees tokens 0 to i - 1."""
    length, full = np.full(B, T), np.full(B, L)
    x = features(padding=0.0)
    hidden, _ = forward(PROMPTED, x, length, tokens(), full)
    assert hidden.shape == (B, L, 8)
    for j in range(L):
        changed = tokens()
        changed[:, j] = (changed[:, j] - 2) % (V - 3) + 3
        assert np.all(changed[:, j] != tokens()[:, j])
        other, _ = forward(PROMPTED, x, length, changed, full)
        np.testing.assert_array_equal(other[:, : j + 1], hidden[:, : j + 1])
        assert np.all(np.abs(other - hidden)[:, j + 1 :].max(-1) > 1e-4)


def test_every_position_sees_the_audio_and_rows_do_not_see_each_other():
    length, full = np.full(B, T), np.full(B, L)
    hidden, _ = forward(PROMPTED, features(padding=0.0), length, tokens(), full)
    changed = features(padding=0.0)
    changed[0, -1] += 1
    other, _ = forward(PROMPTED, changed, length, tokens(), full)
    assert np.all(np.abs(other - hidden)[0].max(-1) > 1e-4)
    np.testing.assert_array_equal(other[1:], hidden[1:])


@pytest.mark.parametrize("model", [PLAIN, PROMPTED], ids=["plain", "prompted"])
def test_the_layout_is_prompt_audio_prompt_bos_text(model):
    """A row written out by hand without padding, through the decoder alone."""
    hidden, encoded = forward(model, features(), LENGTHS, tokens(), TOKEN_LENGTHS)
    np.testing.assert_array_equal(encoded.length, [6, 3, 0])
    assert np.all(np.isfinite(hidden))
    before, after = model.vocabulary.prompt_before, model.vocabulary.prompt_after

    def through_decoder(model, audio, text):
        def embed(ids):
            return model.decoder.embed(jnp.array(ids, jnp.int32))

        x = jnp.concatenate([embed(before), audio, embed((*after, 1)), embed(text)])[None]
        return model.decoder(x, jnp.ones(x.shape[:2], bool))[0]

    row = 1  # whose audio and text are both padded
    audio = encoded.audio[row, : encoded.length[row]]
    text = tokens()[row, : TOKEN_LENGTHS[row] - 1]
    alone = jax.jit(nn.apply(through_decoder, model))({"params": params()}, audio, text)
    prefix = len(before) + len(audio) + len(after)
    got = hidden[row, : TOKEN_LENGTHS[row]]
    np.testing.assert_allclose(got, alone[0, prefix:], rtol=1e-5, atol=1e-5)


def test_prefill_and_extend_equal_the_full_pass():
    hidden, encoded = forward(PROMPTED, features(), LENGTHS, tokens(), np.full(B, L))
    count = np.array([L - 1, 2, 0])

    @jax.jit
    def over_the_cache(encoded):
        first, cache = call(SpeechLlama.prefill, PROMPTED, params(), encoded, L)
        fed = (tokens()[:, : L - 1], count, cache)
        return first, cache.length, *call(SpeechLlama.extend, PROMPTED, params(), *fed)

    first, length, states, cache = over_the_cache(encoded)
    np.testing.assert_array_equal(length, encoded.length + 4)  # prompts and BOS
    np.testing.assert_allclose(first, hidden[:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(cache.length, length + count)
    for row in range(B):
        np.testing.assert_allclose(
            states[row, : count[row]], hidden[row, 1 : 1 + count[row]], rtol=1e-5, atol=1e-5
        )


def test_padding_of_audio_and_text_is_invisible():
    expected, _ = forward(PROMPTED, features(padding=0.0), LENGTHS, tokens(), TOKEN_LENGTHS)
    garbage = tokens()
    for row, length in enumerate(TOKEN_LENGTHS):
        garbage[row, length:] = 0
    longer, _ = forward(PROMPTED, features(T + 5), LENGTHS, garbage, TOKEN_LENGTHS)
    for row, length in enumerate(TOKEN_LENGTHS):
        np.testing.assert_allclose(
            longer[row, :length], expected[row, :length], rtol=1e-5, atol=1e-5
        )


def test_gradients_do_not_see_padding():
    """NaN beyond the audio leaves them finite, the same, and zero there; so does an empty row."""

    @quick_jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients(params, x):
        hidden, encoded = call(
            SpeechLlama.__call__, PROMPTED, params, x, LENGTHS, tokens(), TOKEN_LENGTHS
        )
        real = np.arange(L) < TOKEN_LENGTHS[:, None]
        frames = jnp.arange(encoded.ctc_logits.shape[1]) < encoded.length[:, None]
        logits = call(SpeechLlama.all_logits, PROMPTED, params, hidden)
        loss = jnp.sum(jnp.where(real[..., None, None], jax.nn.log_softmax(logits), 0)[..., 2])
        ctc = jax.nn.log_softmax(encoded.ctc_logits)[..., 2]
        return loss + jnp.sum(jnp.where(frames, ctc, 0))

    clean, clean_x = gradients(params(), features(padding=0.0))
    dirty, dirty_x = gradients(params(), features())
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    np.testing.assert_array_equal(dirty_x, clean_x)
    padding = np.arange(T) >= LENGTHS[:, None]
    assert not np.any(dirty_x[padding])
    assert np.all(np.any(np.asarray(dirty_x) != 0, -1)[~padding])
    for path, gradient in jax.tree_util.tree_leaves_with_path(dirty):
        assert np.all(np.isfinite(gradient)), path
        assert np.any(gradient), path  # every parameter takes part


def test_ctc_has_a_class_more_than_the_vocabulary():
    _, encoded = forward(PLAIN, features(), LENGTHS, tokens(), TOKEN_LENGTHS)
    assert encoded.ctc_logits.shape == (B, T // 2, V + 1)
    assert encoded.audio.shape == (B, T // 2, CONFIG.decoder.width)
