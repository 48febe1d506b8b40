"""The package as users meet it: the console command, config names. `.ci/run` checks the wheel."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

import mtp_jax
from mtp_jax.__main__ import COMMANDS
from mtp_jax.config import ConfigError, config_file, load_config

ROOT = pathlib.Path(__file__).parent.parent


def run(*command: str, cwd: pathlib.Path = ROOT) -> subprocess.CompletedProcess:
    """Runs ``python -m COMMAND``."""
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=cwd)


def test_help_names_every_command_without_jax():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mtp_jax"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout
    assert " jax" not in done.stderr


def test_version():
    assert run("mtp_jax", "--version").stdout.split() == ["mtp_jax", mtp_jax.__version__]


def test_an_unknown_command_gets_one_sentence():
    done = run("mtp_jax", "transcript")
    assert done.returncode == 2
    assert done.stderr.startswith("error: transcript is not one of train, evaluate, transcribe")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("train", ("--config=mtp", "--config.optim.steps=0")),
        ("transcribe", ("nowhere.wav", "--model=x")),
        ("transcribe", ("--help",)),
        ("export", ("--wrong",)),
    ],
)
def test_a_command_does_what_its_module_does(command, flags):
    one, other = run("mtp_jax", command, *flags), run(f"mtp_jax.{command}", *flags)
    assert (one.returncode, one.stdout) == (other.returncode, other.stdout)
    assert one.stderr == other.stderr
    assert one.returncode != 0 or ("--help" in flags and "--encoder" in one.stdout)


def test_configs_go_by_name_or_path():
    assert config_file("mtp") == ROOT / "configs" / "mtp.py"
    assert config_file("mine/mtp.py") == pathlib.Path("mine/mtp.py")
    assert load_config("noisy") == load_config(ROOT / "configs" / "noisy.py")
    assert load_config("mwer", "mtp").init_from == "runs/mtp"
    known = "one of add_ctc, add_heads, an4, .*mtp"
    for name, said in (("mpt", known), ("nowhere.py", r"nowhere\.py is no file")):
        with pytest.raises(ConfigError, match=said):
            load_config(name)


def test_every_command_is_on_the_page_of_commands():
    page = (ROOT / "docs" / "commands.md").read_text()
    assert re.findall(r"^\.\. command:: (.*)$", page, re.M) == list(COMMANDS)
