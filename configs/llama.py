"""A pretrained LLaMA, trained through low-rank updates, behind what configs/whisper.py has made.

    python -m mtp_jax.train --config=configs/whisper.py ...
    python -m mtp_jax.train --config=configs/llama.py ...

The Conformer and the CTC head are those of ``runs/whisper``, or of another run
(``--config.pretrained.ctc=WORKDIR``), and stay as they are. The LLaMA comes from the Hub, or from a
folder or a GGUF file (``--config.pretrained.decoder=FILE``). All other flags are those of
``configs/whisper.py``.

Heads 2 to 4 have a layer of their own and leave the rest alone: otherwise they pull the
hidden states that they share towards later tokens, and head 1 skips words.
"""

from pathlib import Path

from ml_collections import ConfigDict

from mtp_jax.config import load_config


def get_config() -> ConfigDict:
    """`configs/whisper.py` with another decoder."""
    config = load_config(Path(__file__).with_name("whisper.py"))
    config.pretrained.decoder = "hf://HuggingFaceTB/SmolLM2-135M"
    config.pretrained.ctc = "runs/whisper"
    config.data.max_tokens = 160  # it has words where a decoder from scratch has pieces
    config.adaptor.aligned_positions = False  # it has learnt to look back
    config.adaptor.retokenized = True
    config.augment.token_noise = 0.0
    # In training CTC has to err as often as on speech that it does not know, or there is nothing
    # to learn but to copy.
    config.encoder.dropout = 0.3
    config.heads.count, config.heads.layers = 4, 1
    config.decoder.lora.rank = 16
    config.decoder.lora.alpha = 32.0
    config.decoder.dropout = 0.0  # of a pretrained model it would leave nothing
    config.optim.freeze = ("whisper/*", "encoder/*", "ctc/*", "decoder/*", "!decoder/*/lora_?")
    config.optim.algorithm = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.steps = 900
    config.optim.warmup_steps = 30
    config.train.dtype = "bfloat16"
    config.train.checkpoint_every = 50
    return config
