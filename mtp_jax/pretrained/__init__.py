"""Pretrained parts, LLaMA decoders and Whisper encoders, into our parameters and back.

Formats: Hugging Face folders of safetensors, GGUF files (LLaMA), CTranslate2 folders (Whisper).
Nothing is ever unpickled. Each architecture is a table of `Rule`; two functions run the tables.
"""

from mtp_jax.pretrained.llama import (
    LlamaSource,
    export_llama,
    hf_config,
    import_llama,
    llama_architecture,
)
from mtp_jax.pretrained.source import fingerprint, resolve
from mtp_jax.pretrained.table import Rule, export_params, import_params
from mtp_jax.pretrained.weights import PretrainedError, Weights, open_weights
from mtp_jax.pretrained.whisper import (
    WhisperSource,
    export_whisper,
    import_whisper,
    whisper_architecture,
    whisper_digest,
)

__all__ = [
    "LlamaSource",
    "PretrainedError",
    "Rule",
    "Weights",
    "WhisperSource",
    "export_llama",
    "export_params",
    "export_whisper",
    "fingerprint",
    "hf_config",
    "import_llama",
    "import_params",
    "import_whisper",
    "llama_architecture",
    "open_weights",
    "resolve",
    "whisper_architecture",
    "whisper_digest",
]
