"""Released speech LLMs: an audio encoder and a projector in front of a decoder-only LLM.

`config.pretrained.model` fills the group in. Whose facts these are, by family, stands in
`mtp_jax.pretrained.speech_llm`.
"""

from __future__ import annotations

import dataclasses

from mtp_jax.config.checks import bounded, check, one_of

# Names that config.json gives as ``model_type``, and those of people.
FAMILIES = {
    "voxtral": "Voxtral",
    "qwen3_asr": "Qwen3-ASR",
    "granite_speech": "Granite-speech",
    "glmasr": "GLM-ASR",
}
ENCODERS = ("whisper", "qwen", "granite")
PROJECTORS = ("mlp", "qformer")


@dataclasses.dataclass(frozen=True)
class AudioEncoder:
    """From log-mel frames to hidden states.

    Attributes:
        kind: "whisper" (windows of `positions`, padded with silence that is attended to), "qwen"
            (chunks through convolutions, then attention within windows of several chunks) or
            "granite" (Conformer on pairs of frames, attention within windows).
        width, layers, heads: D, depth and attention heads.
        head_size: H; 0 for D / heads.
        feedforward: F.
        positions: frames of 20 ms in a window of "whisper"; else in the longest recording that is
            decoded at once.
        rotary: features of each head of "whisper" that turn with their position (Su et al., 2021),
            in place of a table of positions; 0 for the table.
        own_floor: each window of "whisper" has a floor of its own under its log-mel features; else
            one lies under all of a recording.
        keeps_silence: states of the silence that pads a window of "whisper" go into the prompt.
        min_samples: to which shorter clips are padded with zeros that count as speech.
        channels: of the convolutions of "qwen".
        chunk: log-mel frames that these see, or that are stacked ("granite").
        window: log-mel frames that attention sees.
        kernel: frames that the depthwise convolution of "granite" sees.
        expansion: its channels, as a multiple of D.
        distances: the greatest distance of two frames that has an embedding ("granite").
        labels: outputs of the CTC head of "granite".
    """

    kind: str = "whisper"
    width: int = 1280
    layers: int = 32
    heads: int = 20
    head_size: int = 0
    feedforward: int = 5120
    positions: int = 1500
    rotary: int = 0
    own_floor: bool = False
    keeps_silence: bool = True
    min_samples: int = 0
    channels: int = 480
    chunk: int = 100
    window: int = 800
    kernel: int = 15
    expansion: int = 2
    distances: int = 512
    labels: int = 348

    def __post_init__(self) -> None:
        bounded(self, "speech_llm.encoder")
        one_of(self.kind, ENCODERS, "speech_llm.encoder.kind")
        sizes = ("width", "layers", "heads", "feedforward", "positions", "channels", "chunk")
        for name in (*sizes, "window", "kernel", "expansion", "distances", "labels"):
            check(getattr(self, name) > 0, f"speech_llm.encoder.{name}", "must be positive")
        for name in ("head_size", "rotary", "min_samples"):
            check(getattr(self, name) >= 0, f"speech_llm.encoder.{name}", "must not be negative")
        check(self.kernel % 2 == 1, "speech_llm.encoder.kernel", "must be odd")
        check(
            self.window % self.chunk == 0,
            "speech_llm.encoder.window",
            f"({self.window}) must be a multiple of config.speech_llm.encoder.chunk ({self.chunk})",
        )
        check(
            self.window // self.chunk <= self.distances or self.kind != "granite",
            "speech_llm.encoder.distances",
            f"({self.distances}) must reach over config.speech_llm.encoder.window ({self.window})",
        )
        check(
            self.layers > 1 or self.kind != "granite",
            "speech_llm.encoder.layers",
            "must be 2 or more: the CTC head conditions the upper half",
        )
        check(
            self.head_size > 0 or self.width % self.heads == 0,
            "speech_llm.encoder.width",
            f"({self.width}) must be a multiple of config.speech_llm.encoder.heads ({self.heads})",
        )
        check(
            self.feedforward == 4 * self.width,
            "speech_llm.encoder.feedforward",
            f"({self.feedforward}) must be 4 times config.speech_llm.encoder.width ({self.width})",
        )


@dataclasses.dataclass(frozen=True)
class Projector:
    """From hidden states to rows of the decoder's prompt.

    Attributes:
        kind: "mlp" (two linear layers, GELU between them) or "qformer" (learned queries that look
            at windows of states, then a linear layer).
        stack: neighbouring states that become one row of "mlp".
        width: of the layer between, or D of "qformer".
        bias: whether the layers of "mlp" have biases.
        window: states that the queries of "qformer" look at together.
        queries: rows that become of a window.
        layers, heads, feedforward: depth, attention heads and F of "qformer".
    """

    kind: str = "mlp"
    stack: int = 4
    width: int = 3072
    bias: bool = False
    window: int = 15
    queries: int = 3
    layers: int = 2
    heads: int = 16
    feedforward: int = 4096

    def __post_init__(self) -> None:
        bounded(self, "speech_llm.projector")
        one_of(self.kind, PROJECTORS, "speech_llm.projector.kind")
        for name in ("stack", "width", "window", "queries", "layers", "heads", "feedforward"):
            check(getattr(self, name) > 0, f"speech_llm.projector.{name}", "must be positive")
        check(
            self.width % self.heads == 0 or self.kind != "qformer",
            "speech_llm.projector.width",
            f"({self.width}) must be a multiple of config.speech_llm.projector.heads"
            f" ({self.heads})",
        )


@dataclasses.dataclass(frozen=True)
class SpeechLlm:
    """A released speech LLM, in place of Conformer, CTC and adaptor.

    Attributes:
        family: one of `FAMILIES`, which decides the prompt and what is parsed of a text; empty for
            a model that is none.
        encoder, projector: its parts; the decoder is `config.decoder`.
        positions: that the decoder was trained for, of prompt, audio and text together.
    """

    family: str = ""
    encoder: AudioEncoder = AudioEncoder()
    projector: Projector = Projector()
    positions: int = 131_072

    def __post_init__(self) -> None:
        bounded(self, "speech_llm")
        one_of(self.family, ("", *FAMILIES), "speech_llm.family")
        check(self.positions > 0, "speech_llm.positions", "must be positive")

    @property
    def present(self) -> bool:
        """Whether the model is one."""
        return bool(self.family)
