"""Data on the command line: help on its forms, early checks, and a model that was parsed as data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraprune.data.named import data_places, is_hub_name

DATA_HELP = """forms of --data and --eval-data:
  rows.jsonl             or .ndjson .json .csv .tsv .txt, also as .gz or .zst;
                         or .parquet
  'data/*.jsonl'         all files that match; put the pattern in quotes
  FOLDER                 data files, images by class, a saved dataset, or a
                         clone of a Hub dataset
  org/name               a Hub dataset; org/name:config with a configuration
  a.jsonl b.jsonl        all rows of both
  a.jsonl:7 b.jsonl:3    a mixture, 7 rows to 3, until one of them runs out
"""
"""Forms of data, for the end of help pages."""


def with_model(values: dict[str, Any]) -> dict[str, Any]:
    """Separate the model from the data: in ``--data DATA MODEL``, the parser takes both as data.

    Args:
        values: values of a command line.
    """
    if "model" in values:
        return values
    for name in ("data", "eval_data"):
        given = values.get(name) or []
        found = [item for item in given if _is_checkpoint(item)]
        if not found and "config" not in values and len(given) > 1 and is_hub_name(given[-1]):
            found = [item for item in given[-1:] if not Path(item).exists()]
        if found and len(given) > 1:
            return {**values, "model": found[0], name: [item for item in given if item != found[0]]}
    return values


def check_data(values: Mapping[str, Any]) -> None:
    """Check that local data exists, before anything large is imported.

    Raises:
        FileNotFoundError: a file or folder does not exist.
        ValueError: a name is not understood, or weights are wrong.
    """
    for name in ("data", "eval_data"):
        data_places(values.get(name))


def _is_checkpoint(name: str) -> bool:
    folder = Path(name).expanduser()
    return any((folder / config).is_file() for config in ("config.json", "adapter_config.json"))
