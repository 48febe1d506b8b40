"""Granite-speech: its CTC head, its LoRA adapter, its two prompts, and what is none of its kind."""

from __future__ import annotations

import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mtp_jax.data import Batch
from mtp_jax.decoding import DraftsError, Greedy, Verify
from mtp_jax.inference.load import load
from mtp_jax.inference.model_folder import model_digest, open_model_folder
from mtp_jax.models.projectors.qformer import projected_rows
from mtp_jax.models.recogniser import call
from mtp_jax.models.speech_features import speech_features
from mtp_jax.models.speech_llm import SpeechLlm
from mtp_jax.models.speech_windows import prompt_rows
from mtp_jax.pretrained import PretrainedError
from mtp_jax.tokenizer import Tokenizer, TokenizerError
from mtp_jax.tokenizer.granite_ctc import ctc_characters
from mtp_jax.tokenizer.speech_prompts import AUDIO
from mtp_jax.tokenizer.whisper_tokens import LanguageError
from mtp_jax.transcription.transcriber import Transcriber
from tests.pretrained import assert_same
from tests.speech_llms import GOLDEN, batch_of, change, expected, golden_runner, with_heads

GRANITE = GOLDEN / "granite_speech"
ADAPTER = "adapter_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A copy that may be changed."""
    path = tmp_path / "model"
    shutil.copytree(GRANITE, path, ignore=shutil.ignore_patterns("*.npz"))
    return path


@pytest.fixture(scope="module")
def golden_params():
    """As they are imported: a runner that has decoded has them laid out anew."""
    return load(open_model_folder(GRANITE)).params


# --- the CTC head ---


def test_ctc_logits_equal_those_of_transformers():
    runner, theirs = golden_runner("granite_speech"), expected("granite_speech")
    batch = batch_of("granite_speech", padding=4000)

    @jax.jit
    def run(params):
        hidden, frames = speech_features(runner.model, params, batch)
        return call(SpeechLlm.encoder_ctc_logits, runner.model, params, hidden), frames

    logits, frames = run(runner.params)
    for row, length in enumerate(frames):
        wanted = theirs[f"ctc/{row}"]
        assert len(wanted) == length
        np.testing.assert_allclose(logits[row, :length], wanted, rtol=1e-4, atol=1e-4)


@pytest.fixture
def spelling(folder):
    """The model with a CTC head of as many outputs as that of 4.x, all but a few never chosen.

    Random states are much alike: what is chosen depends on how they differ from their mean.
    """
    runner, outputs = golden_runner("granite_speech"), 348
    hidden, _ = speech_features(runner.model, runner.params, batch_of("granite_speech"))
    mean = np.asarray(hidden).mean(axis=(0, 1))
    weight = 8 * np.random.default_rng(13).normal(size=(outputs, len(mean)))
    bias = np.full(outputs, -99.0)
    bias[[0, *map(ord, "adehnté")]], bias[ord(" ")] = 0, 2
    head = {
        "encoder.out.weight": weight,
        "encoder.out.bias": bias - weight @ mean,
        "encoder.out_mid.weight": np.zeros((len(mean), outputs)),
    }
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for name, array in head.items():
        file = folder / index["weight_map"][name]
        save_file(load_file(file) | {name: array.astype(np.float32)}, file)
    change(folder, "config.json", encoder_config__output_dim=outputs)
    return load(open_model_folder(folder))


def test_drafts_are_the_characters_that_ctc_reads(spelling):
    batch = batch_of("granite_speech", padding=4000)

    @jax.jit
    def run(params):
        hidden, frames = speech_features(spelling.model, params, batch)
        logits = call(SpeechLlm.encoder_ctc_logits, spelling.model, params, hidden)
        return logits, frames, call(SpeechLlm.encode, spelling.model, params, hidden, frames)

    logits, frames, encoded = run(spelling.params)
    read = []
    for row, length in enumerate(frames):
        best = [key for key, _ in itertools.groupby(np.argmax(logits[row, :length], -1).tolist())]
        read.append(" ".join("".join(chr(c) for c in best if c).split()))
        tokens, count = (x[row] for x in encoded.ctc_hypothesis)
        assert tokens[:count].tolist() == spelling.tokenizer.encode(read[-1])
    assert len(set("".join(read))) > 4 and any(" " in text for text in read)
    assert encoded.ctc_logits is None  # no times of words, no text of its own


def test_ctc_drafts_leave_the_text_as_it_is(spelling):
    strategies = Transcriber(spelling).strategies
    assert {name for name in strategies if "ctc" in name} == {"verify_ctc", "prefix_beam_ctc"}
    batch = batch_of("granite_speech", padding=4000)
    greedy, verified = (
        spelling.run(batch, strategy).decoded for strategy in (Greedy(width=4), Verify(ctc_width=4))
    )
    assert verified.tokens.tolist() == greedy.tokens.tolist()
    assert verified.length.tolist() == greedy.length.tolist()
    assert verified.proposed.any() and not greedy.proposed.any()


def test_heads_draft_where_ctc_and_the_text_differ(spelling):
    runner, batch = with_heads(spelling, 4), batch_of("granite_speech", padding=4000)
    assert "verify_joint" in Transcriber(runner).strategies
    greedy, verified = (
        runner.run(batch, strategy).decoded
        for strategy in (Greedy(width=4), Verify(ctc_width=4, joint=True))
    )
    assert verified.tokens.tolist() == greedy.tokens.tolist()
    assert verified.proposed.any()


def test_an_e_with_an_accent_is_spelled_in_two_bytes():
    labels = ctc_characters(348)
    assert len(labels) == 347 and not any(labels[255:])
    assert [labels[number - 1] for number in (97, 233)] == ["a", "é"]
    assert not ctc_characters(42)


def test_nothing_is_drafted_by_labels_that_nobody_knows():
    model = Transcriber(golden_runner("granite_speech"))
    assert not any("ctc" in name for name in model.strategies)
    with pytest.raises(DraftsError, match=r"has none .*: take verify"):
        model.strategy("verify_ctc")


# --- lengths ---


def test_rows_of_clips():
    """Three of every 0.3 s that are begun."""
    runner = golden_runner("granite_speech")
    config = runner.model.config
    assert prompt_rows(30 * 16_000, config) == 300
    assert [projected_rows(n, config.speech_llm.projector) for n in (1, 15, 16, 30)] == [3, 3, 6, 6]
    lengths = expected("granite_speech")["samples"].tolist()
    for samples, rows in zip(lengths, (3, 6, 6), strict=True):
        assert prompt_rows(samples, config) == rows


def encoded_of(runner, batch):
    @jax.jit
    def run(params):
        features = speech_features(runner.model, params, batch)
        return call(SpeechLlm.encode, runner.model, params, *features)

    return run(runner.params)


def test_clips_shorter_than_a_frame_are_encoded():
    samples = np.array([0, 1, 399], np.int32)
    batch = Batch(
        audio=np.full((3, 399), 77, np.int16),
        audio_length=samples,
        tokens=np.zeros((3, 0), np.int32),
        token_length=np.zeros(3, np.int32),
        index=np.arange(3, dtype=np.int32),
    )
    encoded = encoded_of(golden_runner("granite_speech"), batch)
    assert encoded.length.tolist() == [3, 3, 3]
    assert np.isfinite(encoded.audio).all()


def test_bfloat16_is_near_float32():
    """As on accelerators, where a loop over layers wants one type from end to end."""
    runner = load(open_model_folder(GRANITE), dtype="bfloat16")
    encoded = encoded_of(runner, batch_of("granite_speech"))
    assert encoded.audio.dtype == "bfloat16"
    for row, length in enumerate(encoded.length):
        wanted = expected("granite_speech")[f"embeddings/{row}"]
        error = np.abs(encoded.audio[row, :length].astype(np.float32) - wanted)
        assert error.max() < 0.05 * np.abs(wanted).max()


# --- the adapter ---


def renamed(folder, prefix, ending):
    """The adapter under other names, which `peft` and transformers have used."""
    tensors = load_file(folder / ADAPTER)
    heads = ("base_model.model.", "model.language_model.", "language_model.model.")
    for name in list(tensors):
        own = name
        for head in heads:
            own = own.removeprefix(head)
        own = own.replace(".default.weight", ".weight").replace(".weight", ending)
        tensors[prefix + own] = tensors.pop(name)
    save_file(tensors, folder / ADAPTER)


@pytest.mark.parametrize(
    ("prefix", "ending"),
    [
        ("language_model.model.", ".weight"),
        ("base_model.model.language_model.model.", ".weight"),
        ("base_model.model.model.language_model.", ".default.weight"),
    ],
)
def test_every_way_to_name_the_adapter_is_read(folder, golden_params, prefix, ending):
    renamed(folder, prefix, ending)
    assert_same(load(open_model_folder(folder)).params, golden_params)


def test_the_adapter_is_merged_into_what_it_adapts(folder, golden_params):
    tensors = load_file(folder / ADAPTER)
    renamed(folder, "", ".weight")
    pairs = load_file(folder / ADAPTER)
    a, b = (pairs[f"layers.1.self_attn.v_proj.lora_{part}.weight"] for part in "AB")
    (folder / "adapter_config.json").unlink()
    change(folder, "config.json", has_lora_adapter=False)
    plain = load(open_model_folder(folder)).params["decoder"]["layers"]["attention"]
    merged = golden_params["decoder"]["layers"]["attention"]
    update = 1.5 * (b.astype(np.float32) @ a.astype(np.float32)).T
    wanted = np.asarray(plain["value"]["kernel"][1]) + update
    np.testing.assert_allclose(merged["value"]["kernel"][1], wanted, atol=1e-6)
    np.testing.assert_array_equal(plain["key"]["kernel"], merged["key"]["kernel"])
    assert len(tensors) == len(pairs) == 8


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"r": 3}, "lora_A of .*, and of this model it would be"),
        ({"r": 0}, "r is 0, and must be 1 or more"),
        ({"use_dora": True}, "use_dora is True, and only plain LoRA can be merged"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern is .*, and only plain LoRA"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_in_a_sentence(folder, fields, said):
    change(folder, "adapter_config.json", **fields)
    with pytest.raises(PretrainedError, match=said):
        load(open_model_folder(folder))


@pytest.mark.parametrize(
    ("change_name", "said"),
    [
        (lambda n: n.replace("layers.1.", "layers.7."), r"layers\.7\..*, which the model does not"),
        (lambda n: n.replace("lora_B", "lora_magnitude"), "is no part of a LoRA"),
        (lambda n: n.replace("1.self_attn.q_proj.lora_A", "0.mlp.up_proj.lora_A"), "is missing"),
    ],
)
def test_an_adapter_of_another_model_is_refused_in_a_sentence(folder, change_name, said):
    tensors = {change_name(name): x for name, x in load_file(folder / ADAPTER).items()}
    save_file(tensors, folder / ADAPTER)
    with pytest.raises(PretrainedError, match=said):
        load(open_model_folder(folder))


def test_an_adapter_of_another_size_is_refused_in_a_sentence(folder):
    tensors = {name: np.tile(x, (1, 2)) for name, x in load_file(folder / ADAPTER).items()}
    save_file(tensors, folder / ADAPTER)
    with pytest.raises(PretrainedError, match=r"lora_A of .* is \(2, 32\), .* would be \(2, 16\)"):
        load(open_model_folder(folder))


@pytest.mark.parametrize("lost", ["adapter_config.json", ADAPTER])
def test_an_adapter_that_is_missing_is_named(folder, lost):
    (folder / lost).unlink()
    with pytest.raises(PretrainedError, match=f"has no {lost}, though the model has a LoRA"):
        open_model_folder(folder)


@pytest.mark.parametrize("file", ["adapter_config.json", ADAPTER, "chat_template.jinja"])
def test_the_digest_follows_what_lies_beside_the_weights(folder, file):
    before = model_digest(open_model_folder(folder))
    assert before == model_digest(open_model_folder(GRANITE))
    content = bytearray((folder / file).read_bytes())
    content[-3] ^= 1
    (folder / file).write_bytes(content)
    assert before != model_digest(open_model_folder(folder))


# --- what it is told ---


def test_the_chat_template_tells_which_prompt(folder):
    """That of 3.3 has turns, here as another layout of the folder keeps the template."""
    (folder / "chat_template.jinja").unlink()
    change(folder, "tokenizer_config.json", chat_template="<|start_of_role|>{{ today }}")
    tokenizer = Tokenizer.load(folder)
    start = list(tokenizer.speech.start_tokens())
    at = start.index(AUDIO)
    text = tokenizer._tokenizer
    text.encode_special_tokens = False
    wanted = (
        "<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024.\n"
        "Today's Date: December 19, 2024.\nYou are Granite, developed by IBM. You are a helpful AI"
        " assistant<|end_of_text|>\n<|start_of_role|>user<|end_of_role|><|audio|>"
        "can you transcribe the speech into a written format?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>"
    )
    start[at] = tokenizer.speech.audio
    assert start == text.encode(wanted, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "has no chat template beside it"),
        ("[INST]{{ text }}[/INST]", "has a chat template of another kind beside it"),
    ],
)
def test_a_template_that_is_not_known_is_refused_in_a_sentence(folder, template, said):
    (folder / "chat_template.jinja").unlink()
    if template:
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(TokenizerError, match=said):
        Tokenizer.load(folder)


def test_it_is_told_no_language_and_no_context():
    model = Transcriber(golden_runner("granite_speech"))
    assert not model.takes_prompt and not model.languages
    with pytest.raises(LanguageError, match="Granite-speech is not told a language"):
        model.start_tokens("de", "transcribe", "")
    with pytest.raises(LanguageError, match="Granite-speech takes no prompt"):
        model.start_tokens("", "transcribe", "words")


# --- what is none of its kind ---


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"model_type": "granite_speech_plus"},
            "a granite_speech_plus is built otherwise",
        ),
        ({"model_type": "granite_speech5_ctc"}, "a granite_speech5_ctc is built otherwise"),
        ({"model_type": "granite_speech_nar"}, "a granite_speech_nar is built otherwise"),
        ({"architectures": ["GraniteSpeechNarModel"]}, "is of a GraniteSpeechNarModel"),
        ({"text_config__model_type": "granitemoe"}, "model_type is 'granitemoe'"),
        ({"projector_config__cross_attention_frequency": 2}, "cross_attention_frequency is 2"),
        ({"projector_config__encoder_hidden_size": 24}, "encoder_hidden_size is 24"),
        ({"encoder_config__context_size": 13}, r"encoder\.distances \(12\) must reach over"),
        ({"encoder_config__input_dim": 33}, r"input_dim \(33\) is odd"),
        ({"downsample_rate": 4}, r"downsample_rate \(4\) does not divide window_size \(15\)"),
        ({"audio_token_index": 7}, r"token 7 stands for audio there, and <\|audio\|> is token"),
    ],
)
def test_another_model_is_refused_in_a_sentence(folder, fields, said):
    change(folder, "config.json", **fields)
    with pytest.raises(ValueError, match=said):
        load(open_model_folder(folder))


def test_a_missing_shard_is_refused_in_a_sentence(folder):
    shard = sorted(folder.glob("model-*.safetensors"))[-1]
    shard.unlink()
    with pytest.raises(PretrainedError, match=f"{shard.name} is missing: download"):
        load(open_model_folder(folder))
