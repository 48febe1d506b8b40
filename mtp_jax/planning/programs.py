"""The project's programs, lowered for chips that are not there: shapes alone, no array is made."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from mtp_jax.config import Config, Mesh
from mtp_jax.data import Batch, FeatureBatch
from mtp_jax.decoding import Strategy, registry
from mtp_jax.decoding.text import most_likely, select_position
from mtp_jax.distributed import sharding
from mtp_jax.inference.decoder_functions import bind_decoder, encode
from mtp_jax.inference.programs import infer
from mtp_jax.models.initialization import parameter_shapes
from mtp_jax.models.int8_weights import in_int8, sharding_in_int8
from mtp_jax.models.kv_cache import KVCache
from mtp_jax.models.params import is_int8, products_type
from mtp_jax.models.recogniser import Encoded, Recogniser, call
from mtp_jax.models.speech_features import encoded_frames, encoded_width
from mtp_jax.planning.chips import Slice, TopologyError
from mtp_jax.training.optimizer import make_optimizer
from mtp_jax.training.step import abstract_state, make_train_step

# In the traced names of the prefill's blocks, and of the decoder's calls.
READS_PROMPT, EXTENDS = ".extend_prompt/", ".extend/"


@dataclasses.dataclass(frozen=True)
class Load:
    """What a program is given.

    Attributes:
        rows: utterances of the whole batch.
        seconds: of audio, each.
        tokens: of text, EOS included, each.
    """

    rows: int
    seconds: float
    tokens: int


def chips_of(where: Slice) -> list[jax.Device]:
    """The devices of a slice, as libtpu describes them; it needs no TPU.

    Raises:
        TopologyError: libtpu is missing, or knows no such slice.
    """
    from jax.experimental import topologies

    name = f"{where.chip.name}:{'x'.join(map(str, where.shape))}"
    try:
        # Older compilers take a host to have four chips, and so refuse a single one.
        one = {"chips_per_host_bounds": [1, 1, 1]} if where.chips == 1 else {}
        return list(topologies.get_topology_desc(name, platform="tpu", **one).devices)
    except Exception as error:  # plugins raise what they like
        text = " ".join(str(error).split())
        remedy = "pip install libtpu" if "not installed" in text else "choose another --topology"
        raise TopologyError(f"the TPU compiler does not know {name} ({text}): {remedy}") from error


def coordinates(mesh: jax.sharding.Mesh, where: Slice) -> list[tuple[int, ...]]:
    """Place on the torus of each device, in the order of the mesh: that of a program's ids."""
    return [tuple(d.coords[: len(where.shape)]) for d in mesh.devices.flat]


def lower_train_step(model: Recogniser, mesh: jax.sharding.Mesh, load: Load) -> tuple[Any, Any]:
    """One training step, as `mtp_jax.training.loop` runs it.

    Returns:
        The lowered program, and the shapes of its arguments; as all functions of this module.

    Raises:
        sharding.MeshError, ConfigError: the mesh does not fit the model, or nothing is trained.
    """
    optimizer = make_optimizer(model.config.optim)
    shapes, shardings = abstract_state(model, optimizer, mesh)
    step = make_train_step(model, optimizer, shardings)
    given = placed(shapes, shardings), batch(model, mesh, load, training=True)
    return step.lower(*given), given


def strategy_of(config: Config, name: str) -> Strategy:
    """A strategy, with the options of `config`."""
    e = config.evaluation
    options = registry.Options(
        heads=config.heads.count,
        draft_width=e.draft_width,
        beams=e.beams,
        rounds=e.beam_rounds,
        length_power=e.length_power,
    )
    made: Strategy = jax.tree.map(jnp.float32, registry.get(name).make(options))
    return made


def lower_decode(
    model: Recogniser, mesh: jax.sharding.Mesh, load: Load, strategy: Strategy, weights: str = ""
) -> tuple[Any, Any]:
    """Front end, encoder and decoding of one batch, parameters as `parameters` holds them."""
    everywhere = sharding.replicated(mesh)
    scalars = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), strategy
    )
    given = parameters(model, mesh, weights), batch(model, mesh, load, training=False), scalars
    with sharding.use_mesh(mesh):
        return infer.lower(model, type(strategy), False, *given), given


def lower_calls(
    model: Recogniser,
    mesh: jax.sharding.Mesh,
    rows: int,
    prompt: int,
    width: int,
    weights: str = "",
) -> tuple[Any, Any]:
    """A loop of decoder calls, as many as an argument says.

    A call 1 wide feeds a token and reads head 1 (greedy); one S wide feeds S tokens, reads head 1
    at each, and heads 2..S at one (verification).

    Args:
        model, mesh: what decodes, and where.
        rows: utterances.
        prompt: slots of the cache in front of the text.
        width: S.
        weights: as of `parameters`.
    """
    c = model.config
    if width > 1 and c.heads.count != width:
        heads = dataclasses.replace(c.heads, count=width)
        model = dataclasses.replace(model, config=dataclasses.replace(c, heads=heads))
    nothing: Any = None
    encoded = Encoded(nothing, nothing, nothing, nothing)
    State = tuple[jax.Array, jax.Array, KVCache]

    def calls(params: Any, cache: KVCache, tokens: jax.Array, limit: jax.Array) -> State:
        functions = bind_decoder(model, params, encoded)

        def step(state: State) -> State:
            done, tokens, cache = state
            hidden, cache = functions.extend(tokens, jnp.full(rows, width), cache)
            predicted, _ = most_likely(functions.next_token(hidden))
            if width == 1:
                return done + 1, predicted, cache
            agrees = predicted[:, :-1] == tokens[:, 1:]
            kept = jnp.sum(jnp.cumprod(agrees, axis=1), axis=1, dtype=jnp.int32)
            last = jnp.take_along_axis(predicted, kept[:, None], axis=1)
            at, every = select_position(hidden, kept), jnp.ones(rows, bool)
            drafts = functions.draft(at, last[:, 0], every, 0.0)
            tokens = jnp.concatenate([last, drafts.tokens], axis=1)
            return done + 1, tokens, cache.rollback(width - 1 - kept)

        return jax.lax.while_loop(lambda s: s[0] < limit, step, (jnp.int32(0), tokens, cache))

    d, dtype = c.decoder, jnp.dtype(c.train.dtype)
    empty = functools.partial(
        KVCache.empty,
        d.layers + c.heads.layers,
        rows,
        prompt + c.data.max_tokens,
        d.kv_heads,
        d.head_size,
        dtype,
    )
    split = sharding.spec(None, "batch", None, "kv_heads")
    store, row = jax.sharding.NamedSharding(mesh, split), sharding.batch_sharding(mesh)
    cache = jax.eval_shape(empty)
    shardings = cache.replace(keys=store, values=store, length=row, position_offset=row)
    ints = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    given = (
        parameters(model, mesh, weights),
        placed(cache, shardings),
        ints((rows, width), sharding=row),
        ints((), sharding=sharding.replicated(mesh)),
    )
    with sharding.use_mesh(mesh):
        return jax.jit(calls, donate_argnums=1).lower(*given), given


def prompt_length(model: Recogniser, load: Load) -> int:
    """Positions that the prompt of an utterance may take."""
    mesh = sharding.make_mesh(Mesh(1, 1, 1), jax.devices()[:1])
    given = parameters(model, mesh), batch(model, mesh, load, training=False)
    x, *_ = jax.eval_shape(
        lambda p, b: call(Recogniser.prompt, model, p, encode(model, p, b)), *given
    )
    return int(x.shape[1])


def parameters(model: Recogniser, mesh: jax.sharding.Mesh, weights: str = "") -> Any:
    """All parameters as a decoder holds them: shapes, types and shardings.

    Args:
        model, mesh: what decodes, and where.
        weights: "int8" for those of `mtp_jax.models.int8_weights`; by default matrices have the
            type of the products.
    """
    shapes, shardings = parameter_shapes(model, mesh)
    shapes = jax.eval_shape(lambda p: products_type(p, model.config.train.dtype), shapes)
    if weights:
        shapes = jax.eval_shape(in_int8, shapes)
        shardings = jax.tree.map(sharding_in_int8, shapes, shardings, is_leaf=is_int8)
    return placed(shapes, shardings)


def batch(model: Recogniser, mesh: jax.sharding.Mesh, load: Load, training: bool) -> Batch:
    """Shapes of a batch, split over the mesh."""
    rows, rate = load.rows, model.config.front_end.sample_rate
    split = sharding.batch_sharding(mesh)

    def array(*shape: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=split)

    own_labels = training and model.vocabulary.labels
    c = model.config
    kind, audio = Batch, array(round(load.seconds * rate), dtype=jnp.int16)
    if c.whisper.cached and training:
        frames = encoded_frames(round(load.seconds * rate), c)
        kind, audio = FeatureBatch, array(frames, encoded_width(c), dtype=jnp.float16)
    return kind(
        audio=audio,
        audio_length=array(),
        tokens=array(load.tokens if training else 0),
        token_length=array(),
        index=array(),
        labels=array(load.tokens) if own_labels else None,
        label_length=array() if own_labels else None,
    )


def placed(shapes: Any, shardings: Any) -> Any:
    """`shapes`, each with its sharding."""
    return jax.tree.map(lambda x, s: x.update(sharding=s), shapes, shardings)


def bytes_of(placed: Any) -> int:
    """Bytes of shapes with shardings, on one chip."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(placed)
    )
