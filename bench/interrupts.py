"""Interrupts commands at random moments, and counts how they end.

    python -m bench.interrupts [--times=40] [--commands=train,transcribe,serve] [--seed=0]

A tiny model is trained first, without interruption. Each time one command is started anew and
receives SIGINT or SIGTERM at a moment drawn evenly over the time that it takes undisturbed (a
service: from its start until a while after it listens), not before Python has begun to run it. It
ends as it should if its status is that of the signal (0, where the command had just ended; 0 of a
service that listens) and its last line is one sentence about that, without a trace.
"""

from __future__ import annotations

import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

ROOT = Path(__file__).resolve().parent.parent
BEGUN = 0.7  # seconds: Python itself tells of Ctrl-C by a trace before it runs any command

_TIMES = flags.DEFINE_integer("times", 40, "commands to interrupt", lower_bound=1)
_COMMANDS = flags.DEFINE_list("commands", ["train", "transcribe", "serve"], "to take in turn")
_SEED = flags.DEFINE_integer("seed", 0, "of the moments")

CONFIG = """
from mtp_jax.config import *
def get_config():
    return to_config_dict(Config(
        data=Data(train="embedded/tiny:train", dev="embedded/tiny:dev", test="embedded/tiny:test",
                  cache_dir={cache!r}, bucket_seconds=(3.2,), batch_size=8, max_tokens=48),
        tokenizer=Tokenizer(vocab_size=64),
        encoder=Encoder(width=16, layers=1, heads=2, kernel=3, feedforward=1),
        decoder=Decoder(width=16, layers=1, query_heads=2, head_size=8, feedforward=16),
        heads=Heads(count=3),
        optim=Optim(steps=30, warmup_steps=1),
        train=Train(log_every=2, dev_every=10, checkpoint_every=5),
        evaluation=Evaluation(batch_sizes=(2,), taus=(0.5,), strategies=("greedy", "verify")),
    ))
"""


def start(arguments: list[str], said: Path) -> subprocess.Popen[bytes]:
    """The command, in a group of processes of its own; its stderr goes to a file."""
    command = [sys.executable, "-m", *arguments]
    with said.open("wb") as file:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True
        )


def problem(command: str, number: int, status: int, said: str) -> str:
    """What is wrong with how a command ended; empty if nothing is."""
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.strip()]
    for sign in ("Traceback", "Fatal Python error", "Segmentation", "Exception ignored"):
        if sign in said:
            return f"{sign}: {lines[-1]}"
    if status == 0:  # it had ended, or it is a service
        return ""
    if status != 128 + number:
        return f"status {status}: {lines[-1] if lines else 'nothing is said'}"
    name = "interrupted" if number == signal.SIGINT else "SIGTERM"
    return "" if lines and lines[-1].startswith(name) else f"it says {lines[-1:]}"


def main(argv: list[str]) -> None:
    del argv
    draw = random.Random(_SEED.value)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config, model, said = folder / "tiny.py", folder / "model", folder / "said"
        config.write_text(CONFIG.format(cache=str(folder / "cache")))
        train = ["mtp_jax.train", f"--config={config}"]
        assert start([*train, f"--workdir={model}"], said).wait() == 0, said.read_text()
        talks = _talks(folder)
        commands = {
            "train": [*train, f"--workdir={folder / 'run'}"],
            "transcribe": ["mtp_jax.transcribe", *talks, f"--model={model}"],
            "serve": ["mtp_jax.serve", f"--model={model}", "--port=0"],
        }
        seconds = {}
        for name in _COMMANDS.value:
            begun = time.monotonic()
            process = start(commands[name], said)
            if name == "serve":
                while b"serves" not in said.read_bytes() and process.poll() is None:
                    time.sleep(0.1)
                time.sleep(5)
                process.terminate()
            process.wait()
            seconds[name] = time.monotonic() - begun
        ends: collections.Counter[str] = collections.Counter()
        for i in range(_TIMES.value):
            name = _COMMANDS.value[i % len(_COMMANDS.value)]
            number = draw.choice((signal.SIGINT, signal.SIGTERM))
            shutil.rmtree(folder / "run", ignore_errors=True)
            process = start(commands[name], said)
            time.sleep(draw.uniform(BEGUN, seconds[name]))
            if process.poll() is None:
                os.killpg(process.pid, number)
            try:
                status = process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                ends[f"{name}: ignored {number.name}"] += 1
                continue
            wrong = problem(name, number, status, said.read_text(errors="replace"))
            end = f"{name}: {wrong or f'status {status}, as it should'}"
            ends[end] += 1
            print(f"{i + 1}/{_TIMES.value} {number.name} {end}", file=sys.stderr, flush=True)
        for end, count in sorted(ends.items()):
            print(f"{count:4d}  {end}")


def _talks(folder: Path) -> list[str]:
    import numpy as np
    import soundfile

    files = [folder / f"{i}.flac" for i in range(6)]
    for i, file in enumerate(files):
        soundfile.write(file, np.random.default_rng(i).normal(0, 0.05, 16_000 * 20), 16_000)
    return [str(file) for file in files]


if __name__ == "__main__":
    app.run(main)
