"""Which utterances are in which batch: pure functions of lengths, seed and step.

A training step's global batch depends on nothing else, and each process takes its slice of it.
So buckets, restarts at any step and a changed number of processes all agree.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Lengths = Sequence[int] | np.ndarray
_TOKENS_MULTIPLE = 8  # L is a multiple of it: tidy for an accelerator, and few distinct shapes


class Shape(NamedTuple):
    """Of a global batch: B rows, T samples, L tokens, N labels of CTC's own."""

    rows: int
    samples: int
    tokens: int
    labels: int = 0


class Share(NamedTuple):
    """The part of every global batch that one process reads.

    Attributes:
        parts: which of the equal, consecutive parts of a batch, increasing.
        of: into how many it is cut.
    """

    parts: tuple[int, ...] = (0,)
    of: int = 1

    def rows(self, count: int) -> np.ndarray:
        """int[...] rows of a batch of `count`, increasing.

        Raises:
            ValueError: it cannot be cut so.
        """
        if count % self.of:
            raise ValueError(f"{count} rows cannot be cut into {self.of} equal parts")
        return np.arange(count).reshape(self.of, -1)[list(self.parts)].reshape(-1)


WHOLE = Share()


@dataclasses.dataclass(frozen=True)
class Rows:
    """One global batch before its audio is read.

    Attributes:
        shape: of the batch.
        index: int[B] utterances of the source, -1 where a row is only filler.
        speed: float[B] at which each is played.
    """

    shape: Shape
    index: np.ndarray
    speed: np.ndarray

    def take(self, share: Share) -> Rows:
        """The rows of one process; those of all, in order, are the batch."""
        rows = share.rows(self.shape.rows)
        return Rows(self.shape._replace(rows=len(rows)), self.index[rows], self.speed[rows])


class TrainPlan:
    """Every utterance once an epoch, at a speed drawn anew, in shuffled batches of like length.

    Within a bucket utterances are shuffled. What a bucket has left over after its last full
    batch moves up to the next, so that at most one batch an epoch is padded with filler rows.

    Attributes:
        shapes: of the batches, one a bucket.
    """

    def __init__(
        self,
        samples: Lengths,
        tokens: Lengths,
        bounds: Sequence[int],
        rows: Sequence[int],
        speeds: Sequence[float],
        seed: int,
        labels: Lengths = (),
    ) -> None:
        """Plans over utterances given by their lengths.

        Args:
            samples: length of each utterance; none may exceed the last of `bounds`.
            tokens: length of each text, EOS included.
            bounds: greatest number of samples in each bucket, increasing.
            rows: B of each bucket.
            speeds: factors to draw from.
            seed: of draws and shuffles.
            labels: length of each text as CTC has it; none where its labels are the tokens.
        """
        self._samples = np.asarray(samples)
        self._bounds = np.asarray(bounds)
        self._speeds = np.asarray(speeds, float)
        self._seed = seed
        self._ends: list[int] = []  # batches in all epochs up to and including each
        # An utterance is in no bucket below that of its fastest version, and leftovers move up:
        # a bucket's longest text is that of all utterances which can be in it or in one below.
        fastest = self._bucket(self._played(max(1.0, *speeds)))
        lengths = [tokens, labels] if len(labels) else [tokens]
        longest = np.ones((len(bounds), len(lengths)), int)
        np.maximum.at(longest, fastest, np.stack(lengths, axis=1))
        longest = np.maximum.accumulate(longest)
        self.shapes = tuple(
            Shape(b, t, *map(_round_up, most.tolist()))
            for b, t, most in zip(rows, bounds, longest, strict=True)
        )
        self._lock = threading.Lock()  # Grain asks from several threads
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

    def batch(self, step: int) -> Rows:
        """The global batch of training step `step`, counted from 0."""
        with self._lock:
            while not self._ends or self._ends[-1] <= step:
                before = self._ends[-1] if self._ends else 0
                self._ends.append(before + len(self._epoch(len(self._ends))))
            epoch = bisect.bisect_right(self._ends, step)
            return self._epoch(epoch)[step - (self._ends[epoch - 1] if epoch else 0)]

    def _make_epoch(self, epoch: int) -> list[Rows]:
        draw = np.random.default_rng([self._seed, epoch])
        speed = draw.choice(self._speeds, size=len(self._samples))
        # An utterance that, slowed down, exceeds the longest bucket is played as it is.
        speed = np.where(self._played(speed) > self._bounds[-1], 1.0, speed)
        bucket = self._bucket(self._played(speed))
        batches: list[Rows] = []
        left = np.zeros(0, int)
        for i, shape in enumerate(self.shapes):
            members = np.concatenate([left, draw.permutation(np.flatnonzero(bucket == i))])
            full = len(members) // shape.rows * shape.rows
            batches += [
                _rows(shape, chunk, speed) for chunk in members[:full].reshape(-1, shape.rows)
            ]
            left = members[full:]
        if len(left):
            batches.append(_rows(self.shapes[-1], left, speed))
        return [batches[i] for i in draw.permutation(len(batches))]

    def _played(self, speed: np.ndarray | float) -> np.ndarray:
        """Samples of each utterance at `speed`, as `audio.changed_length` has it."""
        return np.rint(self._samples / speed).astype(int)

    def _bucket(self, samples: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._bounds, samples)


def evaluation_plan(
    samples: Lengths, tokens: Lengths, bounds: Sequence[int], rows: int
) -> list[Rows]:
    """Every utterance once, shortest first, in batches of `rows`; only the last may have filler.

    Args:
        samples, tokens, bounds: as in `TrainPlan`.
        rows: B.
    """
    order = np.argsort(np.asarray(samples), kind="stable")
    chunks = [order[i : i + rows] for i in range(0, len(order), rows)]
    speed = np.ones(len(order))
    bucket = [int(np.searchsorted(bounds, samples[chunk[-1]])) for chunk in chunks]
    longest: dict[int, int] = {}  # one L a bucket, so that few shapes are compiled
    for b, chunk in zip(bucket, chunks, strict=True):
        longest[b] = max(longest.get(b, 1), *(tokens[i] for i in chunk))
    return [
        _rows(Shape(rows, bounds[b], _round_up(longest[b])), chunk, speed)
        for b, chunk in zip(bucket, chunks, strict=True)
    ]


def _rows(shape: Shape, index: np.ndarray, speed: np.ndarray) -> Rows:
    filler = shape.rows - len(index)
    return Rows(
        shape,
        np.pad(index, (0, filler), constant_values=-1),
        np.pad(speed[index], (0, filler), constant_values=1.0),
    )


def _round_up(tokens: int) -> int:
    return -(-tokens // _TOKENS_MULTIPLE) * _TOKENS_MULTIPLE
