"""Writes granite_speech/, as make_speech_llms.py does the others: same arithmetic, smaller sizes.

    /tmp/golden/bin/pip install torchaudio==2.11.1 peft==0.21.2  # and make_speech_llms.py's
    /tmp/golden/bin/python tests/golden/make_granite_speech.py

Of torchaudio its Python alone is needed: where its ``lib/`` does not load, being built for another
PyTorch, remove that folder.
Attention sees 10 frames in place of 200, and a LoRA adapter is in files of its own, as in 3.3.
Logits are divided by ``logits_scaling``, which this class of transformers 5.24 leaves out. Beside
what the others have, ``ctc/b`` float32[T', labels] are the logits of the encoder's CTC head.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import peft
import torch
import transformers
from make_speech_llms import HERE, MELS, byte_level, computed, randomise, save

SAMPLES = (3200, 4960, 9111)  # of rows: 21, 32 and 57 frames, which are 10, 16 and 28 states
CHAT = "USER: {{ messages[0].content }}\n ASSISTANT:"
QUESTION = "can you transcribe the speech into a written format?"


def adapted(model: Any, rng: np.random.Generator) -> peft.PeftModel:
    """`model`, changed to have a LoRA adapter of random matrices on the decoder's q and v."""
    lora = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"])
    made = peft.get_peft_model(model, lora)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            x = torch.from_numpy(rng.normal(0, 0.3, parameter.shape))
            parameter.data = x.bfloat16().float()
    return made.eval()


def main() -> None:
    special = ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|audio|>")
    tokenizer = byte_level(special, (), eos_token="<|end_of_text|>", pad_token="<|end_of_text|>")
    tokenizer.chat_template = CHAT
    ids, scaling = tokenizer.get_vocab(), 4.0
    end = ids["<|end_of_text|>"]
    config = transformers.GraniteSpeechConfig(
        encoder_config={
            "input_dim": 2 * MELS,
            "num_layers": 2,
            "hidden_dim": 12,
            "num_heads": 2,
            "dim_head": 8,
            "output_dim": 11,
            "context_size": 10,
            "max_pos_emb": 12,
            "conv_kernel_size": 7,
        },
        projector_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 20,
            "cross_attention_frequency": 1,
            "encoder_hidden_size": 12,
        },
        text_config={
            "model_type": "granite",
            "vocab_size": len(ids) + 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-5,
            "embedding_multiplier": 0.5,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.8,
            "logits_scaling": scaling,
            "eos_token_id": end,
        },
        audio_token_index=ids["<|audio|>"],
        attn_implementation="eager",
    )
    model = transformers.GraniteSpeechForConditionalGeneration(config).eval()
    rng = np.random.default_rng(3304)
    randomise(model, rng, {})
    embedding = model.model.language_model.embed_tokens.weight.data
    embedding[end] *= 2
    embedding[len(ids) :] = 0
    for name, statistics in sorted(model.named_buffers()):
        if name.endswith("running_mean"):
            statistics.copy_(torch.from_numpy(rng.normal(0, 0.3, statistics.shape)))
        if name.endswith("running_var"):
            statistics.copy_(torch.from_numpy(rng.uniform(0.5, 2, statistics.shape)))
    # Stored in half of the bytes, as the released ones are; the angles of positions stay as they
    # are, which are no part of what is stored.
    for x in model.state_dict().values():
        x.copy_(x.bfloat16())
    model.generation_config = transformers.GenerationConfig(eos_token_id=end, pad_token_id=end)
    base = copy.deepcopy(model)
    adapter = adapted(model, rng)
    extractor = transformers.GraniteSpeechFeatureExtractor(n_mels=MELS)

    def inputs(wave: np.ndarray, language: str) -> dict[str, torch.Tensor]:
        del language
        made = extractor(torch.from_numpy(wave))
        audio = "<|audio|>" * made["audio_embed_sizes"][0]
        tokens = tokenizer.apply_chat_template(
            [{"role": "user", "content": audio + QUESTION}], return_tensors="pt", return_dict=True
        )["input_ids"]
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "input_features": made["input_features"],
            "input_features_mask": made["input_features_mask"],
        }

    def encode(given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        made = model.get_audio_features(given["input_features"])
        return made.last_hidden_state, made.pooler_output

    expected = computed(model, inputs, encode, np.arange(end), "", rng, SAMPLES)
    for row in range(len(SAMPLES)):
        pairs = expected[f"features/{row}"]  # [1, T / 2, 2 Z]
        expected[f"features/{row}"] = pairs.reshape(1, -1, MELS).transpose(0, 2, 1)
        expected[f"logits/{row}"] /= scaling  # which this class of 5.24 leaves out
        with torch.no_grad():
            states = torch.from_numpy(expected[f"encoded/{row}"])
            expected[f"ctc/{row}"] = model.model.encoder.out(states).numpy()
    save("granite_speech", base.bfloat16(), expected, {"tokenizer": tokenizer}, "40KB")
    adapter.peft_config["default"].base_model_name_or_path = ""
    adapter.bfloat16().save_pretrained(HERE / "granite_speech")
    (HERE / "granite_speech" / "README.md").unlink()  # of the adapter, with blanks to fill in


if __name__ == "__main__":
    main()
