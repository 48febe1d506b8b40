"""Tables of rules: inverse of themselves, by slices or whole, complete in both directions."""

from __future__ import annotations

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mtp_jax.pretrained import PretrainedError, Rule, Weights, export_params, import_params
from mtp_jax.pretrained.table import digest_of
from tests.pretrained import assert_same

# A rule, and the shape of ours without the axis of layers.
RULES = {
    "as it is": (Rule("a", "a"), (6, 4)),
    "vector": (Rule("a", "a"), (6,)),
    "transposed": (Rule("a", "a", transpose=True), (6, 4)),
    "convolution": (Rule("a", "a", taps=3), (6, 4)),
    "first part": (Rule("a", "a", transpose=True, part=(0, 3)), (6, 4)),
    "last part": (Rule("a", "a", part=(2, 3)), (4,)),
    "interleaved": (Rule("a", "a", transpose=True, heads=2), (3, 12)),
    "layers": (Rule("a", "x.{layer}.a", transpose=True), (6, 4)),
}


def checkpoint(tensors: dict[str, np.ndarray]) -> Weights:
    names = {name: (x.shape, str(x.dtype)) for name, x in tensors.items()}
    return Weights(Path("memory"), "safetensors", names, lambda name, index: tensors[name][index])


def shape_of(x: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kind", RULES)
def test_import_is_the_inverse_of_export(kind):
    rule, shape = RULES[kind]
    ours = {"a": draw(*((2,) if rule.stacked else ()), *shape)}
    theirs = export_params([rule], ours)
    assert all(x.flags.c_contiguous for x in theirs.values())
    assert {x.shape for x in theirs.values()} == {rule.their_shape(ours["a"].shape)}
    weights, wanted = checkpoint(theirs), jax.tree.map(shape_of, ours)
    assert_same(import_params([rule], weights, wanted), ours)
    mesh = jax.make_mesh((1, 1), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    got = import_params([rule], weights, wanted, {"a": sharding})
    assert_same(got, ours)
    assert got["a"].sharding == sharding


@pytest.mark.parametrize("kind", RULES)
def test_a_slice_is_that_of_the_whole_and_reads_no_more_than_its_part(kind):
    rule, shape = RULES[kind]
    ours = draw(*((2,) if rule.stacked else ()), *shape)
    ((_, x), *_) = export_params([rule], {"a": ours}).items()
    whole, read = (ours[0] if rule.stacked else ours), []

    def reader(index):
        read.append(x[index].size)
        return x[index]

    halves = [(slice(0, n // 2), slice(n // 2, n), slice(None)) for n in shape]
    for index in itertools.product(*halves):
        got = rule.read(reader, shape, index)
        np.testing.assert_array_equal(got, whole[index])
        if not rule.heads and not rule.taps:
            assert read[-1] == got.size


def test_interleaving_is_that_of_llama_cpp():
    """One head of four rows: x0, y0, x1, y1 are the rows x0, x1, y0, y1 of ours."""
    rows = np.array([[0.0], [10.0], [1.0], [11.0]])
    got = Rule("a", "a", heads=1).read(lambda index: rows[index], (4, 1), (slice(None),) * 2)
    np.testing.assert_array_equal(got[:, 0], [0, 1, 10, 11])


LAYERS = [Rule("w", "layers.{layer}.w", transpose=True), Rule("b", "b")]
OURS = {"w": draw(3, 5, 2), "b": draw(7)}


def refused(theirs: dict[str, np.ndarray], rules=LAYERS, ignored=()) -> str:
    with pytest.raises(PretrainedError) as error:
        import_params(rules, checkpoint(theirs), jax.tree.map(shape_of, OURS), None, ignored)
    return str(error.value)


def test_everything_that_does_not_fit_is_named_at_once():
    theirs = export_params(LAYERS, OURS)
    del theirs["layers.1.w"]
    theirs["layers.2.w"] = draw(5, 2)
    theirs["b"] = np.ones(7, np.int8)
    theirs["layers.3.w"] = theirs["layers.0.w"]
    message = refused(theirs)
    assert "memory" in message
    assert "lacks layers.1.w;" in message
    assert "wrong shape layers.2.w ((5, 2), not (2, 5));" in message
    assert "not read b (int8);" in message
    assert "left over layers.3.w" in message


def test_a_parameter_without_a_rule_is_named():
    theirs = export_params(LAYERS, OURS)
    assert "no known place holds our b" in refused(theirs, LAYERS[:1], ["b"])


def test_what_is_ignored_may_be_there():
    theirs = export_params(LAYERS, OURS) | {"x.inv_freq": draw(2)}
    assert "left over x.inv_freq" in refused(theirs)
    wanted = jax.tree.map(shape_of, OURS)
    assert_same(import_params(LAYERS, checkpoint(theirs), wanted, None, ["*.inv_freq"]), OURS)


def test_many_names_are_counted():
    message = refused({})
    assert "layers.0.w, layers.1.w, layers.2.w, b:" in message
    theirs = export_params(LAYERS, OURS) | {f"x{i}": draw(1) for i in range(9)}
    assert "x0, x1, x2, x3 and 5 more" in refused(theirs)


def test_a_part_that_nobody_takes_must_be_zero():
    rules = [Rule("w", "fused", part=(0, 2)), Rule("b", "b")]
    ours = {"w": draw(3, 4), "b": draw(7)}
    theirs = export_params(rules, ours)
    assert theirs["fused"].shape == (6, 4)
    wanted = jax.tree.map(shape_of, ours)
    assert_same(import_params(rules, checkpoint(theirs), wanted), ours)
    theirs["fused"][5, 1] = 1e-8
    with pytest.raises(PretrainedError, match="part 2 of 2 of fused is not zero"):
        import_params(rules, checkpoint(theirs), wanted)


def test_what_cannot_be_exported_is_named():
    with pytest.raises(ValueError, match="query/lora_a"):
        export_params(LAYERS, OURS | {"query": {"lora_a": draw(2, 2)}})


def test_the_dtype_is_the_one_asked_for():
    theirs = export_params(LAYERS, {k: x.astype(np.float16) for k, x in OURS.items()})
    got = import_params(LAYERS, checkpoint(theirs), jax.tree.map(shape_of, OURS))
    assert {x.dtype for x in jax.tree.leaves(got)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(got["b"], OURS["b"], rtol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_a_number_that_is_not_finite_is_refused_by_the_tensor_s_name(bad, dtype):
    good = np.array([[1, -2], [3, -0.0], [5, 6e4]], dtype)
    wanted = {"x": jax.ShapeDtypeStruct((2, 3), np.float32)}
    rules = [Rule("x", "their.x", transpose=True)]
    import_params(rules, checkpoint({"their.x": good}), wanted)
    good[2, 0] = bad
    with pytest.raises(PretrainedError, match=r"their\.x holds numbers that are not finite"):
        import_params(rules, checkpoint({"their.x": good}), wanted)
    with pytest.raises(PretrainedError, match=r"their\.x holds numbers that are not finite"):
        digest_of(rules, checkpoint({"their.x": good}), wanted)
