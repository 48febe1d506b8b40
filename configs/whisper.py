"""Hours of speech: a frozen Whisper encoder, a Conformer, a LLaMA decoder from scratch, M = 8.

    python -m mtp_jax.train --config=configs/whisper.py --config.data.train=train.jsonl \\
        --config.data.dev=dev.jsonl --config.data.test=test.jsonl

Whisper comes from the Hub, or from a folder (``--config.pretrained.encoder=FOLDER``). Its outputs
are made once and kept below ``config.data.cache_dir``, 50 kB a second of speech at each of three
speeds. The data default to English recordings below ``../shared/speech``.

Heads 2 to 8 learn beside a decoder that learns to say the next token, and leave it alone
(``config.heads.detached``). What CTC reads decides the WER of so few hours; for that there are 25
frames a second, pieces of few letters and much dropout (docs/results.md).
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
    Pretrained,
    Tokenizer,
    Train,
    Whisper,
    to_config_dict,
)


def get_config(folder: str = "../shared/speech") -> ConfigDict:
    """Args: folder: where the manifests are."""
    return to_config_dict(
        Config(
            pretrained=Pretrained(encoder="hf://openai/whisper-base"),
            data=Data(
                train=f"{folder}/librispeech.train.jsonl+{folder}/an4.train.jsonl",
                dev=f"{folder}/librispeech.dev.jsonl",
                test=f"{folder}/librispeech.test.jsonl",
                bucket_seconds=(4.5, 12.0, 17.2),
                batch_size=8,
                batch_seconds_alike=True,
                max_tokens=240,
                text="plain",
            ),
            # Masks fall on Whisper's outputs: 50 frames a second, 512 of its dimensions.
            augment=Augment(
                speeds=(0.9, 1.0, 1.1),
                freq_width=64,
                time_masks=4,
                time_width=25,
                time_fraction=0.15,
                token_noise=0.1,
            ),
            tokenizer=Tokenizer(vocab_size=128),
            whisper=Whisper(cached=True),
            encoder=Encoder(
                subsampling=(2,),
                width=256,
                layers=4,
                heads=4,
                feedforward=2,
                kernel=15,
                dropout=0.2,
            ),
            # One in a hundred recordings of LibriSpeech has more labels than 0.46 a frame.
            adaptor=Adaptor(ctc_compression=True, aligned_positions=True, training_capacity=0.5),
            decoder=Decoder(
                width=192,
                layers=3,
                query_heads=6,
                kv_heads=3,
                head_size=32,
                feedforward=512,
                dropout=0.1,
            ),
            heads=Heads(count=8, layers=2, detached=True),
            loss=Loss(ctc=1.5, head_decay=0.7),
            optim=Optim(
                algorithm="muon",
                steps=3000,
                warmup_steps=100,
                learning_rate=3e-3,
                freeze=("whisper/*",),
            ),
            train=Train(dev_every=300, checkpoint_every=150),
            evaluation=Evaluation(batch_sizes=(8,), taus=(0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)),
        )
    )
