"""CMU AN4: spelled words, digits and dates by 84 speakers, 0.7 hours in all, from manifests.

    python -m mtp_jax.train --config=configs/an4.py --config.data.train=AN4/train.jsonl \\
        --config.data.dev=AN4/dev.jsonl --config.data.test=AN4/test.jsonl

The paths default to ``../shared/speech``. 661 recordings are too few for a decoder to learn to
listen: 2,000 sentences of the embedded corpus are trained on beside them, which also read out
numbers and names. WER is of words as they are (``normalizer="none"``), as is usual for AN4:
Whisper's normaliser would join spoken digits into numbers. Some half an hour on two CPU cores;
``docs/results.md`` says how far it comes.
"""

from ml_collections import ConfigDict

from mtp_jax.config import (
    Adaptor,
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


def get_config(folder: str = "../shared/speech") -> ConfigDict:
    """Args: folder: where ``an4.train.jsonl``, ``an4.dev.jsonl`` and ``an4.test.jsonl`` are."""
    return to_config_dict(
        Config(
            data=Data(
                train="+".join([*3 * [f"{folder}/an4.train.jsonl"], "embedded:train[:2000]"]),
                dev=f"{folder}/an4.dev.jsonl",
                test=f"{folder}/an4.test.jsonl",
                bucket_seconds=(2.2, 3.6, 7.2),
                batch_size=16,
                max_tokens=40,
                text="plain",
            ),
            # Texts are few: without noise in them the decoder recites instead of listening.
            augment=Augment(speeds=(0.9, 0.95, 1.0, 1.05, 1.1), freq_width=20, token_noise=0.2),
            tokenizer=Tokenizer(vocab_size=160),
            encoder=Encoder(layers=5, feedforward=2, kernel=9, dropout=0.15),
            adaptor=Adaptor(ctc_compression=True, aligned_positions=True),
            decoder=Decoder(feedforward=288, dropout=0.15),
            heads=Heads(count=6),
            loss=Loss(ctc=1.5),
            optim=Optim(algorithm="muon", steps=5000, warmup_steps=100, learning_rate=3e-3),
            train=Train(dev_every=500, checkpoint_every=250),
            evaluation=Evaluation(
                normalizer="none", taus=(0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
            ),
        )
    )
