"""python -m mtp_jax.transcribe: files in, files out, and what it says of wrong flags."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from mtp_jax.transcription import formats, outputs
from tests.recordings import RATE
from tests.test_transcription import transcript, write


def command(*flags: str | os.PathLike[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mtp_jax.transcribe", *flags],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parent.parent,
    )


def test_the_command_as_a_user_runs_it(workdir, model, waves, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "more").mkdir(parents=True)
    write(folder / "a.wav", waves[0])
    write(folder / "a.flac", waves[1])
    write(folder / "more" / "b [1].ogg", waves[2])
    (folder / "notes.txt").write_text("no recording")
    (folder / "bad.mp3").write_bytes(b"ID3")
    flags = (folder, tmp_path / "no*.wav", f"--model={workdir}", f"--output_dir={out}")
    done = command(*flags, "--format=txt,json,srt,vtt")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "bad.mp3" in done.stderr
    assert "matches nothing" in done.stderr
    assert "2 of 5 could not be transcribed" in done.stderr
    names = {str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()}
    stems = ("a.wav", "a.flac", "more/b [1]")
    assert names == {f"{s}.{kind}" for s in stems for kind in formats.FORMATS}
    found = json.loads((out / "a.flac.json").read_text())
    assert found["text"] == model.transcribe(folder / "a.flac").text

    (folder / "bad.mp3").unlink()
    done = command(*flags[:1], *flags[2:], "--format=txt,srt")
    assert done.returncode == 0, done.stderr
    assert "3 finished before: skipped" in done.stderr

    done = command(folder / "a.flac", f"--model={workdir}", "--strategy=ctc")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == model.transcribe(waves[1], rate=RATE, strategy="ctc").text.split()


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (("--model=x",), 2, "name recordings"),
        (("a.wav",), 2, "--model"),
        (("a.wav", "--model=x", "--strategy=fast"), 2, "fast is not one of"),
        (("a.wav", "--model=x", "--format=doc"), 2, "doc is not one of"),
        (("a.wav", "--model=x", "--format=txt,srt"), 2, "--output_dir"),
        ((__file__, "--model=x"), 1, "x is no folder of a model"),
    ],
)
def test_a_wrong_command_gets_one_sentence(flags, status, said):
    done = command(*flags)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_names_that_would_collide_are_kept_apart(tmp_path):
    for name in ("x/talk.wav", "y/talk.wav", "x/talk.mp3", "x/other.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    arguments = [str(tmp_path / name) for name in ("x/talk.wav", "y/talk.wav", "x/*")]
    tasks, missing = outputs.find(arguments)
    assert not missing
    whole = [f"{tmp_path}/{d}/talk.wav".lstrip("/") for d in "xy"]
    assert [str(task.name) for task in tasks] == [*whole, "other", "talk.mp3"]
    assert outputs.shown("a\nb\udcff") == "a\\nb\\xff"


def test_a_recording_is_finished_if_all_its_files_are_there_and_newer(tmp_path):
    task = outputs.Task(tmp_path / "a.wav", pathlib.Path("sub/a"))
    files = outputs.outputs(task, tmp_path / "out", ["txt", "srt"])
    task.path.touch()
    assert not outputs.finished(task, files.values())
    outputs.write(transcript(("a", 0, 1)), files)
    assert outputs.finished(task, files.values())
    assert {f.name for f in (tmp_path / "out" / "sub").iterdir()} == {"a.txt", "a.srt"}
    os.utime(task.path, (2**32, 2**32))
    assert not outputs.finished(task, files.values())
