"""One call that loads whatever a run or an export has written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.checkpoint.exports.test_semi_structured_folders import assert_same
from tests.checkpoint.exports.two_four import two_four_folder
from tests.checkpoints import tiny_checkpoint
from tests.models import logits_of, tiny_model, token_ids

import loraprune
from loraprune import CheckpointError, OneshotConfig, Plan, RunOptions, RuntimeFormatError, cut_, load, save
from loraprune.checkpoint.exports.semi_structured import DESCRIPTION, write_packed
from loraprune.checkpoint.exports.sparse_checkpoint import read_sparse_checkpoint

IDS = token_ids(2, 9)


def test_a_sparse_checkpoint_loads_with_its_zeros(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "dense")
    sparse = loraprune.oneshot(
        tmp_path / "dense",
        config=OneshotConfig(criterion="magnitude", sparsity="2:4"),
        options=RunOptions(output=tmp_path / "sparse", eval_sequences=0, report=False),
    ).model
    assert_same(load(tmp_path / "sparse"), sparse)


def test_packed_weights_load_as_ordinary_ones_without_a_gpu(tmp_path: Path) -> None:
    model = two_four_folder(tmp_path / "model", dtype=torch.bfloat16)
    write_packed(read_sparse_checkpoint(tmp_path / "model"), tmp_path / "packed")
    assert_same(load(tmp_path / "packed", device="cpu"), model)
    assert_same(load(str(tmp_path / "model")), model)


def test_a_ragged_checkpoint_loads_without_code_from_its_folder(tmp_path: Path) -> None:
    model = tiny_model(attention="sdpa")
    cut_(model, Plan({"layers.0.heads": (1, 2)}))
    expected = logits_of(model, IDS)
    save(model, tmp_path / "ragged")
    loaded = load(tmp_path / "ragged")
    assert torch.equal(logits_of(loaded, IDS), expected)
    assert not type(loaded).__module__.startswith("transformers_modules")
    assert not loaded.training
    assert load(tmp_path / "ragged", dtype=torch.bfloat16).dtype is torch.bfloat16


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"it has no config\.json"):
        load(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        load("./nowhere")
    (tmp_path / "empty" / DESCRIPTION).write_text('{"format": 99}')
    with pytest.raises(RuntimeFormatError, match="has the format 99"):
        load(tmp_path / "empty", device="cpu")
