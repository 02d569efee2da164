from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import loraprune
from loraprune import prune
from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError, read_checkpoint
from loraprune.checkpoint.load import load_model
from loraprune.checkpoint.source import ModelSource
from loraprune.checkpoint.weight_files import INDEX, WEIGHTS, WeightIndexError, weight_files, weight_map


def write_index(folder: Path, content: object) -> Path:
    (folder / INDEX).write_text(json.dumps(content))
    return folder / INDEX


def test_an_index_names_files_beside_it(tmp_path: Path) -> None:
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    assert weight_map(write_index(tmp_path, {"weight_map": names})) == names
    assert weight_files(tmp_path) == [tmp_path / name for name in names.values()]


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "..", "", "..\\x"])
def test_a_file_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    index = write_index(tmp_path, {"weight_map": {"a": "model.safetensors", "b": name}})
    with pytest.raises(WeightIndexError, match="which is outside its folder"):
        weight_map(index)


def broken_data(folder: Path) -> Path:
    """Data that is there and cannot be read."""
    path = folder / "broken.jsonl"
    path.write_text("no JSON")
    return path


@pytest.mark.parametrize("content", [[], {}, {"weight_map": ["a"]}, {"weight_map": None}, 3])
def test_what_is_no_index_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(WeightIndexError, match="is not an index of weights"):
        weight_map(write_index(tmp_path, content))


@pytest.mark.parametrize(
    ("read", "error"),
    [
        (read_checkpoint, RuntimeFormatError),
        (lambda folder: load_model(str(folder), torch.float32, torch.device("cpu")), WeightIndexError),
        (loraprune.load, WeightIndexError),
        (lambda folder: ModelSource.of(folder).stored_dtype, WeightIndexError),
        (lambda folder: prune(folder, broken_data(folder)), WeightIndexError),
    ],
    ids=["export", "load_model", "load", "dtype", "prune, before it reads data"],
)
def test_all_who_read_weights_refuse_it(
    checkpoint: Path, tmp_path: Path, read: Callable[[Path], object], error: type[Exception]
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / WEIGHTS).rename(tmp_path / "secret.safetensors")
    write_index(folder, {"metadata": {}, "weight_map": {"model.norm.weight": "../secret.safetensors"}})
    with pytest.raises(error, match="outside its folder"):
        read(folder)
