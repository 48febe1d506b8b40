"""The embedded corpus as a TensorFlow Datasets (TFDS) builder; it needs no TensorFlow.

FLAC in a scalar feature, since TFDS' own Audio feature imports TensorFlow, and an int16 tensor
is half as large again.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from mtp_jax.data import corpus, grammar
from mtp_jax.data.source import DataError

# Utterances a split. "tiny" is for tests of what stands on the corpus; "noisy" is "default" in
# rooms and noise, see `corpus.degraded`.
SIZES: dict[str, dict[str, int]] = {
    "default": {"train": 12_000, "dev": 300, "test": 400},
    "noisy": {"train": 12_000, "dev": 300, "test": 400},
    "tiny": {"train": 64, "dev": 8, "test": 8},
}
NOISY = ("noisy",)
SEED = 0
WORKERS = 2  # processes; the corpus does not depend on it


class Embedded(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Spoken commands, see `grammar` and `corpus`."""

    name = "embedded"
    code_path = None  # TFDS would look beside it for checksums, by a package it does not require
    VERSION = tfds.core.Version("1.3.0")  # of what is spoken: a new one is made anew
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=name, description=f"{sum(sizes.values())} utterances")
        for name, sizes in SIZES.items()
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description="Sentences of a small English grammar, spoken by espeak-ng.",
            features=tfds.features.FeaturesDict(
                {
                    "id": text(),
                    "speech": text(doc="A FLAC file, 16 kHz, mono"),
                    "text": text(),
                    "speaker_id": text(doc="The voice"),
                    "word_starts": tfds.features.Tensor(
                        shape=(None,),
                        dtype=np.float32,
                        doc="Seconds; NaN where espeak-ng runs a word into the one before",
                    ),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> Mapping[str, Iterator[Any]]:
        sizes = SIZES[self.builder_config.name]
        return {split: self._generate_examples(split, sizes[split]) for split in grammar.SPLITS}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        noisy = self.builder_config.name in NOISY
        speech = corpus.spoken(SEED, split, count, WORKERS, noisy)
        with contextlib.closing(speech), tqdm.tqdm(total=count, desc=f"speaking {split}") as bar:
            for index, item in enumerate(speech):
                yield (
                    index,
                    {
                        "id": f"{split}-{index:05d}",
                        "speech": item.flac,
                        "text": item.text,
                        "speaker_id": item.voice,
                        "word_starts": np.array(item.word_starts, np.float32),
                    },
                )
                bar.update()


def embedded(cache_dir: Path, config: str = "default") -> tfds.core.DatasetBuilder:
    """The corpus below `cache_dir`, made there first if need be.

    A corpus whose making was interrupted is made again from the start: TFDS writes it under
    another name and renames it once it is whole.

    Args:
        cache_dir: holds it, in ``embedded/``.
        config: a key of `SIZES`.

    Raises:
        DataError: no such config, or it cannot be made or written.
    """
    if config not in SIZES:
        raise DataError(f"the embedded corpus has no size {config!r}: choose of {', '.join(SIZES)}")
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        builder = Embedded(data_dir=os.fspath(cache_dir), config=config, file_format="array_record")
        with _alone(cache_dir / f"embedded-{config}.lock"):
            final = Path(builder.data_dir)
            if not (final / "dataset_info.json").is_file():  # what TFDS writes last
                for leftover in (final, *final.parent.glob(f"incomplete.*{final.name}")):
                    shutil.rmtree(leftover, ignore_errors=True)
                _prepare(builder)
    except OSError as error:
        raise DataError(
            f"the embedded corpus cannot be kept in {cache_dir} ({error}): "
            "set config.data.cache_dir to a folder that can be written, with 1 GB free"
        ) from None
    except corpus.espeak.EspeakError as error:
        raise DataError(str(error)) from None
    return builder


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    # TFDS has bars of its own (shards, splits) and prints; ours says what takes the time.
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
    finally:
        tfds.enable_progress_bar()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lets one process at a time in; the lock goes with the process, however that ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
