"""Writes pretrained/: tiny random models as Hugging Face keeps them, and what they compute.

tests/test_importers_*.py import them, so that the tests need no PyTorch and no download. To make
them again, from the root of the repository, in the environment of make_llama.py:

    /tmp/golden/bin/python tests/golden/make_pretrained.py

``llama_untied`` (sharded, llama3 rope, heads not of width / heads), ``llama_tied`` and ``whisper``
are folders of config.json and safetensors; ``expected.npz`` holds ``tokens`` int32[B, L],
``llama_untied`` and ``llama_tied`` float32[B, L, V] logits, ``features`` float32[B, T, Z] and
``whisper`` float32[B, T / 2, D] hidden states of the encoder.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).with_name("pretrained")
VOCAB_SIZE, ROWS, LENGTH = 40, 2, 24
LLAMA = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "attn_implementation": "eager",
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 50_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
WHISPER = {
    "vocab_size": VOCAB_SIZE,
    "num_mel_bins": 6,
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 16,
    "max_source_positions": 20,
    "max_target_positions": 8,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "attn_implementation": "eager",
}


def randomize(model: transformers.PreTrainedModel, rng: np.random.Generator) -> None:
    """Gives `model` weights large enough that every part of it tells in its outputs."""
    for name, parameter in model.named_parameters():
        if "embed_positions" in name:
            continue
        x = rng.normal(size=parameter.shape)
        if name.endswith("norm.weight"):
            x = 1 + 0.3 * x
        elif x.ndim > 1:
            x = 1.5 * x / np.prod(x.shape[1:]) ** 0.5
        parameter.data = torch.from_numpy(x.astype(np.float32))


def save(model: transformers.PreTrainedModel, name: str, shard: str = "1MB") -> None:
    model.save_pretrained(FOLDER / name, max_shard_size=shard)
    (FOLDER / name / "generation_config.json").unlink()


def main() -> None:
    rng = np.random.default_rng(2024)
    shutil.rmtree(FOLDER, ignore_errors=True)
    tokens = rng.integers(VOCAB_SIZE, size=(ROWS, LENGTH)).astype(np.int32)
    frames = 2 * WHISPER["max_source_positions"]
    features = rng.normal(size=(ROWS, frames, WHISPER["num_mel_bins"])).astype(np.float32)
    expected = {"tokens": tokens, "features": features}
    variants = {
        "llama_untied": (
            "40KB",
            {"head_dim": 12, "rope_parameters": LLAMA3_ROPE, "eos_token_id": [3, 2]},
        ),
        "llama_tied": ("1MB", {"tie_word_embeddings": True, "eos_token_id": 2}),
    }
    for name, (shard, fields) in variants.items():
        llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, **fields)).eval()
        randomize(llama, rng)
        save(llama, name, shard)
        with torch.no_grad():
            expected[name] = llama(torch.from_numpy(tokens).long()).logits.numpy()
    config = transformers.WhisperConfig(**WHISPER)
    whisper = transformers.WhisperForConditionalGeneration(config).eval()
    randomize(whisper, rng)
    save(whisper, "whisper")
    with torch.no_grad():
        scored = torch.from_numpy(features.transpose(0, 2, 1))
        expected["whisper"] = whisper.model.encoder(scored).last_hidden_state.numpy()
    np.savez_compressed(FOLDER / "expected.npz", **expected)


if __name__ == "__main__":
    main()
