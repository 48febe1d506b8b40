"""GLM-ASR-Nano: Whisper's encoder with half-rotary positions, four states per row, a LLaMA."""

from __future__ import annotations

from collections.abc import Iterable

from mtp_jax.config import AudioEncoder, FrontEnd, Projector, SpeechLlm
from mtp_jax.pretrained import llama, whisper
from mtp_jax.pretrained.errors import PretrainedError
from mtp_jax.pretrained.family import Family, SpeechLlmSource, below, group, linear, stacked
from mtp_jax.pretrained.fields import Fields
from mtp_jax.pretrained.table import Rule
from mtp_jax.pretrained.weights import Weights, open_weights

# What the class of each group means where config.json, of an older transformers, leaves it out.
_TEXT = {
    "model_type": "llama",
    "vocab_size": 59_264,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
}
_AUDIO = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "num_mel_bins": 128,
    "max_position_embeddings": 1500,
}
_HEAD = "language_model.lm_head.weight"


def _describe(config: Fields) -> SpeechLlmSource:
    names = open_weights(config.where.parent).names
    if old := next((name for name in names if name.startswith("audio_encoder.")), ""):
        raise PretrainedError(
            f"{config.where.parent} is of GLM-ASR's first revision ({old}), whose encoder is laid"
            " out otherwise: download the current one"
        )
    # transformers takes a head that is stored, whatever tie_word_embeddings says.
    return _described(config, tied=_HEAD not in names)


def _described(config: Fields, tied: bool = False) -> SpeechLlmSource:
    text, audio = group(config, "text_config", _TEXT), group(config, "audio_config", _AUDIO)
    text.must("model_type", ("llama",), None)
    audio.must("hidden_act", ("gelu",), "gelu")
    config.must("projector_hidden_act", ("gelu",), "gelu")
    width, heads = audio.integer("hidden_size"), audio.integer("num_attention_heads")
    audio.must("num_key_value_heads", (heads,), heads)
    audio.must("head_dim", (width // heads,), width // heads)
    rope = group(audio, "rope_parameters", {"partial_rotary_factor": 0.5, "rope_theta": 1e4})
    rope.must("rope_type", ("default",), "default")
    rope.must("rope_theta", (1e4,), None)
    rope.must("partial_rotary_factor", (0.5,), None)
    decoder = llama.llama_of(Fields(text.where, {**text.values, "tie_word_embeddings": tied}))
    positions = audio.integer("max_position_embeddings")
    stack = stacked(audio, positions)
    return SpeechLlmSource(
        config=SpeechLlm(
            family="glmasr",
            encoder=AudioEncoder(
                kind="whisper",
                width=width,
                layers=audio.integer("num_hidden_layers"),
                heads=heads,
                feedforward=audio.integer("intermediate_size"),
                positions=positions,
                rotary=width // heads // 2,
                own_floor=True,
                keeps_silence=False,
            ),
            projector=Projector(stack=stack, width=2 * decoder.config.width, bias=True),
            positions=text.integer("max_position_embeddings"),
        ),
        decoder=decoder.config,
        front_end=FrontEnd("whisper", audio.integer("num_mel_bins")),
        rows=decoder.vocab_size,
        audio_token=config.token("audio_token_id"),
    )


def encoder_rules(prefix: str) -> tuple[Rule, ...]:
    """The table of the encoder, whose names begin with `prefix`."""
    block, names = prefix + "layers.{layer}.", ("weight", "bias")
    return (
        *whisper.convolution_rules(prefix),
        *whisper.norm_rules("norm", f"{prefix}norm", names),
        *whisper.norm_rules("blocks/attention_norm", f"{block}input_layernorm", names),
        *whisper.norm_rules("blocks/feedforward_norm", f"{block}post_attention_layernorm", names),
        *linear("blocks/query", f"{block}self_attn.q_proj", True),
        *linear("blocks/key", f"{block}self_attn.k_proj", False),
        *linear("blocks/value", f"{block}self_attn.v_proj", True),
        *linear("blocks/output", f"{block}self_attn.o_proj", True),
        *linear("blocks/up", f"{block}mlp.fc1", True),
        *linear("blocks/down", f"{block}mlp.fc2", True),
    )


def _rules(weights: Weights, config: SpeechLlm) -> Iterable[Rule]:
    del weights, config  # of one layout
    yield from below("encoder", encoder_rules("audio_tower."))
    for ours, theirs in (("up", "linear_1"), ("down", "linear_2")):
        yield from below("projector", linear(ours, f"multi_modal_projector.{theirs}", True))
    yield from below("decoder", llama.hugging_face_rules("language_model.model.", _HEAD))


GLM_ASR = Family(
    _describe,
    _rules,
    released={"zai-org/GLM-ASR-Nano-2512": {"eos_token_id": [59_246, 59_253, 59_255]}},
    describe_released=_described,
)
