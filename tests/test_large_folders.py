"""A large folder is read into its mesh without a second copy of it in memory."""

from __future__ import annotations

import sys

import pytest

from bench.large_folder import in_a_process, write_folder

# 0.3 GB of parameters in matrices of up to 32 MB.
SIZES = {
    "text_config": {
        "vocab_size": 1024,
        "hidden_size": 1024,
        "intermediate_size": 8192,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "audio_config": {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")
def test_a_folder_is_never_in_memory_twice(tmp_path):
    """Of four devices each takes its part of a parameter before the next is read."""
    write_folder(tmp_path, SIZES, shard=100 << 20)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    found = in_a_process(tmp_path, "fsdp=4", 4)
    assert 280e6 < found["parameters"] < 340e6
    assert found["peak"] < 1.4 * found["parameters"]
