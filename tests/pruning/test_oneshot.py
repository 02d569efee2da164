from __future__ import annotations

import copy
import itertools

import pytest
import torch
from tests.allocation.test_allocate import step_size
from tests.allocation.test_global_allocation import finest_step
from tests.models import FAMILIES, logits_of, projections, tiny_model, token_ids
from tests.pruning.criteria import (
    CONSUMER_METHODS,
    STRUCTURED_METHODS,
    WEIGHT_METHODS,
    all_groups,
    pruned_without_training,
)
from tests.surgery.test_refit import correlated_model
from tests.zoo import ROWS
from tests.zoo.row import logits, structure_of

import loraprune.pruning.groups as shared
import loraprune.pruning.oneshot as pruning
from loraprune.allocation.allocate import allocate
from loraprune.allocation.target import ALLOCATIONS, BY_SCORES, Target
from loraprune.calibration.block_by_block import LayerwisePass, WholeModelPass
from loraprune.calibration.least_squares import refit_columns
from loraprune.importance.flap import flap_group_scores, standardized
from loraprune.importance.osscar import osscar_group_scores
from loraprune.importance.wanda import wanda_group_scores
from loraprune.layers.axes import axis_length, weight_oi
from loraprune.pruning.oneshot import score_groups
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.structure.widths import legal_widths
from loraprune.surgery.bias import give_biases_
from loraprune.surgery.slicing import slice_, slice_dimension_

pytestmark = pytest.mark.usefixtures("enough_tokens")

CALIBRATION = [token_ids(1, length, seed=length)[0] for length in (40, 33, 40, 50)]
BY_NAME = {row.name: row for row in ROWS}
EVERY_METHOD = pytest.mark.parametrize("method", STRUCTURED_METHODS)
REPAIRS = ("none", "bias", "refit")
EVERY_REPAIR = pytest.mark.parametrize("repair", REPAIRS)
EVERY_ALLOCATION = pytest.mark.parametrize("allocation", ALLOCATIONS)
DAMPING = 0.02


def pruned(model, structure, method, *, ratio=0.3, calibration=CALIBRATION, **options):
    """Prune a model in place."""
    options = {"allocation": "balanced", "repair": "refit", **options}
    target = Target(ratio=ratio, allocation=options.pop("allocation"))
    return pruned_without_training(
        model, structure, method, calibration, target=target, **{"damping": DAMPING, **options}
    )


def biased(model):
    """The same model with biases of zeros on its consumers."""
    give_biases_(model, describe(model))
    return model


def assert_at(model, dense, structure, plan):
    """The model has the widths of the plan, and its producers the rows of the groups that the plan keeps."""
    for d in structure:
        kept = plan.kept[d.name]
        consumer = model.get_submodule(d.consumer.module)
        if d.consumer.axis == "experts" or d.consumer.stacked:
            length = consumer.down_proj.shape[0] * (consumer.down_proj.shape[2] if d.consumer.stacked else 1)
        else:
            length = axis_length(consumer, "input")
        assert length == len(kept) * d.consumer.group_size, d.name
        for member in d.members:
            now, before = (m.get_submodule(member.module) for m in (model, dense))
            if not isinstance(now, torch.nn.Linear) or member.axis != "output" or len(member.segments) > 1:
                continue
            rows = [group * member.group_size + i for group in kept for i in range(member.group_size)]
            assert torch.equal(now.weight, before.weight[rows]), member.module


@EVERY_METHOD
@EVERY_REPAIR
@EVERY_ALLOCATION
def test_the_ratio_is_met_and_the_model_is_at_the_plan(method, repair, allocation):
    model = biased(tiny_model()) if repair == "bias" else tiny_model()
    structure, dense = describe(model), copy.deepcopy(model)
    result = pruned(model, structure, method, repair=repair, allocation=allocation)
    legal = legal_widths(structure)
    step = finest_step(structure, legal) if allocation == "global" else step_size(structure, legal)
    error = result.plan.removed_parameters(structure) - 0.3 * structure.prunable_parameters
    assert abs(error) <= step
    assert allocation == "global" or result.plan.is_uniform(structure)
    assert_at(model, dense, structure, result.plan)
    after = logits_of(model, token_ids())
    assert torch.isfinite(after).all()
    assert not torch.allclose(after, logits_of(dense, token_ids()))


@pytest.mark.parametrize("method", WEIGHT_METHODS)
@EVERY_ALLOCATION
@pytest.mark.parametrize("calibration", [(), CALIBRATION], ids=["no data", "data"])
def test_weights_alone_without_repair_give_the_plain_cut(method, allocation, calibration, model, structure):
    plain = copy.deepcopy(model)
    result = pruned(model, structure, method, repair="none", allocation=allocation, calibration=calibration)
    slice_(plain, structure, Plan.full(structure), result.plan)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), plain.parameters(), strict=True))


def rows_of(model, module):
    """By running the whole model on one sequence at a time: the rows that enter a layer, in 64 bits."""
    rows = []
    handle = module.register_forward_pre_hook(lambda _, args: rows.append(args[0].detach().flatten(0, -2)))
    for sequence in CALIBRATION:
        logits_of(model, sequence[None])
    handle.remove()
    return torch.cat(rows).double()


def scores_by_hand(method, weight_oi, rows, num_groups):
    positions = torch.arange(weight_oi.shape[1]).view(num_groups, -1)
    if method == "wanda":
        return wanda_group_scores(weight_oi, rows.square().mean(0), positions)
    if method == "flap":
        return flap_group_scores(weight_oi, rows.var(0, correction=0), positions)
    return osscar_group_scores(weight_oi, (rows.T @ rows / len(rows)).float(), positions, DAMPING)


@torch.no_grad()
def prune_by_hand(model, structure, method, repair, counts):
    """One dimension after the other: look at the whole model as it is by then, choose, repair, cut."""
    kept = {}
    for d in structure:
        consumer = model.get_submodule(d.consumer.module)
        rows, weight = rows_of(model, consumer), weight_oi(consumer).clone()
        scores = scores_by_hand(method, weight, rows, d.num_groups)
        each = scores.view(d.strata, -1)
        groups = sorted(
            stratum * each.shape[1] + group
            for stratum in range(d.strata)
            for group in each[stratum].argsort(descending=True)[: counts[d.name] // d.strata].tolist()
        )
        kept[d.name] = tuple(groups)
        size = weight.shape[1] // d.num_groups
        columns = torch.tensor([group * size + i for group in groups for i in range(size)])
        if repair == "bias":
            gone = [column for column in range(weight.shape[1]) if column not in columns]
            consumer.bias += weight[:, gone] @ rows.mean(0).float()[gone]
        slice_dimension_(model, d, groups, d.num_groups)
        if repair == "refit":
            moment = (rows.T @ rows / len(rows)).float()
            weight_oi(consumer).copy_(refit_columns(weight, moment, columns, DAMPING))
    return kept


BY_HAND = {
    "llama": ("llama", None),
    "qwen2": ("qwen2", None),
    "query heads": ("qwen3", ("query_heads", "channels")),
    "gpt2": ("gpt2", ("heads", "channels")),
    "opt": ("opt", ("heads", "channels")),
}


CAN_HAVE_BIASES = ("llama", "gpt2", "opt")
HAND_CASES = [
    (case, repair, allocation)
    for case in BY_HAND
    for repair in REPAIRS
    for allocation in (ALLOCATIONS if case == "llama" else ("uniform",))
    if repair != "bias" or case in CAN_HAVE_BIASES
]


@pytest.mark.parametrize("method", CONSUMER_METHODS)
@pytest.mark.parametrize(("case", "repair", "allocation"), HAND_CASES)
def test_groups_are_chosen_on_what_the_cut_blocks_before_them_have_become(case, method, repair, allocation):
    name, kinds = BY_HAND[case]
    model = tiny_model(name) if name in FAMILIES else BY_NAME[name].model()
    structure = structure_of(model, kinds)
    if repair == "bias":
        give_biases_(model, structure)
    by_hand = copy.deepcopy(model)
    result = pruned(model, structure, method, ratio=0.4, repair=repair, allocation=allocation, damping=DAMPING)
    counts = {d.name: result.plan.count(d.name) for d in structure}
    assert result.plan.kept == prune_by_hand(by_hand, structure, method, repair, counts)
    for (key, one), (_, other) in zip(model.named_parameters(), by_hand.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3, msg=key)


def dense_scores(model, structure, method, calibration=CALIBRATION):
    def make_pass():
        if structure.spec.decoder is not None and all(isinstance(item, torch.Tensor) for item in calibration):
            return LayerwisePass(model, structure, calibration)
        return WholeModelPass(model, calibration)

    return score_groups(model, all_groups(structure, method, DAMPING), calibration, make_pass)


def test_the_dense_model_would_have_chosen_other_groups():
    # Otherwise the test above could not tell.
    model = tiny_model(num_hidden_layers=4)
    structure = describe(model)
    scores = dense_scores(model, structure, "wanda")
    kept = pruned(model, structure, "wanda", ratio=0.5, repair="none", allocation="uniform").plan.kept
    best = {
        name: tuple(sorted(scores[name].argsort(descending=True)[: len(groups)].tolist()))
        for name, groups in kept.items()
    }
    assert best["layers.0.heads"] == kept["layers.0.heads"]
    assert best != kept


@EVERY_METHOD
@pytest.mark.parametrize("allocation", BY_SCORES)
def test_the_widths_follow_from_scores_of_the_whole_model(method, allocation, model, structure):
    scores = dense_scores(model, structure, method)
    scale = "loss" if method in ("fisher", "taylor") else "own"
    if method == "flap" and allocation == "global":
        sizes = {dimension.name: dimension.consumer.group_size for dimension in structure}
        scores, scale = {name: standardized(values, sizes[name]) for name, values in scores.items()}, "rank"
    expected = allocate(
        structure,
        Plan.full(structure),
        scores,
        0.3,
        legal_widths(structure),
        allocation,
        scale=scale,
    )
    plan = pruned(model, structure, method, repair="none", allocation=allocation).plan
    assert {n: len(groups) for n, groups in plan.kept.items()} == {n: len(g) for n, g in expected.kept.items()}
    if method not in CONSUMER_METHODS:
        assert plan == expected


@EVERY_METHOD
@pytest.mark.parametrize("allocation", BY_SCORES)
def test_several_cuts_end_at_the_same_ratio_and_only_shrink(method, allocation, monkeypatch):
    model = tiny_model(intermediate_size=48)
    structure, dense = describe(model), copy.deepcopy(model)
    plans = [Plan.full(structure)]
    cut_and_repair_ = shared.cut_and_repair_

    def watched(model, structure, before, after, **options):
        assert before == plans[-1]
        plans.append(cut_and_repair_(model, structure, before, after, **options))
        return plans[-1]

    monkeypatch.setattr(shared, "cut_and_repair_", watched)
    result = pruned(model, structure, method, ratio=0.6, allocation=allocation, cuts=3)
    assert len(plans) == 4
    for earlier, later in itertools.pairwise(plans):
        later.positions_in(earlier)  # refuses groups that had gone
        assert later != earlier
    assert result.plan == plans[-1]
    step = step_size(structure, legal_widths(structure)) / structure.prunable_parameters
    assert result.plan.ratio(structure) == pytest.approx(0.6, abs=step)
    head = sum(d.parameters_per_group for d in structure.of_kind("heads")) / structure.prunable_parameters
    for number, plan in enumerate(plans):
        assert plan.ratio(structure) == pytest.approx(0.2 * number, abs=max(step, head / 2))
    assert_at(model, dense, structure, result.plan)


@pytest.mark.parametrize("method", ["fisher", "wanda"])
def test_groups_are_scored_anew_before_each_cut(method, model, structure, monkeypatch):
    seen, score = [], pruning.score_groups

    def watched(model, groups, *rest, **options):
        seen.append(groups.plan)
        return score(model, groups, *rest, **options)

    monkeypatch.setattr(pruning, "score_groups", watched)
    pruned(model, structure, method, cuts=3, ratio=0.5)
    assert [plan.ratio(structure) > 0 for plan in seen] == [False, True, True]
    assert seen[1] != seen[2]


def outputs_of(model, module):
    """What a module gives on the calibration data."""
    outputs = []
    handle = module.register_forward_hook(lambda _, args, output: outputs.append(output.flatten(0, -2)))
    for sequence in CALIBRATION:
        logits_of(model, sequence[None])
    handle.remove()
    return torch.cat(outputs)


@EVERY_METHOD
def test_the_refit_brings_a_blocks_output_back_nearer_to_what_it_was(method):
    dense = correlated_model()
    structure = describe(dense)
    errors = {}
    for repair in ("none", "refit"):
        model = copy.deepcopy(dense)
        pruned(model, structure, method, ratio=0.5, repair=repair, allocation="uniform", calibration=CALIBRATION)
        outputs = [outputs_of(each, each.model.layers[0]) for each in (model, dense)]
        errors[repair] = (outputs[0] - outputs[1]).square().sum().item()
    assert errors["refit"] < 0.9 * errors["none"]


@pytest.mark.parametrize("method", ["magnitude", "random", "wanda"])
def test_a_bias_brings_a_consumers_output_back_nearer_to_what_it_was(method):
    dense = biased(tiny_model(num_hidden_layers=1))
    with torch.no_grad():  # values with a mean, which a bias can stand in for
        projections(dense, 0)["v_proj"].bias.fill_(1.0)
    structure = describe(dense, ("heads",))
    wanted = outputs_of(dense, projections(dense, 0)["o_proj"])
    errors = {}
    for repair in ("none", "bias"):
        model = copy.deepcopy(dense)
        pruned(model, structure, method, ratio=0.5, repair=repair, allocation="uniform")
        errors[repair] = (outputs_of(model, projections(model, 0)["o_proj"]) - wanted).square().sum().item()
    assert errors["bias"] < 0.9 * errors["none"]


@EVERY_METHOD
@EVERY_ALLOCATION
def test_every_group_that_may_go_has_a_finite_importance(method, allocation):
    model = tiny_model(num_hidden_layers=3)
    structure = describe(model, keep_layers=[1])
    result = pruned(model, structure, method, allocation=allocation, cuts=2)
    for d in structure.open:
        assert result.importance[d.name].shape == (d.num_groups,)
        assert torch.isfinite(result.importance[d.name]).all()


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_groups_keep_their_importance_over_several_cuts_under_their_first_numbers(method, model, structure):
    expected = dense_scores(model, structure, method)
    if method == "magnitude":
        structure = describe(model, ("heads",))  # no cut of others then changes the weights of a group
        expected = {d.name: expected[d.name] for d in structure}
    result = pruned(model, structure, method, ratio=0.5, cuts=2, repair="none", calibration=())
    assert set(result.importance) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(result.importance[name], values)


@pytest.mark.parametrize("method", CONSUMER_METHODS)
def test_the_importance_is_that_by_which_the_groups_were_chosen(method, model, structure):
    for allocation in ALLOCATIONS:
        result = pruned(copy.deepcopy(model), structure, method, allocation=allocation)
        for name, groups in result.plan.kept.items():
            if allocation == "measured" and name not in result.importance:
                assert len(groups) == {d.name: d for d in structure}[name].num_groups  # all stay
                continue
            scores = result.importance[name]
            assert set(groups) == set(scores.argsort(descending=True)[: len(groups)].tolist())
            if method != "osscar":
                assert (scores >= 0).all()  # not those that FLAP standardizes for its ranking


@EVERY_REPAIR
@pytest.mark.parametrize("method", ["fisher", "flap", "magnitude"])
@EVERY_ALLOCATION
def test_protected_layers_keep_everything(method, repair, allocation):
    model = biased(tiny_model(num_hidden_layers=3))
    structure = describe(model, keep_layers=[0, -1])
    dense = copy.deepcopy(model)
    result = pruned(model, structure, method, ratio=0.2, repair=repair, allocation=allocation)
    head = structure.of_kind("heads")[0].parameters_per_group
    assert result.plan.ratio(structure) == pytest.approx(0.2, abs=head / 2 / structure.prunable_parameters)
    for layer in (0, 2):
        for one, other in zip(
            model.model.layers[layer].parameters(), dense.model.layers[layer].parameters(), strict=True
        ):
            assert torch.equal(one, other)
    assert_at(model, dense, structure, result.plan)


def labeled(row):
    inputs = row.inputs()
    labels = inputs.get("decoder_input_ids", inputs.get("input_ids", torch.tensor([0, 3, 1])))
    return {**inputs, "labels": labels}


@EVERY_METHOD
@pytest.mark.parametrize(("repair", "allocation"), [("none", "uniform"), ("refit", "balanced")])
@pytest.mark.parametrize("name", ["t5", "vit", "convnext", "bloom"])
def test_models_that_are_cut_at_once_keep_their_best_groups(name, method, repair, allocation):
    row = BY_NAME[name]
    model = row.model()
    structure, dense = structure_of(model, None), copy.deepcopy(model)
    assert structure.spec.decoder is None
    batch = labeled(row)
    scores = dense_scores(model, structure, method, [batch])
    result = pruned(model, structure, method, repair=repair, allocation=allocation, calibration=[batch])
    assert result.plan.ratio(structure) == pytest.approx(0.3, abs=0.06)
    assert_at(model, dense, structure, result.plan)
    assert torch.isfinite(logits(model, row.inputs())).all()
    for d in structure:
        groups = result.plan.kept[d.name]
        if not d.tied and not d.alibi:
            assert set(groups) == set(scores[d.name].argsort(descending=True, stable=True)[: len(groups)].tolist())
    if repair == "none":
        slice_(dense, structure, Plan.full(structure), result.plan)
        assert all(torch.equal(one, other) for one, other in zip(model.parameters(), dense.parameters(), strict=True))


@pytest.mark.parametrize("name", ["t5", "vit", "bert", "bloom"])
def test_a_refit_of_models_that_are_cut_at_once_loses_less(name):
    row = BY_NAME[name]
    dense = row.model()
    structure = structure_of(dense, None)
    wanted = logits(dense, row.inputs())
    errors = {}
    for repair in ("none", "refit"):
        model = copy.deepcopy(dense)
        pruned(model, structure, "magnitude", repair=repair, calibration=[labeled(row)], damping=1e-4)
        errors[repair] = (logits(model, row.inputs()) - wanted).square().sum().item()
    assert errors["refit"] < 0.95 * errors["none"]


@pytest.mark.parametrize("method", WEIGHT_METHODS)
@pytest.mark.parametrize("name", ["t5", "vit"])
def test_models_that_are_cut_at_once_need_no_data_where_none_is_looked_at(name, method):
    row = BY_NAME[name]
    model = row.model()
    structure = structure_of(model, None)
    result = pruned(model, structure, method, repair="none", calibration=())
    assert result.plan.ratio(structure) == pytest.approx(0.3, abs=0.05)
    assert torch.isfinite(logits(model, row.inputs())).all()


@pytest.mark.parametrize("method", CONSUMER_METHODS)
@EVERY_ALLOCATION
def test_decoders_on_mappings_of_inputs_keep_their_best_groups(method, allocation, model, structure):
    batches = [{"input_ids": sequence[None]} for sequence in CALIBRATION]
    scores = dense_scores(model, structure, method, batches)
    plan = pruned(model, structure, method, allocation=allocation, calibration=batches).plan
    for name, groups in plan.kept.items():
        assert set(groups) == set(scores[name].argsort(descending=True)[: len(groups)].tolist())


@EVERY_METHOD
@pytest.mark.parametrize(
    ("name", "kinds"), [("mixtral", None), ("qwen2_moe", None), ("qwen3_moe", ("heads", "experts"))]
)
@pytest.mark.filterwarnings("ignore:.*too few calibration tokens.*:UserWarning")
def test_mixtures_of_experts_are_cut_to_the_ratio(name, kinds, method):
    row = BY_NAME[name]
    model = row.model()
    structure, dense = structure_of(model, kinds), copy.deepcopy(model)
    result = pruned(model, structure, method)
    # Channels of experts go by eights here, of all experts and layers at once.
    assert result.plan.ratio(structure) == pytest.approx(0.3, abs=0.1001)
    assert_at(model, dense, structure, result.plan)
    assert torch.isfinite(logits(model, row.inputs())).all()


@pytest.mark.parametrize("method", CONSUMER_METHODS)
@EVERY_ALLOCATION
def test_a_method_that_looks_at_data_asks_for_some(method, allocation, model, structure):
    with pytest.raises(ValueError, match="at least one sequence"):
        pruned(model, structure, method, allocation=allocation, repair="none", calibration=())


@EVERY_METHOD
def test_the_model_ends_in_the_mode_it_was_in(method, model, structure):
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    pruned(model, structure, method, cuts=2)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
