"""Interrupts commands at random moments, and counts how they end.

    python -m bench.interrupts [--times=40] [--commands=train,transcribe,serve,pack] [--seed=0]
    python -m bench.interrupts --kills=50 [--trouble=kills,disk,damage,twice,processes] [--seed=0]

The second form is `bench.kills`. Of the first:

Each command first runs undisturbed, with a tiny model. Then one after the other is started anew and
receives SIGINT or SIGTERM at a moment drawn evenly over the time that it took: from where its own
code begins, to where its process is gone. (Before that Python loads itself, and ends as it always
does; that time is printed.) One signal in four is followed by SIGTERM within a second, and half of
them go to the whole group of processes, as those of a terminal do.

A command ends as it should if

- its status is that of the first signal, and its last line one sentence about it, without a trace;
  or the status is 0, and its work is whole, or it is a service and says that it has ended;
- what was finished before is still there: commands go on in the folder of the one before, until
  they end with 0, and then the work is that of the undisturbed command.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from absl import app, flags

from bench import kills
from bench.tiny_config import tiny_config

ROOT = Path(__file__).resolve().parent.parent
AGAIN = 0.25  # share of the signals that a second one follows
LONGEST = 120  # seconds that an interrupted command may take to end

_TIMES = flags.DEFINE_integer("times", 40, "signals to send", lower_bound=1)
_KILLS = flags.DEFINE_integer("kills", 0, "of training, whose bits are compared", lower_bound=0)
_TROUBLE = flags.DEFINE_list("trouble", list(kills.TROUBLE), "of --kills: what happens to training")
_SCRATCH = flags.DEFINE_string("scratch", "", "of --kills: folder that keeps the undisturbed run")
_COMMANDS = flags.DEFINE_list("commands", ["train", "transcribe", "serve", "pack"], "in turn")
_SEED = flags.DEFINE_integer("seed", 0, "of the moments")


def config_text(cache: str) -> str:
    """Of the run that `train` continues."""
    return tiny_config(
        cache,
        heads=3,
        dropout=0.0,
        steps=30,
        train="log_every=2, dev_every=10, checkpoint_every=5",
        evaluation='batch_sizes=(2,), taus=(0.5,), strategies=("greedy", "verify")',
    )


@dataclasses.dataclass(frozen=True)
class Command:
    """What is started, and what it makes.

    Attributes:
        arguments: module and flags.
        folder: that it works in, and goes on in.
        finished: what of its work is finished; it never becomes less.
        results: patterns of the files that are the same however often it was interrupted.
    """

    arguments: list[str]
    folder: Path
    finished: Callable[[Path], set[object]] = lambda folder: set()
    results: tuple[str, ...] = ()

    def digest(self) -> str:
        """Of its results."""
        digest = hashlib.sha256()
        for pattern in self.results:
            for file in sorted(self.folder.glob(pattern)):
                digest.update(file.name.encode() + file.read_bytes())
        return digest.hexdigest()


def start(command: Command, said: Path) -> subprocess.Popen[bytes]:
    """The command, in a group of processes of its own; its stderr goes to a file."""
    with said.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *command.arguments],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
        )


def wait_for_handlers(process: subprocess.Popen[bytes]) -> float:
    """Returns once the process has a handler of SIGTERM; the seconds until then."""
    begun = time.monotonic()
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        lines = status.read_text().splitlines()
        caught = next((line.split()[1] for line in lines if line.startswith("SigCgt")), "0")
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            break
        time.sleep(0.001)
    return time.monotonic() - begun


def undisturbed(command: Command, said: Path) -> tuple[float, float]:
    """Seconds until it has its handlers, and from there to its end."""
    process = start(command, said)
    before, begun = wait_for_handlers(process), time.monotonic()
    if "mtp_jax.serve" in command.arguments:
        while b"serves" not in said.read_bytes() and process.poll() is None:
            time.sleep(0.1)
        time.sleep(3)
        process.terminate()
    assert process.wait() == 0, said.read_text()
    return before, time.monotonic() - begun


def problem(number: int, status: int, said: str, whole: bool) -> str:
    """What is wrong with how a command ended; empty if nothing is."""
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.strip()]
    for sign in ("Traceback", "Fatal Python error", "Segmentation", "Exception ignored"):
        if sign in said:
            return f"{sign}: {lines[-1]}"
    if status == 0:
        return "" if whole or lines[-1:] == ["ended: all requests were answered"] else "not whole"
    if status != 128 + number:
        return f"status {status}: {lines[-1] if lines else 'nothing is said'}"
    name = "interrupted" if number == signal.SIGINT else "SIGTERM"
    return "" if lines and lines[-1].startswith(name) else f"it says {lines[-1:]}"


def interrupt(
    command: Command, seconds: float, draw: random.Random, said: Path, digest: str
) -> str | None:
    """Starts a command and sends it a signal; how it ended, None if it had before."""
    number = draw.choice((signal.SIGINT, signal.SIGTERM))
    moment, again = draw.uniform(0, seconds), draw.random() < AGAIN
    pause, send = draw.uniform(0, 1), draw.choice((os.kill, os.killpg))
    had = command.finished(command.folder)
    process = start(command, said)
    wait_for_handlers(process)
    time.sleep(moment)
    sent = process.poll() is None
    if sent:
        send(process.pid, number)
    if sent and again:
        time.sleep(pause)
        if process.poll() is None:
            send(process.pid, signal.SIGTERM)
    try:
        status = process.wait(LONGEST)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"ignored {number.name} after {moment:.2f} s"
    lost = had - command.finished(command.folder)
    whole = bool(command.results) and command.digest() == digest
    if status == 0:
        shutil.rmtree(command.folder, ignore_errors=True)
    if not sent:
        return None if status == 0 and (whole or not command.results) else "went on to other work"
    wrong = problem(number, status, said.read_text(errors="replace"), whole)
    if lost:
        wrong = f"{wrong} finished work is lost: {lost}"
    return f"{wrong} after {moment:.2f} s" if wrong else f"status {status}, as it should"


def main(argv: list[str]) -> None:
    del argv
    draw = random.Random(_SEED.value)
    if _KILLS.value:
        kills.run(_KILLS.value, _TROUBLE.value, draw, _SCRATCH.value)
        return
    with tempfile.TemporaryDirectory() as scratch:
        commands, said = _commands(Path(scratch)), Path(scratch) / "said"
        undisturbed(commands["model"], said)
        seconds, digests = {}, {}
        for name in _COMMANDS.value:
            before, seconds[name] = undisturbed(commands[name], said)
            print(f"{name}: {before:.2f} s until it has handlers, {seconds[name]:.1f} s of work")
            digests[name] = commands[name].digest()
            shutil.rmtree(commands[name].folder, ignore_errors=True)
        ends: collections.Counter[str] = collections.Counter()
        while (sent := sum(ends.values())) < _TIMES.value:
            name = _COMMANDS.value[sent % len(_COMMANDS.value)]
            end = interrupt(commands[name], seconds[name], draw, said, digests[name])
            if end is not None:
                ends[f"{name}: {end}"] += 1
                print(f"{sent + 1}/{_TIMES.value} {name}: {end}", file=sys.stderr, flush=True)
        for end, count in sorted(ends.items()):
            print(f"{count:4d}  {end}")


def _commands(folder: Path) -> dict[str, Command]:
    config, model, manifest = folder / "tiny.py", folder / "model", folder / "talks.jsonl"
    config.write_text(config_text(str(folder / "cache")))
    talks = _talks(folder)
    manifest.write_text("".join(f'{{"audio_filepath": "{t}", "text": "one"}}\n' for t in talks))
    train = ["mtp_jax.train", f"--config={config}"]
    run, texts, packed = folder / "run", folder / "texts", folder / "packed"
    texts_flags = [f"--model={model}", f"--output_dir={texts}", "--batch_size=2"]
    pack_flags = [f"--data={manifest}", f"--output={packed}", "--shard_size=1", "--workers=1"]
    return {
        "model": Command([*train, f"--workdir={model}"], model),
        "train": Command([*train, f"--workdir={run}"], run, _steps, ("dev.json",)),
        "transcribe": Command(
            ["mtp_jax.transcribe", *talks, *texts_flags], texts, _files("*.txt"), ("*.txt",)
        ),
        "serve": Command(["mtp_jax.serve", f"--model={model}", "--port=0"], folder / "none"),
        "pack": Command(
            ["mtp_jax.pack", *pack_flags], packed, _files("parts/*"), ("*.json*", "parts/*")
        ),
    }


def _steps(folder: Path) -> set[object]:
    """Steps of training that need not be made again."""
    saved = [int(f.name) for f in (folder / "checkpoints").glob("*") if f.name.isdigit()]
    return set(range(1, max(saved, default=0) + 1))


def _files(pattern: str) -> Callable[[Path], set[object]]:
    return lambda folder: {(f.name, f.stat().st_mtime_ns) for f in folder.glob(pattern)}


def _talks(folder: Path) -> list[str]:
    import numpy as np
    import soundfile

    files = [folder / f"{i}.flac" for i in range(6)]
    for i, file in enumerate(files):
        soundfile.write(file, np.random.default_rng(i).normal(0, 0.05, 16_000 * 20), 16_000)
    return [str(file) for file in files]


if __name__ == "__main__":
    app.run(main)
