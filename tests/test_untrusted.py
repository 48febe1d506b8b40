"""Models from strangers: each is refused in a sentence, and none waits, grows or leads elsewhere.

What each case would do otherwise stands beside it. Memory and time are bounded by the machine
alone: a case that is let through fails by its text, hangs or fills the memory.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mtp_jax import pretrained
from mtp_jax.checkpoints.workdir import Workdir, WorkdirError
from mtp_jax.config import Pretrained
from mtp_jax.inference.model_folder import open_model_folder
from mtp_jax.pretrained import PretrainedError
from mtp_jax.pretrained.parts import revisions
from mtp_jax.tokenizer import Tokenizer, TokenizerError, bounds
from tests.commands import run
from tests.pretrained import whisper_variables, write_ctranslate2
from tests.recordings import noise_folder

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = ("whisper", "qwen3_asr", "voxtral", "granite_speech", "glmasr")
DEEP = "[" * 100_000 + "]" * 100_000


def refused(folder: Path) -> str:
    """What transcribing with the model says."""
    recordings = folder.parent / "recordings"
    if not recordings.exists():
        recordings.mkdir()
        noise_folder(recordings, 1, 4000, 5000)
    done = run("transcribe", recordings / "0.wav", f"--model={folder}")
    assert done.status == 1, done
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err
    assert len(done.err) < 600
    return done.err


@pytest.fixture
def folder(tmp_path) -> Path:
    """A Whisper's, sound as yet."""
    return Path(shutil.copytree(GOLDEN / "whisper", tmp_path / "model"))


def link_to_a_secret(file: Path) -> None:
    secret = file.parent.parent / "secret"
    secret.write_text('{"password": 1}')
    file.unlink()
    file.symlink_to(secret)


def link_to_a_device(file: Path) -> None:  # would be read for ever
    file.unlink()
    file.symlink_to("/dev/zero")


def pipe(file: Path) -> None:  # would wait for ever
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def sparse(file: Path) -> None:  # takes no place on the disk, and would take all of the memory
    os.truncate(file, 1 << 40)


def deep(file: Path) -> None:
    file.write_text(DEEP)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("damage", [link_to_a_secret, link_to_a_device, pipe, sparse, deep])
def test_a_file_that_leads_elsewhere_or_never_ends_is_refused(folder, name, damage):
    damage(folder / name)
    said = refused(folder)
    assert name in said
    if "link" in damage.__name__:
        assert "is a link out of the folder" in said
    assert "password" not in said


def test_links_within_a_folder_and_a_hub_cache_are_followed(folder, tmp_path):
    (folder / "config.json").rename(folder / "other.json")
    (folder / "config.json").symlink_to("other.json")
    open_model_folder(folder)
    snapshot = tmp_path / "hub" / "models--o--n" / "snapshots" / "abc"
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted((GOLDEN / "whisper").iterdir())):
        shutil.copy(file, blobs / str(i))
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    open_model_folder(snapshot)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../secret.json")
    with pytest.raises(WorkdirError, match="is a link out of the folder"):
        open_model_folder(snapshot)
    with pytest.raises(PretrainedError, match="is a link out of the folder"):
        pretrained.resolve(str(snapshot))


def test_a_workdir_may_have_its_checkpoints_on_another_disk(workdir, tmp_path):
    copy = Path(shutil.copytree(workdir, tmp_path / "copy"))
    (copy / "best").rename(tmp_path / "elsewhere")
    (copy / "best").symlink_to(tmp_path / "elsewhere")
    open_model_folder(copy)


@pytest.mark.parametrize("content", [DEEP, '{"a":' * 100_000 + "1" + "}" * 100_000])
def test_deep_configs_of_workdirs_are_refused(tmp_path, content):
    for name in ("config.json", "parts.json", "tau.json"):
        (tmp_path / name).write_text(content)
    workdir = Workdir(tmp_path)
    for read in (workdir.read_config, workdir.read_parts, workdir.read_tau):
        with pytest.raises(WorkdirError, match="nested too deeply"):
            read()


def edited(path: Path, chosen: Callable[[str], bool], value: object) -> None:
    """Sets every number of a JSON file, at any depth, whose name is `chosen`."""

    def walk(values: object) -> None:
        if isinstance(values, dict):
            for key, old in values.items():
                if chosen(key) and type(old) is int:
                    values[key] = value
                walk(old)

    values = json.loads(path.read_text())
    walk(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [10**9, 10**12, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["layers", "position", "size", "head", "dim", "window"])
def test_sizes_that_no_model_has_are_refused_before_anything_is_made(tmp_path, family, value, part):
    """A thousand million layers would take as many names, and positions a table of terabytes."""
    folder = Path(shutil.copytree(GOLDEN / family, tmp_path / "model"))
    before = (folder / "config.json").read_text()
    edited(folder / "config.json", lambda key: part in key, value)
    if (folder / "config.json").read_text() == before:
        return  # this family's config names none
    try:
        open_model_folder(folder)
    except (PretrainedError, WorkdirError) as error:
        assert "config" in str(error)
    else:  # the number is one that is not read
        assert value != 10**9 or part not in ("layers", "dim")


def test_sizes_that_do_not_add_up_are_refused(folder):
    """The config is within bounds, and the weights are others."""
    for part, value in (("layers", 99), ("position", 1 << 24), ("num_mel_bins", 1 << 20)):
        shutil.copy(GOLDEN / "whisper" / "config.json", folder)
        edited(folder / "config.json", lambda key, part=part: part in key, value)
        with pytest.raises(PretrainedError, match=r"does not fit|is not Whisper's table"):
            pretrained.whisper_digest(folder)
    edited(folder / "config.json", lambda key: "position" in key, 1 << 24)
    assert "must be at most an hour" in refused(folder)


def test_lying_safetensors_are_refused(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]

    def write(changed: dict) -> None:
        content = json.dumps(changed).encode()
        file.write_bytes(struct.pack("<Q", len(content)) + content + whole[8 + size :])

    def check() -> None:
        with pytest.raises(PretrainedError, match="no complete safetensors file"):
            pretrained.open_weights(folder)

    for changed in (
        header[names[0]] | {"shape": [1 << 62, 8]},
        header[names[0]] | {"data_offsets": [0, 1 << 62]},
        header[names[1]],
    ):
        write(header | {names[0]: changed})
        check()
    for length in (1 << 63, len(whole), 0):
        file.write_bytes(struct.pack("<Q", length) + whole[8:])
        check()
    file.write_bytes(whole)
    tensors = load_file(file)
    for of in (lambda x: np.zeros((0,) * x.ndim, x.dtype), lambda x: np.zeros(x.shape, np.int8)):
        save_file({name: of(x) for name, x in tensors.items()}, file)
        with pytest.raises(PretrainedError, match="is not Whisper's table"):
            pretrained.whisper_digest(folder)


def model_bin(folder: Path, name: str, shape: tuple[int, ...], kind: int, content: bytes) -> None:
    """A CTranslate2 file of one tensor."""

    def text(word: str) -> bytes:
        return struct.pack("<H", len(word) + 1) + word.encode() + b"\0"

    sizes = b"".join(struct.pack("<I", size) for size in shape)
    (folder / "model.bin").write_bytes(
        struct.pack("<I", 6)
        + text("WhisperSpec")
        + struct.pack("<II", 3, 1)
        + text(name)
        + struct.pack("<B", len(shape))
        + sizes
        + struct.pack("<BI", kind, len(content))
        + content
        + struct.pack("<I", 0)
    )


def test_lying_ctranslate2_files_are_refused(tmp_path):
    for shape, content in (((1,) * 255, bytes(4)), ((0, *(2**32 - 1,) * 8), b""), ((0,), b"")):
        model_bin(tmp_path, "encoder/conv1/weight", shape, 0, content)
        with pytest.raises(PretrainedError, match="is of shape"):
            pretrained.open_weights(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"PK\3\4" + b"\x80\x02cos\nsystem\n(S'false'\ntR." * 9)
    with pytest.raises(PretrainedError, match="is no CTranslate2 model"):
        pretrained.open_weights(tmp_path)


@pytest.mark.parametrize("shape", [(3,), (), (1,), (2, 2)])
def test_scales_of_other_rows_are_refused(tmp_path, shape):
    variables = whisper_variables()
    name = next(key for key, x in variables.items() if x.ndim == 2 and "linear" in key)
    variables[name] = np.ones(variables[name].shape, np.int8)
    variables[f"{name}_scale"] = np.ones(shape, np.float32)
    path = write_ctranslate2(tmp_path / "m", variables)
    with pytest.raises(PretrainedError, match="is no scale of the rows"):
        pretrained.open_weights(path)


@pytest.mark.parametrize("kind", [0, 7, 8, 12])
def test_endless_lists_in_gguf_files_are_refused(tmp_path, kind):
    """Of bytes there would be as many steps as the header says, and memory for each."""
    file = tmp_path / "m.gguf"
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    file.write_bytes(head + struct.pack("<IIQ", 9, kind, 1 << 60))
    with pytest.raises(PretrainedError, match="is no complete GGUF file"):
        pretrained.open_weights(file)
    with pytest.raises(TokenizerError, match="is damaged"):
        Tokenizer.load(file)
    file.write_bytes(head + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 100_000)
    with pytest.raises(PretrainedError, match="is no complete GGUF file"):
        pretrained.open_weights(file)


PUBLISHED = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"  # LLaMA 3
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"  # GPT-4o
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # DeepSeek
    r" ?[^(\s|[.,!?…。，、।۔،])]+",  # BLOOM
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
    r"[\p{Han}&&[^x]]+",
    *(".", " {2,}", r"\d", r"\s+$", "^ ", "[一-龥\u3040-ゟ゠-ヿ]+"),
]
ENDLESS = [
    *("(a+)+$", "(a|aa)+$", "(.*)*x(.*)*y", ".*.*.*x", "((.|..)*)*$(x)", "(?:a|b){17}"),
    *("a?" * 30 + "a" * 30, "(a|aa)" * 20, "((a{1,1000}){1,1000}){1,1000}", "(?:a?){30}"),
    *(r"(a)\1+", r"(?<n>a|\g<n>b)", "(?~a)", "(?(1)a|b)", "((", ")", "[a", "a" * 30_000),
    "a{0,100}a{0,100}a{0,100}",
]


def test_published_regular_expressions_pass_and_endless_ones_do_not():
    for pattern in PUBLISHED:
        bounds.check_pattern(pattern)
    for pattern in ENDLESS:
        with pytest.raises(TokenizerError, match="may take for ever") as raised:
            bounds.check_pattern(pattern)
        assert len(str(raised.value)) < 300


def replaced(kind: str, pattern: dict, content: str, times: int = 1) -> dict:
    """A normaliser or decoder that replaces."""
    part = {"type": "Replace", "pattern": pattern, "content": content}
    return {"type": "Sequence", f"{kind}s": [part] * times}


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
RULES = base64.b64encode(struct.pack("<I", 4) + bytes(4) + b"x" * 9999 + b"\0").decode()
HOSTILE = {
    "a split": {"pre_tokenizer": SPLIT | {"pattern": {"Regex": "(a|aa)+$"}}},
    "a normaliser": {"normalizer": replaced("normalizer", {"Regex": "(a+)+$"}, "b")},
    "a decoder": {"decoder": replaced("decoder", {"Regex": "(a+)+$"}, "b")},
    "a text that grows": {"normalizer": replaced("normalizer", {"Regex": "."}, "z" * 1000, 5)},
    "decoded text that grows": {"decoder": replaced("decoder", {"Regex": "."}, "zz", 40)},
    "of nothing": {"decoder": replaced("decoder", {"String": ""}, "z" * 1000, 3)},
    "in front": {"normalizer": {"type": "Prepend", "prepend": "z" * 10**6}},
    "many": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 9999}},
    "a map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": RULES}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_tokenizers_that_never_end_or_fill_the_memory_are_refused(folder, name):
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | HOSTILE[name]))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json (has a|is not a)"):
        Tokenizer.load(folder)


def test_a_token_of_megabytes_is_refused(folder):
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["x" * 2_000_000] = vocabulary.pop(list(vocabulary)[-1])
    file.write_text(json.dumps(values | {"model": values["model"] | {"merges": []}}))
    with pytest.raises(TokenizerError, match="has a token of 2000000 characters"):
        Tokenizer.load(folder)


def test_a_panic_of_the_package_is_a_sentence(folder, capfd):
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    values["pre_tokenizer"] = {"type": "FixedLength", "length": 0}
    file.write_text(json.dumps(values))
    with pytest.raises(TokenizerError, match="does not do for this text"):
        Tokenizer.load(folder).encode("hello")
    capfd.readouterr()  # the package writes a trace of its own


def test_damaged_sentencepiece_models_are_refused_or_work(workdir, tmp_path):
    whole = (workdir / "tokenizer.model").read_bytes()
    rng, refusals = np.random.default_rng(0), 0
    for _ in range(300):
        content = bytearray(whole)
        for at in rng.integers(len(content), size=rng.integers(1, 5)):
            content[at] ^= 1 << rng.integers(8)
        (tmp_path / "tokenizer.model").write_bytes(bytes(content))
        try:
            tokenizer = Tokenizer.load(tmp_path)
            tokenizer.decode([*tokenizer.encode("a test"), *range(tokenizer.vocab_size)])
        except TokenizerError:
            refusals += 1
    assert refusals > 100


@pytest.mark.parametrize("source", ["hf://o/n@../x", "hf://o/n@a/../b", "hf://o/..", "hf://../n@a"])
def test_no_name_on_the_hub_leads_out_of_its_cache(source, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)  # is not asked
    with pytest.raises(PretrainedError, match="is not of the form"):
        pretrained.resolve(source)


def test_a_revision_is_pinned_and_noted(tmp_path, monkeypatch):
    import huggingface_hub

    def download(name, revision, **unused):
        folder = tmp_path / "snapshots" / {"v1": "a" * 40, None: "b" * 40}[revision]
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    used = Pretrained(model="hf://o/n@v1", encoder="hf://o/n", decoder=str(tmp_path))
    found = revisions(used)
    assert found == {"model": "a" * 40, "encoder": "b" * 40}
    workdir = Workdir(tmp_path)
    workdir.record_pretrained({"model": "0"}, [], found)
    assert workdir.read_parts()["revisions"] == found
