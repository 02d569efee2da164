from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.models import FAMILIES, logits_of, projections, tiny_model, token_ids, with_lora
from tests.pruning.criteria import criterion_of
from tests.zoo import ROWS, experts
from tests.zoo.row import adapted, structure_of

from loraprune.calibration.block_by_block import LayerwisePass, WholeModelPass
from loraprune.calibration.least_squares import NotPositiveDefiniteError
from loraprune.importance.consumer_inputs import group_positions
from loraprune.importance.flap import flap_group_scores
from loraprune.importance.osscar import osscar_group_scores
from loraprune.importance.wanda import wanda_group_scores
from loraprune.pruning.consumer_scores import consumer_scores
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

CALIBRATION = [token_ids(1, length, seed=length)[0] for length in (40, 33, 40, 50)]
DAMPING = 0.03
METHODS = pytest.mark.parametrize("method", ["wanda", "flap", "osscar"])
EVERY_MIXTURE = pytest.mark.parametrize("row", experts.ROWS, ids=lambda row: row.name)
BY_NAME = {row.name: row for row in ROWS}


def inputs_of(model, module):
    """By running the whole model on one sequence at a time: the rows that enter a layer, in 64 bits."""
    rows = []
    handle = module.register_forward_pre_hook(lambda _, args: rows.append(args[0].detach().flatten(0, -2)))
    for sequence in CALIBRATION:
        logits_of(model, sequence[None])
    handle.remove()
    return torch.cat(rows).double().numpy()


def pure_scores(method, weight_oi, rows, positions):
    """The pure function of a method on statistics by NumPy."""
    if method == "wanda":
        return wanda_group_scores(weight_oi, torch.tensor((rows**2).mean(0)), positions)
    if method == "flap":
        return flap_group_scores(weight_oi, torch.tensor(rows.var(0)), positions)
    return osscar_group_scores(weight_oi, torch.tensor(rows.T @ rows / len(rows)).float(), positions, DAMPING)


def scores_in_turn(method, model, structure, plan=None, calibration_pass=None):
    """Scores of all dimensions, block by block."""
    plan = plan or Plan.full(structure)
    calibration_pass = calibration_pass or LayerwisePass(model, structure, CALIBRATION)
    found = {}
    for layer in range(len(structure.blocks)):
        for d in structure.of_layer(layer):
            found[d.name] = consumer_scores(
                criterion_of(method, DAMPING), model, d, plan.count(d.name), calibration_pass
            )
        calibration_pass.advance()
    return found


def in_rows(groups, size):
    return torch.arange(groups * size).view(groups, size)


@METHODS
@pytest.mark.parametrize("family", FAMILIES)
def test_the_scores_are_those_of_what_enters_the_consumer_on_the_calibration_data(family, method):
    model = tiny_model(family)
    scores = scores_in_turn(method, model, describe(model))
    for layer in range(2):
        for name, consumer, groups, size in (("heads", "o_proj", 4, 8), ("channels", "down_proj", 24, 1)):
            module = projections(model, layer)[consumer]
            expected = pure_scores(method, module.weight.detach(), inputs_of(model, module), in_rows(groups, size))
            actual = scores[f"layers.{layer}.{name}"]
            assert actual.shape == (groups,)
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)


@METHODS
def test_query_heads_are_scored_one_by_one(method):
    model = tiny_model("qwen3")
    scores = scores_in_turn(method, model, describe(model, ("query_heads", "channels")))
    module = projections(model, 1)["o_proj"]
    expected = pure_scores(method, module.weight.detach(), inputs_of(model, module), in_rows(8, 4))
    torch.testing.assert_close(scores["layers.1.query_heads"], expected, rtol=1e-3, atol=1e-5)


@METHODS
def test_weights_that_are_stored_the_other_way_round_are_scored_the_same(method):
    model = BY_NAME["gpt2"].model()
    structure = structure_of(model, ("heads", "channels"))
    scores = scores_in_turn(method, model, structure)
    for d in structure:
        block = model.transformer.h[d.layer]
        module = block.attn.c_proj if d.kind == "heads" else block.mlp.c_proj
        positions = in_rows(d.num_groups, module.weight.shape[0] // d.num_groups)
        expected = pure_scores(method, module.weight.detach().T, inputs_of(model, module), positions)
        torch.testing.assert_close(scores[d.name], expected, rtol=1e-3, atol=1e-5)


@METHODS
def test_the_groups_that_a_cut_left_are_scored(method, model, structure):
    plan = Plan.full(structure).keep({"layers.0.heads": [1, 3], "layers.1.channels": [2, 7, 9, 20]})
    slice_(model, structure, Plan.full(structure), plan)
    scores = scores_in_turn(method, model, structure, plan)
    for name, layer, consumer, groups, size in (
        ("layers.0.heads", 0, "o_proj", 2, 8),
        ("layers.1.channels", 1, "down_proj", 4, 1),
    ):
        module = projections(model, layer)[consumer]
        expected = pure_scores(method, module.weight.detach(), inputs_of(model, module), in_rows(groups, size))
        torch.testing.assert_close(scores[name], expected, rtol=1e-3, atol=1e-5)


@METHODS
def test_an_adapter_counts_as_what_it_adds_to_the_weights(method, model, structure):
    lora = with_lora(model)
    merged = copy.deepcopy(lora).merge_and_unload()
    expected = scores_in_turn(method, merged, structure)
    for name, actual in scores_in_turn(method, lora, structure).items():
        torch.testing.assert_close(actual, expected[name], rtol=1e-3, atol=1e-5)


@METHODS
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_a_pass_over_whole_models_gives_the_same_scores(method, name):
    model = BY_NAME[name].model()
    structure = describe(model)
    expected = scores_in_turn(method, model, structure)
    whole = WholeModelPass(model, [{"input_ids": sequence[None]} for sequence in CALIBRATION])
    actual = scores_in_turn(method, model, structure, calibration_pass=whole)
    assert set(actual) == set(expected)
    for key, values in expected.items():
        torch.testing.assert_close(actual[key], values, rtol=1e-3, atol=1e-5)


def calls_of(model, module):
    """What the experts of a block are called with."""
    calls = []
    handle = module.register_forward_pre_hook(lambda _, args: calls.append(args))
    for sequence in CALIBRATION:
        logits_of(model, sequence[None])
    handle.remove()
    return calls


def inside_of(module, calls, expert):
    """By hand: what enters the down projection of an expert, times the weight with which its output counts."""
    rows = []
    for hidden, index, weights in calls:
        for column in range(index.shape[1]):
            tokens = index[:, column] == expert
            gate, up = (hidden[tokens] @ module.gate_up_proj[expert].T).chunk(2, dim=-1)
            rows.append(F.silu(gate) * up * weights[tokens, column, None])
    return torch.cat(rows).double().numpy()


@METHODS
@EVERY_MIXTURE
@torch.no_grad()
def test_channels_of_an_expert_are_scored_on_its_own_tokens_and_count_for_each_of_them(row, method):
    model = row.model()
    structure = structure_of(model, ("expert_channels",))
    scores = scores_in_turn(method, model, structure)
    for d in (d for d in structure if d.consumer.stacked):  # shared experts are ordinary layers
        module = model.get_submodule(d.consumer.module)
        calls = calls_of(model, module)
        for expert in range(4):
            rows = inside_of(module, calls, expert)
            expected = pure_scores(method, module.down_proj[expert], rows, in_rows(32, 1)) * len(rows)
            actual = scores[d.name][expert * 32 : (expert + 1) * 32]
            torch.testing.assert_close(actual, expected, rtol=2e-3, atol=1e-4)


@METHODS
@EVERY_MIXTURE
@torch.no_grad()
def test_a_whole_expert_counts_for_all_of_its_channels_or_all_of_its_output(row, method):
    model = row.model()
    structure = structure_of(model, ("experts",))
    scores = scores_in_turn(method, model, structure)
    for d in structure:
        module = model.get_submodule(d.consumer.module)
        calls = calls_of(model, module)
        expected = []
        for expert in range(4):
            rows, weight = inside_of(module, calls, expert), module.down_proj[expert]
            if method == "osscar":  # the squared size of everything that the expert gives
                expected.append(np.square(rows @ weight.double().numpy().T).sum())
            else:
                expected.append(pure_scores(method, weight, rows, in_rows(32, 1)).sum().item() * len(rows))
        assert scores[d.name].tolist() == pytest.approx(expected, rel=1e-3)


@METHODS
@pytest.mark.parametrize("kind", ["experts", "expert_channels"])
def test_an_expert_without_tokens_scores_zero(method, kind):
    model = BY_NAME["mixtral"].model()
    structure = structure_of(model, (kind,))
    first, second = structure.dimensions
    module = model.get_submodule(first.consumer.module)
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight.zero_()  # the same two experts are always taken
    taken = {int(expert) for _, index, _ in calls_of(model, module) for expert in index.unique()}
    assert len(taken) == 2
    scores = scores_in_turn(method, model, structure)
    by_expert = scores[first.name].view(4, -1)
    assert {expert for expert in range(4) if (by_expert[expert] > 0).all()} == taken
    assert {expert for expert in range(4) if (by_expert[expert] == 0).all()} == {0, 1, 2, 3} - taken
    assert (scores[second.name] > 0).all()


@METHODS
@pytest.mark.parametrize("kind", ["experts", "expert_channels"])
def test_the_adapter_of_an_expert_counts_as_what_it_adds(method, kind):
    model = BY_NAME["qwen3_moe"].model()
    structure = structure_of(model, (kind,))
    lora = adapted(model, structure)
    merged = copy.deepcopy(lora).merge_and_unload()
    expected = scores_in_turn(method, merged, structure)
    for name, actual in scores_in_turn(method, lora, structure).items():
        torch.testing.assert_close(actual, expected[name], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_groups_whose_refit_error_cannot_be_told_are_scored_by_wanda_with_a_warning(monkeypatch, name):
    model = BY_NAME[name].model()
    structure = describe(model)
    expected = scores_in_turn("wanda", model, structure)

    def refused(*args):
        raise NotPositiveDefiniteError("no")

    monkeypatch.setattr("loraprune.importance.osscar.osscar_group_scores", refused)
    with pytest.warns(UserWarning, match=r"layers\.0\.heads: the second moment .* scored by wanda.* larger --damping"):
        actual = scores_in_turn("osscar", model, structure)
    for key, values in expected.items():
        assert torch.equal(actual[key], values)


@METHODS
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_activations_that_are_not_finite_are_refused_with_the_dimension(method, name):
    model = BY_NAME[name].model()
    structure = describe(model)
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight.fill_(torch.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ArithmeticError, match=r"layers\.1\.(expert_)?channels .* NaN or Inf"):
            scores_in_turn(method, model, structure)


@METHODS
def test_looking_leaves_the_model_as_it_was(method, model, structure):
    before = [parameter.clone() for parameter in model.parameters()]
    scores_in_turn(method, model, structure)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_positions_of_groups_leave_out_what_belongs_to_none(structure):
    heads = structure.dimensions[0]
    assert group_positions(heads, 4, 32).tolist() == in_rows(4, 8).tolist()
    assert group_positions(heads, 3, 30).tolist() == in_rows(3, 8).tolist()
