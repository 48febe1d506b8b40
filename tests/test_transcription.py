"""Recordings to transcripts with a tiny model: the same whatever way they come, and bad input."""

from __future__ import annotations

import functools
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import mtp_jax
from mtp_jax import interrupts
from mtp_jax.audio.reading import AudioError, array_blocks, audio_blocks, read_audio
from mtp_jax.audio.segmentation import Chunk
from mtp_jax.checkpoints.checkpoint import CheckpointError
from mtp_jax.checkpoints.workdir import WorkdirError
from mtp_jax.data import grammar
from mtp_jax.decoding import Decoded, Verify
from mtp_jax.inference.programs import Inference
from mtp_jax.models.recogniser import call
from mtp_jax.models.speech_features import speech_features
from mtp_jax.models.speech_llama import SpeechLlama
from mtp_jax.tokenizer import TokenizerError
from mtp_jax.transcription import assembly, formats, spelling
from mtp_jax.transcription.alignment import align
from mtp_jax.transcription.assembly import SegmentAssembler
from mtp_jax.transcription.confidence import Calibration
from mtp_jax.transcription.prefetch import prefetch
from mtp_jax.transcription.results import Segment, Transcript, Word
from tests.recordings import RATE


def same(a: Transcript, b: Transcript) -> None:
    assert a.text == b.text
    assert [t[:3] for t in a.tokens] == [t[:3] for t in b.tokens]
    np.testing.assert_allclose([w[1:3] for w in a.words], [w[1:3] for w in b.words])


@pytest.mark.parametrize("strategy", ["verify", "verify_ctc", "ctc"])
def test_what_holds_of_every_transcript(model, talk, strategy):
    found = model.transcribe(talk, rate=RATE, strategy=strategy)
    assert found.strategy == strategy
    assert found.audio_seconds == pytest.approx(len(talk) / RATE)
    assert found.words
    assert found.text == " ".join(word.text for word in found.words)
    before = 0.0
    for segment in found.segments:
        assert before <= segment.start + 1
        before = segment.end
        at = segment.start
        for word, evidence in zip(segment.words, segment.evidence, strict=True):
            assert at <= word.start <= word.end <= segment.end + 1e-6
            assert 0 <= word.confidence <= 1
            assert max(evidence) <= 1e-6
            at = word.start
        calls = [token.call for token in segment.tokens]
        assert calls == sorted(calls)
        if strategy == "ctc":
            assert segment.decoder_calls == 0 == max(calls, default=0)
        else:
            assert max(calls) <= segment.decoder_calls
    assert [t for block in found.blocks for t in block] == list(found.tokens)
    assert found.decoder_calls >= sum(s.decoder_calls for s in found.segments)
    json.dumps(found.to_json())


def test_tokens_and_their_calls_are_those_of_the_strategy(model, waves, monkeypatch):
    """A recording that fits is decoded as `evaluate` decodes it; each call's block is in place."""
    # A model with random weights repeats itself, and of a repetition the rest is cut.
    monkeypatch.setattr(assembly, "find_repetition", lambda tokens: None)
    batch = model._batch([Chunk(0.0, wave, 0.0) for wave in waves])
    seen = model.runner
    decoded = jax.device_get(seen.run(batch, Verify()).decoded)
    segments = model.decode([Chunk(0.0, wave, 0.0) for wave in waves], "verify")
    for row, segment in enumerate(segments):
        count = int(decoded.length[row])
        assert [t.id for t in segment.tokens] == decoded.tokens[row, :count].tolist()
        assert [t.call for t in segment.tokens] == decoded.call[row, :count].tolist()


@functools.partial(jax.jit, static_argnums=0)
def teacher_forced(network, params, batch, tokens, length):
    """float32[B, L] log-probabilities of head 1, by the pass that training makes."""
    features, frames = speech_features(network, params, batch)
    hidden, _ = call(SpeechLlama.__call__, network, params, features, frames, tokens, length)
    logits = call(SpeechLlama.next_token, network, params, hidden)
    said = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(said, tokens[..., None], axis=-1)[..., 0]


def test_probabilities_are_those_of_the_teacher_forced_pass(model, waves):
    batch = model._batch([Chunk(0.0, wave, 0.0) for wave in waves])
    params = model.runner.params
    made = jax.device_get(model.runner.run(batch, Verify()).decoded)
    network, tokens, length = model.runner.model, made.tokens, made.length
    expected = teacher_forced(network, params, batch, tokens, length)
    for row in range(len(waves)):
        count = int(length[row])
        ours, theirs = made.log_probs[row, :count], expected[row, :count]
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        assert not made.log_probs[row, count:].any()


def scored(tokenizer, rows: list[tuple[list[int], list[int]]], frames: int = 60) -> Inference:
    """A decoded batch: tokens of each row, and the best CTC label of each frame."""
    blank, limit = tokenizer.vocab_size, 40
    ctc = np.full((len(rows), frames, blank + 1), np.log(0.1 / blank), np.float32)
    ctc[:, :, blank] = np.log(0.9)
    tokens, length = np.zeros((len(rows), limit), np.int32), np.zeros(len(rows), np.int32)
    for row, (text, path) in enumerate(rows):
        for frame, label in enumerate(path):
            if label >= 0:
                ctc[row, frame, [blank, label]] = ctc[row, frame, [label, blank]]
        tokens[row, : len(text)], length[row] = text, len(text)
    drafts = np.zeros((len(rows), 2), np.int32)
    return Inference(
        decoded=Decoded(
            tokens=tokens,
            log_probs=np.full(tokens.shape, np.log(0.5), np.float32),
            length=length,
            calls=-(-length // 3),
            proposed=drafts + length[:, None],
            accepted=drafts + np.array([1, 0]) * length[:, None],
            loop_steps=np.int32(limit),
            call=np.where(tokens > 0, 1 + np.arange(limit) // 3, 0),
        ),
        ctc_log_probs=jnp.asarray(ctc),
        frames=np.full(len(rows), frames, np.int32),
    )


def test_times_confidences_and_loops_of_what_the_device_says(model):
    tokenizer, reader = model.runner.tokenizer, SegmentAssembler(model.runner)
    said = ["find a train", "no no no no no no"]
    find, no = (tokenizer.encode(text) for text in said)
    words = spelling.labels_of(tokenizer, said[0].split())[1]
    spoken = [-1] * 60  # each label for two frames, each word from a tenth one on
    for word in range(3):
        mine = [label for label, place in zip(find, words, strict=True) if place == word]
        for i, label in enumerate(mine):
            at = 5 + 18 * word + 2 * i
            spoken[at : at + 2] = [label] * 2
    one = no[: len(no) // 6]
    twice = [x for label in one * 2 for x in (label, -1)]
    space = tokenizer.pieces.index("▁")
    batch = scored(
        tokenizer,
        [
            ([*find, tokenizer.eos], spoken),
            ([*no, tokenizer.eos], twice),
            ([space, tokenizer.eos], []),
            ([*no, *no], []),
        ],
        60,
    )
    pieces = [Chunk(10.0 * i, np.zeros(60 * 1280, np.int16), 0.0) for i in range(4)]
    spoken_, repeated, empty, endless = reader.segments(batch, pieces, RATE, "decoder", None)
    assert spoken_.text == said[0]
    for word, place in zip(spoken_.words, range(3), strict=True):
        count = words.count(place)
        assert word.start == pytest.approx(0.08 * (5 + 18 * place - 0.5))
        assert word.end == pytest.approx(0.08 * min(5 + 18 * place + 2 * count + 2, 60))
        assert word.confidence == pytest.approx(0.5**count)
    assert spoken_.complete
    assert spoken_.tokens[-1][:3] == (tokenizer.eos, "", 1 + len(find) // 3)
    assert (repeated.text, repeated.looped) == ("no no", True)
    assert [w.start >= 10 for w in repeated.words] == [True, True]
    assert empty.words == () == empty.evidence
    assert empty.complete
    assert not endless.complete
    assert endless.looped
    learnt = Calibration({"decoder": (0.0, 0.0, 0.0)})
    again = reader.segments(batch, pieces, RATE, "decoder", learnt)[0]
    assert [word.confidence for word in again.words] == [0.5] * 3


def test_files_samples_and_batches_give_the_same(model, waves, talk, tmp_path):
    expected = model.transcribe(talk, rate=RATE)
    file = tmp_path / "odd näme\n\udcff.wav"
    soundfile.write(os.fsencode(file), talk, RATE, format="WAV")
    same(model.transcribe(file), expected)
    same(model.transcribe(os.fspath(file)), expected)
    same(model.transcribe(talk.astype(np.float64) / 32768, rate=RATE), expected)
    same(model.transcribe(np.stack([talk] * 2, axis=1), rate=RATE), expected)
    several = model.transcribe([*waves, talk, file], rate=RATE)
    for one, wave in zip(several, [*waves, talk, talk], strict=True):
        same(one, model.transcribe(wave, rate=RATE))


def test_several_threads_may_decode_at_once(model, waves):
    expected = model.transcribe(waves, rate=RATE)
    found: dict[int, list[Transcript]] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: model.transcribe(waves, rate=RATE)}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        for ours, theirs in zip(found[i], expected, strict=True):
            same(ours, theirs)


def test_silence_has_no_words_and_costs_no_calls(model):
    for seconds in (0.5, 2, 30):
        found = model.transcribe(np.zeros(int(seconds * RATE), np.int16), rate=RATE)
        assert (found.text, found.decoder_calls, found.segments) == ("", 0, ())
        assert found.audio_seconds == pytest.approx(seconds)


def test_progress_adds_up_to_the_length(model, talk, waves):
    told: list[float] = []
    items = [("talk", talk), ("one", waves[0]), ("none", np.zeros(50_000, np.int16))]
    done = dict(model.transcribe_all(items, rate=RATE, progress=told.append))
    assert set(done) == {"talk", "one", "none"}
    seconds = sum(len(audio) for _, audio in items) / RATE
    assert sum(told) == pytest.approx(seconds, abs=0.01)
    assert min(told) >= -1e-6


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_blocks_are_what_reading_it_whole_gives(tmp_path, rate):
    samples = np.random.default_rng(0).normal(0, 3000, (40 * rate, 1)).astype(np.int16)
    file = tmp_path / "a.wav"
    soundfile.write(file, samples, rate)
    whole = read_audio(file, RATE)
    for blocks in (audio_blocks(file, RATE), array_blocks(samples, rate, RATE)):
        found = np.concatenate(list(blocks))
        assert len(found) == len(whole)
        assert np.abs(found.astype(int) - whole).max() <= 1


def write(path: pathlib.Path, samples: np.ndarray, rate: int = RATE, **how: str) -> pathlib.Path:
    soundfile.write(path, samples, rate, **how)
    return path


@pytest.fixture(scope="module")
def bad(tmp_path_factory, waves) -> dict[str, pathlib.Path]:
    """Files that cannot be used, by what is said of them."""
    folder = tmp_path_factory.mktemp("bad")
    flac = write(folder / "cut.flac", np.tile(waves[0], 40))
    flac.write_bytes(flac.read_bytes()[:200])
    (folder / "text.wav").write_text("not audio")
    (folder / "empty.mp3").touch()
    (folder / "folder.wav").mkdir()
    os.mkfifo(folder / "pipe.wav")
    nan = write(folder / "nan.wav", np.full(999, np.nan), subtype="FLOAT")
    wav = bytearray(write(folder / "rate.wav", waves[0]).read_bytes())
    wav[24:28] = (3).to_bytes(4, "little")
    (folder / "rate.wav").write_bytes(wav)
    return {
        "cut.flac holds no samples": flac,
        "nor FFmpeg reads: convert": folder / "text.wav",
        "is an empty file": folder / "empty.mp3",
        "Is a directory": folder / "folder.wav",
        "is a pipe": folder / "pipe.wav",
        "not finite": nan,
        "3 samples per second": folder / "rate.wav",
        "No such file": folder / "nowhere.wav",
    }


def test_a_bad_file_gets_a_sentence_and_the_rest_goes_on(model, bad, waves, tmp_path):
    good = [write(tmp_path / f"{i}.flac", wave) for i, wave in enumerate(waves)]
    eight = write(tmp_path / "eight.wav", np.stack([waves[0]] * 8, axis=1))
    files = [good[0], *bad.values(), *good[1:], eight]
    found = dict(model.transcribe_all((file, file) for file in files))
    assert found.keys() == set(files)
    for said, file in bad.items():
        assert said in str(found[file])
        assert isinstance(found[file], AudioError)
    same(found[eight], found[good[0]])
    for file, wave in zip(good, waves, strict=True):
        same(found[file], model.transcribe(wave, rate=RATE))


def test_what_could_not_be_read_is_in_the_transcript(model, talk, tmp_path, caplog):
    content = write(tmp_path / "whole.wav", talk).read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: len(content) // 2])
    whole, cut_off = model.transcribe([tmp_path / "whole.wav", tmp_path / "cut.wav"])
    assert whole.warnings == () == tuple(whole.to_json()["warnings"])
    [said] = cut_off.warnings
    missing = len(talk) / RATE - cut_off.audio_seconds
    assert f"cut.wav is damaged or cut off: {missing:.1f} s are missing" in said
    assert json.loads(formats.formatted(cut_off, "json"))["warnings"] == [said]
    assert said in caplog.text


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path, waves):
    file = write(tmp_path / "a.wav", np.tile(waves[0], 60))
    blocks = audio_blocks(file, RATE)
    next(blocks)
    file.write_bytes(file.read_bytes() + bytes(100))
    with pytest.raises(AudioError, match="changed while it was read"):
        list(blocks)


@pytest.mark.parametrize(
    ("samples", "rate", "said"),
    [
        (np.zeros(9, np.int16), None, "needs its rate"),
        (np.zeros(9, np.int16), 5, "needs its rate"),
        (np.zeros(9, np.int64), RATE, "int64"),
        (np.array(["a"]), RATE, "U1"),
        (np.zeros((2, 2, 2), np.int16), RATE, "shape"),
        (np.zeros(0, np.int16), RATE, "shape"),
        (np.zeros((2, 9), np.int16), RATE, "more channels than samples.*samples.T"),
        (np.zeros(9, np.int16), "16000", "rate in Hz, not '16000'"),
        (np.full(9, np.inf), RATE, "not finite"),
        (np.full(9, np.nan), RATE, "not finite"),
        (np.full(9, 3000.0), RATE, "divide"),
    ],
)
def test_wrong_samples_get_a_sentence(model, samples, rate, said):
    with pytest.raises(AudioError, match=said):
        model.transcribe(samples, rate=rate)


def test_an_unknown_strategy_is_refused(model):
    with pytest.raises(ValueError, match="'fast' is not one of ctc, greedy"):
        model.transcribe(np.zeros(999, np.int16), rate=RATE, strategy="fast")


def test_a_folder_that_is_no_model_gets_a_sentence(workdir, tmp_path):
    def copy(name: str) -> pathlib.Path:
        return shutil.copytree(workdir, tmp_path / name)

    with pytest.raises(WorkdirError, match="is no folder of a model"):
        mtp_jax.load(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(WorkdirError, match=r"no config\.json"):
        mtp_jax.load(tmp_path / "bare")
    newer = copy("newer")
    config = json.loads((newer / "config.json").read_text())
    (newer / "config.json").write_text(json.dumps(config | {"quantum": 1}))
    with pytest.raises(WorkdirError, match=r"another version of mtp_jax: config\.quantum"):
        mtp_jax.load(newer)
    (newer / "config.json").write_text('{"seed": 0')
    with pytest.raises(WorkdirError, match="cannot be read"):
        mtp_jax.load(newer)
    untokenized = copy("untokenized")
    (untokenized / "tokenizer.model").unlink()
    with pytest.raises(WorkdirError, match="no tokenizer"):
        mtp_jax.load(untokenized)
    (untokenized / "tokenizer.model").write_bytes(b"junk")
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        mtp_jax.load(untokenized)
    untrained = copy("untrained")
    shutil.rmtree(untrained / "best")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        mtp_jax.load(untrained)
    other = copy("other")
    config["encoder"]["width"] = 32
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"does not fit .* is \(.*\), not \("):
        mtp_jax.load(other)
    damaged = copy("damaged")
    (damaged / "confidence.json").write_text("{}")
    with pytest.raises(WorkdirError, match=r"confidence\.json cannot be read"):
        mtp_jax.load(damaged)


def test_the_package_is_imported_without_jax():
    code = "import sys, mtp_jax; assert 'jax' not in sys.modules; print(mtp_jax.__version__)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nothing"):
        _ = mtp_jax.nothing


def test_every_token_belongs_to_its_word(model):
    tokenizer = model.runner.tokenizer
    for text in itertools.islice(grammar.sentences("test", 0), 20):
        tokens = tokenizer.encode(text)
        spelled = spelling.spell(tokenizer, tokens)
        assert "".join(spelled.added).split() == spelled.words == text.split()
        spelled_again = ["" for _ in spelled.words]
        for token, place in zip(tokens, spelled.word, strict=True):
            spelled_again[place] += tokenizer.pieces[token].replace("▁", "")
        assert spelled_again == spelled.words
        assert spelling.labels_of(tokenizer, text.split()) == (tokens, spelled.word)


def test_long_texts_align(model):
    log_probs = np.log(np.random.default_rng(0).dirichlet(np.ones(40), 900))
    found = align(log_probs, list(range(39)) * 4)
    assert found is not None
    assert len(found.first) == 156


def transcript(*words: tuple[str, float, float]) -> Transcript:
    made = tuple(Word(text, a, b, 0.5) for text, a, b in words)
    return Transcript((Segment(0, 99, made, (), 1),), 99.0, 1.0, 1, "verify", False)


def test_subtitles():
    spoken = transcript(("a<b", 0.5, 1.0), ("-->", 1.0, 1.2), ("later", 3661.5, 3662.0004))
    assert formats.formatted(spoken, "srt") == (
        "1\n00:00:00,500 --> 00:00:01,200\na<b -->\n\n2\n01:01:01,500 --> 01:01:02,000\nlater\n\n"
    )
    assert formats.formatted(spoken, "vtt") == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:01.200\na&lt;b --&gt;\n\n"
        "01:01:01.500 --> 01:01:02.000\nlater\n\n"
    )
    many = transcript(*((f"word{i}", i * 0.2, i * 0.2 + 0.2) for i in range(60)))
    cues = formats.formatted(many, "srt").split("\n\n")
    assert all(len(line) <= 42 for cue in cues for line in cue.splitlines()[2:])
    assert max(len(cue.splitlines()) for cue in cues) == 4
    assert " ".join(" ".join(cue.splitlines()[2:]) for cue in cues).split() == many.text.split()
    assert formats.formatted(transcript(), "txt") == "\n"


def test_a_full_subtitle_ends_with_its_phrase():
    """What is left over of it begins the next, together with the words that follow."""
    text = "The time had almost come to try it, as he had said, and he was ready to leave the room."
    said = [(word, i * 0.3, i * 0.3 + 0.3) for i, word in enumerate(text.split())]
    cues = formats.formatted(transcript(*said), "srt").strip().split("\n\n")
    assert [" ".join(cue.splitlines()[2:]) for cue in cues] == [
        "The time had almost come to try it, as he had said,",
        "and he was ready to leave the room.",
    ]
    assert cues[0].splitlines()[1] == "00:00:00,000 --> 00:00:03,600"
    # A mark in its first third is none to end with.
    early = [(word, i * 0.3, i * 0.3 + 0.3) for i, word in enumerate(["No,", *["never"] * 40])]
    first = formats.formatted(transcript(*early), "srt").split("\n\n")[0]
    assert len(first.split()) > 10


def test_an_iterator_run_ahead_ends_with_its_reader():
    made = []

    def numbers():
        for i in range(1000):
            made.append(i)
            yield i
        raise AssertionError("never reached")

    reader = prefetch(numbers(), 3)
    assert [next(reader), next(reader)] == [0, 1]
    reader.close()
    assert len(made) < 10
    assert list(prefetch(iter("abc"), 1)) == ["a", "b", "c"]

    def failing():
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(prefetch(failing(), 2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_amid_hours_of_silence_ends_between_two_blocks(model, monkeypatch, number):
    read, threads = [], set(threading.enumerate())

    def silence(*unused):
        for i in range(2000):
            read.append(i)
            if i == 5:
                os.kill(os.getpid(), number)
            time.sleep(0.01)
            yield np.zeros(RATE, np.int16)

    monkeypatch.setattr(model, "_blocks", silence)
    with interrupts.handled():
        with pytest.raises(interrupts.Interrupted) as stopped:
            list(model.transcribe_all([("a", "silence.wav")]))
        assert stopped.value.exit_status == 128 + number
    assert len(read) < 1000
    assert set(threading.enumerate()) <= threads
