"""Matrix products in low precision that add up in float32, forwards and backwards."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_ROWS_BY_COLUMNS = (((1,), (0,)), ((), ()))
_ROWS_BY_ROWS = (((1,), (1,)), ((), ()))
_COLUMNS_BY_COLUMNS = (((0,), (0,)), ((), ()))


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel in the type of `x`.

    In bfloat16 the sums are float32, and so is the gradient of the kernel, however long the batch
    it is summed over. (That is also what lets XLA use a CPU's bfloat16 matrix units: a plain
    product is seven times slower there.)

    Args:
        x: [..., I].
        kernel: [I, O], of any type.

    Returns:
        [..., O].
    """
    if x.dtype == jnp.float32:
        return x @ kernel.astype(x.dtype)
    return _low_precision(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _low_precision(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _product(x, kernel.astype(x.dtype), _ROWS_BY_COLUMNS).astype(x.dtype)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _low_precision(x, kernel), (x, kernel)


def _backward(
    saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    of_x = _product(cotangent, kernel.astype(x.dtype), _ROWS_BY_ROWS).astype(x.dtype)
    return of_x, _product(x, cotangent, _COLUMNS_BY_COLUMNS).astype(kernel.dtype)


_low_precision.defvjp(_forward, _backward)


def _product(a: jax.Array, b: jax.Array, axes: jax.lax.DotDimensionNumbers) -> jax.Array:
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)
