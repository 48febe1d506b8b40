"""What a run's parameters begin with: pretrained parts, another model, or nothing."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from mtp_jax.checkpoints.workdir import Workdir
from mtp_jax.config import Heads
from mtp_jax.distributed import multihost
from mtp_jax.inference.load import load
from mtp_jax.models.initialization import parameter_shapes
from mtp_jax.models.params import Params, by_path, nested
from mtp_jax.models.recogniser import Recogniser
from mtp_jax.pretrained.parts import as_stored, digests, import_parts, revisions
from mtp_jax.pretrained.vocabulary_transfer import for_tokenizer
from mtp_jax.tokenizer import Tokenizer
from mtp_jax.training.step import frozen

log = logging.getLogger("mtp_jax")


def starting_point(
    model: Recogniser, tokenizer: Tokenizer, workdir: Workdir, mesh: jax.sharding.Mesh
) -> tuple[Params, Params]:
    """What a run's parameters begin with; notes in its workdir what it will not save.

    Args:
        model, tokenizer: of the run.
        workdir: of the run.
        mesh: the devices.

    Returns:
        Parameters to begin with, and frozen ones that checkpoints leave out, as `init_state`
        takes them.

    Raises:
        PretrainedError, TokenizerError, WorkdirError, CheckpointError: a source of parameters is
            missing, does not fit, or is no longer what the run began with.
    """
    config = model.config
    shapes, shardings = parameter_shapes(model, mesh)
    is_frozen = frozen(config)
    stored = by_path(as_stored(shapes, config))
    wanted = {path: stored[path] if is_frozen(path) else x for path, x in by_path(shapes).items()}
    parts = by_path(import_parts(config.pretrained, tokenizer, nested(wanted), shardings))
    initial: dict[str, Any] = {}
    if config.init_from:
        source = Workdir(config.init_from)
        saved = _saved(source, mesh, config.pretrained.model or config.pretrained.encoder)
        if not _same_heads(source.read_config().heads, config.heads):
            saved = {path: x for path, x in saved.items() if not path.startswith("heads/")}
        if config.tokenizer.retrained:
            theirs = Tokenizer.load(config.init_from)
            independent = config.heads.kind == "independent"
            own = for_tokenizer(saved, theirs, tokenizer, independent)
            placed = by_path(shardings)
            saved |= {path: multihost.place_whole(x, placed[path]) for path, x in own.items()}
        initial = _that_fit(saved, by_path(shapes))
        new = sorted(set(by_path(shapes)) - set(initial) - set(parts))
        whisper = parts if config.pretrained.model else {}
        initial |= _added_heads(
            new, whisper, by_path(shapes), by_path(shardings), config.heads.detached
        )
        log.info("from %s; new: %s", config.init_from, ", ".join(new) or "nothing")
    elif config.pretrained.model:
        initial = _added_heads(
            by_path(shapes), parts, by_path(shapes), by_path(shardings), config.heads.detached
        )
    elif config.pretrained.ctc:
        source = Workdir(config.pretrained.ctc)
        saved = _that_fit(_saved(source, mesh, config.pretrained.encoder), by_path(shapes))
        listening = ("encoder/", "ctc/", "whisper/")
        initial = {path: x for path, x in saved.items() if path.startswith(listening)}
    label, adaptor = "label_embedding", "adaptor/kernel"
    if config.adaptor.ctc_compression and "decoder/embedding" in parts:
        # A pretrained decoder first reads what CTC has found, and hears no more than that.
        silent = {adaptor: np.zeros(by_path(shapes)[adaptor].shape, np.float32)}
        if label in by_path(shapes):
            silent[label] = labels_as_text(tokenizer, parts["decoder/embedding"])
        for path, x in silent.items():
            if path not in initial:
                initial[path] = multihost.place_whole(x, by_path(shardings)[path])
    left_out = sorted(path for path in parts if is_frozen(path) and path not in initial)
    if parts:
        with multihost.process_zero_first("noting the pretrained parts"):
            used = config.pretrained
            workdir.record_pretrained(digests(used), left_out, revisions(used))
    begun = {path: x for path, x in parts.items() if path not in left_out} | initial
    return nested(begun), nested({path: parts[path] for path in left_out})


def _added_heads(
    new: Iterable[str], parts: Params, shapes: Params, shardings: Params, detached: bool
) -> dict[str, Any]:
    """What heads that are added to a finished model begin with.

    Their logits are zero: as copies of the LM head they would be sure and wrong, and spoil the
    model. Detached heads cannot spoil it, and begin as copies, so that a gradient reaches their
    own layers from the first step. These layers, and the block of serial heads, are copies of the
    decoder's last ones, where `parts` has these.

    Args:
        new: paths of all new parameters.
        parts: parameters of the finished model, by path.
        shapes, shardings: of all parameters, by path.
        detached: as in `config.heads`.
    """
    found: dict[str, Any] = {}
    for path in new:
        if path == "heads/kernel" and not detached:
            x = np.zeros(shapes[path].shape, np.float32)
        elif path.startswith("heads/") and (source := _copied(path)) in parts:
            x = np.asarray(multihost.to_host(parts[source]))
            if path.startswith(("heads/layers/", "heads/cross/")):
                x = x[-shapes[path].shape[0] :]
            elif path.startswith("heads/block/"):
                x = x[-1]
        else:
            continue
        found[path] = multihost.place_whole(x.astype(shapes[path].dtype), shardings[path])
    return found


def _copied(path: str) -> str:
    """Path of the decoder's parameter that one of the heads' layers begins as a copy of."""
    own = path.removeprefix("heads/").replace("block/", "layers/")
    return f"decoder/final_{own}" if own.startswith("norm/") else f"decoder/{own}"


def labels_as_text(tokenizer: Tokenizer, embedding: jax.Array) -> np.ndarray:
    """float32[labels, D]: each CTC label as the mean embedding of the tokens that spell it.

    A pretrained decoder so begins with a notion of what CTC reads.
    """
    rows = np.zeros((tokenizer.ctc.vocab_size, embedding.shape[1]), np.float32)
    table = np.asarray(multihost.to_host(embedding), np.float32)
    for label, piece in enumerate(tokenizer.ctc.pieces):
        if tokens := tokenizer.encode(piece.replace("▁", " ")):
            rows[label] = table[tokens].mean(axis=0)
    return rows


def _saved(source: Workdir, mesh: jax.sharding.Mesh, pretrained: str) -> dict[str, Any]:
    """The parameters that `source` saved, by path."""
    trained = load(source, mesh, pretrained)
    return {path: x for path, x in by_path(trained.params).items() if path not in trained.imported}


def _same_heads(ours: Heads, theirs: Heads) -> bool:
    """Whether what was learnt for heads of the one kind means the same for the other."""
    return dataclasses.replace(ours, detached=False) == dataclasses.replace(theirs, detached=False)


def _that_fit(saved: dict[str, Any], shapes: dict[str, Any]) -> dict[str, Any]:
    """What of `saved` has a place of the same shape in a model."""
    return {
        path: x for path, x in saved.items() if path in shapes and x.shape == shapes[path].shape
    }
