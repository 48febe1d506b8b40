"""CTC compression against a plain loop; padding and neighbours invisible; gradients of averages."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtp_jax.config import Adaptor, Config, ConfigError, Loss
from mtp_jax.nn.compression import compress

T, D, CLASSES = 6, 3, 3
compress = jax.jit(compress)


def one_hot(labels):
    return np.eye(CLASSES, dtype=np.float32)[np.array(labels)]


def slowly(x, labels, length):
    """Averages of the runs of one row."""
    runs = itertools.groupby(range(length), key=lambda t: labels[t])
    return [np.mean([x[t] for t in run], axis=0) for _, run in runs]


rows = st.tuples(st.lists(st.integers(0, CLASSES - 1), min_size=T, max_size=T), st.integers(0, T))


@settings(max_examples=60, deadline=None)
@given(st.tuples(rows, rows))
def test_it_averages_each_run_of_like_labels(batch):
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


def test_gradients_are_shared_out_over_a_run():
    labels, length = one_hot([[2, 2, 2, 0, 2, 1]]), np.array([5])
    weights = np.arange(T * D, dtype=np.float32).reshape(1, T, D)

    def value(x, logits):
        return jnp.sum(weights * compress(x, logits, length)[0])

    of_x, of_logits = jax.grad(value, argnums=(0, 1))(np.ones((1, T, D), np.float32), labels)
    np.testing.assert_array_equal(of_logits, 0)
    expected = [*(weights[0, [0, 0, 0]] / 3), weights[0, 1], weights[0, 2], np.zeros(D)]
    np.testing.assert_allclose(of_x[0], expected, rtol=1e-6)


def test_it_needs_a_ctc_loss():
    with pytest.raises(ConfigError, match=r"config\.adaptor\.ctc_compression needs"):
        Config(adaptor=Adaptor(ctc_compression=True), loss=Loss(ctc=0))
