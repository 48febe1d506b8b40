"""The sizes that a run takes over: from its pretrained parts, or from the model it begins with."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

from mtp_jax.checkpoints.workdir import Workdir, WorkdirError
from mtp_jax.config import FAMILIES, Config, ConfigError, differences
from mtp_jax.models.speech_windows import PROMPT_TOKENS, frames_per_state, prompt_rows
from mtp_jax.pretrained.errors import PretrainedError
from mtp_jax.pretrained.family import SpeechLlmSource
from mtp_jax.pretrained.llama import llama_architecture
from mtp_jax.pretrained.source import resolve
from mtp_jax.pretrained.speech_llm import family_of, speech_llm_architecture
from mtp_jax.pretrained.whisper import whisper_architecture
from mtp_jax.pretrained.whisper_decoder import whisper_decoder_architecture

log = logging.getLogger("mtp_jax")
_LEAST_FRAMES = 10  # per second, of CTC: people say as many pieces at times

# Fields of an encoder's or decoder's config that say how it runs, not what it is.
RUNNING = ("dropout", "remat", "remat_products", "scan_layers")


def completed(config: Config) -> Config:
    """`config` with the sizes of the model it begins with, or of its pretrained parts.

    Raises:
        WorkdirError, PretrainedError: a source is missing or cannot be used.
        ConfigError: a field does not suit the model.
    """
    if not config.init_from:
        sized = with_sizes(config)
        _check_speech_llm(sized)
        return _with_ctc_of(sized)
    sized = with_sizes_of(config, Workdir(config.init_from).read_config())
    if taken := differences(config, sized):
        log.info("as in %s: %s", config.init_from, "; ".join(taken))
    _check_speech_llm(sized)
    return sized


def _check_speech_llm(config: Config) -> None:
    """Refuses what does not suit a speech LLM that is added to.

    Raises:
        ConfigError: it has no positions for an utterance, or CTC too few frames.
    """
    if not config.speech_llm.present:
        return
    rate, longest = config.front_end.sample_rate, config.data.bucket_seconds[-1]
    rows = prompt_rows(round(longest * rate), config)
    needed = rows + PROMPT_TOKENS + config.data.max_tokens
    if needed > config.speech_llm.positions:
        raise ConfigError(
            f"config.data.bucket_seconds ({longest:g}) and max_tokens ({config.data.max_tokens})"
            f" need {needed} positions, and the model has {config.speech_llm.positions}: lower them"
        )
    frames = 100 / (frames_per_state(config) * math.prod(config.encoder.subsampling))
    if config.loss.ctc and config.tokenizer.ctc_vocab_size and frames < _LEAST_FRAMES:
        raise ConfigError(
            f"config.encoder.subsampling={config.encoder.subsampling} leaves CTC {frames:.1f} of"
            f" {FAMILIES[config.speech_llm.family]}'s frames per second: set it to (1,)"
        )


def _with_ctc_of(config: Config) -> Config:
    """`config` with the Conformer of ``config.pretrained.ctc``, and with its Whisper's LoRA."""
    if not config.pretrained.ctc:
        return config
    theirs = Workdir(config.pretrained.ctc).read_config()
    ours = config.whisper
    whisper = dataclasses.replace(theirs.whisper, padded=ours.padded, cached=ours.cached)
    same = dataclasses.replace(whisper, lora=ours.lora)
    if same != ours or theirs.front_end != config.front_end:
        raise WorkdirError(
            f"config.pretrained.ctc={config.pretrained.ctc} listens to another speech encoder or"
            " front end than this run: give both the same config.pretrained.encoder"
        )
    whisper = whisper if whisper.lora.rank else ours
    own: dict[str, Any] = {name: getattr(config.encoder, name) for name in RUNNING}
    encoder = dataclasses.replace(theirs.encoder, **own)
    return dataclasses.replace(config, whisper=whisper, encoder=encoder)


def with_sizes_of(config: Config, theirs: Config) -> Config:
    """`config` with all that decides what the parameters of `theirs` mean."""

    def group(name: str, *ours: str) -> Any:
        own = {field: getattr(getattr(config, name), field) for field in ours}
        lora = getattr(getattr(theirs, name), "lora", None)
        if lora is not None and lora.rank:
            own["lora"] = lora
        return dataclasses.replace(getattr(theirs, name), **own)

    # Where a folder is said to be, the Whisper is now; a Hub's name is but the default of a config.
    ours = config.pretrained.model or config.pretrained.encoder
    moved = with_pretrained(theirs, "" if ours.startswith("hf://") else ours)
    labels = theirs.tokenizer.ctc_vocab_size
    added = theirs.extends_finished and not labels  # the CTC head of such a model may be new
    if added or config.tokenizer.retrained:
        labels = config.tokenizer.ctc_vocab_size or labels
    return dataclasses.replace(
        config,
        pretrained=moved.pretrained,
        tokenizer=dataclasses.replace(config.tokenizer, ctc_vocab_size=labels),
        front_end=theirs.front_end,
        whisper=group("whisper", "cached", "lora"),
        adaptor=theirs.adaptor,
        encoder=config.encoder if added else group("encoder", *RUNNING),
        decoder=group("decoder", *RUNNING, "lora"),
        whisper_decoder=group("whisper_decoder", "lora"),
        speech_llm=theirs.speech_llm,
    )


def with_sizes(config: Config) -> Config:
    """`config` with the sizes of its pretrained parts, whatever it said of them itself.

    Raises:
        PretrainedError: a source is missing or cannot be used.
    """
    if config.pretrained.model and family_of(resolve(config.pretrained.model)):
        return with_speech_llm(config, speech_llm_architecture(resolve(config.pretrained.model)))
    if encoder := config.pretrained.model or config.pretrained.encoder:
        source = whisper_architecture(resolve(encoder))
        ours = config.whisper
        config = dataclasses.replace(
            config,
            whisper=dataclasses.replace(
                source.config,
                **{name: getattr(ours, name) for name in ("padded", "cached", "silence", "lora")},
            ),
            front_end=dataclasses.replace(
                config.front_end, flavour="whisper", mel_bins=source.mel_bins
            ),
        )
    if config.pretrained.model:
        decoder, _ = whisper_decoder_architecture(resolve(config.pretrained.model))
        asked = config.whisper_decoder
        decoder = dataclasses.replace(decoder, timestamps=asked.timestamps, lora=asked.lora)
        config = dataclasses.replace(config, whisper_decoder=decoder)
    if config.pretrained.decoder:
        llama = llama_architecture(resolve(config.pretrained.decoder))
        kept = (*RUNNING, "prompt_before", "prompt_after", "lora")
        own = {name: getattr(config.decoder, name) for name in kept}
        config = dataclasses.replace(config, decoder=dataclasses.replace(llama.config, **own))
    return config


def with_speech_llm(config: Config, source: SpeechLlmSource) -> Config:
    """`config` with the sizes of a speech LLM.

    Its many layers are looped over, except on one CPU, for which they are laid out one by one. On
    v5e a greedy call of Qwen3-ASR 0.6B (8 utterances) is so estimated at 2.2 ms, and at 5.6 ms if
    unrolled, where the compiler copies matrices in each call; and it takes half as long to compile.
    """
    own: dict[str, Any] = {name: getattr(config.decoder, name) for name in (*RUNNING, "lora")}
    own["scan_layers"] = True
    return dataclasses.replace(
        config,
        speech_llm=source.config,
        decoder=dataclasses.replace(source.decoder, **own),
        front_end=source.front_end,
    )


def with_pretrained(config: Config, source: str) -> Config:
    """`config` with its Whisper, or its speech encoder, elsewhere: at `source` if that is given."""
    has = [name for name in ("model", "encoder") if getattr(config.pretrained, name)]
    moved = {name: source or getattr(config.pretrained, name) for name in has}
    return dataclasses.replace(config, pretrained=dataclasses.replace(config.pretrained, **moved))


def check_sizes(config: Config, tokens: int) -> None:
    """Refuses a Whisper, or a speech LLM, that what was added to another does not fit.

    Args:
        config: with the sizes of that other one; its ``pretrained.model`` is the one to refuse.
        tokens: size of the vocabulary of that other one.

    Raises:
        PretrainedError: a size differs, or it cannot be read.
    """
    path, llm = resolve(config.pretrained.model), config.speech_llm.present
    rows = speech_llm_architecture(path).rows if llm else whisper_decoder_architecture(path)[1]
    changed = differences(config, with_sizes(config))
    # Other programs leave out which heads align.
    changed = [each for each in changed if "alignment_heads" not in each]
    # The embedding of an LLM may be padded, and the tokenizer is refused if it does not fit.
    if rows < tokens or (rows > tokens and not llm):
        changed.append(f"vocabulary: {tokens} -> {rows}")
    if changed:
        kind = "speech LLM" if llm else "Whisper"
        raise PretrainedError(
            f"{config.pretrained.model} is a {kind} of another size than the model's own"
            f" ({'; '.join(changed)}): give one of the same size"
        )


def with_dtype(config: Config, dtype: str, platform: str) -> Config:
    """`config` with its matrix products in a type.

    Args:
        config: of a model.
        dtype: "float32" or "bfloat16". By default it is that of training, of a Whisper or a speech
            LLM float32 on a CPU and bfloat16 elsewhere, whatever its heads were trained in.
        platform: where it is to run.

    Raises:
        ConfigError: it is another type.
    """
    if not dtype and config.extends_finished:
        dtype = "float32" if platform == "cpu" else "bfloat16"
    train = dataclasses.replace(config.train, dtype=dtype or config.train.dtype)
    return dataclasses.replace(config, train=train)


def with_heads(config: Config, count: int) -> Config:
    """`config` of a model that drafts by so many serial heads; 0 leaves its own.

    All have one block in common, so any number will do; others are as many as were trained.

    Raises:
        ConfigError: the count is negative, or the heads are not serial.
    """
    if not count:
        return config
    if config.heads.kind != "serial" or config.heads.count == 1 or count < 1:
        raise ConfigError(
            f"heads={count} must be 1 or more, and is for serial heads, whose number is free"
            f" (this model has {config.heads.count}, {config.heads.kind}): leave it out"
        )
    heads = dataclasses.replace(config.heads, count=count)
    return dataclasses.replace(config, heads=heads)


def with_silence(config: Config, seconds: float | None) -> Config:
    """`config` with so many seconds of silence behind what a Whisper hears; None leaves its own.

    Chunks are then padded to three lengths, which with the silence fill a third, two thirds or all
    of the longest: fewer where that is not enough for any speech.

    Raises:
        ConfigError: they are negative, or the model has no decoder of Whisper's.
    """
    if seconds is None:
        return config
    if not config.whisper_decoder.present:
        raise ConfigError(
            f"silence={seconds:g} is for a Whisper, and this model is none: leave it out"
        )
    longest = (config.evaluation.bucket_seconds or config.data.bucket_seconds)[-1]
    lengths = tuple(s for s in (longest / 3 - seconds, 2 * longest / 3 - seconds) if s > 0)
    return dataclasses.replace(
        config,
        whisper=dataclasses.replace(config.whisper, silence=seconds),
        evaluation=dataclasses.replace(config.evaluation, bucket_seconds=(*lengths, longest)),
    )
