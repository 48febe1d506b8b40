"""`--mesh` of the commands that decode: what it reads, and what it refuses."""

from __future__ import annotations

import pytest
import soundfile
from absl import flags

from mtp_jax import cli
from mtp_jax.config import Mesh
from mtp_jax.flag_checks import mesh_of
from tests.commands import run
from tests.recordings import RATE, sentences
from tests.speech_llms import GOLDEN


@pytest.mark.parametrize(
    ("sizes", "mesh"),
    [
        (None, None),
        ([], None),
        (["fsdp=4"], Mesh(-1, 4, 1)),
        (["tensor=2", "fsdp=4"], Mesh(-1, 4, 2)),
        (["data=2", "tensor=4"], Mesh(2, 1, 4)),
        (["tensor=-1"], Mesh(1, 1, -1)),
        (["fsdp=2", "tensor=-1"], Mesh(1, 2, -1)),
    ],
)
def test_sizes_make_a_mesh_whose_other_devices_hold_copies(sizes, mesh):
    assert mesh_of(sizes) == mesh


@pytest.mark.parametrize("sizes", ["fsdp", "fsdp=", "fsdp=0", "model=2", "fsdp=2,fsdp=2", "4"])
def test_what_is_no_size_is_refused(sizes):
    with pytest.raises(flags.Error) as error:
        mesh_of(sizes.split(","))
    assert f"--mesh={sizes} must give data, fsdp or tensor a number of devices" in str(error.value)


def test_one_size_takes_the_rest():
    with pytest.raises(flags.Error, match="--mesh=fsdp=-1,tensor=-1 may have one size of -1"):
        mesh_of(["fsdp=-1", "tensor=-1"])


def test_more_devices_than_there_are_are_refused():
    with pytest.raises(flags.Error, match=r"^--mesh .* needs a multiple of 3 devices, and there"):
        cli.lay_out(Mesh(fsdp=3))
    assert cli.lay_out(None) is None
    assert dict(cli.lay_out(Mesh(fsdp=1)).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("command", ["transcribe", "evaluate", "serve", "calibrate"])
def test_every_command_that_decodes_reads_the_flag(command):
    done = run(command, f"--model={GOLDEN / 'voxtral'}", "--mesh=fsdp=none", *_needed(command))
    assert done.status == 2
    assert "--mesh=fsdp=none must give data, fsdp or tensor" in done.err


def _needed(command: str) -> list[str]:
    return ["talk.wav"] if command == "transcribe" else []


def test_a_recording_is_transcribed_on_a_mesh(tmp_path):
    """Of the one device that there is here; tests/test_sharding.py has eight."""
    talk = tmp_path / "talk.wav"
    soundfile.write(talk, sentences(1)[0][:RATE], RATE)
    given = talk, f"--model={GOLDEN / 'voxtral'}", "--batch_size=1"
    alone, meshed = (run("transcribe", *given, *mesh) for mesh in ([], ["--mesh=fsdp=1,tensor=1"]))
    assert alone.status == meshed.status == 0, meshed.err
    assert alone.out == meshed.out != ""
