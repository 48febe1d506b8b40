"""Writes llama_gqa.npz and llama_mha.npz: Hugging Face's LLaMA on tiny random weights.

tests/test_llama.py compares our decoder with them, so that the tests need no PyTorch. To make them
again, from the root of the repository (a minute, mostly installation; tests/golden has the result):

    python -m venv /tmp/golden
    /tmp/golden/bin/pip install torch==2.13.0 transformers==5.23.0
    /tmp/golden/bin/python tests/golden/make_llama.py

Each file holds ``weight/NAME`` (under Hugging Face's names), ``tokens`` int32[B, L], and for each
variant ``logits/VARIANT`` float32[B, L, V]; ``description`` is a JSON text whose ``variants`` give
the fields of `mtp_jax.config.Decoder`, rope scaling included.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

VOCAB_SIZE, ROWS, LENGTH = 24, 1, 40
SIZES = {"width": 16, "feedforward": 24, "head_size": 12, "norm_epsilon": 1e-5}
ROPE = {  # lengths at which a pair of features falls on either side of, and inside, each band
    "default": {"kind": "none"},
    "linear": {"kind": "linear", "factor": 4.0},
    "llama3": {"kind": "llama3", "factor": 8.0, "original_length": 64},
    "yarn": {"kind": "yarn", "factor": 4.0, "original_length": 64, "beta_fast": 8.0},
}
GQA = SIZES | {"layers": 2, "query_heads": 4, "kv_heads": 2}
MHA = SIZES | {"layers": 1, "query_heads": 2, "kv_heads": 2, "rope_theta": 500.0}
UNTIED = {name: {"rope_scaling": rope, "tied": False} for name, rope in ROPE.items()}
TIED = {"rope_scaling": ROPE["default"], "tied": True}
FILES = {
    "llama_gqa.npz": {name: GQA | fields for name, fields in (UNTIED | {"tied": TIED}).items()},
    "llama_mha.npz": {"default": MHA | UNTIED["default"]},
}


def hugging_face(decoder: dict[str, Any]) -> transformers.LlamaForCausalLM:
    """The model that `decoder`, fields of ours, describes."""
    scaling = decoder["rope_scaling"]
    rope = {"rope_type": scaling["kind"], "rope_theta": decoder.get("rope_theta", 10_000.0)}
    if scaling["kind"] == "none":
        rope["rope_type"] = "default"
    else:
        rope["factor"] = scaling["factor"]
    if scaling["kind"] in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = scaling["original_length"]
    if scaling["kind"] == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if scaling["kind"] == "yarn":
        rope |= {"beta_fast": scaling["beta_fast"], "beta_slow": 1.0}
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=decoder["width"],
        intermediate_size=decoder["feedforward"],
        num_hidden_layers=decoder["layers"],
        num_attention_heads=decoder["query_heads"],
        num_key_value_heads=decoder["kv_heads"],
        head_dim=decoder["head_size"],
        rms_norm_eps=decoder["norm_epsilon"],
        max_position_embeddings=256,
        rope_parameters=rope,
        tie_word_embeddings=decoder["tied"],
        attn_implementation="eager",
    )
    return transformers.LlamaForCausalLM(config).eval()


def random_weights(
    model: transformers.LlamaForCausalLM, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Weights large enough that every part of the model tells in the logits."""
    weights = {}
    for name, parameter in model.named_parameters():
        x = rng.normal(size=parameter.shape)
        x = 1 + 0.3 * x if name.endswith("norm.weight") else 1.5 * x / parameter.shape[-1] ** 0.5
        weights[name] = x.astype(np.float32)
    return weights


def main() -> None:
    for file, variants in FILES.items():
        rng = np.random.default_rng(2409)
        tokens = rng.integers(VOCAB_SIZE, size=(ROWS, LENGTH)).astype(np.int32)
        weights = random_weights(hugging_face(next(iter(variants.values()))), rng)
        logits = {}
        for name, decoder in variants.items():
            model = hugging_face(decoder)
            mine = dict(weights)
            if decoder["tied"]:
                del mine["lm_head.weight"]
            state = {key: torch.from_numpy(value) for key, value in mine.items()}
            missing, unexpected = model.load_state_dict(state, strict=False)
            assert not unexpected
            assert missing in ([], ["lm_head.weight"])
            with torch.no_grad():
                logits[name] = model(torch.from_numpy(tokens).long()).logits.numpy()
        description = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "variants": variants,
        }
        np.savez_compressed(
            Path(__file__).with_name(file),
            description=np.array(json.dumps(description)),
            tokens=tokens,
            **{f"weight/{name}": x for name, x in weights.items()},
            **{f"logits/{name}": x for name, x in logits.items()},
        )


if __name__ == "__main__":
    main()
