"""The multi-token heads: head m predicts, from one hidden state, the token m places ahead.

Head 1 is the decoder's own LM head and has no parameters here. Two kinds are those of the paper
(arXiv 2409.08148): *independent* heads are D x V projections of their own; *latent* heads are D x D
maps followed by the shared un-embedding. *Residual* heads are those of Medusa (arXiv 2401.10774):
the state itself and behind it the SiLU of a D x D map, then the un-embedding. All start equal to
the LM head (our reading of the paper): independent heads as copies of it, latent maps as the
identity, residual ones at zero. *Serial* heads, of a finished model, have one block in common,
which is run once for each (`mtp_jax.models.serial_block`, `mtp_jax.models.speech_llm_heads`).
Latent and independent heads that are added to a finished model and are not detached start with
logits of zero (`mtp_jax.training.initialization`). Beyond the paper, decoder layers of their own
may stand before them, and they may draft but the tokens that occur often (as in FR-Spec, arXiv
2502.14856), as a wrong draft costs one more call and changes no token.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtp_jax import config as configs
from mtp_jax.models.decoders.layout import layer_name
from mtp_jax.models.decoders.llama import Carry, run_layers, scaled
from mtp_jax.models.kv_cache import CrossCache
from mtp_jax.models.layers import RMSNorm, parameter
from mtp_jax.models.mixed_precision import matmul_transposed

DRAFT_TOKENS = "heads/tokens"  # path of the parameter that names them, which nothing trains


def _identity(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    del key
    return jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), shape)


def _first_tokens(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    del key
    return jnp.arange(shape[0], dtype=jnp.int32)


class Projection(NamedTuple):
    """Some heads whose logits are ``states @ kernel.T``.

    Attributes:
        heads: which of heads 1..M, counted from 0.
        states: [m, ..., D], one per head.
        kernel: [V, D], or [N, D] of the `tokens` alone.
        tokens: int32[N]; None for all.
    """

    heads: slice
    states: jax.Array
    kernel: jax.Array
    tokens: jax.Array | None = None


class Heads(nn.Module):
    """Logits of heads 2..M, over all V tokens or over the N that they draft.

    Attributes:
        config: kind, M, layers and N.
        decoder: what these are like; its width is D.
        vocab_size: V.
        dtype: of the products.
    """

    config: configs.Heads
    decoder: Any
    vocab_size: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        c, width = self.config, self.decoder.width
        if c.count == 1:
            return
        if c.own_states:
            self.norm = self.make_norm()
        if c.vocabulary:
            self.tokens = parameter(self, "tokens", _first_tokens, (None,), (c.vocabulary,))
        square, zeros = (c.count - 1, width, width), nn.initializers.zeros
        if c.serial:
            return
        if c.kind == "latent":
            self.kernel = parameter(self, "kernel", _identity, (None, "embed", None), square)
        elif c.kind == "residual":
            self.kernel = parameter(self, "kernel", zeros, (None, "embed", None), square)
            self.bias = parameter(self, "bias", zeros, (None, None), square[:2])
        else:  # the copy of the LM head is made by `start_as_lm_head`, once that exists
            shape = (*square[:2], c.vocabulary or self.vocab_size)
            self.kernel = parameter(self, "kernel", zeros, (None, "embed", "vocab"), shape)

    def make_norm(self) -> nn.Module:
        """Behind their layers."""
        return RMSNorm(self.decoder.norm_epsilon, self.dtype)

    @nn.compact
    def run(self, deterministic: bool, carry: Carry, *given: Any) -> Carry:
        """Runs the layers, and a norm, behind those of the decoder: `run_above` of `Llama`.

        Serial heads have the norm behind each step instead.
        """
        own = dataclasses.replace(self.decoder, lora=configs.Lora())
        places = range(own.layers, own.layers + self.config.layers)
        laid_out = self.has_variable("params", layer_name(0))
        carry = (self.alone(carry[0]), *carry[1:])
        if places:
            carry = run_layers(own, self.dtype, deterministic, laid_out, places, carry, *given)
        x, keys, values = carry
        return x if self.config.serial else self.normed(x), keys, values

    def normed(self, state: jax.Array) -> jax.Array:
        """What is un-embedded of their states [..., D]."""
        return scaled(self.norm(state), self.decoder)

    def step(self, state: jax.Array, token: jax.Array, cross: CrossCache) -> jax.Array:
        """The state of the next serial head, by the block."""
        own = cross.keys[-1], cross.values[-1]
        following: jax.Array = self.block(state, self.alone(token), own, cross.real)
        return following

    def read(self, state: jax.Array, lm_head: jax.Array) -> jax.Array:
        """float32[..., V or N] logits of a serial head at its states [..., D]."""
        return matmul_transposed(self.normed(state), self.unembedding(self.alone(lm_head)))

    def serial_projections(
        self,
        first: jax.Array,
        state: jax.Array,
        tokens: jax.Array,
        cross: CrossCache,
        lm_head: jax.Array,
    ) -> list[Projection]:
        """As `projections`, of a text that is known.

        Args:
            first: [B, L, D], what head 1 reads; `state`: [B, L, D], what serial heads begin with.
            tokens: [M - 1, B, L, D], embeddings of the tokens of heads 1..M - 1.
            cross: of the audio; `lm_head`: [V, D].
        """

        def step(heads: Heads, state: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
            state = heads.step(state, token, cross)
            return state, heads.normed(state)

        steps = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        _, states = steps(self, state, tokens)
        return [
            Projection(slice(0, 1), first[None], lm_head),
            Projection(
                slice(1, None),
                states,
                self.unembedding(self.alone(lm_head)),
                self.tokens if self.drafts_some else None,
            ),
        ]

    @property
    def drafts_some(self) -> bool:
        """Whether there are later heads, and they draft some of the tokens only."""
        return self.config.count > 1 and self.config.vocabulary > 0

    def alone(self, x: jax.Array) -> jax.Array:
        """`x`, through which no gradient of these heads flows if they are detached."""
        return jax.lax.stop_gradient(x) if self.config.detached else x

    def unembedding(self, lm_head: jax.Array) -> jax.Array:
        """The rows of `lm_head` [V, D] of the tokens that these heads draft."""
        if not self.drafts_some:
            return lm_head
        if self.has_variable("params", "unembedding"):  # by `layout.for_decoding`
            return self.get_variable("params", "unembedding")
        return jax.tree.map(lambda x: x[self.tokens], lm_head)  # of one in int8 two arrays

    def drafted(self, places: jax.Array) -> jax.Array:
        """The tokens of int32[...] places in the logits."""
        return self.tokens[places] if self.drafts_some else places

    def __call__(self, hidden: jax.Array, lm_head: jax.Array, head: jax.Array | int) -> jax.Array:
        """float32[..., V or N] logits of one head, 2 <= `head` <= M (may be traced), at [..., D].

        Args:
            hidden: [..., D]; `lm_head`: [V, D], the un-embedding of head 1.
            head: which.
        """
        return self._logits(self._mapped(hidden, head - 2), lm_head)[0]

    def all(self, hidden: jax.Array, lm_head: jax.Array) -> jax.Array:
        """float32[..., M - 1, V or N] logits of heads 2..M, as of one."""
        if self.config.count == 1:
            return jnp.zeros((*hidden.shape[:-1], 0, self.vocab_size), jnp.float32)
        return jnp.moveaxis(self._logits(self._mapped(hidden), lm_head), 0, -2)

    def projections(
        self, first: jax.Array, later: jax.Array, lm_head: jax.Array
    ) -> list[Projection]:
        """How the logits of all heads are made, in as few products as there are kernels.

        Args:
            first: [..., D], what head 1 reads; `later`: [..., D], what heads 2..M read.
            lm_head: [V, D], the un-embedding of head 1.
        """
        of_first = Projection(slice(0, 1), first[None], lm_head)
        if self.config.count == 1:
            return [of_first]
        tokens = self.tokens if self.drafts_some else None
        if self.config.kind == "independent":
            kernels = enumerate(self.kernel[m].T for m in range(self.config.count - 1))
            return [
                of_first,
                *(Projection(slice(m + 1, m + 2), later[None], k, tokens) for m, k in kernels),
            ]
        made = self._mapped(later)
        if self.config.detached or tokens is not None:
            # Detached heads read a kernel that gets no gradient.
            kernel = self.unembedding(self.alone(lm_head))
            return [of_first, Projection(slice(1, None), made, kernel, tokens)]
        return [Projection(slice(None), jnp.concatenate([first[None], made]), lm_head)]

    def _mapped(self, hidden: jax.Array, head: jax.Array | int | None = None) -> jax.Array:
        """[m, ..., D] states of one of heads 2..M, counted from 0, or of all.

        Of independent heads they are the logits, [m, ..., V or N].
        """
        kernel = self.kernel if head is None else self.kernel[head][None]
        hidden = hidden.astype(self.dtype)
        made = jnp.einsum("...d,mdx->m...x", hidden, kernel.astype(self.dtype))
        if self.config.kind != "residual":
            return made
        bias = (self.bias if head is None else self.bias[head][None]).astype(self.dtype)
        return hidden + jax.nn.silu(
            made + bias.reshape(-1, *(1,) * (hidden.ndim - 1), hidden.shape[-1])
        )

    def _logits(self, made: jax.Array, lm_head: jax.Array) -> jax.Array:
        if self.config.kind == "independent":
            return made.astype(jnp.float32)
        return matmul_transposed(made, self.unembedding(self.alone(lm_head)))


def start_as_lm_head(params: dict[str, Any], kind: str) -> dict[str, Any]:
    """Parameters of a `Recogniser` whose every head equals the LM head.

    Latent and residual heads are made so; independent ones become copies here.
    """
    if kind != "independent" or "heads" not in params:
        return params
    decoder, kernel = params["decoder"], params["heads"]["kernel"]
    lm_head = decoder.get("lm_head", decoder["embedding"])
    if "tokens" in params["heads"]:
        lm_head = lm_head[params["heads"]["tokens"]]
    copies = jnp.broadcast_to(lm_head.T, kernel.shape).astype(kernel.dtype)
    return params | {"heads": params["heads"] | {"kernel": copies}}
