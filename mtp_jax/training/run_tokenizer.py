"""The tokenizer of a run: another's, or trained on what the run reads."""

from __future__ import annotations

import collections
from pathlib import Path

from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import Config
from mtp_jax.data import Source
from mtp_jax.inference.load import tokenizer_of
from mtp_jax.pretrained import resolve
from mtp_jax.tokenizer import CTC_NAME, Tokenizer, TokenizerError
from mtp_jax.tokenizer.sentencepiece import SentencePieceTokenizer

CTC_FIELD = "config.tokenizer.ctc_vocab_size"
_RARE = 1 / 1000  # of the texts; a letter in fewer is not learnt, and would be a label


def open_tokenizer(config: Config, workdir: Workdir, train: Source) -> Tokenizer:
    """The workdir's tokenizer: loaded, copied, or trained.

    It is copied from ``config.init_from``, else from ``config.tokenizer.model``, else from
    ``config.pretrained.model`` or ``decoder``; that of CTC, if it has its own, from
    ``config.init_from`` or ``config.pretrained.ctc``, or it is trained. With
    ``config.tokenizer.retrained`` those of ``config.init_from`` are trained anew, but for an LLM's.
    That of a speech LLM goes with the model's own folder, and only that of CTC is kept.

    Args:
        config: of the run.
        workdir: keeps the tokenizer.
        train: source whose text a new tokenizer is trained on. What a model has written itself
            (``config.data.text="greedy"``) may be in any language, and hold a letter that stands
            hardly anywhere else: such texts are left out.

    Raises:
        TokenizerError: none can be had, or a pretrained LLaMA would lose the one it came with.
    """
    kept = workdir.path / CTC_NAME if config.speech_llm.present else workdir.tokenizer
    if kept is None or not kept.exists():
        make = _tokenizer_of_start if config.init_from else _new_tokenizer
        make(config, workdir.path, _texts(config, train))
    return tokenizer_of(workdir, config)


def _texts(config: Config, train: Source) -> list[str]:
    """What tokenizers are trained on."""
    texts = [utterance.text for utterance in train.utterances]
    if config.data.text != "greedy":
        return texts
    found = collections.Counter(letter for text in texts for letter in set(text))
    rare = {letter for letter, count in found.items() if count < _RARE * len(texts)}
    return [text for text in texts if rare.isdisjoint(text)]


def _tokenizer_of_start(config: Config, folder: Path, texts: list[str]) -> None:
    c, theirs = config.tokenizer, tokenizer_of(Workdir(config.init_from), config)
    own_labels = theirs.ctc is not theirs
    if not c.retrained:
        if config.extends_finished and c.ctc_vocab_size and not own_labels:
            Tokenizer.train(texts, folder / CTC_NAME, c.ctc_vocab_size, c.algorithm, CTC_FIELD)
        if not config.speech_llm.present:
            theirs.save(folder)
        elif own_labels:
            theirs.ctc.save(folder / CTC_NAME)
        return
    of_llm = bool(config.pretrained.decoder) or theirs.file_name != SentencePieceTokenizer.file_name
    if of_llm and not own_labels:
        raise TokenizerError(
            f"config.tokenizer.retrained would part the LLaMA of {config.init_from} from its"
            " tokens: leave it False"
        )
    if c.ctc_vocab_size and not own_labels:
        raise TokenizerError(
            f"CTC reads {config.init_from} in the decoder's tokens: leave"
            " config.tokenizer.ctc_vocab_size at 0, and set config.tokenizer.vocab_size"
        )
    if own_labels:
        labels = c.ctc_vocab_size or theirs.ctc.vocab_size
        new = Tokenizer.train(texts, folder / CTC_NAME, labels, c.algorithm, CTC_FIELD)
        if of_llm:
            theirs.with_ctc(new).save(folder)
    if not of_llm:
        Tokenizer.train(texts, folder, c.vocab_size, c.algorithm)


def _new_tokenizer(config: Config, folder: Path, texts: list[str]) -> None:
    c, ctc = config.tokenizer, folder / CTC_NAME
    if config.pretrained.ctc:
        Tokenizer.load(config.pretrained.ctc).ctc.save(ctc)
    elif c.ctc_vocab_size:
        Tokenizer.train(texts, ctc, c.ctc_vocab_size, c.algorithm, CTC_FIELD)
    if config.speech_llm.present:
        return
    if given := c.model or config.pretrained.model or config.pretrained.decoder:
        Tokenizer.load(resolve(given)).save(folder)
    else:
        Tokenizer.train(texts, folder, c.vocab_size, c.algorithm)
