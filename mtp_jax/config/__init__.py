"""What one run is made of: frozen dataclasses, checked once, when they are built.

A file in ``configs/`` returns ``to_config_dict(Config(...))``, so that every field can be
overridden on the command line (``--config.optim.steps=100``); `from_config_dict` turns the
result back into a `Config` and refuses a wrong key or value by its full name.
"""

from mtp_jax.config.checks import ConfigError
from mtp_jax.config.files import config_file, load_config
from mtp_jax.config.model import (
    Adaptor,
    Decoder,
    Encoder,
    FrontEnd,
    Heads,
    Lora,
    RopeScaling,
    Whisper,
    WhisperDecoder,
)
from mtp_jax.config.run import (
    Augment,
    Data,
    Evaluation,
    Loss,
    Mesh,
    Mwer,
    Optim,
    Pretrained,
    Tokenizer,
    Train,
)
from mtp_jax.config.speech_llm import FAMILIES, AudioEncoder, Projector, SpeechLlm
from mtp_jax.config.whole import (
    Config,
    check_field,
    differences,
    from_config_dict,
    from_saved,
    to_config_dict,
)

__all__ = [
    "FAMILIES",
    "Adaptor",
    "AudioEncoder",
    "Augment",
    "Config",
    "ConfigError",
    "Data",
    "Decoder",
    "Encoder",
    "Evaluation",
    "FrontEnd",
    "Heads",
    "Lora",
    "Loss",
    "Mesh",
    "Mwer",
    "Optim",
    "Pretrained",
    "Projector",
    "RopeScaling",
    "SpeechLlm",
    "Tokenizer",
    "Train",
    "Whisper",
    "WhisperDecoder",
    "check_field",
    "config_file",
    "differences",
    "from_config_dict",
    "from_saved",
    "load_config",
    "to_config_dict",
]
