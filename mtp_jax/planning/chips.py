"""Chips and their published figures, and the slices that they come in."""

from __future__ import annotations

import dataclasses
import math


class TopologyError(ValueError):
    """A slice that does not exist or cannot be compiled for; the message says what can."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip.

    Attributes:
        name: as topologies begin.
        flops: bfloat16 operations a second at peak.
        hbm_bytes: of memory.
        hbm_bandwidth: bytes a second between memory and chip.
        link_bandwidth: bytes a second of one link of the interconnect, one way.
        dimensions: of the torus.
        wraps: chips along an axis at multiples of which its ends are joined.
    """

    name: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    dimensions: int
    wraps: int


# The pages give the bandwidth of all links of a chip, both ways: it is shared out over two
# directions and two links for each dimension. v5e and v6e have their ends joined along axes of 16
# chips, v5p in slices made of whole cubes of 4 x 4 x 4.
CHIPS = {
    # https://cloud.google.com/tpu/docs/v5e: 197 TFLOPs, 16 GB, 819 GBps, ICI 400 GBps
    "v5e": Chip("v5e", 197e12, 16e9, 819e9, 400e9 / 2 / 4, 2, 16),
    # https://cloud.google.com/tpu/docs/v5p: 459 TFLOPs, 95 GiB, 2765 GBps, ICI 1200 GBps
    "v5p": Chip("v5p", 459e12, 95 * 2**30, 2765e9, 1200e9 / 2 / 6, 3, 4),
    # https://cloud.google.com/tpu/docs/v6e: 918 TFLOPs, 32 GB, 1640 GBps, ICI 800 GBps
    "v6e": Chip("v6e", 918e12, 32e9, 1640e9, 800e9 / 2 / 4, 2, 16),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips that share an interconnect.

    Attributes:
        chip: of which kind.
        shape: chips along each axis of the torus.
    """

    chip: Chip
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, topology: str) -> Slice:
        """The slice named by a `topology` such as ``v5e:4x4``.

        Raises:
            TopologyError: there is none.
        """
        name, _, sizes = topology.partition(":")
        if name not in CHIPS:
            raise TopologyError(
                f"--topology={topology} names no known chip: give one of {', '.join(CHIPS)},"
                " as in v5e:4x4"
            )
        shape = tuple(int(size) if size.isdigit() else 0 for size in sizes.split("x"))
        dimensions = CHIPS[name].dimensions
        if len(shape) != dimensions or min(shape) < 1:
            example = "x".join(["4"] * dimensions)
            raise TopologyError(
                f"--topology={topology} must give {dimensions} sizes, as in {name}:{example}"
            )
        return cls(CHIPS[name], shape)

    @property
    def chips(self) -> int:
        """How many."""
        return math.prod(self.shape)

    @property
    def wrapped(self) -> tuple[bool, ...]:
        """Whether the two ends of each axis are joined."""
        if self.chip.dimensions == 3:
            whole = all(size % self.chip.wraps == 0 for size in self.shape)
            return (whole,) * 3
        return tuple(size % self.chip.wraps == 0 for size in self.shape)
