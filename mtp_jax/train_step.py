"""One training step: waveforms in, new parameters and scalars out, all in one ``jit``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from mtp_jax import losses, sharding
from mtp_jax.data import Batch
from mtp_jax.features import log_mel, spec_augment
from mtp_jax.nn.heads import start_as_lm_head
from mtp_jax.nn.speech_llama import SpeechLlama, call

Metrics = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """All that training changes.

    Attributes:
        step: int32, batches seen.
        params: of the model.
        opt_state: of the optimizer.
    """

    step: Any
    params: Any
    opt_state: Any


def init_params(model: SpeechLlama, key: jax.Array) -> Any:
    """Fresh parameters, in their annotations; every head starts equal to the LM head."""
    frames = max(1, *model.config.encoder.subsampling)
    features = jnp.zeros((1, frames, model.config.front_end.mel_bins))
    one = jnp.ones(1, jnp.int32)
    tokens = jnp.zeros((1, 1), jnp.int32)
    return model.init(key, features, one * frames, tokens, one)["params"]


def init_state(
    model: SpeechLlama, optimizer: optax.GradientTransformation, seed: int, mesh: jax.sharding.Mesh
) -> tuple[TrainState, Any]:
    """A state at step 0, made on its devices, and the shardings of its parts.

    Raises:
        sharding.MeshError: the mesh does not divide a parameter.
    """
    key = jax.random.key(seed)
    boxed = jax.eval_shape(lambda: init_params(model, key))
    by_param = sharding.parameter_shardings(boxed, mesh)
    shapes = nn.unbox(boxed)
    everywhere = sharding.replicated(mesh)
    by_opt = optax.tree_utils.tree_map_params(
        optimizer,
        lambda kept, param: kept if _masked(kept) else param,
        jax.eval_shape(optimizer.init, shapes),
        by_param,
        transform_non_params=lambda _: everywhere,
        is_leaf=_masked,
    )
    shardings = TrainState(step=everywhere, params=by_param, opt_state=by_opt)

    def make() -> TrainState:
        params = nn.unbox(init_params(model, key))
        params = start_as_lm_head(params, model.config.heads.kind)
        return TrainState(step=jnp.int32(0), params=params, opt_state=optimizer.init(params))

    return jax.jit(make, out_shardings=shardings)(), shardings


def _masked(node: Any) -> bool:
    """Whether an optimizer that treats parameters unlike keeps nothing for this one."""
    return isinstance(node, optax.MaskedNode)


def noisy_tokens(key: jax.Array, tokens: jax.Array, share: float, vocab_size: int) -> jax.Array:
    """`tokens` with about a `share` of them replaced by tokens drawn evenly."""
    where_key, what_key = jax.random.split(key)
    random = jax.random.randint(what_key, tokens.shape, 0, vocab_size, tokens.dtype)
    return jnp.where(jax.random.bernoulli(where_key, share, tokens.shape), random, tokens)


def loss_fn(
    model: SpeechLlama, params: Any, batch: Batch, key: jax.Array | None
) -> tuple[jax.Array, Metrics]:
    """Loss of a batch a token, and what it is made of.

    Args:
        model: whose config names the weights.
        params: its parameters.
        batch: waveforms and tokens; rows of length 0 count nowhere.
        key: for SpecAugment, noise in the text and dropout; None turns all off.

    Returns:
        The loss, and scalars: ``loss``, ``head_1`` ... ``head_M`` (nats a token), ``ctc`` (nats a
        label), ``too_short_for_ctc``, ``utterances``, ``audio_seconds``.
    """
    c = model.config
    features, frames = log_mel(
        jnp.asarray(batch.audio), jnp.asarray(batch.audio_length), c.front_end
    )
    rngs = {}
    if key is not None:
        augment_key, dropout_key, noise_key = jax.random.split(key, 3)
        features = spec_augment(augment_key, features, frames, c.augment)
        rngs["dropout"] = dropout_key
    tokens, length = jnp.asarray(batch.tokens), jnp.asarray(batch.token_length)
    fed = tokens
    if key is not None and c.augment.token_noise:
        fed = noisy_tokens(noise_key, tokens, c.augment.token_noise, model.vocabulary.size)
    hidden, encoded = call(
        model, params, "__call__", features, frames, fed, length, key is None, rngs=rngs
    )

    def head(logits: jax.Array, m: jax.Array | int) -> jax.Array:
        targets, real = losses.shifted_targets(tokens, length, m)
        nats, count = losses.cross_entropy(logits, targets, real, c.loss.label_smoothing)
        return nats / jnp.maximum(count, 1)

    @jax.checkpoint
    def later_head(m: jax.Array) -> jax.Array:  # one head's logits exist at a time
        return head(call(model, params, "head_logits", hidden, m), m)

    by_head = head(call(model, params, "next_token", hidden), 1)[None]
    if c.heads.count > 1:
        later = jax.lax.map(later_head, jnp.arange(2, c.heads.count + 1))
        by_head = jnp.concatenate([by_head, later])
    weights = losses.head_weights(c.heads.count, c.loss.head_weight, c.loss.head_decay)
    loss = jnp.sum(weights * by_head)

    labels = jnp.maximum(length - 1, 0)  # CTC has no EOS
    nats, count, too_short = losses.ctc(encoded.ctc_logits, encoded.length, tokens, labels)
    ctc = nats / jnp.maximum(count, 1)
    loss += c.loss.ctc * ctc
    metrics = {f"head_{m + 1}": by_head[m] for m in range(c.heads.count)}
    return loss, metrics | {
        "loss": loss,
        "ctc": ctc,
        "too_short_for_ctc": too_short,
        "utterances": jnp.sum(length > 0, dtype=jnp.float32),
        "audio_seconds": jnp.sum(batch.audio_length) / c.front_end.sample_rate,
    }


def make_train_step(
    model: SpeechLlama, optimizer: optax.GradientTransformation, shardings: Any
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step; randomness is a pure function of the config's seed and the step.

    Args:
        model, optimizer: what is trained, and how.
        shardings: of the state, from `init_state`; the state is donated.
    """
    seed = model.config.seed

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, metrics = jax.grad(lambda params: loss_fn(model, params, batch, key), has_aux=True)(
            state.params
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(step=state.step + 1, params=params, opt_state=opt_state)
        return new, metrics | {"gradient_norm": optax.tree.norm(grads)}

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
