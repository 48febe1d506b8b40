"""The side of `transformers` in `bench.against_transformers`, which starts this by its path.

It imports nothing of the project, so that it runs in an environment of its own. Each line read is
JSON, ``[rows, width, calls]``; each line written has the seconds and the tokens.
"""

import json
import sys
import time

import numpy as np


def main() -> None:
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        sys.exit(f"{sys.executable}: {error}: pip install 'mtp_jax[bench]'")
    torch.set_num_threads(int(sys.argv[2]))
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    for line in sys.stdin:
        rows, width, calls = json.loads(line)
        size = (rows, 64, model.config.hidden_size)
        prompt = np.random.default_rng(0).normal(0, 0.1, size).astype(np.float32)
        with torch.inference_mode():
            out = model(inputs_embeds=torch.from_numpy(prompt), use_cache=True)
            tokens = out.logits[:, -1:].argmax(-1).expand(rows, width)
            said = []
            start = time.perf_counter()
            for _ in range(calls):
                out = model(input_ids=tokens, past_key_values=out.past_key_values, use_cache=True)
                tokens = out.logits.argmax(-1)
                said.append(tokens.tolist())
            seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "tokens": said}), flush=True)


if __name__ == "__main__":
    main()
