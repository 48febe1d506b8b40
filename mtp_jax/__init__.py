"""Speech-LLaMA with multi-token prediction (arXiv 2409.08148) in JAX.

Axes carry the same letter in every docstring, einsum and variable suffix:

    B utterances        T audio samples or frames   L text positions
    C cache slots       D model width               F feed-forward width
    N query heads       G key-value heads           H size of one attention head
    V vocabulary        M prediction heads          K hypotheses
    Z mel bins          S positions fed to one decoder call

Masks are ``bool`` and True where something real is. Prediction heads are numbered from 1;
head m predicts the token m places ahead, so head 1 is the decoder's own LM head.
"""

__version__ = "0.1.0"
