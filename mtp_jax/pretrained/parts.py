"""The parts of a model that `config.pretrained` names: sizes, parameters, digests.

A part that is frozen is never written to a checkpoint: it is imported again, and refused if it is
no longer what the run began with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from mtp_jax.config import Config, Pretrained
from mtp_jax.models.params import Params, by_path, nested, products_type
from mtp_jax.pretrained.errors import PretrainedError
from mtp_jax.pretrained.llama import import_llama, llama_architecture
from mtp_jax.pretrained.source import fingerprint, resolve, revision_of
from mtp_jax.pretrained.speech_llm import (
    family_of,
    import_speech_llm,
    speech_llm_architecture,
)
from mtp_jax.pretrained.table import Convert
from mtp_jax.pretrained.whisper import import_whisper, whisper_digest
from mtp_jax.pretrained.whisper_decoder import (
    import_whisper_decoder,
    whisper_decoder_architecture,
    whisper_model_digest,
)
from mtp_jax.tokenizer import Tokenizer, check_fit
from mtp_jax.tokenizer.speech_llm import SpeechLlmTokenizer

SPEECH_LLM_PARTS = ("encoder", "projector", "decoder")


def finished_parts(config: Config) -> tuple[str, ...]:
    """Names of the parts of a finished model that others are added to."""
    return SPEECH_LLM_PARTS if config.speech_llm.present else ("whisper", "decoder")


@functools.cache  # a large model takes a minute
def digests(pretrained: Pretrained) -> dict[str, str]:
    """SHA-256 of each source's weights, by the name of its field.

    Of a Whisper it is that of the values, so that any format of the same will do; of others that of
    the files.
    """
    found = {}
    if pretrained.model and family_of(resolve(pretrained.model)):
        found["model"] = fingerprint(resolve(pretrained.model))
    elif pretrained.model:
        found["model"] = whisper_model_digest(resolve(pretrained.model))
    if pretrained.encoder:
        found["encoder"] = whisper_digest(resolve(pretrained.encoder))
    if pretrained.decoder:
        found["decoder"] = fingerprint(resolve(pretrained.decoder))
    return found


def revisions(pretrained: Pretrained) -> dict[str, str]:
    """The commit on the Hub of each source that is there, by the name of its field."""
    fields = ("model", "encoder", "decoder")
    found = {name: revision_of(getattr(pretrained, name)) for name in fields}
    return {name: commit for name, commit in found.items() if commit}


def as_stored(shapes: Params, config: Config) -> Params:
    """Shapes of a model's parameters in the types that those of a released one are kept in.

    A speech LLM's matrices have the type of the products: in float32 there may be no place for
    billions of them.
    """
    if not config.speech_llm.present:
        return shapes
    kept: Params = jax.eval_shape(lambda tree: products_type(tree, config.train.dtype), shapes)
    return kept


def import_parts(
    pretrained: Pretrained,
    tokenizer: Tokenizer,
    shapes: Params,
    shardings: Params,
    convert: Convert = lambda path, x: x,
) -> Params:
    """Parameters of the pretrained parts, on their devices.

    Args:
        pretrained: the sources.
        tokenizer: whose tokens must have a row each in the decoder's embedding; rows beyond them
            are padding, and left out.
        shapes, shardings: of the whole model.
        convert: what becomes of each parameter of a speech LLM, before the next is read.

    Raises:
        PretrainedError: a source cannot be read, or does not fit.
        TokenizerError: the tokenizer does not fit the decoder.
    """
    parts: Params = {}
    if pretrained.model and family_of(resolve(pretrained.model)):
        path = resolve(pretrained.model)
        source = speech_llm_architecture(path)
        check_fit(tokenizer, source.rows, pretrained.model)
        _check_audio_token(tokenizer, source.audio_token, path)
        wanted = {name: _without_lora(shapes[name]) for name in SPEECH_LLM_PARTS}
        own = {name: shardings[name] for name in SPEECH_LLM_PARTS}
        return import_speech_llm(path, wanted, own, convert)
    if pretrained.model:
        path = resolve(pretrained.model)
        wanted = _without_lora(shapes["whisper"])
        parts["whisper"] = import_whisper(path, wanted, shardings["whisper"])
        _, rows = whisper_decoder_architecture(path)
        check_fit(tokenizer, rows, pretrained.model)
        importer = functools.partial(import_whisper_decoder, path)
        parts["decoder"] = _with_rows(importer, shapes["decoder"], shardings["decoder"], rows)
    if pretrained.encoder:
        path = resolve(pretrained.encoder)
        wanted = _without_lora(shapes["whisper"])
        parts["whisper"] = import_whisper(path, wanted, shardings["whisper"])
    if pretrained.decoder:
        path = resolve(pretrained.decoder)
        rows = llama_architecture(path).vocab_size
        check_fit(tokenizer, rows, pretrained.decoder)
        importer = functools.partial(import_llama, path)
        parts["decoder"] = _with_rows(importer, shapes["decoder"], shardings["decoder"], rows)
    return parts


def _check_audio_token(tokenizer: Tokenizer, named: int | None, path: Path) -> None:
    """Refuses a tokenizer of another model than the weights."""
    if not isinstance(tokenizer, SpeechLlmTokenizer) or named in (None, tokenizer.speech.audio):
        return
    raise PretrainedError(
        f"{path / 'config.json'}: token {named} stands for audio there, and"
        f" {tokenizer.template.audio} is token {tokenizer.speech.audio} of the tokenizer: give the"
        " two files of one model"
    )


def _with_rows(
    importer: Callable[[Params, Params], Params], shapes: Params, shardings: Params, rows: int
) -> Params:
    """A decoder of whose embeddings the file has `rows`, and of which we take what we have."""
    wanted = _without_lora(shapes)
    ends = {name: wanted[name].shape[0] for name in ("embedding", "lm_head") if name in wanted}
    whole = {name: wanted[name].update(shape=(rows, wanted[name].shape[1])) for name in ends}
    params = importer(wanted | whole, shardings)
    return params | {name: params[name][:size] for name, size in ends.items()}


def _without_lora(shapes: Params) -> Any:
    leaves = by_path(shapes)
    return nested({p: x for p, x in leaves.items() if not p.endswith(("lora_a", "lora_b"))})
