"""What the model is trained and evaluated with."""

from __future__ import annotations

import dataclasses
import re

from mtp_jax.config.checks import bounded, check, one_of
from mtp_jax.decoding import registry


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
        token_noise: share of the text fed to the decoder that is replaced by random tokens (the
            targets stay): with little data it keeps the decoder from reciting texts by heart
            instead of listening.
    """

    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
    freq_masks: int = 2
    freq_width: int = 27
    time_masks: int = 2
    time_width: int = 100
    time_fraction: float = 0.1
    token_noise: float = 0.0

    def __post_init__(self) -> None:
        check(
            len(self.speeds) > 0 and all(0.5 <= s <= 2 for s in self.speeds),
            "augment.speeds",
            "must be a non-empty tuple of factors between 0.5 and 2",
        )
        for name in ("freq_masks", "freq_width", "time_masks", "time_width"):
            check(getattr(self, name) >= 0, f"augment.{name}", "must not be negative")
        for name in ("time_fraction", "token_noise"):
            check(0 <= getattr(self, name) <= 1, f"augment.{name}", "must be within [0, 1]")


@dataclasses.dataclass(frozen=True)
class Data:
    """Where utterances come from and how they are batched.

    Attributes:
        train, dev, test: a source each: ``embedded:SPLIT`` (the corpus that the project makes
            for itself; ``embedded/noisy:SPLIT`` is the same in rooms and noise),
            ``tfds:NAME[/CONFIG]:SPLIT``, the path of a JSON-lines manifest, a LibriSpeech
            directory, a folder that `mtp_jax.pack` made, ``parquet:FOLDER_OR_FILE`` (as the
            `datasets` library saves; needs pyarrow), or ``audio:FOLDER`` (recordings of any length
            without transcripts, which `text` must be "greedy" for; those longer than the longest
            bucket are cut at pauses). Several, joined by ``+``, are read as one.
        cache_dir: where the embedded corpus, the indices of sources and the cuts of recordings are
            kept.
        tfds_dir: TFDS' data folder; empty takes TFDS_DATA_DIR, or TFDS' own.
        bucket_seconds: upper bounds of the length buckets; the last is the longest utterance
            accepted. Every bucket costs one compilation of the training step.
        batch_size: utterances in a global batch of the longest bucket; shorter buckets hold
            more, in proportion to `batch_seconds_alike`.
        batch_seconds_alike: True gives every bucket about the same seconds of audio a batch,
            False the same number of utterances.
        max_tokens: longest text accepted, in tokens with EOS.
        text: "as_is"; "plain" for lower case without punctuation, which sources that are mixed
            need; or "greedy" for what `config.pretrained.model` writes itself, whatever text a
            source has: heads that are added to it learn to say that, and need no transcripts. A
            source may then lack texts; of a test set without any, no WER is measured.
        workers: threads that read and decode audio.
        prefetch: batches read ahead.
    """

    train: str = "embedded:train"
    dev: str = "embedded:dev"
    test: str = "embedded:test"
    cache_dir: str = "~/.cache/mtp_jax"
    tfds_dir: str = ""
    bucket_seconds: tuple[float, ...] = (2.4, 3.2)
    batch_size: int = 32
    batch_seconds_alike: bool = False
    max_tokens: int = 48
    text: str = "as_is"
    workers: int = 2
    prefetch: int = 4

    def __post_init__(self) -> None:
        buckets = self.bucket_seconds
        check(
            len(buckets) > 0 and list(buckets) == sorted(set(buckets)) and buckets[0] > 0,
            "data.bucket_seconds",
            "must be positive and increasing",
        )
        longest = "must be at most an hour: a batch of more does not fit a memory"
        check(buckets[-1] <= 3600, "data.bucket_seconds", longest)
        bounded(self, "data")
        one_of(self.text, ("as_is", "plain", "greedy"), "data.text")
        for name in ("batch_size", "max_tokens", "workers", "prefetch"):
            check(getattr(self, name) > 0, f"data.{name}", "must be positive")

    @property
    def needs_text(self) -> bool:
        """Whether utterances without a transcript are of no use."""
        return self.text != "greedy"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Where parts of the model come from: folders or files, or ``hf://OWNER/NAME``.

    Attributes:
        encoder: the encoder of a Whisper model, as Hugging Face or CTranslate2 keep it; fills in
            `config.whisper` and `config.front_end`.
        decoder: a LLaMA model, as Hugging Face keeps it or in GGUF; fills in `config.decoder`, and
            brings its tokenizer.
        ctc: workdir or exported folder of a finished model behind the same `encoder`: its Conformer
            and its CTC head are begun with, what it has made of the encoder (LoRA) is kept, and
            its tokenizer becomes that of CTC.
        model: a whole Whisper, as Hugging Face or CTranslate2 keep it, its decoder and tokenizer
            included; fills in `config.whisper`, `config.whisper_decoder` and `config.front_end`.
    """

    encoder: str = ""
    decoder: str = ""
    ctc: str = ""
    model: str = ""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A SentencePiece model, or one of the `tokenizers` package.

    `model` loads one; without it that of `config.pretrained.decoder` is taken, and without that
    a SentencePiece model is trained on the training text.

    Attributes:
        model: path of a ``tokenizer.model``, a ``tokenizer.json``, a GGUF file or a folder with one
            of these, or empty.
        vocab_size: pieces, the four special ones included, of a tokenizer that is trained.
        algorithm: "unigram" or "bpe".
        ctc_vocab_size: pieces of a tokenizer that is trained for the encoder's CTC labels alone; 0
            takes the same as for the text. With a pretrained LLaMA's tens of thousands of tokens,
            a few hundred of their own are learnt from far less speech.
        retrained: train anew what `config.init_from` has as tokenizers, as for another language;
            what the model knows of the pieces that both have is kept. An LLM's own is left to it;
            CTC's labels, where they are their own, are as many as `ctc_vocab_size` says, or as
            before.
    """

    model: str = ""
    vocab_size: int = 96
    algorithm: str = "unigram"
    ctc_vocab_size: int = 0
    retrained: bool = False

    def __post_init__(self) -> None:
        one_of(self.algorithm, ("unigram", "bpe"), "tokenizer.algorithm")
        check(self.vocab_size > 4, "tokenizer.vocab_size", "must exceed the 4 special pieces")
        check(
            self.ctc_vocab_size == 0 or self.ctc_vocab_size > 4,
            "tokenizer.ctc_vocab_size",
            "must be 0 or exceed the 4 special pieces",
        )


@dataclasses.dataclass(frozen=True)
class Loss:
    """Weights of the training loss; head 1 always has weight 1.

    Attributes:
        head_weight: weight of heads 2..M, spread as ``head_weight * head_decay ** (m - 2)``.
        head_decay: see above.
        label_smoothing: mass moved from the target to all tokens evenly.
        ctc: weight of the encoder's CTC loss.
        ctc_consistency: weight within it of what `losses.consistency` gives; above 0 training sees
            two views of every utterance, unlike in augmentation and dropout, at twice the cost.
        columns: tokens of the vocabulary whose logits exist at a time, about.
    """

    head_weight: float = 0.5
    head_decay: float = 1.0
    label_smoothing: float = 0.0
    ctc: float = 0.5
    ctc_consistency: float = 0.0
    columns: int = 8192

    def __post_init__(self) -> None:
        check(self.columns > 0, "loss.columns", "must be positive")
        for name in ("head_weight", "head_decay", "ctc", "ctc_consistency"):
            check(getattr(self, name) >= 0, f"loss.{name}", "must not be negative")
        check(0 <= self.label_smoothing < 1, "loss.label_smoothing", "must be within [0, 1)")
        check(
            self.ctc > 0 or not self.ctc_consistency,
            "loss.ctc_consistency",
            "is a weight within loss.ctc, which is 0: set it above 0",
        )


@dataclasses.dataclass(frozen=True)
class Mwer:
    """Minimum word error rate training (Prabhavalkar et al., 2018), for a model that is trained.

    Attributes:
        weight: of the expected word errors an utterance; 0 turns it off.
        cross_entropy: weight of the loss that `Loss` describes beside it.
        beams: hypotheses in an n-best list.
        search: the strategy that makes it: one of `mtp_jax.decoding.registry` that makes lists.
        rounds: of prefix beam search, at most.
        all_heads: False scores hypotheses by head 1, True by all heads.
        reference: True adds the reference to each list.
        words: which words count as the same. "normalized" ignores the case of ASCII letters and
            ASCII punctuation, apostrophes apart; numbers and spellings are not joined, as
            `Evaluation.normalizer` may do. "written" compares words as they are written.
    """

    weight: float = 0.0
    cross_entropy: float = 1.0
    beams: int = 4
    search: str = "prefix_beam"
    rounds: int = 2
    all_heads: bool = False
    reference: bool = False
    words: str = "normalized"

    def __post_init__(self) -> None:
        one_of(self.words, ("normalized", "written"), "mwer.words")
        for name in ("weight", "cross_entropy"):
            check(getattr(self, name) >= 0, f"mwer.{name}", "must not be negative")
        searches = registry.names(lambda entry: entry.makes_nbest)
        one_of(self.search, searches, "mwer.search")
        check(self.rounds > 0, "mwer.rounds", "must be positive")
        check(self.beams >= 2, "mwer.beams", "must be 2 or more: errors are compared")


@dataclasses.dataclass(frozen=True)
class Optim:
    """The optimizer, under a linear warm-up and a cosine decay to zero.

    Attributes:
        algorithm: "adamw", or "muon" (Jordan et al., 2024) for matrices with AdamW for the rest.
        steps: optimizer updates in the whole run.
        warmup_steps: updates until the rate peaks.
        learning_rate: peak.
        weight_decay: on matrices; norms, biases and embeddings are left alone.
        b1, b2: Adam's decay rates.
        clip_norm: greatest global norm of the gradient.
        accumulate: batches whose gradients are averaged for one update.
        freeze: parameters left as they are, by patterns over paths such as
            ``decoder/layers/gate/kernel``. ``*`` spans slashes too; of several patterns the last
            that matches decides; one that begins with ``!`` trains.
        rates: factors on the learning rate, ``PATTERN=FACTOR``; the last that matches holds.
    """

    algorithm: str = "adamw"
    steps: int = 2000
    warmup_steps: int = 200
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    b1: float = 0.9
    b2: float = 0.98
    clip_norm: float = 1.0
    accumulate: int = 1
    freeze: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        one_of(self.algorithm, ("adamw", "muon"), "optim.algorithm")
        for name in ("steps", "accumulate"):
            check(getattr(self, name) >= 1, f"optim.{name}", "must be 1 or more")
        check(
            0 <= self.warmup_steps < self.steps,
            "optim.warmup_steps",
            f"({self.warmup_steps}) must be less than config.optim.steps ({self.steps})",
        )
        for name in ("learning_rate", "clip_norm"):
            check(getattr(self, name) > 0, f"optim.{name}", "must be positive")
        for name in ("b1", "b2"):
            check(0 <= getattr(self, name) < 1, f"optim.{name}", "must be within [0, 1)")
        check(self.weight_decay >= 0, "optim.weight_decay", "must not be negative")
        for rate in self.rates:
            factor = rate.rpartition("=")[2]
            check(
                "=" in rate and re.fullmatch(r"\d+(\.\d*)?(e-?\d+)?", factor) is not None,
                "optim.rates",
                f"holds {rate!r}, which is not PATTERN=FACTOR such as decoder/*=0.1",
            )

    @property
    def rate_factors(self) -> tuple[tuple[str, float], ...]:
        """Pattern and factor of each of `rates`."""
        pairs = (rate.rpartition("=") for rate in self.rates)
        return tuple((pattern, float(factor)) for pattern, _, factor in pairs)


@dataclasses.dataclass(frozen=True)
class Train:
    """The loop around the training step.

    Attributes:
        dtype: of activations, "float32" or "bfloat16"; parameters are float32. On a CPU the
            activations of a decoder that decodes are float32 whatever this says, and its matrices
            too where the CPU has no units for bfloat16.
        log_every: steps between TensorBoard scalars.
        dev_every: steps between greedy decodings of dev, which choose the best checkpoint. Where
            a Whisper's text stays, and CTC is trained, it is CTC that decodes.
        checkpoint_every: steps between checkpoints to resume from.
        keep_best: checkpoints kept by dev WER.
        max_loss_ratio: training stops once head 1's mean loss over `log_every` steps exceeds this
            multiple of its running mean, or of `training.monitor.LOSS_FLOOR` if that is greater.
    """

    dtype: str = "float32"
    log_every: int = 20
    dev_every: int = 500
    checkpoint_every: int = 250
    keep_best: int = 1
    max_loss_ratio: float = 10.0

    def __post_init__(self) -> None:
        one_of(self.dtype, ("float32", "bfloat16"), "train.dtype")
        for name in ("log_every", "dev_every", "checkpoint_every", "keep_best"):
            check(getattr(self, name) > 0, f"train.{name}", "must be positive")
        check(self.max_loss_ratio > 1, "train.max_loss_ratio", "must exceed 1")


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
        check(
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
        max_wer_increase: per cent, absolute, by which the WER of threshold decoding may exceed
            greedy's on speech like dev's, at 95 % confidence. At 0 hardly any tau can be shown to
            be safe.
        normalizer: "english" (Whisper's), "basic" (Whisper's for other languages) or "none".
        strategies: rows of the table, by their names in `mtp_jax.decoding.registry`.
        draft_width: tokens that a call is wide, one certain, where drafts are read off a text: what
            CTC reads, or a hypothesis.
        beams: hypotheses of "beam", "prefix_beam" and "prefix_beam_ctc".
        beam_rounds: of prefix beam search, at most.
        length_power: hypotheses are compared by log-probability over length to this power.
        bucket_seconds: length buckets, as in `Data`, which it falls back on if empty. Every
            bucket costs one compilation a strategy and batch size.
    """

    batch_sizes: tuple[int, ...] = (1, 16)
    taus: tuple[float, ...] = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
    max_wer_increase: float = 0.5
    normalizer: str = "english"
    strategies: tuple[str, ...] = ("ctc", "greedy", "threshold", "verify", "verify_ctc")
    draft_width: int = 16
    beams: int = 8
    beam_rounds: int = 3
    length_power: float = 0.0
    bucket_seconds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        one_of(self.normalizer, ("english", "basic", "none"), "evaluation.normalizer")
        check(
            len(self.batch_sizes) > 0 and all(b > 0 for b in self.batch_sizes),
            "evaluation.batch_sizes",
            "must hold positive sizes",
        )
        check(self.draft_width > 1, "evaluation.draft_width", "must be 2 or more")
        check(self.beams > 0, "evaluation.beams", "must be positive")
        check(self.beam_rounds > 0, "evaluation.beam_rounds", "must be positive")
        check(self.length_power >= 0, "evaluation.length_power", "must not be negative")
        check(len(self.strategies) > 0, "evaluation.strategies", "must name at least one")
        for strategy in self.strategies:
            one_of(strategy, registry.names(), "evaluation.strategies")

    def needs_tau(self, heads: int) -> bool:
        """Whether threshold decoding is compared, of a model with M `heads`."""
        return heads > 1 and "threshold" in self.strategies
