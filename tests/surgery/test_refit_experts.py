from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from tests.models import token_ids
from tests.zoo.experts import ROWS
from tests.zoo.row import adapted, structure_of

from loraprune.calibration.routed_tokens import RoutedTokens
from loraprune.layers.unwrap import base_layer, base_model
from loraprune.structure.plan import Plan
from loraprune.surgery.refit import cut_and_repair_
from loraprune.surgery.repairs import Refit
from loraprune.surgery.slicing import slice_

EVERY_FAMILY = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
pytestmark = pytest.mark.usefixtures("enough_tokens")

CALIBRATION = list(token_ids(40, 12, seed=3))
DAMPING = 0.02


def some_channels(structure):
    """Eight channels of each expert, each expert its own; all of everything else."""
    kept = dict(Plan.full(structure).kept)
    for d in structure:
        if d.consumer.stacked:
            kept[d.name] = tuple(
                sorted(e * d.per_stratum + (7 * e + 3 * i) % d.per_stratum for e in range(d.strata) for i in range(8))
            )
    return Plan(kept)


def first_experts(model, structure):
    """The first dimension inside experts and its module."""
    dimension = next(d for d in structure if d.consumer.stacked)
    return dimension, base_model(model).get_submodule(dimension.consumer.module)


def calls_of(model, module):
    """What the experts are called with, over the calibration set."""
    calls = []
    handle = base_layer(module).register_forward_pre_hook(lambda _, args: calls.append(args))
    with torch.no_grad():
        model(input_ids=torch.stack(CALIBRATION), use_cache=False)
    handle.remove()
    return calls


def inside_of(experts, calls, expert):
    """By hand: what enters the down projection of an expert, times the routing weight with which it leaves."""
    rows = []
    for hidden, index, weights in calls:
        for column in range(index.shape[1]):
            tokens = index[:, column] == expert
            gate, up = (hidden[tokens] @ experts.gate_up_proj[expert].T).chunk(2, dim=-1)
            rows.append(F.silu(gate) * up * weights[tokens, column, None])
    return torch.cat(rows).double()


def least_squares(inputs, weight, kept, damping):
    """Rows of the ridge stand below those of the data: ``min ‖XWᵀ − X_K Vᵀ‖²/n + δ‖V − W_K‖²``."""
    few = inputs[:, kept]
    strength = (damping * few.square().mean() * len(few)).sqrt()
    design = torch.cat([few, strength * torch.eye(len(kept), dtype=few.dtype)])
    wanted = torch.cat([inputs @ weight.T, strength * weight[:, kept].T])
    return torch.linalg.lstsq(design, wanted).solution.T


@EVERY_FAMILY
@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@torch.no_grad()
def test_each_expert_gets_the_least_squares_solution_of_its_own_tokens(row, lora):
    model = row.model()
    structure = structure_of(model, ("expert_channels",))
    model = adapted(model, structure) if lora else model
    merged = copy.deepcopy(model).merge_and_unload() if lora else copy.deepcopy(model)
    plan = some_channels(structure)
    dimension, experts = first_experts(merged, structure)
    calls = calls_of(merged, experts)
    cut_and_repair_(model, structure, Plan.full(structure), plan, calibration=CALIBRATION, repair=Refit(DAMPING))
    after = first_experts(model.merge_and_unload() if lora else model, structure)[1].down_proj
    for expert in range(4):
        kept = [g - expert * 32 for g in plan.kept[dimension.name] if g // 32 == expert]
        inputs = inside_of(experts, calls, expert)
        assert len(inputs) > 40
        expected = least_squares(inputs, experts.down_proj[expert].double(), kept, DAMPING)
        torch.testing.assert_close(after[expert].double(), expected, rtol=1e-3, atol=1e-4)


@EVERY_FAMILY
@torch.no_grad()
def test_experts_come_nearer_to_what_they_computed_than_after_a_plain_cut(row):
    model = row.model()
    structure = structure_of(model, ("expert_channels",))
    dimension, experts = first_experts(model, structure)
    (call,) = calls_of(model, experts)
    before = experts(*call)
    plan = Plan({**Plan.full(structure).kept, dimension.name: some_channels(structure).kept[dimension.name]})
    errors = []
    for calibration in (None, CALIBRATION):
        pruned = copy.deepcopy(model)
        cut_and_repair_(pruned, structure, Plan.full(structure), plan, calibration=calibration)
        errors.append((first_experts(pruned, structure)[1](*call) - before).norm())
    assert errors[1] < 0.95 * errors[0]


@torch.no_grad()
def test_experts_without_tokens_are_cut_plainly_and_the_others_are_refitted():
    model = ROWS[0].model()
    structure = structure_of(model, ("expert_channels",))
    for block in model.model.layers:
        block.mlp.gate.weight.zero_()  # all experts are equally good, and the same two are always taken
    ((_, index, _),) = calls_of(model, first_experts(model, structure)[1])
    taken = index.unique().tolist()
    assert len(taken) == 2
    plan = some_channels(structure)
    plain, refitted = copy.deepcopy(model), copy.deepcopy(model)
    slice_(plain, structure, Plan.full(structure), plan)
    with pytest.warns(UserWarning, match=r"layers\.0\.expert_channels: 2 of 4 experts are cut without a refit"):
        cut_and_repair_(refitted, structure, Plan.full(structure), plan, calibration=CALIBRATION)
    down, expected = (first_experts(m, structure)[1].down_proj for m in (refitted, plain))
    assert [expert for expert in range(4) if not torch.equal(down[expert], expected[expert])] == taken


@EVERY_FAMILY
@torch.no_grad()
def test_whole_experts_are_cut_without_a_refit_and_without_a_warning(row):
    model = row.model()
    structure = structure_of(model, ("experts",))
    plan = Plan({d.name: (0, 3) for d in structure})
    plain = copy.deepcopy(model)
    slice_(plain, structure, Plan.full(structure), plan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut_and_repair_(model, structure, Plan.full(structure), plan, calibration=CALIBRATION)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@EVERY_FAMILY
@torch.no_grad()
def test_a_pass_that_runs_whole_models_refits_the_same(row):
    structure = structure_of(row.model(), ("expert_channels",))
    dimension = next(d for d in structure if d.consumer.stacked)
    plan = Plan({**Plan.full(structure).kept, dimension.name: some_channels(structure).kept[dimension.name]})
    models = [row.model(), row.model()]
    for model, calibration in zip(models, (CALIBRATION, [{"input_ids": torch.stack(CALIBRATION)}]), strict=True):
        cut_and_repair_(model, structure, Plan.full(structure), plan, calibration=calibration)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_moment_of_an_expert_that_gets_no_token_is_none():
    experts = ROWS[0].model().model.layers[0].mlp.experts
    tokens = RoutedTokens([(torch.randn(3, 32), torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1))])
    assert tokens.weighted_features(experts, 1, moment=True) is None
    assert tokens.weighted_features(experts, 0, moment=True).moment.shape == (32, 32)
