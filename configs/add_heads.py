"""Heads for a finished Whisper or speech LLM, from audio alone: M = 8, serial.

    python -m mtp_jax.train --config=configs/add_heads.py --config.pretrained.model=FOLDER \\
        --config.data.train=train.jsonl --config.data.dev=dev.jsonl --config.data.test=test.jsonl

The heads learn what the model itself writes, so that transcripts are needed only where WER is
measured. Manifests may have any text or none, and ``audio:FOLDER`` is a source. Nothing of the
model changes: its greedy text stays, to the last bit, and `verify` gives it in fewer calls. What
the encoder makes of the recordings (100 kB per second; of a GLM-ASR 128 kB, of a Qwen3-ASR 27 kB,
of a Voxtral 3.8 MB for each window of 30 s) and what the model writes of them are made once, and
kept below ``config.data.cache_dir``.
"""

from ml_collections import ConfigDict

from mtp_jax.config import (
    Augment,
    Config,
    Data,
    Evaluation,
    FrontEnd,
    Heads,
    Loss,
    Optim,
    Pretrained,
    Train,
    Whisper,
    to_config_dict,
)


def get_config(folder: str = "../shared/speech") -> ConfigDict:
    """Args: folder: where the manifests are."""
    return to_config_dict(
        Config(
            pretrained=Pretrained(model="hf://openai/whisper-base"),
            front_end=FrontEnd(flavour="whisper"),
            data=Data(
                train=f"{folder}/librispeech.train.jsonl",
                dev=f"{folder}/librispeech.dev.jsonl",
                test=f"{folder}/librispeech.test.jsonl",
                bucket_seconds=(6.0, 12.0, 18.0, 30.0),
                batch_size=2,
                batch_seconds_alike=True,
                max_tokens=224,
                text="greedy",
            ),
            augment=Augment(speeds=(1.0,), freq_masks=0, time_masks=0),
            whisper=Whisper(cached=True, silence=3.0),
            heads=Heads("serial", count=8, detached=True, vocabulary=8192),
            loss=Loss(ctc=0.0, head_decay=0.8),
            optim=Optim(
                algorithm="muon",
                steps=1500,
                warmup_steps=30,
                learning_rate=2e-3,
                freeze=("*", "!heads/*"),
            ),
            train=Train(dev_every=500, checkpoint_every=250),
            evaluation=Evaluation(batch_sizes=(8,), strategies=("greedy", "verify")),
        )
    )
