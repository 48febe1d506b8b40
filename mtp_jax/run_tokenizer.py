"""The tokenizer of a run: another's, or trained on what the run reads."""

from __future__ import annotations

from pathlib import Path

from mtp_jax.config import Config
from mtp_jax.data import Source
from mtp_jax.importers import resolve
from mtp_jax.tokenizer import CTC_NAME, Tokenizer, TokenizerError
from mtp_jax.workdir import Workdir


def open_tokenizer(config: Config, workdir: Workdir, train: Source) -> Tokenizer:
    """The workdir's tokenizer: loaded, copied, or trained.

    It is copied from ``config.init_from``, else from ``config.tokenizer.model``, else from
    ``config.pretrained.decoder``; that of CTC, if it has its own, from ``config.init_from`` or
    ``config.pretrained.ctc``, or it is trained. With ``config.tokenizer.retrained`` the one that
    CTC reads by is trained anew.

    Args:
        config: of the run.
        workdir: keeps the tokenizer.
        train: source whose text a new tokenizer is trained on.

    Raises:
        TokenizerError: none can be had, or a pretrained LLaMA would lose the one it came with.
    """
    if workdir.tokenizer is None:
        make = _tokenizer_of_start if config.init_from else _new_tokenizer
        make(config, workdir.path, [utterance.text for utterance in train.utterances])
    return Tokenizer.load(workdir.path)


def _tokenizer_of_start(config: Config, folder: Path, texts: list[str]) -> None:
    c, theirs = config.tokenizer, Tokenizer.load(config.init_from)
    if not c.retrained:
        theirs.save(folder)
    elif theirs.ctc is theirs:
        if config.pretrained.decoder:
            raise TokenizerError(
                f"config.tokenizer.retrained would part the LLaMA of {config.init_from} from its"
                " tokens: leave it False"
            )
        Tokenizer.train(texts, folder, c.vocab_size, c.algorithm)
    else:  # the decoder's is an LLM's
        labels = theirs.ctc.vocab_size
        new = Tokenizer.train(texts, folder / CTC_NAME, labels, c.algorithm)
        theirs.with_ctc(new).save(folder)


def _new_tokenizer(config: Config, folder: Path, texts: list[str]) -> None:
    c, ctc = config.tokenizer, folder / CTC_NAME
    if config.pretrained.ctc:
        Tokenizer.load(config.pretrained.ctc).ctc.save(ctc)
    elif c.ctc_vocab_size:
        Tokenizer.train(texts, ctc, c.ctc_vocab_size, c.algorithm)
    if given := c.model or config.pretrained.decoder:
        Tokenizer.load(resolve(given)).save(folder)
    else:
        Tokenizer.train(texts, folder, c.vocab_size, c.algorithm)
