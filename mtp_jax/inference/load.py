"""A model made from a config: its modules, its tokenizer, and what its parameters begin with."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import jax
import numpy as np

from mtp_jax.checkpoints.checkpoint import Checkpoints
from mtp_jax.checkpoints.workdir import Workdir, WorkdirError
from mtp_jax.config import Config, Heads, Mesh, differences
from mtp_jax.distributed import multihost, sharding
from mtp_jax.inference.recognizer import Recognizer
from mtp_jax.models.params import Params, by_path, matches, merge, nested
from mtp_jax.models.speech_llama import SpeechLlama, Vocabulary
from mtp_jax.pretrained.exported import read_exported
from mtp_jax.pretrained.parts import RUNNING, digests, import_parts, with_sizes
from mtp_jax.pretrained.vocabulary_transfer import for_tokenizer
from mtp_jax.tokenizer import Tokenizer, TokenizerError
from mtp_jax.tokenizer.merges import merges_of
from mtp_jax.training.step import parameter_shapes

log = logging.getLogger("mtp_jax")


def make_model(config: Config, tokenizer: Tokenizer) -> SpeechLlama:
    """The model that `config` describes, for the vocabulary of `tokenizer`.

    Raises:
        TokenizerError: `config` wants CTC's labels made into tokens of a kind that cannot be.
    """
    merges = None
    if config.adaptor.retokenized:
        merges = None if tokenizer.ctc is tokenizer else merges_of(tokenizer)
        if merges is None:
            raise TokenizerError(
                "config.adaptor.retokenized needs a decoder with a byte-level BPE (LLaMA 3, SmolLM)"
                " and CTC labels of their own: set it to False"
            )
    vocabulary = Vocabulary(
        size=tokenizer.vocab_size,
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        prompt_before=tuple(tokenizer.encode(config.decoder.prompt_before)),
        prompt_after=tuple(tokenizer.encode(config.decoder.prompt_after)),
        labels=0 if tokenizer.ctc is tokenizer else tokenizer.ctc.vocab_size,
        merges=merges,
    )
    return SpeechLlama(config, vocabulary)


def completed(config: Config) -> Config:
    """`config` with the sizes of the model it begins with, or of its pretrained parts.

    Raises:
        WorkdirError, PretrainedError: a source is missing or cannot be used.
    """
    if not config.init_from:
        return _with_ctc_of(with_sizes(config))
    sized = with_sizes_of(config, Workdir(config.init_from).read_config())
    if taken := differences(config, sized):
        log.info("as in %s: %s", config.init_from, "; ".join(taken))
    return sized


def _with_ctc_of(config: Config) -> Config:
    """`config` with the Conformer of ``config.pretrained.ctc``, and with its Whisper's LoRA."""
    if not config.pretrained.ctc:
        return config
    theirs = Workdir(config.pretrained.ctc).read_config()
    ours = config.whisper
    whisper = dataclasses.replace(theirs.whisper, padded=ours.padded, cached=ours.cached)
    same = dataclasses.replace(whisper, lora=ours.lora)
    if same != ours or theirs.front_end != config.front_end:
        raise WorkdirError(
            f"config.pretrained.ctc={config.pretrained.ctc} listens to another speech encoder or"
            " front end than this run: give both the same config.pretrained.encoder"
        )
    whisper = whisper if whisper.lora.rank else ours
    own: dict[str, Any] = {name: getattr(config.encoder, name) for name in RUNNING}
    encoder = dataclasses.replace(theirs.encoder, **own)
    return dataclasses.replace(config, whisper=whisper, encoder=encoder)


def with_sizes_of(config: Config, theirs: Config) -> Config:
    """`config` with all that decides what the parameters of `theirs` mean."""

    def group(name: str, *ours: str) -> Any:
        own = {field: getattr(getattr(config, name), field) for field in ours}
        lora = getattr(getattr(theirs, name), "lora", None)
        if lora is not None and lora.rank:
            own["lora"] = lora
        return dataclasses.replace(getattr(theirs, name), **own)

    # Where a folder is said to be, the encoder is now; a Hub's name is but the default of a config.
    ours = config.pretrained.encoder
    moved = _with_encoder(theirs, "" if ours.startswith("hf://") else ours)
    labels = theirs.tokenizer.ctc_vocab_size
    if config.tokenizer.retrained:
        labels = config.tokenizer.ctc_vocab_size or labels
    return dataclasses.replace(
        config,
        pretrained=moved.pretrained,
        tokenizer=dataclasses.replace(config.tokenizer, ctc_vocab_size=labels),
        front_end=theirs.front_end,
        whisper=group("whisper", "cached", "lora"),
        adaptor=theirs.adaptor,
        encoder=group("encoder", *RUNNING),
        decoder=group("decoder", *RUNNING, "lora"),
    )


def starting_point(
    model: SpeechLlama, tokenizer: Tokenizer, workdir: Workdir, mesh: jax.sharding.Mesh
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
    parts = by_path(import_parts(config.pretrained, tokenizer, shapes, shardings))
    initial: dict[str, Any] = {}
    if config.init_from:
        source = Workdir(config.init_from)
        saved = _saved(source, mesh, config.pretrained.encoder)
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
        heads = "heads/kernel"
        if heads in new:
            # As copies of the LM head they would be sure and wrong, and spoil the model.
            zeros = np.zeros(by_path(shapes)[heads].shape, np.float32)
            initial[heads] = multihost.place_whole(zeros, by_path(shardings)[heads])
        log.info("from %s; new: %s", config.init_from, ", ".join(new) or "nothing")
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
    is_frozen = matches(config.optim.freeze)
    left_out = sorted(path for path in parts if is_frozen(path) and path not in initial)
    if parts:
        with multihost.main_first("noting the pretrained parts"):
            workdir.claim_parts(digests(config.pretrained), left_out)
    begun = {path: x for path, x in parts.items() if path not in left_out} | initial
    return nested(begun), nested({path: parts[path] for path in left_out})


def labels_as_text(tokenizer: Tokenizer, embedding: jax.Array) -> np.ndarray:
    """float32[labels, D]: each CTC label as the mean embedding of the tokens that spell it.

    A pretrained decoder so begins with a notion of what CTC reads.
    """
    rows = np.zeros((tokenizer.ctc.vocab_size, embedding.shape[1]), np.float32)
    table = np.asarray(multihost.fetch(embedding), np.float32)
    for label, piece in enumerate(tokenizer.ctc.pieces):
        if tokens := tokenizer.encode(piece.replace("▁", " ")):
            rows[label] = table[tokens].mean(axis=0)
    return rows


def _saved(source: Workdir, mesh: jax.sharding.Mesh, encoder: str) -> dict[str, Any]:
    """The parameters that `source` saved, by path."""
    left_out = (source.read_parts() or {"left_out": []})["left_out"]
    params = by_path(load(source, mesh, encoder).params)
    return {path: x for path, x in params.items() if path not in left_out}


def _same_heads(ours: Heads, theirs: Heads) -> bool:
    """Whether what was learnt for heads of the one kind means the same for the other."""
    return dataclasses.replace(ours, detached=False) == dataclasses.replace(theirs, detached=False)


def _that_fit(saved: dict[str, Any], shapes: dict[str, Any]) -> dict[str, Any]:
    """What of `saved` has a place of the same shape in a model."""
    return {
        path: x for path, x in saved.items() if path in shapes and x.shape == shapes[path].shape
    }


def _with_encoder(config: Config, source: str) -> Config:
    """`config` with its pretrained encoder elsewhere, if it has one and `source` is not empty."""
    if not (source and config.pretrained.encoder):
        return config
    pretrained = dataclasses.replace(config.pretrained, encoder=source)
    return dataclasses.replace(config, pretrained=pretrained)


def _mesh_here(trained: Mesh) -> jax.sharding.Mesh:
    try:
        return sharding.make_mesh(trained)
    except sharding.MeshError as error:
        log.info("%s; decoding splits the batch over all devices instead", error)
        return sharding.make_mesh(Mesh())


def load(workdir: Workdir, mesh: jax.sharding.Mesh | None = None, encoder: str = "") -> Recognizer:
    """The best checkpoint of a workdir, or an exported model, ready to decode.

    Args:
        workdir: of a trained model, or a folder that one was exported to.
        mesh: the devices; by default laid out as its config says, or if there are others than it
            was trained on, with the batch split over all.
        encoder: source of the frozen speech encoder; where training had it by default.

    Raises:
        WorkdirError, CheckpointError, TokenizerError, PretrainedError: something of it is missing
            or damaged.
    """
    config = _with_encoder(workdir.read_config(), encoder)
    if workdir.tokenizer is None:
        raise WorkdirError(f"{workdir.path} has no tokenizer: train first")
    tokenizer = Tokenizer.load(workdir.tokenizer)
    mesh = mesh or _mesh_here(config.mesh)
    model = make_model(config, tokenizer)
    shapes, shardings = parameter_shapes(model, mesh)
    imported: dict[str, Any] = {}
    if parts := workdir.read_parts():
        workdir.claim_parts(digests(config.pretrained), parts["left_out"])
        whole = by_path(import_parts(config.pretrained, tokenizer, shapes, shardings))
        imported = {path: whole[path] for path in parts["left_out"]}
    own, own_shardings = (
        nested({path: x for path, x in by_path(tree).items() if path not in imported})
        for tree in (shapes, shardings)
    )
    if workdir.exported.exists():
        params = read_exported(workdir, own, own_shardings)
    else:
        with Checkpoints(workdir.path, config.train.keep_best) as checkpoints:
            params = checkpoints.restore_best(own, own_shardings)
    return Recognizer(model, merge(params, nested(imported)), tokenizer, mesh, imported)
