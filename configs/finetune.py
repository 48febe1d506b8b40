"""A finished Whisper fine-tuned on transcripts: its decoder, behind the encoder as it is.

    python -m mtp_jax.train --config=configs/finetune.py --config.pretrained.model=FOLDER \\
        --config.data.train=train.jsonl --config.data.dev=dev.jsonl --config.data.test=test.jsonl

``configs/mwer.py:finetune`` goes on from it with minimum word error rate training. A workdir or
folder with heads (models/whisper-base, or what ``configs/add_heads.py`` made) keeps them, as they
are: ``--config=configs/finetune.py:heads --config.init_from=models/whisper-base``.

What the encoder makes of the recordings is made once, and kept below ``config.data.cache_dir``.
Transcripts are lower-cased and lose their punctuation, as sources differ in it: the model then
writes such texts. ``--config.data.text=as_is`` keeps them.
"""

from pathlib import Path

from ml_collections import ConfigDict

from mtp_jax.config import load_config


def get_config(beside: str = "") -> ConfigDict:
    """Args: beside: "heads" for those of a model that `init_from` then brings."""
    config = load_config(Path(__file__).with_name("add_heads.py"))
    if not beside:
        config.heads.count, config.heads.vocabulary = 1, 0
    config.data.text = "plain"
    config.data.bucket_seconds = (6.0, 12.0, 18.0, 30.0)
    config.loss.head_weight = 0.0
    # The LM head is the embedding: it stays, as few hours have few of its 51,865 tokens.
    config.optim.freeze = ("whisper/*", "decoder/embedding", *(("heads/*",) if beside else ()))
    config.optim.algorithm = "adamw"
    config.optim.learning_rate = 3e-5
    config.optim.weight_decay = 0.0
    config.optim.warmup_steps = 20
    config.optim.steps = 400
    config.train.dev_every = 100
    config.train.checkpoint_every = 100
    return config
