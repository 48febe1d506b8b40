"""python -m mtp_jax.transcribe: files in, files out, and what it says of wrong flags."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from mtp_jax.transcription import formats, outputs
from tests.commands import run
from tests.recordings import RATE, flac
from tests.test_transcription import write


def command(*flags: str | os.PathLike[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mtp_jax.transcribe", *flags],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parent.parent,
    )


def test_a_coordinator_is_joined_before_anything_asks_for_a_device(workdir, waves, tmp_path):
    """JAX refuses to join one later: the command would end in its sentence."""
    write(tmp_path / "a.wav", waves[0])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    group = (f"--coordinator=127.0.0.1:{port}", "--processes=1", "--process_id=0")
    done = command(tmp_path / "a.wav", f"--model={workdir}", *group)
    assert done.returncode == 0, done.stderr
    alone = command(tmp_path / "a.wav", f"--model={workdir}")
    assert done.stdout == alone.stdout != ""


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
    names = {name for name in names if ".mtp_jax" not in name}
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
        ((__file__, "--pretrained=nowhere"), 1, "nowhere does not exist"),  # of the clone's model
        (("a.wav", "--model=x", "--strategy=fast"), 2, "fast is not one of"),
        (("a.wav", "--model=x", "--format=doc"), 2, "doc is not one of"),
        (("a.wav", "--model=x", "--format=txt,srt"), 2, "--output_dir"),
        (("", "--model=x"), 2, "the name of a recording is empty"),
        (("a.wav", "--model="), 2, "--model is empty"),
        (("a.wav", "--model=x", "--output_dir="), 2, "--output_dir is empty"),
        (("a.wav", "--model=x", "--tau=nan"), 2, "--tau=nan is no probability"),
        (("a.wav", "--model=x", "--tau=1.5"), 2, "--tau=1.5 is no probability"),
        (("a.wav", "--model=x", "--output_dir=gs://b/o"), 2, "lies in a bucket"),
        ((__file__, "--model=x", f"--output_dir={__file__}"), 1, "cannot be written"),
        ((__file__, "--model=x", f"--output_dir={__file__}/o"), 1, "(Not a directory)"),
        ((__file__, "--model=x"), 1, "x is no folder of a model"),
    ],
)
def test_a_wrong_command_gets_one_sentence(flags, status, said):
    done = run("transcribe", *flags)
    assert done.status == status
    assert said in done.err
    assert done.err.count("error:") == 1
    assert not done.out


@pytest.mark.parametrize("command", ["serve", "evaluate"])
def test_tau_is_checked_by_all_commands(command):
    folder = "--workdir=x" if command == "evaluate" else "--model=x"
    done = run(command, folder, "--tau=nan")
    assert done == (2, "", "error: --tau=nan is no probability: choose one above 0 and at most 1\n")


def test_standard_input_is_a_recording(workdir, model, waves, tmp_path):
    arguments = ("-", f"--model={workdir}", f"--output_dir={tmp_path}")
    done = run("transcribe", *arguments, stdin=flac(waves[0]))
    assert done.status == 0, done.err
    text = model.transcribe(waves[0], rate=RATE).text
    assert (tmp_path / "stdin.txt").read_text().split() == text.split()
    assert "1 finished before" in run("transcribe", *arguments, stdin=flac(waves[0])).err
    done = run("transcribe", *arguments, stdin=flac(waves[1]))
    assert done.status == 1
    assert "stdin.txt is of another recording, what standard input held" in done.err
    half = flac(waves[0], "WAV")[: len(waves[0])]
    done = run("transcribe", "-", f"--model={workdir}", "--format=json", stdin=half)
    assert json.loads(done.out)["warnings"][0].startswith("standard input is damaged or cut off: ")
    assert "s are missing" in done.err
    done = run("transcribe", "-", f"--model={workdir}", stdin=b"junk")
    assert done.status == 1
    assert "error: standard input is" in done.err


def test_the_text_of_another_recording_is_never_taken_for_this_one(workdir, waves, tmp_path):
    for name, wave in (("monday", waves[0]), ("tuesday", waves[1])):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "talk.wav", wave)
    monday, tuesday, out = tmp_path / "monday", tmp_path / "tuesday", tmp_path / "out"
    flags = (f"--model={workdir}", f"--output_dir={out}", "--strategy=ctc")
    assert run("transcribe", monday / "talk.wav", *flags).status == 0
    text = (out / "talk.txt").read_text()
    done = run("transcribe", tuesday / "talk.wav", *flags)
    assert done.status == 1
    assert f"talk.txt is of another recording, {monday / 'talk.wav'}: choose another" in done.err
    assert (out / "talk.txt").read_text() == text
    assert run("transcribe", tuesday / "talk.wav", *flags, "--overwrite").status == 0
    assert (out / "talk.txt").read_text() != text
    by_default = "transcribe", tuesday / "talk.wav", *flags[:2]
    done = run(*by_default)
    assert done.status == 0
    assert "1 (" in done.err and "transcribed again" in done.err
    assert "1 finished before" in run(*by_default).err


def test_a_full_disk_ends_it_and_what_is_finished_stays(workdir, waves, tmp_path, monkeypatch):
    for i, wave in enumerate(waves):
        write(tmp_path / f"{i}.wav", wave)
    flags = (tmp_path / "*.wav", f"--model={workdir}", f"--output_dir={tmp_path / 'out'}")
    whole = outputs.write_marked

    def filling(output, *rest):
        if list((tmp_path / "out").glob("*.txt")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(output, *rest)

    monkeypatch.setattr(outputs, "write_marked", filling)
    done = run("transcribe", *flags)
    assert done.status == 1
    assert "(No space left on device): what is finished stays" in done.err
    assert len(list((tmp_path / "out").glob("*.txt"))) == 1
    monkeypatch.undo()
    done = run("transcribe", *flags)
    assert done.status == 0
    assert "1 finished before: skipped" in done.err
    assert len(list((tmp_path / "out").glob("*.txt"))) == 3


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="only Linux has this device")
def test_a_terminal_that_takes_little(workdir, waves, tmp_path):
    """In a process of its own: its streams are replaced."""
    write(tmp_path / "ü.wav", waves[0])
    command = [sys.executable, "-m", "mtp_jax.transcribe", tmp_path / "ü.wav", f"--model={workdir}"]
    root = pathlib.Path(__file__).parent.parent
    with pathlib.Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=root)
    assert done.returncode == 1
    assert "error: what is printed cannot be written (No space left" in done.stderr
    assert "Traceback" not in done.stderr
    code = (
        "import sys; from mtp_jax import terminal; terminal.prepare();"
        "print('n\\xfc \\U0001f600'); print('\\udcff', file=sys.stderr)"
    )
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=root, env=ascii_only
    )
    assert (done.stdout, done.stderr) == (b"n\\u00fc \\ud83d\\ude00\n", b"\\udcff\n")
