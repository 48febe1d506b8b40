"""Checks of flags that several commands have."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from absl import flags

from mtp_jax.config import Mesh


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


def mesh_of(sizes: Sequence[str] | None) -> Mesh | None:
    """The mesh of ``--mesh=fsdp=4,tensor=2``; None if none is given.

    One size may be -1, for the devices that remain; otherwise these hold copies of the model.

    Raises:
        flags.Error: an axis has no such name, no size, or two.
    """
    given: dict[str, int] = {}
    axes = [field.name for field in dataclasses.fields(Mesh)]
    for each in sizes or ():
        axis, _, size = each.partition("=")
        if axis not in axes or axis in given or not re.fullmatch("-1|0*[1-9][0-9]*", size):
            raise flags.Error(
                f"--mesh={','.join(sizes or ())} must give {', '.join(axes[:-1])} or {axes[-1]} a"
                " number of devices, each once, as in --mesh=fsdp=4"
            )
        given[axis] = int(size)
    if [*given.values()].count(-1) > 1:
        raise flags.Error(f"--mesh={','.join(sizes or ())} may have one size of -1: the rest")
    copies = {"data": 1} if -1 in given.values() else {}
    return Mesh(**copies | given) if given else None
