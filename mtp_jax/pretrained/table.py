"""Tables that say which parameter of ours is which tensor of theirs, and what runs them."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from mtp_jax.models.params import by_path, nested
from mtp_jax.pretrained.errors import PretrainedError
from mtp_jax.pretrained.weights import Index, Weights, refuse_not_finite

FLOATS = ("float64", "float32", "float16", "bfloat16")
Convert = Callable[[str, jax.Array], Any]  # a parameter, by its path, to what stands for it


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter of ours and its place in a checkpoint.

    Attributes:
        ours: path in our tree, such as ``layers/attention/query/kernel``.
        theirs: name of the tensor. With ``{layer}`` in it there is a tensor for each layer, and
            ours has them stacked along a first axis (of which what follows does not speak).
        transpose: theirs [out, in] is ours [in, out].
        taps: theirs [out, in, taps], a convolution's, is ours [taps * in, out]; implies
            `transpose`.
        square: the taps of theirs are of two axes alike, the last of which comes first in ours.
        part: (i, n): theirs has n of equal size along its first axis, and ours is the i-th. A
            part that no rule takes is zero.
        heads: in each of that many groups of rows theirs has the two halves interleaved (x0, y0,
            x1, y1, ...) and ours one after the other, as in llama.cpp's queries and keys.
        first_rows: of theirs as many rows are taken as ours has; the rest is padding.
        first: the layer of theirs that is the first of ours.
    """

    ours: str
    theirs: str
    transpose: bool = False
    taps: int = 0
    square: bool = False
    part: tuple[int, int] = (0, 1)
    heads: int = 0
    first_rows: bool = False
    first: int = 0

    @property
    def stacked(self) -> bool:
        """Whether ours has a first axis of layers."""
        return "{layer}" in self.theirs

    @property
    def _tap_axes(self) -> tuple[int, ...]:
        return (math.isqrt(self.taps),) * 2 if self.square else (self.taps,)

    def names(self, shape: Sequence[int]) -> list[str]:
        """Names of the tensors that make up ours of this shape."""
        count = shape[0] if self.stacked else 1
        return [self.theirs.replace("{layer}", str(self.first + i)) for i in range(count)]

    def their_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of each of their tensors, when ours has `shape`."""
        own = tuple(shape[1:] if self.stacked else shape)
        if self.taps:
            own = (own[1], own[0] // self.taps, *self._tap_axes)
        elif self.transpose:
            own = own[::-1]
        return (own[0] * self.part[1], *own[1:])

    def read(
        self, read: Callable[[Index], np.ndarray], shape: Sequence[int], index: Index
    ) -> np.ndarray:
        """Cuts `index` out of ours (a layer's, of `shape`), reading no more of theirs than need be.

        Args:
            read: reads slices of their tensor.
            shape: of ours, without the axis of layers.
            index: a slice for each axis of ours, without that of layers.
        """
        if self.transpose or self.taps:
            size, (rows, *columns) = shape[-1], index[::-1]
        else:
            size, (rows, *columns) = shape[0], index
        start, stop = (0, size) if self.heads else rows.indices(size)[:2]
        offset = self.part[0] * size
        x = read((slice(offset + start, offset + stop), *([] if self.taps else columns)))
        if self.heads:
            x = x.reshape(self.heads, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)[rows]
        if self.taps:
            return x.T.reshape(-1, len(x))[index[0]]
        return x.T if self.transpose else x

    def write(self, x: np.ndarray) -> np.ndarray:
        """The inverse of `read` over the whole of ours: a layer's parameter as theirs."""
        if self.taps:
            x = x.reshape(*self._tap_axes, -1, x.shape[-1])
        if self.transpose or self.taps:
            x = x.T
        if self.heads:
            x = x.reshape(self.heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        return x


def import_params(
    rules: Iterable[Rule],
    weights: Weights,
    shapes: Any,
    shardings: Any = None,
    ignored: Sequence[str] = (),
    convert: Convert = lambda path, x: x,
) -> Any:
    """Fills parameters from a checkpoint; each device gets its part, read layer by layer.

    On the host there is never more than one device's part of one parameter (a stack of layers
    counts as one).

    Args:
        rules: the table; a rule whose parameter is not wanted is left aside.
        weights: the checkpoint.
        shapes: nested dict of jax.ShapeDtypeStruct, the parameters wanted and their dtypes.
        shardings: the same tree of shardings; without it all is put on the default device.
        ignored: patterns (`fnmatch`) of their tensors that need not be used.
        convert: what becomes of each parameter, before the next is read.

    Raises:
        PretrainedError: a parameter or tensor is missing, left over, of a wrong shape, or
            quantised in a way that is not undone; all of them are in the one message. Or a
            number is not finite, which only reading tells: the first such tensor is named.
    """
    wanted = by_path(shapes)
    table = {rule.ours: rule for rule in rules if rule.ours in wanted}
    _check(table, weights, wanted, ignored)
    placed = {} if shardings is None else by_path(shardings)
    return nested(
        {
            path: convert(
                path, _place(table[path], weights, shape, placed[path] if placed else None)
            )
            for path, shape in wanted.items()
        }
    )


def _check(
    table: dict[str, Rule],
    weights: Weights,
    wanted: dict[str, jax.ShapeDtypeStruct],
    ignored: Sequence[str],
) -> None:
    """Refuses a checkpoint that the table does not match in both directions."""
    problems = {
        "no known place holds our": [path for path in wanted if path not in table],
        "it lacks": [],
        "of a wrong shape": [],
        "of a dtype that is not read": [],
    }
    parts: dict[tuple[str, int], set[int]] = {}
    for path, rule in table.items():
        expected = rule.their_shape(wanted[path].shape)
        for name in rule.names(wanted[path].shape):
            parts.setdefault((name, rule.part[1]), set()).add(rule.part[0])
            if name not in weights.names:
                problems["it lacks"].append(name)
                continue
            shape, dtype = weights.names[name]
            if rule.first_rows and shape[:1] > expected[:1]:
                shape = (*expected[:1], *shape[1:])
            if shape != expected:
                problems["of a wrong shape"].append(f"{name} ({shape}, not {expected})")
            if dtype not in FLOATS:
                problems["of a dtype that is not read"].append(f"{name} ({dtype})")
    used = {name for name, _ in parts}
    problems["left over"] = [
        name
        for name in weights.names
        if name not in used and not any(fnmatch.fnmatchcase(name, p) for p in ignored)
    ]
    if any(problems.values()):
        raise PretrainedError(
            f"{weights.path} does not fit the model: "
            + "; ".join(f"{what} {_some(names)}" for what, names in problems.items() if names)
            + ": give the checkpoint that this configuration was made for"
        )
    for (name, count), taken in parts.items():
        rows = weights.names[name][0][0] // count
        for part in set(range(count)) - taken:
            if np.any(weights.read(name, (slice(part * rows, (part + 1) * rows),))):
                raise PretrainedError(
                    f"{weights.path}: part {part + 1} of {count} of {name} is not zero, and our"
                    " model has no place for it: this is another architecture"
                )


def _some(names: Iterable[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def digest_of(
    rules: Iterable[Rule],
    weights: Weights,
    shapes: Any,
    ignored: Sequence[str] = (),
    dtype: str = "<f4",
) -> str:
    """SHA-256 (hexadecimal) of what `import_params` gives as `dtype`: the same for every format.

    Args, raises: as there.
    """
    wanted = by_path(shapes)
    table = {rule.ours: rule for rule in rules if rule.ours in wanted}
    _check(table, weights, wanted, ignored)
    digest = hashlib.sha256()
    for path in sorted(wanted):
        with np.errstate(over="ignore"):  # of a small dtype
            values = _read(table[path], weights, wanted[path].update(dtype=np.dtype(dtype)))
        digest.update(f"{path} {values.shape}".encode() + values.tobytes())
    return digest.hexdigest()


def _read(
    rule: Rule, weights: Weights, wanted: jax.ShapeDtypeStruct, index: Index | None = None
) -> np.ndarray:
    """The part `index` of one parameter, or the whole of it.

    Raises:
        PretrainedError: a number in it is not finite.
    """
    shape, names = wanted.shape, rule.names(wanted.shape)
    index = (slice(None),) * len(shape) if index is None else index

    def layer(name: str, index: Index) -> np.ndarray:
        def read(slices: Index) -> np.ndarray:
            x = weights.read(name, slices)
            refuse_not_finite(weights.path, name, x)
            return x

        return rule.read(read, shape[1:] if rule.stacked else shape, index)

    bounds = (s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
    x = np.empty([stop - start for start, stop in bounds], wanted.dtype)
    if rule.stacked:
        for i, name in enumerate(names[index[0]]):
            x[i] = layer(name, index[1:])
    else:
        x[...] = layer(names[0], index)
    return x


def _place(
    rule: Rule,
    weights: Weights,
    wanted: jax.ShapeDtypeStruct,
    sharding: jax.sharding.Sharding | None,
) -> jax.Array:
    """One parameter, on its devices, of which each gets its part before the next is read."""
    if sharding is None:
        return jax.device_put(_read(rule, weights, wanted))
    # Several devices may hold the same.
    parts: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(wanted.shape).items():
        own = (slice(None),) * len(wanted.shape) if index is None else index
        bounds = tuple(s.indices(n)[:2] for s, n in zip(own, wanted.shape, strict=True))
        parts.setdefault(bounds, []).append(device)
    arrays: list[jax.Array] = []
    for bounds, devices in parts.items():
        x = _read(rule, weights, wanted, tuple(slice(*ends) for ends in bounds))
        arrays += jax.block_until_ready([jax.device_put(x, device) for device in devices])
    return jax.make_array_from_single_device_arrays(wanted.shape, sharding, arrays)


def export_params(rules: Iterable[Rule], params: Any) -> dict[str, np.ndarray]:
    """Their tensors, by name, from our parameters: the inverse of `import_params`.

    Args:
        rules: the table; a rule whose parameter is not there is left aside.
        params: nested dict of arrays that this process can read whole.

    Raises:
        ValueError: a parameter has no rule (merge or drop LoRA's first).
    """
    flat = by_path(params)
    pieces: dict[str, list[np.ndarray | None]] = {}
    for rule in rules:
        if rule.ours in flat:
            x = np.asarray(flat.pop(rule.ours))
            for name, layer in zip(rule.names(x.shape), x if rule.stacked else [x], strict=True):
                parts = pieces.setdefault(name, [None] * rule.part[1])
                parts[rule.part[0]] = rule.write(layer)
    if flat:
        raise ValueError(f"no rule exports {_some(flat)}")
    out = {}
    for name, parts in pieces.items():
        zero = np.zeros_like(next(part for part in parts if part is not None))
        whole = np.concatenate([zero if part is None else part for part in parts])
        out[name] = np.ascontiguousarray(whole)
    return out
