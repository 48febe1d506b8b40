"""Words that a model was told to expect, and that nobody said.

Where nobody speaks, a speech LLM may write its context. Such a text has no words but those of the
context. They may have been said, too: what the model hears there without being told decides.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from mtp_jax.audio.segmentation import Chunk
from mtp_jax.inference.runner import Runner
from mtp_jax.transcription.results import Segment


def has_words_of(text: str, context: str) -> bool:
    """Whether `text` has words, and all of them are in `context`, marks and capitals apart.

    >>> has_words_of("Etcd, Kubernetes.", "kubernetes etcd")
    True
    """
    words = _words(text)
    return bool(words) and words <= _words(context)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def without_unspoken(
    segments: Sequence[Segment],
    chunks: Sequence[Chunk],
    runner: Runner,
    decode: Callable[[list[Chunk]], list[Segment]],
) -> list[Segment]:
    """`segments`, those without words that hold nothing but a context which nobody said.

    Args:
        segments: of `chunks`, one each.
        runner: the model.
        decode: decodes chunks.
    """
    found, prompt = list(segments), runner.model.vocabulary.speech
    if prompt is None or not prompt.takes_context:
        return found
    suspects = [
        place
        for place, (segment, chunk) in enumerate(zip(segments, chunks, strict=True))
        if (context := prompt.context_in(chunk.start_tokens))
        and has_words_of(segment.text, runner.tokenizer.decode(context))
    ]
    if not suspects:
        return found
    untold = [
        chunks[place]._replace(start_tokens=prompt.without_context(chunks[place].start_tokens))
        for place in suspects
    ]
    for place, heard in zip(suspects, decode(untold), strict=True):
        told = found[place]
        found[place] = dataclasses.replace(
            told if heard.words else heard,
            decoder_calls=told.decoder_calls + heard.decoder_calls,
            drafter_calls=told.drafter_calls + heard.drafter_calls,
            proposed=told.proposed + heard.proposed,
            accepted=told.accepted + heard.accepted,
        )
    return found
