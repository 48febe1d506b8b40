"""The models of docs/results.md on real speech, one after the other.

    python -m bench.real_speech --encoder=FOLDER [--llama=FILE] [--only=front,m1_seed0,m4_seed0]
        [--speech=../shared/speech] [--out=runs/real] [--dry_run] [-- --config.optim.steps=3000 ...]

The first run, *front*, is a Conformer and its CTC head behind the frozen encoder, with a decoder
too small to matter. All others begin with what it gives.

Every run is one ``mtp_jax.train`` command, printed before it starts; what stands behind ``--`` is
added to each. Stopped at any time, the same command goes on where it stopped: finished runs are
skipped, the one that was under way resumes. `bench/models.py` makes the table.
"""

from __future__ import annotations

import pathlib
import shlex
import subprocess
import sys

from absl import app, flags

_ENCODER = flags.DEFINE_string("encoder", "hf://openai/whisper-base", "Whisper's folder or source")
_LLAMA = flags.DEFINE_string("llama", "", "a LLaMA; without it no llama_ run")
_ONLY = flags.DEFINE_list("only", [], "names of runs; default: all")
_SPEECH = flags.DEFINE_string("speech", "../shared/speech", "folder of the manifests")
_OUT = flags.DEFINE_string("out", "runs/real", "folder of the workdirs")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the commands only")

# The baseline and the model that carries the claim with three seeds each, the others with one.
SEEDS = (0, 1, 2)
CORPORA = ("librispeech", "an4", "ljspeech", "arctic_kathleen", "storybook_en", "asterisk_en")


def heads(kind: str, count: int) -> list[str]:
    return [f"--config.heads.kind={kind}", f"--config.heads.count={count}"]


def behind(front: str, config: str) -> list[str]:
    """What a run takes over from the first one: a decoder from scratch its tokens too."""
    own = [f"--config.tokenizer.model={front}", "--config.data.max_tokens=240"]
    return [f"--config.pretrained.ctc={front}", *(own if config == "whisper" else [])]


def runs(llama: str) -> dict[str, list[str]]:
    """Flags of each run, by its name; what matters most comes first."""
    found: dict[str, list[str]] = {}
    found["front"] = [
        *heads("latent", 1),
        "--config.encoder.subsampling=(2,)",
        "--config.encoder.width=256",
        "--config.encoder.layers=4",
        "--config.encoder.kernel=15",
        "--config.augment.speeds=(0.9, 1.0, 1.1)",
        "--config.train.dtype=bfloat16",
        "--config.decoder.layers=1",
        "--config.decoder.width=64",
        "--config.decoder.query_heads=2",
        "--config.decoder.kv_heads=1",
        "--config.decoder.feedforward=128",
        "--config.adaptor.training_room=0.25",
        "--config.loss.ctc=4.0",
        "--config.tokenizer.vocab_size=128",
        "--config.data.max_tokens=240",
        '--config.evaluation.strategies=("ctc",)',
        "--config.train.dev_every=3000",  # its decoder chooses no checkpoint: the last one counts
    ]
    for seed in SEEDS:
        found[f"m1_seed{seed}"] = [*heads("latent", 1), f"--config.seed={seed}"]
        found[f"m4_seed{seed}"] = [*heads("latent", 4), f"--config.seed={seed}"]
    found["m8"] = heads("latent", 8)
    found["m4_independent"] = heads("independent", 4)
    found["m8_independent"] = heads("independent", 8)
    if llama:
        found["llama_m4"] = [*heads("latent", 4), f"--config.pretrained.decoder={llama}"]
    return found


def main(argv: list[str]) -> int:
    extra = argv[1:]
    everything = runs(_LLAMA.value)
    names = _ONLY.value or list(everything)
    for name in names:
        if name not in everything:
            raise app.UsageError(f"--only={name} is not one of {', '.join(everything)}")
    for name in names:
        workdir = pathlib.Path(_OUT.value) / name
        config = "llama" if name.startswith("llama") else "whisper"
        command = [
            *(sys.executable, "-m", "mtp_jax.train", f"--config=configs/{config}.py"),
            *(f"--workdir={workdir}", f"--config.pretrained.encoder={_ENCODER.value}"),
            f"--config.data.train={'+'.join(f'{_SPEECH.value}/{c}.train.jsonl' for c in CORPORA)}",
            f"--config.data.dev={_SPEECH.value}/librispeech.dev.jsonl",
            f"--config.data.test={_SPEECH.value}/librispeech.test.jsonl",
            *([] if name == "front" else behind(f"{_OUT.value}/front", config)),
            "--config.encoder.dropout=0.15",
            "--config.augment.time_masks=4",
            "--config.augment.time_fraction=0.15",
            *everything[name],
            *extra,
        ]
        print(shlex.join(command), flush=True)
        if _DRY_RUN.value or (workdir / "results.json").exists():
            continue
        if status := subprocess.run(command, check=False).returncode:
            return status  # it said why
    return 0


if __name__ == "__main__":
    app.run(main)
