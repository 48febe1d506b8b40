"""Packs recordings into few large files, for training on many machines.

    python -m mtp_jax.pack --data=train.jsonl --output=FOLDER [--workers=16] [--shard_size=4096]
        [--notranscripts] [--longest=30]

``--data`` is a manifest, an unpacked LibriSpeech folder, ``audio:FOLDER`` or
``parquet:FOLDER_OR_FILE``, or several joined by ``+``. With ``--notranscripts`` recordings without
a transcript are packed too, for training with ``config.data.text=greedy``. Killed at
any time, the same command goes on where it stopped and gives the same files. Train on the folder
by ``--config.data.train=FOLDER``; what was left out, and why, stands in its ``parts/``.
"""

from __future__ import annotations

from mtp_jax import interrupts

if __name__ == "__main__":
    interrupts.install()  # imports take seconds

import os
import sys

from absl import flags

from mtp_jax import cli
from mtp_jax.config import Data
from mtp_jax.paths import to_path

_DATA = flags.DEFINE_string(
    "data", None, "manifests, LibriSpeech folders, audio:FOLDER, parquet:FOLDER", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "folder to write", required=True)
_RATE = flags.DEFINE_integer("sample_rate", 16_000, "Hz that the audio is kept at", lower_bound=1)
_SIZE = flags.DEFINE_integer("shard_size", 4096, "utterances a file", lower_bound=1)
_TRANSCRIPTS = flags.DEFINE_bool("transcripts", True, "leave out what has no transcript")
_LONGEST = flags.DEFINE_float(
    "longest", 30.0, "s of the parts that audio:FOLDER is cut into", lower_bound=1.0
)
_CACHE = flags.DEFINE_string(
    "cache_dir", Data.cache_dir, "where lengths and cuts of audio: and parquet: are kept"
)
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "processes", lower_bound=1)


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    if "://" in _OUTPUT.value:
        raise flags.Error(f"--output={_OUTPUT.value} lies in a bucket: mount it, or copy later")
    from mtp_jax.data.packing import pack  # imported late: errors in flags come at once

    packed = pack(
        _DATA.value,
        to_path(_OUTPUT.value),
        sample_rate=_RATE.value,
        shard_size=_SIZE.value,
        workers=_WORKERS.value,
        needs_text=_TRANSCRIPTS.value,
        longest=_LONGEST.value,
        cache_dir=_CACHE.value,
    )
    print(
        f"{_OUTPUT.value}: {packed.utterances} utterances in {packed.shards} files,"
        f" {packed.made} of them made now; {packed.problems} items left out"
    )


if __name__ == "__main__":
    sys.exit(cli.run(main, goes_on=lambda: True))
