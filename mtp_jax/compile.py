"""Plans a run on TPUs with no TPU: compiles its programs and says what they cost a chip.

    python -m mtp_jax.compile --config=configs/scale.py:1b --topology=v5p:4x4x4
        [--utterances_per_chip=16] [--seconds=15] [--tokens=64] [--strategy=greedy,verify]
        [--notrain] [--sweep] [--calls=1,8,64 --call_widths=1,4] [--weights=int8] [--profile]
        [--output=FILE.json]
        [--config.mesh.fsdp=16 ...]
    python -m mtp_jax.compile --model=whisper-large-v3 --topology=v5e:2x2
    python -m mtp_jax.compile --model=voxtral-mini-3b --topology=v5e:2x2

TOPOLOGY is v5e, v5p or v6e and the chips along each axis: v5e:4x4, v5p:4x4x4, v6e:16x16. The
compiler is the real one, from the package ``libtpu``; docs/scaling.md says how its output becomes
seconds, and what to make of them. --sweep compiles the training step on every mesh of data x fsdp
x tensor that can hold it. --calls estimates single decoder calls at these batch sizes. Neither
data nor weights are needed: models on the Hub are known by name.

--model names a whole Whisper or speech LLM in place of a config: its decoding is planned, in
bfloat16, with as many heads as calls are wide, each time on a mesh that suits the batch. With a
config, the same is said of ``config.pretrained.model`` by --calls.
"""

from __future__ import annotations

from mtp_jax import interrupts

if __name__ == "__main__":
    interrupts.install()  # imports take seconds

import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

from absl import flags

from mtp_jax import cli
from mtp_jax.config import Config, ConfigError, from_config_dict, load_config
from mtp_jax.decoding import registry
from mtp_jax.paths import check_writable_file, to_path, write_whole


def planned() -> tuple[str, ...]:
    """Strategies that are planned: drafts of the CTC hypothesis change no program's cost.

    Nor is one planned that measures what its calls cost: they are those of two others.
    """
    return registry.names(
        lambda entry: entry.calls_decoder and not entry.needs_ctc_hypothesis and not entry.adaptive
    )


_CONFIG = cli.ConfigFlag("the run", required=False)
_MODEL = flags.DEFINE_string("model", "", "in place of a config: a whole model, by name or folder")
_TOPOLOGY = flags.DEFINE_string("topology", None, "of the slice, as in v5e:4x4", required=True)
_TRAIN = flags.DEFINE_bool("train", True, "compile the training step")
_STRATEGY = flags.DEFINE_list("strategy", list(planned()), "to compile; empty for none")
_SWEEP = flags.DEFINE_bool("sweep", False, "try every mesh, with the training step alone")
_EACH = flags.DEFINE_integer(
    "utterances_per_chip", 0, "size of the batch; default: that of the config"
)
_SECONDS = flags.DEFINE_float("seconds", 0.0, "an utterance; default: the longest bucket")
_TOKENS = flags.DEFINE_integer("tokens", 0, "an utterance; default: config.data.max_tokens")
_CALLS = flags.DEFINE_list(
    "calls", [], "batch sizes of single decoder calls to estimate; with --model 1,8,32"
)
_WIDTHS = flags.DEFINE_list("call_widths", ["1", "4", "8"], "tokens that these are wide")
_WEIGHTS = cli.weights_flag()
_PROFILE = flags.DEFINE_bool("profile", False, "list the operations that take most time")
_CODEGEN = flags.DEFINE_bool("codegen", False, "generate machine code too: ten times as long")
_OUTPUT = flags.DEFINE_string("output", None, "file for all figures, as JSON")


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for name in _STRATEGY.value:
        if name not in planned():
            raise flags.Error(f"--strategy={name} is not one of {', '.join(planned())}")
    sizes, widths = numbers("calls", _CALLS.value), numbers("call_widths", _WIDTHS.value)
    output = to_path(_OUTPUT.value) if _OUTPUT.value else None
    if output:
        check_writable_file(output, "output")
    config, vocabulary = sized(given := _given_config())
    whole = bool(given.pretrained.model)
    sizes = sizes or [1, 8, 32] * bool(_MODEL.value)

    from mtp_jax.models.int8_weights import check_weights
    from mtp_jax.planning.chips import Slice  # imported late: errors in flags come at once
    from mtp_jax.planning.plan import Planner
    from mtp_jax.planning.programs import Load

    where = Slice.parse(_TOPOLOGY.value)
    folder = pathlib.Path(config.data.cache_dir).expanduser() / "tpu"
    check_weights(_WEIGHTS.value)
    planner = Planner(
        config, vocabulary, where, _TOPOLOGY.value, folder, _CODEGEN.value, _WEIGHTS.value
    )
    seconds = _SECONDS.value or config.data.bucket_seconds[-1]
    tokens = _TOKENS.value or config.data.max_tokens
    each = _EACH.value * where.chips
    load = Load(each or config.data.batch_size, seconds, tokens)
    if not (_SWEEP.value or _MODEL.value):
        data, fsdp, _ = planner.sizes()
        for size in sizes or [load.rows]:
            check_shares(size, data * fsdp)
    rows: list[dict[str, Any]] = []

    def show(row: dict[str, Any]) -> None:
        rows.append(row)
        print(report(row, where.chip.hbm_bytes, _PROFILE.value), flush=True)

    if _SWEEP.value:
        for row in planner.sweep(load):
            show(row)
        best = min((r for r in rows if r["fits"]), key=lambda r: r["step_seconds"], default=None)
        print(f"best: {best['mesh']} (data x fsdp x tensor)" if best else "no mesh fits")
    elif sizes and whole:
        for size in sizes:
            for row in planner.widths(Load(size, seconds, tokens), sorted({1, *widths})):
                show(row)
    elif sizes:
        prompt = round(seconds * 100) // frames_per_embedding(config) + 1
        for size in sizes:
            for width in widths:
                show(planner.call(size, prompt, width))
    else:
        if _TRAIN.value:
            show(planner.train(load))
        for name in _STRATEGY.value:
            show(planner.decode(name, load))
    if output:
        write_whole(output, (json.dumps(rows, indent=1) + "\n").encode())


def check_shares(rows: int, devices: int) -> None:
    """Raises `ConfigError` if a batch of so many utterances is not one of equal shares."""
    if rows % devices:
        raise ConfigError(
            f"a batch of {rows} utterances cannot be shared out over {devices} devices:"
            " give --utterances_per_chip, or another config.mesh"
        )


def _given_config() -> Config:
    """The config, or one that plans decoding of the model.

    Raises:
        flags.Error: not one of the two is given.
    """
    if _CONFIG.is_given == bool(_MODEL.value):
        raise flags.Error("give --config, or --model, but not both")
    return model_config(_MODEL.value) if _MODEL.value else _CONFIG.value


def model_config(model: str) -> Config:
    """Heads as configs/add_heads.py adds them to a `model`, activations in bfloat16."""
    config = from_config_dict(load_config("add_heads"))
    return dataclasses.replace(
        config,
        pretrained=dataclasses.replace(config.pretrained, model=model),
        train=dataclasses.replace(config.train, dtype="bfloat16"),
    )


def numbers(flag: str, values: list[str]) -> list[int]:
    """Positive whole numbers of a flag.

    Raises:
        flags.Error: one is not.
    """
    for value in values:
        if not (value.isdigit() and int(value) > 0):
            raise flags.Error(f"--{flag}={value} must be a positive number")
    return [int(value) for value in values]


def frames_per_embedding(config: Config) -> int:
    """Log-mel frames that become one audio embedding."""
    stride = 2 if config.whisper.present else 1
    for each in config.encoder.subsampling:
        stride *= each
    return stride


def sized(config: Config) -> tuple[Config, Any]:
    """`config` with all its sizes, and its vocabulary; models on the Hub are not asked for.

    Raises:
        ConfigError, PretrainedError, TokenizerError, WorkdirError: a size cannot be found out, or
            the config wants labels made into tokens and has none.
    """
    from mtp_jax.planning.vocabulary import planned_vocabulary
    from mtp_jax.pretrained.published_sizes import with_published_sizes
    from mtp_jax.pretrained.sizes import completed

    whole, known = with_published_sizes(config)
    whole = completed(whole)
    # With the names of its parts, as their tokenizers lie beside them.
    named = dataclasses.replace(whole, pretrained=config.pretrained)
    return whole, planned_vocabulary(named, known)


def report(row: dict[str, Any], hbm: float, profile: bool = False) -> str:
    """What one program costs a chip, in a few lines."""
    name = row.get("program", "train")
    if not row["fits"] and "flops" not in row:
        return f"{name} on {row['mesh']}: does not fit: {row['why']}"
    gib = 2**30
    head = f"{name} on {row['topology']}, mesh {row['mesh']}, {row['rows']} utterances"
    if row.get("weights") == "int8":
        head += ", int8 weights"
    if "width" in row:
        head += f", {row['width']} wide"
    lines = [
        head,
        f"  memory     {row['argument_bytes'] / gib:.2f} GiB arguments,"
        f" {row['temporary_bytes'] / gib:.2f} GiB temporaries, {row['peak_bytes'] / gib:.2f} GiB at"
        f" the peak of {hbm / gib:.1f} GiB: {'fits' if row['fits'] else 'DOES NOT FIT'}",
        f"  work       {row['flops'] / 1e12:.3f} TFLOP, {row['hbm_bytes'] / 1e9:.2f} GB moved",
    ]
    lines += [
        f"  {what['kind']:<19} {what['count']} x over {what['chips']} chips,"
        f" {what['bytes'] / 1e6:.1f} MB in all, {what['largest'] / 1e6:.2f} MB the largest"
        for what in row["collectives"]
    ]
    lines.append(
        f"  roofline   compute {_ms(row['compute_seconds'])}, memory {_ms(row['hbm_seconds'])},"
        f" interconnect {_ms(row['ici_seconds'])} ({_ms(row['exposed_ici_seconds'])} not hidden)"
    )
    if row["cycles"]:
        lines.append(f"  compiler   {row['cycles'] / 1e6:.1f} M cycles of fusions")
    if name == "train":
        lines.append(
            f"  estimate   {_ms(row['step_seconds'])} a step, MFU {row['mfu']:.3f},"
            f" {row['tokens_per_second']:,.0f} tokens/s,"
            f" {row['audio_per_second']:,.0f} s of audio/s"
        )
    elif name == "call":
        lines.append(f"  estimate   {_ms(row['call_seconds'])} a call")
    else:
        slow, fast = row["tokens_per_second"]
        lines.append(
            f"  estimate   {_ms(row['before_seconds'])} up to the first token,"
            f" {_ms(row['call_seconds'])} a call; {slow:,.0f} tokens/s at one a call, {fast:,.0f}"
            " at the most"
        )
    if "acceptance" in row:
        share = row["acceptance"]
        when = "pay from an acceptance of {:.2f}".format
        lines.append(f"  drafts     {'never pay' if share is None else when(share)}")
    if profile:
        lines += [f"    {_ms(seconds):>10}  {what}" for what, seconds in row["spent"].items()]
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


if __name__ == "__main__":
    sys.exit(cli.run(main))
