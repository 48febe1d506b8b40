"""Products in low precision, and attention head by head."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.nn import attention
from mtp_jax.nn.products import matmul

KEY = jax.random.key(0)


def test_float32_is_a_plain_product():
    x, kernel = jax.random.normal(KEY, (2, 3, 8)), jax.random.normal(KEY, (8, 5))
    np.testing.assert_array_equal(matmul(x, kernel), x @ kernel)


def test_bfloat16_adds_up_in_float32_and_so_does_the_gradient_of_the_kernel():
    rows = 4096  # adding 1 to 4096 changes nothing in bfloat16, which holds 8 bits
    x, kernel = jnp.ones((2, rows // 2, 1), jnp.bfloat16), jnp.ones((1, 1))
    gradient = jax.grad(lambda kernel: jnp.sum(matmul(x, kernel).astype(jnp.float32)))(kernel)
    assert gradient.dtype == jnp.float32 and gradient.item() == rows
    long = jnp.ones((1, rows + 8), jnp.bfloat16)
    y = matmul(long, jnp.ones((rows + 8, 1)))
    assert y.dtype == jnp.bfloat16 and y.item() == jnp.bfloat16(rows + 8)


def test_bfloat16_gradients_are_those_of_float32_up_to_rounding():
    keys = jax.random.split(KEY, 3)
    x, kernel, weights = (
        jax.random.normal(key, shape)
        for key, shape in zip(keys, ((2, 7, 16), (16, 5), (2, 7, 5)), strict=True)
    )

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(matmul(x, kernel).astype(jnp.float32) * weights)

    low = jax.grad(loss, (0, 1))(x.astype(jnp.bfloat16), kernel)
    full = jax.grad(loss, (0, 1))(x, kernel)
    assert low[0].dtype == jnp.bfloat16
    for ours, theirs in zip(low, full, strict=True):
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("frames", [7, attention._LONG])
def test_attention_is_that_of_jax_and_so_are_its_gradients(frames):
    q, k, v, weights = jax.random.normal(KEY, (4, 2, frames, 3, 4))
    real = jnp.arange(frames) < jnp.array([[frames], [frames - 5]])

    def ours(*qkv: jax.Array) -> jax.Array:
        return jnp.sum(attention.attend(*qkv, real) * weights)

    def theirs(*qkv: jax.Array) -> jax.Array:
        return jnp.sum(jax.nn.dot_product_attention(*qkv, mask=real[:, None, None]) * weights)

    got, expected = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(q, k, v) for f in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)
