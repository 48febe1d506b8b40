"""Writes whisper/: a tiny random Whisper as Hugging Face keeps it, and what it computes.

tests/test_whisper_decoder.py reads it, so that the tests need no PyTorch and no download. To make
it again, from the root of the repository, in the environment of make_llama.py:

    /tmp/golden/bin/python tests/golden/make_whisper.py

The folder has config.json, generation_config.json, tokenizer.json and safetensors. Of transformers,
``expected.npz`` holds ``features`` float32[B, T, Z]; ``text`` int32[B, S] and, behind the tokens
that begin it, ``logits`` float32[B, S + 1, V]; ``languages`` int32[B], as detected; ``greedy``
int32[B, L], without the tokens before the text and with EOS behind its end, in the language
detected; ``translated``, the same of translations from German, behind an earlier text; and
``timed`` and ``timed_translated``, these with timestamps.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

FOLDER = Path(__file__).with_name("whisper")
LANGUAGES = ("en", "de", "fr", "nl")
SPECIAL = (
    *("<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES)),
    *("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"),
    "<|notimestamps|>",
)
TIMES = 1501
ROWS, FRAMES, LENGTH = 6, 40, 24
EARLIER = "ab"


def tokenizer() -> Tokenizer:
    """Bytes, a few merges, and Whisper's special tokens but for those of times."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("Ġ", "a"), ("n", "d")]
    vocabulary = [*letters, *("".join(pair) for pair in merges)]
    bpe = models.BPE({piece: i for i, piece in enumerate(vocabulary)}, merges)
    made = Tokenizer(bpe)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return made


def model(ids: dict[str, int], size: int, rng: np.random.Generator) -> transformers.WhisperModel:
    eos = ids["<|endoftext|>"]
    config = transformers.WhisperConfig(
        vocab_size=size,
        num_mel_bins=6,
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        max_source_positions=FRAMES // 2,
        max_target_positions=64,
        pad_token_id=eos,
        bos_token_id=eos,
        eos_token_id=eos,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        attn_implementation="eager",
    )
    whisper = transformers.WhisperForConditionalGeneration(config).eval()
    for name, parameter in whisper.named_parameters():
        if "encoder.embed_positions" in name:
            continue
        x = rng.normal(size=parameter.shape)
        if name.endswith("norm.weight"):
            x = 1 + 0.3 * x
        elif x.ndim > 1:
            x = 1.5 * x / np.prod(x.shape[1:]) ** 0.5
        if name.endswith("embed_tokens.weight"):
            x[eos] *= 1.5  # texts end
        parameter.data = torch.from_numpy(x.astype(np.float32))
    # Times are now likely and now not, and now the earliest is the likeliest and now the latest.
    common, slope = rng.normal(size=(2, 16))
    place = np.linspace(-1, 1, TIMES)[:, None]
    embedding = whisper.model.decoder.embed_tokens.weight.data
    times = common + slope * place + 0.2 * rng.normal(size=(TIMES, 16))
    embedding[-TIMES:] = torch.from_numpy(times.astype(np.float32))
    whisper.generation_config = transformers.GenerationConfig(
        eos_token_id=eos,
        bos_token_id=eos,
        pad_token_id=eos,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        no_timestamps_token_id=ids["<|notimestamps|>"],
        suppress_tokens=[5, 7, 11, *range(ids["<|startoftranscript|>"], size)],
        begin_suppress_tokens=[ids["Ġ"], eos],
        lang_to_id={f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES},
        task_to_id={name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")},
        is_multilingual=True,
        max_initial_timestamp_index=50,
        alignment_heads=[[0, 1], [1, 0]],
        max_length=64,
    )
    return whisper


def text_only(generated: torch.Tensor, first: int, eos: int) -> np.ndarray:
    """Generated tokens from place `first` on, `LENGTH` of them, EOS behind the end."""
    rows = np.full((len(generated), LENGTH), eos, np.int32)
    for row, tokens in zip(rows, generated.tolist(), strict=True):
        own = tokens[first : first + LENGTH]
        row[: len(own)] = own
    return rows


def made_with(seed: int) -> dict[str, np.ndarray]:
    """Writes the model of `seed`, and returns what it computes."""
    rng = np.random.default_rng(seed)
    shutil.rmtree(FOLDER, ignore_errors=True)
    made = tokenizer()
    ids = made.get_vocab(with_added_tokens=True)
    size = ids["<|notimestamps|>"] + 1 + TIMES
    whisper = model(ids, size, rng)
    whisper.save_pretrained(FOLDER)
    made.save(str(FOLDER / "tokenizer.json"))
    features = rng.normal(size=(ROWS, FRAMES, 6)).astype(np.float32)
    text = rng.integers(ids["Ġ"], size=(ROWS, 6)).astype(np.int32)
    scored = torch.from_numpy(features.transpose(0, 2, 1))
    start = [ids[f"<|{name}|>"] for name in ("startoftranscript", "fr", "transcribe")]
    start += [ids["<|notimestamps|>"]]
    fed = np.concatenate([np.tile(start, (ROWS, 1)), text], axis=1)
    eos = ids["<|endoftext|>"]
    earlier = [ids["<|startofprev|>"], *made.encode(EARLIER, add_special_tokens=False).ids]
    with torch.no_grad():
        logits = whisper(scored, decoder_input_ids=torch.from_numpy(fed).long()).logits
        encoded = whisper.model.encoder(scored)
        languages = whisper.detect_language(encoder_outputs=encoded)
        begin = np.tile(start, (ROWS, 1))
        begin[:, 1] = languages.numpy()
        german = [*earlier, start[0], ids["<|de|>"], ids["<|translate|>"], start[3]]

        def texts(begin: np.ndarray, timed: bool) -> np.ndarray:
            """Row by row: transformers decodes a batch in one language."""
            options = {"do_sample": False, "max_new_tokens": LENGTH, "return_timestamps": timed}
            if timed:
                begin = begin[:, :-1]  # without <|notimestamps|>
                options |= {
                    "suppress_tokens": [5, 7, 11, *range(start[0], start[3] + 1)],
                    # Else it decodes what it takes for the rest of the audio.
                    "force_unique_generate_call": True,
                    "return_dict_in_generate": True,
                }
            rows = []
            for i in range(ROWS):
                given = torch.from_numpy(begin[i : i + 1])
                made = whisper.generate(scored[i : i + 1], decoder_input_ids=given, **options)
                if timed:
                    made = made.sequences[:, begin.shape[1] :]
                rows.append(text_only(made, 0, eos))
            return np.concatenate(rows)

        german = np.tile(german, (ROWS, 1))
        found = {
            "greedy": texts(begin, False),
            "translated": texts(german, False),
            "timed": texts(begin, True),
            "timed_translated": texts(german, True),
        }

    return {
        "features": features,
        "text": text,
        "logits": logits[:, len(start) - 1 :].numpy(),
        "languages": languages.numpy().astype(np.int32),
        **found,
    }


def main() -> None:
    np.savez_compressed(FOLDER / "expected.npz", **made_with(seed=10))  # texts differ, and end


if __name__ == "__main__":
    main()
