"""Data sets in Parquet and Arrow files, as the datasets library saves them."""

from __future__ import annotations

import builtins
import dataclasses
import importlib.util
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from mtp_jax.audio.reading import AudioError
from mtp_jax.config import Data
from mtp_jax.data import DataError, check_sources, open_source, parquet_source

RATE = 16_000
AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def data(tmp_path):
    return Data(cache_dir=str(tmp_path / "cache"), bucket_seconds=(0.5, 1.0))


def wave(seed, samples=4000):
    return np.random.default_rng(seed).integers(-9000, 9000, samples).astype(np.int16)


def file(samples, kind="FLAC"):
    out = io.BytesIO()
    soundfile.write(out, samples, RATE, format=kind)
    return out.getvalue()


def audio(*contents):
    return pa.array([{"bytes": each, "path": "/etc/passwd"} for each in contents], AUDIO)


def save(path, group=2, **columns):
    """A file of groups of rows, of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=group)
        return
    new = pa.ipc.new_file if "file" in path.name else pa.ipc.new_stream
    with new(str(path), table.schema) as writer:
        for batch in table.to_batches(group):
            writer.write_batch(batch)


def unopened(monkeypatch, forbidden="/etc/passwd"):
    """A path beside the bytes is never opened."""
    real = builtins.open

    def opened(name, *more, **also):
        assert str(name) != forbidden
        return real(name, *more, **also)

    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(io, "open", opened)


@pytest.mark.parametrize("name", ["x.parquet", "stream.arrow", "file.arrow"])
@pytest.mark.parametrize("text", ["text", "sentence", "transcription"])
def test_what_was_saved_is_read(tmp_path, data, name, text, monkeypatch):
    unopened(monkeypatch)
    waves = [wave(i, 3000 + i) for i in range(5)]
    save(
        tmp_path / "set" / name,
        audio=audio(*(file(w) for w in waves)),
        **{text: ["zero", "één", " ", None, "four"]},
        speaker_id=pa.array([7, 7, 8, 8, None], pa.int64()),
        language=["en", "nl", "en", "en", "en"],
    )
    for spec in (f"parquet:{tmp_path}/set", f"parquet:{tmp_path}/set/{name}"):
        check_sources([spec], data)
        source = open_source(spec, data, RATE)
        assert [(u.id, u.text, u.speaker, u.lang) for u in source.utterances] == [
            (f"{name}:0", "zero", "7", "en"),
            (f"{name}:1", "één", "7", "nl"),
            (f"{name}:4", "four", "", "en"),
        ]
        assert [(p.id, p.reason) for p in source.problems] == [
            (f"{name}:2", "no text"),
            (f"{name}:3", "no text"),
        ]
        for i, row in enumerate((0, 1, 4)):
            assert source.utterances[i].seconds == len(waves[row]) / RATE
            np.testing.assert_array_equal(source.waveform(i), waves[row])
    untold = open_source(spec, dataclasses.replace(data, text="greedy"), RATE)
    assert len(untold.utterances) == 5 and not untold.problems
    for i in np.random.default_rng(0).permutation(5):
        np.testing.assert_array_equal(untold.waveform(i), waves[i])


def test_text_may_be_missing_where_a_model_writes_it(tmp_path, data):
    save(tmp_path / "x.parquet", flac=pa.array([file(wave(0))], pa.large_binary()))
    spec, greedy = f"parquet:{tmp_path}/x.parquet", dataclasses.replace(data, text="greedy")
    assert [u.text for u in open_source(spec, greedy, RATE).utterances] == [""]
    with pytest.raises(DataError, match=r"x\.parquet has no column of texts \(text, sentence"):
        open_source(spec, data, RATE)


def test_the_digest_is_that_of_the_audio(tmp_path, data):
    same, other = file(wave(0)), file(wave(1))
    save(tmp_path / "x.parquet", audio=audio(same, other, same), text=["a", "b", "c"])
    source = open_source(f"parquet:{tmp_path}/x.parquet", data, RATE)
    first, second, third = map(source.audio_digest, range(3))
    assert first == third != second


def test_lengths_are_found_out_once(tmp_path, data, monkeypatch):
    save(tmp_path / "x.parquet", audio=audio(*(file(wave(i)) for i in range(3))), text=["a"] * 3)
    spec = f"parquet:{tmp_path}/x.parquet"
    first = open_source(spec, data, RATE)
    with monkeypatch.context() as patch:
        patch.setattr(parquet_source, "audio_seconds", None)
        again = open_source(spec, data, RATE)
    assert again.utterances == first.utterances
    [index] = (tmp_path / "cache" / "index").glob("parquet-*.json")
    good = index.read_bytes()
    for damage in (b"", b"[]", b"[1, 2, 3]", b'[{"seconds": "x"}, {}, {}]', b'{"a": 1}'):
        index.write_bytes(damage)
        assert open_source(spec, data, RATE).utterances == first.utterances
        assert json.loads(index.read_bytes()) == json.loads(good)
    save(tmp_path / "x.parquet", audio=audio(file(wave(7, 5000))), text=["new"])
    changed = open_source(spec, data, RATE)
    assert [(u.text, u.seconds) for u in changed.utterances] == [("new", 5000 / RATE)]
    np.testing.assert_array_equal(changed.waveform(0), wave(7, 5000))


def test_broken_files_and_rows_stop_no_others(tmp_path, data):
    folder = tmp_path / "set"
    good, whole = wave(0), file(wave(1))
    half = file(wave(3, 12_000))[:16_000]
    save(
        folder / "a.parquet",
        audio=audio(file(good), None, b"", b"no audio", half, file(wave(2, 20_000))),
        text=["good", "none", "empty", "noise", "half", "long"],
    )
    save(folder / "b.parquet", audio=["a.wav"], text=["only a path"])
    (folder / "c.parquet").write_bytes((folder / "a.parquet").read_bytes()[:-60])
    (folder / "d.arrow").write_bytes(b"ARROW1" + bytes(99))
    (folder / "e.parquet").touch()
    save(folder / "f.parquet", audio=audio(), text=pa.array([], pa.string()))
    save(folder / "g.parquet", audio=audio(whole), text=["good too"])
    source = open_source(f"parquet:{folder}", data, RATE)
    assert [u.text for u in source.utterances] == ["good", "half", "good too"]
    np.testing.assert_array_equal(source.waveform(0), good)
    np.testing.assert_array_equal(source.waveform(2), wave(1))
    with pytest.raises(AudioError, match=r"row 4 of .*a\.parquet is damaged or cut off"):
        source.waveform(1)
    assert {(p.id, p.reason) for p in source.problems} == {
        ("a.parquet:1", "no audio"),
        ("a.parquet:2", "no audio"),
        ("a.parquet:3", "unreadable audio"),
        ("a.parquet:5", "too long"),
        ("b.parquet", "wrong columns"),
        *((f"{name}", "unreadable file") for name in ("c.parquet", "d.arrow", "e.parquet")),
    }
    assert all("\n" not in p.detail for p in source.problems)
    (folder / "g.parquet").write_bytes(b"PAR1")
    with pytest.raises(AudioError, match=r"row 0 of .*g\.parquet cannot be read \(.*\): "):
        source.waveform(2)
    with pytest.raises(DataError, match=r"e\.parquet cannot be read \(.*\): replace it"):
        open_source(f"parquet:{folder}/e.parquet", data, RATE)


def test_a_file_damaged_within_is_told_when_it_is_read(tmp_path, data):
    save(tmp_path / "x.parquet", audio=audio(*(file(wave(i)) for i in range(6))), text=["a"] * 6)
    source = open_source(f"parquet:{tmp_path}/x.parquet", data, RATE)
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[4:400] = bytes(396)
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(AudioError, match="row 0 of"):
        source.waveform(0)
    np.testing.assert_array_equal(source.waveform(5), wave(5))


def test_text_that_is_not_utf8_is_no_text(tmp_path, data):
    raw = pa.array([b"good", b"\xff\xfe"], pa.binary()).view(pa.string())
    save(tmp_path / "x.parquet", audio=audio(file(wave(0)), file(wave(1))), text=raw)
    source = open_source(f"parquet:{tmp_path}/x.parquet", data, RATE)
    assert [u.text for u in source.utterances] == ["good"]
    assert [(p.id, p.reason) for p in source.problems] == [("x.parquet:1", "not UTF-8")]


@pytest.mark.parametrize(
    ("names", "example"),
    [
        (
            ("data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000-of-00001"),
            "data/train*",
        ),
        (("train/data-00000-of-00001", "test/data-00000-of-00001"), "train/data*"),
        (("train", "validation"), "validation*"),
        (("test/0000", "train/0000"), "train"),
    ],
)
def test_splits_are_not_mixed(tmp_path, data, names, example):
    for i, name in enumerate(names):
        save(tmp_path / f"{name}.parquet", audio=audio(file(wave(i))), text=[name])
    with pytest.raises(DataError, match="holds several splits") as raised:
        check_sources([f"parquet:{tmp_path}"], data)
    assert f"as parquet:{tmp_path}/{example}, or" in str(raised.value)
    source = open_source(f"parquet:{tmp_path}/{example}", data, RATE)
    stem = example.removesuffix("*")
    assert [u.text for u in source.utterances] == [name for name in names if name.startswith(stem)]


def test_it_is_joined_to_other_sources(tmp_path, data):
    save(tmp_path / "a+b" / "x.parquet", audio=audio(file(wave(0))), text=["one"])
    soundfile.write(tmp_path / "a.wav", wave(1), RATE)
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio_filepath": "a.wav", "text": "two"}))
    (tmp_path / "c").symlink_to(tmp_path / "a+b")
    assert len(open_source(f"parquet:{tmp_path}/a+b", data, RATE).utterances) == 1
    both = open_source(f"parquet:{tmp_path}/c+{tmp_path}/m.jsonl", data, RATE)
    assert [u.text for u in both.utterances] == ["one", "two"]
    np.testing.assert_array_equal(both.waveform(1), wave(1))


def test_what_cannot_be_used_is_named(tmp_path, data, monkeypatch):
    (tmp_path / "empty").mkdir()
    two = {"left": audio(b"x"), "right": audio(b"y")}
    save(tmp_path / "two.parquet", **two, text=["a"])
    for spec, said in (
        (f"parquet:{tmp_path}/none", "is no file, and no folder with .parquet or .arrow"),
        (f"parquet:{tmp_path}/empty", "is no file, and no folder with .parquet or .arrow"),
        (f"parquet:{tmp_path}/two.parquet", "has left, right for audio: it needs one called audio"),
    ):
        with pytest.raises(DataError, match=said) as raised:
            open_source(spec, data, RATE)
        assert "\n" not in str(raised.value)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pyarrow" else real(name)
    )
    with pytest.raises(DataError, match=r"pip install pyarrow, or '\.\[parquet\]' in"):
        check_sources([f"parquet:{tmp_path}/two.parquet"], data)
