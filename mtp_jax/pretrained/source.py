"""Where a pretrained part comes from, and whether it is still the same."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from mtp_jax.pretrained.errors import PretrainedError
from mtp_jax.pretrained.weights import weight_files
from mtp_jax.untrusted import check_links

PATTERNS = [
    *("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt"),
    *("model.bin", "vocabulary.*"),
]
# Of a commit, a tag or a branch, which may have slashes; it becomes the name of a file.
_REVISION = r"[\w.-]+(?:/[\w.-]+)*"
DUPLICATES = ["consolidated*"]  # Mistral's own layout of the same weights


def resolve(source: str) -> Path:
    """The folder or file that `source` means.

    Args:
        source: a path, or ``hf://OWNER/NAME[@REVISION]``, which is downloaded to the cache of
            huggingface_hub unless it is there.

    Raises:
        PretrainedError: there is no such path, a file of it is a link out of the folder, or the
            download failed.
    """
    if not source.startswith("hf://"):
        path = Path(source).expanduser()
        if not path.exists():
            raise PretrainedError(
                f"{source} does not exist: give a folder, a .gguf file or hf://OWNER/NAME"
            )
        return _trusted(path)
    match = re.fullmatch(rf"hf://([^/@]+/[^/@]+)(?:@({_REVISION}))?", source)
    if match is None or ".." in source:
        raise PretrainedError(f"{source!r} is not of the form hf://OWNER/NAME[@REVISION]")
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            match[1], revision=match[2], allow_patterns=PATTERNS, ignore_patterns=DUPLICATES
        )
    except Exception as error:  # of huggingface_hub, of httpx, or of the system
        raise PretrainedError(
            f"{source} cannot be downloaded ({type(error).__name__}): download the folder on"
            " another machine and give its path (of a model's Whisper with --pretrained)"
        ) from error
    return _trusted(Path(folder))


def _trusted(path: Path) -> Path:
    """`path`, unless it is a folder whose files lead elsewhere."""
    try:
        check_links(path)
    except (OSError, ValueError) as error:
        raise PretrainedError(str(error)) from None
    return path


def revision_of(source: str) -> str:
    """The commit of ``hf://OWNER/NAME`` that `resolve` takes; empty of another source.

    Raises:
        PretrainedError: as `resolve`.
    """
    if not source.startswith("hf://"):
        return ""
    folder = resolve(source)
    return folder.name if folder.parent.name == "snapshots" else ""


def fingerprint(path: Path) -> str:
    """SHA-256 (hexadecimal) over names and bytes of the weight files at `path`.

    Raises:
        PretrainedError: there are none, or they cannot be read.
    """
    digest = hashlib.sha256()
    for file in weight_files(path)[1]:
        try:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256")
        except OSError as error:
            raise PretrainedError(
                f"{file} cannot be read ({error.strerror}): download the whole folder"
            ) from error
        digest.update(file.name.encode() + b"\0" + content.digest())
    return digest.hexdigest()
