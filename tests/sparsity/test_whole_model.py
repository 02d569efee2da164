from __future__ import annotations

import copy
import math
import re
import warnings
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.models import tiny_model, token_ids
from tests.sparsity import golden
from tests.sparsity.test_matrices import gpt_oss
from tests.zoo import ROWS
from tests.zoo.layouts import by_layout
from torch import nn
from transformers.pytorch_utils import Conv1D

from loraprune.calibration.block_by_block import LayerwisePass, WholeModelPass
from loraprune.sparsity.configs import ZEROING_METHODS
from loraprune.sparsity.matrices import matrices_of
from loraprune.sparsity.methods import sparsify
from loraprune.sparsity.pattern import parse_pattern
from loraprune.sparsity.whole_model import RAISED_DAMPING, check_widths, sparsify_
from loraprune.structure.describe import describe

ROW = {row.name: row for row in ROWS}
SEQUENCES = [token_ids(1, length, seed=length)[0] for length in (30, 20, 30)]
PASSES = pytest.mark.parametrize("whole", [False, True], ids=["layer by layer", "whole model"])

pytestmark = pytest.mark.filterwarnings("ignore:.*calibration tokens are fewer:UserWarning")


def options(method="wanda", pattern="0.5", **changes):
    kind = ZEROING_METHODS[method]
    own = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in changes.items() if name in own}), parse_pattern(pattern)


def calibration_of(model, structure, *, whole=False, sequences=None):
    sequences = SEQUENCES if sequences is None else sequences
    return WholeModelPass(model, sequences) if whole else LayerwisePass(model, structure, sequences)


def sparse(model, given=None, *, whole=False, sequences=None):
    """The model made sparse, with what is told of it."""
    structure = describe(model)
    return sparsify_(
        model, structure, calibration_of(model, structure, whole=whole, sequences=sequences), *(given or options())
    )


def float_state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


# Every architecture.


def prunable_parameters(model, blocks):
    """Names of the weights in blocks that have several outputs and several inputs each, found by their classes."""
    names = set()
    for block in blocks:
        for name, module in model.get_submodule(block).named_modules(prefix=block):
            if isinstance(module, nn.Linear | Conv1D) and min(module.weight.shape) > 1:
                names.add(f"{name}.weight")
            names |= {f"{name}.{key}" for key, value in module.named_parameters(recurse=False) if value.dim() == 3}
    return names


@pytest.mark.parametrize(("method", "pattern"), [("wanda", "0.5"), ("sparsegpt", "2:4")])
@pytest.mark.parametrize("row", by_layout(ROWS), ids=lambda row: row.name)
@pytest.mark.filterwarnings("ignore:.*no calibration token reaches it:UserWarning")
def test_all_matrices_of_the_blocks_become_sparse_and_nothing_else_changes(row, method, pattern):
    model = row.model()
    structure = describe(model)
    if structure.spec.decoder is None:
        calibration = WholeModelPass(model, [row.inputs()])
    else:
        calibration = LayerwisePass(model, structure, list(row.inputs()["input_ids"]))
    expected = prunable_parameters(model, structure.blocks)
    before = float_state(model)
    given = options(method, pattern)
    records = sparsify_(model, structure, calibration, *given)
    after = model.state_dict()
    shared = {name for name in after if any(after[name].data_ptr() == after[other].data_ptr() for other in expected)}
    assert {name for name in after if not torch.equal(after[name], before[name])} == shared
    for layer, block in enumerate(structure.blocks):
        for matrix in matrices_of(model, block):
            (record,) = [found for found in records if found.name == matrix.name]
            zeros = matrix.weight_oi() == 0
            wanted = given[1].count(zeros.shape[1]) * zeros.shape[0]
            if method == "wanda":
                assert (zeros.sum(1) == given[1].count(zeros.shape[1])).all()
            else:  # dead inputs may take more
                assert (zeros.unflatten(1, (-1, 4)).sum(-1) >= 2).all()
                assert record.zeros >= wanted
            assert (record.layer, record.kind, record.weights) == (layer, matrix.kind, zeros.numel())
            assert record.zeros == int(zeros.sum())
            assert record.sparsity == record.zeros / record.weights
    assert {record.name.partition("[")[0] for record in records} == {name.removesuffix(".weight") for name in expected}
    with torch.no_grad():
        assert torch.isfinite(model(**row.inputs()).logits).all()
    assert not any(module._forward_pre_hooks for module in model.modules())


# The inputs: those of the model whose blocks before are sparse already.


def rows_entering(model, names, sequences=SEQUENCES):
    """By running the whole model on one sequence at a time: what enters some layers."""
    seen = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for name in names
    ]
    with torch.no_grad():
        for sequence in sequences:
            model(input_ids=sequence[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts).double().numpy() for name, parts in seen.items()}


def sparse_by_hand_(model, blocks, sparsified):
    """Each block from what the model as it is by then does; all layers of a block at once."""
    inputs = {}
    for block in blocks:
        layers = {
            name: module
            for name, module in model.get_submodule(block).named_modules(prefix=block)
            if isinstance(module, nn.Linear | Conv1D)
        }
        entering = rows_entering(model, layers)
        inputs |= entering
        new = {}
        for name, layer in layers.items():
            transposed = isinstance(layer, Conv1D)
            weight = layer.weight.detach().double().numpy()
            weight = sparsified(weight.T if transposed else weight, entering[name])
            new[name] = weight.T if transposed else weight
        with torch.no_grad():
            for name, layer in layers.items():
                layer.weight.copy_(torch.from_numpy(new[name].copy()))
    return inputs


def three_blocks(name):
    return tiny_model("llama", num_hidden_layers=3) if name == "llama" else ROW[name].model()


@PASSES
@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
@pytest.mark.parametrize("name", ["llama", "gpt2, untied"])
def test_wanda_sees_what_the_sparse_blocks_before_make_of_the_data(name, pattern, whole):
    model = three_blocks(name)
    by_hand = copy.deepcopy(model)
    blocks = describe(model).blocks
    parsed = parse_pattern(pattern)

    def sparsified(weight, rows):
        return np.where(golden.wanda_mask(weight, golden.norms_of(rows), parsed), 0.0, weight)

    sparse_by_hand_(by_hand, blocks, sparsified)
    sparse(model, options("wanda", pattern), whole=whole)
    for key, value in by_hand.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


@PASSES
def test_sparsegpt_sees_what_the_sparse_blocks_before_make_of_the_data(whole):
    model = tiny_model("llama", num_hidden_layers=2)
    by_hand = copy.deepcopy(model)
    parsed = parse_pattern("0.5")

    def sparsified(weight, rows):
        moment = rows.T @ rows / len(rows)
        updated, removed = golden.surgeon(weight, moment, 0.01, golden.sparsegpt(parsed), 8)
        return golden.with_better_rows(weight, updated, removed, moment)

    inputs = sparse_by_hand_(by_hand, describe(model).blocks, sparsified)
    dense = {name: value.double().numpy() for name, value in float_state(model).items()}
    records = sparse(model, options("sparsegpt", block_size=8), whole=whole)
    for key, value in by_hand.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=1e-4)
    for record in records:
        key, rows = f"{record.name}.weight", inputs[record.name]
        change = model.state_dict()[key].double().numpy() - dense[key]
        error = np.square(rows @ change.T).sum() / np.square(rows @ dense[key].T).sum()
        assert record.error == pytest.approx(error, rel=1e-2)
        assert record.damping == 0.01


def test_the_sparsity_of_the_blocks_before_is_felt():
    # Otherwise the tests above would say nothing.
    model = tiny_model("llama", num_hidden_layers=3)
    names = ["model.layers.2.mlp.down_proj"]
    before = rows_entering(model, names)[names[0]]
    sparse(model)
    after = rows_entering(model, names)[names[0]]
    assert np.abs(before - after).max() > 0.1


@PASSES
def test_the_matrices_of_a_block_see_what_entered_before_any_of_them_changed(whole):
    model = tiny_model("llama", num_hidden_layers=1)
    dense = copy.deepcopy(model)
    sparse(model, whole=whole)
    name = "model.layers.0.mlp.down_proj"
    masks = []
    for state in (dense, model):
        norms = golden.norms_of(rows_entering(state, [name])[name])
        masks.append(golden.wanda_mask(dense.get_submodule(name).weight.detach().numpy(), norms, parse_pattern("0.5")))
    zeros = (model.get_submodule(name).weight == 0).numpy()
    assert (zeros == masks[0]).all()
    assert (zeros != masks[1]).any()


def test_both_passes_give_the_same_model():
    models = [tiny_model("qwen2", num_hidden_layers=3) for _ in range(2)]
    for model, whole in zip(models, (False, True), strict=True):
        sparse(model, options("sparsegpt", "4:8"), whole=whole)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


# Experts.


def routed_to(model, layer, sequences):
    """By running the whole model: what enters each expert of a block, and what it makes of it inside."""
    experts = model.model.layers[layer].mlp.experts
    calls = []
    handle = experts.register_forward_pre_hook(lambda _, args: calls.append([value.double().numpy() for value in args]))
    with torch.no_grad():
        for sequence in sequences:
            model(input_ids=sequence[None], use_cache=False)
    handle.remove()
    entering, inside = {}, {}
    for expert, weight in enumerate(experts.gate_up_proj.detach().double().numpy()):
        rows = [
            row for states, chosen, _ in calls for row, names in zip(states, chosen, strict=True) if expert in names
        ]
        if rows:
            gate, up = np.split(np.array(rows) @ weight.T, 2, axis=1)
            entering[expert], inside[expert] = np.array(rows), gate / (1 + np.exp(-gate)) * up
    return entering, inside


def experts_by_hand_(model, layer, parsed, sequences):
    """Wanda on each expert with the tokens that are routed to it, and on nothing else."""
    experts = model.model.layers[layer].mlp.experts
    for parameter, inputs in zip(("gate_up_proj", "down_proj"), routed_to(model, layer, sequences), strict=True):
        values = getattr(experts, parameter)
        for expert, weight in enumerate(values.detach().numpy()):
            if expert in inputs:
                mask = golden.wanda_mask(weight, golden.norms_of(inputs[expert]), parsed)
            else:
                mask = golden.magnitude_mask(weight, parsed)
            yield parameter, expert, mask


@PASSES
@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_every_expert_goes_by_the_tokens_that_are_routed_to_it(name, pattern, whole):
    model = ROW[name].model()
    dense = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse(model, options("wanda", pattern), whole=whole)
    for parameter, expert, mask in experts_by_hand_(dense, 0, parse_pattern(pattern), SEQUENCES):
        values = getattr(model.model.layers[0].mlp.experts, parameter)[expert]
        old = getattr(dense.model.layers[0].mlp.experts, parameter)[expert]
        assert ((values == 0).numpy() == mask).all(), (parameter, expert)
        assert torch.equal(values, old.masked_fill(torch.from_numpy(mask), 0.0))


def test_the_experts_of_a_later_block_see_what_the_sparse_blocks_before_make():
    model = ROW["mixtral"].model()
    half = copy.deepcopy(model)
    structure = describe(half)
    protected = SimpleNamespace(blocks=structure.blocks, protected={1}, spec=structure.spec)
    sparsify_(half, protected, LayerwisePass(half, structure, SEQUENCES), *options())
    sparse(model)
    for parameter, expert, mask in experts_by_hand_(half, 1, parse_pattern("0.5"), SEQUENCES):
        values = getattr(model.model.layers[1].mlp.experts, parameter)[expert]
        assert ((values == 0).numpy() == mask).all(), (parameter, expert)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_an_expert_without_tokens_goes_by_magnitude_and_that_is_said(method):
    model = ROW["mixtral"].model()
    dense = copy.deepcopy(model)
    sequences = [token_ids(1, 1)[0]]  # one token, two of four experts
    entering, _ = routed_to(dense, 0, sequences)
    assert len(entering) == 2
    with pytest.warns(UserWarning, match="no calibration token reaches it") as caught:
        sparse(model, options(method), sequences=sequences)
    (said,) = [str(warning.message) for warning in caught if "no calibration" in str(warning.message)]
    idle = [expert for expert in range(4) if expert not in entering]
    # Both matrices of two experts in each of two layers; said once, with the first of them.
    first = re.match(r"model\.layers\.0\.mlp\.experts\.(?:gate_up_proj|down_proj)\[(\d)\] and 7 more matrices: ", said)
    assert first
    assert int(first[1]) in idle
    for parameter, expert, mask in experts_by_hand_(dense, 0, parse_pattern("0.5"), sequences):
        if expert in idle:
            values = getattr(model.model.layers[0].mlp.experts, parameter)[expert]
            assert ((values == 0).numpy() == mask).all()


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_experts_that_stand_the_other_way_round_lose_weights_of_their_outputs(pattern):
    model = gpt_oss()
    dense = copy.deepcopy(model)
    block = SimpleNamespace(blocks=("model.layers.0",), protected=frozenset())
    sparsify_(model, block, WholeModelPass(model, SEQUENCES), *options("wanda", pattern))
    calls = []
    dense.model.layers[0].mlp.experts.register_forward_pre_hook(lambda _, args: calls.append(args))
    with torch.no_grad():
        for sequence in SEQUENCES:
            dense(input_ids=sequence[None], use_cache=False)
    old, new = (state.model.layers[0].mlp.experts for state in (dense, model))
    for expert in range(len(old.down_proj)):
        rows = torch.cat([states[(chosen == expert).any(1)] for states, chosen, _ in calls])
        inside = old._apply_gate(rows @ old.gate_up_proj[expert] + old.gate_up_proj_bias[expert])
        for parameter, inputs in (("gate_up_proj", rows), ("down_proj", inside)):
            weight = getattr(old, parameter)[expert].detach().T.numpy()
            norms = golden.norms_of(inputs.detach().numpy())
            mask = golden.wanda_mask(weight, norms, parse_pattern(pattern))
            assert ((getattr(new, parameter)[expert].T == 0).numpy() == mask).all()
            assert torch.equal(getattr(old, f"{parameter}_bias"), getattr(new, f"{parameter}_bias"))


# The pass.


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_protected_blocks_stay_as_they_are_and_data_passes_through_them(method):
    model = tiny_model("llama", num_hidden_layers=3)
    whole = copy.deepcopy(model)
    structure = describe(model)
    before = float_state(model)
    progress = []
    protected = SimpleNamespace(blocks=structure.blocks, protected={0}, spec=structure.spec)
    records = sparsify_(
        model,
        protected,
        LayerwisePass(model, structure, SEQUENCES),
        *options(method),
        lambda *args: progress.append(args),
    )
    assert progress == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert {record.layer for record in records} == {1, 2}
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[2] for name in changed} == {"1", "2"}
    # A block is not sparse because of those behind it, and is because of those before it.
    sparse(whole, options(method))
    same = torch.equal(whole.model.layers[1].mlp.down_proj.weight, model.model.layers[1].mlp.down_proj.weight)
    assert same == (method == "magnitude")


def test_magnitude_needs_no_data():
    models = [tiny_model("llama") for _ in range(2)]
    structure = describe(models[0])
    sparsify_(models[0], structure, None, *options("magnitude"))
    sparse(models[1], options("magnitude"))
    for name, weight in models[0].state_dict().items():
        assert torch.equal(weight, models[1].state_dict()[name])
    for matrix in matrices_of(models[0], structure.blocks[1]):
        old = tiny_model("llama").get_submodule(matrix.name).weight.detach().numpy()
        assert ((matrix.weight_oi() == 0).numpy() == golden.magnitude_mask(old, parse_pattern("0.5"))).all()


@pytest.mark.parametrize("method", ZEROING_METHODS)
def test_the_result_is_the_same_again(method):
    states = []
    for _ in range(2):
        model = tiny_model("llama")
        sparse(model, options(method))
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_model_of_16_bits_keeps_its_dtype_and_has_as_many_zeros(method, dtype):
    model = tiny_model("llama", dtype=dtype)
    records = sparse(model, options(method, "2:4"))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert {record.sparsity for record in records} == {0.5}


def test_a_model_in_training_mode_is_in_training_mode_again():
    model = tiny_model("llama").train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    sparse(model)
    assert [module.training for module in model.modules()] == modes


def test_records_tell_errors_and_damping_where_the_method_has_any():
    for method in ZEROING_METHODS:
        records = sparse(tiny_model("llama"), options(method))
        moment = method not in ("magnitude", "wanda")
        assert {record.error is not None for record in records} == {moment}
        assert {record.damping for record in records} == {0.01 if moment else None}
        assert all(record.seconds >= 0 for record in records)
        assert len(records) == 14


# What is warned of, and what is refused.


def messages(caught):
    return [str(warning.message) for warning in caught]


@pytest.mark.filterwarnings("default:.*calibration tokens are fewer:UserWarning")
@pytest.mark.parametrize("tokens", [31, 30, 23])
def test_fewer_tokens_than_features_raise_the_damping_and_that_is_said_once(tokens):
    model = tiny_model("llama", num_hidden_layers=1)
    with pytest.warns(UserWarning, match="calibration tokens are fewer") as caught:
        records = sparse(model, options("sparsegpt"), sequences=[token_ids(1, tokens)[0]])
    (message,) = messages(caught)
    narrow = [record.name for record in records if record.damping == RAISED_DAMPING]
    assert ("model.layers.0.mlp.down_proj" in narrow) == (tokens < 24)
    assert message == (
        f"{narrow[0]} and {len(narrow) - 1} more matrices: {tokens} calibration tokens are fewer than 32 input "
        "features, so the updates are damped by 0.1 instead of 0.01. Use more calibration sequences."
    )
    assert {record.damping for record in records} <= {0.01, RAISED_DAMPING}


@pytest.mark.parametrize("tokens", [32, 80])
@pytest.mark.filterwarnings("error")
def test_as_many_tokens_as_features_are_enough(tokens):
    records = sparse(tiny_model("llama"), options("sparsegpt"), sequences=[token_ids(1, tokens)[0]])
    assert {record.damping for record in records} == {0.01}


@pytest.mark.filterwarnings("error")
def test_few_tokens_are_no_matter_to_methods_without_updates():
    for method in ("wanda", "magnitude"):
        sparse(tiny_model("llama"), options(method), sequences=[token_ids(1, 2)[0]])


def test_damping_that_is_stronger_already_is_not_lowered():
    records = sparse(tiny_model("llama"), options("sparsegpt", damping=0.3), sequences=[token_ids(1, 5)[0]])
    assert {record.damping for record in records} == {0.3}


class Spoiled(WholeModelPass):
    """A pass whose second moments of one layer are not what they should be."""

    spoiled = "model.layers.0.mlp.up_proj"

    def __init__(self, model, value):
        super().__init__(model, SEQUENCES)
        self._value = value

    def features_of(self, module_names, *, moment):
        found = super().features_of(module_names, moment=moment)
        if self.spoiled in found:
            width = len(found[self.spoiled].norms)
            indefinite = torch.eye(width)
            indefinite[0, 1] = indefinite[1, 0] = self._value
            kept = found[self.spoiled]
            found[self.spoiled] = SimpleNamespace(rows=kept.rows, norms=kept.norms, is_finite=True, moment=indefinite)
        return found


@pytest.mark.parametrize(("value", "used"), [(1.05, 0.1), (1.5, 1.0), (5.0, 10.0)])
def test_damping_that_had_to_be_raised_step_by_step_is_told(value, used):
    model = tiny_model("llama")
    with pytest.warns(UserWarning, match="not positive definite") as caught:
        records = sparsify_(model, describe(model), Spoiled(model, value), *options("sparsegpt"))
    (message,) = messages(caught)
    assert message == (
        f"{Spoiled.spoiled}: the second moment of the inputs is not positive definite with a damping of 0.01, so it "
        f"was raised to {used:g}."
    )
    assert {record.name for record in records if record.damping != 0.01} == {Spoiled.spoiled}
    (record,) = [record for record in records if record.name == Spoiled.spoiled]
    assert record.damping == pytest.approx(used)
    assert record.sparsity == 0.5


def test_where_no_damping_helps_the_weights_go_by_magnitude_and_that_is_said():
    model = tiny_model("llama")
    weight = model.get_submodule(Spoiled.spoiled).weight.detach().clone()
    with pytest.warns(UserWarning, match="cannot be inverted, even with a thousandfold damping") as caught:
        records = sparsify_(model, describe(model), Spoiled(model, 1e3), *options("sparsegpt"))
    (message,) = messages(caught)
    assert message.startswith(f"{Spoiled.spoiled}: ")
    (record,) = [record for record in records if record.name == Spoiled.spoiled]
    assert record.error is None
    expected = sparsify(weight, None, *options("magnitude")).weight_OI
    assert torch.equal(model.get_submodule(Spoiled.spoiled).weight, expected)


@PASSES
@pytest.mark.parametrize("spoil", [math.nan, math.inf])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_activations_that_are_not_finite_are_an_error_that_names_the_first_layer(method, spoil, whole):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 2] = spoil
    with pytest.raises(ArithmeticError, match=r"NaN or Inf at the inputs of model\.layers\.0\.mlp\.down_proj\."):
        sparse(model, options(method), whole=whole)


def test_activations_of_experts_that_are_not_finite_are_an_error_that_names_the_expert():
    model = ROW["mixtral"].model()
    with torch.no_grad():
        model.model.layers[0].mlp.experts.gate_up_proj[2, 3, 3] = math.nan
    with pytest.raises(ArithmeticError, match=r"inputs of model\.layers\.0\.mlp\.experts\.down_proj\[2\]\."):
        sparse(model)


# Widths, before any weight is loaded.


def shapes_of(name):
    with torch.device("meta"):
        return ROW[name].auto.from_config(ROW[name].config())


@pytest.mark.parametrize("name", ["llama", "gpt2, untied", "mixtral", "convnext", "t5"])
def test_widths_that_m_divides_pass_also_without_weights(name):
    model = shapes_of(name)
    for method in ZEROING_METHODS:
        for pattern in ("2:4", "4:8", "0.5") if name != "convnext" else ("2:4", "0.5"):
            check_widths(model, describe(model), *options(method, pattern))


@pytest.mark.parametrize(
    ("name", "pattern", "layer", "width"),
    [
        ("llama", "8:16", "model.layers.0.mlp.down_proj", 24),
        ("llama", "5:12", "model.layers.0.self_attn.q_proj", 32),
        ("gpt2, untied", "8:16", "transformer.h.0.mlp.c_proj", 24),  # 32 outputs
        ("mixtral", "2:5", "model.layers.0.self_attn.q_proj", 32),
        ("deepseek_v3", "8:32", "model.layers.0.self_attn.q_b_proj", 8),
    ],
)
def test_a_width_that_m_does_not_divide_is_refused_with_the_name_of_the_layer(name, pattern, layer, width):
    model = shapes_of(name)
    with pytest.raises(ValueError, match="is not a multiple of") as raised:
        check_widths(model, describe(model), *options("wanda", pattern))
    assert str(raised.value).startswith(
        f"{layer} has {width} inputs, which is not a multiple of {pattern.partition(':')[2]}"
    )


def test_protected_blocks_may_have_any_width():
    model = shapes_of("llama")
    structure = describe(model)
    everything = SimpleNamespace(blocks=structure.blocks, protected={0, 1})
    check_widths(model, everything, *options("wanda", "8:16"))


@pytest.mark.parametrize(
    ("method", "changes", "layer", "compared"),
    [
        ("wanda", {}, "q_proj", 32),
        ("wanda+obs", {}, "q_proj", 32),
        # k and v have the fewest weights: 16 rows of 32.
        ("wanda", {"variant": True}, "k_proj", 16 * 32),
        ("magnitude", {}, "k_proj", 16 * 32),
        ("magnitude+obs", {}, "k_proj", 16 * 32),
        ("sparsegpt", {}, "k_proj", 16 * 32),
        ("sparsegpt", {"block_size": 8}, "k_proj", 16 * 8),
        ("wanda+obs", {"block_size": 8, "order": "iterative"}, "k_proj", 16 * 8),
        ("magnitude+obs", {"block_size": 8, "order": "iterative"}, "k_proj", 16 * 8),
    ],
)
def test_a_share_that_removes_nothing_of_a_matrix_is_refused_with_how_many_weights_are_compared(
    method, changes, layer, compared
):
    model = shapes_of("llama")
    structure = describe(model)
    with pytest.raises(ValueError, match=f"removes nothing from .*: {compared} weights are compared") as raised:
        check_widths(model, structure, *options(method, str(0.999 / compared), **changes))
    assert f"model.layers.0.self_attn.{layer}" in str(raised.value)
    if layer == "k_proj":  # of rows, those of down_proj are shorter
        check_widths(model, structure, *options(method, str(1.001 / compared), **changes))
