from __future__ import annotations

import copy

import pytest
import torch
from tests.models import FAMILIES, sequence_losses, tiny_model, token_ids, with_lora
from tests.zoo import ROWS
from tests.zoo.row import structure_of
from torch import nn
from torch.func import functional_call

import loraprune.pruning.gradients as gradients
from loraprune.importance.configs import GROUP_CRITERIA, Taylor
from loraprune.pruning.gradients import gradient_scores
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

# Two of one length, which make a batch together, and three that stand alone.
SEQUENCES = [token_ids(1, length, seed=seed)[0] for seed, length in enumerate((9, 5, 9, 12, 2))]
BY_NAME = {row.name: row for row in ROWS}
CASES = {
    **{family: (family, None) for family in FAMILIES},
    "query heads": ("qwen3", ("query_heads", "channels")),
    "gpt2": ("gpt2", ("heads", "channels")),
    "bloom": ("bloom", ("heads", "channels")),
    "mixtral": ("mixtral", None),
    "qwen2_moe": ("qwen2_moe", None),
    "whole experts": ("qwen3_moe", ("experts",)),
}
EVERY_CASE = pytest.mark.parametrize("case", CASES)
METHODS = pytest.mark.parametrize("method", ["fisher", "taylor"])


def made(case):
    name, kinds = CASES[case]
    model = tiny_model(name) if name in FAMILIES else BY_NAME[name].model()
    return model, structure_of(model, kinds)


def scores_of(model, structure, method="fisher", calibration=SEQUENCES, plan=None):
    return gradient_scores(model, structure, plan or Plan.full(structure), calibration, GROUP_CRITERIA[method]())


def gated(layer, parameter, gates):
    """The weight of a consumer when gates multiply what it reads."""
    weight = getattr(layer, parameter).detach()
    if weight.dim() == 3:
        return weight * (gates[:, None, None] if len(gates) == len(weight) else gates.view(len(weight), 1, -1))
    stored_io = type(layer).__name__ == "Conv1D"
    each = weight.shape[0 if stored_io else 1] // len(gates)
    along = gates.repeat_interleave(each)
    return weight * (along[:, None] if stored_io else along)


def squared_gate_gradients(model, structure, sequences=SEQUENCES):
    """By autograd: a gate of ones on every group, multiplied into the consumer's weight, one sequence at a time."""
    total = {}
    for sequence in sequences:
        gates = {d.name: torch.ones(d.num_groups, requires_grad=True) for d in structure}
        weights = {
            f"{d.consumer.module}.{d.consumer.parameter}": gated(
                model.get_submodule(d.consumer.module), d.consumer.parameter, gates[d.name]
            )
            for d in structure
        }
        logits = functional_call(model, weights, (), {"input_ids": sequence[None], "use_cache": False}).logits
        loss = nn.functional.cross_entropy(logits[0, :-1], sequence[1:])
        for name, gradient in zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True):
            total[name] = total.get(name, 0) + gradient.square() / len(sequences)
    return total


def squared_products(model, structure, sequences=SEQUENCES):
    """By autograd of the mean of the sequences' losses: the sum of (gradient times weight)² over each group."""
    copied = copy.deepcopy(model).requires_grad_(True)
    sum(sequence_losses(copied, sequence[None])[0] for sequence in sequences).div(len(sequences)).backward()
    found = {}
    for d in structure:
        total = torch.zeros(d.num_groups)
        for member in d.all_members:
            layer = copied.get_submodule(member.module)
            if not isinstance(layer, nn.Linear):
                continue
            squares = (layer.weight.grad * layer.weight.detach()).square()
            total += squares.sum(0 if member.axis == "input" else 1).view(d.num_groups, -1).sum(1)
        found[d.name] = total
    return found


def assert_same_scores(actual, expected, rtol=1e-4):
    assert set(actual) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(actual[name], values, rtol=rtol, atol=rtol * values.max().item(), msg=name)


def differs(actual, expected):
    return any(not torch.allclose(actual[name], expected[name], rtol=0.01) for name in expected)


@EVERY_CASE
def test_fisher_is_the_mean_over_sequences_of_the_squared_gradient_of_a_gate(case):
    model, structure = made(case)
    expected = squared_gate_gradients(model, structure)
    assert all(values.max() > 0 for values in expected.values())
    assert_same_scores(scores_of(model, structure), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_taylor_squares_the_gradient_of_the_mean_loss_times_the_weights(family):
    model = tiny_model(family)
    structure = describe(model)
    assert_same_scores(scores_of(model, structure, "taylor"), squared_products(model, structure))


@METHODS
def test_how_sequences_are_batched_does_not_matter(model, structure, method, monkeypatch):
    together = scores_of(model, structure, method)
    monkeypatch.setattr(gradients, "TOKENS_PER_GRADIENT", 1)
    assert_same_scores(scores_of(model, structure, method), together)


@METHODS
def test_mappings_of_inputs_give_what_the_tokens_in_them_give(model, structure, method):
    mappings = [{"input_ids": sequence[None], "labels": sequence[None]} for sequence in SEQUENCES]
    expected = scores_of(model, structure, method)
    assert_same_scores(scores_of(model, structure, method, mappings), expected)
    mixed = [*SEQUENCES[:2], *mappings[2:]]
    assert_same_scores(scores_of(model, structure, method, mixed), expected)


@METHODS
def test_a_cut_model_is_scored_by_the_groups_that_are_left(model, structure, method):
    plan = Plan.full(structure).keep({"layers.0.heads": [1, 3], "layers.1.channels": [0, 7, 9]})
    slice_(model, structure, Plan.full(structure), plan)
    shrunk = structure.shrunk({name: len(groups) for name, groups in plan.kept.items()})
    expected = (squared_gate_gradients if method == "fisher" else squared_products)(model, shrunk)
    assert_same_scores(scores_of(model, structure, method, plan=plan), expected)


@METHODS
def test_an_adapter_counts_as_what_it_adds_to_the_weights(model, structure, method):
    adapted = with_lora(model)
    merged = copy.deepcopy(adapted).merge_and_unload()
    assert_same_scores(scores_of(adapted, structure, method), scores_of(merged, structure, method), rtol=1e-3)


def hooks_of(model):
    return [
        (name, len(hooks))
        for name, module in model.named_modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    ]


def state_of(model):
    """What a look at the model may not change."""
    return {
        "hooks": hooks_of(model),
        "own forwards": [name for name, module in model.named_modules() if "forward" in module.__dict__],
        "modes": [module.training for module in model.modules()],
        "trained": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        "gradients": [name for name, parameter in model.named_parameters() if parameter.grad is not None],
    }


def in_an_odd_state(model):
    """Some modules train, and some parameters are trained."""
    model.train()
    model.model.layers[1].eval()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad = number % 3 == 0
    return model


@METHODS
@EVERY_CASE
def test_the_model_is_left_as_it_was(case, method):
    model, structure = made(case)
    if "model.layers" in structure.blocks[0]:
        in_an_odd_state(model)
    before, weights = state_of(model), [parameter.clone() for parameter in model.parameters()]
    scores_of(model, structure, method)
    assert state_of(model) == before
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), weights, strict=True))


@METHODS
@pytest.mark.parametrize("recomputing", [False, True])
def test_the_model_is_left_as_it_was_after_an_error(model, structure, method, recomputing, monkeypatch):
    if recomputing:
        pretend_to_be_an_accelerator(monkeypatch)
    in_an_odd_state(model)
    before = state_of(model)
    unknown_token = torch.tensor([1, 99])
    with pytest.raises(IndexError):
        scores_of(model, structure, method, [*SEQUENCES, unknown_token])
    assert state_of(model) == before


@METHODS
def test_calibration_data_without_labels_are_refused_with_the_way_out(model, structure, method):
    before = state_of(model)
    with pytest.raises(ValueError, match=r"no 'labels'\. Add labels, or choose a criterion without gradients"):
        scores_of(model, structure, method, [{"input_ids": token_ids()}])
    assert state_of(model) == before


@METHODS
def test_gradients_that_are_not_finite_are_refused(model, structure, method):
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    before = state_of(model)
    with pytest.raises(ArithmeticError, match="NaN or Inf"):
        scores_of(model, structure, method)
    assert state_of(model) == before


def pretend_to_be_an_accelerator(monkeypatch):
    """Let the parameters of any model say that they are elsewhere, to the code under test alone."""

    class _Elsewhere:
        type = "elsewhere"

    class _Parameter:
        device = _Elsewhere()

    enter = gradients._recomputing

    def elsewhere(model, structure):
        class _Model:
            def __getattr__(self, name):
                return getattr(model, name)

            def parameters(self):
                return iter([_Parameter()])

        return enter(_Model(), structure)

    monkeypatch.setattr(gradients, "_recomputing", elsewhere)


def counted_runs(model, structure):
    """How often the first layer of each block runs; grows while the model does."""
    runs = []
    for block in structure.blocks:
        first = next(module for module in model.get_submodule(block).modules() if hasattr(module, "weight"))
        first.register_forward_pre_hook(lambda *_, block=block: runs.append(block))
    return runs


@METHODS
@pytest.mark.parametrize("name", [*FAMILIES, "gpt2", "opt", "falcon with all KV heads", "qwen2_moe", "bloom"])
def test_recomputing_activations_gives_the_same_scores(name, method, monkeypatch):
    model = tiny_model(name) if name in FAMILIES else BY_NAME[name].model()
    structure = describe(model)
    expected = scores_of(model, structure, method)
    pretend_to_be_an_accelerator(monkeypatch)
    before, runs = state_of(model), counted_runs(model, structure)
    assert_same_scores(scores_of(model, structure, method), expected, rtol=1e-5)
    batches = len({len(sequence) for sequence in SEQUENCES})
    assert len(runs) == 2 * batches * len(structure.blocks)
    for module in model.modules():  # those of counted_runs
        module._forward_pre_hooks.clear()
    assert state_of(model) == before


def labeled(row):
    """What a row of the zoo is called with, and labels."""
    inputs = row.inputs()
    labels = inputs.get("decoder_input_ids", inputs.get("input_ids", torch.tensor([0, 3, 1])))
    return {**inputs, "labels": labels}


@METHODS
@pytest.mark.parametrize("name", ["t5", "bert", "vit", "convnext"])
def test_other_models_than_decoders_are_scored_with_and_without_recomputing(name, method, monkeypatch):
    row = BY_NAME[name]
    model, structure = row.model(), structure_of(row.model(), None)
    batch = labeled(row)
    alone = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(3)]
    expected = scores_of(model, structure, method, alone)
    assert {d.name: d.num_groups for d in structure} == {key: len(values) for key, values in expected.items()}
    assert all(values.max() > 0 for values in expected.values())
    assert_same_scores(scores_of(model, structure, method, [batch]), expected)
    pretend_to_be_an_accelerator(monkeypatch)
    before, runs = state_of(model), counted_runs(model, structure)
    assert_same_scores(scores_of(model, structure, method, [batch]), expected)
    assert len(runs) == 2 * len(structure.blocks)
    for module in model.modules():  # those of counted_runs
        module._forward_pre_hooks.clear()
    assert state_of(model) == before


DROPOUTS = {
    "llama": {"attention_dropout": 0.5},
    "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5},
    "falcon with all KV heads": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "bloom": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
}


@pytest.mark.parametrize("recomputing", [False, True])
@pytest.mark.parametrize("name", DROPOUTS)
def test_no_dropout_wakes(name, recomputing, monkeypatch):
    row = BY_NAME[name]
    quiet = row.model()
    config = row.config()
    for key, value in DROPOUTS[name].items():
        assert hasattr(config, key)
        setattr(config, key, value)
    model = row.auto.from_config(config, attn_implementation="eager")
    model.load_state_dict(quiet.state_dict())
    structure = describe(model)
    model.train()
    assert differs(scores_in_training(model, structure), scores_of(quiet, structure))
    if recomputing:
        pretend_to_be_an_accelerator(monkeypatch)
    assert_same_scores(scores_of(model, structure), scores_of(quiet, structure), rtol=1e-5)


def scores_in_training(model, structure):
    """With the dropout that the model has in training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "eval_mode", lambda model: torch.enable_grad())
        return scores_of(model, structure)


@pytest.mark.parametrize("form", ["squared", "first"])
def test_stacked_experts_have_the_forms_that_need_no_gradient_of_a_sequence(form):
    model, structure = made("mixtral")
    options = Taylor(form)
    scores = gradient_scores(model, structure, Plan.full(structure), SEQUENCES, options)
    assert all(bool((values > 0).any()) for values in scores.values())


@pytest.mark.parametrize("values", [{"form": "mix"}, {"offload": True}])
def test_what_cannot_be_had_of_stacked_experts_is_refused(values):
    model, structure = made("mixtral")
    with pytest.raises(
        ValueError, match="For stacked experts, the criterion 'taylor' supports the forms squared and first"
    ):
        gradient_scores(model, structure, Plan.full(structure), SEQUENCES, Taylor(**values))


def test_offloaded_gradients_give_the_same_scores():
    model, structure = made("llama")
    found = [
        gradient_scores(model, structure, Plan.full(structure), SEQUENCES, Taylor(offload=offload))
        for offload in (False, True)
    ]
    for name, values in found[0].items():
        torch.testing.assert_close(found[1][name], values)
