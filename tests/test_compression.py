"""CTC compression against a plain loop; padding invisible; the prompt reads what CTC reads."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtp_jax.config import Adaptor, Config, ConfigError, Decoder, Encoder, FrontEnd, Heads, Loss
from mtp_jax.models.ctc_compression import label_posteriors, label_weights
from mtp_jax.models.initialization import init_params
from mtp_jax.models.layers import zero_padding
from mtp_jax.models.recogniser import Vocabulary, call
from mtp_jax.models.speech_llama import SpeechLlama

T, D, CLASSES = 7, 3, 3
BLANK = CLASSES - 1


def one_hot(labels):
    return np.eye(CLASSES, dtype=np.float32)[np.array(labels)]


def slowly(x, labels, length):
    """Averages of one row: label by label, frame by frame."""
    groups, found, before = [[]], 0, BLANK
    for t in range(length):
        if labels[t] not in (BLANK, before):
            found += 1
            if found > 1:
                groups.append([])
        groups[-1].append(x[t])
        before = labels[t]
    return [np.mean(group, axis=0) for group in groups if group]


rows = st.tuples(st.lists(st.integers(0, CLASSES - 1), min_size=T, max_size=T), st.integers(0, T))


@jax.jit
def compress(x, logits, length):
    share, count = label_weights(logits, length)
    real = jnp.arange(T) < length[:, None]
    return share @ zero_padding(x, real), count


@settings(max_examples=60, deadline=None)
@given(st.tuples(rows, rows))
def test_it_averages_the_frames_of_each_label(batch):
    labels, lengths = zip(*batch, strict=True)
    x = np.random.default_rng(0).normal(size=(2, T, D)).astype(np.float32)
    padded = np.where(np.arange(T)[:, None] < np.array(lengths)[:, None, None], x, np.nan)
    averages, count = compress(padded, one_hot(labels), np.array(lengths))
    assert np.isfinite(averages).all()
    for row in range(2):
        expected = slowly(x[row], labels[row], lengths[row])
        assert count[row] == len(expected)
        np.testing.assert_allclose(
            averages[row, : count[row]], np.reshape(expected, (-1, D)), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_array_equal(averages[row, count[row] :], 0)


def test_one_average_for_each_label_that_ctc_finds():
    labels = [[BLANK, 0, 0, BLANK, 0, 1, BLANK], [BLANK] * T, [1, 0, 1, 0, 1, 0, 1]]
    _, count = compress(np.zeros((3, T, D), np.float32), one_hot(labels), np.array([7, 7, 5]))
    assert count.tolist() == [3, 1, 5]


def test_labels_without_room_count_as_part_of_the_last():
    labels, length = one_hot([[0, 1, 0, BLANK, 0, 1, BLANK]]), np.array([6])
    share, count = label_weights(labels, length, 3)
    assert share.shape == (1, 3, T) and count.tolist() == [3]
    whole, _ = label_weights(labels, length)
    np.testing.assert_array_equal(share[:, :2], whole[:, :2])
    np.testing.assert_allclose(share[0, 2], [0, 0, 0.25, 0.25, 0.25, 0.25, 0])
    np.testing.assert_array_equal(label_weights(labels, length, 5)[0], whole[:, :5])


def test_what_ctc_reads_does_not_depend_on_how_long_it_lasts():
    for labels in ([0, 1, 0], [0, 0, BLANK, BLANK, 1, BLANK, 0]):
        logits = 30 * one_hot([labels + [1] * (T - len(labels))])
        logits[:, len(labels) :] = np.nan
        share, _ = label_weights(logits, np.array([len(labels)]))
        odds = label_posteriors(logits, np.array([len(labels)]), share)
        np.testing.assert_allclose(odds[0, :3], [[1, 0], [0, 1], [1, 0]], atol=1e-6)
        np.testing.assert_array_equal(odds[0, 3:], 0)


def test_gradients_are_shared_out_over_a_label():
    labels, length = one_hot([[2, 2, 0, 2, 1, 1, 1]]), np.array([6])
    weights = np.arange(T * D, dtype=np.float32).reshape(1, T, D)

    def value(x, logits):
        return jnp.sum(weights * compress(x, logits, length)[0])

    of_x, of_logits = jax.grad(value, argnums=(0, 1))(np.ones((1, T, D), np.float32), labels)
    np.testing.assert_array_equal(of_logits, 0)
    expected = [*weights[0, [0, 0, 0, 0]] / 4, *weights[0, [1, 1]] / 2, np.zeros(D)]
    np.testing.assert_allclose(of_x[0], expected, rtol=1e-6)


def test_the_prompt_holds_the_embeddings_of_what_ctc_reads():
    config = Config(
        front_end=FrontEnd(mel_bins=6),
        encoder=Encoder(subsampling=(4,), width=8, layers=1, heads=2, feedforward=1, kernel=3),
        adaptor=Adaptor(ctc_compression=True),
        decoder=Decoder(width=8, layers=1, query_heads=2, kv_heads=1, head_size=4, feedforward=8),
        heads=Heads(count=1),
    )
    model = SpeechLlama(config, Vocabulary(5, 1, 2))
    params = nn.unbox(init_params(model, jax.random.key(0)))
    # CTC that says 3 whatever it hears, and an adaptor that adds nothing.
    bias = np.array([0, 0, 0, 50, 0, 0], np.float32)
    params["ctc"] = {"kernel": jnp.zeros_like(params["ctc"]["kernel"]), "bias": bias}
    params["adaptor"] = jax.tree.map(jnp.zeros_like, params["adaptor"])
    features = np.random.default_rng(0).normal(size=(2, 12, 6)).astype(np.float32)
    encoded = call(SpeechLlama.encode, model, params, features, np.array([12, 5]))
    assert encoded.length.tolist() == [1, 1]
    assert encoded.ctc_length.tolist() == [3, 2]
    for row in encoded.audio:
        np.testing.assert_allclose(row[0], params["decoder"]["embedding"][3], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(row[1:], 0)


def test_it_needs_a_ctc_loss():
    with pytest.raises(ConfigError, match=r"config\.adaptor\.ctc_compression needs"):
        Config(adaptor=Adaptor(ctc_compression=True), loss=Loss(ctc=0))
