"""Matrix products in low precision that add up in float32, forwards and backwards."""

from __future__ import annotations

import jax
import jax.numpy as jnp


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
    return _low_precision(x, kernel)


@jax.custom_vjp
def _low_precision(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _product(x, kernel.astype(x.dtype), (x.ndim - 1,), (0,)).astype(x.dtype)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _low_precision(x, kernel), (x, kernel)


def _backward(
    saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    last, rows = (x.ndim - 1,), tuple(range(x.ndim - 1))
    of_x = _product(cotangent, kernel.astype(x.dtype), last, (1,)).astype(x.dtype)
    return of_x, _product(x, cotangent, rows, rows).astype(kernel.dtype)


_low_precision.defvjp(_forward, _backward)


def _product(
    a: jax.Array, b: jax.Array, axes_of_a: tuple[int, ...], axes_of_b: tuple[int, ...]
) -> jax.Array:
    # The axes of a batch stay apart: a TPU pads each to its tiles, and joining them copies.
    axes = ((axes_of_a, axes_of_b), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)
