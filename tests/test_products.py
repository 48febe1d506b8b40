"""Products in low precision, and attention head by head."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.models import attention
from mtp_jax.models.mixed_precision import along_rows, matmul, matmul_transposed, take_rows

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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 6, 16, 17, 64, 65])
def test_a_kernel_from_which_few_rows_or_many_are_had(rows, dtype):
    x = jax.random.normal(KEY, (1, rows, 64))
    kernel = jax.random.normal(KEY, (40, 64)).astype(dtype)
    expected = x.astype(dtype).astype(jnp.float32) @ kernel.astype(jnp.float32).T
    made = jax.jit(matmul_transposed)(x, kernel)
    assert made.shape == (1, rows, 40) and made.dtype == jnp.float32
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_of_a_table_and_their_gradient(dtype):
    table, index = jax.random.normal(KEY, (9, 4)).astype(dtype), jnp.array([[3, 0], [8, 3]])
    np.testing.assert_array_equal(take_rows(table, index), table[index])
    weights = jnp.arange(16.0).reshape(2, 2, 4).astype(dtype)
    ours, theirs = (
        jax.grad(lambda table, take=take: jnp.sum(take(table) * weights))(table)
        for take in (lambda table: take_rows(table, index), lambda table: table[index])
    )
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, theirs)


def test_a_loop_looks_rows_up_without_a_copy_of_the_table_in_float32():
    def texts(table: jax.Array, first: jax.Array) -> jax.Array:
        def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            row = take_rows(table, state[1]).astype(jnp.float32)
            return state[0] + 1, jnp.argmax(row, axis=-1).astype(jnp.int32)

        return jax.lax.while_loop(lambda state: state[0] < 9, step, (jnp.int32(0), first))[1]

    given = jnp.ones((4096, 8), jnp.bfloat16), jnp.array([3, 5])
    # It may stand within a fusion, which makes only what is looked at.
    for line in jax.jit(texts).lower(*given).compile().as_text().splitlines():
        assert "f32[4096,8]" not in line or "parameter" in line or "%convert" in line, line


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


def test_the_gradient_of_a_frozen_kernel_is_not_computed():
    """In a loop over layers, which XLA does not see through."""
    x = jnp.ones((2, 5, 8), jnp.bfloat16)
    kernels, scales = jnp.ones((3, 8, 8)), jnp.ones((3, 8))

    def loss(kernels: jax.Array, scales: jax.Array) -> jax.Array:
        def layer(x: jax.Array, both: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            return matmul(x * both[1].astype(x.dtype), both[0]), None

        y, _ = jax.lax.scan(layer, x, (kernels, scales))
        return jnp.sum(y.astype(jnp.float32))

    def products(argument: int) -> int:
        text = str(jax.make_jaxpr(jax.grad(loss, argument))(kernels, scales))
        return text.count(":f32[8,8] = dot_general")

    assert products(0) == 1
    assert products(1) == 0
    gradient = jax.grad(loss, 1)(kernels, scales)
    assert gradient.shape == scales.shape and (gradient != 0).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_vector_along_rows_is_a_broadcast_whose_gradient_adds_up_in_float32(dtype):
    vector, x = jnp.arange(3.0), jnp.ones((4, 1024, 3), dtype)

    def loss(vector: jax.Array, x: jax.Array) -> jax.Array:
        y = x * along_rows(vector, x.shape, x.dtype)
        return jnp.sum(y, dtype=jnp.float32)

    assert loss(vector, x) == 3 * 4096
    of_vector, of_x = jax.grad(loss, (0, 1))(vector, x)
    assert of_vector.dtype == jnp.float32 and of_x.dtype == dtype
    np.testing.assert_array_equal(of_vector, np.full(3, 4096.0))
    np.testing.assert_array_equal(of_x, np.broadcast_to(np.arange(3.0), x.shape))


def test_the_gradient_of_a_frozen_vector_is_not_computed():
    x, vectors = jnp.ones((2, 5, 8)), jnp.ones((3, 8))

    def loss(x: jax.Array, vectors: jax.Array) -> jax.Array:
        y, _ = jax.lax.scan(lambda y, v: (y * along_rows(v, y.shape, y.dtype), None), x, vectors)
        return jnp.sum(y)

    text = [str(jax.make_jaxpr(jax.grad(loss, i))(x, vectors)) for i in (0, 1)]
    assert ["dot_general" in t for t in text] == [False, True]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_in_groups_is_that_of_jax_and_so_are_its_gradients(dtype):
    keys = jax.random.split(KEY, 4)
    q, weights = jax.random.normal(keys[0], (2, 2, 9, 6, 4)).astype(dtype)
    k, v = jax.random.normal(keys[1], (2, 2, 9, 3, 4)).astype(dtype)
    real = jnp.arange(9) < jnp.array([[9], [5]])
    mask = jnp.tril(jnp.ones((9, 9), bool)) & real[:, None]

    def value(attention_of: Callable[..., jax.Array], *qkv: jax.Array) -> jax.Array:
        return jnp.sum((attention_of(*qkv, mask) * weights).astype(jnp.float32))

    got, expected = (
        jax.jit(jax.value_and_grad(functools.partial(value, f), (0, 1, 2)))(q, k, v)
        for f in (attention.attend_in_groups, attention._of_jax)
    )
    near = {"float32": 1e-5, "bfloat16": 0.05}[dtype]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a.astype(jnp.float32), b.astype(jnp.float32), rtol=near, atol=near
        ),
        got,
        expected,
    )
