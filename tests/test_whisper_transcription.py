"""A Whisper in use: transcripts, the command and the service, on tiny random weights."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient

import mtp_jax
from mtp_jax.audio.segmentation import Chunk
from mtp_jax.decoding import Greedy, registry
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.inference.runner import Runner
from mtp_jax.serving.app import Service, Settings
from mtp_jax.tokenizer.whisper_tokens import LanguageError
from mtp_jax.transcription.alignment import align
from mtp_jax.transcription.repetition import trim_repetitions
from mtp_jax.transcription.transcriber import Transcriber
from tests.pretrained import GOLDEN_WHISPER as FOLDER

RATE = 16_000


@pytest.fixture(scope="module")
def model():
    """With texts that are shorter than the window has frames."""
    runner = load(open_model_folder(FOLDER))
    config = runner.model.config
    short = dataclasses.replace(config, data=dataclasses.replace(config.data, max_tokens=12))
    model = runner.model.clone(config=short)
    return Transcriber(
        Runner(model, runner.params, runner.tokenizer, runner.mesh, runner.imported), batch_size=2
    )


@pytest.fixture(scope="module")
def chunks():
    rng = np.random.default_rng(1)
    return [
        Chunk(start, rng.normal(scale=4000, size=6000).astype(np.int16), 0.4)
        for start in (0.0, 2.0)
    ]


def test_segments_have_words_in_order_within_the_chunk(model, chunks):
    for chunk, segment in zip(chunks, model.decode(chunks), strict=True):
        assert segment.words and segment.aligned
        times = [t for word in segment.words for t in (word.start, word.end)]
        assert times == sorted(times)
        assert chunk.start <= times[0] and times[-1] <= chunk.start + len(chunk.audio) / RATE


def test_a_row_has_the_times_that_it_has_alone(model, chunks):
    together = model.decode(chunks)
    for chunk, segment in zip(chunks, together, strict=True):
        alone = model.decode([chunk])[0]
        assert [word.text for word in alone.words] == [word.text for word in segment.words]
        spans = [np.array([(w.start, w.end) for w in s.words]) for s in (alone, segment)]
        np.testing.assert_allclose(*spans, atol=0.021)  # a frame


def test_a_text_where_nobody_speaks_is_left_out(model, chunks):
    """Of one that is likely, or of one that somebody seems to say, nothing is."""
    chunks = [*chunks, *chunks]
    two = [jax.device_get(model.runner.run(model._batch(chunks[:2]), Greedy(), True))] * 2
    inference = jax.tree.map(lambda *x: np.concatenate(x) if x[0].ndim else x[0], *two)
    decoded = dataclasses.replace(
        inference.decoded, log_probs=np.repeat([-1.1, -0.9, -1.1, -0.9], 12).reshape(4, 12)
    )
    silent = np.array([0.9, 0.9, 0.5, 0.5])
    inference = dataclasses.replace(inference, decoded=decoded, no_speech=silent)
    segments = model._assembler.segments(inference, chunks, RATE, "decoder", None)
    assert [bool(segment.words) for segment in segments] == [False, True, True, True]
    assert segments[0].complete and not segments[0].tokens and segments[0].decoder_calls > 0


def test_language_and_task_reach_the_decoder(model, chunks):
    """Each chunk its own, in one batch; a prompt changes the program's width and the text."""
    asked = [("de", "transcribe", ""), ("nl", "translate", "")]
    told = [
        chunk._replace(start_tokens=model.start_tokens(*options))
        for chunk, options in zip(chunks, asked, strict=True)
    ]
    segments = model.decode(told)
    assert [segment.language for segment in segments] == ["de", "nl"]
    assert model.decode([told[1]])[0].text == segments[1].text
    prompt = model.start_tokens("de", "transcribe", "and the and")
    prompted = chunks[0]._replace(start_tokens=prompt)
    assert len(prompted.start_tokens) > len(told[0].start_tokens)
    assert model.decode([prompted])[0].language == "de"


def test_a_prompt_is_cut_to_what_the_model_can_see(model):
    tokens = model.start_tokens("de", "transcribe", "the " * 500)
    special = model.runner.model.vocabulary.whisper
    assert tokens[0] == special.previous
    assert len(tokens) <= model.runner.model.config.whisper_decoder.positions // 2 + 4


def test_strategies_are_those_that_need_no_ctc(model):
    assert "ctc" not in model.strategies and "verify_ctc" not in model.strategies
    assert {"greedy", "verify", "beam"} <= set(model.strategies) <= set(registry.names())


def test_other_models_take_no_language(workdir):
    other = mtp_jax.load(workdir)
    assert other.start_tokens("", "transcribe", "") == ()
    for asked in (("de", "transcribe", ""), ("", "translate", ""), ("", "transcribe", "names")):
        with pytest.raises(LanguageError, match="takes no language"):
            other.start_tokens(*asked)


def test_the_command_names_an_unknown_language(tmp_path):
    file = tmp_path / "a.wav"
    soundfile.write(file, np.zeros(RATE, np.int16), RATE)
    done = subprocess.run(
        [sys.executable, "-m", "mtp_jax.transcribe", file, f"--model={FOLDER}", "--language=tlh"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "'tlh' is none that the model knows" in done.stderr
    assert "Traceback" not in done.stderr
    assert "starting" not in done.stderr  # no bar of a work that is refused


def test_the_service_takes_languages_and_translates(model, tmp_path):
    file = tmp_path / "a.wav"
    rng = np.random.default_rng(2)
    soundfile.write(file, rng.normal(scale=0.2, size=RATE).astype(np.float32), RATE)
    service = Service(model, Settings(models=("tiny",), strategy="greedy", warm=()))
    with TestClient(service.app()) as client:

        def post(task, **fields):
            files = {"file": ("a.wav", file.read_bytes())}
            return client.post(f"/v1/audio/{task}", files=files, data=fields)

        refused = post("transcriptions", language="tlh")
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "language"
        for task in ("transcriptions", "translations"):
            done = post(task, language="de-DE", response_format="verbose_json")
            assert done.status_code == 200
            assert done.json()["task"] == {"transcriptions": "transcribe"}.get(task, "translate")
        assert "de" in client.get("/v1/models/tiny").json()["languages"]


def test_a_monotonic_path_follows_the_weights():
    """Alignment of attention is CTC's with no blank: against all paths."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 9))

    def spans(cuts):
        return [*zip((0, *cuts), (*cuts, 9), strict=True)]

    cuts = [(a, b, c) for a in range(1, 7) for b in range(a + 1, 8) for c in range(b + 1, 9)]
    best = max(
        cuts, key=lambda cut: sum(weights[i, a:b].sum() for i, (a, b) in enumerate(spans(cut)))
    )
    table = np.pad(weights.T, ((0, 0), (0, 1)), constant_values=-np.inf)
    found = align(table, range(4))
    assert [*zip(found.first, found.last + 1, strict=True)] == spans(best)


@pytest.mark.parametrize(
    ("tokens", "ended", "kept"),
    [
        ([1, 2, 3, 3, 3, 3, 3, 3], False, [0, 1, 2]),  # never ended: a loop
        ([1, 3, 3, 3, 3], True, [0, 1]),  # little beside it
        ([1, 2, 4, 5, 6, 3, 3, 3, 3, 7, 8], True, range(11)),  # said so
    ],
)
def test_loops_without_ctc(tokens, ended, kept):
    assert trim_repetitions(tokens, lambda text: None, ended) == ([*kept], len(kept) < len(tokens))


def test_json_has_the_language(model, chunks):
    started = chunks[0]._replace(start_tokens=model.start_tokens("fr", "transcribe", ""))
    transcript = mtp_jax.Transcript(
        segments=tuple(model.decode([started])),
        audio_seconds=1.0,
        decode_seconds=1.0,
        decoder_calls=1,
        strategy="greedy",
        calibrated=False,
    )
    assert json.loads(json.dumps(transcript.to_json()))["language"] == "fr"
