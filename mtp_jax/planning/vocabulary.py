"""The vocabulary that a run will have, before it has trained its tokenizers."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from mtp_jax.config import Config, ConfigError
from mtp_jax.models.build import vocabulary_of
from mtp_jax.models.recogniser import Vocabulary
from mtp_jax.pretrained.published_sizes import Published, whisper_tokens
from mtp_jax.tokenizer import Tokenizer
from mtp_jax.tokenizer.merges import merges_as_many
from mtp_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from mtp_jax.tokenizer.speech_prompts import TEMPLATES, SpeechPrompt, Template, make_prompt

_UNKNOWN = Published()


def planned_vocabulary(config: Config, published: Published = _UNKNOWN) -> Vocabulary:
    """That of the tokenizers which training would open, or of as many tokens and labels.

    Args:
        config: of the run.
        published: of a decoder that is known by its name.

    Raises:
        TokenizerError: a tokenizer cannot be used.
        ConfigError: the config wants labels made into tokens and has none.
    """
    c, tokenizer = config.tokenizer, _existing(config)
    own_labels = tokenizer is not None and tokenizer.ctc is not tokenizer
    to_train = c.retrained or (bool(c.ctc_vocab_size) and not own_labels)
    if tokenizer and not to_train:
        return vocabulary_of(config, tokenizer)
    labels = c.ctc_vocab_size
    if tokenizer and own_labels and not labels:
        labels = tokenizer.ctc.vocab_size
    if config.adaptor.retokenized and not labels:
        raise ConfigError(
            "config.adaptor.retokenized needs config.tokenizer.ctc_vocab_size above 0"
        )
    if tokenizer and not (c.retrained and isinstance(tokenizer, SentencePieceTokenizer)):
        plain = dataclasses.replace(config.adaptor, retokenized=False)
        known = vocabulary_of(dataclasses.replace(config, adaptor=plain), tokenizer)
    elif config.whisper_decoder.present:
        special = whisper_tokens(size := published.vocab_size)
        known = Vocabulary(size, bos=special.start, eos=special.start - 1, whisper=special)
    elif config.speech_llm.present:
        eos, *ends = published.ends
        prompt = _planned_prompt(TEMPLATES[config.speech_llm.family])
        known = Vocabulary(published.vocab_size, eos, eos, speech=prompt, ends=tuple(ends))
    else:
        known = Vocabulary(published.vocab_size or c.vocab_size, bos=1, eos=2)
    merged = config.adaptor.retokenized or (known.whisper is not None and bool(labels))
    merges = merges_as_many(known.size, labels) if merged else None
    return dataclasses.replace(known, labels=labels, merges=merges)


def _planned_prompt(template: Template) -> SpeechPrompt:
    """A prompt of as many tokens: one each for a special token, a word and an end of a line."""
    pieces = (template.audio, *template.special)
    return make_prompt(template, pieces, lambda text: [0] * len(re.findall(r"\n| ?[^\s]+", text)))


def _existing(config: Config) -> Tokenizer | None:
    """The tokenizers that the run begins with, if they are on this machine."""
    parts = config.pretrained
    source = config.init_from or config.tokenizer.model or parts.model or parts.decoder
    if not source or not Path(source).expanduser().exists():
        return None
    tokenizer = Tokenizer.load(Path(source).expanduser())
    if parts.ctc and not config.init_from:
        return tokenizer.with_ctc(Tokenizer.load(parts.ctc).ctc)
    return tokenizer
