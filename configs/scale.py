"""Shapes to plan for pods with: LLaMA decoders of 125M, 1B and 8B parameters, M = 4.

    python -m mtp_jax.compile --config=configs/scale.py:1b --topology=v5p:4x4x4

What to expect is in ``docs/scaling.md``. The decoders have the sizes of LLaMA-3.2-1B and
LLaMA-3.1-8B (their config.json), and for 125M those of GPT-2 small with SwiGLU and the vocabulary
of SmolLM2; the Conformers those of Conformer L (Gulati et al., 2020), XL and XXL (Zhang et al.,
"Pushing the limits of semi-supervised learning", 2020), with a width of 80 ms a frame. To train
one, name data and a tokenizer (``--config.data.train=...``, ``--config.tokenizer.model=...``).
"""

from ml_collections import ConfigDict

from mtp_jax.config import (
    Config,
    ConfigError,
    Data,
    Decoder,
    Encoder,
    Heads,
    Mesh,
    Optim,
    RopeScaling,
    Tokenizer,
    Train,
    to_config_dict,
)

_LLAMA_3 = RopeScaling("llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0)

DECODERS = {
    "125m": Decoder(
        width=768, layers=12, query_heads=12, kv_heads=12, head_size=64, feedforward=2048
    ),
    "1b": Decoder(
        width=2048,
        layers=16,
        query_heads=32,
        kv_heads=8,
        head_size=64,
        feedforward=8192,
        rope_theta=500_000.0,
        rope_scaling=_LLAMA_3,
    ),
    "8b": Decoder(
        width=4096,
        layers=32,
        query_heads=32,
        kv_heads=8,
        head_size=128,
        feedforward=14336,
        rope_theta=500_000.0,
        rope_scaling=_LLAMA_3,
        tied=False,
    ),
}
VOCABULARY = {"125m": 49_152, "1b": 128_256, "8b": 128_256}
# Width, layers, heads, kernel.
CONFORMERS = {"125m": (512, 17, 8, 31), "1b": (1024, 24, 8, 5), "8b": (1024, 42, 8, 5)}


def get_config(size: str = "1b") -> ConfigDict:
    """Args: size: of the decoder, "125m", "1b" or "8b"."""
    if size not in DECODERS:
        raise ConfigError(f"configs/scale.py:{size} is not a size: give 125m, 1b or 8b")
    width, layers, heads, kernel = CONFORMERS[size]
    again = {"remat": True, "scan_layers": True}
    decoder = to_config_dict(Config(decoder=DECODERS[size])).decoder
    config = to_config_dict(
        Config(
            data=Data(bucket_seconds=(15.0,), batch_size=1024, max_tokens=64, workers=16),
            tokenizer=Tokenizer(vocab_size=VOCABULARY[size], ctc_vocab_size=1024),
            encoder=Encoder(width=width, layers=layers, heads=heads, kernel=kernel, **again),
            heads=Heads(count=4),
            optim=Optim(steps=100_000, warmup_steps=5_000, learning_rate=3e-4),
            train=Train(dtype="bfloat16", dev_every=5_000, checkpoint_every=1_000),
            mesh=Mesh(data=1, fsdp=-1),
        )
    )
    config.decoder.update(decoder)
    config.decoder.update(again)
    return config
