"""Twenty thousand requests to a service, a quarter of them hostile, while it is ended and breaks.

    python -m bench.hostile_requests [--requests=20000] [--hostile=0.25] [--ends=10] [--clients=24]
        [--minutes=60] [--model=DIR] [--seed=0]

A service with a tiny model (or --model, which has a strategy `greedy`) runs on loopback. So many
clients send it requests one after another: good ones in every format, strategy and way of sending,
and those of `bench.hostile`. In the first half of them it is sent SIGTERM or its thread that
decodes dies, in turn, --ends times in all, at random moments; as an orchestrator would, the bench
starts it anew. The second half is undisturbed: there memory, open files and threads are watched.

It counts what is wrong: a good request that is lost or answered with another text than a client
alone gets; a bad one without its status or its sentence; a service that does not end with status 0
once it is told to; a trace in its log that is not of the death that was ordered; a file that is
left over. A request that the service never took (its connection was refused or reset before an
answer, as it ended) is sent again, as a good request is that is answered 503; both are counted. A
third of the good requests ask for leave to send their bodies (``Expect: 100-continue``): once they
have it, they must be answered. The exit status is 1 if anything is wrong.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from absl import app, flags

from bench.checked_request import Outcome, Request, send
from bench.hostile import Limits, Recording, form, good, head, hostile
from mtp_jax.data import corpus, grammar

ROOT = Path(__file__).resolve().parent.parent
STRATEGIES = ("greedy", "verify", "ctc")
LIMITS = Limits(max_bytes=1_000_000, max_seconds=60.0, upload_seconds=3.0, head_seconds=3.0)
FEW = 300  # that one request is sent again, at most

_REQUESTS = flags.DEFINE_integer("requests", 20_000, "in all", lower_bound=1)
_MINUTES = flags.DEFINE_float("minutes", 1e9, "after which no more are sent", lower_bound=0)
_HOSTILE = flags.DEFINE_float("hostile", 0.25, "share of them", lower_bound=0, upper_bound=1)
_ENDS = flags.DEFINE_integer("ends", 10, "times that the service is ended or breaks", lower_bound=0)
_CLIENTS = flags.DEFINE_integer("clients", 24, "at a time", lower_bound=1)
_QUEUE = flags.DEFINE_integer("queue", 20, "requests that the service holds", lower_bound=1)
_MODEL = flags.DEFINE_string("model", None, "a workdir or an export; default: a tiny, random one")
_SEED = flags.DEFINE_integer("seed", 0, "of all that is drawn")

# The command, and a signal that makes the thread that decodes end by an error. A service that is
# sent it does what one does whose accelerator is lost.
DYING = """
import faulthandler, signal, sys
from mtp_jax import cli, serve
from mtp_jax.transcription.transcriber import Transcriber
decode, told = Transcriber.decode_timed, []
def decode_timed(*args):
    if told:
        raise SystemExit("the bench ordered this death")
    return decode(*args)
Transcriber.decode_timed = decode_timed
signal.signal(signal.SIGUSR1, lambda *unused: told.append(1))
faulthandler.register(signal.SIGUSR2, all_threads=True)
sys.exit(cli.run(serve.main))
"""


def _exchange(address: tuple[str, int], sent: bytes) -> bytes:
    """All that comes back, head and body, until the connection is closed."""
    with socket.create_connection(address, 120) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))


class Service:
    """The command, in a process of its own, which is started anew when it has ended.

    Args:
        model: folder; `scratch`: a folder for its log and temporary files.
        flags: of the command, beyond those of `LIMITS`.
    """

    def __init__(self, model: Path, scratch: Path, *options: str) -> None:
        self.log, self.temporary = scratch / "log", scratch / "temporary"
        self.temporary.mkdir()
        self.faults: list[str] = []
        self.starts = 0
        self._lock = threading.Lock()
        self._command = [
            *(sys.executable, "-c", DYING, f"--model={model}", "--port=0", "--batch_size=4"),
            *(f"--max_bytes={LIMITS.max_bytes}", f"--max_seconds={LIMITS.max_seconds}"),
            *(f"--upload_seconds={LIMITS.upload_seconds}", f"--warm={','.join(STRATEGIES)}"),
            *options,
        ]
        self._start()

    def _start(self) -> None:
        self.starts += 1
        environment = os.environ | {"TMPDIR": str(self.temporary)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self._command, stderr=log, stdin=subprocess.DEVNULL, env=environment, cwd=ROOT
            )
        while " serves " not in (said := self.log.read_text()):
            if self.process.poll() is not None:
                raise SystemExit(said)
            time.sleep(0.05)
        host, _, port = said.split()[0].removeprefix("http://").rpartition(":")
        address = (host, int(port))
        while b" 200 " not in self._get("/health/ready", address):
            time.sleep(0.1)
        self.address = address  # now: clients do not wait for what is compiled

    def _get(self, path: str, address: tuple[str, int]) -> bytes:
        return _exchange(address, head(None, "", "Connection: close", target=f"GET {path}"))

    def held(self) -> int:
        """Requests that it holds."""
        answer = self._get("/health", self.address)
        return int(json.loads(answer.partition(b"\r\n\r\n")[2])["held"])

    def kill(self, number: signal.Signals) -> None:
        """Sends it a signal; SIGTERM ends it, and it is started anew."""
        with self._lock:
            process = self.process
            process.send_signal(number)
            if number == signal.SIGTERM:
                self._end(process, ordered=False)

    def renew(self, process: subprocess.Popen[bytes]) -> None:
        """Replaces it once it has said that it decodes nothing any more."""
        with self._lock:
            if process is self.process:
                process.send_signal(signal.SIGTERM)
                self._end(process, ordered=True)

    def close(self) -> None:
        """Ends it for good."""
        with self._lock:
            self.process.send_signal(signal.SIGTERM)
            self._end(self.process, ordered=False, again=False)

    def _end(self, process: subprocess.Popen[bytes], ordered: bool, again: bool = True) -> None:
        try:
            status = process.wait(120)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGUSR2)  # the stacks of its threads go to the log
            time.sleep(1)
            process.kill()
            status = process.wait()
            self.faults.append("it did not end within 120 s of SIGTERM, and was killed")
        said = self.log.read_text()
        traces = said.count("Traceback")
        died = said.count("the bench ordered this death")
        if status != 0:
            self.faults.append(f"it ended with status {status}: {said[-500:]!r}")
        if traces != died or (ordered and not died):
            self.faults.append(f"{traces} traces, {died} of them ordered: {said[-3000:]}")
        if left := [file.name for file in self.temporary.iterdir()]:
            self.faults.append(f"left over: {left[:5]}")
        if again:
            self._start()

    def sizes(self) -> dict[str, float]:
        """Memory in MB, open files and threads of the process."""
        proc = Path(f"/proc/{self.process.pid}")
        pages = int((proc / "statm").read_text().split()[1])
        return {
            "MB": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
            "files": len(list((proc / "fd").iterdir())),
            "threads": len(list((proc / "task").iterdir())),
        }


@dataclasses.dataclass
class Tally:
    """What came of all requests.

    Attributes:
        outcomes: by kind and status.
        faults: what is wrong.
        again: requests sent again, by reason.
        sizes: of the process, in the undisturbed half.
    """

    outcomes: collections.Counter[tuple[str, int]] = dataclasses.field(
        default_factory=collections.Counter
    )
    faults: list[str] = dataclasses.field(default_factory=list)
    again: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    sizes: list[dict[str, float]] = dataclasses.field(default_factory=list)


def until_answered(service: Service, request: Request, tally: Tally) -> Outcome:
    """Sends a request; again, where the service never took it."""
    for attempt in range(FEW):
        process = service.process
        outcome = send(service.address, request)
        if not outcome.again:
            return outcome
        reason = "stopped" if outcome.stopped else "full" if outcome.status else "not taken"
        tally.again[reason] += 1
        if outcome.stopped:
            service.renew(process)
        time.sleep(min(0.05 * (attempt + 1), 1.0))
    return Outcome(0, f"not answered in {FEW} attempts")


def fire(
    service: Service,
    recordings: list[Recording],
    count: int,
    *,
    share: float = 0.25,
    clients: int = 24,
    ends: int = 0,
    minutes: float = 1e9,
    seed: int = 0,
) -> Tally:
    """Sends `count` requests; the service is ended `ends` times in the first half of them."""
    draw, tally = np.random.default_rng(seed), Tally()
    moments = sorted(random.Random(seed).sample(range(count // 2), ends))
    watched = {count // 2 + (i + 1) * count // 40 for i in range(20)}
    done, lock = 0, threading.Lock()

    def one(request: Request) -> None:
        nonlocal done
        outcome = until_answered(service, request, tally)
        with lock:
            done += 1
            at = done
            tally.outcomes[request.kind, outcome.status] += 1
            if outcome.fault:
                shown = b"".join(content for _, content in request.parts)[:300]
                tally.faults.append(f"{request.kind}: {outcome.fault} ({shown!r})")
                print(tally.faults[-1], file=sys.stderr, flush=True)
        if at in moments:
            service.kill((signal.SIGTERM, signal.SIGUSR1)[moments.index(at) % 2])
        if at in watched or at == count // 2:
            tally.sizes.append({"requests": at, **service.sizes()})
            print(at, tally.sizes[-1], file=sys.stderr, flush=True)

    slots, last = threading.Semaphore(2 * clients), time.monotonic() + 60 * minutes
    with ThreadPoolExecutor(clients) as pool:
        for _ in range(count):
            slots.acquire()
            if time.monotonic() > last:
                break
            bad = draw.random() < share
            request = (
                hostile(recordings, LIMITS, draw) if bad else good(recordings, STRATEGIES, draw)
            )
            future = pool.submit(one, request)
            future.add_done_callback(lambda future: slots.release() or future.result())
    deadline = time.monotonic() + 60
    while held := service.held():
        if time.monotonic() > deadline:
            service.faults.append(f"it holds {held} requests, all of which were answered")
            break
        time.sleep(0.1)
    return tally


def spoken(service: Service) -> list[Recording]:
    """Recordings in several formats, each with the texts that a client alone gets."""
    found = []
    texts = itertools.islice(grammar.sentences("dev", 0), 8)
    for place, text in enumerate(texts):
        flac = corpus.utterance(text, 0, "dev", place).flac
        wave, rate = soundfile.read(io.BytesIO(flac), dtype="int16")
        kind, subtype = (("FLAC", "PCM_16"), ("WAV", "PCM_16"), ("OGG", "VORBIS"), ("MP3", None))[
            place % 4
        ]
        out = io.BytesIO()
        soundfile.write(out, wave, rate, subtype, format=kind)
        content, name = out.getvalue(), f"talk {place}.{kind.lower()}"
        heard = {}
        for strategy in STRATEGIES:
            fields = [("strategy", strategy), ("response_format", "text")]
            body = form(content, fields)
            kind = "multipart/form-data; boundary=cut"
            answer = _exchange(service.address, head(len(body), kind, "Connection: close") + body)
            first, _, said = answer.partition(b"\r\n\r\n")
            assert b" 200 " in first.split(b"\r\n")[0], answer
            heard[strategy] = said.decode().removesuffix("\n")
        found.append(Recording(name, content, heard))
    return found


def main(argv: list[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if _MODEL.value:
            model = Path(_MODEL.value)
        else:
            from tests.models import tiny_workdir

            model = tiny_workdir(scratch / "tiny")
        service = Service(model, scratch, f"--queue={_QUEUE.value}")
        try:
            recordings = spoken(service)
            start = time.monotonic()
            tally = fire(
                service,
                recordings,
                _REQUESTS.value,
                share=_HOSTILE.value,
                clients=_CLIENTS.value,
                ends=_ENDS.value,
                minutes=_MINUTES.value,
                seed=_SEED.value,
            )
            seconds = time.monotonic() - start
            service.close()
        finally:
            service.process.kill()
    faults = tally.faults + service.faults
    kinds = sorted({kind for kind, _ in tally.outcomes})
    for kind in kinds:
        found = {s: n for (k, s), n in sorted(tally.outcomes.items()) if k == kind}
        print(
            f"{kind:12s} {sum(found.values()):6d}  "
            + ", ".join(f"{s}: {n}" for s, n in found.items())
        )
    print(
        f"{sum(tally.outcomes.values())} requests in {seconds:.0f} s,"
        f" {service.starts} starts of the service"
    )
    print(f"sent again: {dict(tally.again)}")
    for size in tally.sizes[:: max(1, len(tally.sizes) // 5)]:
        print(
            f"after {size['requests']:.0f}: {size['MB']:.0f} MB,"
            f" {size['files']:.0f} files, {size['threads']:.0f} threads"
        )
    print(f"{len(faults)} faults")
    for fault in faults[:50]:
        print(fault)
    sys.exit(bool(faults))


if __name__ == "__main__":
    app.run(main)
