"""A model made from a config, for the vocabulary of a tokenizer."""

from __future__ import annotations

import dataclasses

from mtp_jax.config import FAMILIES, Config
from mtp_jax.models.recogniser import Recogniser, Vocabulary
from mtp_jax.models.speech_llama import SpeechLlama
from mtp_jax.models.speech_llm import SpeechLlm
from mtp_jax.models.whisper import WhisperRecogniser
from mtp_jax.tokenizer import Tokenizer, TokenizerError
from mtp_jax.tokenizer.granite_ctc import ctc_characters
from mtp_jax.tokenizer.kinds import kinds_of
from mtp_jax.tokenizer.merges import merges_of
from mtp_jax.tokenizer.speech_llm import SpeechLlmTokenizer
from mtp_jax.tokenizer.whisper import WhisperTokenizer


def make_model(config: Config, tokenizer: Tokenizer) -> Recogniser:
    """The model that `config` describes, for the vocabulary of `tokenizer`; raises as that does."""
    return build(config, vocabulary_of(config, tokenizer))


def build(config: Config, vocabulary: Vocabulary) -> Recogniser:
    """The model that `config` describes, of the kind that its parts make it."""
    if config.speech_llm.present:
        return SpeechLlm(config, vocabulary)
    kind = WhisperRecogniser if config.whisper_decoder.present else SpeechLlama
    return kind(config, vocabulary)


def vocabulary_of(config: Config, tokenizer: Tokenizer) -> Vocabulary:
    """What the model that `config` describes must know of `tokenizer`.

    Raises:
        TokenizerError: `config` wants CTC's labels made into tokens of a kind that cannot be.
    """
    merges = None
    if config.whisper_decoder.present and not isinstance(tokenizer, WhisperTokenizer):
        raise TokenizerError(
            "Whisper's decoder needs its own tokenizer: put the model's tokenizer.json beside it"
        )
    if config.speech_llm.present and not isinstance(tokenizer, SpeechLlmTokenizer):
        raise TokenizerError(
            f"{FAMILIES[config.speech_llm.family]} needs its own tokenizer: put that of the model,"
            " and its config.json, beside its weights"
        )
    own_labels = tokenizer.ctc is not tokenizer
    if own_labels and (config.adaptor.retokenized or config.extends_finished):
        merges = merges_of(tokenizer)
    elif characters := _inner_ctc_characters(config):
        merges = merges_of(tokenizer, characters)
    if config.adaptor.retokenized and merges is None:
        raise TokenizerError(
            "config.adaptor.retokenized needs a decoder with a byte-level BPE (LLaMA 3, SmolLM)"
            " and CTC labels of their own: set it to False"
        )
    special = None
    if isinstance(tokenizer, WhisperTokenizer):
        timestamps = config.whisper_decoder.timestamps
        special = dataclasses.replace(tokenizer.special, timestamps=timestamps)
    return Vocabulary(
        size=tokenizer.vocab_size,
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        prompt_before=tuple(tokenizer.encode(config.decoder.prompt_before)),
        prompt_after=tuple(tokenizer.encode(config.decoder.prompt_after)),
        labels=tokenizer.ctc.vocab_size if own_labels else 0,
        merges=merges,
        whisper=special,
        speech=tokenizer.speech if isinstance(tokenizer, SpeechLlmTokenizer) else None,
        kinds=kinds_of(tokenizer),
        ends=tokenizer.ends if isinstance(tokenizer, SpeechLlmTokenizer) else (),
    )


def _inner_ctc_characters(config: Config) -> list[str]:
    """What the labels of a CTC head inside of the encoder spell; none where that is not known."""
    is_granite = config.speech_llm.present and config.speech_llm.encoder.kind == "granite"
    return ctc_characters(config.speech_llm.encoder.labels) if is_granite else []
