"""Which files hold the weights of a checkpoint: the one, or those that its index names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class WeightIndexError(ValueError):
    """The index of a checkpoint's weights cannot be used."""


def weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, as an index names them; all lie in the folder of the index.

    Raises:
        WeightIndexError: it is no index, or names a file elsewhere.
    """
    try:
        values: Any = json.loads(index.read_text(encoding="utf-8"))
        names = {str(tensor): str(name) for tensor, name in values["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
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

    Other formats of the same weights may lie beside a model's, and shards that an earlier checkpoint left behind.

    Raises:
        WeightIndexError: see :func:`weight_map`.
    """
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file():
        return [single]
    if index.is_file():
        return [folder / name for name in dict.fromkeys(weight_map(index).values())]
    return sorted(folder.glob("*.safetensors"))
