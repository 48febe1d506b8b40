"""Load on the service: throughput and latency by concurrency, with and without dynamic batching.

    python -m bench.serving --model=DIR [--concurrency=1,4,16] [--requests=64] [--rounds=3]
        [--batch_size=16] [--strategy=verify]

Two servers run side by side on loopback, one with --batch_size and one with a batch size of 1. For
each concurrency so many clients send utterances of the config's test split, each the next one as
soon as the last is answered, to one server and then to the other, --rounds times in turn, so that a
machine whose speed drifts slows both alike. Prints, by server, requests and seconds of audio a
second (the median over rounds) and the median and 95th percentile of latency over all requests.
Every request must be answered, and with the text of its own recording as one client alone gets it;
texts that differ between batch sizes are counted.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import soundfile
from absl import flags

from mtp_jax import cli
from mtp_jax.checkpoints.workdir import Workdir

_MODEL = flags.DEFINE_string("model", None, "a workdir, or an exported model", required=True)
_CONCURRENCY = flags.DEFINE_list("concurrency", ["1", "4", "16"], "clients at a time")
_REQUESTS = flags.DEFINE_integer("requests", 64, "of a round", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "of each concurrency", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "of the server that batches", lower_bound=2)
_STRATEGY = flags.DEFINE_string("strategy", "verify", "of decoding")


class Server:
    """The command, in a process of its own.

    Args:
        batch_size: chunks that it decodes at once.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mtp_jax.serve", f"--model={_MODEL.value}", "--port=0"),
                *(f"--batch_size={batch_size}", f"--strategy={_STRATEGY.value}", "--queue=1000"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr
        line = self.process.stderr.readline()
        if " serves " not in line:
            raise SystemExit(line + self.process.stderr.read())
        self.host, _, self.port = line.split()[0].removeprefix("http://").rpartition(":")

    def wait_until_ready(self) -> None:
        """Until its programs are compiled."""
        while self.get("/health/ready")[0] != 200:
            time.sleep(0.5)

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        with contextlib.closing(http.client.HTTPConnection(self.host, int(self.port))) as client:
            client.request("GET", path)
            response = client.getresponse()
            return response.status, response.read()

    def transcribe(self, file: bytes) -> tuple[str, float]:
        """The text, and how many seconds it took."""
        body = b"--cut\r\nContent-Disposition: form-data; name=file; filename=a.flac\r\n\r\n%b\r\n"
        body = body % file + b"--cut--\r\n"
        start = time.perf_counter()
        with contextlib.closing(http.client.HTTPConnection(self.host, int(self.port))) as client:
            client.request(
                *("POST", "/v1/audio/transcriptions", body),
                {"Content-Type": "multipart/form-data; boundary=cut"},
            )
            response = client.getresponse()
            answer = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"lost: {response.status} {answer}")
        return answer["text"], time.perf_counter() - start

    def mean_batch(self) -> tuple[float, float]:
        """Pieces and batches so far."""
        lines = self.get("/metrics")[1].decode().splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if line.startswith("mtp_batch_chunks_"))
        return float(values["mtp_batch_chunks_sum"]), float(values["mtp_batch_chunks_count"])


@contextlib.contextmanager
def running(batch_size: int) -> Iterator[Server]:
    """A server, until it has ended."""
    server = Server(batch_size)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait()


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    config = Workdir(_MODEL.value).read_config()
    from mtp_jax.data import open_source

    rate = config.front_end.sample_rate
    source = open_source(config.data.test, config.data, rate)
    files, lengths = [], []
    for i in range(min(_REQUESTS.value, len(source.utterances))):
        out = io.BytesIO()
        soundfile.write(out, source.waveform(i), rate, format="FLAC")
        files.append(out.getvalue())
        lengths.append(len(source.waveform(i)) / rate)
    with running(_BATCH_SIZE.value) as batching, running(1) as single:
        servers = (batching, single)
        expected = []
        for server in servers:
            server.wait_until_ready()
            expected.append([server.transcribe(file)[0] for file in files])
        differing = sum(a != b for a, b in zip(*expected, strict=True))
        print(f"{len(files)} utterances, {sum(lengths) / len(files):.1f} s on average")
        print("clients  batch size  mean batch  requests/s  audio s/s  median ms  p95 ms")
        for clients in map(int, _CONCURRENCY.value):
            times = {server: [] for server in servers}
            walls = {server: [] for server in servers}
            before = {server: server.mean_batch() for server in servers}
            for _ in range(_ROUNDS.value):
                for server, texts in zip(servers, expected, strict=True):
                    start = time.perf_counter()
                    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
                        answers = list(pool.map(server.transcribe, files))
                    walls[server].append(time.perf_counter() - start)
                    times[server] += [seconds for _, seconds in answers]
                    differing += sum(a != b for (a, _), b in zip(answers, texts, strict=True))
            for server in servers:
                chunks, batches = (
                    b - a for a, b in zip(before[server], server.mean_batch(), strict=True)
                )
                wall = statistics.median(walls[server])
                *_, p95 = statistics.quantiles(times[server], n=20)
                print(
                    f"{clients:7d}  {server.batch_size:10d}  {chunks / batches:10.1f}"
                    f"  {len(files) / wall:10.1f}  {sum(lengths) / wall:9.0f}"
                    f"  {1000 * statistics.median(times[server]):9.0f}  {1000 * p95:6.0f}",
                    flush=True,
                )
        total = len(files) * (2 + 2 * _ROUNDS.value * len(_CONCURRENCY.value))
    print(f"{total} requests, all answered; {differing} texts differ from those of a client alone")


if __name__ == "__main__":
    sys.exit(cli.run(main))
