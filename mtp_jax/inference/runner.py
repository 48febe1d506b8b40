"""A model bound to its parameters, tokenizer and devices, and the only cache of its programs."""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mtp_jax.data import Batch
from mtp_jax.decoding import Auto, Strategy, registry
from mtp_jax.distributed import multihost, sharding
from mtp_jax.inference import fallback
from mtp_jax.inference.pacing import Pacing
from mtp_jax.inference.programs import Inference, infer, two_best_logits
from mtp_jax.models.decoders.layout import for_decoding
from mtp_jax.models.mixed_precision import multiplies_bfloat16
from mtp_jax.models.recogniser import Recogniser
from mtp_jax.models.speech_features import window
from mtp_jax.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mtp_jax.inference.draft_model import DraftModel

log = logging.getLogger("mtp_jax")
_LONG = 1.0  # s of compiling that somebody may wonder about


class Runner:
    """Decodes batches. Its methods may be called from several threads.

    A program is compiled once for each shape of a batch and each strategy, under the mesh.

    Args:
        model, params: what decodes.
        tokenizer: turns tokens into text.
        mesh: the devices. A batch that they divide is split over them.
        imported: paths of the parameters that are just as ``config.pretrained`` has them.

    Attributes:
        drafter: another model, whose texts are drafted where a strategy drafts a text; None leaves
            that to the CTC head.
    """

    def __init__(
        self,
        model: Recogniser,
        params: Any,
        tokenizer: Tokenizer,
        mesh: jax.sharding.Mesh,
        imported: Collection[str] = (),
    ) -> None:
        self.model, self.tokenizer, self.mesh = model, tokenizer, mesh
        self._params: Any = params
        self._layout: Any = None
        self.imported = frozenset(imported)
        self.drafter: DraftModel | None = None
        self._compile_seconds = 0.0
        self._programs: dict[Any, Any] = {}
        self._pacing = Pacing(model.config, mesh)
        self._lock = threading.Lock()

    @property
    def params(self) -> Any:
        """The parameters of the model; others may be set, which programs then take.

        Once a speech LLM has decoded, they are those that programs take.
        """
        return self._params

    @params.setter
    def params(self, params: Any) -> None:
        self._params, self._layout = params, None

    @property
    def _laid_out(self) -> Any:
        """The parameters as programs take them: on a CPU laid out for decoding, once."""
        if self._layout is None:
            on_cpu = self.mesh.size == 1 and self.mesh.devices.flat[0].platform == "cpu"
            c = self.model.config
            lora = c.whisper_decoder.lora if c.whisper_decoder.present else c.decoder.lora
            dtype = c.train.dtype if multiplies_bfloat16() else "float32"
            self._layout = for_decoding(self.params, lora, dtype) if on_cpu else self.params
            if c.speech_llm.present:  # billions of parameters: there may be no place for both
                self._params = self._layout
        return self._layout

    @property
    def compile_seconds(self) -> float:
        """Spent compiling so far, for the drafter too."""
        return self._compile_seconds + (self.drafter.compile_seconds if self.drafter else 0.0)

    @property
    def strategies(self) -> tuple[str, ...]:
        """Names of the strategies that the model can be decoded with, beside its drafter."""
        vocabulary = self.model.vocabulary
        has_text = vocabulary.has_ctc_hypothesis or self.drafter is not None
        return registry.usable(has_text, vocabulary.has_ctc)

    def _drafter_for(self, batch: Batch, strategy: Strategy) -> DraftModel | None:
        """What drafts for a batch, unless it has drafts of its own."""
        wanted = batch.draft is None and registry.get(strategy.name).drafts_text
        return self.drafter if wanted else None

    def place(self, batch: Batch) -> Batch:
        """`batch`, which every process has whole, on the devices."""
        divides = len(batch.index) % sharding.batch_divisor(self.mesh) == 0
        split = sharding.batch_sharding if divides else sharding.replicated
        return multihost.place_whole(batch, split(self.mesh))

    def compile(self, batch: Batch, strategy: Strategy, with_alignment: bool = False) -> float:
        """Compiles the programs of such a batch unless they are there; seconds that this took."""
        seconds = 0.0
        if drafter := self._drafter_for(batch, strategy):
            seconds, batch = drafter.compile(batch), drafter.with_room(batch)
        model = self._of_first_pass(batch, strategy)
        return seconds + self._compile(model, batch, strategy, with_alignment)

    def _of_first_pass(self, batch: Batch, strategy: Strategy) -> Recogniser:
        """The model, which does not wait for texts without an end if these are decoded again."""
        config = self.model.config
        if not fallback.can_fall_back(config, batch, strategy):
            return self.model
        return self._limited(fallback.first_limit(batch, config))

    def _limited(self, max_tokens: int) -> Recogniser:
        return self.model.clone(config=fallback.with_token_limit(self.model.config, max_tokens))

    def _compile(
        self, model: Recogniser, batch: Batch, strategy: Strategy, with_alignment: bool
    ) -> float:
        batch, strategy = _without_references(batch), _traced(strategy)
        start = time.perf_counter()
        with self._lock:
            key = _key(model, batch, strategy, with_alignment)
            if key in self._programs:
                return 0.0
            with sharding.use_mesh(self.mesh):
                lowered = infer.lower(
                    *(model, type(strategy), with_alignment),
                    *(self._laid_out, self.place(batch), strategy),
                )
            self._programs[key] = lowered.compile()
            seconds = time.perf_counter() - start
            self._compile_seconds += seconds
        return seconds

    def is_compiled(self, batch: Batch, strategy: Strategy, with_alignment: bool = False) -> bool:
        """Whether `run` has nothing to compile for such a batch."""
        if drafter := self._drafter_for(batch, strategy):
            if not drafter.is_compiled(batch):
                return False
            batch = drafter.with_room(batch)
        model = self._of_first_pass(batch, strategy)
        key = _key(model, _without_references(batch), _traced(strategy), with_alignment)
        return key in self._programs

    def run(self, batch: Batch, strategy: Strategy, with_alignment: bool = False) -> Inference:
        """Decodes a batch, and of a Whisper again what went wrong (`mtp_jax.inference.fallback`).

        Args:
            batch: rows with ``index`` -1 are filler.
            strategy: what decodes.
            with_alignment: whether what words are aligned by is wanted as well.

        Returns:
            Arrays on the devices; on the host where a row was decoded again.
        """
        drafter = self._drafter_for(batch, strategy)
        if drafter is None:
            return self._run_alone(batch, strategy, with_alignment)
        batch, calls = drafter.drafted(batch)
        done = self._run_alone(batch, strategy, with_alignment)
        return dataclasses.replace(done, drafter_calls=jnp.asarray(calls))

    def _run_alone(self, batch: Batch, strategy: Strategy, with_alignment: bool) -> Inference:
        """`run`, by the drafts of the batch if it has some."""
        model = self._of_first_pass(batch, strategy)
        if isinstance(strategy, Auto):
            program = _key(model, _without_references(batch), _traced(strategy), with_alignment)

            def paced(batch: Batch, strategy: Auto) -> Inference:
                return self._run(model, batch, strategy, with_alignment)

            done = self._pacing.run(paced, batch, strategy, program)
        else:
            done = self._run(model, batch, strategy, with_alignment)
        config = self.model.config
        if not fallback.can_fall_back(config, batch, strategy):
            return done

        def decode(part: Batch) -> Inference:
            full = self._in_full_window
            if self._compile(full, part, strategy, with_alignment) > _LONG:
                log.info("compiled what decodes a text again that has no end or repeats itself")
            return self._run(full, part, strategy, with_alignment)

        return fallback.with_fallback(done, batch, config, self.tokenizer, decode)

    def run_once(self, batch: Batch, strategy: Strategy, max_tokens: int) -> Inference:
        """As `run`, of texts of at most `max_tokens`, none of which is decoded again."""
        return self._run(self._limited(max_tokens), batch, strategy, False)

    def compile_fallback(
        self, batch: Batch, strategy: Strategy, with_alignment: bool = False
    ) -> None:
        """Compiles what decodes a row of such a batch again, if there is such a thing."""
        config = self.model.config
        if drafter := self._drafter_for(batch, strategy):
            drafter.compile_fallback(batch)
            batch = drafter.with_room(batch)
        if fallback.can_fall_back(config, batch, strategy):
            one = fallback.rows_of(batch, [0], window(config))
            self._compile(self._in_full_window, one, strategy, with_alignment)

    @functools.cached_property
    def _in_full_window(self) -> Recogniser:
        return self.model.clone(config=fallback.full_window(self.model.config))

    def _run(
        self, model: Recogniser, batch: Batch, strategy: Strategy, with_alignment: bool
    ) -> Inference:
        self._compile(model, batch, strategy, with_alignment)
        batch, strategy = _without_references(batch), _traced(strategy)
        program = self._programs[_key(model, batch, strategy, with_alignment)]
        done: Inference = program(self._laid_out, self.place(batch), strategy)
        return done

    def top2_gap(self, batch: Batch, row: int, tokens: tuple[int, ...]) -> float:
        """Difference of head 1's two greatest logits behind `tokens`.

        Where two computations of one output part, a gap of the size of rounding errors explains
        it; a larger one is a bug.
        """
        one = jax.tree.map(lambda x: np.asarray(x)[row : row + 1], batch)
        text = np.zeros((1, max(self.model.config.data.max_tokens, len(tokens))), np.int32)
        text[0, : len(tokens)] = tokens
        count = np.array([len(tokens)], np.int32)
        with sharding.use_mesh(self.mesh):
            best = multihost.to_host(two_best_logits(self.model, self._laid_out, one, text, count))
        return float(best[0] - best[1])


def _without_references(batch: Batch) -> Batch:
    """References are not decoded: without them fewer shapes are compiled."""
    return batch._replace(tokens=batch.tokens[:, :0], labels=None, label_length=None)


def _traced(strategy: Strategy) -> Strategy:
    """With arrays as leaves, for numbers float32 ones: sweeping one compiles nothing anew."""
    traced: Strategy = jax.tree.map(
        lambda x: jnp.asarray(x, getattr(x, "dtype", jnp.float32)), strategy
    )
    return traced


def _key(model: Recogniser, batch: Batch, strategy: Strategy, with_alignment: bool) -> Any:
    shapes = tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(batch))
    kind = type(strategy), jax.tree.structure(strategy), with_alignment
    c = model.config
    return c.whisper.silence, c.data.max_tokens, type(batch), shapes, *kind
