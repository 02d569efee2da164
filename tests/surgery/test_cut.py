"""Cutting by a plan of one's own, from ``describe`` to a checkpoint that loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models import FAMILIES, logits_of, tiny_model, token_ids, with_lora
from torch import nn

import loraprune
from loraprune import OutputExistsError, Plan, cut_, describe, plan_for, save
from loraprune.surgery.masking import masked

IDS = token_ids(8, 12)


def widths(model: nn.Module) -> dict[str, int]:
    return {dimension.name: dimension.num_groups for dimension in describe(model)}


@pytest.mark.parametrize("kinds", [None, ["query_heads", "channels"], ["blocks"], ["hidden"]])
def test_a_cut_computes_what_the_masked_model_did_and_the_checkpoint_what_the_cut_one_does(
    kinds: list[str] | None, tmp_path: Path
) -> None:
    model = tiny_model(num_hidden_layers=4)
    structure = describe(model, kinds)
    plan = Plan.uniform(structure, 0.5)
    with masked(model, structure, plan):
        expected = logits_of(model, IDS)
    assert cut_(model, plan) == ()
    torch.testing.assert_close(logits_of(model, IDS), expected, atol=1e-4, rtol=1e-4)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == structure.num_parameters - plan.removed_parameters(structure)
    save(model, tmp_path / "smaller")
    loaded = loraprune.load(tmp_path / "smaller")
    assert type(loaded).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(logits_of(loaded, IDS), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_described_cut_and_described_again_until_it_is_saved(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    cut_(model, Plan.uniform(describe(model), 0.3), calibration=IDS)
    uniform = widths(model)
    assert uniform["layers.0.channels"] == uniform["layers.1.channels"] < 24
    cut_(model, Plan({"layers.0.channels": (0, 2, 5)}), calibration=IDS)
    assert widths(model) == {**uniform, "layers.0.channels": 3}
    scores = {d.name: torch.rand(d.num_groups, generator=torch.Generator().manual_seed(1)) for d in describe(model)}
    cut_(model, plan_for(describe(model), scores, 0.2, allocation="global"), calibration=IDS)
    expected, last = logits_of(model, IDS), widths(model)
    save(model, tmp_path / "ragged")
    loaded = loraprune.load(tmp_path / "ragged")
    torch.testing.assert_close(logits_of(loaded, IDS), expected, atol=1e-4, rtol=1e-4)
    assert widths(loaded) == last


def test_a_ragged_cut_of_heads_that_later_kinds_do_not_see_is_saved_as_it_is(tmp_path: Path) -> None:
    model = tiny_model()
    cut_(model, Plan({"layers.1.query_heads": (0, 2, 4, 6)}))
    expected = logits_of(model, IDS)
    save(model, tmp_path / "ragged")
    loaded = loraprune.load(tmp_path / "ragged")
    torch.testing.assert_close(logits_of(loaded, IDS), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("repair", ["refit", "stream", "bias"])
def test_every_repair_brings_the_outputs_nearer_to_those_before_the_cut(repair: str, tmp_path: Path) -> None:
    dense = logits_of(tiny_model(), IDS)
    plan = Plan.uniform(describe(tiny_model()), 0.3)

    def error(model: nn.Module) -> float:
        return float((logits_of(model, IDS) - dense).norm())

    plain, repaired = tiny_model(), tiny_model()
    cut_(plain, plan, calibration=IDS, repair="none")
    told: list[int] = []
    errors = cut_(repaired, plan, calibration=IDS, repair=repair, progress=lambda done, total: told.append(done))
    assert error(repaired) < error(plain)
    assert told == [0, 1, 2]
    assert len(errors) == (0 if repair == "bias" else 4)
    expected = logits_of(repaired, IDS)
    save(repaired, tmp_path / "repaired")
    torch.testing.assert_close(logits_of(loraprune.load(tmp_path / "repaired"), IDS), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ["matrix", "lists", "rows", "mappings"])
def test_calibration_data_come_as_tokenizers_and_loaders_give_them(form: str) -> None:
    forms = {
        "matrix": IDS,
        "lists": IDS.tolist(),
        "rows": list(IDS),
        "mappings": [{"input_ids": row[None]} for row in IDS],
    }
    model, same = tiny_model(), tiny_model()
    plan = Plan.uniform(describe(model), 0.3)
    cut_(model, plan, calibration=forms[form], repair="refit")
    cut_(same, plan, calibration=IDS, repair="refit")
    torch.testing.assert_close(logits_of(model, IDS), logits_of(same, IDS), atol=1e-3, rtol=1e-3)


def test_an_adapter_is_cut_with_its_model_and_merged_when_it_is_saved(tmp_path: Path) -> None:
    model = with_lora(tiny_model())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    cut_(model, Plan.uniform(describe(model), 0.3), calibration=IDS, optimizer=optimizer)
    optimizer.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    expected = logits_of(model, IDS)
    save(model, tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits_of(loraprune.load(tmp_path / "merged"), IDS), expected, atol=1e-4, rtol=1e-4)


def test_a_plan_that_leaves_dimensions_out_keeps_all_of_their_groups() -> None:
    model = tiny_model()
    before = widths(model)
    cut_(model, Plan({"layers.1.heads": (1, 3)}))
    assert widths(model) == {**before, "layers.1.heads": 2}


@pytest.mark.parametrize(
    ("plan", "options", "message"),
    [
        (Plan({"layers.9.heads": (0,)}), {}, "no dimension 'layers.9.heads'"),
        (Plan({"layers.1.heads": (0, 7)}), {}, "keeps group 7 of layers.1.heads"),
        (Plan({"layers.1.query_heads": (0, 1, 2)}), {}, "not equally many in each of its 4 strata"),
        (Plan({"layers.1.heads": (0,)}), {"repair": "refit"}, "Pass calibration="),
        (Plan({"layers.1.heads": (0,)}), {"calibration": []}, "no rows"),
        (Plan({"layers.1.heads": (0,)}), {"calibration": ["a text"]}, "Row 0 of the calibration data is .a text."),
        (Plan({"layers.1.heads": (0,)}), {"calibration": [[0.5]]}, "Row 0 of the calibration data"),
        (Plan({"layers.1.heads": (0,)}), {"calibration": [[1, 99]]}, "token id 99, but the model has 40"),
        (Plan({"layers.1.heads": (0,)}), {"calibration": [[1], {"input_ids": IDS}]}, "mix rows"),
        (Plan({"layers.1.heads": (0,)}), {"calibration": IDS, "repair": "magic"}, "repair is 'magic'"),
        (Plan({"layers.1.heads": (0,)}), {"calibration": IDS, "damping": -1.0}, "damping is -1.0"),
    ],
)
def test_what_is_wrong_is_said_and_the_model_stays_as_it_was(plan: Plan, options: dict, message: str) -> None:
    model = tiny_model()
    before = logits_of(model, IDS)
    with pytest.raises(ValueError, match=message):
        cut_(model, plan, **options)
    assert torch.equal(logits_of(model, IDS), before)


def test_a_variant_of_lora_is_cut_and_not_repaired() -> None:
    model = with_lora(tiny_model(), use_dora=True)
    plan = Plan.uniform(describe(model), 0.3)
    with pytest.raises(ValueError, match="DoRA"):
        cut_(model, plan, calibration=IDS)
    cut_(model, plan, calibration=IDS, repair="none")
    assert widths(model)["layers.0.heads"] < 4


def test_a_folder_that_holds_something_is_replaced_only_when_asked_for(tmp_path: Path) -> None:
    model = tiny_model()
    save(model, tmp_path / "out")
    kept = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(OutputExistsError, match="not empty"):
        save(tiny_model(seed=1), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == kept
    save(tiny_model(seed=1), tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != kept
