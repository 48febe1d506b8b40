"""Exports a trained recogniser to one folder: safetensors, config, tokenizer.

    python -m mtp_jax.export --workdir=DIR --output=DIR [--dtype=float16] [--encoder=SOURCE]

The folder serves wherever a workdir does (``mtp_jax.evaluate --workdir``, ``--config.init_from``),
and `transformers` loads its decoder. LoRA is merged; a frozen Whisper encoder stays where it is, or
where ``--encoder`` says that others find it.
"""

from __future__ import annotations

from mtp_jax import interrupts

if __name__ == "__main__":
    interrupts.install()  # imports take seconds

import sys

from absl import flags

from mtp_jax import cli
from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.paths import to_path

_WORKDIR = flags.DEFINE_string("workdir", None, "of a trained model", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "folder to write", required=True)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "float16", "bfloat16"], "of parameters")
_ENCODER = flags.DEFINE_string(
    "encoder", "", "source of the frozen encoder that the export names; default: that of training"
)


def main(argv: list[str]) -> None:
    cli.refuse_arguments(argv)
    if "://" in _OUTPUT.value:
        raise flags.Error(f"--output={_OUTPUT.value} lies in a bucket: export here, and copy")
    workdir, folder = Workdir(_WORKDIR.value), to_path(_OUTPUT.value)
    workdir.read_config()
    from mtp_jax.inference.load import load
    from mtp_jax.pretrained.exported import check_target, export  # imported late, for the flags

    check_target(workdir, folder)
    trained = load(workdir)
    interrupts.raise_if_requested()
    export(trained, workdir, folder, _DTYPE.value, _ENCODER.value)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(cli.run(main))
