"""A model made from a config, for the vocabulary of a tokenizer."""

from __future__ import annotations

from mtp_jax.config import Config
from mtp_jax.models.speech_llama import SpeechLlama, Vocabulary
from mtp_jax.tokenizer import Tokenizer, TokenizerError
from mtp_jax.tokenizer.merges import merges_of


def make_model(config: Config, tokenizer: Tokenizer) -> SpeechLlama:
    """The model that `config` describes, for the vocabulary of `tokenizer`; raises as that does."""
    return SpeechLlama(config, vocabulary_of(config, tokenizer))


def vocabulary_of(config: Config, tokenizer: Tokenizer) -> Vocabulary:
    """What the model that `config` describes must know of `tokenizer`.

    Raises:
        TokenizerError: `config` wants CTC's labels made into tokens of a kind that cannot be.
    """
    merges = None
    if config.adaptor.retokenized:
        merges = None if tokenizer.ctc is tokenizer else merges_of(tokenizer)
        if merges is None:
            raise TokenizerError(
                "config.adaptor.retokenized needs a decoder with a byte-level BPE (LLaMA 3, SmolLM)"
                " and CTC labels of their own: set it to False"
            )
    return Vocabulary(
        size=tokenizer.vocab_size,
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        prompt_before=tuple(tokenizer.encode(config.decoder.prompt_before)),
        prompt_after=tuple(tokenizer.encode(config.decoder.prompt_after)),
        labels=0 if tokenizer.ctc is tokenizer else tokenizer.ctc.vocab_size,
        merges=merges,
    )
