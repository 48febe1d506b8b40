"""Shapes to plan for pods with: decoders of 125M, 1B and 8B parameters, M = 4.

    python -m mtp_jax.compile --config=configs/scale.py:1b --topology=v5p:4x4x4

What to expect is in ``docs/scaling.md``. The decoders have the sizes of LLaMA-3.2-1B and
LLaMA-3.1-8B, and for 125M those of GPT-2 small with SwiGLU and SmolLM2's vocabulary; the encoders
are as deep and wide as Conformer L (Gulati et al., 2020), XL and XXL (Zhang et al., "Pushing the
limits of semi-supervised learning", 2020), and hear 80 ms a frame. To train one, name data and a
tokenizer (``--config.data.train=...``, ``--config.tokenizer.model=...``).
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
    Tokenizer,
    Train,
    to_config_dict,
)
from mtp_jax.pretrained.published_sizes import LLAMAS, Llama

_GPT_2_SMALL = Decoder(
    width=768, layers=12, query_heads=12, kv_heads=12, head_size=64, feedforward=2048
)
# The decoder, and width, layers, heads and kernel of the encoder.
SIZES = {
    "125m": (Llama(_GPT_2_SMALL, 49_152), (512, 17, 8, 31)),
    "1b": (LLAMAS["meta-llama/Llama-3.2-1B"], (1024, 24, 8, 5)),
    "8b": (LLAMAS["meta-llama/Llama-3.1-8B"], (1024, 42, 8, 5)),
}


def get_config(size: str = "1b") -> ConfigDict:
    """Args: size: of the decoder, "125m", "1b" or "8b"."""
    if size not in SIZES:
        raise ConfigError(f"configs/scale.py:{size} is not a size: give 125m, 1b or 8b")
    llama, (width, layers, heads, kernel) = SIZES[size]
    config = to_config_dict(
        Config(
            data=Data(bucket_seconds=(15.0,), batch_size=1024, max_tokens=64, workers=16),
            tokenizer=Tokenizer(vocab_size=llama.vocab_size, ctc_vocab_size=1024),
            encoder=Encoder(width=width, layers=layers, heads=heads, kernel=kernel),
            decoder=llama.decoder,
            heads=Heads(count=4),
            optim=Optim(steps=100_000, warmup_steps=5_000, learning_rate=3e-4),
            train=Train(dtype="bfloat16", dev_every=5_000, checkpoint_every=1_000),
            mesh=Mesh(data=-1, fsdp=16),
        )
    )
    for part in (config.encoder, config.decoder):
        part.remat = part.scan_layers = True
        part.remat_products = False
    return config
