"""Released speech LLMs: an audio encoder and a projector in front of a decoder-only LLM.

`config.pretrained.model` fills the group in. Whose facts these are, by family, stands in
`mtp_jax.pretrained.speech_llm`.
"""

from __future__ import annotations

import dataclasses

from mtp_jax.config.checks import check, one_of

# Names that config.json gives as ``model_type``, and those of people.
FAMILIES = {"voxtral": "Voxtral", "qwen3_asr": "Qwen3-ASR", "glmasr": "GLM-ASR"}
ENCODERS = ("whisper", "glm", "qwen")


@dataclasses.dataclass(frozen=True)
class AudioEncoder:
    """From log-mel frames to hidden states.

    Attributes:
        kind: "whisper" (windows of `positions`, padded with silence that is attended to), "glm"
            (the same with rotary positions on half of each head) or "qwen" (chunks through
            convolutions, then attention within windows of several chunks).
        width, layers, heads: D, depth and attention heads.
        feedforward: F.
        positions: frames of 20 ms in a window; of "qwen", in the longest recording that is decoded
            at once.
        channels: of the convolutions of "qwen".
        chunk, window: log-mel frames that these see, and that attention sees.
    """

    kind: str = "whisper"
    width: int = 1280
    layers: int = 32
    heads: int = 20
    feedforward: int = 5120
    positions: int = 1500
    channels: int = 480
    chunk: int = 100
    window: int = 800

    def __post_init__(self) -> None:
        one_of(self.kind, ENCODERS, "speech_llm.encoder.kind")
        sizes = ("width", "layers", "heads", "feedforward", "positions", "channels", "chunk")
        for name in (*sizes, "window"):
            check(getattr(self, name) > 0, f"speech_llm.encoder.{name}", "must be positive")
        check(
            self.window % self.chunk == 0,
            "speech_llm.encoder.window",
            f"({self.window}) must be a multiple of config.speech_llm.encoder.chunk ({self.chunk})",
        )
        check(
            self.width % self.heads == 0,
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
    """From hidden states to rows of the decoder's prompt: two linear layers, GELU between them.

    Attributes:
        stack: neighbouring states that become one row.
        width: of the layer between.
        bias: whether the layers have biases.
    """

    stack: int = 4
    width: int = 3072
    bias: bool = False

    def __post_init__(self) -> None:
        for name in ("stack", "width"):
            check(getattr(self, name) > 0, f"speech_llm.projector.{name}", "must be positive")


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
        one_of(self.family, ("", *FAMILIES), "speech_llm.family")
        check(self.positions > 0, "speech_llm.positions", "must be positive")

    @property
    def present(self) -> bool:
        """Whether the model is one."""
        return bool(self.family)
