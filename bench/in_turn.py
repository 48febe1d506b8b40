"""Several ways to do the same, timed side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from mtp_jax.evaluation.outcome import Outcome

Name = TypeVar("Name")
Result = TypeVar("Result")


def in_turn(ways: Mapping[Name, Callable[[], Result]], rounds: int) -> dict[Name, list[Result]]:
    """What each way gives in each round.

    In a round every way has its turn, so that a machine whose speed drifts slows all of them alike.
    One round more comes first, which compiles and warms up, and does not count.
    """
    for way in ways.values():
        way()
    found: dict[Name, list[Result]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
    return found


def seconds(outcomes: Sequence[Outcome], of: Sequence[Outcome] | None = None) -> float:
    """Median seconds over rounds; with `of`, the median share of its seconds, round by round."""
    if of is None:
        return statistics.median(one.wall_seconds for one in outcomes)
    pairs = zip(outcomes, of, strict=True)
    return statistics.median(one.wall_seconds / other.wall_seconds for one, other in pairs)


def rtfx(outcomes: Sequence[Outcome]) -> float:
    """Median seconds of audio done a second."""
    return statistics.median(one.audio_seconds / one.wall_seconds for one in outcomes)
