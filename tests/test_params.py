"""Trees taken apart by paths are put together to what they were; LoRA merges to the same output."""

from __future__ import annotations

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.config import Lora
from mtp_jax.data import text
from mtp_jax.models import params
from mtp_jax.models.layers import Linear

names = st.sampled_from(["kernel", "bias", "scale", "lora_a"])
trees = st.dictionaries(
    st.sampled_from(["encoder", "decoder", "heads"]),
    st.recursive(
        st.dictionaries(names, st.integers(), min_size=1),
        lambda inner: st.dictionaries(st.sampled_from(["a", "b"]), inner, min_size=1),
        max_leaves=6,
    ),
)


@given(trees, st.integers(0, 3))
def test_split_and_merge_are_inverse(tree, kind):
    first, second = params.split(tree, lambda path: hash(path) % 4 == kind)
    assert params.by_path(params.merge(first, second)) == params.by_path(tree)
    assert not set(params.by_path(first)) & set(params.by_path(second))


def test_the_later_tree_holds():
    assert params.merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}


@pytest.mark.parametrize("module", [params, text])
def test_docstring_examples(module):
    failed, tried = doctest.testmod(module)
    assert tried > 0 and failed == 0


@pytest.mark.parametrize(
    ("patterns", "path", "matched"),
    [
        ((), "decoder/embedding", False),
        (("decoder/*",), "decoder/layers/gate/kernel", True),
        (("decoder",), "decoder/embedding", False),
        (("*",), "heads/kernel", True),
        (("*", "!heads/*"), "heads/kernel", False),
        (("!heads/*", "*"), "heads/kernel", True),
    ],
)
def test_the_last_pattern_that_matches_decides(patterns, path, matched):
    assert params.matches(patterns)(path) is matched


def test_count():
    assert params.count({"a": {"b": np.zeros((2, 3))}, "c": np.zeros(4)}) == 10


def test_a_merged_update_gives_the_same_output():
    lora = Lora(rank=3, alpha=12.0)
    x = jax.random.normal(jax.random.key(0), (5, 8))
    layer = Linear(6, ("embed", "mlp"), True, lora=lora)
    with_update = layer.init(jax.random.key(1), x)["params"]
    with_update = jax.tree.map(
        lambda p: jax.random.normal(jax.random.key(2), p.value.shape),
        with_update,
        is_leaf=lambda p: hasattr(p, "value"),
    )
    merged = params.merge_lora({"up": with_update}, lora)["up"]
    assert set(merged) == {"kernel", "bias"}
    plain = Linear(6, ("embed", "mlp"), True)
    np.testing.assert_allclose(
        layer.apply({"params": with_update}, x), plain.apply({"params": merged}, x), rtol=1e-5
    )


def test_an_update_starts_at_nothing():
    x = jnp.ones((2, 8))
    layer = Linear(6, ("embed", "mlp"), lora=Lora(rank=2))
    variables = layer.init(jax.random.key(0), x)
    kernel = variables["params"]["kernel"].value
    np.testing.assert_array_equal(layer.apply(variables, x), x @ kernel)
