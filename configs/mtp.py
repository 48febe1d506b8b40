"""The default: a corpus that the project makes for itself, two CPU cores, a quarter of an hour.

    python -m mtp_jax.train --config=configs/mtp.py

What to expect is the table in ``README.md``.
"""

from ml_collections import ConfigDict

from mtp_jax.config import (
    Augment,
    Config,
    Data,
    Decoder,
    Encoder,
    Evaluation,
    Heads,
    Loss,
    Optim,
    Tokenizer,
    Train,
    to_config_dict,
)


def get_config() -> ConfigDict:
    """Sizes are chosen so that some 45,000 utterances can be trained on in ten minutes."""
    return to_config_dict(
        Config(
            # No speed perturbation: the corpus has voices and speeds enough, and it takes time.
            augment=Augment(speeds=(1.0,), freq_width=15, time_fraction=0.05),
            data=Data(bucket_seconds=(2.4, 3.2), batch_size=16, max_tokens=32),
            tokenizer=Tokenizer(vocab_size=160),
            encoder=Encoder(width=144, layers=5, heads=4, feedforward=2, kernel=9),
            decoder=Decoder(width=144, layers=2, query_heads=4, kv_heads=2, feedforward=288),
            heads=Heads(kind="latent", count=8),
            # Small batches, a heavy CTC loss and Muon: what makes the encoder learn soonest.
            loss=Loss(ctc=1.5, head_weight=0.5),
            optim=Optim(algorithm="muon", steps=2800, warmup_steps=100, learning_rate=3e-3),
            train=Train(dev_every=700, checkpoint_every=350),
            evaluation=Evaluation(bucket_seconds=(3.2,)),
        )
    )
