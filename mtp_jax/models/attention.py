"""Attention of every kind, as each platform does it fastest."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from mtp_jax.models.mixed_precision import matmul_by_row

Prompt = tuple[jax.Array, jax.Array] | None  # a layer's keys and values that rows share
_LONG = 256  # frames from which one head's scores no longer stay in a CPU's caches with the others'


def attend(q: jax.Array, k: jax.Array, v: jax.Array, real: jax.Array) -> jax.Array:
    """Softmax attention of all positions to the real ones.

    Args:
        q, k, v: [B, T, N, H].
        real: bool[B, T].

    Returns:
        [B, T, N, H].
    """
    if q.shape[1] < _LONG:
        return _all_heads(q, k, v, real)
    return jax.lax.platform_dependent(q, k, v, real, cpu=_head_by_head, default=_all_heads)


def _all_heads(q: jax.Array, k: jax.Array, v: jax.Array, real: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(q, k, v, mask=real[:, None, None, :])


def _head_by_head(q: jax.Array, k: jax.Array, v: jax.Array, real: jax.Array) -> jax.Array:
    """Several times as fast on two cores, and only one head's scores exist."""

    @jax.checkpoint
    def head(qkv: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v = qkv
        return _one_head(q, k, v, real[:, None])

    by_head = tuple(jnp.moveaxis(x, 2, 0) for x in (q * q.shape[-1] ** -0.5, k, v))
    return jnp.moveaxis(jax.lax.map(head, by_head), 0, 2)


def _one_head(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Of q [B, S, H], k and v [B, T, H] and a mask bool[B, 1 or S, T], queries being scaled."""
    scores = matmul_by_row(q, k, 2, jnp.float32)
    shares = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min))
    return matmul_by_row(shares.astype(q.dtype), v, 1, q.dtype)


def attend_in_groups(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax attention in which G groups of queries have their keys and values each.

    Args:
        q: [B, S, N, H].
        k, v: [B, T, G, H].
        mask: bool[B, S, T], what each position sees.

    Returns:
        [B, S, N, H].
    """
    return jax.lax.platform_dependent(q, k, v, mask, cpu=_group_by_group, default=_of_jax)


def _of_jax(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])


@jax.checkpoint
def _group_by_group(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """1.5 to 1.8 times as fast on two cores, forwards and backwards: few and large products."""
    (rows, width, heads, size), groups = q.shape, k.shape[2]

    def apart(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 1, -2).reshape(rows * groups, -1, size)

    grouped = (q * size**-0.5).reshape(rows, width, groups, heads // groups, size)
    scores = matmul_by_row(apart(grouped), apart(k), 2, jnp.float32)
    scores = scores.reshape(rows, heads, width, -1)
    scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
    shares = jax.nn.softmax(scores).astype(q.dtype).reshape(rows * groups, -1, k.shape[1])
    y = matmul_by_row(shares, apart(v), 1, q.dtype)
    return jnp.moveaxis(y.reshape(rows, heads, width, size), 1, 2)


def attend_with_prompt(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    prompt_keys: jax.Array,
    prompt_values: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    """Attention of rows over a prompt that K of them share, and over what is their own.

    Args:
        q: [B K, S, N, H].
        keys, values: [B K, C, G, H]; `prompt_keys`, `prompt_values`: [B, P, G, H].
        mask: bool[B K, S, P + C].

    Returns:
        [B K, S, N, H].
    """
    (rows, width, heads, size), (prompts, shared, groups, _) = q.shape, prompt_keys.shape
    q = q.reshape(prompts, rows // prompts, width, groups, heads // groups, size) * size**-0.5
    own = (prompts, rows // prompts, *keys.shape[1:])
    scores = jnp.concatenate(
        [
            jnp.einsum("bksgnh,bpgh->bksgnp", q, prompt_keys),
            jnp.einsum("bksgnh,bkcgh->bksgnc", q, keys.reshape(own)),
        ],
        axis=-1,
    ).astype(jnp.float32)
    mask = mask.reshape(prompts, rows // prompts, width, 1, 1, mask.shape[-1])
    shares = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min)).astype(q.dtype)
    y = jnp.einsum("bksgnp,bpgh->bksgnh", shares[..., :shared], prompt_values)
    y += jnp.einsum("bksgnc,bkcgh->bksgnh", shares[..., shared:], values.reshape(own))
    return y.reshape(rows, width, heads, size)


def attend_across(q: jax.Array, keys: jax.Array, values: jax.Array, real: jax.Array) -> jax.Array:
    """Attention of texts to the audio that K of them share.

    Args:
        q: [B K, S, N, H].
        keys: [B, N, H, T]; `values`: [B, N, T, H].
        real: bool[B, T].

    Returns:
        [B K, S, N, H].
    """
    together = q.reshape(len(keys), -1, *q.shape[2:]) * q.shape[-1] ** -0.5
    y = jax.lax.platform_dependent(
        together, keys, values, real, cpu=_across_by_row, default=_across_at_once
    )
    return y.reshape(q.shape)


def _across_at_once(q: jax.Array, keys: jax.Array, values: jax.Array, real: jax.Array) -> jax.Array:
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    weights = _softmax(product("bsnh,bnht->bnst", q, keys), real).astype(q.dtype)
    return product("bnst,bnth->bsnh", weights, values).astype(q.dtype)


def _across_by_row(q: jax.Array, keys: jax.Array, values: jax.Array, real: jax.Array) -> jax.Array:
    """Each head of each row by itself, which a CPU multiplies as it finds it."""
    (rows, width, heads, size), frames = q.shape, keys.shape[-1]
    q = jnp.moveaxis(q, 1, 2)
    scores = matmul_by_row(
        q.reshape(-1, width, size), keys.reshape(-1, size, frames), 1, jnp.float32
    )
    weights = _softmax(scores.reshape(rows, heads, width, frames), real).astype(q.dtype)
    y = matmul_by_row(
        weights.reshape(-1, width, frames), values.reshape(-1, frames, size), 1, q.dtype
    )
    return jnp.moveaxis(y.reshape(rows, heads, width, size), 1, 2)


def _softmax(scores: jax.Array, real: jax.Array) -> jax.Array:
    """Softmax of float32[B, N, S, T] scores over the real frames, bool[B, T]."""
    return jax.nn.softmax(jnp.where(real[:, None, None], scores, jnp.finfo(jnp.float32).min))
