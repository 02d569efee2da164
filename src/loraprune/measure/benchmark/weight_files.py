"""The files that hold the weights of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from loraprune.checkpoint.adapter import WHOLE_MODEL


def weight_files(folder: Path) -> list[Path]:
    """The files that a model's weights are read from, as transformers chooses them; of an adapter, all of them.

    Other formats of the same weights may lie beside a model's, and shards that an earlier checkpoint left behind.
    """
    single, index = (folder / name for name in WHOLE_MODEL)
    if single.is_file():
        return [single]
    if index.is_file():
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in dict.fromkeys(named)]
    return sorted(folder.glob("*.safetensors"))
