"""A large released model, read into a mesh: the memory that this takes beside its parameters.

    python -m bench.large_folder [--layers=3] [--devices=4] [--layout=fsdp=4] [--folder=DIR]

Writes a folder with the layout and the widths of Voxtral Small 24B, of whose decoder it has so many
layers, and reads it in a process of its own, whose CPU counts as several devices. The weights are
zeros in sparse files, which take no disk. --layers=3 are 4.7 GB; there must be memory for them.
Linux alone tells how much memory a process has held.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import app, flags

_LAYERS = flags.DEFINE_integer("layers", 3, "of the decoder", lower_bound=1)
_DEVICES = flags.DEFINE_integer("devices", 4, "that the CPU counts as", lower_bound=1)
_LAYOUT = flags.DEFINE_list("layout", ["fsdp=4"], "the mesh, as --mesh of mtp_jax.transcribe")
_FOLDER = flags.DEFINE_string("folder", None, "to write it to, and keep; default: a temporary one")
_READ = flags.DEFINE_string("read", None, "a folder to read in this process")

ROOT = Path(__file__).parent.parent
TOKENIZER = ROOT / "tests/golden/voxtral"
LARGEST = "mistralai/Voxtral-Small-24B-2507"
SHARD = 2 << 30  # bytes


def tensors(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor of the Voxtral that the config.json of a folder describes."""
    import jax

    from mtp_jax.config import Config, Heads, Mesh
    from mtp_jax.distributed.sharding import make_mesh
    from mtp_jax.models.build import build
    from mtp_jax.models.initialization import parameter_shapes
    from mtp_jax.models.params import by_path
    from mtp_jax.models.recogniser import Vocabulary
    from mtp_jax.pretrained.sizes import with_speech_llm
    from mtp_jax.pretrained.speech_llm import speech_llm_architecture
    from mtp_jax.pretrained.voxtral import VOXTRAL
    from mtp_jax.pretrained.weights import Weights
    from mtp_jax.tokenizer.speech_prompts import SpeechPrompt

    source = speech_llm_architecture(folder)
    config = with_speech_llm(Config(heads=Heads(count=1)), source)
    prompt = SpeechPrompt("", 0, (), (0,), (0,), ())
    model = build(config, Vocabulary(source.rows, 0, 0, speech=prompt))
    shapes, _ = parameter_shapes(model, make_mesh(Mesh(1, 1, 1), jax.devices()[:1]))
    weights = Weights(folder, "safetensors", {}, lambda *_: None)
    rules = {rule.ours: rule for rule in VOXTRAL.rules(weights, source.config)}
    for path, shape in by_path(shapes).items():
        for name in rules[path].names(shape.shape):
            yield name, rules[path].their_shape(shape.shape)


def write_folder(folder: Path, values: Mapping[str, Any], shard: int = SHARD) -> None:
    """Writes a Voxtral of zeros in bfloat16 with a tiny tokenizer.

    Args:
        folder: is made.
        values: of config.json, beyond what every Voxtral has.
        shard: bytes of a file, at most, unless a tensor has more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tekken.json", "generation_config.json"):
        shutil.copy(TOKENIZER / name, folder)
    of_tokenizer = json.loads((TOKENIZER / "config.json").read_text())
    whole = {name: of_tokenizer[name] for name in ("model_type", "audio_token_id")}
    whole |= {"text_config": {}, "audio_config": {}, **values}
    (folder / "config.json").write_text(json.dumps(whole))
    files: list[dict[str, Any]] = [{}]
    end, places = 0, {}
    for name, shape in tensors(folder):
        size = 2 * math.prod(shape)
        if files[-1] and end + size > shard:
            files.append({})
        end = end if files[-1] else 0
        files[-1][name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
        places[name] = len(files)
    shown = {n: f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)}
    for n, header in enumerate(files, 1):
        text = json.dumps(header).encode()
        with (folder / shown[n]).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + max(t["data_offsets"][1] for t in header.values()))
    index = {"weight_map": {name: shown[n] for name, n in places.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def resident(peak: bool = False) -> int:
    """Bytes that this process holds in memory, or has held at the most."""
    field = "VmHWM" if peak else "VmRSS"
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "Linux alone has /proc/self/status"
    return int(found[1]) * 1024


def read(folder: Path, mesh: str) -> dict[str, int]:
    """Reads a model into a mesh: bytes of its parameters, and of memory at the peak of reading."""
    import jax

    from mtp_jax.distributed.sharding import make_mesh
    from mtp_jax.flag_checks import mesh_of
    from mtp_jax.inference.load import load
    from mtp_jax.inference.model_folder import open_model_folder

    laid_out = make_mesh(mesh_of(mesh.split(",")))
    model = open_model_folder(folder)
    start = resident()
    runner = load(model, laid_out, dtype="bfloat16")
    jax.block_until_ready(runner.params)
    arrays = jax.tree.leaves(runner.params)
    return {
        "parameters": sum(shard.data.nbytes for x in arrays for shard in x.addressable_shards),
        "peak": resident(peak=True) - start,
    }


def in_a_process(folder: Path, mesh: str, devices: int) -> dict[str, int]:
    """`read` in a process whose CPU counts as several devices."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
    command = [sys.executable, "-m", "bench.large_folder", f"--read={folder}", f"--layout={mesh}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: list[str]) -> None:
    del argv
    mesh = ",".join(_LAYOUT.value)
    if _READ.value:
        print(json.dumps(read(Path(_READ.value), mesh)))
        return
    from mtp_jax.pretrained.voxtral import VOXTRAL

    text = VOXTRAL.released[LARGEST]["text_config"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(_FOLDER.value or temporary)
        write_folder(folder, {"text_config": {**text, "num_hidden_layers": _LAYERS.value}})
        found = in_a_process(folder, mesh, _DEVICES.value)
    print(
        f"{found['parameters'] / 1e9:.2f} GB of parameters on {_DEVICES.value} devices ({mesh}):"
        f" {found['peak'] / 1e9:.2f} GB of memory at the peak,"
        f" {found['peak'] / found['parameters']:.2f} times as much"
    )


if __name__ == "__main__":
    app.run(main)
