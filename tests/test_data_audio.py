"""Folders of recordings without transcripts: how they are cut, and what is kept of it."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import soundfile
import soxr

from mtp_jax.audio.reading import AudioError, audio_blocks
from mtp_jax.audio.segmentation import cut
from mtp_jax.config import Data
from mtp_jax.data import DataError, audio_folder, check_sources, open_source
from tests.recordings import RATE, sentences

LONGEST = 4.0


@pytest.fixture(scope="module")
def speech():
    """int16[T] of some 14 s: six sentences, with pauses of half a second and one of five."""
    pause = np.zeros(RATE // 2, np.int16)
    parts = [part for wave in sentences(6) for part in (wave, pause)]
    return np.concatenate([*parts[:6], np.zeros(5 * RATE, np.int16), *parts[6:]])


@pytest.fixture
def data(tmp_path):
    return Data(cache_dir=str(tmp_path / "cache"), bucket_seconds=(2.0, LONGEST), text="greedy")


@pytest.fixture
def folder(tmp_path, speech):
    """Long recordings that can and cannot be read from the middle, a short one, and a text."""
    root = tmp_path / "talks"
    (root / "b" / "c").mkdir(parents=True)
    soundfile.write(root / "b" / "long.flac", speech, RATE)
    soundfile.write(root / "b" / "c" / "long.mp3", speech, RATE)
    soundfile.write(root / "short.wav", speech[: 3 * RATE], RATE)
    (root / "notes.txt").write_text("not audio")
    return root


def test_at_another_rate_parts_begin_at_the_nearest_sample(tmp_path, data, speech):
    (tmp_path / "cds").mkdir()
    wave = soxr.resample(speech / 2**15, RATE, 44_100)
    soundfile.write(tmp_path / "cds" / "a.flac", wave, 44_100)
    source = open_source(f"audio:{tmp_path}/cds", data, RATE)
    chunks = list(cut(audio_blocks(tmp_path / "cds" / "a.flac", RATE), RATE, LONGEST))
    assert len(chunks) == len(source.utterances)
    for i, chunk in enumerate(chunks):
        read = source.waveform(i)
        assert abs(len(read) - len(chunk.audio)) <= 1
        size = min(len(read), len(chunk.audio))
        assert np.corrcoef(read[:size], chunk.audio[:size])[0, 1] > 0.95


def undetected(monkeypatch):
    """From here on nobody may look for voices."""

    def called(*unused, **also):
        raise AssertionError

    monkeypatch.setattr(audio_folder, "cut", called)


def test_recordings_are_cut_as_transcribing_cuts_them(folder, data, speech):
    source = open_source(f"audio:{folder}", data, RATE)
    assert (source.name, source.problems) == ("talks", [])
    first, *others = source.utterances
    assert (first.id, first.text, first.seconds) == ("short.wav", "", 3.0)
    np.testing.assert_array_equal(source.waveform(0), speech[: 3 * RATE])
    expected = []
    for name in ("b/long.flac", "b/c/long.mp3"):
        chunks = list(cut(audio_blocks(folder / name, RATE), RATE, LONGEST))
        assert len(chunks) > 3
        expected += [(f"{name}@{chunk.start:.2f}", chunk.audio) for chunk in chunks]
    assert [u.id for u in others] == [name for name, _ in expected]
    for i, (utterance, (_, audio)) in enumerate(zip(others, expected, strict=True), start=1):
        assert utterance.seconds == len(audio) / RATE <= LONGEST
        np.testing.assert_array_equal(source.waveform(i), audio)
    heard = sum(u.seconds for u in others) / 2
    assert heard < len(speech) / RATE - 4  # what is silent is left out


def test_a_second_opening_detects_nothing_again(folder, data, monkeypatch):
    first = open_source(f"audio:{folder}", data, RATE)
    undetected(monkeypatch)
    monkeypatch.setattr(audio_folder, "audio_seconds", None)  # nor is any file decoded
    again = open_source(f"audio:{folder}", data, RATE)
    assert again.utterances == first.utterances
    for i in range(len(first.utterances)):
        np.testing.assert_array_equal(again.waveform(i), first.waveform(i))
        assert again.audio_digest(i) == first.audio_digest(i)
    assert len({first.audio_digest(i) for i in range(len(first.utterances))}) == len(
        again.utterances
    )


def test_what_changed_is_cut_again_and_nothing_else(folder, data, speech, monkeypatch):
    first = open_source(f"audio:{folder}", data, RATE)
    looked, real = [], audio_folder.audio_seconds
    monkeypatch.setattr(
        audio_folder, "audio_seconds", lambda path: looked.append(path.name) or real(path)
    )
    soundfile.write(folder / "b" / "long.flac", speech[: 9 * RATE], RATE)
    second = open_source(f"audio:{folder}", data, RATE)
    assert looked == ["long.flac"]
    assert 1 < len(second.utterances) < len(first.utterances)
    shorter = dataclasses.replace(data, bucket_seconds=(3.0,))
    assert max(u.seconds for u in open_source(f"audio:{folder}", shorter, RATE).utterances) <= 3
    assert sorted(looked) == ["long.flac", "long.flac", "long.mp3", "short.wav"]
    flacs = list((folder.parent / "cache" / "cuts").glob("*/*.flac"))
    assert len(flacs) == 2
    flacs[0].unlink()  # what is kept of an MP3 is made again
    for each in (data, shorter):
        source = open_source(f"audio:{folder}", each, RATE)
        assert all(len(source.waveform(i)) for i in range(len(source.utterances)))
    assert looked.count("long.mp3") == 2


@pytest.mark.parametrize(
    "damage", [b"", b"[1]", b'{"short.wav": {"size": 1}}', b"\xff", b"[" * 9999]
)
def test_a_damaged_index_is_made_anew(folder, data, damage):
    first = open_source(f"audio:{folder}", data, RATE)
    [index] = (folder.parent / "cache" / "cuts").glob("*.json")
    good = index.read_bytes()
    index.write_bytes(damage)
    assert open_source(f"audio:{folder}", data, RATE).utterances == first.utterances
    assert json.loads(index.read_bytes()) == json.loads(good)


def test_an_index_cannot_name_files_elsewhere(folder, data):
    open_source(f"audio:{folder}", data, RATE)
    [index] = (folder.parent / "cache" / "cuts").glob("*.json")
    files = json.loads(index.read_bytes())
    files["b/c/long.mp3"]["flac"] = "../../talks/short.wav"
    index.write_text(json.dumps(files))
    source = open_source(f"audio:{folder}", data, RATE)
    assert len(source.waveform(len(source.utterances) - 1))
    assert ".." not in index.read_text()


def test_a_broken_file_stops_no_other(folder, data, speech):
    good = open_source(f"audio:{folder}", data, RATE).utterances
    (folder / "broken.mp3").write_bytes(b"ID3" + bytes(range(256)) * 9)
    (folder / "empty.wav").touch()
    whole = (folder / "b" / "long.flac").read_bytes()
    (folder / "half.flac").write_bytes(whole[: len(whole) // 2])
    soundfile.write(folder / "silence.wav", np.zeros(6 * RATE, np.int16), RATE)
    (folder / "gone.ogg").symlink_to("nowhere.ogg")
    source = open_source(f"audio:{folder}", data, RATE)
    assert source.utterances == good
    reasons = {(p.id, p.reason) for p in source.problems if "gone" not in p.id}
    assert reasons == {
        *((name, "unreadable audio") for name in ("broken.mp3", "empty.wav", "half.flac")),
        ("silence.wav", "no speech"),
    }
    assert [p.id for p in source.problems if "gone" in p.id] == [
        f"{folder}/gone.ogg is a link that leads nowhere"
    ]


def test_a_file_that_is_gone_by_then_is_met_by_name(folder, data):
    source = open_source(f"audio:{folder}", data, RATE)
    (folder / "short.wav").unlink()
    for read in (source.waveform, source.audio_digest):
        with pytest.raises(AudioError, match=r"short\.wav cannot be"):
            read(0)


def test_it_is_joined_to_other_sources(folder, data, tmp_path):
    line = {"audio_filepath": "talks/short.wav", "text": "said"}
    (tmp_path / "m.jsonl").write_text(json.dumps(line) + "\n")
    alone = open_source(f"audio:{folder}", data, RATE)
    both = open_source(f"audio:{folder} + {tmp_path}/m.jsonl", data, RATE)
    assert both.utterances[:-1] == alone.utterances
    assert both.utterances[-1].text == "said"
    plus = folder.rename(tmp_path / "a+b")
    assert len(open_source(f"audio:{plus}", data, RATE).utterances) == len(alone.utterances)


def test_of_any_length_nothing_is_cut(folder, data, monkeypatch):
    undetected(monkeypatch)
    source = open_source(f"audio:{folder}", data, RATE, math.inf)
    assert [u.id for u in source.utterances] == ["short.wav", "b/long.flac", "b/c/long.mp3"]


def test_where_it_cannot_be_used_a_sentence_says_so(folder, data, tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    told = dataclasses.replace(data, text="as_is")
    for spec, options, said in (
        (f"audio:{folder}", told, r"has no transcripts, which only training with .*=greedy"),
        (f"audio:{tmp_path}/none", data, "is no folder: name one that holds recordings"),
        (f"audio:{folder}/short.wav", data, "is no folder"),
        (f"audio:{tmp_path}/texts", data, "holds no file with the suffix of a recording"),
        ("audio:", data, "is no file or directory, nor"),
    ):
        for function in (check_sources, open_source):
            with pytest.raises(DataError, match=said) as raised:
                function(*([spec], options) if function is check_sources else (spec, options, RATE))
            assert "\n" not in str(raised.value)
    check_sources([f"audio:{folder}"], data)

    def full(*unused):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mtp_jax.data.kept.write_whole", full)
    with pytest.raises(
        DataError, match=r"\(No space left on device\): set config\.data\.cache_dir"
    ):
        open_source(f"audio:{folder}", data, RATE)
