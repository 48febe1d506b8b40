"""A Whisper encoder and a LLaMA decoder for runs that begin with pretrained parts."""

from __future__ import annotations

import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from mtp_jax import pretrained
from mtp_jax.config import Data, Decoder, Whisper
from mtp_jax.data import open_source
from mtp_jax.models.decoders.llama import Llama
from mtp_jax.models.encoders.whisper import WhisperEncoder
from mtp_jax.tokenizer import Tokenizer

V, ROWS = 64, 70  # tokens, and rows of the embedding
WHISPER = Whisper(width=16, layers=1, heads=2, positions=200)
DECODER = Decoder(width=16, layers=2, query_heads=2, kv_heads=1, head_size=8, feedforward=24)


def drawn(init, *args):
    """Random parameters, so far from zero that everything matters."""
    shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0), *args))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(0.1, 0.3, s.shape).astype(np.float32), shapes)


def write_parts(folder: Path, cache: Path) -> None:
    """Writes ``whisper`` and ``llama`` of random parameters, as Hugging Face keeps them.

    Args:
        folder: where.
        cache: of the corpus that the tokenizer learns from.
    """
    features = np.zeros((1, 8, 6), np.float32)
    encoder = drawn(WhisperEncoder(WHISPER).init, features, np.array([8]))
    (folder / "whisper").mkdir()
    save_file(pretrained.export_whisper(encoder), folder / "whisper" / "model.safetensors")
    sizes = {
        "model_type": "whisper",
        "d_model": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "num_mel_bins": 6,
        "max_source_positions": 200,
    }
    (folder / "whisper" / "config.json").write_text(json.dumps(sizes))

    def run(model, tokens):
        return model.unembed(model(model.embed(tokens), tokens >= 0)[0])

    decoder = drawn(nn.init(run, Llama(DECODER, ROWS)), jnp.ones((1, 2), jnp.int32))
    (folder / "llama").mkdir()
    save_file(pretrained.export_llama(decoder), folder / "llama" / "model.safetensors")
    sizes = pretrained.hf_config(DECODER, ROWS, 2, 3)
    (folder / "llama" / "config.json").write_text(json.dumps(sizes))
    data = Data(cache_dir=str(cache))
    texts = [u.text for u in open_source("embedded/tiny:train", data, 16_000).utterances]
    Tokenizer.train(texts, folder / "llama", V)
