"""Folders of released speech LLMs in use: commands, and what is refused in a sentence."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient

import mtp_jax
from mtp_jax.config import ConfigError, Whisper
from mtp_jax.decoding import Greedy
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import model_digest, open_model_folder
from mtp_jax.serving.app import Service, Settings
from mtp_jax.tokenizer import Tokenizer
from mtp_jax.tokenizer.whisper_tokens import LanguageError
from tests.commands import run
from tests.recordings import sentences
from tests.speech_llms import GOLDEN, batch_of, change, expected, golden_runner

RATE = 16_000
VOXTRAL, GRANITE = GOLDEN / "voxtral", GOLDEN / "granite_speech"


@pytest.fixture
def folder(tmp_path):
    """A copy that may be changed."""
    path = tmp_path / "model"
    shutil.copytree(VOXTRAL, path, ignore=shutil.ignore_patterns("*.npz"))
    return path


def test_transcribe_prints_what_the_model_writes(tmp_path):
    """Of speech that is longer than a window, chunk by chunk."""
    talk = tmp_path / "talk.wav"
    soundfile.write(talk, sentences(1)[0][: 3 * RATE // 2], RATE)
    transcript = mtp_jax.load(VOXTRAL, batch_size=1).transcribe(talk)
    assert len(transcript.segments) > 1
    assert not any(segment.aligned for segment in transcript.segments)
    done = run("transcribe", talk, f"--model={VOXTRAL}", "--batch_size=1")
    assert done.status == 0, done.err
    assert done.out.split() == transcript.text.split()
    assert "nothing that tells when a word was said" in done.err
    told = run(
        "transcribe",
        *(talk, f"--model={VOXTRAL}", "--batch_size=1", "--strategy=verify"),
        *("--language=de", "--format=json", f"--output_dir={tmp_path / 'out'}"),
    )
    assert told.status == 0, told.err
    written = json.loads((tmp_path / "out" / "talk.json").read_text())
    assert {segment["language"] for segment in written["segments"]} == {"de"}
    assert not any(segment["aligned"] for segment in written["segments"])


def test_command_and_service_say_what_granite_writes(tmp_path):
    """Of clips that are no windows, but as long as they are."""
    talk, model = tmp_path / "talk.wav", mtp_jax.load(GRANITE, batch_size=1)
    soundfile.write(talk, sentences(1)[0][:RATE], RATE)
    text = model.transcribe(talk).text
    done = run("transcribe", talk, f"--model={GRANITE}", "--batch_size=1")
    assert done.status == 0, done.err
    assert done.out.split() == text.split()
    with TestClient(Service(model, Settings(models=("granite",), warm=())).app()) as client:
        files = {"file": ("talk.wav", talk.read_bytes())}
        answer = client.post("/v1/audio/transcriptions", files=files)
        assert answer.status_code == 200, answer.text
        assert answer.json()["text"] == text


@pytest.mark.parametrize("name", ["voxtral", "granite_speech"])
def test_evaluate_decodes_a_manifest(name, tmp_path):
    e, lines = expected(name), []
    for row in (0, 1):
        file = tmp_path / f"{row}.wav"
        soundfile.write(file, e["audio"][row, : e["samples"][row]], RATE)
        entry = {"audio_filepath": str(file), "text": "the", "duration": e["samples"][row] / RATE}
        lines.append(json.dumps(entry))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    done = run(
        "evaluate",
        *(f"--model={GOLDEN / name}", f"--data={tmp_path / 'data.jsonl'}", "--batch_size=2"),
        *("--strategy=greedy", f"--output={tmp_path / 'out'}"),
    )
    assert done.status == 0, done.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["strategy"] for row in results["rows"]] == ["greedy"]
    (greedy,) = (tmp_path / "out" / "hypotheses").glob("greedy*")
    ours = json.loads(greedy.read_text().splitlines()[0])
    theirs = [token for token in e["greedy"][0].tolist() if token >= 0]
    assert ours["text"] == golden_runner(name).tokenizer.decode(theirs[:-1])
    assert ours["decoder_calls"] == len(theirs)


def test_what_is_written_before_the_text_is_no_text():
    """A language that the model was not told it writes first."""
    tokenizer = golden_runner("voxtral").tokenizer
    told, said = tokenizer.encode("lang:de"), tokenizer.encode(" the and")
    assert tokenizer.heading([*told, *said]) == (len(told), "de")
    assert tokenizer.decode([*told, *said]) == "the and"
    assert tokenizer.heading(tokenizer.encode("lang:qq the")) == (4, "")
    for text in ("the lang:de", "language", ""):
        assert tokenizer.heading(tokenizer.encode(text)) == (0, "")
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_digest_follows_the_weights(folder):
    before = model_digest(open_model_folder(folder))
    assert before == model_digest(open_model_folder(VOXTRAL))
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder / "copy")
    file = folder / "model-00002-of-00003.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert before != model_digest(open_model_folder(folder))


def test_bfloat16_is_kept_as_it_is_stored():
    runner = load(open_model_folder(VOXTRAL), dtype="bfloat16")
    matrices = {x.dtype.name for x in runner.params["decoder"]["layers"]["gate"].values()}
    assert matrices == {"bfloat16"}
    assert runner.params["encoder"]["norm"]["scale"].dtype == np.float32


@pytest.mark.parametrize(
    ("language", "task", "prompt", "said"),
    [
        ("tlh", "transcribe", "", "language 'tlh' is none that Voxtral knows: de, en"),
        ("de", "translate", "", "Voxtral is not asked to translate here"),
        ("", "transcribe", "words", "Voxtral takes no prompt"),
    ],
)
def test_what_the_model_cannot_be_told_is_named(language, task, prompt, said):
    with pytest.raises(LanguageError, match=said):
        mtp_jax.load(VOXTRAL).start_tokens(language, task, prompt)


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        ("config.json", {"model_type": "qwen2_audio"}, r"a speech LLM \(Voxtral"),
        ("config.json", {"quantization_config": {"bits": 4}}, "quantization_config is 'dict'"),
        ("config.json", {"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'"),
        ("config.json", {"audio_config__hidden_size": 24}, "intermediate_size is no whole number"),
        ("config.json", {"text_config__model_type": "gemma"}, "model_type is 'gemma'"),
        ("config.json", {"text_config": []}, "text_config is no object"),
        ("config.json", {"audio_token_id": 7}, r"token 7 stands for audio there, and \[AUDIO"),
        (
            "config.json",
            {"text_config__max_position_embeddings": 60},
            "60 positions have no place for 0.8 s of audio",
        ),
        ("tekken.json", {"config": {}}, "is no tekken.json"),
        ("generation_config.json", {"eos_token_id": 9999}, "has no token 9999"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_a_sentence(folder, file, fields, said):
    change(folder, file, **fields)
    with pytest.raises(ValueError, match=said):
        load(open_model_folder(folder))


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("tekken.json", "has no tokenizer"),
        ("model-00002-of-00003.safetensors", "00002-of-00003.safetensors is missing: download"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_a_sentence(folder, lost, said):
    (folder / lost).unlink()
    with pytest.raises(ValueError, match=said):
        load(open_model_folder(folder))


def test_a_tokenizer_without_the_special_tokens_is_refused(folder):
    values = json.loads((folder / "tekken.json").read_text())
    for token in values["special_tokens"]:
        if token["token_str"] == "[TRANSCRIBE]":
            token["token_str"] = "[ELSE]"
    (folder / "tekken.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"has no token \[TRANSCRIBE\], which every Voxtral has"):
        Tokenizer.load(folder)


def test_a_command_says_it_in_one_sentence(folder):
    (folder / "model-00002-of-00003.safetensors").unlink()
    done = run("transcribe", __file__, f"--model={folder}")
    assert done.status == 1
    assert done.err.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.err


def test_it_is_calibrated_in_a_folder_beside_it(tmp_path):
    """Nothing is written to its own; that one holds nothing of the model."""
    refused = run("calibrate", f"--model={VOXTRAL}")
    assert refused.status and "calibrate what python -m mtp_jax.export" in refused.err
    beside = tmp_path / "beside"
    done = run("export", f"--model={VOXTRAL}", f"--output={beside}")
    assert done.status == 0, done.err
    names = {"config.json", "parts.json", "digests.json", "heads.safetensors"}
    assert {file.name for file in beside.iterdir()} == names
    again = load(open_model_folder(beside))
    batch = batch_of("voxtral", slice(0, 1))
    ours, theirs = (each.run(batch, Greedy()).decoded for each in (golden_runner("voxtral"), again))
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)


def test_a_speech_llm_excludes_a_whisper():
    config = golden_runner("voxtral").model.config
    with pytest.raises(ConfigError, match=r"speech_llm\.family excludes config\.whisper"):
        dataclasses.replace(config, whisper=Whisper(width=8, layers=1, heads=2))
