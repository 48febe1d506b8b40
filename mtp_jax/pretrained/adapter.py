"""LoRA adapters (Hu et al., 2022) as the package `peft` keeps them, merged into what they adapt.

A folder has them as ``adapter_config.json`` and ``adapter_model.safetensors`` beside its weights.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np

from mtp_jax.pretrained.errors import PretrainedError
from mtp_jax.pretrained.fields import Fields
from mtp_jax.pretrained.weights import Index, Weights, open_safetensors, read_json

CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
# What a merged matrix could not be, or is not here.
_PLAIN = {
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
}
_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


def with_adapter(weights: Weights, renamed: dict[str, str]) -> Weights:
    """`weights` with the adapter beside them merged: W + alpha / r B A, read part by part.

    Args:
        weights: of a folder; they are returned as they are if it has no adapter.
        renamed: what names of an adapter may begin with in place of those of the weights.

    Raises:
        PretrainedError: the adapter is damaged, of another kind or of another model.
    """
    if not (weights.path / CONFIG).is_file():
        return weights
    scale, rank = _scale_and_rank(weights.path / CONFIG)
    adapter = open_safetensors(weights.path / FILE)
    pairs: dict[str, dict[str, str]] = {}
    for name in adapter.names:
        found = _NAME.fullmatch(name)
        if not found:
            raise PretrainedError(
                f"{adapter.path}: {name} is no part of a LoRA: download the adapter again"
            )
        own, part = found.groups()
        for old, new in renamed.items():
            own = new + own.removeprefix(old) if own.startswith(old) else own
        pairs.setdefault(f"{own}.weight", {})[part] = name
    names = dict(weights.names)
    for own, pair in pairs.items():
        _check_pair(adapter, own, pair, rank, weights)
        names[own] = (names[own][0], "float32")

    def read(name: str, index: Index) -> np.ndarray:
        x = weights.read_slices(name, index)
        if name not in pairs:
            return x
        a, b = (adapter.read(pairs[name][part]).astype(np.float32) for part in "AB")
        whole: np.ndarray = x.astype(np.float32) + scale * (b[index[0]] @ a[:, index[1]])
        return whole

    return dataclasses.replace(weights, names=names, read_slices=read)


def _scale_and_rank(where: Path) -> tuple[float, int]:
    """What the update is multiplied by, and the rank of its matrices."""
    config = Fields(where, read_json(where))
    config.must("peft_type", ("LORA",), None)
    for name, value in _PLAIN.items():
        given = config.get(name, value)
        if given != value and given not in ([], {}):
            raise PretrainedError(
                f"{where}: {name} is {given!r}, and only plain LoRA can be merged: choose another"
                " model"
            )
    rank, alpha = config.integer("r"), config.number("lora_alpha")
    if rank < 1:
        raise PretrainedError(f"{where}: r is {rank}, and must be 1 or more: download it again")
    return alpha / (math.sqrt(rank) if config.get("use_rslora", False) else rank), rank


def _check_pair(
    adapter: Weights, own: str, pair: dict[str, str], rank: int, weights: Weights
) -> None:
    """Refuses the update of a matrix that is of another size, or is not there."""
    if own not in weights.names:
        raise PretrainedError(
            f"{adapter.path} adapts {own}, which the model does not have: give the adapter of this"
            " model"
        )
    shape = weights.names[own][0]
    wanted = {"A": (rank, *shape[1:]), "B": (*shape[:1], rank)}
    for part, expected in wanted.items():
        found = adapter.names[pair[part]][0] if part in pair else None
        if found != expected:
            raise PretrainedError(
                f"{adapter.path}: lora_{part} of {own} is {found or 'missing'}, and of this model"
                f" it would be {expected}: give the adapter of this model"
            )


def missing(folder: Path) -> list[str]:
    """Names of the files of an adapter that a folder lacks."""
    return [name for name in (CONFIG, FILE) if not (folder / name).is_file()]
