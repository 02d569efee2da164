"""The safetensors files of a checkpoint: which of them hold its weights, and what their headers say."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

MODEL_FILES = ("model.safetensors", "model.safetensors.index.json")
"""What holds the weights of a whole model: one file, or the list of several."""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies, its shape, and its dtype as safetensors calls it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def weight_files(folder: Path) -> list[Path]:
    """The files that a model's weights are read from, as transformers chooses them; of an adapter, all of them.

    Other formats of the same weights may lie beside them, and shards that an earlier checkpoint left behind.
    """
    single, index = (folder / name for name in MODEL_FILES)
    if single.is_file():
        return [single]
    if index.is_file():
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in dict.fromkeys(named)]
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


def dtype_in_files(folder: Path) -> torch.dtype | None:
    """The dtype that most of a model's numbers are stored in; None where no file says one."""
    from safetensors import SafetensorError

    counts: Counter[torch.dtype] = Counter()
    try:
        for stored in stored_tensors(weight_files(folder)).values():
            if stored.dtype in _DTYPES:
                counts[_DTYPES[stored.dtype]] += math.prod(stored.shape)
    except (OSError, ValueError, KeyError, SafetensorError):  # loading the weights says what is wrong with them
        return None
    return counts.most_common(1)[0][0] if counts else None
