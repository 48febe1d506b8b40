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


def over(mesh: jax.sharding.Mesh) -> AbstractContextManager[Any]:
    """While a function is traced in this context, `constrain` splits its arrays over `mesh`."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x`, split as `RULES` has the logical names of its axes; unchanged outside of `over`.

    With parameters and batch both split over ``fsdp``, XLA may as well gather the batch and sum
    the products over the mesh; said once for each layer, it gathers the parameters. Axes that the
    mesh does not divide stay whole.

    Args:
        x: an activation.
        axes: a name for each of its axes; None is whole on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    split = PartitionSpec(
        *(
            names if names and size % _parts(mesh, names) == 0 else None
            for size, names in zip(x.shape, (dict(RULES).get(a or "") for a in axes), strict=True)
        )
    )
    return jax.lax.with_sharding_constraint(x, split)


def _parts(mesh: Any, names: str | tuple[str, ...] | None) -> int:
    """Devices along the mesh axes `names`."""
    names = (names,) if isinstance(names, str) else tuple(names or ())
    return math.prod(mesh.shape[name] for name in names)


def batch_divisor(mesh: jax.sharding.Mesh) -> int:
    """Devices that a batch is split over; the batch size must be a multiple of it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def parameter_shardings(boxed: Any, mesh: jax.sharding.Mesh) -> Any:
    """Shardings of the parameters whose logically annotated shapes are `boxed`.

    Args:
        boxed: what ``jax.eval_shape(model.init, ...)`` gives, annotations still around the leaves.

    Raises:
        MeshError: a parameter has an axis that its mesh axes do not divide.
    """
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)

    def check(path: Any, shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> None:
        for axis, names in enumerate(sharding.spec):
            names = (names,) if isinstance(names, str) else tuple(names or ())
            parts = _parts(mesh, names)
            if shape.shape[axis] % parts:
                raise MeshError(
                    f"parameter {jax.tree_util.keystr(path)} of shape {shape.shape} cannot be"
                    f" split {parts} ways along axis {axis} (mesh axes {', '.join(names)}):"
                    " choose a mesh or a model size that divides"
                )

    jax.tree_util.tree_map_with_path(check, nn.unbox(boxed), shardings)
    return shardings
