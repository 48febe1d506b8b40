"""A CTC head for a finished Whisper or speech LLM, from audio alone: word times, and drafts.

    python -m mtp_jax.train --config=configs/add_ctc.py --config.pretrained.model=FOLDER \\
        --config.data.train=train.jsonl --config.data.dev=dev.jsonl --config.data.test=test.jsonl

It stands behind a small Conformer that reads what the encoder makes, and learns what the model
itself writes, in pieces of its own: capitals, digits and punctuation included. Nothing of the model
changes. `verify_ctc` drafts by it. A workdir that ``configs/add_heads.py`` made keeps its heads:
``--config=configs/add_ctc.py:heads --config.init_from=runs/add_heads``. A Qwen3-ASR, with 13 frames
per second, needs ``--config.encoder.subsampling=1,``.
"""

from pathlib import Path

from ml_collections import ConfigDict

from mtp_jax.config import load_config


def get_config(beside: str = "") -> ConfigDict:
    """Args: beside: "heads" for the heads of `add_heads`, which `init_from` then brings."""
    config = load_config(Path(__file__).with_name("add_heads.py"))
    config.optim.freeze = ("*", "!encoder/*", "!ctc*")
    if not beside:
        config.heads.count, config.heads.layers, config.heads.vocabulary = 1, 0, 0
    config.tokenizer.ctc_vocab_size = 512
    config.loss.ctc = 1.0
    config.encoder.subsampling = (2,)
    config.encoder.width = 256
    config.encoder.layers = 3
    config.encoder.feedforward = 2
    config.encoder.dropout = 0.1
    # Masks fall on the encoder's outputs: of Whisper base 50 frames per second, 512 dimensions.
    config.augment.freq_masks, config.augment.freq_width = 2, 64
    config.augment.time_masks, config.augment.time_width = 2, 25
    config.optim.algorithm = "muon"
    config.optim.learning_rate = 3e-3
    config.evaluation.strategies = ("ctc", "greedy", "verify_ctc")
    return config
