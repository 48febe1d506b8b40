"""Checks of flags that several commands have."""

from __future__ import annotations

from absl import flags


def refuse_empty(values: flags.FlagValues) -> None:
    """Refuses flags that were given an empty value, as an unset variable of a shell has it.

    Flags whose default is empty, or a list, may be given so.

    Raises:
        flags.Error: one was.
    """
    for name in values:
        flag = values[name]
        if flag.present and flag.value == "" and flag.default != "":
            raise flags.Error(f"--{name} is empty: give it a value (is a variable unset?)")


def check_tau(tau: float | None) -> None:
    """Refuses a ``--tau`` that is no probability; None is none given.

    Raises:
        flags.Error: it is not above 0 and at most 1.
    """
    if tau is not None and not 0 < tau <= 1:  # also if it is not a number
        raise flags.Error(f"--tau={tau:g} is no probability: choose one above 0 and at most 1")
