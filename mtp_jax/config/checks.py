"""How a field is refused: by its full name, with what it must be."""

from __future__ import annotations

import dataclasses
from typing import Any

# A config.json may be a stranger's: what is beyond these would fill the memory before it is found
# not to fit the weights.
_MOST_LAYERS = 1000
_MOST = 1 << 24


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field and the remedy."""


def check(holds: bool, field: str, remedy: str) -> None:
    if not holds:
        raise ConfigError(f"config.{field} {remedy}")


def one_of(value: str, choices: tuple[str, ...], field: str) -> None:
    check(value in choices, field, f"is {value!r}; choose one of {', '.join(choices)}")


def bounded(group: Any, name: str) -> None:
    """Refuses whole numbers of an architecture that no model has."""
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        most = _MOST_LAYERS if field.name in ("layers", "count") else _MOST
        if type(value) is int:
            check(value <= most, f"{name}.{field.name}", f"({value}) must be at most {most}")
