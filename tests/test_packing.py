"""Packed data: what went in comes out, in the same files however often it was killed."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from mtp_jax.audio.reading import AudioError
from mtp_jax.config import Data
from mtp_jax.data import DataError, open_source, packing
from mtp_jax.data.files import Recording
from mtp_jax.data.packing import pack
from mtp_jax.data.source import Utterance
from mtp_jax.paths import OutputError
from tests.recordings import flac, sentences

RATE, SPEECH = 8000, 16_000
DATA = Data(bucket_seconds=(0.5, 2.0))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """23 recordings of noise, one said twice over in parts, and four lines that hold none."""
    folder = tmp_path_factory.mktemp("recordings")
    draw = np.random.default_rng(0)
    lines = []
    for i in range(23):
        length = int(draw.integers(RATE // 5, RATE))
        audio = draw.integers(-9000, 9000, length, dtype=np.int16)
        soundfile.write(folder / f"{i}.wav", audio, RATE)
        lines.append(
            {
                "audio_filepath": f"{i}.wav",
                "text": f"número {i} ü",
                "speaker": f"s{i % 3}",
                "lang": "es",
            }
        )
    lines[5] |= {"offset": 0.1, "duration": 0.1}
    lines.insert(3, {"audio_filepath": "none.wav", "text": "missing"})
    lines.insert(9, {"audio_filepath": "0.wav", "text": " "})
    lines.insert(11, {"text": "no audio"})
    (folder / "damaged.wav").write_bytes(b"RIFF")
    lines.insert(17, {"audio_filepath": "damaged.wav", "text": "damaged"})
    path = folder / "all.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def files(folder: Path) -> dict[str, str]:
    """Digest of each file that training reads."""
    found = [*folder.glob("*.array_record"), folder / "index.safetensors"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture(scope="module")
def packed(manifest, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    made = pack(str(manifest), folder, sample_rate=RATE, shard_size=4, workers=2)
    assert made == (23, 4, 7, 7)
    return folder


def test_what_went_in_comes_out(manifest, packed):
    """Every utterance, its text, speaker, language, length and samples; any order of reading."""
    direct, read = open_source(str(manifest), DATA, RATE), open_source(str(packed), DATA, RATE)
    assert len(read.utterances) == 23
    assert list(read.utterances) == list(direct.utterances)
    for i in np.random.default_rng(1).permutation(23):
        np.testing.assert_array_equal(read.waveform(i), direct.waveform(i))
    assert [p.id for p in read.problems] == ["4 items"]
    lines = [x for p in (packed / "parts").iterdir() for x in p.read_text().splitlines()]
    reasons = {values[1] for kind, values in map(json.loads, lines) if kind == "Problem"}
    assert reasons == {"missing file", "no text", "wrong field", "unreadable audio"}


def test_it_is_read_at_another_rate_and_joined_to_others(manifest, packed):
    read = open_source(f"{packed}+{manifest}", dataclasses.replace(DATA, text="plain"), 2 * RATE)
    assert len(read.utterances) == 46
    assert read.utterances[0].text == read.utterances[23].text == "número 0 ü"
    a, b = read.waveform(0), read.waveform(23)
    assert abs(len(a) - len(b)) <= 1
    np.testing.assert_allclose(a[:3000], b[:3000], atol=2)


def test_opening_opens_no_audio(packed, tmp_path):
    """The index is enough; a file of records that is gone is met, by name, when it is read."""
    (tmp_path / "index.safetensors").write_bytes((packed / "index.safetensors").read_bytes())
    read = open_source(str(tmp_path), DATA, RATE)
    assert isinstance(read.utterances[22], Utterance)
    with pytest.raises(AudioError, match=r"record 1 of .*00006\.array_record cannot be read"):
        read.waveform(22 - 1)


def test_killed_and_run_again_it_gives_the_same_files(manifest, packed, tmp_path):
    command = [sys.executable, "-m", "mtp_jax.pack", f"--data={manifest}", f"--output={tmp_path}"]
    command += ["--shard_size=4", f"--sample_rate={RATE}", "--workers=1"]
    run = subprocess.Popen(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE)
    parts = tmp_path / "parts"
    while not any(parts.glob("0*.jsonl")):
        assert run.poll() is None
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=60)  # its own process ends with it, and closes what they shared
    if not (tmp_path / "index.safetensors").exists():
        (parts / "00001.jsonl").unlink(missing_ok=True)  # as if killed just before
        (tmp_path / ".00006.array_record.1").write_bytes(b"half")
    made = pack(str(manifest), tmp_path, sample_rate=RATE, shard_size=4, workers=2)
    assert made[:3] == (23, 4, 7)
    assert made.made < 7
    assert files(tmp_path) == files(packed)
    again = pack(str(manifest), tmp_path, sample_rate=RATE, shard_size=4, workers=2)
    assert again == (23, 4, 7, 0)


@pytest.fixture(scope="module")
def untold(tmp_path_factory) -> str:
    """Recordings without transcripts: a folder with a long one, a table, and a manifest."""
    folder = tmp_path_factory.mktemp("untold")
    (folder / "talks").mkdir()
    [one, other] = sentences(2)
    pause = np.zeros(SPEECH // 2, np.int16)
    soundfile.write(folder / "talks" / "a.flac", np.concatenate([one, pause, other]), SPEECH)
    soundfile.write(folder / "talks" / "b.wav", one[:SPEECH], SPEECH)
    pq.write_table(pa.table({"audio": [{"bytes": flac(other[:SPEECH])}]}), folder / "x.parquet")
    (folder / "m.jsonl").write_text('{"audio_filepath": "talks/b.wav"}\n')
    return f"audio:{folder}/talks+parquet:{folder}/x.parquet+{folder}/m.jsonl"


def test_what_has_no_text_is_packed_when_asked(untold, tmp_path):
    data = Data(bucket_seconds=(2.5,), cache_dir=str(tmp_path / "cache"), text="greedy")
    more = {"shard_size": 2, "cache_dir": data.cache_dir}
    with pytest.raises(DataError, match="has no transcripts: add --notranscripts"):
        pack(untold, tmp_path / "none", **more)
    asked = {**more, "needs_text": False, "longest": 2.5}
    made = pack(untold, tmp_path / "packed", **asked)
    direct = open_source(untold, data, SPEECH)
    read = open_source(str(tmp_path / "packed"), data, SPEECH)
    assert list(read.utterances) == list(direct.utterances)
    assert made.utterances == len(direct.utterances) > 4
    for i in range(made.utterances):
        np.testing.assert_array_equal(read.waveform(i), direct.waveform(i))
    assert pack(untold, tmp_path / "packed", **asked).made == 0
    pattern = untold.replace("x.parquet", "x*")
    assert pack(pattern, tmp_path / "pattern", **asked).utterances == made.utterances
    assert pack(pattern, tmp_path / "pattern", **asked).made == 0
    for changed, named in (({"longest": 2.0}, "longest"), ({"shard_size": 3}, "shard_size")):
        with pytest.raises(DataError, match=f"begun with other {named}: choose another folder"):
            pack(untold, tmp_path / "packed", **asked | changed)
    with pytest.raises(DataError, match="add it, as only config"):
        pack(untold.partition("+")[2], tmp_path / "strict", **more)


def test_a_folder_of_other_data_is_refused(manifest, packed, tmp_path):
    with pytest.raises(DataError, match="begun with other sample_rate: choose another folder"):
        pack(str(manifest), packed, sample_rate=16_000, shard_size=4)
    for spec, sentence in (
        (str(tmp_path / "none.jsonl"), "is no manifest or LibriSpeech directory"),
        ("embedded:train", "is no manifest or LibriSpeech directory"),
        ("gs://bucket/x.jsonl", "lies in a bucket: mount the bucket as a folder"),
    ):
        with pytest.raises(DataError, match=sentence):
            pack(spec, tmp_path / spec.replace("/", "_"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="lists nothing to pack"):
        pack(str(tmp_path / "empty.jsonl"), tmp_path / "of_nothing")


def test_a_mended_manifest_goes_on(manifest, packed, tmp_path):
    """Only the shards of lines that changed are made again, and no more of a shorter one stay."""
    lines = manifest.read_text().splitlines(keepends=True)
    mended = manifest.with_name("mended.jsonl")
    mended.write_text("".join(lines))
    arguments = {"sample_rate": RATE, "shard_size": 4, "workers": 1}
    assert pack(str(mended), tmp_path, **arguments) == (23, 4, 7, 7)
    before = files(tmp_path)
    assert before == files(packed)
    mended.write_text("".join([*lines[:9], lines[9].replace('" "', '"mended"'), *lines[10:]]))
    assert pack(str(mended), tmp_path, **arguments) == (24, 3, 7, 1)
    after = files(tmp_path)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"00002.array_record", "index.safetensors"}
    mended.write_text("".join(lines[:8]))
    assert pack(str(mended), tmp_path, **arguments) == (7, 1, 2, 0)
    assert {f.name for f in tmp_path.glob("0*")} == {"00000.array_record", "00001.array_record"}


def test_text_that_is_not_unicode_is_left_out(manifest, tmp_path):
    odd = manifest.with_name("odd.jsonl")
    fields = [{"text": "a"}, {"text": "a \ud83d"}, {"text": "a", "id": "\ud83d"}]
    odd.write_text("".join(json.dumps({"audio_filepath": "0.wav"} | f) + "\n" for f in fields))
    assert pack(str(odd), tmp_path, sample_rate=RATE, shard_size=4, workers=1)[:2] == (1, 2)


def test_wrong_sources_and_places_are_found_before_any_work(manifest, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "notes.txt").write_text("no line of a manifest\n")
    for wrong, said in (
        ("none.jsonl", "no manifest or Libri"),
        ("notes.txt", "line 1 is not JSON"),
    ):
        with pytest.raises(DataError, match=said):
            pack(f"{manifest}+{tmp_path / wrong}", out)
        assert not out.exists()
    with pytest.raises(OutputError, match=r"cannot be written .*choose another --output"):
        pack(str(manifest), tmp_path / "notes.txt" / "out")


def test_a_full_disk_gets_a_sentence_and_the_same_command_goes_on(manifest, tmp_path, monkeypatch):
    def full(*unused):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_index", full)  # the last step, in this process
        with pytest.raises(DataError, match=r"No space left on device.*same command goes on"):
            pack(str(manifest), tmp_path, sample_rate=RATE, shard_size=8, workers=1)
    assert not list(tmp_path.glob(".partial*"))
    made = pack(str(manifest), tmp_path, sample_rate=RATE, shard_size=8, workers=1)
    assert made == (23, 4, 4, 0)
    with pytest.raises(OSError, match="No space left on device"):
        packing._write_records(
            Path("/dev/full"), [Recording("a", manifest.with_name("0.wav"), "a")], RATE
        )


def test_a_damaged_index_is_refused(packed, tmp_path):
    content = (packed / "index.safetensors").read_bytes()
    for damaged in (content[:-5], b"", content.replace(b'"version":"2"', b'"version":"9"')):
        (tmp_path / "index.safetensors").write_bytes(damaged)
        with pytest.raises(DataError, match=r"index\.safetensors cannot be read .*: pack the data"):
            open_source(str(tmp_path), DATA, RATE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("whole_group", [False, True])  # as a terminal does, and Slurm
def test_an_interrupted_command_leaves_whole_files_only(manifest, tmp_path, number, whole_group):
    line = json.loads(manifest.read_text().splitlines()[0])
    line["audio_filepath"] = str(manifest.parent / line["audio_filepath"])
    many, folder = tmp_path / "many.jsonl", tmp_path / "packed"
    many.write_text(f"{json.dumps(line)}\n" * 3000)
    command = [sys.executable, "-m", "mtp_jax.pack", f"--data={many}", f"--output={folder}"]
    process = subprocess.Popen(
        [*command, "--shard_size=10", "--workers=2", f"--sample_rate={RATE}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while len(list(folder.glob("parts/0*"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    name = "interrupted" if number == signal.SIGINT else "SIGTERM"
    said = [x for x in err.replace("\r", "\n").splitlines() if not x.startswith("packing")]
    assert said == [f"{name} (the same command goes on where it stopped)"]
    assert not out
    assert not list(folder.rglob(".partial*"))
    done = len(list(folder.glob("parts/*")))
    made = pack(str(many), folder, sample_rate=RATE, shard_size=10, workers=2)
    assert (made.shards, made.made) == (300, 300 - done)
