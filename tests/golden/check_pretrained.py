"""Compares real checkpoints, imported, with the programs that they were made for.

    python -m venv /tmp/golden
    /tmp/golden/bin/pip install -r requirements.txt torch transformers accelerate ctranslate2
    /tmp/golden/bin/python -m tests.golden.check_pretrained --llama=FILE_OR_FOLDER --whisper=FOLDER

For LLaMA it prints the greatest difference between our logits and those of transformers (which
reads GGUF itself); for Whisper, between our encoder's hidden states and those of transformers, and
between those of transformers on the parameters that we export and of CTranslate2, whose rounded
table of positions it gets. All in float32. It fails above 1e-3 of the greatest magnitude; a wrong
layout is off by about that magnitude.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import ctranslate2
import flax.linen as nn
import jax
import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from mtp_jax import pretrained
from mtp_jax.models.decoders.llama import Llama
from mtp_jax.models.encoders.whisper import WhisperEncoder, sinusoids
from tests.pretrained import llama_logits, llama_shapes, whisper_shapes


def compare(what: str, got: np.ndarray, expected: np.ndarray, limit: float = 1e-3) -> None:
    error = np.abs(got - expected)
    greatest, rms = np.max(np.abs(expected)), np.sqrt(np.mean(expected**2))
    print(
        f"{what}: greatest difference {np.max(error):.2e} (greatest value {greatest:.1f}),", end=""
    )
    print(f" RMS {np.sqrt(np.mean(error**2)):.2e} (of {rms:.2f})")
    if not np.max(error) < limit * greatest:
        raise SystemExit("these are not the same")


def transformers_logits(path: Path, tokens: np.ndarray, **options: str) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(tokens)).logits.numpy()


def check_llama(path: Path) -> None:
    source = pretrained.llama_architecture(path)
    params = pretrained.import_llama(path, llama_shapes(source))
    tokens = np.random.default_rng(0).integers(source.vocab_size, size=(2, 64))
    model = Llama(source.config, source.vocab_size)
    got = np.asarray(jax.jit(nn.apply(llama_logits, model))({"params": params}, tokens))
    if path.is_file():
        expected = transformers_logits(path.parent, tokens, gguf_file=path.name)
    else:
        expected = transformers_logits(path, tokens)
    compare(f"{path.name}, logits, against transformers", got, expected)
    agree = np.mean(got.argmax(-1) == expected.argmax(-1))
    print(f"{path.name}: the same best token at {agree:.1%} of positions")
    with tempfile.TemporaryDirectory() as folder:
        config = pretrained.hf_config(source.config, source.vocab_size, source.bos, source.eos)
        Path(folder, "config.json").write_text(json.dumps(config))
        weights = pretrained.export_llama(params)
        save_file(weights, Path(folder, "model.safetensors"), metadata={"format": "pt"})
        exported = transformers_logits(Path(folder), tokens)
    compare(f"{path.name}, logits, exported to transformers", exported, expected)


def transformers_whisper(source: pretrained.WhisperSource, params: dict) -> torch.nn.Module:
    """The encoder of transformers with our parameters; each of its own is set."""
    c = source.config
    config = transformers.WhisperConfig(
        num_mel_bins=source.mel_bins,
        d_model=c.width,
        encoder_layers=c.layers,
        encoder_attention_heads=c.heads,
        encoder_ffn_dim=4 * c.width,
        max_source_positions=c.positions,
        decoder_layers=0,
    )
    encoder = transformers.WhisperModel(config).encoder.eval()
    prefix = "model.encoder."
    weights = pretrained.export_whisper(params)
    weights[f"{prefix}embed_positions.weight"] = sinusoids(c.positions, c.width)
    encoder.load_state_dict(
        {key.removeprefix(prefix): torch.from_numpy(x) for key, x in weights.items()}
    )
    return encoder


def check_whisper(path: Path) -> None:
    source = pretrained.whisper_architecture(path)
    params = pretrained.import_whisper(path, whisper_shapes(source))
    frames = 2 * source.config.positions
    features = np.random.default_rng(0).normal(0, 0.5, (1, frames, source.mel_bins))
    features = features.astype(np.float32)
    encode = jax.jit(WhisperEncoder(source.config).apply)
    got = np.asarray(encode({"params": params}, features, np.array([frames]))[0])
    scored = np.ascontiguousarray(features.transpose(0, 2, 1))

    def run(encoder: torch.nn.Module) -> np.ndarray:
        with torch.no_grad():
            return encoder(torch.from_numpy(scored)).last_hidden_state.numpy()

    if (path / "model.bin").exists():
        encoder = transformers_whisper(source, params)
        compare(
            f"{path.name}, hidden states, against transformers on our export", got, run(encoder)
        )
        model = ctranslate2.models.Whisper(str(path), compute_type="float32")
        expected = np.array(model.encode(ctranslate2.StorageView.from_array(scored)))
        table = pretrained.open_weights(path).read("encoder/position_encodings/encodings")
        encoder.embed_positions.weight.data = torch.from_numpy(table.astype(np.float32))
        compare(
            f"{path.name}, hidden states, our export against CTranslate2", run(encoder), expected
        )
        what = "ours against CTranslate2, whose positions are rounded to float16"
        compare(f"{path.name}, hidden states, {what}", got, expected, limit=0.1)
    else:
        model = transformers.WhisperModel.from_pretrained(path, dtype=torch.float32).eval()
        compare(f"{path.name}, hidden states, against transformers", got, run(model.encoder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--llama", type=Path)
    parser.add_argument("--whisper", type=Path)
    arguments = parser.parse_args()
    if arguments.llama:
        check_llama(arguments.llama)
    if arguments.whisper:
        check_whisper(arguments.whisper)


if __name__ == "__main__":
    main()
