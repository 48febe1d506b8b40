"""The device mesh, and the one table that says which mesh axes each logical axis is split over.

Modules name the *logical* axes of their parameters (``"embed"``, ``"mlp"``, ...); `RULES` alone
knows the mesh. With one device every axis has size 1 and nothing changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mtp_jax import config as configs

AXES = ("data", "fsdp", "tensor")

RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("vocab", "tensor"),
    ("layers", None),
    ("norm", None),
)


# Axes whose size a tokenizer gives: they stay whole where their mesh axes do not divide it.
_GIVEN = ("vocab",)


class MeshError(ValueError):
    """A mesh, or something laid over it, that does not divide; the message says what does."""


def make_mesh(mesh: configs.Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Lays `devices` (all, by default) out as a mesh with the axes `AXES`.

    Raises:
        MeshError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {axis: getattr(mesh, axis) for axis in AXES}
    fixed = 1
    for size in sizes.values():
        fixed *= 1 if size == -1 else size
    if -1 in sizes.values():
        if len(devices) % fixed:
            raise MeshError(
                f"config.mesh {sizes} needs a multiple of {fixed} devices, and there are"
                f" {len(devices)}: choose sizes whose product divides {len(devices)}"
            )
        sizes = {k: len(devices) // fixed if v == -1 else v for k, v in sizes.items()}
    elif fixed != len(devices):
        raise MeshError(
            f"config.mesh {sizes} makes {fixed} devices, and there are {len(devices)}:"
            " set one size to -1 to use the rest"
        )
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(dict(RULES)["batch"]))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def spec(*axes: str | None) -> PartitionSpec:
    """How an array whose axes have these logical names is split."""
    return PartitionSpec(*(dict(RULES)[axis] if axis else None for axis in axes))


def use_mesh(mesh: jax.sharding.Mesh) -> AbstractContextManager[Any]:
    """While a function is traced in this context, `constrain` splits its arrays over `mesh`."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def platform() -> str:
    """Platform of the mesh of `use_mesh`, or JAX's default: "cpu", "tpu", ..."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x`, split as `RULES` has the logical names of its axes; unchanged outside of `use_mesh`.

    With parameters and batch both split over ``fsdp``, XLA may as well gather the batch and sum
    the products over the mesh; said once for each layer, it gathers the parameters. An axis that
    its mesh axes do not divide (a batch of 1, fewer heads than devices) stays whole.

    Args:
        x: inside ``jit``.
        axes: a name for each of its axes; None is whole on every device.

    Raises:
        MeshError: `RULES` does not know an axis, or two of the axes share a mesh axis.
    """
    rules = dict(RULES)
    if unknown := [axis for axis in axes if axis is not None and axis not in rules]:
        raise MeshError(
            f"logical axis {unknown[0]!r} is not in sharding.RULES: add it there, or mend its name"
        )
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    used: set[str] = set()
    split: list[tuple[str, ...] | None] = []
    for axis, size in zip(axes, x.shape, strict=True):
        names = _mesh_axes(rules[axis] if axis else None)
        if twice := used.intersection(names):
            raise MeshError(
                f"logical axes {', '.join(map(str, axes))} use mesh axis {min(twice)} twice:"
                " mend sharding.RULES"
            )
        used |= set(names)
        split.append(names if names and size % _parts(mesh, names) == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*split))


def _mesh_axes(rule: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (rule,) if isinstance(rule, str) else tuple(rule or ())


def _parts(mesh: Any, names: tuple[str, ...]) -> int:
    """Devices along the mesh axes `names`."""
    return math.prod(mesh.shape[name] for name in names)


def batch_divisor(mesh: jax.sharding.Mesh) -> int:
    """Devices that a batch is split over; the batch size must be a multiple of it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def parameter_shardings(boxed: Any, mesh: jax.sharding.Mesh) -> Any:
    """Shardings of the parameters whose logically annotated shapes are `boxed`.

    A vocabulary that its mesh axis does not divide (Whisper has 51,865 tokens) stays whole.

    Args:
        boxed: what ``jax.eval_shape(model.init, ...)`` gives, annotations still around the leaves.

    Raises:
        MeshError: a parameter has an axis that its mesh axes do not divide, that `RULES` does not
            know, or that shares a mesh axis with another.
    """
    logical = nn.get_partition_spec(boxed)
    rules = dict(RULES)

    def check_names(path: Any, spec: PartitionSpec) -> None:
        used: dict[str, str] = {}
        for axis in filter(None, spec):
            name = jax.tree_util.keystr(path)
            if axis not in rules:
                raise MeshError(
                    f"parameter {name} has the logical axis {axis!r}, which sharding.RULES does"
                    " not know: add it there"
                )
            for mesh_axis in _mesh_axes(rules[axis]):
                if mesh_axis in used:
                    raise MeshError(
                        f"parameter {name} would be split over mesh axis {mesh_axis} twice, along"
                        f" {used[mesh_axis]} and {axis}: mend sharding.RULES or its annotation"
                    )
                used[mesh_axis] = axis

    jax.tree_util.tree_map_with_path(
        check_names, logical, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    shapes = nn.unbox(boxed)

    def without_odd(spec: PartitionSpec, shape: jax.ShapeDtypeStruct) -> PartitionSpec:
        def is_odd(axis: str | None, size: int) -> bool:
            return axis in _GIVEN and size % _parts(mesh, _mesh_axes(rules[axis])) > 0

        pairs = zip(spec, shape.shape, strict=False)
        return PartitionSpec(*(None if is_odd(axis, size) else axis for axis, size in pairs))

    logical = jax.tree.map(
        without_odd, logical, shapes, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    shardings = nn.logical_to_mesh_sharding(logical, mesh, RULES)

    def check(path: Any, shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> None:
        for axis, rule in enumerate(sharding.spec):
            names = _mesh_axes(rule)
            parts = _parts(mesh, names)
            if shape.shape[axis] % parts:
                raise MeshError(
                    f"parameter {jax.tree_util.keystr(path)} of shape {shape.shape} cannot be"
                    f" split {parts} ways along axis {axis} (mesh axes {', '.join(names)}):"
                    " choose a mesh or a model size that divides"
                )

    jax.tree_util.tree_map_with_path(check, shapes, shardings)
    return shardings
