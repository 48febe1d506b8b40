"""How a field is refused: by its full name, with what it must be."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field and the remedy."""


def check(holds: bool, field: str, remedy: str) -> None:
    if not holds:
        raise ConfigError(f"config.{field} {remedy}")


def one_of(value: str, choices: tuple[str, ...], field: str) -> None:
    check(value in choices, field, f"is {value!r}; choose one of {', '.join(choices)}")
