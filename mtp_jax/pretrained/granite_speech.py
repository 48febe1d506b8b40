"""Granite-speech: a Conformer with CTC, a Q-Former, a LLaMA with factors, and with 3.3 a LoRA."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from mtp_jax.config import AudioEncoder, FrontEnd, Projector, SpeechLlm
from mtp_jax.pretrained import adapter, llama, whisper
from mtp_jax.pretrained.errors import PretrainedError
from mtp_jax.pretrained.family import Family, SpeechLlmSource, below, group, linear
from mtp_jax.pretrained.fields import Fields
from mtp_jax.pretrained.table import Rule
from mtp_jax.pretrained.weights import Weights, open_weights

# What the class of each group means where config.json leaves it out.
_TEXT = {
    "model_type": "granite",
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
_ENCODER = {
    "input_dim": 160,
    "num_layers": 10,
    "hidden_dim": 1024,
    "feedforward_mult": 4,
    "num_heads": 8,
    "output_dim": 42,
    "context_size": 200,
    "max_pos_emb": 512,
    "conv_kernel_size": 15,
    "conv_expansion_factor": 2,
}
_PROJECTOR = {
    "model_type": "blip_2_qformer",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "cross_attention_frequency": 2,
    "encoder_hidden_size": 1408,
    "use_qformer_text_input": False,
}
_LONGEST = 1500  # frames of 20 ms: chunks are cut as for the other models
_SHORTEST = 400  # samples: those of a frame
_STACKED = 2  # log-mel frames side by side
_HEAD = "language_model.lm_head.weight"
_CLASS = "GraniteSpeechForConditionalGeneration"
_GRANITE_4 = {
    "has_lora_adapter": False,
    "eos_token_id": 100_257,
    "encoder_config": {"num_layers": 16, "output_dim": 348},
    "projector_config": {
        "hidden_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "cross_attention_frequency": 1,
        "encoder_hidden_size": 1024,
    },
    "text_config": {
        "vocab_size": 100_353,
        "hidden_size": 2048,
        "intermediate_size": 4096,
        "num_hidden_layers": 40,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.0078125,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
    },
}


def _describe(config: Fields) -> SpeechLlmSource:
    folder = config.where.parent
    if others := [name for name in config.get("architectures", []) if name != _CLASS]:
        raise PretrainedError(
            f"{config.where} is of a {others[0]}, and of Granite-speech only {_CLASS} can be"
            " imported: choose another model"
        )
    if config.get("has_lora_adapter", True) and (lost := adapter.missing(folder)):
        raise PretrainedError(
            f"{folder} has no {lost[0]}, though the model has a LoRA adapter: download the whole"
            f" folder, or set has_lora_adapter to false in {config.where.name} if it has none"
        )
    # A head that is stored is taken, whatever tie_word_embeddings says, as in GLM-ASR.
    return _described(config, tied=_HEAD not in open_weights(folder).names)


def _described(config: Fields, tied: bool = False) -> SpeechLlmSource:
    text = group(config, "text_config", _TEXT)
    text.must("model_type", ("granite",), None)
    decoder = llama.llama_of(Fields(text.where, {**text.values, "tie_word_embeddings": tied}))
    audio = group(config, "encoder_config", _ENCODER)
    encoder = _encoder(audio)
    token = "audio_token_index" if "audio_token_index" in config.values else "audio_token_id"
    return SpeechLlmSource(
        config=SpeechLlm(
            family="granite_speech",
            encoder=encoder,
            projector=_projector(config, encoder.width),
            positions=text.integer("max_position_embeddings"),
        ),
        decoder=decoder.config,
        front_end=FrontEnd("granite", audio.integer("input_dim") // _STACKED),
        rows=decoder.vocab_size,
        audio_token=config.token(token),
    )


def _encoder(audio: Fields) -> AudioEncoder:
    if audio.integer("input_dim") % _STACKED:
        raise PretrainedError(
            f"{audio.where}: encoder_config.input_dim ({audio.integer('input_dim')}) is odd, and"
            " has to be that of two log-mel frames: choose another model"
        )
    width, heads = audio.integer("hidden_dim"), audio.integer("num_heads")
    return AudioEncoder(
        kind="granite",
        width=width,
        layers=audio.integer("num_layers"),
        heads=heads,
        head_size=audio.integer("dim_head", width // max(heads, 1)),
        feedforward=width * audio.integer("feedforward_mult"),
        positions=_LONGEST,
        min_samples=_SHORTEST,
        chunk=_STACKED,
        window=_STACKED * audio.integer("context_size"),
        kernel=audio.integer("conv_kernel_size"),
        expansion=audio.integer("conv_expansion_factor"),
        distances=audio.integer("max_pos_emb"),
        labels=audio.integer("output_dim"),
    )


def _projector(config: Fields, encoder_width: int) -> Projector:
    qformer = group(config, "projector_config", _PROJECTOR)
    qformer.must("model_type", ("blip_2_qformer",), None)
    qformer.must("hidden_act", ("gelu",), None)
    qformer.must("layer_norm_eps", (1e-12,), None)
    qformer.must("cross_attention_frequency", (1,), None)
    qformer.must("encoder_hidden_size", (encoder_width,), None)
    qformer.must("use_qformer_text_input", (False,), None)
    window, rate = config.integer("window_size", 15), config.integer("downsample_rate", 5)
    if rate < 1 or window % rate:
        raise PretrainedError(
            f"{config.where}: downsample_rate ({rate}) does not divide window_size ({window}):"
            " choose another model"
        )
    return Projector(
        kind="qformer",
        width=qformer.integer("hidden_size"),
        window=window,
        queries=window // rate,
        layers=qformer.integer("num_hidden_layers"),
        heads=qformer.integer("num_attention_heads"),
        feedforward=qformer.integer("intermediate_size"),
    )


def _pointwise(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Of a convolution that sees one frame."""
    kernel = Rule(f"{ours}/kernel", f"{theirs}.weight", taps=1)
    return kernel, Rule(f"{ours}/bias", f"{theirs}.bias")


def _norm(ours: str, theirs: str) -> list[Rule]:
    return whisper.norm_rules(ours, theirs, ("weight", "bias"))


def block_rules(ours: str, prefix: str, kernel: int) -> tuple[Rule, ...]:
    """The table of a stack of the encoder's blocks.

    Args:
        ours: the stack.
        prefix: what their names begin with.
        kernel: frames that the depthwise convolution sees.
    """
    block = f"{prefix}layers.{{layer}}."
    attention, convolution = f"{ours}/attention", f"{ours}/convolution"
    batch_norm = {
        "scale": "weight",
        "bias": "bias",
        "mean": "running_mean",
        "variance": "running_var",
    }
    return (
        *(
            rule
            for i in (1, 2)
            for rule in (
                *_norm(f"{ours}/feedforward_{i}/norm", f"{block}ff{i}.pre_norm"),
                *linear(f"{ours}/feedforward_{i}/up", f"{block}ff{i}.up_proj", True),
                *linear(f"{ours}/feedforward_{i}/down", f"{block}ff{i}.down_proj", True),
            )
        ),
        *_norm(f"{attention}/norm", f"{block}attn.pre_norm"),
        *linear(f"{attention}/query", f"{block}attn.to_q", False),
        *(
            Rule(f"{attention}/{name}/kernel", f"{block}attn.to_kv.weight", True, part=(i, 2))
            for i, name in enumerate(("key", "value"))
        ),
        *linear(f"{attention}/output", f"{block}attn.to_out", True),
        Rule(f"{attention}/distance_embedding", f"{block}attn.rel_pos_emb.weight"),
        *_norm(f"{convolution}/norm", f"{block}conv.norm"),
        *_pointwise(f"{convolution}/gate", f"{block}conv.up_conv"),
        Rule(f"{convolution}/depthwise", f"{block}conv.depth_conv.conv.weight", taps=kernel),
        *(
            Rule(f"{convolution}/depthwise_norm/{name}", f"{block}conv.batch_norm.{theirs}")
            for name, theirs in batch_norm.items()
        ),
        *_pointwise(f"{convolution}/output", f"{block}conv.down_conv"),
        *_norm(f"{ours}/norm", f"{block}post_norm"),
    )


def qformer_rules(prefix: str) -> tuple[Rule, ...]:
    """The table of the projector, whose names begin with `prefix`."""
    layer = f"{prefix}qformer.encoder.layer.{{layer}}."
    rules = [
        Rule("queries", f"{prefix}query"),
        *_norm("norm", f"{prefix}qformer.layernorm"),
        *linear("output", f"{prefix}linear", True),
        *linear("layers/up", f"{layer}intermediate_query.dense", True),
        *linear("layers/down", f"{layer}output_query.dense", True),
        *_norm("layers/norm", f"{layer}output_query.LayerNorm"),
    ]
    for name in ("self", "cross"):
        ours, theirs = f"layers/{name}_attention", layer + name.replace("self", "") + "attention"
        for part in ("query", "key", "value"):
            rules += linear(f"{ours}/{part}", f"{theirs}.attention.{part}", True)
        rules += linear(f"{ours}/output", f"{theirs}.output.dense", True)
        rules += _norm(f"{ours}/norm", f"{theirs}.output.LayerNorm")
    return tuple(rules)


def _rules(weights: Weights, config: SpeechLlm) -> Iterable[Rule]:
    del weights  # of one layout
    for ours, theirs in (("input", "input_linear"), ("ctc", "out"), ("condition", "out_mid")):
        yield from below("encoder", linear(ours, f"encoder.{theirs}", True))
    encoder = config.encoder
    for ours, first in (("lower", 0), ("upper", encoder.layers // 2)):
        for rule in below("encoder", block_rules(ours, "encoder.", encoder.kernel)):
            yield dataclasses.replace(rule, first=first)
    yield from below("projector", qformer_rules("projector."))
    yield from below("decoder", llama.hugging_face_rules("language_model.model.", _HEAD))


def _open(folder: Path) -> Weights:
    renamed = {"model.language_model.": "language_model.model."}  # of transformers 5, in memory
    return adapter.with_adapter(open_weights(folder), renamed)


GRANITE_SPEECH = Family(
    _describe,
    _rules,
    ignored=("encoder.layers.*.conv.batch_norm.num_batches_tracked",),
    open=_open,
    released={
        f"ibm-granite/granite-{name}": _GRANITE_4 for name in ("4.0-1b-speech", "speech-4.1-2b")
    },
    describe_released=_described,
)
