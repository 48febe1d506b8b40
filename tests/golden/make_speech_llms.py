"""Writes voxtral/ and others: tiny random speech LLMs as `transformers` 5 saves them.

And what they compute, which tests/test_speech_llms.py reads, so that the tests need no PyTorch and
no download. To make them again, from the root of the repository:

    python -m venv /tmp/golden
    /tmp/golden/bin/pip install torch==2.13.0 transformers==5.24.0 mistral-common==1.13.1 soundfile
    /tmp/golden/bin/python tests/golden/make_speech_llms.py voxtral

A folder holds config.json, generation_config.json, the tokenizer's files and shards of safetensors.
Windows are short (0.8 s in place of 30, 2 in place of 8), so that the files are small; the
arithmetic is the same.
``expected.npz`` holds ``audio`` int16[B, T] of int32[B] ``samples``; of row b, each alone,
``features/b`` (as the encoder takes them), ``encoded/b`` float32[T', D], ``embeddings/b``
float32[R, D], ``prompt/b`` int32[P] with a token a row of audio and ``told/b``, the same with a
language; ``text`` int32[B, S] and behind it ``logits/b`` float32[S + 1, V]; and ``greedy`` and
``greedy_told`` int32[B, L], -1 behind the end.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
RATE = 16_000
SAMPLES = (8000, 12_800, 20_871)  # of rows; windows are of 12,800
QWEN_SAMPLES = (5000, 20_871, 40_123)  # with half a second at least, and windows of 32,000
LENGTH, TEXT = 24, 6  # tokens
POSITIONS = 40  # frames of 20 ms in a window
MELS = 16


def waveforms(lengths: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """int16[B, T], tones that come and go, with noise; zeros behind each row."""
    made = np.zeros((len(lengths), max(lengths)), np.int16)
    for row, samples in enumerate(lengths):
        t = np.arange(samples) / RATE
        tones = sum(
            np.sin(2 * np.pi * f * t + 3 * np.sin(2 * np.pi * g * t))
            for f, g in zip(rng.uniform(100, 4000, 4), rng.uniform(1, 6, 4), strict=True)
        )
        x = 20 * tones * (1 + np.sin(2 * np.pi * rng.uniform(1, 4) * t))
        made[row, :samples] = np.rint(x + rng.normal(0, 3, samples))
    return made


def randomise(model: Any, rng: np.random.Generator, ends: dict[int, float]) -> None:
    """Weights large enough that every part of the model tells in the logits.

    Args:
        model: of transformers.
        rng: draws them.
        ends: factors on the rows of the LM head of tokens that end a text, so that texts end.
    """
    for name, parameter in sorted(model.named_parameters()):
        if "embed_positions" in name:
            continue
        x = rng.normal(size=parameter.shape)
        if name.endswith(("norm.weight", "LayerNorm.weight", "ln_post.weight")):
            x = 1 + 0.3 * x
        elif x.ndim > 1:
            x = 1.3 * x / np.prod(x.shape[1:]) ** 0.5
        else:
            x = 0.3 * x
        if name.endswith("embed_tokens.weight"):
            x = x * x.shape[-1] ** 0.5 * 0.5
        if name.endswith("lm_head.weight"):
            for token, factor in ends.items():
                x[token] *= factor
        parameter.data = torch.from_numpy(x.astype(np.float32))


def text_only(generated: torch.Tensor, first: int) -> np.ndarray:
    """int32[LENGTH] generated tokens from place `first` on, -1 behind the end."""
    own = generated[0, first : first + LENGTH].tolist()
    return np.array(own + [-1] * (LENGTH - len(own)), np.int32)


def computed(
    model: Any,
    inputs: Callable[[np.ndarray, str], dict[str, torch.Tensor]],
    encode: Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]],
    words: np.ndarray,
    language: str,
    rng: np.random.Generator,
    lengths: tuple[int, ...] = SAMPLES,
) -> dict[str, np.ndarray]:
    """What a model makes of `waveforms`.

    Args:
        model: of transformers.
        inputs: of the model, for float32[T] samples and a language (empty for none).
        encode: hidden states of the encoder and rows of the prompt, of these inputs.
        words: tokens that a text may be made of.
        language: that is told.
        rng: draws audio and text.
        lengths: samples of each row.
    """
    audio = waveforms(lengths, rng)
    text = rng.choice(words, size=(len(lengths), TEXT)).astype(np.int32)
    out: dict[str, np.ndarray] = {"audio": audio, "samples": np.array(lengths, np.int32)}
    greedy: dict[str, list[np.ndarray]] = {"greedy": [], "greedy_told": []}
    for row, samples in enumerate(lengths):
        wave = audio[row, :samples].astype(np.float32) / 32768
        with torch.no_grad():
            given = inputs(wave, "")
            encoded, embeddings = encode(given)
            out[f"features/{row}"] = given["input_features"].numpy()
            out[f"encoded/{row}"] = encoded.reshape(-1, encoded.shape[-1]).numpy()
            out[f"embeddings/{row}"] = embeddings.reshape(-1, embeddings.shape[-1]).numpy()
            out[f"prompt/{row}"] = given["input_ids"][0].numpy().astype(np.int32)
            fed = torch.cat([given["input_ids"], torch.from_numpy(text[row : row + 1]).long()], 1)
            whole = model(**given | {"input_ids": fed, "attention_mask": torch.ones_like(fed)})
            out[f"logits/{row}"] = whole.logits[0, -TEXT - 1 :].numpy()
            for name, told in (("greedy", ""), ("greedy_told", language)):
                given = inputs(wave, told)
                made = model.generate(**given, do_sample=False, max_new_tokens=LENGTH)
                greedy[name].append(text_only(made, given["input_ids"].shape[1]))
                if name == "greedy_told":
                    out[f"told/{row}"] = given["input_ids"][0].numpy().astype(np.int32)
    return out | {"text": text} | {name: np.stack(rows) for name, rows in greedy.items()}


def save(
    name: str,
    model: Any,
    expected: dict[str, np.ndarray],
    files: dict[str, Any],
    shard: str = "100KB",
) -> None:
    """Writes the folder of a model: its shards, what it computes, and JSON files or tokenizers."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size=shard)
    for file, values in files.items():
        if isinstance(values, transformers.PreTrainedTokenizerBase):
            values.save_pretrained(folder)
            continue
        (folder / file).write_text(json.dumps(values, ensure_ascii=False) + "\n")
    np.savez_compressed(folder / "expected.npz", **expected)


# Voxtral

SPECIAL = 40  # of 1000 in the released files
FIRST = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]"),
    *("[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    "[TOOL_CONTENT]",
)
NAMED = dict(enumerate(FIRST)) | {24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 34: "[TRANSCRIBE]"}
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tekken() -> dict[str, Any]:
    """A tekken.json of the bytes and a few words."""
    words = ["th", "he", "the", " the", " th", " a", "an", "and", " and", "la", "lang", "ng", "en"]
    words += ["de", " la", "er", "in", "ing", "ä", "ö"]
    ranked = [bytes([i]) for i in range(256)]
    ranked += [word.encode() for word in dict.fromkeys(words) if word.encode() not in ranked]
    special = [
        {"rank": i, "token_str": NAMED.get(i, f"<SPECIAL_{i}>"), "is_control": True}
        for i in range(SPECIAL)
    ]
    vocabulary = [
        {"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for i, token in enumerate(ranked)
    ]
    return {
        "config": {
            "pattern": PATTERN,
            "num_vocab_tokens": len(ranked),
            "default_vocab_size": SPECIAL + len(ranked),
            "default_num_special_tokens": SPECIAL,
            "version": "v7",
        },
        "vocab": vocabulary,
        "special_tokens": special,
        "audio": {
            "sampling_rate": RATE,
            "frame_rate": 12.5,
            "audio_encoding_config": {
                "num_mel_bins": MELS,
                "hop_length": 160,
                "window_size": 400,
            },
            "chunk_length_s": POSITIONS / 50,
        },
    }


def voxtral() -> None:
    import io

    import soundfile
    from mistral_common.protocol.transcription.request import TranscriptionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    described = tekken()
    size = described["config"]["default_vocab_size"]
    config = transformers.VoxtralConfig(
        audio_config={
            "hidden_size": 16,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_mel_bins": MELS,
            "max_source_positions": POSITIONS,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": size,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e8,
        },
        audio_token_id=24,
        attn_implementation="eager",
    )
    model = transformers.VoxtralForConditionalGeneration(config).eval()
    rng = np.random.default_rng(2507)
    positions = transformers.models.whisper.modeling_whisper.sinusoids(POSITIONS, 16)
    model.model.audio_tower.embed_positions.weight.data = positions
    randomise(model, rng, {2: 1.25})
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=11
    )
    file = HERE / "voxtral" / "tekken.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(described))
    tokenizer = MistralTokenizer.from_file(str(file))
    extractor = transformers.WhisperFeatureExtractor(feature_size=MELS)

    def inputs(wave: np.ndarray, language: str) -> dict[str, torch.Tensor]:
        stream = io.BytesIO()
        soundfile.write(stream, wave, RATE, format="wav", subtype="PCM_16")
        stream.seek(0)
        asked = {"model": "", "file": stream, "language": language or None}
        tokens = tokenizer.encode_transcription(TranscriptionRequest.from_openai(asked)).tokens
        made = extractor(
            wave,
            sampling_rate=RATE,
            padding=True,
            truncation=False,
            pad_to_multiple_of=POSITIONS * 320,
            return_tensors="pt",
        )
        features = made["input_features"].reshape(MELS, -1, 2 * POSITIONS).transpose(0, 1)
        ids = torch.tensor([tokens])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "input_features": features,
        }

    def encode(given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        made = model.get_audio_features(given["input_features"], return_dict=True)
        return made.last_hidden_state, made.pooler_output

    expected = computed(model, inputs, encode, np.arange(SPECIAL, size), "de", rng)
    texts = ["the and lang:de ab", " Äöü the\n\n123 thing", "lang:en", "naïve — 你好"]
    expected["texts"] = np.array(json.dumps(texts))
    tekkenizer = tokenizer.instruct_tokenizer.tokenizer
    ids = [tekkenizer.encode(text, bos=False, eos=False) for text in texts]
    expected["ids"] = np.array(json.dumps(ids))
    save("voxtral", model, expected, {"tekken.json": described})


# Qwen3-ASR

CHAT = (
    "<|im_start|>system\n{context}<|im_end|>\n<|im_start|>user\n<|audio_start|>{audio}<|audio_end|>"
    "<|im_end|>\n<|im_start|>assistant\n{language}"
)
CONTEXT = "the and"


def byte_level(
    special: tuple[str, ...], plain: tuple[str, ...], **names: str
) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of the bytes and a few words, split as Qwen2's, and added tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as pre

    letters = sorted(pre.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "n"), ("an", "d")]
    merges += [("Ġ", "and"), ("l", "an"), ("e", "r")]
    vocabulary = [*letters, *dict.fromkeys("".join(pair) for pair in merges)]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(vocabulary)}, merges))
    made.normalizer = normalizers.NFC()
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre.Split(Regex(words), behavior="isolated")
    made.pre_tokenizer = pre.Sequence([split, pre.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    for name in special:
        made.add_special_tokens([AddedToken(name, special=True, normalized=False)])
    made.add_tokens([AddedToken(name, special=False, normalized=False) for name in plain])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def qwen3_asr() -> None:
    special = (
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_start|>", "<|audio_end|>"),
        "<|audio_pad|>",
    )
    tokenizer = byte_level(
        special, ("<asr_text>",), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    ids = tokenizer.get_vocab()
    ends = [ids["<|endoftext|>"], ids["<|im_end|>"]]
    config = transformers.Qwen3ASRConfig(
        audio_config={
            "num_mel_bins": MELS,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "d_model": 16,
            "n_window_infer": 200,
            "downsample_hidden_size": 6,
            "output_dim": 32,
        },
        text_config={
            "vocab_size": len(ids) + 5,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "max_position_embeddings": 1024,
            "rope_theta": 1e6,
        },
        audio_token_id=ids["<|audio_pad|>"],
        eos_token_id=ends,
        pad_token_id=ids["<|endoftext|>"],
        attn_implementation="eager",
    )
    model = transformers.Qwen3ASRForConditionalGeneration(config).eval()
    rng = np.random.default_rng(2601)
    randomise(model, rng, {})
    embedding = model.model.language_model.embed_tokens.weight.data
    embedding[ends] *= 1.3
    embedding[len(ids) :] = 0  # the rows that pad a vocabulary are never the likeliest
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=ends, pad_token_id=ids["<|endoftext|>"]
    )
    extractor = transformers.Qwen3ASRFeatureExtractor(feature_size=MELS)

    def inputs(wave: np.ndarray, language: str) -> dict[str, torch.Tensor]:
        made = extractor(
            wave,
            sampling_rate=RATE,
            padding=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = made["attention_mask"]
        rows = len(model.get_audio_features(made["input_features"], mask).pooler_output)
        text = CHAT.format(
            context=CONTEXT if language else "",
            audio="<|audio_pad|>" * rows,
            language=f"language {language}<asr_text>" if language else "",
        )
        tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "input_features": made["input_features"],
            "input_features_mask": mask,
        }

    def encode(given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        made = model.get_audio_features(given["input_features"], given["input_features_mask"])
        return made.last_hidden_state, made.pooler_output

    words = np.arange(ids["<|endoftext|>"])
    expected = computed(model, inputs, encode, words, "German", rng, QWEN_SAMPLES)
    save("qwen3_asr", model, expected, {"tokenizer": tokenizer})


# GLM-ASR


def glmasr() -> None:
    special = (
        *("<|endoftext|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|pad|>"),
        *("<|begin_of_audio|>", "<|end_of_audio|>"),
    )
    tokenizer = byte_level(special, (), eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    ids = tokenizer.get_vocab()
    ends = [ids[name] for name in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    config = transformers.GlmAsrConfig(
        audio_config={
            "hidden_size": 16,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "num_mel_bins": MELS,
            "max_position_embeddings": POSITIONS,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(ids) + 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-5,
            "eos_token_id": ends,
        },
        audio_token_id=ids["<|pad|>"],
        attn_implementation="eager",
    )
    model = transformers.GlmAsrForConditionalGeneration(config).eval()
    model.generation_config = transformers.GenerationConfig(eos_token_id=ends, pad_token_id=ends[0])
    extractor = transformers.WhisperFeatureExtractor(feature_size=MELS)
    window = POSITIONS * 320

    def inputs(wave: np.ndarray, language: str) -> dict[str, torch.Tensor]:
        del language
        made = extractor(
            [wave[at : at + window] for at in range(0, len(wave), window)],
            sampling_rate=RATE,
            padding=True,
            truncation=False,
            pad_to_multiple_of=window,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = made["attention_mask"]
        rows = model.get_audio_features(made["input_features"], mask).pooler_output.shape[0]
        text = "<|user|>\n<|begin_of_audio|>" + "<|pad|>" * rows
        text += "<|end_of_audio|><|user|>\nPlease transcribe this audio into text<|assistant|>\n"
        tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "input_features": made["input_features"],
            "input_features_mask": mask,
        }

    def encode(given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        made = model.get_audio_features(given["input_features"], given["input_features_mask"])
        return made.last_hidden_state, made.pooler_output

    words = np.arange(ids["<|endoftext|>"])
    rng = np.random.default_rng(2512)
    randomise(model, rng, {})
    model.model.language_model.embed_tokens.weight.data[len(ids) :] = 0
    expected = computed(model, inputs, encode, words, "", rng)
    save("glmasr", model, expected, {"tokenizer": tokenizer})


MODELS = {"voxtral": voxtral, "qwen3_asr": qwen3_asr, "glmasr": glmasr}


def main() -> None:
    for name in sys.argv[1:] or MODELS:
        MODELS[name]()


if __name__ == "__main__":
    main()
