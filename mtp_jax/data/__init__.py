"""Utterances from anywhere, in batches.

`open_source` gives a `Source`: utterances and a way to read their audio. `train_batches` and
`eval_batches` turn one into a stream of `Batch`. Whatever cannot be used is in the `Report`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtp_jax.data.checking import check_sources as check_sources
    from mtp_jax.data.pipeline import Batch as Batch
    from mtp_jax.data.pipeline import FeatureBatch as FeatureBatch
    from mtp_jax.data.pipeline import eval_batches as eval_batches
    from mtp_jax.data.pipeline import train_batches as train_batches
    from mtp_jax.data.plan import Share as Share
    from mtp_jax.data.source import DataError as DataError
    from mtp_jax.data.source import Problem as Problem
    from mtp_jax.data.source import Report as Report
    from mtp_jax.data.source import Source as Source
    from mtp_jax.data.source import Utterance as Utterance
    from mtp_jax.data.sources import open_source as open_source

_HOME = {
    "Batch": "pipeline",
    "FeatureBatch": "pipeline",
    "eval_batches": "pipeline",
    "train_batches": "pipeline",
    "Share": "plan",
    "DataError": "source",
    "Problem": "source",
    "Report": "source",
    "Source": "source",
    "Utterance": "source",
    "check_sources": "checking",
    "open_source": "sources",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used.

    The processes that speak the corpus import this package too, and Grain would bring JAX along.
    """
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
