"""The sides of `transformers` and faster-whisper in `bench.against_whisper`, which starts this.

    python whisper_side.py KIND FOLDER LANGUAGE THREADS [timestamps]

It imports nothing of the project, so that it runs in an environment of its own. Each line read is
the path of a WAV file; each line written is JSON with the seconds, the text and, of transformers,
the tokens. KIND is ``transformers``, or ``faster_whisper/COMPUTE_TYPE``.
"""

import json
import os
import sys
import time
import wave

import numpy as np


def read(path):
    """float32[T], full scale 1."""
    with wave.open(path) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32768)


def transformers_side(folder, language, threads, timestamps):
    import torch
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(threads)
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    model.generation_config.max_length = None
    features = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    options = {"language": language, "task": "transcribe"} if language else {}
    if timestamps:  # one call: else it decodes the silence behind the last time as well
        options |= {"force_unique_generate_call": True, "return_dict_in_generate": True}

    def run(samples):
        x = features(samples, sampling_rate=16_000, return_tensors="pt").input_features
        with torch.inference_mode():
            found = model.generate(
                x, do_sample=False, num_beams=1, return_timestamps=timestamps, max_new_tokens=220,
                **options,
            )  # fmt: skip
        return {"tokens": (found.sequences if timestamps else found)[0].tolist()}

    return run


def faster_whisper_side(folder, language, threads, timestamps, kind):
    os.environ["OMP_NUM_THREADS"] = str(threads)
    from faster_whisper import WhisperModel

    model = WhisperModel(folder, device="cpu", compute_type=kind, cpu_threads=threads)

    def run(samples):
        segments, _ = model.transcribe(
            samples, language=language or "en", beam_size=1, temperature=0.0,
            without_timestamps=not timestamps, condition_on_previous_text=False,
        )  # fmt: skip
        return {"text": " ".join(segment.text.strip() for segment in segments)}

    return run


def main():
    kind, folder, language, threads, *timestamps = sys.argv[1:]
    given = folder, language, int(threads), bool(timestamps)
    try:
        if kind == "transformers":
            run = transformers_side(*given)
        else:
            run = faster_whisper_side(*given, kind.split("/")[1])
    except ImportError as error:
        sys.exit(f"{sys.executable}: {error}: pip install 'mtp_jax[bench]'")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        samples = read(line.rstrip("\n"))
        start = time.perf_counter()
        found = run(samples)
        print(json.dumps({"seconds": time.perf_counter() - start, **found}), flush=True)


if __name__ == "__main__":
    main()
