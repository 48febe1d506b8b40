"""TFDS sources, through real TFDS builders that unpack tiny archives made here."""

import io
import os
import pathlib
import sys
import tarfile

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from mtp_jax.audio.reading import AudioError
from mtp_jax.config import Data
from mtp_jax.data import DataError, open_source
from mtp_jax.data.librispeech import read_tree
from mtp_jax.data.tfds_source import tfds_source

RATE = 16_000
rng = np.random.default_rng(0)
WAVES = {
    f"{speaker}-1-{i:04d}": rng.integers(-9000, 9000, 4000 + 100 * i).astype(np.int16)
    for speaker in (84, 99)
    for i in range(3)
}


class TinyLibrispeech(tfds.core.GeneratorBasedBuilder):
    """LibriSpeech's archive and feature names; its Audio feature alone would need TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "speech": tfds.features.Tensor(shape=(None,), dtype=np.int16),
                    "text": tfds.features.Text(),
                    "speaker_id": np.int64,
                    "chapter_id": np.int64,
                    "id": np.str_,
                }
            ),
            supervised_keys=("speech", "text"),
            metadata=tfds.core.MetadataDict(sample_rate=RATE),
        )

    def _split_generators(self, dl_manager):
        archive = pathlib.Path(os.environ["TINY_LIBRISPEECH"])
        root = archive.parent / "unpacked"
        with tarfile.open(archive) as file:  # dl_manager.extract would import TensorFlow
            file.extractall(root, filter="data")
        return {"dev_clean": self._generate_examples(root)}

    def _generate_examples(self, root):
        recordings, _ = read_tree(root)
        for r in recordings:
            speaker, chapter, _ = map(int, r.id.split("-"))
            speech, _ = soundfile.read(r.path, dtype="int16")
            yield (
                r.id,
                {
                    "speech": speech,
                    "text": r.text,
                    "speaker_id": speaker,
                    "chapter_id": chapter,
                    "id": r.id,
                },
            )


def builder_of(features, examples):
    """A dataset of given features, unregistered."""

    class Given(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "given"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(examples)

    return Given


@pytest.fixture(autouse=True)
def _quiet(capsys):
    tfds.disable_progress_bar()


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A cache folder, an archive, and a TFDS folder of their own."""
    files = {f"{key}.flac": flac(wave) for key, wave in WAVES.items()}
    for speaker in (84, 99):
        lines = [f"{key} SAID {key}\n" for key in WAVES if key.startswith(f"{speaker}-")]
        files[f"{speaker}-1.trans.txt"] = "".join(lines).encode()
    with tarfile.open(tmp_path / "dev-clean.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"LibriSpeech/dev-clean/{name.split('-')[0]}/1/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    monkeypatch.setenv("TINY_LIBRISPEECH", str(tmp_path / "dev-clean.tar.gz"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return Data(cache_dir=str(tmp_path / "cache"), bucket_seconds=(0.5, 1.0))


def flac(wave, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def opened(tmp_path, features, examples, rate=RATE):
    builder = builder_of(features, examples)(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    return tfds_source("given", builder, "train", rate, tmp_path / "cache")


def test_a_catalogue_dataset_by_name(data):
    source = open_source("tfds:tiny_librispeech:dev_clean", data, RATE)
    assert (source.name, source.split) == ("tfds:tiny_librispeech", "dev_clean")
    assert {u.id for u in source.utterances} == set(WAVES)
    for i, u in enumerate(source.utterances):
        assert (u.text, u.speaker) == (f"SAID {u.id}", u.id.split("-")[0])
        assert u.seconds == len(WAVES[u.id]) / RATE
        np.testing.assert_array_equal(source.waveform(i), WAVES[u.id])
    part = open_source("tfds:tiny_librispeech:dev_clean[:2]", data, RATE)
    assert part.utterances == source.utterances[:2]
    assert "tensorflow" not in sys.modules


def test_a_second_opening_reads_the_index_alone(data, monkeypatch):
    first = open_source("tfds:tiny_librispeech:dev_clean", data, RATE)
    with monkeypatch.context() as patch:
        patch.setattr("mtp_jax.data.tfds_source._entry", None)
        again = open_source("tfds:tiny_librispeech:dev_clean", data, RATE)
    assert again.utterances == first.utterances
    [index] = (pathlib.Path(data.cache_dir) / "index").iterdir()
    index.write_text("[{")  # damaged: made anew
    assert open_source("tfds:tiny_librispeech:dev_clean", data, RATE).utterances == first.utterances


def test_unknown_dataset_and_split(data):
    with pytest.raises(DataError, match="tfds:no_such_dataset cannot be prepared"):
        open_source("tfds:no_such_dataset:train", data, RATE)
    with pytest.raises(DataError, match=r"its splits are: dev_clean\): Unknown split 'train'"):
        open_source("tfds:tiny_librispeech:train", data, RATE)


TEXT = tfds.features.Text()
TENSOR = tfds.features.Tensor
WAVE = np.arange(-2000, 2000, dtype=np.int16)


@pytest.mark.parametrize(
    ("feature", "stored"),
    [
        (TENSOR(shape=(None,), dtype=np.int16), WAVE),
        (TENSOR(shape=(None,), dtype=np.int64), WAVE.astype(np.int64)),
        (TENSOR(shape=(None,), dtype=np.float32), (WAVE / 2**15).astype(np.float32)),
        (TENSOR(shape=(None, 2), dtype=np.int16), np.stack([WAVE, WAVE], 1)),
        (tfds.features.Text(), flac(WAVE)),
    ],
)
def test_audio_however_it_is_stored(tmp_path, feature, stored):
    source = opened(tmp_path, {"audio": feature, "text": TEXT}, [{"audio": stored, "text": "a"}])
    assert source.utterances[0].seconds == len(WAVE) / RATE
    assert source.waveform(0).dtype == np.int16
    np.testing.assert_array_equal(source.waveform(0), WAVE)


def test_another_sample_rate(tmp_path):
    tone = (8000 * np.sin(np.arange(8000) * 2 * np.pi * 200 / 16_000)).astype(np.int16)
    features = {"audio": tfds.features.Text(), "text": TEXT}
    source = opened(tmp_path, features, [{"audio": flac(tone), "text": "a"}], rate=8000)
    wave = source.waveform(0)
    assert source.utterances[0].seconds == 0.5
    assert len(wave) == 4000
    np.testing.assert_allclose(wave[500:-500], tone[1000:-1000:2], atol=40)


def test_names_decide_between_several_features(tmp_path):
    features = {
        "flac": tfds.features.Text(),
        "times": TENSOR(shape=(None,), dtype=np.float32),
        "title": TEXT,
        "transcript": TEXT,
        "speaker": TEXT,
        "language": TEXT,
    }
    example = {
        "flac": flac(WAVE),
        "times": np.ones(3, np.float32),
        "title": "no",
        "transcript": "yes",
        "speaker": "anna",
        "language": "en",
    }
    [utterance] = opened(tmp_path, features, [example]).utterances
    got = (utterance.id, utterance.text, utterance.speaker, utterance.lang)
    assert got == ("train-0", "yes", "anna", "en")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"a": TENSOR(shape=(None,), dtype=np.int16), "label": np.int64}, "no feature for text"),
        ({"text": TEXT}, "no feature for audio"),
        (
            {k: TENSOR(shape=(None,), dtype=np.int16) for k in ("left", "right")} | {"text": TEXT},
            "left, right for audio",
        ),
    ],
)
def test_datasets_without_clear_audio_or_text_are_refused(tmp_path, features, message):
    samples = {k: WAVE if k in ("a", "left", "right") else "x" for k in features}
    samples = {k: 1 if k == "label" else v for k, v in samples.items()}
    with pytest.raises(DataError, match=message):
        opened(tmp_path, features, [samples])


def test_bad_audio_in_a_dataset(tmp_path):
    features = {"audio": tfds.features.Text(), "text": TEXT}
    examples = [{"audio": x, "text": "a"} for x in (b"no flac", flac(WAVE), b"")]
    source = opened(tmp_path, features, examples)
    assert [(p.id, p.reason) for p in source.problems] == [
        ("train-0", "unreadable audio"),
        ("train-2", "unreadable audio"),
    ]
    np.testing.assert_array_equal(source.waveform(0), WAVE)

    nan = {"audio": np.full(4000, np.nan, np.float32), "text": "a"}
    features = {"audio": TENSOR(shape=(None,), dtype=np.float32), "text": TEXT}
    source = opened(tmp_path / "nan", features, [nan])
    with pytest.raises(
        AudioError, match="train-0 in given: an array holds samples that are not finite"
    ):
        source.waveform(0)


def test_a_data_folder_in_a_bucket_is_refused():
    data = Data(tfds_dir="gs://speech/tfds")
    with pytest.raises(DataError, match="lies in a bucket, where ArrayRecord cannot read: mount"):
        open_source("tfds:librispeech:dev_clean", data, 16_000)
