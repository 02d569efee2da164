from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tests.checkpoints import VOCABULARY
from tests.finished_run import QUICK
from tests.models import PROJECTIONS, logits_of, token_ids
from tests.recipes.test_recover import CtrlC, Trained, check_zeros_kept, losses, record_of
from transformers import AutoModelForCausalLM

from loraprune import PruneResult, PruningConfig, RunOptions, prune, recover
from loraprune.pruning.errors import InterruptedRunError
from loraprune.tasks.options import LoraOptions

IDS = token_ids(2, 11, vocabulary=VOCABULARY)
TRAINING = {**QUICK, "learning_rate": 1e-2}
RATIO = 0.6


def sparse(model: Any, data: Any, output: Path | None = None, **changes: Any) -> PruneResult:
    config = PruningConfig(**{"criterion": "pst", "ratio": RATIO, **changes.pop("config", {})})
    options = RunOptions(**{"output": output, **changes.pop("options", {})})
    training = {**TRAINING, **changes.pop("training", {})}
    return prune(model, data, config, training=training, options=options, **changes)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained()


@pytest.fixture(scope="module")
def made(checkpoint: Path, data: Path, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> PruneResult:
    folder = tmp_path_factory.mktemp("pst") / "out"
    options = {"save_adapter": True, "prompt": "the old river"}
    return sparse(checkpoint, data, folder, callbacks=[trained], options=options)


def test_the_checkpoint_has_the_exact_share_of_zeros_in_every_matrix(made: PruneResult) -> None:
    model = AutoModelForCausalLM.from_pretrained(made.output)
    zeros = weights = 0
    for name, weight in model.named_parameters():
        if any(projection in name for projection in PROJECTIONS):
            assert int((weight == 0).sum()) == round(RATIO * weight.numel())
            zeros, weights = zeros + int((weight == 0).sum()), weights + weight.numel()
    sparsity = made.metrics["sparsity"]
    assert (sparsity["zeros"], sparsity["weights"]) == (zeros, weights)
    assert sparsity["after"]["share"] == sparsity["reached"] == pytest.approx(RATIO, abs=0.001)
    assert made.metrics["pruned"]["nonzero"] == made.metrics["dense"]["nonzero"] - zeros


def test_the_merged_model_is_the_trained_one(made: PruneResult, trained: Trained) -> None:
    torch.testing.assert_close(logits_of(made.model, IDS), trained.logits, atol=1e-4, rtol=1e-4)
    loaded = AutoModelForCausalLM.from_pretrained(made.output)
    assert torch.equal(logits_of(loaded, IDS), logits_of(made.model, IDS))


def test_report_and_card_speak_of_zeros(made: PruneResult) -> None:
    assert made.report.title.endswith("60% sparse")
    assert made.report.headline.sparsity == "pst, 60%"
    assert [row.label for row in made.report.rows][:2] == ["Parameters", "Weights that are not zero"]
    card = " ".join((made.output / "README.md").read_text().split())
    assert "of the weights that LoRA adapted are zero" in card
    assert "heads" not in card
    page = (made.output / "report.html").read_text()
    assert "pst, 60%" in page
    record = record_of(made)
    assert record["settings"]["pruning"]["pst"]["rank"] == 8
    assert record["settings"]["pruning"]["refit"] is False


def test_the_adapter_is_saved_with_its_masks(made: PruneResult) -> None:
    names = {path.name for path in (made.output / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "pst_masks.safetensors"} <= names
    assert not (made.output / "plan.json").exists()


def test_recovery_keeps_the_zeros_and_knows_where_they_come_from(made: PruneResult, data: Path, tmp_path: Path) -> None:
    result = recover(made.output, data, training=TRAINING, options=RunOptions(output=tmp_path / "again"))
    check_zeros_kept(AutoModelForCausalLM.from_pretrained(made.output), result.model)
    base = record_of(result)["base_pruning"]
    assert (base["method"], base["pattern"]) == ("pst", "60%")
    assert "60% sparse by `pst`" in (tmp_path / "again" / "README.md").read_text()


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_zeros_are_exact_in_16_bits(data: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    from tests.checkpoints import tiny_checkpoint

    result = sparse(tiny_checkpoint(tmp_path / "half", dtype=dtype), data, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(result.output)
    assert model.dtype == dtype
    sparsity = result.metrics["sparsity"]
    assert sparsity["after"]["zeros"] >= sparsity["zeros"]
    assert sparsity["after"]["share"] == pytest.approx(RATIO, abs=0.002)


def test_a_resumed_run_ends_as_an_uninterrupted_one(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    expected = sparse(checkpoint, data, tmp_path / "whole")
    with pytest.raises(InterruptedRunError, match="Stopped at step 2"):
        sparse(checkpoint, data, tmp_path / "out", callbacks=[CtrlC(2)])
    result = sparse(checkpoint, data, tmp_path / "out", options={"resume": True})
    assert losses(result) == losses(expected)
    assert torch.equal(logits_of(result.model, IDS), logits_of(expected.model, IDS))


def test_a_run_does_not_go_on_with_another_criterion(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError):
        sparse(checkpoint, data, tmp_path / "out", callbacks=[CtrlC(2)])
    options = RunOptions(output=tmp_path / "out", resume=True)
    with pytest.raises(ValueError, match="was started with other pruning options"):
        prune(checkpoint, data, PruningConfig(ratio=RATIO), training=TRAINING, options=options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": LoraOptions(dropout=0.1)}, r"Leave out lora_dropout=0\.1"),
        ({"lora": LoraConfig(target_modules=["q_proj"], use_dora=True)}, "Leave out use_dora=True"),
        ({"options": {"target_params": 20_000}}, "You passed target_params"),
        ({"options": {"unrecovered": True}}, "measure_unrecovered needs a cut model"),
        ({"options": {"quantization": "bnb-8bit"}}, "'pst' masks single base weights"),
        ({"config": {"ratio": 0.0}}, "no weight would become zero"),
    ],
    ids=str,
)
def test_refusals_leave_nothing_behind(
    checkpoint: Path, data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sparse(checkpoint, data, tmp_path / "out", **changes)
    assert list(tmp_path.iterdir()) == []


def test_the_record_is_json(made: PruneResult) -> None:
    masks = json.loads((made.output / "pruning.json").read_text())["metrics"]["sparsity"]["masks"]
    assert [mask["ratio"] for mask in masks] == sorted(mask["ratio"] for mask in masks)
