"""Batch plans: every utterance once an epoch, and a function of lengths, seed and step alone."""

import collections
import concurrent.futures

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtp_jax.data.plan import Share, TrainPlan, evaluation_plan

BOUNDS = (100, 150, 220)


@st.composite
def utterances(draw):
    lengths = draw(st.lists(st.tuples(st.integers(1, 220), st.integers(1, 40)), min_size=1))
    return [samples for samples, _ in lengths], [tokens for _, tokens in lengths]


@st.composite
def plans(draw):
    samples, tokens = draw(utterances())
    rows = sorted(draw(st.lists(st.integers(1, 9), min_size=3, max_size=3)), reverse=True)
    speeds = draw(st.sampled_from([(1.0,), (0.9, 1.0, 1.1), (0.5, 2.0), (1.3,)]))
    return samples, tokens, rows, speeds, draw(st.integers(0, 99))


def make(plan):
    samples, tokens, rows, speeds, seed = plan
    return TrainPlan(samples, tokens, BOUNDS, rows, speeds, seed)


def epochs(plan, count):
    """Batches of the first epochs, each ended by the last utterance that had not come yet."""
    step, size = 0, len(plan[0])
    train = make(plan)
    for _ in range(count):
        batches, real = [], 0
        while real < size:
            batches.append(train.batch(step))
            real += int((batches[-1].index >= 0).sum())
            step += 1
        yield batches


@given(plans())
@settings(max_examples=60, deadline=None)
def test_every_utterance_once_an_epoch(plan):
    for batches in epochs(plan, 3):
        index = np.concatenate([batch.index for batch in batches])
        assert sorted(index[index >= 0]) == list(range(len(plan[0])))


@given(plans())
@settings(max_examples=60, deadline=None)
def test_at_most_one_batch_an_epoch_is_partial(plan):
    for batches in epochs(plan, 3):
        assert sum((batch.index < 0).any() for batch in batches) <= 1


@given(plans())
@settings(max_examples=60, deadline=None)
def test_everything_fits_its_shape(plan):
    samples, tokens, rows, speeds, _ = plan
    for batches in epochs(plan, 2):
        for batch in batches:
            shape = batch.shape
            assert shape in make(plan).shapes
            assert shape.rows == len(batch.index) == rows[BOUNDS.index(shape.samples)]
            assert shape.tokens % 8 == 0
            for i, speed in zip(batch.index, batch.speed, strict=True):
                if i >= 0:
                    assert speed in speeds or speed == 1.0
                    assert round(samples[i] / speed) <= shape.samples
                    assert tokens[i] <= shape.tokens


@given(plans(), st.integers(0, 30))
@settings(max_examples=30, deadline=None)
def test_a_batch_depends_on_its_step_alone(plan, step):
    there, jumped = make(plan), make(plan)
    walked = [there.batch(s) for s in range(step + 1)][-1]
    landed = jumped.batch(step)
    jumped.batch(0)
    for other in (landed, jumped.batch(step)):
        np.testing.assert_array_equal(walked.index, other.index)
        np.testing.assert_array_equal(walked.speed, other.speed)
        assert walked.shape == other.shape


@given(plans(), st.sampled_from([1, 2, 3]))
@settings(max_examples=30, deadline=None)
def test_slices_of_the_processes_make_up_the_batch(plan, processes):
    plan = (*plan[:2], [rows * processes for rows in plan[2]], *plan[3:])
    batch = make(plan).batch(0)
    parts = [batch.take(Share((process,), processes)) for process in range(processes)]
    np.testing.assert_array_equal(np.concatenate([p.index for p in parts]), batch.index)
    np.testing.assert_array_equal(np.concatenate([p.speed for p in parts]), batch.speed)
    assert {p.shape.rows * processes for p in parts} == {batch.shape.rows}


def test_a_share_may_be_scattered_and_must_divide():
    """Where the devices of a process are no neighbours in the mesh."""
    assert Share((0, 2), 4).rows(8).tolist() == [0, 1, 4, 5]
    assert Share().rows(3).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="6 rows cannot be cut into 4 equal parts"):
        Share((0,), 4).rows(6)


def test_epochs_and_seeds_differ_in_order_and_speed():
    samples = list(range(1, 221))
    plans = [TrainPlan(samples, samples, BOUNDS, (4, 4, 4), (0.9, 1.0, 1.1), s) for s in (0, 1)]
    first, again, other = (
        [plans[seed].batch(step) for step in range(start, start + 55)]
        for seed, start in ((0, 0), (0, 55), (1, 0))
    )
    for batches in (again, other):
        assert any((a.index != b.index).any() for a, b in zip(first, batches, strict=True))
    speeds = [
        {i: speed for b in epoch for i, speed in zip(b.index, b.speed, strict=True)}
        for epoch in (first, again)
    ]
    assert speeds[0].keys() == speeds[1].keys()
    assert speeds[0] != speeds[1]


def test_speeds_are_drawn_evenly():
    plan = TrainPlan([10] * 3000, [1] * 3000, (100,), (100,), (0.9, 1.0, 1.1), 0)
    counts = collections.Counter(s for step in range(30) for s in plan.batch(step).speed)
    assert set(counts) == {0.9, 1.0, 1.1}
    assert all(900 < count < 1100 for count in counts.values())


def test_what_slowing_down_makes_too_long_is_played_as_it_is():
    plan = TrainPlan([100, 40], [1, 1], (50, 100), (1, 1), (0.5,), 0)
    speed = {int(b.index[0]): b.speed[0] for b in (plan.batch(0), plan.batch(1))}
    assert speed == {0: 1.0, 1: 0.5}


@given(utterances(), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_evaluation_reads_everything_once_shortest_first(lengths, rows):
    samples, tokens = lengths
    batches = evaluation_plan(samples, tokens, BOUNDS, rows)
    index = np.concatenate([batch.index for batch in batches])
    real = index[index >= 0]
    assert sorted(real) == list(range(len(samples)))
    assert [samples[i] for i in real] == sorted(samples)
    assert len(index) - len(real) < rows  # filler, in the last batch only
    assert len({batch.shape for batch in batches}) <= len(BOUNDS)
    for batch in batches:
        assert (batch.speed == 1.0).all()
        for i in batch.index[batch.index >= 0]:
            assert samples[i] <= batch.shape.samples
            assert tokens[i] <= batch.shape.tokens


@pytest.mark.parametrize("count", [1, 1000])
def test_threads_may_ask_for_any_step_at_once(count):
    plan = TrainPlan(range(1, 201), [1] * 200, BOUNDS, (3, 3, 3), (0.9, 1.1), 0)
    alone = TrainPlan(range(1, 201), [1] * 200, BOUNDS, (3, 3, 3), (0.9, 1.1), 0)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for step, batch in enumerate(pool.map(plan.batch, range(count))):
            np.testing.assert_array_equal(batch.index, alone.batch(step).index)
