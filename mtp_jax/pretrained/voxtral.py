"""Voxtral: Whisper's encoder, four of its states per row, a LLaMA."""

from __future__ import annotations

from collections.abc import Iterable

from mtp_jax.config import AudioEncoder, FrontEnd, Projector, SpeechLlm
from mtp_jax.pretrained import llama, whisper
from mtp_jax.pretrained.family import Family, SpeechLlmSource, below, group, linear, stacked
from mtp_jax.pretrained.fields import Fields
from mtp_jax.pretrained.table import Rule
from mtp_jax.pretrained.weights import Weights

# What the class of each group means where config.json, of an older transformers, leaves it out.
_TEXT = {
    "model_type": "llama",
    "vocab_size": 131_072,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e8,
}
_AUDIO = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
}


def _describe(config: Fields) -> SpeechLlmSource:
    text, audio = group(config, "text_config", _TEXT), group(config, "audio_config", _AUDIO)
    text.must("model_type", ("llama", "mistral"), None)
    audio.must("activation_function", ("gelu",), "gelu")
    audio.must("scale_embedding", (False,), False)
    config.must("projector_hidden_act", ("gelu",), "gelu")
    decoder = llama.llama_of(text)
    width = audio.integer("hidden_size")
    positions = audio.integer("max_source_positions")
    stack = stacked(audio, positions)
    return SpeechLlmSource(
        config=SpeechLlm(
            family="voxtral",
            encoder=AudioEncoder(
                kind="whisper",
                width=width,
                layers=audio.integer("num_hidden_layers"),
                heads=audio.integer("num_attention_heads"),
                feedforward=audio.integer("intermediate_size"),
                positions=positions,
            ),
            projector=Projector(stack=stack, width=decoder.config.width, bias=False),
            positions=text.integer("max_position_embeddings"),
        ),
        decoder=decoder.config,
        front_end=FrontEnd("whisper", audio.integer("num_mel_bins")),
        rows=decoder.vocab_size,
        audio_token=config.token("audio_token_id"),
    )


def _rules(weights: Weights, config: SpeechLlm) -> Iterable[Rule]:
    del weights, config  # of one layout
    yield from below("encoder", whisper.hugging_face_rules("audio_tower."))
    for ours, theirs in (("up", "linear_1"), ("down", "linear_2")):
        yield from below("projector", linear(ours, f"multi_modal_projector.{theirs}", False))
    yield from below(
        "decoder",
        llama.hugging_face_rules("language_model.model.", "language_model.lm_head.weight"),
    )


VOXTRAL = Family(
    _describe,
    _rules,
    positions="audio_tower.embed_positions.weight",
    released={
        "mistralai/Voxtral-Mini-3B-2507": {"eos_token_id": 2},
        "mistralai/Voxtral-Small-24B-2507": {
            "eos_token_id": 2,
            "text_config": {
                "hidden_size": 5120,
                "num_hidden_layers": 40,
                "intermediate_size": 32_768,
            },
        },
    },
)
