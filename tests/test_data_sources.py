"""Sources of files: what they list, where they look, and what becomes of bad items."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile

from mtp_jax.audio.reading import AudioError
from mtp_jax.config import Data
from mtp_jax.data import DataError, Report, open_source

RATE = 16_000
DATA = Data(bucket_seconds=(0.5, 1.0))
GREEDY = dataclasses.replace(DATA, text="greedy")


def write(path, samples, start=0, rate=RATE):
    """A file whose samples count up from `start`, returned as int16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = (start + np.arange(samples)).astype(np.int16)
    soundfile.write(path, wave, rate, subtype="PCM_16")
    return wave


def manifest(folder, *lines):
    path = folder / "m.jsonl"
    path.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines))
    return str(path)


def entry(file, text="hello", **more):
    return {"audio_filepath": str(file), "text": text, **more}


def test_a_manifest_lists_what_it_says(tmp_path):
    waves = [write(tmp_path / "audio" / f"{i}.flac", 4000 + i, 7 * i) for i in range(3)]
    spec = manifest(
        tmp_path,
        entry("audio/0.flac", "no one", speaker="anna", lang="en"),
        "",
        entry(tmp_path / "audio" / "1.flac", "one", id="first"),
        entry("audio/2.flac", "two", speaker=17, duration=99),
    )
    source = open_source(spec, DATA, RATE)
    assert (source.name, source.split, source.problems) == ("m.jsonl", "", [])
    got = [(u.id, u.text, u.speaker, u.lang) for u in source.utterances]
    assert got == [
        ("audio/0.flac", "no one", "anna", "en"),
        ("first", "one", "", ""),
        ("audio/2.flac", "two", "17", ""),
    ]
    for i, wave in enumerate(waves):
        assert source.utterances[i].seconds == len(wave) / RATE
        np.testing.assert_array_equal(source.waveform(i), wave)


def test_a_duration_without_an_offset_is_the_start_of_the_file(tmp_path):
    wave = write(tmp_path / "a.wav", 8000)
    spec = manifest(tmp_path, *(entry("a.wav", duration=x) for x in (0.25, 100, None)))
    source = open_source(spec, DATA, RATE)
    for i, samples in enumerate((4000, 8000, 8000)):
        assert source.utterances[i].seconds == samples / RATE
        np.testing.assert_array_equal(source.waveform(i), wave[:samples])


def test_half_a_character_and_fields_of_others_are_named(tmp_path):
    write(tmp_path / "a.wav", 4000)
    spec = manifest(
        tmp_path,
        entry("a.wav"),
        entry("a.wav", text="left \ud83d now"),
        entry("a.wav", id="a\ud83d"),
        {"audio": "a.wav", "transcript": "left"},
        entry("a.wav", duration="long"),
    )
    source = open_source(spec, DATA, RATE)
    assert [u.id for u in source.utterances] == ["a.wav"]
    assert {p.id: (p.reason, p.detail) for p in source.problems} == {
        "line 2": ("wrong field", "text holds half of a character (a lone surrogate)"),
        "line 3": ("wrong field", "id holds half of a character (a lone surrogate)"),
        "line 4": (
            "wrong field",
            "audio_filepath is missing or not a string; the line has audio, transcript instead",
        ),
        "line 5": ("wrong field", "duration is 'long', not a number of seconds"),
    }
    report = str(Report(source.title, 1, source.problems))
    assert "4 wrong field (line 2: text holds half of a character" in report
    report.encode()


def test_texts_are_made_plain_when_asked(tmp_path):
    write(tmp_path / "a.wav", 4000)
    spec = manifest(tmp_path, entry("a.wav", text="“It’s 5 O'Clock,” -- SAID Zoë"))
    source = open_source(spec, dataclasses.replace(DATA, text="plain"), RATE)
    assert source.utterances[0].text == "it's 5 o'clock said zoë"
    assert open_source(spec, DATA, RATE).utterances[0].text == "“It’s 5 O'Clock,” -- SAID Zoë"


def test_the_digest_of_an_audio_is_that_of_what_is_played(tmp_path):
    write(tmp_path / "a.wav", 16_000)
    write(tmp_path / "b.wav", 16_000, start=1)
    spec = manifest(
        tmp_path,
        entry("a.wav"),
        entry("a.wav", text="another text"),
        entry("a.wav", offset=0.5, duration=0.25),
        entry("a.wav", offset=0.25, duration=0.25),
        entry("b.wav"),
    )
    source = open_source(spec, DATA, RATE)
    whole, same, *others = [source.audio_digest(i) for i in range(5)]
    assert whole == same
    assert len({whole, *others}) == 4


def test_an_offset_makes_a_segment(tmp_path):
    wave = write(tmp_path / "a.wav", 32_000)  # longer than the longest bucket
    source = open_source(
        manifest(
            tmp_path,
            entry("a.wav", offset=0, duration=0.5),
            entry("a.wav", offset=0.5, duration=0.25),
            entry("a.wav", offset=1.5),
            entry("a.wav", offset=1.75, duration=9),
            entry("a.wav", offset=2.5, duration=1),
        ),
        DATA,
        RATE,
    )
    bounds = [(0, 8000), (8000, 12_000), (24_000, 32_000), (28_000, 32_000)]
    assert len({u.id for u in source.utterances}) == len(bounds)
    for i, (start, end) in enumerate(bounds):
        assert source.utterances[i].seconds == (end - start) / RATE
        np.testing.assert_array_equal(source.waveform(i), wave[start:end])
    assert [(p.id, p.reason) for p in source.problems] == [("a.wav@2.5", "empty audio")]


def test_bad_items_are_skipped_counted_and_named(tmp_path):
    write(tmp_path / "good.wav", 4000)
    write(tmp_path / "long.wav", 16_001)
    write(tmp_path / "short.wav", 1599)
    write(tmp_path / "none.wav", 0)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "noise.flac").write_bytes(b"fLaC" + bytes(range(200)))
    (tmp_path / "folder.wav").mkdir()
    source = open_source(
        manifest(
            tmp_path,
            entry("good.wav"),  # line 1
            "{not json",
            "[1, 2]",
            json.dumps({"text": "hello"}),
            json.dumps({"audio_filepath": "good.wav"}),
            json.dumps({"audio_filepath": 5, "text": "hello"}),
            entry("good.wav", offset="soon"),
            entry("good.wav", offset=-1),
            entry("good.wav", offset=float("nan")),
            "[" * 100_000,  # line 10
            entry("gone.wav"),
            entry("nul\0.wav"),
            entry("folder.wav"),
            entry("long.wav"),
            entry("short.wav"),
            entry("none.wav"),
            entry("empty.wav"),
            entry("noise.flac"),
            entry("good.wav", " "),
        ),
        DATA,
        RATE,
    )
    assert [u.id for u in source.utterances] == ["good.wav"]
    assert {(p.id, p.reason) for p in source.problems} == {
        *((f"line {n}", "wrong field") for n in (3, 4, 5, 6, 7, 8, 9)),
        *((f"line {n}", "not JSON") for n in (2, 10)),
        *((f, "missing file") for f in ("gone.wav", "nul\0.wav", "folder.wav")),
        *((f, "unreadable audio") for f in ("none.wav", "empty.wav", "noise.flac")),
        *(("long.wav", "too long"), ("short.wav", "too short"), ("good.wav", "no text")),
    }
    assert len(source.problems) == 18
    report = Report(source.title, 1, source.problems)
    assert report.to_json()["skipped"]["unreadable audio"] == 3
    assert "7 wrong field (line 3: the line is not a JSON object, line 4: audio" in str(report)
    assert json.loads(json.dumps(report.to_json()))["problems"][0]["id"] == "line 2"


def test_a_line_that_is_not_utf8_is_reported_and_a_byte_order_mark_is_not(tmp_path):
    write(tmp_path / "a.wav", 4000)
    line = json.dumps(entry("a.wav")).encode()
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + b'{"text": "\xff"}\n')
    source = open_source(str(path), DATA, RATE)
    assert len(source.utterances) == 1
    assert [(p.id, p.reason) for p in source.problems] == [("line 2", "not UTF-8")]


def test_audio_damaged_after_its_header_fails_when_it_is_read(tmp_path):
    path = tmp_path / "a.flac"
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.integers(-9000, 9000, 8000).astype(np.int16), RATE)
    content = bytearray(path.read_bytes())
    content[2000:] = bytes(len(content) - 2000)
    path.write_bytes(content)
    source = open_source(manifest(tmp_path, entry("a.flac")), DATA, RATE)
    with pytest.raises(AudioError, match=r"a\.flac"):
        source.waveform(0)


def librispeech(root):
    waves = {}
    for speaker, chapter, count in (("84", "1", 3), ("99", "7", 2)):
        folder = root / "dev-clean" / speaker / chapter
        names = [f"{speaker}-{chapter}-{i:04d}" for i in range(count)]
        waves |= {name: write(folder / f"{name}.flac", 3000 + len(waves)) for name in names}
        lines = [f"{name} TEXT OF {name}\n" for name in names]
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return waves


def test_a_librispeech_tree(tmp_path):
    waves = librispeech(tmp_path / "LibriSpeech")
    for root in ("LibriSpeech", "LibriSpeech/dev-clean"):
        source = open_source(str(tmp_path / root), DATA, RATE)
        assert [u.id for u in source.utterances] == sorted(waves)
        for i, u in enumerate(source.utterances):
            assert (u.text, u.speaker) == (f"TEXT OF {u.id}", u.id.split("-")[0])
            np.testing.assert_array_equal(source.waveform(i), waves[u.id])


def test_a_byte_order_mark_in_a_transcript_is_no_text(tmp_path):
    waves = librispeech(tmp_path)
    transcript = tmp_path / "dev-clean" / "84" / "1" / "84-1.trans.txt"
    transcript.write_bytes(b"\xef\xbb\xbf" + transcript.read_bytes())
    source = open_source(str(tmp_path), DATA, RATE)
    assert [u.id for u in source.utterances] == sorted(waves) and not source.problems


def test_half_a_recording_is_not_trained_on(tmp_path):
    write(tmp_path / "a.wav", 8000)
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:8000])
    source = open_source(manifest(tmp_path, entry("a.wav")), DATA, RATE)
    with pytest.raises(AudioError, match=r"a\.wav is damaged or cut off: 0\.3 s are missing"):
        source.waveform(0)


def test_bad_items_of_a_librispeech_tree(tmp_path):
    librispeech(tmp_path)
    folder = tmp_path / "dev-clean" / "84" / "1"
    write(folder / "84-1-0009.flac", 3000)  # in no transcript
    (folder / "84-1-0001.flac").unlink()
    transcript = folder / "84-1.trans.txt"
    transcript.write_text(transcript.read_text().replace("0002 TEXT OF 84-1-0002", "0002"))
    (tmp_path / "dev-clean" / "99" / "7" / "99-7.trans.txt").write_bytes(b"\xff\xfe\xfa")
    source = open_source(str(tmp_path), DATA, RATE)
    assert [u.id for u in source.utterances] == ["84-1-0000"]
    reasons = {p.id.rsplit("/", 1)[-1]: p.reason for p in source.problems}
    assert reasons == {
        "84-1-0009": "no text",
        "84-1-0001": "missing file",
        "84-1-0002": "no text",
        "99-7.trans.txt": "unreadable transcript",
    }


def test_text_may_be_missing_where_a_model_writes_it(tmp_path):
    wave = write(tmp_path / "a.wav", 4000)
    file = {"audio_filepath": "a.wav"}
    spec = manifest(
        tmp_path,
        file,
        file | {"text": None},
        entry("a.wav", " "),
        entry("a.wav"),
        entry("a.wav", 5),
    )
    source = open_source(spec, GREEDY, RATE)
    assert [u.text.strip() for u in source.utterances] == ["", "", "", "hello"]
    assert [(p.id, p.detail) for p in source.problems] == [
        ("line 5", "text is missing or not a string")
    ]
    for i in range(4):
        np.testing.assert_array_equal(source.waveform(i), wave)
    for data, needs_text in ((DATA, None), (GREEDY, True)):
        strict = open_source(spec, data, RATE, needs_text=needs_text)
        assert [u.text for u in strict.utterances] == ["hello"]
        assert [(p.id, p.reason) for p in strict.problems] == [
            *((f"line {n}", "wrong field") for n in (1, 2, 5)),
            ("a.wav", "no text"),
        ]
        assert "add it, as only config.data.text=greedy does without" in strict.problems[0].detail


def test_a_librispeech_tree_may_lack_texts_where_a_model_writes_them(tmp_path):
    waves = librispeech(tmp_path)
    transcript = tmp_path / "dev-clean" / "84" / "1" / "84-1.trans.txt"
    transcript.write_text("84-1-0002\n84-1-0001 SAID\n")
    source = open_source(str(tmp_path), GREEDY, RATE)
    assert {u.id: u.text for u in source.utterances if u.speaker == "84"} == {
        "84-1-0002": "",
        "84-1-0001": "SAID",
        "84-1-0000": "",
    }
    for i, u in enumerate(source.utterances):
        np.testing.assert_array_equal(source.waveform(i), waves[u.id])
    assert len(source.utterances) == len(waves) and not source.problems


def test_sources_joined_by_plus_are_read_as_one(tmp_path):
    waves = librispeech(tmp_path / "tree")
    write(tmp_path / "a.wav", 2000, 50)
    spec = manifest(tmp_path, entry("a.wav"), "no json")
    both = open_source(f"{spec} + {tmp_path / 'tree'}+{spec}", DATA, RATE)
    alone = [open_source(s, DATA, RATE) for s in (spec, str(tmp_path / "tree"), spec)]
    assert both.utterances == [u for source in alone for u in source.utterances]
    assert [p.id for p in both.problems] == ["line 2", "line 2"]
    expected = [s.waveform(i) for s in alone for i in range(len(s.utterances))]
    assert len(expected) == len(waves) + 2
    for i, wave in enumerate(expected):
        np.testing.assert_array_equal(both.waveform(i), wave)


def test_a_path_may_hold_a_plus(tmp_path):
    write(tmp_path / "a+b" / "a.wav", 2000)
    assert len(open_source(manifest(tmp_path / "a+b", entry("a.wav")), DATA, RATE).utterances) == 1


@pytest.mark.parametrize("spec", ["", "no/such/file", "tfds:librispeech", "embedded", "a+b"])
def test_no_such_source(spec):
    with pytest.raises(DataError, match="is no file or directory, nor embedded:SPLIT, tfds"):
        open_source(spec, DATA, RATE)


def test_a_directory_without_transcripts(tmp_path):
    with pytest.raises(DataError, match="is not a LibriSpeech directory"):
        open_source(str(tmp_path), DATA, RATE)


def test_a_source_with_nothing_left_says_why(tmp_path):
    with pytest.raises(DataError, match=r"no utterance that can be used; skipped: 1 missing file"):
        open_source(manifest(tmp_path, entry("gone.wav")), DATA, RATE)
    with pytest.raises(DataError, match="skipped: none"):
        open_source(manifest(tmp_path), DATA, RATE)
