"""The embedded corpus: unseen sentences and voices, and the same bits however it is made."""

import hashlib
import io
import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest
import soundfile

from mtp_jax.config import Data
from mtp_jax.data import DataError, corpus, embedded, espeak, grammar, open_source
from mtp_jax.tokenizer import Tokenizer


def take(split: str, count: int, seed: int = 0) -> list[str]:
    return list(itertools.islice(grammar.sentences(split, seed), count))


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    """A cache folder that holds the tiny corpus."""
    path = tmp_path_factory.mktemp("cache")
    embedded.embedded(path, "tiny")
    return path


def test_sentences_are_plain_words_of_a_small_vocabulary():
    words = grammar.vocabulary()
    assert 140 <= len(words) <= 180
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    seen = set(" ".join(take("train", 5000)).split())
    assert seen == words  # no rule is out of reach


def test_sentences_are_of_the_promised_lengths():
    allowed = set(range(grammar.FEWEST_WORDS, grammar.MOST_WORDS + 1))
    assert {len(text.split()) for text in take("train", 1000)} == allowed


def test_splits_share_no_sentence_and_evaluation_repeats_none():
    train, dev, test = (set(take(s, n)) for s, n in (("train", 5000), ("dev", 200), ("test", 400)))
    assert not train & dev
    assert not train & test
    assert not dev & test
    assert (len(dev), len(test)) == (200, 400)


def test_splits_are_disjoint_across_seeds():
    assert not set(take("train", 2000, seed=1)) & set(take("test", 400, seed=2))


def test_sentences_are_the_released_ones():
    """Who changes the corpus, this digest with it, also gives `Embedded` a new version."""
    texts = "\n".join(text for split in grammar.SPLITS for text in take(split, 200))
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "62d0233e647bebfa"


def test_sentences_depend_on_the_seed_alone():
    assert take("train", 50) == take("train", 50)
    assert take("train", 50) != take("train", 50, seed=1)
    with pytest.raises(ValueError, match="no split 'validation'"):
        next(grammar.sentences("validation", 0))


def test_sentences_have_at_least_twelve_tokens(tmp_path):
    tokenizer = Tokenizer.train(take("train", 3000), tmp_path / "m.model", 96)
    lengths = [len(tokenizer.encode(text)) for text in take("test", 400)]
    assert np.mean(lengths) >= 12


def test_voices_exist_and_no_two_splits_share_one():
    splits = [set(corpus.VARIANTS[split]) for split in grammar.SPLITS]
    assert sum(map(len, splits)) == len(set.union(*splits))
    folder = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    assert set.union(*splits) <= {file.name for file in folder.iterdir()}


@pytest.mark.parametrize("accent", corpus.ACCENTS)
def test_accents_exist(accent):
    assert len(espeak.speak("hello", accent, rate=200).waveform) > 1000


def test_unknown_voice():
    with pytest.raises(espeak.EspeakError, match="no voice 'xx'"):
        espeak.speak("hello", "xx", rate=200)


def test_an_utterance_does_not_depend_on_what_was_spoken_before():
    text = take("test", 1)[0]
    first = corpus.utterance(text, 0, "test", 7)
    for variant in ("f4", "klatt4", "m3"):  # breath, noise and echo would linger
        espeak.speak("something else", f"en-us+{variant}", rate=150)
        assert str(corpus.utterance(text, 0, "test", 7)) == str(first)
    assert corpus.utterance(text, 0, "test", 8).flac != first.flac


def test_the_corpus_does_not_depend_on_the_number_of_processes():
    one, three = (list(corpus.spoken(0, "dev", 7, workers)) for workers in (1, 3))
    assert str(one) == str(three)  # NaN is not equal to itself
    assert [item.text for item in one] == take("dev", 7)


def test_utterances_are_flac_at_16_khz_with_word_times():
    items = list(corpus.spoken(0, "test", 20))
    assert len(items) == 20
    for item in items:
        wave, rate = soundfile.read(io.BytesIO(item.flac), dtype="int16")
        assert (rate, len(wave)) == (16_000, round(item.seconds * 16_000))
        assert 0.8 < item.seconds <= corpus.MAX_SECONDS
        assert 300 < np.abs(wave).max() < 32_000
        assert item.voice.split("+")[1] in corpus.VARIANTS["test"]
        starts = np.array(item.word_starts)
        assert len(starts) == len(item.text.split())
        known = starts[~np.isnan(starts)]
        assert (np.diff(known) > 0).all()
        assert known[0] >= 0.05  # the margin
        assert known[-1] < item.seconds
        before = wave[: int(known[0] * 16_000) - 100].astype(float)
        assert np.abs(before).max() <= 10  # silence until the first word


def test_noise_and_rooms_change_nothing_but_the_sound():
    clean, noisy = (list(corpus.spoken(0, "dev", 12, 2, flag)) for flag in (False, True))
    ratios = []
    for a, b in zip(clean, noisy, strict=True):
        assert str(a._replace(flac=b"")) == str(b._replace(flac=b""))
        (x, _), (y, rate) = (soundfile.read(io.BytesIO(item.flac)) for item in (a, b))
        assert (rate, len(y)) == (16_000, len(x))
        assert 0.5 < np.std(y) / np.std(x) < 1.5
        assert np.abs(y).max() < 0.95
        share = (x @ y) ** 2 / ((x @ x) * (y @ y))  # of the power that is the direct sound
        ratios.append(10 * np.log10(share / (1 - share)))
    assert -8 < min(ratios) < 0 < max(ratios) < 12


def test_the_noise_is_as_weak_as_it_says():
    wave = np.sin(np.arange(32_000) / 5).astype(np.float32) * 0.1
    scored = [corpus.degraded(wave, np.random.default_rng(i)) for i in range(20)]
    assert all(np.std(x) == pytest.approx(np.std(wave), rel=1e-3) for x in scored)
    again = corpus.degraded(wave, np.random.default_rng(3))
    np.testing.assert_array_equal(again, scored[3])


def test_workers_import_no_jax():
    code = "import sys, mtp_jax.data.corpus; print('jax' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_a_worker_that_dies_is_a_sentence(monkeypatch):
    speech = corpus.spoken(0, "train", 10_000, 1)
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    next(speech)
    os.kill(started[0].pid, signal.SIGKILL)
    with pytest.raises(espeak.EspeakError, match="was killed"):
        list(speech)
    assert started[0].poll() is not None


def test_a_missing_engine_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(espeak.EspeakError, match="pip install espeakng-loader"):
        espeak.speak("hello", "en", rate=200)


def test_the_dataset_holds_what_was_spoken(cache_dir):
    data = Data(cache_dir=str(cache_dir))
    for split in grammar.SPLITS:
        source = open_source(f"embedded/tiny:{split}", data, 16_000)
        spoken = list(corpus.spoken(0, split, embedded.SIZES["tiny"][split]))
        assert source.problems == []
        assert [u.text for u in source.utterances] == [item.text for item in spoken]
        assert [u.speaker for u in source.utterances] == [item.voice for item in spoken]
        for i, item in enumerate(spoken):
            wave, _ = soundfile.read(io.BytesIO(item.flac), dtype="int16")
            np.testing.assert_array_equal(source.waveform(i), wave)
    assert "tensorflow" not in sys.modules


def test_word_times_are_stored(cache_dir):
    example = embedded.embedded(cache_dir, "tiny").as_data_source(split="dev")[0]
    item = next(corpus.spoken(0, "dev", 1))
    np.testing.assert_allclose(example["word_starts"], item.word_starts, rtol=1e-6)


KILLED_MIDWAY = """
import itertools, os, pathlib, signal, sys
from mtp_jax.data import corpus, embedded

spoken = corpus.spoken

def killed(*args):
    yield from itertools.islice(spoken(*args), 5)
    os.kill(os.getpid(), signal.SIGKILL)

corpus.spoken = killed
embedded.embedded(pathlib.Path(sys.argv[1]), "tiny")
"""


def test_a_corpus_whose_making_was_killed_is_made_again(tmp_path):
    command = [sys.executable, "-c", KILLED_MIDWAY, str(tmp_path)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    left = {path.name for path in (tmp_path / "embedded" / "tiny").iterdir()}
    assert left  # what was written, under another name
    source = open_source("embedded/tiny:train", Data(cache_dir=str(tmp_path)), 16_000)
    assert len(source.utterances) == 64
    [finished] = (tmp_path / "embedded" / "tiny").iterdir()
    assert finished.name not in left


def test_a_finished_corpus_is_not_made_again(cache_dir, monkeypatch):
    monkeypatch.setattr(corpus, "spoken", None)
    embedded.embedded(cache_dir, "tiny")


def test_a_failing_engine_is_a_data_error(tmp_path, monkeypatch):
    def failing(*args):
        raise espeak.EspeakError("no voice")
        yield

    monkeypatch.setattr(corpus, "spoken", failing)
    with pytest.raises(DataError, match="no voice"):
        embedded.embedded(tmp_path, "tiny")


def test_an_unwritable_cache_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"set config\.data\.cache_dir"):
        embedded.embedded(tmp_path / "file", "tiny")


@pytest.mark.parametrize("spec", ["embedded/huge:train", "embedded:validation"])
def test_unknown_size_or_split(tmp_path, spec):
    with pytest.raises(DataError, match="choose of"):
        open_source(spec, Data(cache_dir=str(tmp_path)), 16_000)


def test_a_damaged_record_is_skipped_by_name(tmp_path, cache_dir):
    shutil.copytree(cache_dir / "embedded", tmp_path / "embedded")
    [file] = (tmp_path / "embedded/tiny").glob("*/*train*")
    content = bytearray(file.read_bytes())
    content[200_000:200_100] = bytes(100)
    file.write_bytes(content)
    source = open_source("embedded/tiny:train", Data(cache_dir=str(tmp_path)), 16_000)
    assert 0 < len(source.problems) < 5
    assert {p.reason for p in source.problems} == {"unreadable record"}
    assert len(source.utterances) == 64 - len(source.problems)
    assert all(len(source.waveform(i)) for i in range(len(source.utterances)))
    assert not any(math.isnan(u.seconds) for u in source.utterances)
