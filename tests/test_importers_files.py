"""Files that are cut, pickled, missing or of an unknown kind; sources and their fingerprints."""

from __future__ import annotations

import shutil
import struct

import numpy as np
import pytest

from mtp_jax import pretrained
from mtp_jax.pretrained import PretrainedError
from tests.pretrained import (
    GOLDEN,
    llama_shapes,
    tensors,
    whisper_variables,
    write_ctranslate2,
    write_gguf,
)


def cuts(size: int) -> list[int]:
    """Lengths to cut a file of `size` bytes to: every one near its ends, and many between."""
    return [*range(40), *range(40, size - 8, size // 150), *range(size - 8, size)]


def test_cut_ctranslate2_files_are_refused(tmp_path):
    path = write_ctranslate2(tmp_path / "m", whisper_variables())
    whole = (path / "model.bin").read_bytes()
    for size in cuts(len(whole)):
        (path / "model.bin").write_bytes(whole[:size])
        with pytest.raises(PretrainedError, match=r"model\.bin is no complete CTranslate2 model"):
            pretrained.open_weights(path)
    (path / "model.bin").write_bytes(whole + b"x")
    with pytest.raises(PretrainedError, match="1 bytes follow its end"):
        pretrained.open_weights(path)


def test_damaged_ctranslate2_files_are_refused(tmp_path):
    """No byte of the header can be changed into an error that is not ours."""
    path = write_ctranslate2(tmp_path / "m", {"a": np.zeros((2, 3), np.float32)})
    whole = (path / "model.bin").read_bytes()
    for i in range(len(whole)):
        damaged = whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :]
        (path / "model.bin").write_bytes(damaged)
        with pytest.raises(PretrainedError):  # its alias names a variable that is not there
            pretrained.open_weights(path)
    (path / "model.bin").write_bytes(struct.pack("<I", 3) + whole[4:])
    with pytest.raises(PretrainedError, match="it says 3"):
        pretrained.open_weights(path)


def test_cut_gguf_files_are_refused(tmp_path):
    source = pretrained.llama_architecture(GOLDEN / "llama_tied")
    path = write_gguf(tmp_path / "m.gguf", source, tensors("llama_tied"))
    whole = path.read_bytes()
    for size in cuts(len(whole.rstrip(b"\0"))):  # what follows the last tensor is padding
        path.write_bytes(whole[:size])
        with pytest.raises(PretrainedError, match=r"m\.gguf is no complete GGUF file"):
            pretrained.open_weights(path)


def test_cut_safetensors_are_refused(tmp_path):
    path = tmp_path / "m"
    shutil.copytree(GOLDEN / "llama_tied", path)
    whole = (path / "model.safetensors").read_bytes()
    for size in cuts(len(whole)):
        (path / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(PretrainedError, match="no complete safetensors file"):
            pretrained.open_weights(path)


def test_an_incomplete_sharded_folder_is_refused(tmp_path):
    path = tmp_path / "m"
    shutil.copytree(GOLDEN / "llama_untied", path)
    shapes = llama_shapes(pretrained.llama_architecture(path))
    index = path / "model.safetensors.index.json"
    text = index.read_text()
    index.write_text(text.replace("model.norm.weight", "model.norm.lost"))
    with pytest.raises(PretrainedError, match=r"names model\.norm\.lost, which no file has"):
        pretrained.import_llama(path, shapes)
    for changed, message in (
        (text[:100], "is no JSON"),
        ("[]", "is no JSON object"),
        ("{}", "names no files of its folder"),
        (text.replace("model-00001", "../model-00001"), "names no files of its folder"),
    ):
        index.write_text(changed)
        with pytest.raises(PretrainedError, match=message):
            pretrained.import_llama(path, shapes)
    index.write_text(text)
    (path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(PretrainedError, match=r"model-00002-of-00003\.safetensors is missing"):
        pretrained.import_llama(path, shapes)
    (path / "config.json").unlink()
    with pytest.raises(PretrainedError, match=r"config\.json is missing"):
        pretrained.llama_architecture(path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(PretrainedError, match=f"{name}.*convert them with transformers'"):
        pretrained.open_weights(tmp_path)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(PretrainedError, match="does not exist"):
        pretrained.open_weights(tmp_path / "nowhere")
    with pytest.raises(PretrainedError, match=r"holds no model\.safetensors"):
        pretrained.open_weights(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(PretrainedError, match="give its folder"):
        pretrained.open_weights(tmp_path / "notes.txt")


def test_resolve(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    assert pretrained.resolve("~/m") == tmp_path / "m"
    for source in ("~/n", "meta/llama"):
        with pytest.raises(PretrainedError, match=f"{source} does not exist"):
            pretrained.resolve(source)
    for source in ("hf://llama", "hf://a/b/c", "hf://a/b@"):
        with pytest.raises(PretrainedError, match="OWNER/NAME"):
            pretrained.resolve(source)


def test_hf_sources_are_downloaded_or_refused_in_a_sentence(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, revision, allow_patterns, ignore_patterns):
        asked.append((name, revision))
        assert not any(pattern.endswith((".bin*", ".pth", ".pt")) for pattern in allow_patterns)
        if name == "owner/away":
            raise huggingface_hub.errors.OfflineModeIsEnabled("offline\nwith a second line")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert pretrained.resolve("hf://owner/name") == tmp_path
    assert pretrained.resolve("hf://owner/name@v1.0") == tmp_path
    assert asked == [("owner/name", None), ("owner/name", "v1.0")]
    with pytest.raises(PretrainedError, match="download the folder on another machine") as error:
        pretrained.resolve("hf://owner/away")
    assert "\n" not in str(error.value)


def test_the_fingerprint_is_that_of_the_weights(tmp_path):
    path = tmp_path / "m"
    shutil.copytree(GOLDEN / "llama_untied", path)
    before = pretrained.fingerprint(path)
    assert before == pretrained.fingerprint(GOLDEN / "llama_untied")
    (path / "README.md").write_text("other files do not count")
    assert pretrained.fingerprint(path) == before
    shard = path / "model-00002-of-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert pretrained.fingerprint(path) != before
    shard.unlink()
    with pytest.raises(PretrainedError, match="cannot be read"):
        pretrained.fingerprint(path)
