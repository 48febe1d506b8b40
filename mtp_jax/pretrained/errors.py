"""The one error of this package."""

from __future__ import annotations


class PretrainedError(ValueError):
    """A pretrained part that cannot be imported; the message names the culprit and the remedy."""
