"""Batches: nothing read twice or left out, resumed on exactly the next one, failures named."""

import dataclasses

import jax
import numpy as np
import pytest

from mtp_jax.audio.reading import AudioError, change_speed
from mtp_jax.config import Augment, Config, Data, FrontEnd
from mtp_jax.data import (
    Batch,
    DataError,
    FeatureBatch,
    Problem,
    Share,
    Source,
    Utterance,
    eval_batches,
    train_batches,
)
from mtp_jax.tokenizer import Tokenizer

RATE = 1000
TEXTS = ("turn on the lamp", "turn off the radio", "the number is nine", "call anna at six")
CONFIG = Config(
    seed=3,
    front_end=FrontEnd(sample_rate=RATE),
    data=Data(bucket_seconds=(0.3, 0.5), batch_size=4, max_tokens=24, prefetch=3),
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.train(TEXTS, tmp_path_factory.mktemp("tokenizer") / "m.model", 26)


def make_source(count=23, broken=()):
    """Utterances of 0.1 to 0.5 s whose samples all hold their number."""
    lengths = np.random.default_rng(0).integers(100, 501, count)
    utterances = [
        Utterance(f"u{i}", TEXTS[i % 4], n / RATE, speaker=f"s{i % 3}")
        for i, n in enumerate(lengths)
    ]

    def waveform(i):
        if i in broken:
            raise AudioError(f"u{i} is damaged")
        return np.full(lengths[i], 100 + i, np.int16)

    return Source("numbers", "", utterances, [Problem("u99", "no text")], waveform)


def take(batches, count):
    return [next(batches) for _ in range(count)]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for field in a._fields:
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


def assert_row(batch, row, source, tokenizer, speeds=(1.0,)):
    index = batch.index[row]
    length, tokens = batch.audio_length[row], batch.token_length[row]
    utterance = source.utterances[index]
    lengths = {len(change_speed(source.waveform(index), speed)) for speed in speeds}
    assert length in lengths
    # Away from its ends a resampled constant is that constant.
    np.testing.assert_allclose(
        batch.audio[row, length // 4 : -length // 4][: length // 2], 100 + index, atol=9
    )
    assert not batch.audio[row, length:].any()
    ids = batch.tokens[row]
    assert tokenizer.decode(ids[: tokens - 1]) == utterance.text
    assert ids[tokens - 1] == tokenizer.eos
    assert (ids[tokens:] == tokenizer.pad).all()


def test_an_epoch_holds_every_utterance_once_as_the_source_has_it(tokenizer):
    source = make_source()
    batches, report = train_batches(source, tokenizer, CONFIG)
    seen = []
    for batch in take(batches, 6):  # 23 utterances in batches of 4
        assert [x.dtype for x in jax.tree.leaves(batch)] == [np.int16, *[np.int32] * 4]
        assert batch.audio.shape[1] in (300, 500)
        for row, index in enumerate(batch.index):
            if index >= 0:
                seen.append(index)
                assert_row(batch, row, source, tokenizer, CONFIG.augment.speeds)
            else:
                assert batch.audio_length[row] == batch.token_length[row] == 0
                assert not batch.audio[row].any()
    assert sorted(seen) == list(range(23))
    assert report.to_json()["skipped"] == {"no text": 1}


def test_two_runs_of_one_seed_are_the_same_and_seeds_differ(tokenizer):
    runs = [
        take(train_batches(make_source(), tokenizer, c)[0], 8)
        for c in (CONFIG, CONFIG, dataclasses.replace(CONFIG, seed=4))
    ]
    assert_same(runs[0], runs[1])
    assert any((a.index != b.index).any() for a, b in zip(runs[0], runs[2], strict=True))


@pytest.mark.parametrize("step", [0, 1, 5, 6, 14])
def test_training_resumes_on_exactly_the_next_batch(tokenizer, step):
    unbroken = take(train_batches(make_source(), tokenizer, CONFIG)[0], step + 8)
    resumed, _ = train_batches(make_source(), tokenizer, CONFIG, start=step)
    assert_same(take(resumed, 8), unbroken[step:])


@pytest.mark.parametrize("of", [2, 4])
def test_a_changed_number_of_processes_reads_the_same_batches(tokenizer, of):
    whole = take(train_batches(make_source(), tokenizer, CONFIG)[0], 8)
    parts = []
    for process in range(of):
        batches, _ = train_batches(
            make_source(), tokenizer, CONFIG, share=Share((process,), of), start=2
        )
        parts.append(take(batches, 6))
    joined = [
        jax.tree.map(lambda *x: np.concatenate(x), *batch) for batch in zip(*parts, strict=True)
    ]
    assert_same(joined, whole[2:])


def test_characters_that_the_tokenizer_does_not_know_are_told(tokenizer, tmp_path, caplog):
    source = make_source(8)
    source.utterances[3] = dataclasses.replace(source.utterances[3], text="zwölf")
    train_batches(source, tokenizer, CONFIG)
    said = "1 of 8 texts of numbers have characters that the tokenizer does not know"
    assert said in caplog.text
    caplog.clear()
    both = tokenizer.with_ctc(Tokenizer.train([*TEXTS, "zwölf"], tmp_path / "m.model", 30))
    train_batches(source, both.ctc.with_ctc(tokenizer), CONFIG)
    assert "that CTC's tokenizer does not know" in caplog.text
    caplog.clear()
    train_batches(make_source(8), tokenizer, CONFIG)
    assert not caplog.text


def test_unreadable_audio_becomes_filler_and_is_reported_once(tokenizer, caplog):
    source = make_source(broken={5, 11})
    batches, report = train_batches(source, tokenizer, CONFIG)
    index = np.concatenate([batch.index for batch in take(batches, 18)])  # three epochs
    assert set(index) == {-1, *range(23)} - {5, 11}
    assert {(p.id, p.detail) for p in report.problems} == {
        *(("u99", ""), ("u5", "u5 is damaged"), ("u11", "u11 is damaged"))
    }
    assert len(report.problems) == 3
    assert "u5 is skipped: u5 is damaged" in caplog.text
    assert "2 unreadable audio (u" in str(report)


def test_texts_too_long_to_train_on_are_reported_and_evaluated(tokenizer):
    source = make_source(4)
    lengths = [len(tokenizer.encode(text)) + 1 for text in TEXTS]
    short = dataclasses.replace(
        CONFIG, data=dataclasses.replace(CONFIG.data, max_tokens=min(lengths))
    )
    batches, report = train_batches(source, tokenizer, short)
    kept = {i for i, n in enumerate(lengths) if n == min(lengths)}
    assert set(next(batches).index) <= {-1} | kept
    assert report.counts()["too many tokens"] == report.to_json()["skipped"]["too many tokens"]
    assert report.kept == len(kept) == 4 - report.counts()["too many tokens"]
    assert {i for b in eval_batches(source, tokenizer, short, 4) for i in b.index} == {0, 1, 2, 3}


def test_shorter_buckets_hold_about_the_same_seconds(tokenizer):
    data = dataclasses.replace(CONFIG.data, batch_seconds_alike=True, bucket_seconds=(0.2, 0.5))
    config = dataclasses.replace(CONFIG, data=data, augment=Augment(speeds=(1.0,)))
    batches, _ = train_batches(make_source(200), tokenizer, config, multiple=2)
    assert {b.audio.shape for b in take(batches, 60)} == {(10, 200), (4, 500)}


@pytest.mark.parametrize("size", [1, 5, 23, 32])
def test_evaluation_reads_everything_once_unchanged(tokenizer, size):
    source = make_source()
    batches = list(eval_batches(source, tokenizer, CONFIG, size))
    assert len(batches) == -(-23 // size)
    assert {len(batch.index) for batch in batches} == {size}
    seen = []
    for batch in batches:
        for row, index in enumerate(batch.index):
            if index >= 0:
                seen.append(int(index))
                n = batch.audio_length[row]
                np.testing.assert_array_equal(batch.audio[row, :n], source.waveform(index))
                assert_row(batch, row, source, tokenizer)
    assert sorted(seen) == list(range(23))
    assert_same(batches, list(eval_batches(source, tokenizer, CONFIG, size)))


def test_a_batch_that_cannot_be_shared_out_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"config\.data\.batch_size \(4\) must be a multiple of 3"):
        train_batches(make_source(), tokenizer, CONFIG, multiple=3)


def test_nothing_to_train_on(tokenizer):
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, max_tokens=1))
    with pytest.raises(DataError, match="nothing to train on; skipped: 23 too many tokens"):
        train_batches(make_source(), tokenizer, config)


def test_a_batch_of_features_stays_one_wherever_it_goes():
    """On devices, without references, and under `jit`: its type says what it holds."""
    rows = np.zeros(2, np.int32)
    batch = FeatureBatch(
        np.zeros((2, 3, 4), np.float16), rows, np.zeros((2, 5), np.int32), rows, rows
    )
    seen = []
    traced = jax.jit(lambda batch: seen.append(type(batch)) or batch)(batch)
    assert seen == [FeatureBatch]
    for same in (traced, jax.device_put(batch), batch._replace(tokens=batch.tokens[:, :0])):
        assert type(same) is FeatureBatch
    assert jax.tree.structure(batch) != jax.tree.structure(Batch(*batch))
