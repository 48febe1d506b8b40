"""Writes features.npz: what the reference implementations make of one short waveform.

    python -m venv golden && golden/bin/pip install transformers==5.23.0 kaldi-native-fbank==1.22.5
    golden/bin/python tests/golden/make_features.py

- whisper_true, whisper_window: transformers' WhisperFeatureExtractor (its NumPy definition; no
  PyTorch may be installed), on the waveform alone and on Whisper's zero-padded window of 30 s, of
  which the last 10 frames that hear the waveform and 3 that hear none are kept beside the rest.
- whisper_filters_80, whisper_filters_128: its mel filters.
- kaldi_80, kaldi_23: kaldi-native-fbank (Kaldi's own arithmetic in C++) at 16 and at 8 kHz.
"""

import pathlib

import kaldi_native_fbank
import numpy as np
from transformers import WhisperFeatureExtractor

RATE = 16_000
SAMPLES = 8_137  # a multiple of nothing


def waveform() -> np.ndarray:
    """int16: a rising tone over noise, then digital silence, then noise around an offset."""
    seconds = np.arange(SAMPLES) / RATE
    noise = np.random.default_rng(0).normal(size=SAMPLES)
    tone = 12_000 * np.sin(2 * np.pi * (100 + 7_000 * seconds) * seconds) + 300 * noise
    samples = np.select([seconds < 0.3, seconds < 0.36], [tone, 0 * tone], 900 + 5 * noise)
    return np.rint(samples).astype(np.int16)


def whisper(samples: np.ndarray, mel_bins: int = 80, padding: str = "do_not_pad") -> np.ndarray:
    """float32[T', Z]."""
    extract = WhisperFeatureExtractor(feature_size=mel_bins)
    floats = samples.astype(np.float32) / 32768
    features = extract(floats, sampling_rate=RATE, padding=padding, return_tensors="np")
    return features["input_features"][0].T.astype(np.float32)


def kaldi(samples: np.ndarray, sample_rate: int, mel_bins: int) -> np.ndarray:
    """float32[T', Z]."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = sample_rate
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = mel_bins
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(sample_rate, samples.astype(np.float32).tolist())
    fbank.input_finished()
    return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


if __name__ == "__main__":
    audio = waveform()
    np.savez_compressed(
        pathlib.Path(__file__).with_name("features.npz"),
        audio=audio,
        whisper_true=whisper(audio),
        whisper_window=whisper(audio, padding="max_length")[:55],
        whisper_filters_80=WhisperFeatureExtractor(80).mel_filters.astype(np.float32),
        whisper_filters_128=WhisperFeatureExtractor(128).mel_filters.astype(np.float32),
        kaldi_80=kaldi(audio, RATE, 80),
        kaldi_23=kaldi(audio, 8_000, 23),
    )
