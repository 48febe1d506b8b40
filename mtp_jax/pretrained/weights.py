"""A checkpoint on disk as names, shapes and lazy reads, whichever format it is kept in."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtp_jax.pretrained.ctranslate2 import read_variables
from mtp_jax.pretrained.errors import PretrainedError
from mtp_jax.untrusted import open_gguf
from mtp_jax.untrusted import read_json as read_json_file

Index = tuple[slice, ...]

_SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BLOCK = 1 << 15  # numbers


@dataclasses.dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint; none is read before it is asked for.

    Attributes:
        path: the folder or file, for messages.
        format: "safetensors", "ctranslate2" or "gguf".
        names: shape and name of the dtype that `read` gives, by tensor; quantised tensors count
            as the float32 that they are dequantised to.
        metadata: the scalars in the header of a GGUF file; else empty.
    """

    path: Path
    format: str
    names: Mapping[str, tuple[tuple[int, ...], str]]
    read_slices: Callable[[str, Index], np.ndarray]
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """The tensor, or the part of it that `index` (slices of step 1, first axes first) cuts."""
        shape, _ = self.names[name]
        index = (index or ()) + (slice(None),) * (len(shape) - len(index or ()))
        # safetensors refuses a slice that goes beyond the end.
        clipped = (slice(*s.indices(n)[:2]) for s, n in zip(index, shape, strict=True))
        return self.read_slices(name, tuple(clipped))


def weight_files(path: Path) -> tuple[str, list[Path]]:
    """The format of a checkpoint, and the files that its tensors are in.

    Raises:
        PretrainedError: there is nothing at `path` that can be read.
    """
    if path.is_file() and path.suffix == ".gguf":
        return "gguf", [path]
    if path.is_file():
        raise PretrainedError(f"{path} is neither a folder nor a .gguf file: give its folder")
    if not path.is_dir():
        raise PretrainedError(f"{path} does not exist: give a folder or a .gguf file")
    if (path / "model.safetensors").is_file():
        return "safetensors", [path / "model.safetensors"]
    if (index := path / "model.safetensors.index.json").is_file():
        return "safetensors", sorted({path / file for file in _weight_map(index).values()})
    if (path / "model.bin").is_file():
        return "ctranslate2", [path / "model.bin"]
    pickled = sorted(f.name for ending in ("bin", "pt", "pth") for f in path.glob(f"*.{ending}"))
    if pickled:
        raise PretrainedError(
            f"{path} holds pickled weights only ({pickled[0]}), and unpickling runs code: convert"
            " them with transformers' save_pretrained, which writes safetensors"
        )
    raise PretrainedError(
        f"{path} holds no model.safetensors, model.safetensors.index.json or model.bin:"
        " give the folder of a model"
    )


def open_weights(path: str | os.PathLike[str]) -> Weights:
    """Opens a Hugging Face or CTranslate2 folder, or a GGUF file.

    Raises:
        PretrainedError: it is none of these, or corrupt.
    """
    kind, files = weight_files(Path(path))
    return {"safetensors": _safetensors, "ctranslate2": _ctranslate2, "gguf": _gguf}[kind](
        Path(path), files
    )


def open_safetensors(file: Path) -> Weights:
    """Opens one file of safetensors, whatever its name.

    Raises:
        PretrainedError: it is none, or corrupt.
    """
    return _safetensors(file, [file])


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        PretrainedError: there is none.
    """
    try:
        value = read_json_file(path)
    except FileNotFoundError:
        raise PretrainedError(f"{path} is missing: give the whole folder of the model") from None
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{path} is no JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise PretrainedError(f"{path} is no JSON object: download it again")
    return value


def _weight_map(index: Path) -> dict[str, str]:
    """The file in the same folder that each tensor is in."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(
        isinstance(file, str) and Path(file).name == file != ".." for file in files.values()
    ):
        raise PretrainedError(f"{index} names no files of its folder: download it again")
    return files


def _safetensors(path: Path, files: list[Path]) -> Weights:
    from safetensors import SafetensorError, safe_open

    names, places = {}, {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as handle:
                for name in handle.keys():  # noqa: SIM118 (the handle is no mapping)
                    part = handle.get_slice(name)
                    dtype = _SAFETENSORS_DTYPES.get(part.get_dtype(), part.get_dtype())
                    names[name] = (tuple(part.get_shape()), dtype)
                    places[name] = file
        except FileNotFoundError:
            raise PretrainedError(f"{file} is missing: download the whole folder") from None
        except (OSError, MemoryError, SafetensorError) as error:
            raise PretrainedError(
                f"{file} is no complete safetensors file ({error}): download it again"
            ) from error
    if path.is_dir() and files[0].name != "model.safetensors":
        index = path / "model.safetensors.index.json"
        if lost := sorted(set(_weight_map(index)) - set(names)):
            raise PretrainedError(f"{index} names {lost[0]}, which no file has: download it again")

    def read(name: str, index: Index) -> np.ndarray:
        # Opened anew each time: while a file is open, what was read of it stays in memory.
        with safe_open(places[name], framework="numpy") as handle:
            return handle.get_slice(name)[index]

    return Weights(path, "safetensors", names, read)


def _ctranslate2(path: Path, files: list[Path]) -> Weights:
    variables = read_variables(files[0])
    scales = {
        name: variables[f"{name}_scale"]
        for name, x in variables.items()
        if x.dtype == np.int8 and x.ndim and f"{name}_scale" in variables
    }
    for name, scale in scales.items():
        if scale.shape != variables[name].shape[:1] or scale.dtype != np.float32:
            raise PretrainedError(
                f"{path}: {name}_scale of shape {scale.shape} is no scale of the rows of {name}:"
                " download it again"
            )
    names = {
        name: (x.shape, "float32" if name in scales else str(x.dtype))
        for name, x in variables.items()
        if name.removesuffix("_scale") not in scales or name in scales
    }

    def read(name: str, index: Index) -> np.ndarray:
        x = np.array(variables[name][index])
        if name not in scales:
            return x
        scale = np.array(scales[name])[index[0]]  # one a row; CTranslate2 divides by it
        return x.astype(np.float32) / scale.reshape(-1, *(1,) * (x.ndim - 1))

    return Weights(path, "ctranslate2", names, read)


def _gguf(path: Path, files: list[Path]) -> Weights:
    import gguf

    try:
        with np.errstate(over="raise"):
            reader = open_gguf(files[0])
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        metadata = {
            key: field.contents()
            for key, field in reader.fields.items()
            if field.types[0] != gguf.GGUFValueType.ARRAY
        }
    except Exception as error:  # whatever its parsing runs into
        raise PretrainedError(f"{path} is no complete GGUF file: download it again") from error
    names = {
        name: (tuple(int(size) for size in reversed(tensor.shape)), "float32")
        for name, tensor in tensors.items()
    }

    def read(name: str, index: Index) -> np.ndarray:
        tensor, rows = tensors[name], slice(None)
        if len(names[name][0]) > 1:  # blocks of quantised numbers lie along the last axis
            rows, index = index[0], (slice(None), *index[1:])
        try:
            x = gguf.dequantize(np.array(tensor.data[rows]), tensor.tensor_type)
        except NotImplementedError:
            raise PretrainedError(
                f"{path}: {name} is quantised as {tensor.tensor_type.name}, which the gguf package"
                " cannot undo: give a file of another quantisation, such as Q8_0"
            ) from None
        return x[index]

    return Weights(path, "gguf", names, read, metadata)


def refuse_not_finite(path: Path, name: str, x: np.ndarray) -> None:
    """Refuses a tensor with a NaN or infinity in it: all that is computed with it would be NaN.

    Args:
        path: of the checkpoint; `name`: of the tensor, for the message.
        x: floating-point numbers, the tensor's or a part of them.

    Raises:
        PretrainedError: one of them is not finite.
    """
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    infinity = np.array(np.inf, x.dtype).view(unsigned) << 1
    bits = x.view(unsigned).reshape(-1)
    # Without its sign a float is as large as its bits, and infinity and NaN are the largest. So one
    # pass over integers does, of dtypes too (bfloat16) whose isfinite is slow; in blocks that stay
    # in the cache.
    blocks = (bits[i : i + _BLOCK] for i in range(0, bits.size, _BLOCK))
    if any((block << 1).max() >= infinity for block in blocks):
        raise PretrainedError(
            f"{path}: {name} holds numbers that are not finite (NaN or infinity): the checkpoint is"
            " damaged or its training failed: download it again, or give another"
        )
