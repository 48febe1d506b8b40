"""Text to token ids and back: a tokenizer trained here, or that of a pretrained LLaMA.

`Tokenizer` is what everybody sees; `Tokenizer.load` chooses among the formats by content.
"""

from mtp_jax.tokenizer.base import CTC_NAME, Tokenizer, TokenizerError, check_fit
from mtp_jax.tokenizer.sentencepiece import BOS, EOS, PAD, UNK

__all__ = ["BOS", "CTC_NAME", "EOS", "PAD", "UNK", "Tokenizer", "TokenizerError", "check_fit"]
