"""``mtp-jax COMMAND ...`` does what ``python -m mtp_jax.COMMAND ...`` does."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import mtp_jax
from mtp_jax import interrupts

COMMANDS = ("train", "evaluate", "transcribe", "serve", "calibrate", "export", "pack", "compile")


def _help() -> str:
    lines = ["usage: mtp-jax COMMAND [--FLAG=VALUE ...]", ""]
    for command in COMMANDS:  # read, not imported, which would take seconds
        source = Path(__file__).with_name(f"{command}.py").read_text("utf-8")
        summary = (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]
        lines.append(f"  {command:<12}{summary}")
    return "\n".join([*lines, "", "mtp-jax COMMAND --help lists its flags."])


def main() -> int:
    """Runs a command; its exit status, or 2 if there is no such command."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("--help", "-h", "help"):
        print(_help())
        return 0
    if command == "--version":
        print(f"mtp_jax {mtp_jax.__version__}")
        return 0
    if command not in COMMANDS:
        print(f"error: {command} is not one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    interrupts.install()
    del sys.argv[1]
    runpy.run_module(f"mtp_jax.{command}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
