"""Qwen3-ASR: both layouts of its files, what it is told, and what it writes around its text."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mtp_jax.config import AudioEncoder
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.models.encoders.qwen import encoded_positions
from mtp_jax.pretrained import PretrainedError
from mtp_jax.tokenizer import Tokenizer
from mtp_jax.tokenizer.whisper_tokens import LanguageError
from mtp_jax.transcription.transcriber import Transcriber
from tests.pretrained import assert_same
from tests.speech_llms import GOLDEN, golden_runner

QWEN = GOLDEN / "qwen3_asr"
OWN = (
    ("model.multi_modal_projector.linear_1.", "thinker.audio_tower.proj1."),
    ("model.multi_modal_projector.linear_2.", "thinker.audio_tower.proj2."),
    ("model.audio_tower.", "thinker.audio_tower."),
    ("model.language_model.", "thinker.model."),
)


def qwenlm_folder(path):
    """The golden model as QwenLM lays it out: other names, a stored head, vocab.json."""
    path.mkdir()
    weights = {k: x for f in QWEN.glob("*.safetensors") for k, x in load_file(f).items()}
    for old, new in OWN:
        weights = {
            new + k.removeprefix(old) if k.startswith(old) else k: x for k, x in weights.items()
        }
    weights["thinker.lm_head.weight"] = weights["thinker.model.embed_tokens.weight"]
    save_file(weights, path / "model.safetensors")
    config = json.loads((QWEN / "config.json").read_text())
    text = config["text_config"] | {"model_type": "qwen3_asr_text", "tie_word_embeddings": True}
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"rope_type": "default", "mrope_section": [2, 2, 2]}
    thinker = {name: config[name] for name in ("audio_config", "audio_token_id")}
    nested = {"model_type": "qwen3_asr", "thinker_config": thinker | {"text_config": text}}
    (path / "config.json").write_text(json.dumps(nested))
    shutil.copy(QWEN / "generation_config.json", path)
    whole = json.loads((QWEN / "tokenizer.json").read_text())
    (path / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    merges = [" ".join(pair) for pair in whole["model"]["merges"]]
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    added = {str(t["id"]): t for t in whole["added_tokens"]}
    tokenizer = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added}
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return path


def test_both_layouts_are_the_same_model(tmp_path):
    folder = qwenlm_folder(tmp_path / "own")
    ours, theirs = (load(open_model_folder(each)) for each in (QWEN, folder))
    assert_same(theirs.params, ours.params)
    assert theirs.model.vocabulary == ours.model.vocabulary
    assert theirs.model.config.decoder == ours.model.config.decoder
    assert theirs.tokenizer.pieces == ours.tokenizer.pieces
    for text in ("the and 123 it's", "  naïve\n\nthe — 你好", "<|im_end|>the"):
        assert theirs.tokenizer.encode(text) == ours.tokenizer.encode(text)


def test_a_stored_head_must_be_the_embedding_that_it_is_tied_to(tmp_path):
    folder = qwenlm_folder(tmp_path / "own")
    weights = load_file(folder / "model.safetensors")
    head = "thinker.lm_head.weight"
    save_file(weights | {head: weights[head] + 1}, folder / "model.safetensors")
    with pytest.raises(PretrainedError, match=f"{head} is not the embedding"):
        load(open_model_folder(folder))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "merges.txt").unlink(), "has no tokenizer"),
        (lambda f: (f / "tokenizer_config.json").unlink(), "tokenizer_config.json beside it"),
        (lambda f: (f / "tokenizer_config.json").write_text("{}"), "is of a None"),
        (lambda f: (f / "merges.txt").write_text("a b c"), r"does not go with merges\.txt"),
        (lambda f: (f / "vocab.json").write_text("["), "is damaged"),
    ],
)
def test_a_tokenizer_that_is_not_whole_is_refused_in_a_sentence(change, said, tmp_path):
    folder = qwenlm_folder(tmp_path / "own")
    change(folder)
    with pytest.raises(ValueError, match=said):
        Tokenizer.load(folder)


def test_a_forced_aligner_is_refused(tmp_path):
    folder = qwenlm_folder(tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["Qwen3ASRForForcedAligner"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PretrainedError, match="forced aligner, which writes no text"):
        open_model_folder(folder)


def test_the_heading_is_no_text():
    tokenizer = golden_runner("qwen3_asr").tokenizer
    mark = [tokenizer.pieces.index("<asr_text>")]

    def written(heading: str, text: str) -> list[int]:
        return [*tokenizer.encode(heading), *mark, *tokenizer.encode(text)]

    for name, code in (("German", "de"), ("Cantonese", "yue"), ("None", ""), ("Klingon", "")):
        ids = written(f"language {name}", "the and")
        length, language = tokenizer.heading(ids)
        assert (language, tokenizer.decode(ids[length:])) == (code, "the and")
        assert tokenizer.decode(ids) == "the and"
    assert tokenizer.decode(written("language None", "")) == ""
    assert tokenizer.decode(written("whatever", "the")) == "the"
    assert tokenizer.decode(tokenizer.encode("language German")) == "language German"


def test_what_it_is_told():
    model = Transcriber(golden_runner("qwen3_asr"))
    assert model.takes_prompt and {"de", "yue"} <= {*model.languages}
    usual = model.start_tokens("", "transcribe", "")
    told = model.start_tokens("de", "transcribe", " the and ")
    words = model.runner.tokenizer.encode("the and")
    assert len(told) > len(usual)
    assert any(list(told[i : i + len(words)]) == words for i in range(len(told)))
    with pytest.raises(LanguageError, match="'la' is none that Qwen3-ASR knows: ar, cs"):
        model.start_tokens("la", "transcribe", "")
    with pytest.raises(LanguageError, match=r"the prompt comes to .* tokens, .* shorten it"):
        model.start_tokens("", "transcribe", "the " * 900)


def test_positions_of_clips():
    """13 a second, and of a part of one as the convolutions leave it."""
    positions = {0: 0, 1: 1, 8: 1, 9: 2, 99: 13, 100: 13, 101: 14, 250: 33, 3000: 390}
    chunk = AudioEncoder().chunk
    assert {frames: encoded_positions(frames, chunk) for frames in positions} == positions
    several = np.array([*positions])
    np.testing.assert_array_equal(encoded_positions(several, chunk), [*positions.values()])
