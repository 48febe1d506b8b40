"""The mesh: what it refuses, and that it changes nothing that is computed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, PartitionSpec

from mtp_jax.config import Mesh
from mtp_jax.distributed.sharding import (
    AXES,
    MeshError,
    constrain,
    make_mesh,
    parameter_shardings,
    platform,
)

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def eight(tmp_path_factory) -> Path:
    """What tests/eight_devices.py writes."""
    out = tmp_path_factory.mktemp("eight_devices")
    command = [sys.executable, "-m", "tests.eight_devices", str(out)]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_the_platform_is_that_of_the_mesh_one_compiles_for():
    tpu = AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((1, 1, 1), AXES, abstract_device=tpu)):
        assert platform() == "tpu"
    assert platform() == jax.default_backend()


def test_an_axis_that_the_rules_do_not_know_is_refused_by_name():
    with pytest.raises(MeshError, match="logical axis 'batches' is not in sharding"):
        constrain(np.zeros((2, 3)), "batches", None)


def test_one_device_is_a_mesh_of_ones():
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "devices", "sentence"),
    [
        ((3, 2, 1), 8, "makes 6 devices, and there are 8: set one size to -1 to use the rest"),
        ((4, 4, 1), 8, "makes 16 devices, and there are 8: set one size to -1 to use the rest"),
        ((-1, 3, 1), 8, "needs a multiple of 3 devices, and there are 8: choose sizes whose"),
        ((-1, 4, 4), 8, "needs a multiple of 16 devices, and there are 8: choose sizes whose"),
    ],
)
def test_sizes_that_do_not_multiply_to_the_devices_are_refused(sizes, devices, sentence):
    with pytest.raises(MeshError) as error:
        make_mesh(Mesh(*sizes), [None] * devices)
    assert sentence in str(error.value)
    assert f"'fsdp': {sizes[1]}" in str(error.value)


def boxed(shape: tuple[int, ...], axes: tuple[str | None, ...]):
    """A parameter as ``jax.eval_shape(model.init, ...)`` describes it."""
    return {"layer": {"kernel": nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, float), axes)}}


def test_each_logical_axis_is_split_over_its_mesh_axes():
    mesh = AbstractMesh((1, 2, 4), AXES)
    shardings = parameter_shardings(boxed((3, 6, 8), ("layers", "embed", "mlp")), mesh)
    assert shardings["layer"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    shardings = parameter_shardings(boxed((5, 8), (None, "kv_heads")), mesh)
    assert shardings["layer"]["kernel"].spec == PartitionSpec(None, "tensor")


def test_a_parameter_that_cannot_be_split_is_refused_by_name():
    mesh = AbstractMesh((1, 2, 4), AXES)
    with pytest.raises(MeshError) as error:
        parameter_shardings(boxed((6, 10), ("embed", "mlp")), mesh)
    for part in ("'layer'", "'kernel'", "(6, 10)", "4 ways along axis 1", "tensor"):
        assert part in str(error.value)


def test_a_vocabulary_that_cannot_be_split_stays_whole():
    """Whisper's has an odd number of tokens."""
    mesh = AbstractMesh((1, 2, 4), AXES)
    for size, split in ((51_865, None), (51_864, "tensor")):
        shardings = parameter_shardings(boxed((size, 8), ("vocab", "embed")), mesh)
        assert shardings["layer"]["kernel"].spec == PartitionSpec(split, "fsdp")


def test_minus_one_takes_the_devices_that_remain(eight):
    """Shape and `batch_divisor` of each mesh over 8 devices; a model that 8 do not divide."""
    meshes = json.loads((eight / "meshes.json").read_text())
    assert meshes == {
        "(-1, 1, 1)": [[8, 1, 1], 8],
        "(2, -1, 2)": [[2, 2, 2], 4],
        "(4, 2, 1)": [[4, 2, 1], 8],
        "(1, 1, -1)": [[1, 1, 8], 1],
        "refusal": meshes["refusal"],
    }
    assert "cannot be split 8 ways" in meshes["refusal"]


@pytest.mark.parametrize(
    ("mesh", "alone"),
    [
        ("data", "plain_one"),
        ("fsdp", "plain_one"),
        ("data_and_tensor", "plain_one"),
        ("fsdp_and_tensor", "one"),
        ("whisper_fsdp_and_tensor", "whisper_one"),
        ("llm_fsdp_and_tensor", "llm_one"),
    ],
)
def test_training_is_the_same_on_any_mesh(eight, mesh, alone):
    """Dropout, SpecAugment, MWER, accumulation and clipping included; a filler row in the batch.

    Sums run in another order, so gradients agree to float32 rounding; where a gradient is nearly
    nothing, Adam divides it by itself, so parameters agree to 1 % of the learning rate.
    """
    with np.load(eight / f"{alone}.npz") as one, np.load(eight / f"{mesh}.npz") as many:
        assert set(one) == set(many)
        moved = 0
        for name in one:
            kind = name.split("/")[0]
            if kind == "start":
                np.testing.assert_array_equal(many[name], one[name], err_msg=name)
            else:
                atol = {"mu": 2e-6, "nu": 2e-7, "params": 1e-4}.get(kind, 1e-6)
                np.testing.assert_allclose(many[name], one[name], 2e-5, atol, err_msg=name)
            if kind == "params":
                moved += bool(np.any(one[name] != one[f"start/{name}"]))
        assert moved == sum(x.startswith("params/") for x in one)
        assert one["metrics_0/loss"] != one["metrics_1/loss"]
        assert one["metrics_0/utterances"] == 7
        if alone == "one":
            assert one["metrics_0/nbest_size"] == 3


@pytest.mark.parametrize("kind", ["", "whisper_", "llm_"])
def test_every_strategy_decodes_the_same_on_any_mesh(eight, kind):
    """Tokens, calls and n-best lists; each device holds its rows and heads of the caches."""
    one, many = (
        json.loads((eight / f"decoded_{kind}{name}.json").read_text())
        for name in ("one", "fsdp_and_tensor")
    )
    caches, _ = many.pop("caches"), one.pop("caches")
    assert one == many
    strategies = {
        "": {"ctc", "greedy", "threshold", "verify", "beam", "prefix_beam"},
        "whisper_": {"greedy", "verify", "prefix_beam"},
        "llm_": {"greedy", "verify"},
    }
    assert one.keys() == strategies[kind]
    assert any(tokens for tokens, _, _ in one["greedy"])
    mine, (layers, rows, slots, size) = caches["text"]
    assert mine == [layers, rows // 4, slots, size // 2]
    if kind == "whisper_":
        mine, (rows, heads, *whole) = caches["audio"]
        assert mine == [rows // 4, heads // 2, *whole]


def test_a_released_folder_decodes_the_same_on_any_mesh(eight):
    """As `--mesh` lays it out; each device holds its part of what is split, and small norms."""
    found = json.loads((eight / "released.json").read_text())
    one = found.pop("one")
    assert one["share"] == 1
    assert len({tuple(text) for text in one["texts"]}) == 3
    for name, share in (("fsdp", 1 / 8), ("fsdp_and_tensor", 1 / 4)):
        assert found[name]["texts"] == one["texts"]
        assert share <= found[name]["share"] < 1.3 * share
    int8 = found["fsdp_and_tensor_int8"]
    assert int8["texts"] == found["one_int8"]["texts"]
    assert 1 / 4 <= int8["share"] < 1.4 / 4  # scales are split along one of the two axes


@pytest.mark.parametrize("mesh", ["one", "data", "fsdp", "data_and_tensor", "fsdp_and_tensor"])
def test_a_checkpoint_restores_under_any_mesh_bit_for_bit(eight, mesh):
    """Written from 8 parts; parameters and moments."""
    with np.load(eight / "fsdp.npz") as saved, np.load(eight / f"restored_{mesh}.npz") as restored:
        for name in restored:
            np.testing.assert_array_equal(restored[name], saved[name], err_msg=name)
        assert any(name.startswith("mu/") for name in restored)


def test_axes_that_collide_or_are_unknown_are_refused_by_name():
    mesh = AbstractMesh((1, 2, 4), AXES)
    with pytest.raises(MeshError, match="twice, along heads and mlp: mend"):
        parameter_shardings(boxed((8, 8), ("heads", "mlp")), mesh)
    with pytest.raises(MeshError, match="the logical axis 'width', which sharding"):
        parameter_shardings(boxed((8,), ("width",)), mesh)


def test_a_device_holds_its_part_of_the_state_and_no_more(eight):
    """Matrices are split over fsdp and tensor, and the moments of Adam with them."""
    shards = json.loads((eight / "shards.json").read_text())
    assert all(mine == whole for mine, whole in shards["data"].values())
    split = shards["fsdp_and_tensor"]
    for name, (mine, whole) in split.items():
        part, path = name.split("/", 1)
        assert split[f"params/{path}"] == [mine, whole], name
        if path.endswith(("query/kernel", "up/kernel", "embedding", "heads/kernel")):
            assert np.prod(mine) * 4 == np.prod(whole), name
        assert part in ("params", "mu", "nu")
    mine, whole = (sum(np.prod(s[i]) for s in split.values()) for i in (0, 1))
    assert mine < 0.4 * whole
