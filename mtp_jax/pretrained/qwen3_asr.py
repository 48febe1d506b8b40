"""Qwen3-ASR: convolutions and windowed attention, a projector, Qwen3; in two layouts of names."""

from __future__ import annotations

from collections.abc import Iterable

from mtp_jax.config import AudioEncoder, FrontEnd, Projector, SpeechLlm
from mtp_jax.pretrained import llama, whisper
from mtp_jax.pretrained.errors import PretrainedError
from mtp_jax.pretrained.family import Family, SpeechLlmSource, below, group, linear
from mtp_jax.pretrained.fields import Fields
from mtp_jax.pretrained.table import Rule
from mtp_jax.pretrained.weights import Weights

# What the class of each group means where config.json, of an older transformers, leaves it out.
_TEXT = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 65_536,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
_AUDIO = {
    "num_mel_bins": 128,
    "encoder_layers": 24,
    "encoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "d_model": 1024,
    "n_window": 50,
    "n_window_infer": 800,
    "downsample_hidden_size": 480,
}
_SHORTEST = 8000  # samples
_LONGEST = 1500  # frames of 20 ms: chunks are cut as for the other models


def _describe(config: Fields) -> SpeechLlmSource:
    names = config.get("architectures", [])
    if any("ForcedAligner" in str(n) or "TokenClassification" in str(n) for n in names):
        raise PretrainedError(
            f"{config.where} is of a Qwen3 forced aligner, which writes no text: choose a Qwen3-ASR"
        )
    # QwenLM's own layout nests what transformers has at the top.
    own_layout = "thinker_config" in config.values
    whole = group(config, "thinker_config") if own_layout else config
    text, audio = group(whole, "text_config", _TEXT), group(whole, "audio_config", _AUDIO)
    audio.must("activation_function", ("gelu",), "gelu")
    audio.must("scale_embedding", (False,), False)
    audio.must("output_dim", (text.integer("hidden_size"),), text.integer("hidden_size"))
    # There the text's own field tells whether the head is tied; transformers has it at the top.
    tied = (text if own_layout else config).get("tie_word_embeddings", True)
    given = {**text.values, "model_type": "qwen3", "tie_word_embeddings": tied}
    decoder = llama.llama_of(Fields(text.where, given))
    chunk, width = 2 * audio.integer("n_window"), audio.integer("d_model")
    return SpeechLlmSource(
        config=SpeechLlm(
            family="qwen3_asr",
            encoder=AudioEncoder(
                kind="qwen",
                width=width,
                layers=audio.integer("encoder_layers"),
                heads=audio.integer("encoder_attention_heads"),
                feedforward=audio.integer("encoder_ffn_dim"),
                positions=_LONGEST,
                min_samples=_SHORTEST,
                channels=audio.integer("downsample_hidden_size"),
                chunk=chunk,
                window=audio.integer("n_window_infer"),
            ),
            projector=Projector(stack=1, width=width, bias=True),
            positions=text.integer("max_position_embeddings"),
        ),
        decoder=decoder.config,
        front_end=FrontEnd("whisper", audio.integer("num_mel_bins")),
        rows=decoder.vocab_size,
        audio_token=whole.token("audio_token_id"),
    )


def qwen_encoder_rules(prefix: str) -> tuple[Rule, ...]:
    """The table of the encoder, whose names begin with `prefix`."""
    convolutions = (
        rule
        for i in (1, 2, 3)
        for rule in (
            Rule(f"convolution_{i}/kernel", f"{prefix}conv2d{i}.weight", taps=9, square=True),
            Rule(f"convolution_{i}/bias", f"{prefix}conv2d{i}.bias"),
        )
    )
    return (
        *convolutions,
        *linear("input", f"{prefix}conv_out", False),
        *whisper.block_rules(prefix, key_bias=True),
        *whisper.norm_rules("norm", f"{prefix}ln_post", ("weight", "bias")),
    )


def _rules(weights: Weights, config: SpeechLlm) -> Iterable[Rule]:
    del config
    if "thinker.audio_tower.conv2d1.weight" in weights.names:  # QwenLM's own
        audio, model, head = "thinker.audio_tower.", "thinker.model.", "thinker.lm_head.weight"
        projector = [f"{audio}proj{i}" for i in (1, 2)]
    else:
        audio, model, head = "model.audio_tower.", "model.language_model.", "lm_head.weight"
        projector = [f"model.multi_modal_projector.linear_{i}" for i in (1, 2)]
    yield from below("encoder", qwen_encoder_rules(audio))
    for ours, theirs in zip(("up", "down"), projector, strict=True):
        yield from below("projector", linear(ours, theirs, True))
    yield from below("decoder", llama.hugging_face_rules(model, head))


_ENDS = [151_645, 151_643]
QWEN3_ASR = Family(
    _describe,
    _rules,
    released={
        "Qwen/Qwen3-ASR-1.7B": {"eos_token_id": _ENDS},
        "Qwen/Qwen3-ASR-0.6B": {
            "eos_token_id": _ENDS,
            "audio_config": {
                "d_model": 896,
                "encoder_layers": 18,
                "encoder_attention_heads": 14,
                "encoder_ffn_dim": 3584,
                "output_dim": 1024,
            },
            "text_config": {"hidden_size": 1024, "intermediate_size": 3072},
        },
    },
)
