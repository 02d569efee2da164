from __future__ import annotations

import copy

import pytest
import torch
from tests.models import sequence_losses, token_ids
from tests.zoo.experts import ROWS
from tests.zoo.row import adapted, structure_of
from torch.func import functional_call

from loraprune.importance.evidence.expert_gates import channel_gate_gradients, expert_gate_gradients
from loraprune.importance.evidence.gates import GateProbes
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

IDS = token_ids(4, 9)
CASES = [(row, kinds) for row in ROWS for kinds in (None, ("experts",))]
EVERY_CASE = pytest.mark.parametrize(
    ("row", "kinds"), CASES, ids=[f"{row.name} {kinds or 'default'}" for row, kinds in CASES]
)


def on_columns(weight, gates, consumer):
    """What a consumer's weight is when gates multiply what it reads."""
    if consumer.axis == "experts":
        return weight * gates[:, None, None]
    if consumer.stacked:
        return weight * gates.view(len(weight), 1, -1)
    return weight * gates.repeat_interleave(consumer.group_size)


def squared_gate_gradients(model, structure, ids):
    """By autograd: a gate of ones on every group, multiplied into the consumer's weight, one sequence at a time."""
    total = {}
    for sequence in ids:
        gates = {d.name: torch.ones(d.num_groups, requires_grad=True) for d in structure}
        weights = {
            f"{d.consumer.module}.{d.consumer.parameter}": on_columns(
                getattr(model.get_submodule(d.consumer.module), d.consumer.parameter).detach(),
                gates[d.name],
                d.consumer,
            )
            for d in structure
        }
        output = functional_call(model, weights, (), {"input_ids": sequence[None], "use_cache": False}).logits
        loss = torch.nn.functional.cross_entropy(output[0, :-1], sequence[1:])
        for name, gradient in zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True):
            total[name] = total.get(name, 0) + gradient.square() / len(ids)
    return total


def measured(model, structure, batches=(IDS,)):
    probes = GateProbes(model, structure)
    for ids in batches:
        sequence_losses(model, ids).sum().backward()
    taken = probes.take()
    probes.remove()
    return taken


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, values in expected.items():
        assert values.max() > 0
        torch.testing.assert_close(actual[name], values, rtol=1e-3, atol=1e-5 * values.max().item(), msg=name)


@EVERY_CASE
@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
def test_the_mean_squares_are_those_that_autograd_gives_for_gates_on_every_group(row, kinds, lora):
    model = row.model()
    structure = structure_of(model, kinds)
    merged = model
    if lora:
        model = adapted(model, structure)
        merged = copy.deepcopy(model).merge_and_unload()
    for parameter in merged.parameters():
        parameter.requires_grad_(False)
    assert_same(measured(model, structure), squared_gate_gradients(merged, structure, IDS))


@EVERY_CASE
def test_how_sequences_are_grouped_into_micro_batches_does_not_matter(row, kinds):
    model = row.model()
    structure = structure_of(model, kinds)
    assert_same(measured(model, structure, IDS.split(3)), measured(model, structure))


@EVERY_CASE
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_does_not_matter(row, kinds, reentrant):
    model = row.model()
    structure = structure_of(model, kinds)
    expected = measured(model, structure)
    model.train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same(measured(model, structure), expected)


def test_channels_of_an_expert_that_no_token_takes_get_zero():
    row = ROWS[0]
    model = row.model()
    structure = structure_of(model, ("expert_channels",))
    with torch.no_grad():
        for block in model.model.layers:
            block.post_attention_layernorm.weight.zero_()  # every logit of the router is 0: the first two are taken
    scores = measured(model, structure)
    assert {name: values.view(4, -1)[2:].max().item() for name, values in scores.items()} == dict.fromkeys(scores, 0.0)


def test_without_gradients_nothing_is_gathered_and_removal_leaves_no_trace():
    row = ROWS[0]
    model = row.model()
    for kinds in (None, ("experts",)):
        structure = structure_of(model, kinds)
        probes = GateProbes(model, structure)
        with torch.no_grad():
            sequence_losses(model, IDS)
        assert probes.take() == {}
        probes.remove()
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_pre_hooks


@EVERY_CASE
def test_gates_go_on_after_a_cut_with_the_groups_that_are_left(row, kinds):
    model = row.model()
    structure = structure_of(model, kinds)
    probes = GateProbes(model, structure)
    kept = {
        d.name: tuple(g for g in range(d.num_groups) if g % d.per_stratum < max(d.floor, d.per_stratum // 4))
        for d in structure
    }
    slice_(model, structure, Plan.full(structure), Plan(kept))
    sequence_losses(model, IDS).sum().backward()
    assert {name: len(values) for name, values in probes.take().items()} == {n: len(g) for n, g in kept.items()}


def test_the_gradient_of_a_channels_gate_is_summed_for_each_sequence_in_32_bits():
    hidden = torch.ones(5000, 1, dtype=torch.bfloat16)
    sequence = torch.arange(5000) // 4096
    assert channel_gate_gradients(hidden, hidden, sequence, 2).tolist() == [[4096.0], [904.0]]


def test_the_gradient_of_an_experts_gate_gathers_its_routing_weights_of_each_sequence():
    weights = torch.tensor([[0.5, 0.25], [0.25, 0.5], [1.0, 2.0], [3.0, 4.0]])
    gradients = torch.tensor([[2.0, 4.0], [8.0, 2.0], [1.0, 1.0], [1.0, 0.5]])
    index = torch.tensor([[0, 2], [2, 0], [1, 0], [1, 2]])
    expected = [[0.5 * 2 + 0.5 * 2, 0.0, 0.25 * 4 + 0.25 * 8], [2.0, 1.0 + 3.0, 4.0 * 0.5]]
    assert expert_gate_gradients(weights, gradients, index, 3, batch=2).tolist() == expected
