"""What holds for every architecture and variant: see ``tests/zoo`` for the rows, and add one for a new family there."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from tests.zoo import ROWS
from tests.zoo.cases import CASES, Case, cut_
from tests.zoo.layouts import DEFAULT_ROWS, by_layout, layouts_of
from tests.zoo.plans import uniform_plan
from tests.zoo.row import logits
from torch import nn

from loraprune.architectures import spec_for, supported
from loraprune.checkpoint.save import finish
from loraprune.layers.unwrap import base_model
from loraprune.structure.describe import describe, head_dim_of
from loraprune.surgery.masking import masked

pytestmark = pytest.mark.zoo

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=by_layout(CASES, lambda case: case.row), ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """One after the other; with this scope, all tests of a case follow each other and share its models."""
    return request.param


def scale(values: torch.Tensor) -> float:
    """The invariants are stated for logits of ordinary size; the random ones may be larger."""
    return max(1.0, values.abs().max().item())


def assert_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=TOLERANCE * scale(expected))


def assert_felt(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Otherwise a test that compares them would say nothing."""
    assert (actual - expected).abs().max() > 100 * TOLERANCE * scale(expected)


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def factors_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}


def gradients_of(model: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Of some loss with respect to LoRA's factors."""
    return torch.autograd.grad(logits(model, inputs).square().mean(), list(factors_of(model).values()))


def test_every_supported_family_has_a_row():
    assert {row.config().model_type for row in ROWS} == set(supported())


def test_every_layout_of_a_family_is_that_of_a_default_row():
    assert set(DEFAULT_ROWS) <= {row.name for row in ROWS}
    layouts = {row.name: layouts_of(row) for row in ROWS}
    covered = set().union(*(layouts[name] for name in DEFAULT_ROWS))
    assert {name: found - covered for name, found in layouts.items() if found - covered} == {}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_family_has_the_kinds_that_its_row_names(row):
    model = row.model()
    structure = describe(model)
    assert (structure.kinds, structure.left_out) == (row.kinds, row.others)
    for kind in (*row.kinds, *row.others):
        said = all(dimension.config is not None for dimension in describe(model, (kind,)))
        assert said == (kind in row.stock), kind


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@torch.no_grad()
def test_sliced_equals_masked(case, lora):
    inputs = case.row.inputs()
    for attention in case.row.attentions:
        for plan, model, sliced in case.pairs(lora=lora, attention=attention):
            with masked(model, case.structure, plan):
                expected = logits(model, inputs)
            assert_felt(expected, logits(model, inputs))
            assert_equal(logits(sliced, inputs), expected)


def test_lora_learns_in_the_sliced_model_what_it_learns_in_the_masked_one(case):
    inputs = case.row.inputs()
    for plan, model, sliced in case.pairs(lora=True):
        with masked(model, case.structure, plan):
            gradients = gradients_of(model, inputs)
        # Gradients are cut like the parameters that they belong to.
        holder = copy.deepcopy(model)
        for parameter, gradient in zip(factors_of(holder).values(), gradients, strict=True):
            parameter.data = gradient
        cut_(holder, case.structure, plan)
        expected = factors_of(holder)
        assert expected
        for (name, full), gradient in zip(expected.items(), gradients_of(sliced, inputs), strict=True):
            assert gradient.abs().max() > 0, name
            assert (gradient - full).norm() < 1e-4 * full.norm(), name


def test_as_many_parameters_go_as_the_plan_says(case):
    for plan, model, sliced in case.pairs():
        assert parameters_of(model) == case.structure.num_parameters
        assert parameters_of(model) - parameters_of(sliced) == plan.removed_parameters(case.structure) > 0


@torch.no_grad()
def test_merged_equals_unmerged_and_can_be_pruned_again(case):
    inputs = case.row.inputs()
    for plan, _, sliced in case.pairs(lora=True):
        expected = logits(sliced, inputs)
        with sliced.disable_adapter():
            assert_felt(logits(sliced, inputs), expected)
        merged = finish(copy.deepcopy(sliced), case.structure, plan)
        assert not factors_of(merged)
        assert_equal(logits(merged, inputs), expected)
        again = describe(merged, case.kinds)
        assert {d.name: d.num_groups for d in again} == {name: len(kept) for name, kept in plan.kept.items()}
        before, further = parameters_of(merged), uniform_plan(again, "again")
        cut_(merged, again, further)
        assert before - parameters_of(merged) == further.removed_parameters(again)
        assert torch.isfinite(logits(merged, inputs)).all()


@torch.no_grad()
def test_a_cache_and_left_padding_change_nothing_that_the_sliced_model_writes(case):
    if not case.row.generates:
        pytest.skip("it does not write text from token ids alone")
    (ids,) = case.row.inputs().values()
    padding = torch.zeros_like(ids[:, :3])
    padded_ids, mask = torch.cat([padding, ids], dim=1), torch.cat([padding, torch.ones_like(ids)], dim=1)
    for _, _, sliced in case.pairs():
        settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        generate = base_model(sliced).generate
        written = generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **settings)
        assert written.shape == (3, ids.shape[1] + 4)
        cached = generate(ids, attention_mask=torch.ones_like(ids), use_cache=True, **settings)
        assert torch.equal(cached, written)
        padded = generate(padded_ids, attention_mask=mask, use_cache=True, **settings)
        assert torch.equal(padded[:, 3:], written)


@pytest.mark.parametrize("row", [row for row in ROWS if "heads" in row.stock], ids=lambda row: row.name)
def test_the_config_refuses_an_odd_number_of_heads_where_the_description_says_so(row, tmp_path):
    config = row.config()
    spec = spec_for(config)
    heads, kv_heads = spec.config.heads, spec.config.kv_heads
    most = getattr(config, heads)
    setattr(config, spec.config.head_dim, head_dim_of(config, spec))
    setattr(config, heads, most - most // 4)  # 6 of 8 or 3 of 4, which do not divide 32
    if kv_heads != heads and hasattr(config, kv_heads):
        setattr(config, kv_heads, getattr(config, kv_heads) * 3 // 4)
    refusal = pytest.raises(StrictDataclassClassValidationError) if spec.heads_divide_hidden else nullcontext()
    with refusal:
        config.save_pretrained(tmp_path)
        type(config).from_pretrained(tmp_path)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_block_can_be_left_alone_unless_the_description_says_why_not(row):
    model = row.model()
    structure = describe(model)
    reason = structure.spec.ragged_refusal
    if reason is None or not any(dimension.tied or dimension.alibi for dimension in structure):
        assert describe(model, keep_layers=[0]).protected == {0}
    else:
        with pytest.raises(ValueError, match=reason):
            describe(model, keep_layers=[0])
