"""Fields of a model's description, refused by name where they are not what can be imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtp_jax.pretrained.errors import PretrainedError

_LARGEST = 2.0**31  # of the numbers in a model's description


@dataclasses.dataclass(frozen=True)
class Fields:
    """A config.json or the header of a GGUF file; a field that is null counts as absent.

    Attributes:
        where: the file, for messages.
        values: its fields.
    """

    where: Path
    values: Mapping[str, Any]

    def get(self, key: str, default: Any) -> Any:
        """The value, or `default`."""
        value = self.values.get(key)
        return default if value is None else value

    def must(self, key: str, choices: tuple[Any, ...], default: Any) -> None:
        """Refuses a value that is none of `choices`."""
        value = self.get(key, default)
        if value not in choices:
            shown = value if isinstance(value, str | int | float | None) else type(value).__name__
            raise PretrainedError(
                f"{self.where}: {key} is {shown!r}, and only"
                f" {' or '.join(repr(choice) for choice in choices)} can be imported:"
                " choose another model"
            )

    def number(self, key: str, default: float | None = None) -> float:
        """A number; without a default it has to be there."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise PretrainedError(
                f"{self.where}: {key} is {'missing' if value is None else 'no number'}:"
                " give the whole checkpoint of a model of this kind"
            )
        if not abs(value) <= _LARGEST:  # nor if it is not a number
            raise PretrainedError(f"{self.where}: {key} is {value!s:.40}, and no model has as much")
        return float(value)

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        value = self.number(key, default)
        if value != int(value):
            raise PretrainedError(f"{self.where}: {key} is {value}, no whole number")
        return int(value)

    def token(self, key: str) -> int | None:
        """A token id, the first of a list, or None."""
        value = self.get(key, None)
        if isinstance(value, list):
            value = value[0] if value else None
        return None if value is None else Fields(self.where, {key: value}).integer(key)
