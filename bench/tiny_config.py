"""The config file of a model that trains in seconds, for benches that start commands."""

from __future__ import annotations

_TEMPLATE = """
from mtp_jax.config import *
def get_config():
    return to_config_dict(Config(
        data=Data(train="embedded/tiny:train", dev="embedded/tiny:dev", test="embedded/tiny:test",
                  cache_dir={cache!r}, bucket_seconds=(3.2,), batch_size=8, max_tokens=48),
        tokenizer=Tokenizer(vocab_size=64),
        encoder=Encoder(
            width=16, layers=1, heads=2, kernel=3, feedforward=1, dropout={dropout}
        ),
        decoder=Decoder(width=16, layers=1, query_heads=2, head_size=8, feedforward=16),
        heads=Heads(count={heads}),
        optim=Optim(steps={steps}, warmup_steps=1),
        train=Train({train}),
        evaluation=Evaluation({evaluation}),
    ))
"""


def tiny_config(
    cache: str, *, heads: int, dropout: float, steps: int, train: str, evaluation: str
) -> str:
    """Its text.

    Args:
        cache: folder of the embedded corpus.
        heads: M.
        dropout: of the encoder.
        steps: of training.
        train, evaluation: fields of these groups, as Python.
    """
    return _TEMPLATE.format(
        cache=cache,
        heads=heads,
        dropout=dropout,
        steps=steps,
        train=train,
        evaluation=evaluation,
    )
