"""Kills training at random moments, takes the disk, damages files; `bench.interrupts --kills=50`.

Whatever happens to a run, the same command ends with the same bits as one that nothing disturbed,
or says in a sentence what to do. `trouble` names what happens:

- ``kills``: SIGKILL and SIGTERM in turn, in one phase of the run after the other (start-up,
  compile, step, dev, save, evaluation), each at a moment drawn over the time that the phase takes,
  the first, second or third time that it comes. The same run goes on from kill to kill; behind the
  last phase it is left alone, and compared.
- ``disk``: the disk is full at a byte that is drawn, and later has room again.
- ``damage``: a run is killed; of its newest files one to four are cut, emptied or zeroed, as a
  power failure leaves them. Where the command says what to remove, that is removed.
- ``twice``: the command is started twice, at once or the second amid the first.
- ``processes``: a run of two processes loses one of them, in a phase that is drawn.

What is compared: every chunk of the last checkpoint and of the best, with its WER; all scalars,
choices, results and hypotheses, but for times.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.tiny_config import tiny_config
from bench.training_bits import bits, differences
from bench.training_start import Start

TROUBLE = ("kills", "disk", "damage", "twice", "processes")
PHASES = ("start-up", "compile", "step", "dev", "save", "evaluation")  # bench.training_phases
SAVING = 0.5  # seconds that files are written at most, behind the call that saves
FOUND_WITHIN = 300  # seconds that the first of two processes waits for the other
LOST_AFTER = 10  # seconds without a sign of life after which one of two processes is lost
_TRACE = ("Traceback", "Fatal Python error", "Segmentation", "Exception ignored")


def config_text(cache: str) -> str:
    """Of the run."""
    return tiny_config(
        cache,
        heads=2,
        dropout=0.1,
        steps=12,
        train="log_every=1, dev_every=4, checkpoint_every=3",
        evaluation='batch_sizes=(8,), strategies=("greedy",)',
    )


@dataclasses.dataclass
class Troubles:
    """Makes trouble, and counts how it ended.

    Attributes:
        folder: scratch; `draw`: of the moments.
        ends: how often each end came, by trouble; `faults` are those that should not have come.
    """

    folder: Path
    draw: random.Random
    ends: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    faults: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.config = self.folder / "tiny.py"
        self.config.write_text(config_text(str(self.folder / "cache")))
        self.lengths: dict[str, list[float]] = collections.defaultdict(list)
        lengths = self.folder / "lengths.json"
        if not lengths.exists():
            Start(self.folder, "compiled").end()  # the corpus is made, all programs are compiled
            start = Start(self.folder, "whole")
            assert start.end() == 0, start.said
            self._learn(start)
            lengths.write_text(json.dumps(self.lengths))
        self.lengths |= json.loads(lengths.read_text())
        self.whole = bits(self.folder / "whole")

    def _learn(self, start: Start) -> None:
        """How long phases take, from a run that has ended by itself."""
        notes = [*start.notes(), ("end", time.monotonic())]
        for (phase, begun), (_, ended) in itertools.pairwise(notes):
            self.lengths[phase].append(max(ended - begun, SAVING if phase == "save" else 0))

    def _note(self, trouble: str, end: str, fault: str = "") -> None:
        self.ends[f"{trouble}: {end}"] += 1
        if fault:
            self.faults.append(f"{trouble}: {fault}")
        print(f"{trouble}: {end} {fault and 'FAULT ' + fault}", file=sys.stderr, flush=True)

    def _moment(self, phase: str) -> float:
        """Seconds, drawn over the time that the phase took lately."""
        lengths = self.lengths[phase][-6:]
        return self.draw.uniform(0, sorted(lengths)[len(lengths) // 2])

    def _finish(self, trouble: str, name: str, whole: dict[str, Any] | None = None) -> None:
        """The same command, which nothing disturbs now."""
        start = Start(self.folder, name)
        status = start.end()
        self._learn(start)
        self._compare(trouble, name, status, start, whole)

    def _compare(
        self, trouble: str, name: str, status: int, start: Start, whole: dict[str, Any] | None
    ) -> None:
        fault = f"status {status}: {start.last_line}" if status else ""
        other = "" if fault else differences(self.folder / name, whole or self.whole)
        fault = fault or (f"{name} has other {other}" if other else "") or _noise(start.said)
        self._note(trouble, "went on to other bits" if fault else "went on to the same bits", fault)
        if not fault:
            shutil.rmtree(self.folder / name)

    def kills(self, count: int) -> None:
        """SIGKILL and SIGTERM in turn."""
        sent, name, aims = 0, "killed0", list[str]()
        while sent < count:
            if not aims:
                if sent:
                    self._finish("kills", name)
                    name = f"killed{sent}"
                aims = [*reversed(PHASES)]
                if self.draw.random() < 0.5:
                    shutil.rmtree(self.folder / "cache" / "embedded", ignore_errors=True)
            number = (signal.SIGKILL, signal.SIGTERM)[(sent + sent // len(PHASES)) % 2]
            start = Start(self.folder, name)
            if aims[-1] == "compile":  # and nothing is kept of what it has compiled
                for file in (self.folder / "cache" / "compiled").glob("jit_step*"):
                    file.unlink()
            times = self.draw.randint(1, 3) if aims[-1] in ("step", "save", "dev") else 1
            reached = start.wait_for(aims[-1], times)
            if reached:
                time.sleep(self._moment(aims[-1]))
            if not reached or start.process.poll() is not None:  # it has ended by itself
                self._compare("kills", name, start.end(), start, None)
                name = f"killed{sent}.{aims[-1]}"
                continue
            phase = start.notes()[-1][0]
            start.process.send_signal(number)
            status = start.end()
            aims.pop()
            sent += 1
            self._note(f"kills {number.name}", phase, _wrong_end(number, status, start))
        self._finish("kills", name)

    def disk(self, count: int) -> None:
        """The disk is full."""
        for i in range(count):
            place = self.folder / f"disk{i}"
            with _small_disk(place) as fill:
                for each in ("tiny.py", "cache"):
                    copy = shutil.copytree if each == "cache" else shutil.copy
                    copy(self.folder / each, place / each)
                own = (place / "tiny.py").read_text()
                (place / "tiny.py").write_text(own.replace(str(self.folder), str(place)))
                needed = sum(f.stat().st_size for f in (self.folder / "whole").rglob("*"))
                room = int(self.draw.uniform(0.02, 1.2) * needed)
                largest = fill(room)
                start = Start(self.folder, "full", (), place, largest)
                status = start.end()
                ended = "it was enough" if status == 0 else "refused in a sentence"
                wrong = "" if status == 0 else _not_a_sentence(status, start)
                if status and "make room" not in start.last_line:
                    wrong = wrong or f"no remedy: {start.last_line}"
                self._note("disk", ended, wrong and f"{room} bytes: {wrong}")
                fill(-1)
                after = Start(self.folder, "full", (), place)
                status = after.end()
                fault = f"status {status}: {after.last_line}" if status else ""
                if not fault and (other := differences(place / "full", self.whole)):
                    fault = f"other {other}"
                self._note("disk", "other bits" if fault else "went on to the same bits", fault)

    def damage(self, count: int) -> None:
        """The last files are not what was written."""
        start = Start(self.folder, "base")
        start.wait_for("save", 5)
        time.sleep(SAVING)
        start.process.kill()
        start.end()
        for i in range(count):
            name = f"damaged{i}"
            shutil.copytree(self.folder / "base", self.folder / name)
            files = [f for f in (self.folder / name).rglob("*") if f.is_file()]
            newest = sorted(files, key=lambda f: -f.stat().st_mtime_ns)
            if i % 2:  # of the newest checkpoint only
                newest = [f for f in newest if "checkpoints" in f.parts]
            hit = self.draw.sample(newest[:12], self.draw.randint(1, 4))
            how = self.draw.choice((_cut, _empty, _zero))
            for file in hit:
                how(file)
            names = [str(f.relative_to(self.folder / name)) for f in hit]
            self._go_on(name, f"{how.__name__[1:]} {', '.join(names)}")

    def _go_on(self, name: str, what: str) -> None:
        """The same command, and what it says is to be removed is, until it is done."""
        for _ in range(4):
            start = Start(self.folder, name)
            status = start.end()
            if status == 0:
                break
            wrong = _not_a_sentence(status, start)
            if wrong or not _follow(start.last_line):
                self._note("damage", "no remedy", f"{what}: {wrong or start.last_line}")
                return
            self._note("damage", "said what to do")
        other = differences(self.folder / name, self.whole) if status == 0 else start.last_line
        if "dev.json" in what and other == "dev":  # of the last steps only
            other = ""
        if "its scalars behind step" in start.said:
            other = ", ".join(n for n in other.split(", ") if not n.startswith("scalar "))
        self._note("damage", "other bits" if other else "same bits", other and f"{what}: {other}")

    def twice(self, count: int) -> None:
        """The command is started a second time while it runs."""
        for i in range(count):
            name = f"twice{i}"
            first = Start(self.folder, name)
            if i % 3:
                first.wait_for(("step", "evaluation")[i % 3 - 1], 3 if i % 3 == 1 else 1)
            second = Start(self.folder, name)
            statuses = {start: start.end() for start in (first, second)}
            refused = [start for start, status in statuses.items() if status]
            other = differences(self.folder / name, self.whole)
            if not refused and "step" not in dict(second.notes()):
                self._note("twice", "the first had ended", other)
                continue
            if len(refused) != 1:
                said = "; ".join(start.last_line for start in (first, second))
                ended = f"{[*statuses.values()]}: {said}; other: {other}"
                self._note("twice", "not one was refused", ended)
                continue
            wrong = _not_a_sentence(statuses[refused[0]], refused[0])
            self._note(
                "twice", "one was refused, the other undisturbed", wrong or (other and f"{other}")
            )

    def processes(self, count: int) -> None:
        """One of two processes is killed."""
        self._pair("pair")
        whole = bits(self.folder / "pair")
        for i in range(count):
            name, phase = f"pair{i}", PHASES[i % len(PHASES)]
            number = (signal.SIGKILL, signal.SIGTERM)[i % 2]
            starts = self._start_pair(name)
            victim = starts[self.draw.randint(0, 1)]
            times = self.draw.randint(1, 2) if phase in ("step", "dev", "save") else 1
            if victim.wait_for(phase, times):
                time.sleep(self._moment(phase))
            hit, phase = time.monotonic(), victim.notes()[-1][0]
            victim.process.send_signal(number)
            statuses = [start.end(FOUND_WITHIN + 120) for start in starts]
            seconds = time.monotonic() - hit
            end = f"{number.name} of process {starts.index(victim)} in {phase}: {statuses}"
            wrong = f"it took {seconds:.0f} s" if -1000 in statuses else ""
            self._note("processes", end, wrong)
            if any(statuses):
                self._pair(name)
            other = differences(self.folder / name, whole)
            self._note("processes", "other bits" if other else "went on to the same bits", other)

    def _start_pair(self, name: str) -> list[Start]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        both = (f"--coordinator=localhost:{port}", "--processes=2", f"--lost_after={LOST_AFTER}")
        return [Start(self.folder, name, (*both, f"--process_id={i}")) for i in range(2)]

    def _pair(self, name: str) -> None:
        starts = self._start_pair(name)
        statuses = [start.end() for start in starts]
        if any(statuses):
            said = [start.last_line for start in starts]
            self._note("processes", "could not go on", f"{statuses}: {said}")


def run(count: int, trouble: Sequence[str], draw: random.Random, scratch: str) -> None:
    """Makes trouble, prints how it ended, and ends with status 1 if that was wrong anywhere.

    Args:
        count: of kills; of each other trouble a fifth of it, of starts together a tenth.
        trouble: of `TROUBLE`.
        draw: of the moments.
        scratch: folder to work in, where the undisturbed run is kept; empty for one that is not.
    """
    counts = dict.fromkeys(TROUBLE, max(count // 5, 1)) | {"kills": count}
    counts["twice"] = max(count // 10, 1)
    with contextlib.ExitStack() as stack:
        folder = scratch or stack.enter_context(tempfile.TemporaryDirectory())
        Path(folder).mkdir(parents=True, exist_ok=True)
        troubles = Troubles(Path(folder).absolute(), draw)
        for name in trouble:
            getattr(troubles, name)(counts[name])
    for end, times in sorted(troubles.ends.items()):
        print(f"{times:4d}  {end}")
    print(f"{len(troubles.faults)} faults", *troubles.faults, sep="\n  ")
    if troubles.faults:
        sys.exit(1)


def _noise(said: str) -> str:
    return next((f"it says {sign}" for sign in _TRACE if sign in said), "")


def _not_a_sentence(status: int, start: Start) -> str:
    if status not in (1, 2, 75):
        return f"status {status}: {start.last_line}"
    if not start.last_line.startswith("error: "):
        return f"it says {start.last_line}"
    return _noise(start.said)


def _wrong_end(number: signal.Signals, status: int, start: Start) -> str:
    if status == -number and (number == signal.SIGKILL or len(start.notes()) == 1):
        return ""
    if number == signal.SIGKILL:
        return f"status {status}"
    if status not in (0, 128 + number):
        return f"status {status}: {start.last_line}"
    if status and "SIGTERM" not in start.last_line:
        return f"it says {start.last_line}"
    return _noise(start.said)


def _follow(sentence: str) -> bool:
    """Does what a sentence says; whether it says anything."""
    culprit = Path(sentence.removeprefix("error: ").split()[0])
    if "write [] into it" in sentence:
        culprit.write_text("[]")
        return True
    gone = [Path(path) for path in re.findall(r"(?:remove|and) (/[^\s,:;]+)", sentence)]
    gone = [culprit] if "remove it" in sentence else gone
    for each in gone:
        shutil.rmtree(each) if each.is_dir() else each.unlink(missing_ok=True)
    return bool(gone)


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _empty(file: Path) -> None:
    os.truncate(file, 0)


def _zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


@contextlib.contextmanager
def _small_disk(place: Path) -> Iterator[Callable[[int], int]]:
    """A disk of its own if this may mount one; what is yielded leaves so many bytes free.

    Its result is 0; where nothing can be mounted it is the most bytes that a file may have.
    """
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256m", "none", str(place)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    ballast = place / "ballast"

    def fill(room: int) -> int:
        ballast.unlink(missing_ok=True)
        if room < 0:
            return 0
        if not mounted:
            return max(room // 10, 1)
        free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(free - room, 1))
        return 0

    try:
        yield fill
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)
