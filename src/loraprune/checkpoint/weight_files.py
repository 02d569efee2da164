"""The safetensors files of a checkpoint: which of them hold its weights, and the content of their headers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loraprune.checkpoint.reading import CheckpointError
from loraprune.record.codec import read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MODEL_FILES = (WEIGHTS, INDEX)
"""Files that hold the weights of a whole model, or list the files that do."""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class WeightIndexError(ValueError):
    """The index of a checkpoint's weights cannot be used."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a file: the file, the shape, and the dtype's name in safetensors."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def weight_map(index: Path) -> dict[str, str]:
    """Read the file name of each tensor from an index. All files are in the folder of the index.

    Raises:
        WeightIndexError: the file is not an index, or names a file outside its folder.
    """
    try:
        values: Any = read_json(index)
        names = {str(tensor): str(name) for tensor, name in values["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightIndexError(f"{index} is not an index of weights. Fetch the checkpoint again.") from error
    outside = [name for name in names.values() if name in ("", "..") or Path(name).name != name or "\\" in name]
    if outside:
        raise WeightIndexError(
            f"{index} names the file {outside[0]!r}, which is outside its folder. No checkpoint needs that. Fetch it "
            "again from a source that you trust."
        )
    return names


def weight_files(folder: Path) -> list[Path]:
    """Return the files with a model's weights, as transformers chooses them; for an adapter, all safetensors files.

    The folder may also hold other formats of the same weights, or shards of an earlier checkpoint.

    Raises:
        WeightIndexError: see :func:`weight_map`.
    """
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file():
        return [single]
    if index.is_file():
        return [folder / name for name in dict.fromkeys(weight_map(index).values())]
    return sorted(folder.glob("*.safetensors"))


def stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Return the tensors of some files by name. Reads only the headers.

    Raises:
        SafetensorError: a file is broken.
    """
    from safetensors import safe_open

    found: dict[str, StoredTensor] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a handle, not a dict
                part = file.get_slice(name)
                found[name] = StoredTensor(file=path, shape=tuple(part.get_shape()), dtype=part.get_dtype())
    return found


def check_weight_files(name: str) -> None:
    """Make sure that all weight files of a folder exist and have readable headers.

    Args:
        name: name of a checkpoint; one on the Hub is not checked.

    Raises:
        CheckpointError: files are missing or broken, or of another format.
        WeightIndexError: see :func:`weight_map`.
    """
    from safetensors import SafetensorError

    folder = Path(name).expanduser()
    if not folder.is_dir():
        return
    files = weight_files(folder)
    if not files:
        raise CheckpointError(_no_weights(name, folder))
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing, or not a file. Fetch the checkpoint again.")
        try:
            stored_tensors([file])
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"The weights of {name} cannot be loaded: {file} is broken ({error}). Fetch the checkpoint again."
            ) from error


def _no_weights(name: str, folder: Path) -> str:
    others = [file.name for ending in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in sorted(folder.glob(ending))]
    if not others:
        return f"{name} holds no weights (*.safetensors). Fetch the checkpoint again, or name another folder."
    return (
        f"{name} holds its weights in {others[0]}, but loraprune reads only safetensors files. Convert them in "
        f"Python, transformers.AutoModelForCausalLM.from_pretrained({name!r}).save_pretrained(FOLDER), and name FOLDER."
    )


def dtype_in_files(folder: Path) -> torch.dtype | None:
    """Return the dtype of most of a model's stored numbers; None if no file has a known one.

    Raises:
        WeightIndexError: see :func:`weight_map`.
    """
    from safetensors import SafetensorError

    counts: Counter[torch.dtype] = Counter()
    files = weight_files(folder)
    try:
        for stored in stored_tensors(files).values():
            if stored.dtype in _DTYPES:
                counts[_DTYPES[stored.dtype]] += math.prod(stored.shape)
    except (OSError, ValueError, SafetensorError):  # loading the weights reports what is wrong with them
        return None
    return counts.most_common(1)[0][0] if counts else None
