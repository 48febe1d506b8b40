"""One training step: waveforms in, new parameters and scalars out, all in one ``jit``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from mtp_jax.audio.log_mel import spec_augment
from mtp_jax.config import Config, ConfigError
from mtp_jax.data import Batch
from mtp_jax.distributed import sharding
from mtp_jax.models.heads import DRAFT_TOKENS, start_as_lm_head
from mtp_jax.models.initialization import init_params, parameter_shapes
from mtp_jax.models.params import Params, by_path, matches, merge, nested
from mtp_jax.models.recogniser import Encoded, Recogniser, call
from mtp_jax.models.speech_features import speech_features
from mtp_jax.training import losses
from mtp_jax.training.mwer import mwer_loss
from mtp_jax.training.word_hashes import Spelling

Metrics = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """All that training changes, and the parameters that it leaves alone.

    Attributes:
        step: int32, batches seen.
        params: those that are trained.
        frozen: those that are not, but belong to the run.
        imported: those that are not, and can be had again from `config.pretrained`: checkpoints
            leave them out.
        opt_state: of the optimizer.
    """

    step: Any
    params: Any
    frozen: Any
    imported: Any
    opt_state: Any

    @property
    def model_params(self) -> Any:
        """All parameters, as the model takes them."""
        return merge(self.params, self.frozen, self.imported)


def abstract_state(
    model: Recogniser,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    imported: Collection[str] = (),
) -> tuple[TrainState, TrainState]:
    """Shapes of a state, and their shardings; nothing is made.

    Args:
        model, optimizer, mesh: as for `init_state`.
        imported: paths of frozen parameters that checkpoints leave out.

    Raises:
        sharding.MeshError: the mesh does not divide a parameter.
        ConfigError: all parameters are frozen.
    """
    params, by_param = parameter_shapes(model, mesh)
    shapes = _parts(model.config, params, imported)
    shardings = _parts(model.config, by_param, imported)
    if not shapes["params"]:
        raise ConfigError("config.optim.freeze leaves nothing to train: let some pattern go")
    everywhere = sharding.replicated(mesh)
    opt_state = jax.eval_shape(optimizer.init, shapes["params"])
    by_opt = optax.tree_utils.tree_map_params(
        optimizer,
        lambda kept, param: kept if _masked(kept) else param,
        opt_state,
        shardings["params"],
        transform_non_params=lambda _: everywhere,
        is_leaf=_masked,
    )
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return (
        TrainState(step=step, opt_state=opt_state, **shapes),
        TrainState(step=everywhere, opt_state=by_opt, **shardings),
    )


def init_state(
    model: Recogniser,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    initial: Params | None = None,
    imported: Params | None = None,
) -> tuple[TrainState, Any]:
    """A state at step 0, made on its devices, and the shardings of its parts.

    Args:
        model: whose config says what is frozen, and the seed of what is drawn.
        optimizer: of what is not frozen.
        mesh: the devices.
        initial: parameters to begin with, on their devices; the others are drawn, and every head
            among them starts equal to the LM head.
        imported: frozen parameters that checkpoints leave out, on their devices.

    Raises:
        sharding.MeshError: the mesh does not divide a parameter.
        ConfigError: all parameters are frozen.
    """
    c, initial, imported = model.config, by_path(initial or {}), by_path(imported or {})
    given = initial | imported
    _, shardings = abstract_state(model, optimizer, mesh, imported)

    def fresh(given: dict[str, jax.Array]) -> Params:
        params = merge(nn.unbox(init_params(model, jax.random.key(c.seed))), nested(given))
        if "heads/kernel" not in given:
            params = start_as_lm_head(params, c.heads.kind)
        # What was given stays where it is: only the others are made here.
        return nested({path: x for path, x in by_path(params).items() if path not in given})

    by_param = by_path(shardings.model_params)
    drawn = nested({path: x for path, x in by_param.items() if path not in given})
    params = merge(jax.jit(fresh, out_shardings=drawn)(given), nested(given))
    whole = _parts(c, params, imported)
    state = TrainState(
        step=jax.device_put(np.int32(0), shardings.step),
        opt_state=jax.jit(optimizer.init, out_shardings=shardings.opt_state)(whole["params"]),
        **whole,
    )
    return state, shardings


def frozen(config: Config) -> Callable[[str], bool]:
    """Whether the parameter at a path is left as it is.

    What names the tokens that heads draft always is, and so is what a speech LLM listens with. The
    CTC head of a finished model without weight is, whatever ``config.optim.freeze`` says: it would
    have no gradient, and decay.
    """
    always = [DRAFT_TOKENS]
    if config.speech_llm.present:
        always += ["encoder/*", "projector/*"]
    if config.extends_finished and not config.loss.ctc:
        always += ["encoder/*", "ctc_encoder/*", "ctc/*"]
    return matches((*config.optim.freeze, *always))


def _parts(config: Config, tree: Params, imported: Collection[str]) -> dict[str, Params]:
    """The leaves of `tree` by the field of `TrainState` that they belong to."""
    is_frozen = frozen(config)

    def part_of(path: str) -> str:
        if path in imported:
            return "imported"
        return "frozen" if is_frozen(path) else "params"

    leaves = by_path(tree)
    return {
        part: nested({path: x for path, x in leaves.items() if part_of(path) == part})
        for part in ("params", "frozen", "imported")
    }


def _masked(node: Any) -> bool:
    """Whether an optimizer that treats parameters unlike keeps nothing for this one."""
    return isinstance(node, optax.MaskedNode)


def noisy_tokens(key: jax.Array, tokens: jax.Array, share: float, vocab_size: int) -> jax.Array:
    """`tokens` with about a `share` of them replaced by tokens drawn evenly."""
    where_key, what_key = jax.random.split(key)
    random = jax.random.randint(what_key, tokens.shape, 0, vocab_size, tokens.dtype)
    return jnp.where(jax.random.bernoulli(where_key, share, tokens.shape), random, tokens)


def loss_fn(
    model: Recogniser,
    params: Any,
    batch: Batch,
    key: jax.Array | None,
    spelling: Spelling | None = None,
) -> tuple[jax.Array, Metrics]:
    """Loss of a batch a token, and what it is made of.

    Args:
        model: whose config names the weights.
        params: its parameters.
        batch: waveforms and tokens; rows of length 0 count nowhere.
        key: for SpecAugment, noise in the text and dropout; None turns all off.
        spelling: of the tokenizer, which ``config.mwer.weight`` above 0 needs.

    Raises:
        ValueError: it is needed and missing.

    Returns:
        The loss, and scalars: ``loss``, ``head_1`` ... ``head_M`` (nats a token; of those that
        `counted_heads` names), ``ctc`` and ``ctc_consistency`` (nats a label),
        ``too_short_for_ctc``, ``utterances``, ``audio_seconds``, and those of `mwer_loss`.
    """
    c = model.config
    views = 2 if c.loss.ctc_consistency and key is not None else 1

    def seen(x: Any) -> jax.Array:
        """A view beside the other: rows of a mesh stay where they are."""
        return jnp.repeat(x, views, axis=0) if views > 1 else jnp.asarray(x)

    features, frames = map(seen, speech_features(model, params, batch))
    rngs = {}
    if key is not None:
        augment_key, dropout_key, noise_key = jax.random.split(key, 3)
        features = spec_augment(augment_key, features, frames, c.augment)
        rngs["dropout"] = dropout_key
    tokens, length = seen(batch.tokens), seen(batch.token_length)
    fed = tokens
    if key is not None and c.augment.token_noise:
        fed = noisy_tokens(noise_key, tokens, c.augment.token_noise, model.vocabulary.size)
    encoded: Encoded
    hidden, encoded = model.apply(  # type: ignore[assignment]  # of Recogniser.__call__
        {"params": params}, features, frames, fed, length, key is None, rngs=rngs
    )

    counted = counted_heads(model, params)
    loss, by_head = heads_loss(model, params, hidden, tokens, length, counted, encoded)
    labels, label_length = tokens, jnp.maximum(length - 1, 0)  # CTC has no EOS
    if batch.labels is not None:
        labels, label_length = seen(batch.labels), seen(batch.label_length)
    ctc, of_ctc = _ctc_loss(c, encoded, labels, label_length, views)
    loss += ctc
    metrics = {f"head_{m + 1}": by_head[m] for m in np.flatnonzero(counted)} | of_ctc
    if c.mwer.weight:
        if spelling is None:
            raise ValueError("config.mwer.weight is above 0: give the tokenizer's spelling")
        expected, of_lists = mwer_loss(model, params, encoded, tokens, length, spelling)
        loss = c.mwer.cross_entropy * loss + c.mwer.weight * expected
        metrics |= of_lists
    return loss, metrics | {
        "loss": loss,
        "utterances": jnp.sum(length > 0, dtype=jnp.float32) / views,
        "audio_seconds": jnp.sum(batch.audio_length) / c.front_end.sample_rate,
    }


def _ctc_loss(
    c: Config, encoded: Encoded, labels: jax.Array, length: jax.Array, views: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted CTC loss with its consistency, and scalars; 0 and none if nothing has weight."""
    logits, frames = encoded.ctc_logits, encoded.ctc_length
    if logits is None or not c.loss.ctc:
        return jnp.zeros(()), {}
    nats, count, too_short = losses.ctc(logits, frames, labels, length)
    ctc = nats / jnp.maximum(count, 1)
    metrics = {"ctc": ctc, "too_short_for_ctc": too_short / views}
    loss = c.loss.ctc * ctc
    if views > 1:
        logits = logits.reshape(-1, views, *logits.shape[1:])
        unlike = losses.consistency(logits, frames[::views]) / jnp.maximum(count, 1)
        loss += c.loss.ctc * c.loss.ctc_consistency * unlike
        metrics["ctc_consistency"] = unlike
    return loss, metrics


def counted_heads(model: Recogniser, params: Any) -> tuple[bool, ...]:
    """Of each of the M heads, whether its loss has a weight, and trains anything.

    A vocabulary of tens of thousands would otherwise cost most of a step that trains CTC alone.
    """
    c, is_frozen = model.config, frozen(model.config)
    trained = [path for path in by_path(params) if not is_frozen(path)]
    first = any(not path.startswith(model.auxiliary) for path in trained)
    own = any(path.startswith("heads/") for path in trained)
    later = c.loss.head_weight > 0 and (own or (first and not c.heads.detached))
    extra = [later, *[later and c.loss.head_decay > 0] * (c.heads.count - 2)]
    return (first, *extra[: c.heads.count - 1])


def heads_loss(
    model: Recogniser,
    params: Any,
    hidden: jax.Array,
    tokens: jax.Array,
    length: jax.Array,
    counted: tuple[bool, ...],
    encoded: Encoded,
) -> tuple[jax.Array, jax.Array]:
    """Weighted cross-entropy of heads; logits of ``config.loss.columns`` tokens at a time.

    Args:
        model, params: the recogniser.
        hidden: [B, L, E], of which the one at i predicts ``tokens[:, i + m - 1]`` through head m.
        tokens: int32[B, L], EOS included; `length`: int32[B].
        counted: of each head, whether it has a part in this.
        encoded: the audio.

    Returns:
        The loss, and float32[M] nats a token of each head; of others 0. Tokens that a head does not
        draft count as none of its targets.
    """
    c = model.config
    heads = jnp.arange(1, c.heads.count + 1)
    shifted = jax.vmap(losses.shifted_targets, (None, None, 0))
    targets, real = shifted(tokens, length, heads)  # [M, B, L]
    share = real / jnp.maximum(jnp.sum(real, axis=(1, 2), keepdims=True), 1)
    weights = losses.head_weights(c.heads.count, c.loss.head_weight, c.loss.head_decay)
    weights = (weights * np.array(counted))[:, None, None] * share
    loss, by_head = jnp.zeros(()), jnp.zeros(c.heads.count)
    for p in call(Recogniser.projections, model, params, hidden, targets, encoded):
        if not any(counted[p.heads]):
            continue
        places, known = losses.among(targets[p.heads], p.tokens, model.vocabulary.size)
        part, nats = losses.cross_entropy(
            sharding.constrain(p.states, None, "batch", None, None),
            p.kernel,
            places,
            jnp.where(known, weights[p.heads], 0.0),
            c.loss.columns,
            c.loss.label_smoothing,
        )
        nats = jnp.where(real[p.heads] & known, share[p.heads] * nats, 0.0)
        loss, by_head = loss + part, by_head.at[p.heads].set(jnp.sum(nats, axis=(1, 2)))
    return loss, by_head


def make_train_step(
    model: Recogniser,
    optimizer: optax.GradientTransformation,
    shardings: Any,
    spelling: Spelling | None = None,
) -> Any:
    """The jitted step; randomness is a pure function of the config's seed and the step.

    Args:
        model, optimizer: what is trained, and how.
        shardings: of the state, from `init_state`; the state is donated.
        spelling: as in `loss_fn`.
    """
    seed, mesh = model.config.seed, shardings.step.mesh

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss(params: Any) -> tuple[jax.Array, Metrics]:
            whole = dataclasses.replace(state, params=params).model_params
            return loss_fn(model, whole, batch, key, spelling)

        with sharding.use_mesh(mesh):
            grads, metrics = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)
        return new, metrics | {"gradient_norm": optax.tree.norm(grads)}

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
