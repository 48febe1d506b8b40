"""The models of docs/results.md on real speech, one after the other.

    python -m bench.real_speech --encoder=FOLDER [--llama=FILE] [--only=front,m1_seed0,m8_seed0]
        [--speech=../shared/speech] [--out=runs/real] [--dry_run] [-- --config.optim.steps=3000 ...]

The first run, *front*, is a Conformer and its CTC head behind the frozen encoder, with a decoder
too small to matter. All others hear through what it gives, which stays as it is; but the model of
all languages trains it on, and *true_length* and *padded*, which tell two ways to run Whisper
apart, have a smaller one each. ``--front=FOLDER`` has another run, or an exported model, in place
of *front*.

Every run is one ``mtp_jax.train`` command, printed before it starts; what stands behind ``--`` is
added to each. Stopped at any time, the same command goes on where it stopped: finished runs are
skipped, the one that was under way resumes. `bench/models.py` makes the table.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import subprocess
import sys

from absl import app, flags

_ENCODER = flags.DEFINE_string("encoder", "hf://openai/whisper-base", "Whisper's folder or source")
_LLAMA = flags.DEFINE_string("llama", "", "a LLaMA; without it no llama_ run")
_FRONT = flags.DEFINE_string("front", "", "in place of the run of this name")
_ONLY = flags.DEFINE_list("only", [], "names of runs; default: all")
_SPEECH = flags.DEFINE_string("speech", "../shared/speech", "folder of the manifests")
_OUT = flags.DEFINE_string("out", "runs/real", "folder of the workdirs")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the commands only")

# The baseline and the model that carries the claim with three seeds each, the others with one.
SEEDS = (0, 1, 2)
ENGLISH = ("librispeech", "an4", "ljspeech", "arctic_kathleen", "storybook_en", "asterisk_en")
OTHERS = ("kerstin_de", "nathalie_nl", "storybook_fr")
SCHEDULE = ("--config.optim.steps=1500", "--config.train.dev_every=500")
# The other half of the steps, from the model of the first half on.
MORE = ("--config.optim.learning_rate=2e-3", "--config.loss.head_weight=0.1")
LISTENING = '--config.optim.freeze=("whisper/*", "encoder/*", "ctc/*")'
# The trunk learns from the errors of head 1, and the later heads go with it.
TUNED = (
    "--config.optim.learning_rate=2e-4",
    "--config.heads.detached=True",  # after `heads`: the last one counts
    "--config.mwer.search=prefix_beam_ctc",
    '--config.evaluation.strategies=("ctc", "greedy", "verify", "verify_ctc")',
)
HEADS_ONLY = '--config.optim.freeze=("*", "!heads/*")'
# Two layers see to where in the audio the later tokens are; the first heads count most, as the
# others are asked only where these were right.
OWN_LAYERS = ("--config.heads.layers=2", "--config.loss.head_decay=0.7")
ADDED = (
    HEADS_ONLY,
    *OWN_LAYERS,
    "--config.optim.steps=3000",
    "--config.train.dev_every=3000",  # head 1 is as it was
)
FRONT = (
    "--config.adaptor.training_capacity=0.25",  # its decoder need not read all
    "--config.optim.steps=6000",
    "--config.decoder.layers=1",
    "--config.decoder.width=64",
    "--config.decoder.query_heads=2",
    "--config.decoder.kv_heads=1",
    "--config.decoder.feedforward=128",
    "--config.loss.ctc=4.0",
    '--config.evaluation.strategies=("ctc",)',
    "--config.train.dev_every=6000",  # its decoder chooses no checkpoint: the last one counts
)
# What Whisper's outputs say by themselves, as far as a layer behind them can read it.
PROBE = (
    "--config.encoder.layers=1",
    "--config.augment.speeds=(1.0,)",
    "--config.optim.steps=1500",
    "--config.train.dev_every=1500",
)
MULTILINGUAL = (
    "--config.tokenizer.retrained=True",
    "--config.tokenizer.vocab_size=192",
    "--config.optim.steps=2000",
    "--config.train.dev_every=2000",  # dev is of one language: the last checkpoint counts
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One model.

    Attributes:
        flags: its own.
        front: the run whose Conformer and CTC head it hears through; empty where it trains them.
        trunk: the run whose model it begins with.
        config: a file of configs/, and what it is given.
        all_languages: whether it hears German, Dutch and French beside English.
    """

    flags: tuple[str, ...]
    front: str = "front"
    config: str = "whisper.py"
    all_languages: bool = False
    trunk: str = ""


def heads(kind: str, count: int) -> tuple[str, ...]:
    return (
        f"--config.heads.kind={kind}",
        f"--config.heads.count={count}",
        "--config.heads.layers=0",
        "--config.heads.detached=False",
        "--config.loss.head_decay=1.0",
    )


def runs(llama: str) -> dict[str, Run]:
    """Each run by its name; what matters most comes first."""
    one = heads("latent", 1)
    found = {"front": Run((*one, *FRONT), front="")}
    for seed in SEEDS:
        drawn, trunk = f"--config.seed={seed}", f"m1_begun_seed{seed}"
        found[trunk] = Run((*one, drawn))
        found[f"m1_seed{seed}"] = Run((*one, *MORE, drawn), trunk=trunk)
        found[f"m8_seed{seed}"] = Run((*heads("latent", 8), *ADDED, drawn), trunk=f"m1_seed{seed}")
    for name, own in (
        ("m4", heads("latent", 4)),
        ("m4_independent", heads("independent", 4)),
        ("m8_independent", heads("independent", 8)),
    ):
        found[name] = Run((*own, *ADDED), trunk="m1_seed0")
    linear = (*heads("latent", 8), HEADS_ONLY, "--config.optim.steps=500")
    found["m8_linear"] = Run(linear, trunk="m1_seed0")
    # The other ways to come by heads: with the trunk.
    joint = (*heads("latent", 8), *MORE)
    found["m8_joint"] = Run(joint, trunk="m1_begun_seed0")
    light = "--config.loss.head_weight=0.02"
    found["m8_joint_light"] = Run((*joint, light), trunk="m1_begun_seed0")
    found["m8_from_scratch"] = Run((*heads("latent", 8), "--config.optim.steps=3000"))
    for seed in SEEDS:  # as many steps of either, from one model
        same = (*heads("latent", 8), *OWN_LAYERS, *TUNED, f"--config.seed={seed}")
        for name, weight in (("mwer", 1), ("ce", 0)):
            found[f"{name}_seed{seed}"] = Run(
                (*same, f"--config.mwer.weight={weight}"),
                config="mwer.py:whisper",
                trunk="m8_seed0",
            )
    if llama:
        pretrained = f"--config.pretrained.decoder={llama}"
        room = "--config.adaptor.training_capacity=0.25"
        found["llama_m1"] = Run((*one, pretrained, room), config="llama.py")
        found["llama_m4"] = Run(
            (*heads("latent", 4), HEADS_ONLY, "--config.heads.layers=1", pretrained, room),
            config="llama.py",
            trunk="llama_m1",
        )
    for name, padded in (("true_length", False), ("padded", True)):
        spoken = f"--config.data.train={_SPEECH.value}/librispeech.train.jsonl"
        scored = (*one, *FRONT, *PROBE, spoken, f"--config.whisper.padded={padded}")
        found[name] = Run(scored, front="")
    # All goes on from English: front, decoder and heads, with tokens for four languages.
    found["m8_multilingual"] = Run(MULTILINGUAL, front="", trunk="m8_seed0", all_languages=True)
    return found


def begun(run: Run) -> list[str]:
    """What a run takes over from others: a decoder from scratch the tokens of CTC too."""
    found = []
    if run.front:
        front = _FRONT.value or f"{_OUT.value}/{run.front}"
        found.append(f"--config.pretrained.ctc={front}")
        if "llama" not in run.config:
            # In training CTC errs about as often as on dev.
            found += ["--config.encoder.dropout=0.3", LISTENING]
            found.append(f"--config.tokenizer.model={front}")
        if run.config == "whisper.py":
            found += SCHEDULE
    if run.trunk:
        found.append(f"--config.init_from={_OUT.value}/{run.trunk}")
    return found


def data(all_languages: bool) -> list[str]:
    """What a run is trained on, chosen by and tested with."""

    def manifests(split: str, *corpora: str) -> str:
        return "+".join(f"{_SPEECH.value}/{corpus}.{split}.jsonl" for corpus in corpora)

    if not all_languages:
        return [
            f"--config.data.train={manifests('train', *ENGLISH)}",
            f"--config.data.dev={manifests('dev', 'librispeech')}",
            f"--config.data.test={manifests('test', 'librispeech')}",
        ]
    scored = (f"commonvoice_{language}" for language in ("de", "nl", "fr"))
    return [
        f"--config.data.train={manifests('train', *ENGLISH, *OTHERS)}",
        f"--config.data.dev={manifests('dev', 'librispeech')}",
        f"--config.data.test={manifests('dev', *scored)}",
        "--config.evaluation.normalizer=basic",
    ]


def main(argv: list[str]) -> int:
    extra = argv[1:]
    everything = runs(_LLAMA.value)
    names = _ONLY.value or list(everything)
    for name in names:
        if name not in everything:
            raise app.UsageError(f"--only={name} is not one of {', '.join(everything)}")
    for name in names:
        run, workdir = everything[name], pathlib.Path(_OUT.value) / name
        command = [
            *(sys.executable, "-m", "mtp_jax.train", f"--config=configs/{run.config}"),
            *(f"--workdir={workdir}", f"--config.pretrained.encoder={_ENCODER.value}"),
            *data(run.all_languages),
            *begun(run),
            "--config.train.dtype=bfloat16",
            *run.flags,
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
