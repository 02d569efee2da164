"""Norms that are tuned after a cut, so that the predictions come near to those of the dense model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.models import tiny_model
from tests.zoo import ROWS
from transformers import GemmaConfig, GemmaForCausalLM

import loraprune.surgery.tune_norms as module
from loraprune.metrics.divergence import Divergence
from loraprune.record.pruning_course import NormsRecord
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.refit import cut_and_repair_
from loraprune.surgery.tune_norms import NormTuning, norm_parameters, why_norms_stay

SEQUENCES = list(torch.randint(0, 40, (24, 16), generator=torch.Generator().manual_seed(1)))
FRESH = list(torch.randint(0, 40, (24, 16), generator=torch.Generator().manual_seed(2)))
GAINS = [row for row in ROWS if row.name in ("llama", "gemma2", "cohere", "granite", "gpt_neox", "olmo2", "qwen3")]


def cut_in_half(dense: Any) -> Any:
    model = copy.deepcopy(dense)
    structure = describe(model)
    full = Plan.full(structure)
    half = {d.name: range(d.num_groups // 2) for d in structure if d.strata == 1 and d.num_groups > 1}
    cut_and_repair_(model, structure, full, full.keep(half), calibration=SEQUENCES)
    return model


@pytest.fixture
def dense() -> Any:
    return tiny_model().eval()


def tuned(dense: Any, steps: int = 30) -> tuple[Any, Any, NormsRecord]:
    tuning = NormTuning(dense, SEQUENCES, steps=steps)
    before = cut_in_half(dense)
    after = copy.deepcopy(before)
    found = tuning.tune_(after, describe(dense))
    return before, after, found


def test_predictions_come_nearer_on_text_that_was_not_seen(dense: Any) -> None:
    before, after, found = tuned(dense)
    fresh = Divergence(dense, FRESH)
    assert fresh.of(after) < 0.95 * fresh.of(before)
    assert found.after < found.before
    assert found.steps == 30


def test_only_norms_change_and_the_model_is_left_as_it_was_found(dense: Any) -> None:
    before, after, _ = tuned(dense, steps=3)
    norms = norm_parameters(after)
    assert sorted(norms) == sorted(name for name, _ in before.named_parameters() if "norm" in name)
    for (name, was), now in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(was, now) == (name not in norms)
        assert now.requires_grad == was.requires_grad
        assert now.grad is None
    assert not after.training


def test_norms_stay_if_the_tuning_does_not_help(dense: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STEP_SIZE", 1e3)
    before, after, found = tuned(dense, steps=5)
    assert found.steps == 0
    assert found.after == found.before
    for was, now in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(was, now)


def test_activations_that_are_computed_again_give_the_same_norms(dense: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, kept, _ = tuned(dense, steps=3)
    monkeypatch.setattr(module, "_MOST_ACTIVATIONS", 0)
    _, again, _ = tuned(dense, steps=3)
    for one, other in zip(kept.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert "forward" not in again.model.layers[0].__dict__


@pytest.mark.parametrize("row", GAINS, ids=lambda row: row.name)
def test_what_follows_the_head_is_done_to_both_models(row: Any) -> None:
    """A scale or a soft cap of the logits counts in the divergence."""
    model = row.model().eval()
    tuning = NormTuning(model, SEQUENCES, steps=2)
    assert tuning._judged(model) == pytest.approx(0.0, abs=1e-6)
    cut = cut_in_half(model)
    expected = Divergence(model, [judge.ids for judge in tuning._judges]).of(cut)
    assert tuning._judged(cut) == pytest.approx(expected, rel=0.02, abs=1e-4)  # logits in 16 bits there


def test_a_gain_is_that_of_the_output() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 40, "head_dim": 8}
    model = GemmaForCausalLM(GemmaConfig(**sizes, num_attention_heads=4, num_key_value_heads=1))
    norm = model.model.norm
    with torch.no_grad():
        norm.weight.fill_(0.5)
    assert module._gain(norm) == pytest.approx(1.5, rel=1e-3)  # Gemma multiplies by 1 + weight


def test_all_rows_are_used_in_turn() -> None:
    rows = [torch.zeros(length) for length in (1000, 1000, 1000, 3000)]
    assert list(module._batches(rows, 4)) == [[0, 1], [2], [3], [0, 1]]
    assert list(module._batches([torch.zeros(5)], 2)) == [[0], [0]]


@pytest.mark.parametrize("family", ["bert", "t5", "vit"])
def test_models_without_a_head_that_predicts_tokens_are_named(family: str) -> None:
    row = next(row for row in ROWS if row.name == family)
    model = row.model()
    assert why_norms_stay(model, describe(model), [{"input_ids": torch.zeros(1, 4, dtype=torch.long)}]) is not None


def test_a_hidden_size_that_is_cut_is_named(dense: Any) -> None:
    assert "hidden size" in (why_norms_stay(dense, describe(dense, ("hidden",)), SEQUENCES) or "")
    assert why_norms_stay(dense, describe(dense), SEQUENCES) is None
