"""Exports a trained recogniser to one folder: safetensors, config, tokenizer.

    python -m mtp_jax.export --workdir=DIR --output=DIR [--dtype=float16] [--pretrained=SOURCE]
        [--heads=6]

The folder serves wherever a workdir does (``mtp_jax.evaluate --workdir``, ``--config.init_from``),
and `transformers` loads its decoder. LoRA is merged. A frozen Whisper encoder, or the whole Whisper
or speech LLM that heads were added to, stays where it is, or where ``--pretrained`` says that
others find it.
"""

from __future__ import annotations

from mtp_jax import interrupts

if __name__ == "__main__":
    interrupts.install()  # imports take seconds

import sys

from absl import flags

from mtp_jax import cli
from mtp_jax.paths import to_path

_MODEL = cli.model_flag()
_OUTPUT = flags.DEFINE_string("output", None, "folder to write", required=True)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "float16", "bfloat16", "int8"],
    "of parameters; int8 is for heads of a Whisper or a speech LLM",
)
_HEADS = cli.heads_flag()
_PRETRAINED = cli.pretrained_flag(
    "source of the Whisper or speech LLM (or frozen encoder) that the export names; default: that"
    " of training",
    "",
)


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    if "://" in _OUTPUT.value:
        raise flags.Error(f"--output={_OUTPUT.value} lies in a bucket: export here, and copy")
    from mtp_jax.inference.load import load  # imported late, for the flags
    from mtp_jax.inference.model_folder import open_model_folder
    from mtp_jax.pretrained.exported import check_target, export

    workdir, folder = open_model_folder(_MODEL.value), to_path(_OUTPUT.value)

    check_target(workdir, folder)
    trained = load(workdir, heads=_HEADS.value)
    interrupts.raise_if_requested()
    export(trained, workdir, folder, _DTYPE.value, _PRETRAINED.value)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(cli.run(main))
