"""Losses against plain Python loops, brute force and finite differences."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.training.losses import (
    consistency,
    cross_entropy,
    ctc,
    head_weights,
    mwer,
    shifted_targets,
)

EOS = 2
TOKENS = np.array([[5, 6, 7, EOS, 0], [5, EOS, 0, 0, 0], [5, 6, 7, 8, EOS], [0, 0, 0, 0, 0]])
LENGTH = np.array([4, 2, 5, 0])


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x - np.log(np.sum(np.exp(x), -1, keepdims=True))


def finite_differences(f, x: np.ndarray, step: float = 1e-2) -> np.ndarray:
    out = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        out[index] = (f(up) - f(down)) / (2 * step)
    return out


@pytest.mark.parametrize("head", [1, 2, 4, 5, 8])
def test_shifted_targets_are_the_tokens_ahead_up_to_eos(head):
    targets, real = jax.jit(shifted_targets)(TOKENS, LENGTH, head)
    assert targets.shape == real.shape == TOKENS.shape
    for row, length in enumerate(LENGTH):
        text = TOKENS[row, :length].tolist()
        for i in range(TOKENS.shape[1]):
            assert bool(real[row, i]) == (i + head - 1 < length)
            if real[row, i]:
                assert targets[row, i] == text[i + head - 1]


def test_every_token_but_the_first_ones_is_a_target_of_every_head():
    for head in range(1, 5):
        targets, real = shifted_targets(TOKENS, LENGTH, head)
        for row, length in enumerate(LENGTH):
            expected = TOKENS[row, head - 1 : length].tolist()
            assert targets[row][real[row]].tolist() == expected


def cross_entropy_of(logits, targets, real, smoothing=0.0, columns=4):
    """Of logits themselves: hidden states behind an identity."""
    kernel = jnp.eye(logits.shape[-1])
    return cross_entropy(logits, kernel, targets, jnp.float32(real), columns, smoothing)[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_its_definition(smoothing):
    rng = np.random.default_rng(0)
    logits = (3 * rng.normal(size=(4, 5, 9))).astype(np.float32)
    targets, real = map(np.asarray, shifted_targets(TOKENS, LENGTH, 2))

    def plain(logits: np.ndarray) -> float:
        nats, log_p = 0.0, log_softmax(logits)
        for row, i in zip(*np.nonzero(real), strict=True):
            for token in range(9):
                mass = smoothing / 9 + (1 - smoothing) * (token == targets[row, i])
                nats -= mass * log_p[row, i, token]
        return nats

    @jax.jit
    @jax.value_and_grad
    def ours(logits):
        return cross_entropy_of(logits, targets, real, smoothing)

    nats, gradient = ours(logits)
    assert float(nats) == pytest.approx(plain(logits), rel=1e-5)
    np.testing.assert_allclose(gradient, finite_differences(plain, logits), atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_cross_entropy_of_any_rank_is_a_plain_log_softmax(rank):
    rng = np.random.default_rng(rank)
    shape, size, width = (2, 3, 1, 2, 2)[:rank], 7, 4
    hidden = rng.normal(size=(*shape, width)).astype(np.float32)
    kernel = rng.normal(size=(size, width)).astype(np.float32)
    targets = rng.integers(0, size, shape)
    weight = rng.uniform(0.5, 1, shape).astype(np.float32)

    def plain(hidden, kernel):
        log_p = jax.nn.log_softmax(hidden @ kernel.T)
        return -jnp.sum(weight * jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0])

    def ours(hidden, kernel):
        return cross_entropy(hidden, kernel, targets, weight, 3)[0]

    (a, of_a), (b, of_b) = (jax.value_and_grad(f, (0, 1))(hidden, kernel) for f in (ours, plain))
    assert float(a) == pytest.approx(float(b), rel=1e-5)
    for x, y in zip(of_a, of_b, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_cross_entropy_does_not_see_padding():
    """Nor do its gradients: NaN there, as everywhere else, is nothing."""
    logits = np.random.default_rng(1).normal(size=(4, 5, 9)).astype(np.float32)
    targets, real = shifted_targets(TOKENS, LENGTH, 1)
    dirty = np.where(real[..., None], logits, np.nan)

    @jax.jit
    @jax.value_and_grad
    def nats(logits):
        return cross_entropy_of(logits, targets, real, 0.1)

    (clean, clean_gradient), (same, gradient) = nats(logits), nats(dirty)
    assert same == clean
    np.testing.assert_array_equal(gradient, clean_gradient)
    assert not np.any(gradient[~real])
    assert cross_entropy_of(dirty, targets, np.zeros(real.shape)) == 0


def test_cross_entropy_stays_finite_far_from_zero():
    logits = np.array([[[1e4, 0.0, -1e4]]], np.float32)
    nats = cross_entropy_of(logits, np.array([[1]]), np.array([[True]]), columns=1)
    assert float(nats) == pytest.approx(1e4)


def test_smoothing_moves_the_minimum_to_the_smoothed_target():
    smoothing, v = 0.3, 4
    wanted = np.full(v, smoothing / v) + (1 - smoothing) * np.eye(v)[1]
    logits = jnp.log(wanted)[None, None]
    gradient = jax.grad(
        lambda x: cross_entropy_of(x, jnp.array([[1]]), jnp.array([[True]]), smoothing)
    )(logits)
    np.testing.assert_allclose(gradient, np.zeros((1, 1, v)), atol=1e-6)


def test_head_weights_start_at_one_and_decay_from_the_second():
    np.testing.assert_allclose(head_weights(4, 0.5, 0.8), [1, 0.5, 0.4, 0.32], rtol=1e-6)
    np.testing.assert_array_equal(head_weights(1, 0.5, 0.8), [1])
    np.testing.assert_array_equal(head_weights(3, 0.5, 0.0), [1, 0.5, 0])  # 0 ** 0 is 1
    np.testing.assert_array_equal(head_weights(3, 0.0, 1.0), [1, 0, 0])


CLASSES, BLANK, FRAMES = 3, 2, 4


def alignments(labels: tuple[int, ...], frames: int) -> list[tuple[int, ...]]:
    """Every path of `frames` classes that reads as `labels`."""

    def read(path: tuple[int, ...]) -> tuple[int, ...]:
        merged = [c for c, _ in itertools.groupby(path)]
        return tuple(c for c in merged if c != BLANK)

    paths = itertools.product(range(CLASSES), repeat=frames)
    return [path for path in paths if read(path) == labels]


def ctc_rows() -> list[tuple[tuple[int, ...], int]]:
    """All (labels, frames) with at most 3 labels."""
    labels = [w for n in range(4) for w in itertools.product(range(BLANK), repeat=n)]
    return [(w, frames) for w in labels for frames in range(FRAMES + 1)]


def ctc_batch(rows: list[tuple[tuple[int, ...], int]]):
    """Random logits with these labels; the padding repeats the last label, the worst case."""
    logits = np.random.default_rng(3).normal(size=(len(rows), FRAMES, CLASSES)) * 2
    labels = np.array([(w + (w[-1:] or (0,)) * 4)[:4] for w, _ in rows])
    frames, length = (np.array([f for _, f in rows]), np.array([len(w) for w, _ in rows]))
    return logits.astype(np.float32), frames, labels, length


ctc_each = jax.jit(jax.vmap(lambda *row: ctc(*(x[None] for x in row))))
ctc_gradient = jax.jit(jax.grad(lambda *batch: ctc(*batch)[0]))


def test_ctc_is_the_sum_over_all_alignments():
    rows = ctc_rows()
    batch = ctc_batch(rows)
    nats, count, short = map(np.asarray, ctc_each(*batch))
    for i, (labels, frames) in enumerate(rows):
        log_p = log_softmax(batch[0][i])
        paths = alignments(labels, frames)
        if not labels:
            assert (nats[i], count[i], short[i]) == (0, 0, 0)
        elif not paths:
            assert (nats[i], count[i], short[i]) == (0, 0, 1)
        else:
            total = sum(math.exp(sum(log_p[t, c] for t, c in enumerate(p))) for p in paths)
            assert nats[i] == pytest.approx(-math.log(total), rel=1e-4)
            assert (count[i], short[i]) == (len(labels), 0)
    together = ctc(*batch)
    np.testing.assert_allclose(together, [nats.sum(), count.sum(), short.sum()], rtol=1e-5)


def test_a_repeated_label_needs_a_blank_between():
    rows = [((0, 0), 2), ((0, 0), 3), ((0, 1), 2), ((0, 0, 0), 4), ((0, 1, 0), 3)]
    _, _, short = ctc_each(*ctc_batch(rows))
    np.testing.assert_array_equal(short, [1, 0, 0, 1, 0])


def test_ctc_gradients_are_right_and_finite_where_nothing_fits():
    """Too short, label-less and empty rows, and NaN in padded frames, among rows that fit."""
    rows = [((0, 1), 4), ((0, 0), 2), ((0, 0), 3), ((), 4), ((), 0), ((1,), 0), ((1,), 2)]
    logits, frames, labels, length = ctc_batch(rows)
    padding = np.arange(FRAMES) >= frames[:, None]

    def plain(logits: np.ndarray) -> float:
        nats, log_p = 0.0, log_softmax(logits)
        for i in (0, 2, 6):
            paths = alignments(*rows[i])
            nats -= math.log(
                sum(math.exp(sum(log_p[i, t, c] for t, c in enumerate(p))) for p in paths)
            )
        return nats

    expected = finite_differences(plain, logits)
    gradient = np.asarray(ctc_gradient(logits, frames, labels, length))
    np.testing.assert_allclose(gradient, expected, atol=2e-3)
    assert not np.any(gradient[padding])
    assert not np.any(gradient[[1, 3, 4, 5]])
    dirty = np.where(padding[..., None], np.nan, logits)
    np.testing.assert_array_equal(ctc_gradient(dirty, frames, labels, length), gradient)


def two_views() -> tuple[np.ndarray, np.ndarray]:
    logits = np.random.default_rng(5).normal(size=(3, 2, 6, 4)).astype(np.float32)
    return logits, np.array([6, 3, 0])


def test_consistency_is_the_divergence_of_either_view_from_the_other():
    logits, frames = two_views()
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    def divergence(mine: np.ndarray, other: np.ndarray) -> float:
        return float(np.sum(other * np.log(other / mine)))

    views = [(p[0][:n], p[1][:n]) for p, n in zip(shares, frames, strict=True)]
    expected = sum(divergence(a, b) + divergence(b, a) for a, b in views)
    assert float(consistency(logits, frames)) == pytest.approx(expected, rel=1e-5)


def test_consistency_draws_each_view_to_the_other_as_it_is():
    """The gradient is that of the cross-entropy from a target that does not move."""
    logits, frames = two_views()
    gradient = jax.grad(consistency)(logits, frames)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    real = np.arange(6) < frames[:, None, None]
    expected = np.where(real[..., None], shares - shares[:, ::-1], 0)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_consistency_is_zero_for_equal_views_and_does_not_see_padding():
    logits, frames = two_views()
    assert consistency(np.repeat(logits[:, :1], 2, axis=1), frames) == 0
    real = np.arange(6) < frames[:, None, None]
    dirty = np.where(real[..., None], logits, np.nan)
    expected = jax.value_and_grad(consistency)(logits, frames)
    for got, want in zip(jax.value_and_grad(consistency)(dirty, frames), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_ctc_of_long_utterances_keeps_its_precision():
    """A hundred labels over four hundred even frames: the number of alignments is known."""
    t, n, v = 400, 100, 5
    labels = np.arange(n)[None] % v
    nats, count, short = ctc(np.zeros((1, t, v + 1)), np.array([t]), labels, np.array([n]))
    # Without repeats, alignments: choose starts and ends of n runs, C(t + n, 2 n).
    paths = math.lgamma(t + n + 1) - math.lgamma(2 * n + 1) - math.lgamma(t - n + 1)
    assert float(nats) == pytest.approx(t * math.log(v + 1) - paths, rel=1e-4)
    assert (count, short) == (n, 0)


def mwer_lists():
    """Log-probabilities, errors, and which hypotheses are real, of lists of 4, 3, 1 and 0."""
    rng = np.random.default_rng(5)
    real = np.arange(4) < np.array([[4], [3], [1], [0]])
    log_probs = (-5 + 3 * rng.normal(size=(4, 4))).astype(np.float32)
    errors = np.array([[0, 2, 5, 1], [3, 1, 2, 9], [4, 9, 9, 9], [9, 9, 9, 9]])
    return log_probs, errors, real


def test_mwer_is_the_expected_number_of_errors_beyond_the_mean():
    log_probs, errors, real = mwer_lists()

    def plain(log_probs: np.ndarray) -> float:
        total = 0.0
        for x, e, n in zip(log_probs.astype(float), errors, real.sum(1), strict=True):
            shares = np.exp(x[:n]) / np.exp(x[:n]).sum()
            total += float(shares @ e[:n]) - float(np.mean(e[:n])) if n else 0.0
        return total

    loss, rows = mwer(log_probs, errors, real)
    assert float(loss) == pytest.approx(plain(log_probs), rel=1e-5)
    assert rows == 3
    gradient = jax.grad(lambda x: mwer(x, errors, real)[0])(log_probs)
    np.testing.assert_allclose(gradient, finite_differences(plain, log_probs, 1e-3), atol=1e-4)
    assert not np.any(gradient[~real])
    assert not np.any(gradient[2])  # a list of one


def test_mwer_is_exactly_zero_where_all_hypotheses_have_equal_errors():
    log_probs, _, real = mwer_lists()
    for errors in range(30):
        same = np.full(log_probs.shape, errors)
        loss, gradient = jax.value_and_grad(lambda x, e=same: mwer(x, e, real)[0])(log_probs)
        assert loss == 0
        assert not np.any(gradient)


def test_mwer_does_not_see_what_is_not_real():
    log_probs, errors, real = mwer_lists()
    dirty = np.where(real, log_probs, np.nan)
    expected = jax.value_and_grad(lambda x: mwer(x, errors, real)[0])(log_probs)
    got = jax.value_and_grad(lambda x: mwer(x, np.where(real, errors, 77), real)[0])(dirty)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


def test_mwer_moves_probability_to_fewer_errors():
    gradient = jax.grad(lambda x: mwer(x, np.array([[0, 1, 5]]), np.ones((1, 3), bool))[0])
    down = gradient(np.zeros((1, 3), np.float32))[0]
    assert down[0] < down[1] < 0 < down[2]
    assert float(np.sum(down)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("columns", [2, 3, 9, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_by_parts_of_the_vocabulary_is_cross_entropy(columns, smoothing):
    """Loss and gradients, whether or not the parts divide it; a NaN in padding is nothing."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(*TOKENS.shape, 6)).astype(np.float32)
    kernel = rng.normal(size=(10, 6)).astype(np.float32)
    targets, real = map(np.asarray, shifted_targets(TOKENS, LENGTH, 2))
    weight = np.where(real, rng.uniform(0.5, 2.0, real.shape), 0.0).astype(np.float32)

    def plain(hidden, kernel):
        log_p = jax.nn.log_softmax(hidden @ kernel.T)
        of_target = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
        nats = -(1 - smoothing) * of_target - smoothing * jnp.mean(log_p, axis=-1)
        return jnp.sum(weight * nats), nats

    def ours(hidden, kernel):
        loss, nats = cross_entropy(hidden, kernel, targets, weight, columns, smoothing)
        return 3.0 * loss, nats  # the gradient is not of 1

    (loss, nats), gradients = jax.jit(jax.value_and_grad(plain, (0, 1), True))(hidden, kernel)
    dirty = np.where(real[..., None], hidden, np.nan)
    (found, by_token), found_gradients = jax.jit(jax.value_and_grad(ours, (0, 1), True))(
        dirty, kernel
    )
    assert float(found) == pytest.approx(3.0 * float(loss), rel=1e-5)
    np.testing.assert_allclose(by_token[real], nats[real], rtol=1e-5)
    for mine, theirs in zip(found_gradients, gradients, strict=True):
        np.testing.assert_allclose(mine, 3.0 * theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("columns", [8, 100])
def test_a_transposed_kernel_has_its_gradient_in_bfloat16(columns):
    """As those of independent heads are, several texts at a time."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(4, 30, 64)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(64, 32)), jnp.bfloat16).astype(jnp.float32)
    targets, weight = rng.integers(0, 32, (4, 30)), jnp.full((4, 30), 0.01)

    def gradient(hidden):
        def loss(kernel):
            return cross_entropy(hidden, kernel.T, targets, weight, columns)[0]

        return jax.jit(jax.grad(loss))(kernel)

    exact = gradient(hidden.astype(jnp.float32))
    np.testing.assert_allclose(gradient(hidden), exact, atol=0.01 * float(jnp.max(abs(exact))))


def test_no_whole_logits_exist_in_cross_entropy_by_parts():
    """The largest array that the traced program makes, loops included, holds one part's."""
    hidden, kernel = jnp.zeros((4, 8, 6)), jnp.zeros((1000, 6))
    targets, weight = jnp.zeros((4, 8), jnp.int32), jnp.ones((4, 8))

    def loss(hidden, kernel):
        return cross_entropy(hidden, kernel, targets, weight, 100)[0]

    def largest(jaxpr) -> int:
        inner = [getattr(v, "jaxpr", v) for e in jaxpr.eqns for v in e.params.values()]
        sizes = [v.aval.size for e in jaxpr.eqns for v in e.outvars]
        return max([*sizes, *(largest(j) for j in inner if hasattr(j, "eqns"))])

    traced = jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, kernel)
    assert largest(traced.jaxpr) == max(kernel.size, 4 * 8 * 100)
