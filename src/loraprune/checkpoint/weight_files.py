"""The safetensors files of a checkpoint: which of them hold its weights, and what their headers say."""

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
"""What holds the weights of a whole model: one file, or the list of several."""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class WeightIndexError(ValueError):
    """The index of a checkpoint's weights cannot be used."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies, its shape, and its dtype as safetensors calls it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, as an index names them; all lie in the folder of the index.

    Raises:
        WeightIndexError: it is no index, or names a file elsewhere.
    """
    try:
        values: Any = read_json(index)
        names = {str(tensor): str(name) for tensor, name in values["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightIndexError(f"{index} is no index of weights: fetch the checkpoint again.") from error
    outside = [name for name in names.values() if name in ("", "..") or Path(name).name != name or "\\" in name]
    if outside:
        raise WeightIndexError(
            f"{index} names the file {outside[0]!r}, which is outside of its folder. No checkpoint needs that: "
            "fetch it again from where you trust it."
        )
    return names


def weight_files(folder: Path) -> list[Path]:
    """The files that a model's weights are read from, as transformers chooses them; of an adapter, all of them.

    Other formats of the same weights may lie beside them, and shards that an earlier checkpoint left behind.

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
    """The tensors of some files by name, from their headers alone.

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
    """Make sure that a folder's files of weights are all there and can be read, by their headers alone.

    Args:
        name: of a checkpoint; of one on the hub, nothing is asked.

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
            raise CheckpointError(f"{file} is missing, or no file. Fetch the checkpoint again.")
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
        f"{name} holds its weights in {others[0]}, and weights are read from safetensors files only. Convert them in "
        f"Python, transformers.AutoModelForCausalLM.from_pretrained({name!r}).save_pretrained(FOLDER), and name FOLDER."
    )


def dtype_in_files(folder: Path) -> torch.dtype | None:
    """The dtype that most of a model's numbers are stored in; None where no file says one.

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
    except (OSError, ValueError, SafetensorError):  # loading the weights says what is wrong with them
        return None
    return counts.most_common(1)[0][0] if counts else None
