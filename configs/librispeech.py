"""LibriSpeech, all 960 hours in its official splits: Whisper base and SmolLM2-135M, M = 4.

    python -m mtp_jax.train --config=configs/librispeech.py

For an accelerator, or a TPU slice (``launch/tpu_vm.sh``, with ``--config.mesh.fsdp`` as there is
need). The data come through TFDS (``pip install tensorflow-cpu``; 60 GB to download
and as many to unpack), the pretrained parts from the Hub; folders do as well
(``--config.data.train=LibriSpeech/train-clean-100``, or one that ``python -m mtp_jax.pack`` made,
``--config.pretrained.decoder=FOLDER``).
Nobody has run it on these splits yet, so there is no number to expect.
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
    Lora,
    Loss,
    Optim,
    Pretrained,
    Tokenizer,
    Train,
    to_config_dict,
)


def get_config() -> ConfigDict:
    """Whisper is frozen, the LLaMA trained through LoRA, what is between and behind it whole."""
    splits = ("train_clean100", "train_clean360", "train_other500")
    return to_config_dict(
        Config(
            pretrained=Pretrained("hf://openai/whisper-base", "hf://HuggingFaceTB/SmolLM2-135M"),
            data=Data(
                train="+".join(f"tfds:librispeech:{split}" for split in splits),
                dev="tfds:librispeech:dev_clean",
                test="tfds:librispeech:test_clean",
                bucket_seconds=(8.0, 13.0, 17.0, 30.0),
                batch_size=32,
                batch_seconds_alike=True,
                max_tokens=160,
                text="plain",
                workers=16,
            ),
            # Masks fall on Whisper's outputs: 50 frames a second, 512 of its dimensions.
            augment=Augment(freq_width=64, time_width=25),
            encoder=Encoder(
                subsampling=(2,),
                width=512,
                layers=4,
                heads=8,
                feedforward=4,
                kernel=15,
                dropout=0.1,
            ),
            # What CTC reads in pieces of its own is cut into the LLaMA's tokens.
            tokenizer=Tokenizer(ctc_vocab_size=500),
            adaptor=Adaptor(ctc_compression=True, retokenized=True, training_capacity=0.5),
            decoder=Decoder(lora=Lora(rank=32, alpha=64.0), remat=True, scan_layers=True),
            heads=Heads(count=4, layers=1, detached=True),
            loss=Loss(ctc=1.0),
            optim=Optim(
                steps=100_000,
                warmup_steps=2_000,
                learning_rate=5e-4,
                freeze=("whisper/*", "decoder/*", "!decoder/*/lora_?"),
            ),
            train=Train(dtype="bfloat16", dev_every=5_000, checkpoint_every=1_000),
            evaluation=Evaluation(batch_sizes=(1, 8, 32)),
        )
    )
