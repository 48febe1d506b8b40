"""Matrix products in low precision that add up in float32, forwards and backwards."""

from __future__ import annotations

import functools
import pathlib
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from mtp_jax.models.params import is_int8

# Rows up to which a CPU takes less time if the kernel comes first: for 8 rows 0.6 to 0.7 of it.
_FEW_ROWS = {"float32": 64, "bfloat16": 16}
_TILE = 16  # rows up to which float32 takes less time for the next power of two


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether this machine's CPU has matrix units for bfloat16 (AMX)."""
    try:
        return " amx_bf16" in pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux
        return False


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel in the type of `x`.

    In bfloat16 the sums are float32, and so is the gradient of the kernel, however long the batch
    it is summed over. (That is also what lets XLA use a CPU's bfloat16 matrix units: a plain
    product is seven times slower there.)

    Args:
        x: [..., I].
        kernel: [I, O], of any type, or in int8.

    Returns:
        [..., O].
    """
    if is_int8(kernel):
        return _int8_product(x, kernel, 0).astype(x.dtype)
    if x.dtype == jnp.float32:
        return x @ kernel.astype(x.dtype)
    return _low_precision(x, kernel)


def matmul_transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel.T in the lower precision of both, whose sums are float32.

    A CPU multiplies a few rows by this kernel in half the time that it takes by the kernel of
    `matmul`, and two rows in bfloat16 in a fraction of the time that it takes for one.

    Args:
        x: [..., I].
        kernel: [O, I], of any type, or in int8.

    Returns:
        float32[..., O].
    """
    if is_int8(kernel):
        return _int8_product(x, kernel, 1)
    dtype = x.dtype if kernel.dtype == jnp.float32 else kernel.dtype
    rows = x.reshape(-1, x.shape[-1]).astype(dtype)
    count = len(rows)
    if count == 1 and dtype != jnp.float32:
        rows = jnp.pad(rows, ((0, 1), (0, 0)))
    product = _rows_first
    if len(rows) > 1 and count <= _FEW_ROWS.get(dtype.name, 0):
        product = functools.partial(
            jax.lax.platform_dependent, cpu=_kernel_first, default=_rows_first
        )
    y = product(rows, kernel.astype(dtype))[:count]
    return y.reshape(*x.shape[:-1], -1)


def _rows_first(rows: jax.Array, kernel: jax.Array) -> jax.Array:
    return _product(rows, kernel, (1,), (1,))


def _kernel_first(rows: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same. A CPU copies the second operand into blocks: better the few rows than the kernel.

    Without the barrier XLA would exchange the operands again.
    """
    count = len(rows)
    if rows.dtype == jnp.float32 and count <= _TILE:
        rows = jnp.pad(rows, ((0, (1 << (count - 1).bit_length()) - count), (0, 0)))
    return jax.lax.optimization_barrier(_product(kernel, rows, (1,), (1,))).T[:count]


def _int8_product(x: jax.Array, kernel: Any, axis: int) -> jax.Array:
    """float32[..., O], of a kernel in int8 whose `axis` is that of I.

    A TPU's compiler reads the kernel as int8 and converts what it has read. bfloat16 holds each of
    the 255 numbers, so that nothing is rounded but `x`. (`qwix.dot_general` would multiply the
    kernel by its scales first: one more rounding, and for a prompt a copy of the kernel.)
    """
    y = _product(x, kernel.qvalue.astype(x.dtype), (x.ndim - 1,), (axis,))
    return y * kernel.scale.reshape(-1)


def take_rows(table: jax.Array, index: jax.Array) -> jax.Array:
    """The rows [..., D] of `table` [V, D], which may be in int8, at int32[...] `index`.

    A CPU gathers float32 only, and XLA moves the conversion of the whole table out of a loop, where
    it takes as long as a few decoder calls. Behind the barrier the table depends on the index,
    so that the conversion stays within the gather, which converts the rows alone.
    """
    if is_int8(table):
        rows: Any = jax.tree.map(lambda x: take_rows(x, index), table)
        return cast(jax.Array, rows.qvalue * rows.scale)
    if table.dtype in (jnp.bfloat16, jnp.int8):
        table, index = jax.lax.optimization_barrier((table, index))
    return jnp.take(table, index, axis=0)


def mean_of_rows(weights: jax.Array, table: jax.Array) -> jax.Array:
    """[..., D] sums of the rows of `table` [V, D], which may be in int8, by `weights` [..., V]."""
    if is_int8(table):
        quantized: Any = table
        weights, table = weights * quantized.scale[:, 0].astype(weights.dtype), quantized.qvalue
    return weights @ table.astype(weights.dtype)


@jax.custom_vjp
def _low_precision(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _product(x, kernel.astype(x.dtype), (x.ndim - 1,), (0,)).astype(x.dtype)


def _forward(x: Any, kernel: Any) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array]]:
    # A frozen kernel needs no gradient, and a loop over layers would not find out by itself.
    kept = x.value if kernel.perturbed else None
    return _low_precision(x.value, kernel.value), (kept, kernel.value)


def _backward(
    saved: tuple[jax.Array | None, jax.Array], cotangent: Any
) -> tuple[jax.Array, jax.Array | None]:
    x, kernel = saved
    cotangent = materialised(cotangent)
    last, rows = (cotangent.ndim - 1,), tuple(range(cotangent.ndim - 1))
    of_x = _product(cotangent, kernel.astype(cotangent.dtype), last, (1,)).astype(cotangent.dtype)
    return of_x, None if x is None else _product(x, cotangent, rows, rows).astype(kernel.dtype)


_low_precision.defvjp(_forward, _backward, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def along_rows(vector: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """`vector` [D] in every row of `shape` [..., D].

    Its gradient adds up over the rows in float32; on a CPU as a product with ones, as that takes
    several times as long for a sum over any axis but the last.
    """
    return jnp.broadcast_to(vector.astype(dtype), shape)


def _along_forward(vector: Any, shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[jax.Array, Any]:
    kept = vector.value if vector.perturbed else None
    return along_rows(vector.value, shape, dtype), kept


def _along_backward(
    shape: tuple[int, ...], dtype: jnp.dtype, vector: jax.Array | None, cotangent: Any
) -> tuple[jax.Array | None]:
    if vector is None:
        return (None,)
    rows, cotangent = tuple(range(len(shape) - 1)), materialised(cotangent)

    def as_product(x: jax.Array) -> jax.Array:
        return _product(jnp.ones(shape[:-1], dtype), x, rows, rows)

    def as_sum(x: jax.Array) -> jax.Array:
        return jnp.sum(x, axis=rows, dtype=jnp.float32)

    total = jax.lax.platform_dependent(cotangent, cpu=as_product, default=as_sum)
    return (total.astype(vector.dtype),)


along_rows.defvjp(_along_forward, _along_backward, symbolic_zeros=True)


def materialised(cotangent: Any) -> jax.Array:
    """A cotangent that may be a symbolic zero, as an array."""
    if isinstance(cotangent, SymbolicZero):
        return jnp.zeros(cotangent.shape, cotangent.dtype)
    return jnp.asarray(cotangent)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def matmul_by_row(a: jax.Array, b: jax.Array, axis: int, dtype: jnp.dtype) -> jax.Array:
    """The product of each [S, I] matrix of `a` with one of `b`, whose sums are float32.

    Args:
        a: [N, S, I].
        b: [N, I, O] or [N, O, I].
        axis: of `b` where I is, 1 or 2.
        dtype: of the result, [N, S, O]. That of a gradient is its operand's, and so is that of the
            cotangent which goes into it.
    """
    return _product(a, b, (2,), (axis,), batched=True).astype(dtype)


def _by_row_forward(
    a: jax.Array, b: jax.Array, axis: int, dtype: jnp.dtype
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul_by_row(a, b, axis, dtype), (a, b)


def _by_row_backward(
    axis: int, dtype: jnp.dtype, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a, b = saved
    cotangent = cotangent.astype(a.dtype)
    of_a = _product(cotangent, b, (2,), (3 - axis,), batched=True)
    pair = (a, cotangent) if axis == 1 else (cotangent, a)
    of_b = _product(*pair, (1,), (1,), batched=True)
    return of_a.astype(a.dtype), of_b.astype(b.dtype)


matmul_by_row.defvjp(_by_row_forward, _by_row_backward)


def _product(
    a: jax.Array,
    b: jax.Array,
    axes_of_a: tuple[int, ...],
    axes_of_b: tuple[int, ...],
    batched: bool = False,
) -> jax.Array:
    # The axes of a batch stay apart: a TPU pads each to its tiles, and joining them copies.
    rows = ((0,), (0,)) if batched else ((), ())
    axes = ((axes_of_a, axes_of_b), rows)
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)
