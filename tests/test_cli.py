"""What all commands share: --config, how JAX starts, and signals as flags."""

from __future__ import annotations

import ast
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from mtp_jax import cli, interrupts
from mtp_jax.__main__ import COMMANDS
from mtp_jax.config import ConfigError, check_field, load_config
from mtp_jax.distributed import startup

ROOT = Path(__file__).parent.parent


def test_by_default_people_get_the_whisper_of_the_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.model_or_default("mine") == "mine"
    assert Path(cli.model_or_default(None)).samefile(ROOT / "models" / "whisper-base")
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages" / "mtp_jax" / "cli.py"))
    with pytest.raises(flags.Error, match=r"run this in a clone .*--model=hf://"):
        cli.model_or_default(None)
    (tmp_path / "models" / "whisper-base").mkdir(parents=True)  # the current folder is a clone
    assert cli.model_or_default(None) == "models/whisper-base"


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process without JAX's settings of these tests."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    env = kept | environment
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("given", "name", "width"),
    [
        (["--config=mtp"], "mtp", 144),
        (["--config=configs/mtp.py", "--config.decoder.width=72"], "mtp", 72),
        (["--config=scale:1b"], "scale_1b", 2048),
        (["--config=configs/scale.py:125m"], "scale_125m", 768),
    ],
)
def test_every_command_takes_a_config_alike(given, name, width):
    code = (
        "import sys; from mtp_jax import cli; config = cli.ConfigFlag('the run')\n"
        "sys.exit(cli.run(lambda argv: print(config.name, config.value.decoder.width)))"
    )
    done = python("-c", code, *given)
    assert done.stdout.split() == [name, str(width)], done.stderr


@pytest.mark.parametrize("command", [["train"], ["compile", "--topology=v5e:2x2"]])
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("--config=nowhere", "nowhere is neither a .py file nor one of"),
        ("--config=nowhere.py", "nowhere.py is no file"),
        ("--config={broken}", "broken.py fails with ZeroDivisionError (division by zero), line 2"),
    ],
)
def test_a_missing_or_broken_config_is_one_sentence(command, given, sentence, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config():\n    return 1 / 0\n")
    done = python("-m", f"mtp_jax.{command[0]}", *command[1:], given.format(broken=broken))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_fields_with_another_name_now_are_told():
    with pytest.raises(ConfigError, match=r"it is config\.train\.max_loss_ratio now"):
        check_field("train.explosion")
    with pytest.raises(ConfigError, match=r"did you mean config\.optim\.steps"):
        check_field("optim.step")
    with pytest.raises(ConfigError, match=r"config\.optim\.steps is one value"):
        check_field("optim.steps.more")
    check_field("adaptor.training_capacity")


def test_a_config_that_is_none_is_told(tmp_path):
    (tmp_path / "none.py").write_text("def get_config():\n    return None\n")
    with pytest.raises(ConfigError, match="returns no ConfigDict"):
        load_config(tmp_path / "none.py")


START = """
import sys, jax
from mtp_jax.distributed import startup
startup.start(sys.argv[1])
print(jax.devices()[0].platform, jax.config.jax_platforms, jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="pip install libtpu")
@pytest.mark.skipif(startup._has_tpu(), reason="there is a TPU")
def test_libtpu_without_a_tpu_says_nothing(tmp_path):
    done = python("-c", START, str(tmp_path))
    assert done.stderr == ""
    assert done.stdout.split()[2] == str(tmp_path / "compiled")


def test_what_the_user_has_set_is_left_alone(tmp_path):
    theirs = str(tmp_path / "theirs")
    done = python("-c", START, "x", JAX_PLATFORMS="cpu", JAX_COMPILATION_CACHE_DIR=theirs)
    assert done.stdout.split() == ["cpu", "cpu", theirs], done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_a_flag_until_a_loop_looks_at_it(number, status):
    with interrupts.handled():
        os.kill(os.getpid(), number)
        assert interrupts.requested() == number
        with interrupts.deferred():
            interrupts.raise_if_requested()
        with pytest.raises(interrupts.Interrupted) as stopped:
            interrupts.raise_if_requested()
        assert stopped.value.exit_status == status
    interrupts.raise_if_requested()  # outside, nothing is asked for


def test_a_second_ctrl_c_ends_a_process_at_once():
    code = (
        "import os, signal, time; from mtp_jax import interrupts\n"
        "with interrupts.handled():\n"
        "    for _ in range(2): os.kill(os.getpid(), signal.SIGINT); time.sleep(0.5)\n"
        "    time.sleep(60)"
    )
    done = python("-c", code)
    assert done.returncode == 130
    assert done.stderr == "\ninterrupted twice: ended at once\n"


@pytest.mark.parametrize(
    ("number", "sentence"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "SIGTERM")]
)
@pytest.mark.parametrize("script", [False, True])
def test_a_signal_while_a_command_is_imported_is_a_sentence(number, sentence, script, tmp_path):
    start = ["-m", "mtp_jax.export"]
    if script:
        start = [
            "-c",
            "import sys; from mtp_jax import __main__; sys.exit(__main__.main())",
            "export",
        ]
    command = [sys.executable, *start, f"--workdir={tmp_path}", f"--output={tmp_path}/x"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not has_handler(process.pid, number):
        assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (128 + number, f"{sentence}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_handlers_before_it_imports_what_takes_seconds(command):
    source = (ROOT / f"mtp_jax/{command}.py").read_text()
    first = [ast.unparse(statement) for statement in ast.parse(source).body[1:4]]
    assert first == [
        "from __future__ import annotations",
        "from mtp_jax import interrupts",
        "if __name__ == '__main__':\n    interrupts.install()",
    ]


def has_handler(process: int, number: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    # Python has one of SIGINT itself.
    return bool(caught >> (signal.SIGTERM - 1) & caught >> (number - 1) & 1)


def test_signals_at_the_very_end_change_neither_status_nor_output():
    code = (
        "import atexit, os, signal; from mtp_jax import interrupts\n"
        "interrupts.install()\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, pid=os.getpid(), print=print):\n"
        "        kill(pid, 15); kill(pid, 2); print('late')\n"
        "late = Late()\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGTERM)\n"
        "raise SystemExit(3)"
    )
    done = python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (3, "late\n", "")
