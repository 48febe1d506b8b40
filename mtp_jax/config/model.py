"""What the model is made of."""

from __future__ import annotations

import dataclasses
import math

from mtp_jax.config.checks import bounded, check, one_of


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """Log-mel features, 100 frames a second.

    Attributes:
        flavour: "kaldi" (pre-emphasis, Povey window, natural log), "whisper" (Hann window,
            log10, clipped 8 below the loudest, scaled) or "granite" (as Whisper's, of a finer
            spectrum on HTK's mel scale, with the last frame).
        mel_bins: Z.
        sample_rate: Hz; recordings are resampled to it when they are read.
    """

    flavour: str = "kaldi"
    mel_bins: int = 80
    sample_rate: int = 16_000

    def __post_init__(self) -> None:
        bounded(self, "front_end")
        one_of(self.flavour, ("kaldi", "whisper", "granite"), "front_end.flavour")
        check(self.mel_bins > 0, "front_end.mel_bins", "must be positive")
        check(self.sample_rate >= 1000, "front_end.sample_rate", "must be 1000 or more")
        check(
            self.flavour == "kaldi" or self.sample_rate == 16_000,
            "front_end.sample_rate",
            f"({self.sample_rate}) must be 16000 for config.front_end.flavour {self.flavour!r}",
        )


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank updates beside the matrices of attention and feed-forward layers (Hu et al., 2022).

    Attributes:
        rank: of each update; 0 for none.
        alpha: the update is scaled by ``alpha / rank``.
    """

    rank: int = 0
    alpha: float = 16.0

    def check(self, group: str) -> None:
        """Refuses a field by its full name, as part of the `group` that it belongs to."""
        check(self.rank >= 0, f"{group}.lora.rank", "must not be negative")
        check(self.alpha > 0, f"{group}.lora.alpha", "must be positive")


@dataclasses.dataclass(frozen=True)
class Whisper:
    """Whisper's encoder (Radford et al., 2022) between the log-mel features and the Conformer.

    `config.pretrained.encoder` fills the sizes in.

    Attributes:
        width, layers, heads: D, depth (0 for no Whisper) and attention heads.
        positions: frames of 20 ms in its window.
        padded: encode windows of 30 s padded with silence, as Whisper was trained; False encodes
            the true length of each utterance, which is cheaper.
        cached: training reads its outputs from disk, made once for each utterance and each of
            `config.augment.speeds` (about 50 kB a second of audio for D = 512); it must be frozen,
            its LoRA included. So with the encoder of a speech LLM.
        silence: seconds of silence that Whisper's own decoder gets to hear behind an utterance, as
            far as the window has place for them; 30 fill it always, as in its training.
        lora: trained beside it.
    """

    width: int = 0
    layers: int = 0
    heads: int = 0
    positions: int = 1500
    padded: bool = False
    cached: bool = False
    silence: float = 30.0
    lora: Lora = Lora()

    def __post_init__(self) -> None:
        bounded(self, "whisper")
        check(0 <= self.silence < math.inf, "whisper.silence", "must be 0 or more, and finite")
        for name in ("width", "layers", "heads"):
            check(getattr(self, name) >= 0, f"whisper.{name}", "must not be negative")
        check(self.positions > 0, "whisper.positions", "must be positive")
        self.lora.check("whisper")
        check(
            not self.layers or (self.heads > 0 and self.width > 0 and not self.width % self.heads),
            "whisper.width",
            f"({self.width}) must be a multiple of config.whisper.heads ({self.heads})",
        )

    @property
    def present(self) -> bool:
        """Whether the model has a Whisper encoder."""
        return self.layers > 0


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Conformer (Gulati et al., 2020) behind a strided one-dimensional convolution.

    It hears log-mel features, or what Whisper makes of them.

    Attributes:
        subsampling: stride of each front-end convolution; their product is the number of
            feature frames (10 ms, or 20 ms of Whisper) that become one encoder frame.
        subsampling_kernel: width of each of these convolutions, in multiples of its stride;
            1 makes it a linear map of stacked frames.
        width: D of the encoder.
        layers, heads: depth (0 for the convolutions alone) and attention heads.
        feedforward: width of the feed-forward layers as a multiple of D.
        kernel: frames that the depthwise convolution sees (odd).
        dropout: rate on every residual branch, in training.
        remat, remat_products, scan_layers: as in `Decoder`.
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
    remat_products: bool = True
    scan_layers: bool = False

    def __post_init__(self) -> None:
        bounded(self, "encoder")
        check(
            len(self.subsampling) > 0 and all(s >= 1 for s in self.subsampling),
            "encoder.subsampling",
            "must hold at least one stride, each 1 or more",
        )
        check(self.layers >= 0, "encoder.layers", "must not be negative")
        for name in ("subsampling_kernel", "width", "heads", "feedforward"):
            check(getattr(self, name) > 0, f"encoder.{name}", "must be positive")
        check(
            self.width % (2 * self.heads) == 0,
            "encoder.width",
            f"({self.width}) must be a multiple of twice config.encoder.heads ({self.heads})",
        )
        check(self.kernel % 2 == 1, "encoder.kernel", "must be odd")
        check(0 <= self.dropout < 1, "encoder.dropout", "must be within [0, 1)")


@dataclasses.dataclass(frozen=True)
class Adaptor:
    """From the encoder's output to the decoder's audio prompt.

    Attributes:
        ctc_compression: one embedding for each label that the CTC head finds: the average of its
            frames (Gaido et al., 2021) and the decoder's embedding of the label. The prompt is then
            about as long as the text, and reads like it. False gives the decoder every frame.
        retokenized: with `ctc_compression` and CTC labels of their own, the text that these spell
            is cut into the decoder's tokens, and there is one embedding for each of them: a
            pretrained decoder at once reads what CTC has found. It must be a byte-level BPE.
        aligned_positions: the text starts at the position of the audio's first embedding, not
            behind the last. With `ctc_compression` the n-th token then stands about where what was
            heard of it does, which a decoder finds from little data.
        training_capacity: the most embeddings that training gives the decoder with
            `ctc_compression`, as a share of the encoder's frames: labels beyond them count as part
            of the last, tokens are left out. Speech has far fewer of either than frames, and empty
            places cost a decoder as much as full ones. Decoding has a place for all.
    """

    ctc_compression: bool = False
    retokenized: bool = False
    aligned_positions: bool = False
    training_capacity: float = 1.0

    def __post_init__(self) -> None:
        bounded(self, "adaptor")
        check(
            self.ctc_compression or not self.retokenized,
            "adaptor.retokenized",
            "needs config.adaptor.ctc_compression",
        )
        check(0 < self.training_capacity <= 1, "adaptor.training_capacity", "must be within (0, 1]")


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
        one_of(self.kind, ("none", "linear", "llama3", "yarn"), "decoder.rope_scaling.kind")
        check(self.factor >= 1, "decoder.rope_scaling.factor", "must be 1 or more")
        check(
            self.high_freq_factor > self.low_freq_factor,
            "decoder.rope_scaling.high_freq_factor",
            "must exceed low_freq_factor",
        )


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
        remat_products: with `remat`, recompute matrix products too; False stores their outputs, and
            recomputes norms, activations and the scores of attention, which takes little time.
        scan_layers: compile one layer and loop over it; False unrolls the loop (the parameters
            are laid out alike, so that a checkpoint serves both).
        prompt_before, prompt_after: text put around the audio, tokenised without BOS.
        lora: trained beside its matrices.
        qk_norm: an RMSNorm on each head of queries and keys, before they are rotated (Qwen3).
        attention_scale: factor on the scores of attention; 0 for ``H ** -0.5``.
        embedding_multiplier: factor on every row that the first layer reads, audio too.
        residual_multiplier: factor on what a sublayer adds.
        logits_scaling: logits are divided by it. (The last four are Granite's.)
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
    remat_products: bool = True
    scan_layers: bool = False
    prompt_before: str = ""
    prompt_after: str = ""
    lora: Lora = Lora()
    qk_norm: bool = False
    attention_scale: float = 0.0
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0

    def __post_init__(self) -> None:
        bounded(self, "decoder")
        check(self.attention_scale >= 0, "decoder.attention_scale", "must not be negative")
        for name in ("embedding_multiplier", "residual_multiplier", "logits_scaling"):
            check(getattr(self, name) > 0, f"decoder.{name}", "must be positive")
        for name in ("width", "layers", "query_heads", "kv_heads", "head_size", "feedforward"):
            check(getattr(self, name) > 0, f"decoder.{name}", "must be positive")
        check(
            self.query_heads % self.kv_heads == 0,
            "decoder.kv_heads",
            f"({self.kv_heads}) must divide config.decoder.query_heads ({self.query_heads})",
        )
        check(self.head_size % 2 == 0, "decoder.head_size", "must be even, for rotary positions")
        self.lora.check("decoder")
        check(0 <= self.dropout < 1, "decoder.dropout", "must be within [0, 1)")


@dataclasses.dataclass(frozen=True)
class WhisperDecoder:
    """Whisper's decoder (Radford et al., 2022), in place of adaptor and LLaMA.

    `config.pretrained.model` fills it in.

    Attributes:
        width, layers, heads: D, depth (0 for a model without one) and attention heads.
        positions: tokens in its window, those before the text included.
        alignment_heads: layer and place of the heads that tell when a token was said; if there are
            none, those of the upper half of the layers.
        timestamps: its texts hold the times at which their phrases begin and end, as tokens.
        lora: trained beside its matrices, but for those that make keys and values of the audio.
    """

    width: int = 0
    layers: int = 0
    heads: int = 0
    positions: int = 448
    alignment_heads: tuple[tuple[int, ...], ...] = ()
    timestamps: bool = False
    lora: Lora = Lora()

    def __post_init__(self) -> None:
        bounded(self, "whisper_decoder")
        for name in ("width", "layers", "heads"):
            check(getattr(self, name) >= 0, f"whisper_decoder.{name}", "must not be negative")
        check(self.positions > 8, "whisper_decoder.positions", "must be above 8")
        self.lora.check("whisper_decoder")
        check(
            all(
                len(head) == 2 and 0 <= head[0] < self.layers and 0 <= head[1] < self.heads
                for head in self.alignment_heads
            ),
            "whisper_decoder.alignment_heads",
            "must name a layer and a head of the decoder each",
        )
        check(
            not self.layers or (self.heads > 0 and self.width > 0 and not self.width % self.heads),
            "whisper_decoder.width",
            f"({self.width}) must be a multiple of config.whisper_decoder.heads ({self.heads})",
        )

    @property
    def present(self) -> bool:
        """Whether the model has Whisper's decoder."""
        return self.layers > 0


@dataclasses.dataclass(frozen=True)
class Heads:
    """The M prediction heads.

    Attributes:
        kind: "independent" (a D x V projection each), "latent" (a D x D map each, then the shared
            un-embedding), "residual" (as latent, but the SiLU of the map is added to the state) or
            "serial" (one block for all heads, which takes the state of the head before and the
            token that this one drafted, and looks at the audio again; of a finished model only).
        count: M, head 1 (the LM head) included; 1 is the plain model.
        layers: of heads 2..M alone, between the decoder's and theirs, each like one of the
            decoder's. They look at the audio and the text by themselves, so that what drafts need
            has not to be in the hidden state that head 1 reads.
        detached: True keeps the losses of heads 2..M from all parameters but their own: head 1, and
            all below it, is trained as it would be without them.
        vocabulary: how many tokens heads 2..M draft, those that training's text has most often;
            0 for all. With few, drafting takes less time.
    """

    kind: str = "latent"
    count: int = 8
    layers: int = 0
    detached: bool = False
    vocabulary: int = 0

    def __post_init__(self) -> None:
        bounded(self, "heads")
        one_of(self.kind, ("independent", "latent", "residual", "serial"), "heads.kind")
        check(self.vocabulary >= 0, "heads.vocabulary", "must not be negative")
        check(self.count >= 1, "heads.count", "must be 1 or more")
        check(self.layers >= 0, "heads.layers", "must not be negative")
        check(
            self.layers == 0 or self.count > 1,
            "heads.layers",
            f"({self.layers}) needs config.heads.count of 2 or more: they are of heads 2..M",
        )

    @property
    def serial(self) -> bool:
        """Whether each head takes the token that the one before it drafted."""
        return self.kind == "serial" and self.count > 1

    @property
    def own_states(self) -> bool:
        """Whether heads 2..M read another state than head 1."""
        return self.layers > 0 or self.serial
