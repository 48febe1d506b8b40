"""The scripts of launch/: what they would do, what they do, and when they do it again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SETTINGS = {
    "NAME": "speech",
    "PROJECT": "my-project",
    "ZONE": "europe-west4-b",
    "ACCELERATOR": "v5litepod-16",
    "RUNTIME": "v2-alpha-tpuv5-lite",
    "REPOSITORY": "https://github.com/OWNER/mtp_jax",
    "WORKDIR": "gs://my-bucket/runs/one",
    "IMAGE": "europe-docker.pkg.dev/my-project/speech/mtp_jax",
    "TPU": "tpu-v5-lite-podslice",
    "TOPOLOGY": "4x4",
    "HOSTS": "4",
    "PAUSE": "0",
}
FLAGS = ("--config=configs/librispeech.py", "--config.mesh.fsdp=16")

# Stands for gcloud and kubectl: notes its arguments and acts as the next line of `answers` says:
# an exit status, and what to print.
FAKE = """#!/usr/bin/env bash
folder=$(dirname "$0")
[[ $1 != apply ]] || cat >"$folder/stdin"
for argument in "$@"; do
    [[ $argument != --metadata-from-file=* ]] || cp "${argument##*=}" "$folder/script"
done
printf '%s\\n' "$(basename "$0") ${*//$'\\n'/;}" >>"$folder/calls"
read -r status said <"$folder/answers" || { status=0; said=; }
sed -i 1d "$folder/answers"
echo "$said"
exit "$status"
"""


def launch(script: str, *args: str, path: Path | None = None, **env: str):
    env = {**os.environ, **SETTINGS, **env}
    if path:
        env["PATH"] = f"{path}:{env['PATH']}"
    return subprocess.run(
        [f"launch/{script}", *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    for name in ("gcloud", "kubectl"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "answers").touch()
    (tmp_path / "calls").touch()
    return tmp_path


def scripted(fake: Path, *answers: str) -> None:
    (fake / "answers").write_text("".join(f"{answer}\n" for answer in answers))


def calls(fake: Path) -> list[str]:
    """The verbs of the calls, in order."""
    found = [line.split(" --")[0] for line in (fake / "calls").read_text().splitlines()]
    return [line.removeprefix("gcloud ").removeprefix("compute tpus ") for line in found]


def test_shellcheck_finds_nothing():
    scripts = sorted(str(path) for path in LAUNCH.glob("*.sh"))
    command = [Path(sys.executable).parent / "shellcheck", "-x", "-S", "warning", *scripts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", sorted((ROOT / "docs/launch").glob("*.md")), ids=lambda p: p.stem)
def test_the_page_shows_what_the_script_prints(page, fake):
    """Each ``$ launch/...`` of a page, with the output beneath it; nothing is called."""
    shown = re.findall(r"```console\n\$ launch/(\S+) (.+?)\n(.*?)```", page.read_text(), re.S)
    assert shown
    for script, args, output in shown:
        done = launch(script, *args.split(), path=fake)
        assert done.returncode == 0, done.stderr
        assert done.stdout == output
    assert not calls(fake)


def test_every_script_that_is_launched_has_a_page():
    pages = {page.stem for page in (ROOT / "docs/launch").glob("*.md")}
    parts = {"common", "restart", "worker"}
    assert pages == {path.stem for path in LAUNCH.glob("*.sh")} - parts


@pytest.mark.parametrize(
    ("script", "missing"),
    [("tpu_vm.sh", "ZONE"), ("queued.sh", "WORKDIR"), ("gke.sh", "TOPOLOGY")],
)
def test_a_missing_setting_is_named_with_an_example(script, missing, fake):
    done = launch(script, *FLAGS, path=fake, **{missing: ""})
    assert done.returncode == 2
    assert done.stderr == f"error: set {missing}, such as: {missing}={SETTINGS[missing]}\n"
    assert not calls(fake)


def attempts(folder: Path, *statuses: int) -> list[str]:
    """A command that ends with each of these statuses in turn, noting each start in ``starts``."""
    (folder / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    program = 'cd "$0"; echo x >>starts; read -r status <statuses; sed -i 1d statuses; exit $status'
    return ["bash", "-c", program, str(folder)]


@pytest.mark.parametrize(
    ("statuses", "starts", "status"),
    [
        ((75, 134, 137, 143, 0), 5, 0),  # lost another, aborted, killed, preempted elsewhere
        ((1, 0), 1, 1),
        ((2, 0), 1, 2),
        ((130, 0), 1, 130),
        ((75, 75, 75, 75, 75, 75, 0), 6, 75),  # TRIES
    ],
)
def test_a_command_starts_again_where_that_may_help(tmp_path, statuses, starts, status):
    done = launch("restart.sh", *attempts(tmp_path, *statuses), TRIES="6")
    assert done.returncode == status
    assert len((tmp_path / "starts").read_text().splitlines()) == starts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_told_to_stop_does_not_start_again(tmp_path, number):
    program = (
        'trap "echo saved >>saved; exit 143" TERM; touch started; while :; do sleep 0.05; done'
    )
    started = subprocess.Popen(
        [LAUNCH / "restart.sh", "bash", "-c", program], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "started").exists():
        time.sleep(0.05)
    started.send_signal(number)
    assert started.wait(20) == 143
    assert (tmp_path / "saved").read_text() == "saved\n"


@pytest.mark.parametrize("whole_group", [False, True])  # as a terminal does
def test_ctrl_c_between_two_tries_ends_both(tmp_path, whole_group):
    started = subprocess.Popen(
        [LAUNCH / "restart.sh", *attempts(tmp_path, 75, 0)],
        env={**os.environ, "PAUSE": "60"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert "starting again in 60 s" in started.stderr.readline()
    time.sleep(0.2)
    if whole_group:
        os.killpg(started.pid, signal.SIGINT)
    else:
        started.send_signal(signal.SIGINT)
    assert started.communicate(timeout=20) == (None, "")
    assert started.returncode == 130
    assert (tmp_path / "starts").read_text() == "x\n"


def test_local_processes_get_their_numbers(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        '#!/usr/bin/env bash\necho "$MTP_COORDINATOR $MTP_PROCESSES $MTP_PROCESS_ID $*"'
        f" >>{tmp_path}/started\n[[ $MTP_PROCESS_ID != 1 ]] || exit 1\n"
    )
    python.chmod(0o755)
    done = launch("local.sh", "3", *FLAGS, PYTHON=str(python), PORT="99")
    assert done.returncode == 1  # as one failed
    assert sorted((tmp_path / "started").read_text().splitlines()) == [
        f"localhost:99 3 {i} -m mtp_jax.train {' '.join(FLAGS)}" for i in range(3)
    ]


def test_a_slice_that_is_taken_away_is_made_anew_and_trained_on(fake):
    scripted(
        fake,
        *("1", "1", "0"),  # no results, no slice: make it
        *("1", "1", "0 READY", "1", "1"),  # a start that is cut off
        *("1", "0 PREEMPTED", "0", "1"),  # delete it
        *("1", "1", "0", "1"),  # make it again
        *("1", "0 READY", "0", "0"),  # train to the end
        "0",
    )
    done = launch("tpu_vm.sh", *FLAGS, path=fake, SPOT="1")
    assert done.returncode == 0, done.stderr
    made = [c for c in calls(fake) if not c.startswith(("storage", "tpu-vm describe"))]
    assert made == [
        f"tpu-vm {verb} speech" for verb in ("create", "ssh", "delete", "create", "ssh")
    ]
    text = (fake / "calls").read_text()
    assert "--worker=all" in text
    assert "--spot" in text
    assert "MTP_COORDINATOR=auto" in text


def test_a_queued_resource_that_is_suspended_is_asked_for_again(fake):
    scripted(
        fake,
        *("1", "1", "0"),
        *("1", "0 WAITING_FOR_RESOURCES"),
        *("1", "0 ACTIVE"),
        *("1", "0 SUSPENDED", "0"),
        *("1", "1", "0"),
        *("1", "0 ACTIVE"),
        "0",
    )
    done = launch("queued.sh", *FLAGS, "--config.data.text=it's", path=fake)
    assert done.returncode == 0, done.stderr
    verbs = [c.split()[1] for c in calls(fake) if c.startswith("queued")]
    assert [v for v in verbs if v != "describe"] == ["create", "delete", "create", "delete"]
    script = (fake / "script").read_text()
    assert script.startswith("#!/usr/bin/env bash\nREPOSITORY=https://github.com/OWNER/mtp_jax\n")
    # What a machine makes of it: the flags, each whole.
    settings = script.partition("set -euo")[0]
    told = subprocess.run(
        ["bash", "-c", settings + 'eval "flags=($FLAGS)"; printf "%s\\n" "${flags[@]}"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.splitlines() == [*FLAGS, "--config.data.text=it's"]


def test_the_jobset_is_yaml_with_the_flags_in_it(fake):
    done = launch("gke.sh", *FLAGS, "--config.data.text=it's", path=fake)
    assert done.returncode == 0, done.stderr
    assert calls(fake) == ["kubectl apply"]
    jobset = yaml.safe_load((fake / "stdin").read_text())
    assert jobset["metadata"]["name"] == "speech"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (4, 4, 0)
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    [container] = pod["containers"]
    assert container["args"] == [
        "--workdir=gs://my-bucket/runs/one",
        *FLAGS,
        "--config.data.text=it's",
    ]
    assert container["env"] == [{"name": "MTP_COORDINATOR", "value": "auto"}]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
