"""Words of token sequences, as numbers on the device: word errors without leaving it."""

from __future__ import annotations

import string

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mtp_jax.tokenizer import Tokenizer
from mtp_jax.tokenizer.base import SPACES

_BASE = 1_000_003  # odd, so that no power of it is 0 modulo 2 ** 32
_DASHES = "-/"  # between two words; an apostrophe belongs to one
_MARKS = str.maketrans("", "", string.punctuation.replace("'", ""))
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


@struct.dataclass
class Spelling:
    """How each token is spelled, by its id, in arithmetic modulo 2 ** 32.

    The hash of a text is the polynomial of its characters at `_BASE`: that of two texts joined is
    ``hash(a) * power(b) + hash(b)``, however they are cut into tokens.

    Attributes:
        hash: uint32[V], of the text without a space before it; 0 of special tokens.
        power: uint32[V], `_BASE` to the number of characters.
        characters: int32[V].
        starts: bool[V], there is a space before it.
    """

    hash: jax.Array
    power: jax.Array
    characters: jax.Array
    starts: jax.Array

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, written: bool = True) -> Spelling:
        """That of a tokenizer's pieces. A space inside a piece counts as a character.

        Args:
            tokenizer: whose pieces they are.
            written: True tells words apart by case and punctuation. False does not, as normalisers
                do not: a piece of dashes alone then parts two words. Only ASCII is looked at, since
                byte-level pieces spell other characters as parts of them.
        """
        special = {tokenizer.bos, tokenizer.eos, tokenizer.pad}
        pieces = ["" if i in special else piece for i, piece in enumerate(tokenizer.pieces)]
        starts = [piece.startswith(tuple(SPACES)) for piece in pieces]
        texts = [piece[start:] for piece, start in zip(pieces, starts, strict=True)]
        if not written:
            dashes = [bool(text) and not text.strip(_DASHES) for text in texts]
            starts = [start or dash for start, dash in zip(starts, dashes, strict=True)]
            texts = [text.translate(_MARKS).translate(_LOWER) for text in texts]
        hashes, powers = np.zeros(len(texts), np.uint32), np.ones(len(texts), np.uint32)
        for i, text in enumerate(texts):
            value, power = 0, 1
            for character in text:
                value = (value * _BASE + ord(character)) % 2**32
                power = power * _BASE % 2**32
            hashes[i], powers[i] = value, power
        return cls(
            hash=jnp.asarray(hashes),
            power=jnp.asarray(powers),
            characters=jnp.array([len(text) for text in texts], jnp.int32),
            starts=jnp.array(starts),
        )


def words(spelling: Spelling, tokens: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Words that tokens spell.

    Args:
        spelling: of the tokens.
        tokens: int32[B, L]; special ones spell nothing.
        length: int32[B].

    Returns:
        uint32[B, L], of each row its words first: the same number for the same word, whatever its
        tokens (two different ones share a number once in some four billion pairs), and their
        int32[B] count.
    """
    real = jnp.arange(tokens.shape[1]) < length[:, None]
    starts = jnp.where(real, spelling.starts[tokens], False).at[:, :1].set(True)

    def spelled(table: jax.Array, empty: int) -> jax.Array:
        return jnp.where(real, table[tokens], jnp.asarray(empty, table.dtype))

    def join(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """Text a and then b; all before the last start of a word is forgotten."""
        joined = (a[0] * b[1] + b[0], a[1] * b[1], a[2] + b[2])
        kept = (jnp.where(b[3], y, x) for x, y in zip(joined, b, strict=False))
        return (*kept, a[3] | b[3])

    parts = (spelled(spelling.hash, 0), spelled(spelling.power, 1), spelled(spelling.characters, 0))
    hashed, _, characters, _ = jax.lax.associative_scan(join, (*parts, starts), axis=1)
    last = jnp.concatenate([starts[:, 1:], jnp.ones_like(starts[:, :1])], axis=1)
    whole = last & (characters > 0)
    slots = jnp.where(whole, jnp.cumsum(whole, axis=1) - 1, tokens.shape[1])
    rows = jnp.arange(tokens.shape[0])[:, None]
    found = jnp.zeros(tokens.shape, jnp.uint32).at[rows, slots].set(hashed, mode="drop")
    return found, jnp.sum(whole, axis=1, dtype=jnp.int32)
