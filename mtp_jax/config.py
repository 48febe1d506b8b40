"""What one run is made of: frozen dataclasses, checked once, when they are built.

A file in ``configs/`` returns ``to_config_dict(Config(...))``, so that every field can be
overridden on the command line (``--config.optim.steps=100``); `from_config_dict` turns the
result back into a `Config` and refuses a wrong key or value by its full name.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

STRATEGIES = ("ctc", "greedy", "threshold", "verify")


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field and the remedy."""


def _check(holds: bool, field: str, remedy: str) -> None:
    if not holds:
        raise ConfigError(f"config.{field} {remedy}")


def _one_of(value: str, choices: tuple[str, ...], field: str) -> None:
    _check(value in choices, field, f"is {value!r}; choose one of {', '.join(choices)}")


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """Log-mel features, 100 frames a second.

    Attributes:
        flavour: "kaldi" (pre-emphasis, Povey window, natural log) or "whisper" (Hann window,
            log10, clipped 8 below the loudest, scaled).
        mel_bins: Z.
        sample_rate: Hz; recordings are resampled to it when they are read.
    """

    flavour: str = "kaldi"
    mel_bins: int = 80
    sample_rate: int = 16_000

    def __post_init__(self) -> None:
        _one_of(self.flavour, ("kaldi", "whisper"), "front_end.flavour")
        _check(self.mel_bins > 0, "front_end.mel_bins", "must be positive")
        _check(self.sample_rate > 0, "front_end.sample_rate", "must be positive")


@dataclasses.dataclass(frozen=True)
class Augment:
    """Training-time augmentation.

    Attributes:
        speeds: each utterance of each epoch is played at one of these speeds, drawn evenly
            (Ko et al., 2015); ``(1.0,)`` turns it off.
        freq_masks, freq_width: SpecAugment (Park et al., 2019): number of frequency masks and
            their greatest width in mel bins.
        time_masks, time_width, time_fraction: number of time masks and their greatest width,
            in frames and as a fraction of the utterance (the smaller of the two holds).
    """

    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
    freq_masks: int = 2
    freq_width: int = 27
    time_masks: int = 2
    time_width: int = 100
    time_fraction: float = 0.1

    def __post_init__(self) -> None:
        _check(
            len(self.speeds) > 0 and all(0.5 <= s <= 2 for s in self.speeds),
            "augment.speeds",
            "must be a non-empty tuple of factors between 0.5 and 2",
        )
        for name in ("freq_masks", "freq_width", "time_masks", "time_width"):
            _check(getattr(self, name) >= 0, f"augment.{name}", "must not be negative")
        _check(0 <= self.time_fraction <= 1, "augment.time_fraction", "must be within [0, 1]")


@dataclasses.dataclass(frozen=True)
class Data:
    """Where utterances come from and how they are batched.

    Attributes:
        train, dev, test: a source each: ``embedded:SPLIT`` (the corpus that the project makes
            for itself), ``tfds:NAME[/CONFIG]:SPLIT``, the path of a JSON-lines manifest, or a
            LibriSpeech directory. Several, joined by ``+``, are read as one.
        cache_dir: where the embedded corpus and the indices of sources are kept.
        bucket_seconds: upper bounds of the length buckets; the last is the longest utterance
            accepted. Every bucket costs one compilation of the training step.
        batch_size: utterances in a global batch of the longest bucket; shorter buckets hold
            more, in proportion to `batch_seconds_alike`.
        batch_seconds_alike: True gives every bucket about the same seconds of audio a batch,
            False the same number of utterances.
        max_tokens: longest text accepted, in tokens with EOS.
        workers: threads that read and decode audio.
        prefetch: batches read ahead.
    """

    train: str = "embedded:train"
    dev: str = "embedded:dev"
    test: str = "embedded:test"
    cache_dir: str = "~/.cache/mtp_jax"
    bucket_seconds: tuple[float, ...] = (2.4, 3.2)
    batch_size: int = 32
    batch_seconds_alike: bool = False
    max_tokens: int = 48
    workers: int = 2
    prefetch: int = 4

    def __post_init__(self) -> None:
        buckets = self.bucket_seconds
        _check(
            len(buckets) > 0 and list(buckets) == sorted(set(buckets)) and buckets[0] > 0,
            "data.bucket_seconds",
            "must be positive and increasing",
        )
        for name in ("batch_size", "max_tokens", "workers", "prefetch"):
            _check(getattr(self, name) > 0, f"data.{name}", "must be positive")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A SentencePiece model: `model` loads one; without it one is trained on the training text.

    Attributes:
        model: path of a ``tokenizer.model``, or empty.
        vocab_size: pieces, the four special ones included, of a tokenizer that is trained.
        algorithm: "unigram" or "bpe".
    """

    model: str = ""
    vocab_size: int = 96
    algorithm: str = "unigram"

    def __post_init__(self) -> None:
        _one_of(self.algorithm, ("unigram", "bpe"), "tokenizer.algorithm")
        _check(self.vocab_size > 4, "tokenizer.vocab_size", "must exceed the 4 special pieces")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Conformer (Gulati et al., 2020) behind a strided one-dimensional convolution.

    Attributes:
        subsampling: stride of each front-end convolution; their product is the number of
            10 ms feature frames that become one encoder frame.
        subsampling_kernel: width of each of these convolutions, in multiples of its stride;
            1 makes it a linear map of stacked frames.
        width: D of the encoder.
        layers, heads: depth and attention heads.
        feedforward: width of the feed-forward layers as a multiple of D.
        kernel: frames that the depthwise convolution sees (odd).
        dropout: rate on every residual branch, in training.
        remat, scan_layers: as in `Decoder`.
    """

    subsampling: tuple[int, ...] = (4, 2)
    subsampling_kernel: int = 1
    width: int = 144
    layers: int = 4
    heads: int = 4
    feedforward: int = 4
    kernel: int = 15
    dropout: float = 0.0
    remat: bool = False
    scan_layers: bool = False

    def __post_init__(self) -> None:
        _check(
            len(self.subsampling) > 0 and all(s >= 1 for s in self.subsampling),
            "encoder.subsampling",
            "must hold at least one stride, each 1 or more",
        )
        for name in ("subsampling_kernel", "width", "layers", "heads", "feedforward"):
            _check(getattr(self, name) > 0, f"encoder.{name}", "must be positive")
        _check(
            self.width % (2 * self.heads) == 0,
            "encoder.width",
            f"({self.width}) must be a multiple of twice config.encoder.heads ({self.heads})",
        )
        _check(self.kernel % 2 == 1, "encoder.kernel", "must be odd")
        _check(0 <= self.dropout < 1, "encoder.dropout", "must be within [0, 1)")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length.

    Attributes:
        kind: "none", "linear", "llama3" or "yarn", as in Hugging Face's ``rope_scaling``.
        factor: how many times longer.
        original_length: positions the unscaled model was trained on (llama3, yarn).
        low_freq_factor, high_freq_factor: the band that llama3 blends over.
        beta_fast, beta_slow: the band that yarn blends over, in rotations.
    """

    kind: str = "none"
    factor: float = 1.0
    original_length: int = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self) -> None:
        _one_of(self.kind, ("none", "linear", "llama3", "yarn"), "decoder.rope_scaling.kind")
        _check(self.factor >= 1, "decoder.rope_scaling.factor", "must be 1 or more")


@dataclasses.dataclass(frozen=True)
class Decoder:
    """LLaMA (Touvron et al., 2023): RMSNorm, RoPE, grouped-query attention, SwiGLU.

    Attributes:
        width: D.
        layers: depth.
        query_heads, kv_heads: N and G; G divides N.
        head_size: H (even).
        feedforward: F.
        rope_theta: base of the rotary frequencies.
        rope_scaling: see `RopeScaling`.
        norm_epsilon: of RMSNorm.
        tied: the LM head is the transposed embedding.
        dropout: rate on every residual branch, in training.
        remat: recompute each layer in the backward pass instead of storing it.
        scan_layers: compile one layer and loop over it; False unrolls the loop (the parameters
            are laid out alike, so that a checkpoint serves both).
        prompt_before, prompt_after: text put around the audio, tokenised without BOS.
    """

    width: int = 144
    layers: int = 2
    query_heads: int = 4
    kv_heads: int = 2
    head_size: int = 36
    feedforward: int = 384
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling = RopeScaling()
    norm_epsilon: float = 1e-5
    tied: bool = True
    dropout: float = 0.0
    remat: bool = False
    scan_layers: bool = False
    prompt_before: str = ""
    prompt_after: str = ""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "query_heads", "kv_heads", "head_size", "feedforward"):
            _check(getattr(self, name) > 0, f"decoder.{name}", "must be positive")
        _check(
            self.query_heads % self.kv_heads == 0,
            "decoder.kv_heads",
            f"({self.kv_heads}) must divide config.decoder.query_heads ({self.query_heads})",
        )
        _check(self.head_size % 2 == 0, "decoder.head_size", "must be even, for rotary positions")
        _check(0 <= self.dropout < 1, "decoder.dropout", "must be within [0, 1)")


@dataclasses.dataclass(frozen=True)
class Heads:
    """The M prediction heads.

    Attributes:
        kind: "independent" (a D x V projection each) or "latent" (a D x D map each, then the
            shared un-embedding).
        count: M, head 1 (the LM head) included; 1 is the plain model.
    """

    kind: str = "latent"
    count: int = 8

    def __post_init__(self) -> None:
        _one_of(self.kind, ("independent", "latent"), "heads.kind")
        _check(self.count >= 1, "heads.count", "must be 1 or more")


@dataclasses.dataclass(frozen=True)
class Loss:
    """Weights of the training loss; head 1 always has weight 1.

    Attributes:
        head_weight: weight of heads 2..M, spread as ``head_weight * head_decay ** (m - 2)``.
        head_decay: see above.
        label_smoothing: mass moved from the target to all tokens evenly.
        ctc: weight of the encoder's CTC loss.
    """

    head_weight: float = 0.5
    head_decay: float = 1.0
    label_smoothing: float = 0.0
    ctc: float = 0.5

    def __post_init__(self) -> None:
        for name in ("head_weight", "head_decay", "ctc"):
            _check(getattr(self, name) >= 0, f"loss.{name}", "must not be negative")
        _check(0 <= self.label_smoothing < 1, "loss.label_smoothing", "must be within [0, 1)")


@dataclasses.dataclass(frozen=True)
class Optim:
    """AdamW under a linear warm-up and a cosine decay to zero.

    Attributes:
        steps: optimizer updates in the whole run.
        warmup_steps: updates until the rate peaks.
        learning_rate: peak.
        weight_decay: on matrices; norms, biases and embeddings are left alone.
        b1, b2: Adam's decay rates.
        clip_norm: greatest global norm of the gradient.
        accumulate: batches whose gradients are summed before one update.
    """

    steps: int = 2000
    warmup_steps: int = 200
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    b1: float = 0.9
    b2: float = 0.98
    clip_norm: float = 1.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate"):
            _check(getattr(self, name) >= 1, f"optim.{name}", "must be 1 or more")
        _check(
            0 <= self.warmup_steps <= self.steps,
            "optim.warmup_steps",
            f"({self.warmup_steps}) must be within [0, config.optim.steps = {self.steps}]",
        )
        for name in ("learning_rate", "clip_norm"):
            _check(getattr(self, name) > 0, f"optim.{name}", "must be positive")
        _check(self.weight_decay >= 0, "optim.weight_decay", "must not be negative")


@dataclasses.dataclass(frozen=True)
class Train:
    """The loop around the training step.

    Attributes:
        dtype: of activations, "float32" or "bfloat16"; parameters are float32.
        log_every: steps between TensorBoard scalars.
        dev_every: steps between greedy decodings of dev, which choose the best checkpoint.
        checkpoint_every: steps between checkpoints to resume from.
        keep_best: checkpoints kept by dev WER.
        explosion: training stops once the loss exceeds this multiple of its running mean.
    """

    dtype: str = "float32"
    log_every: int = 20
    dev_every: int = 500
    checkpoint_every: int = 250
    keep_best: int = 1
    explosion: float = 10.0

    def __post_init__(self) -> None:
        _one_of(self.dtype, ("float32", "bfloat16"), "train.dtype")
        for name in ("log_every", "dev_every", "checkpoint_every", "keep_best"):
            _check(getattr(self, name) > 0, f"train.{name}", "must be positive")
        _check(self.explosion > 1, "train.explosion", "must exceed 1")


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each mesh axis; exactly one may be -1, for all that remain.

    Attributes:
        data: copies of the model, each with its part of the batch.
        fsdp: parts of the batch that also share out the parameters.
        tensor: devices that share each matrix product.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = (self.data, self.fsdp, self.tensor)
        _check(
            all(s >= 1 or s == -1 for s in sizes) and sizes.count(-1) <= 1,
            "mesh",
            f"has sizes {sizes}; each must be 1 or more, and at most one may be -1 (the rest)",
        )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What the closing table compares.

    Attributes:
        batch_sizes: each strategy is run at each of these.
        taus: thresholds swept on dev to choose the one reported on test.
        max_wer_increase: absolute WER (per cent) on dev that threshold decoding may lose.
        normalizer: "english" (Whisper's), "basic" (Whisper's for other languages) or "none".
        strategies: rows of the table.
    """

    batch_sizes: tuple[int, ...] = (1, 16)
    taus: tuple[float, ...] = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
    max_wer_increase: float = 0.0
    normalizer: str = "english"
    strategies: tuple[str, ...] = STRATEGIES

    def __post_init__(self) -> None:
        _one_of(self.normalizer, ("english", "basic", "none"), "evaluation.normalizer")
        _check(
            len(self.batch_sizes) > 0 and all(b > 0 for b in self.batch_sizes),
            "evaluation.batch_sizes",
            "must hold positive sizes",
        )
        for strategy in self.strategies:
            _one_of(strategy, STRATEGIES, "evaluation.strategies")


@dataclasses.dataclass(frozen=True)
class Config:
    """One run, whole. `seed` fixes initialisation, data order and augmentation."""

    seed: int = 0
    front_end: FrontEnd = FrontEnd()
    augment: Augment = Augment()
    data: Data = Data()
    tokenizer: Tokenizer = Tokenizer()
    encoder: Encoder = Encoder()
    decoder: Decoder = Decoder()
    heads: Heads = Heads()
    loss: Loss = Loss()
    optim: Optim = Optim()
    train: Train = Train()
    mesh: Mesh = Mesh()
    evaluation: Evaluation = Evaluation()


def to_config_dict(config: Config) -> ConfigDict:
    """Every field of `config`, open to overrides from the command line."""
    return ConfigDict(dataclasses.asdict(config))


def from_config_dict(values: Mapping[str, Any]) -> Config:
    """Builds the `Config` that `values` describes.

    Args:
        values: nested mapping, a `ConfigDict` or what ``json.loads`` gives.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range, by full name.
    """
    if isinstance(values, ConfigDict):
        values = values.to_dict()
    return typing.cast(Config, _build(Config, values, prefix="config"))


def _build(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix} must be a group of fields, not {values!r}")
    fields = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(str(key), list(fields), n=1)
            hint = f"did you mean {prefix}.{close[0]}?" if close else f"it has {', '.join(fields)}"
            raise ConfigError(f"{prefix}.{key} is not a field: {hint}")
    return cls(**{key: _value(fields[key], v, f"{prefix}.{key}") for key, v in values.items()})


def _value(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, name)
    if isinstance(hint, types.GenericAlias):  # tuple[item, ...]
        if not isinstance(value, (tuple, list)):
            raise ConfigError(f"{name} must be a tuple, not {value!r}")
        return tuple(_value(typing.get_args(hint)[0], item, name) for item in value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{name} must be of type {hint.__name__}, not {value!r}")
    return value


def differences(ours: Config, theirs: Config) -> list[str]:
    """Names of the fields in which two configs differ, as ``optim.steps: 10 -> 20``."""

    def flat(group: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in group.items():
            if isinstance(value, Mapping):
                out |= flat(value, f"{prefix}{key}.")
            else:
                out[prefix + key] = value
        return out

    a, b = flat(dataclasses.asdict(ours)), flat(dataclasses.asdict(theirs))
    return [f"{key}: {a[key]!r} -> {b[key]!r}" for key in a if a[key] != b[key]]
