"""Compresso: hard-concrete gates, the constraint on them, and what is learnt."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tests.models import sequence_losses, tiny_model, token_ids, with_lora

from loraprune import PruningConfig
from loraprune.importance.compresso import (
    expected_gates,
    expected_parameters,
    keep_probability,
    lagrangian,
    log_alpha_of,
    sampled_gates,
    target_at,
)
from loraprune.importance.configs import Compresso
from loraprune.importance.evidence.learned_gates import LearnedGates, check_gateable
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan

LOCATIONS = torch.tensor([-3.0, -0.5, 0.0, 1.7, 4.0])
IDS = token_ids(4, 9)


def plain_gate(location: float, uniform: float) -> float:
    """A sample by hand, with the numbers of the paper."""
    noise = math.log(uniform) - math.log(1 - uniform)
    concrete = 1 / (1 + math.exp(-(noise + location) / (2 / 3)))
    return min(1.0, max(0.0, concrete * 1.2 - 0.1))


@pytest.mark.parametrize("uniform", [0.001, 0.3, 0.5, 0.92])
def test_samples_equal_those_by_hand(uniform):
    expected = torch.tensor([plain_gate(float(location), uniform) for location in LOCATIONS])
    torch.testing.assert_close(sampled_gates(LOCATIONS, torch.full((5,), uniform)), expected)


def test_the_probability_to_be_open_is_the_share_of_all_noise_that_opens_a_gate():
    count = 100_000
    for location in LOCATIONS.tolist():
        is_open = sum(plain_gate(location, (i + 0.5) / count) > 0 for i in range(count)) / count
        assert keep_probability(torch.tensor(location)).item() == pytest.approx(is_open, abs=1e-4)


def test_gates_outside_of_training_are_stretched_sigmoids():
    expected = [min(1.0, max(0.0, 1.2 / (1 + math.exp(-location)) - 0.1)) for location in LOCATIONS.tolist()]
    assert expected_gates(LOCATIONS).tolist() == pytest.approx(expected)
    assert expected_gates(torch.tensor([-4.0, 4.0])).tolist() == [0.0, 1.0]


def test_gates_start_where_the_initial_drop_says():
    assert 1 / (1 + math.exp(-log_alpha_of(0.2))) == pytest.approx(0.8)


def test_expected_parameters_weigh_each_group_by_its_size():
    probabilities, sizes = [0.25, 1.0, 0.5], [8.0, 2.0, 100.0]
    assert expected_parameters(torch.tensor(probabilities), torch.tensor(sizes)).item() == 0.25 * 8 + 2 + 50


def test_the_lagrangian_pulls_gates_shut_below_the_target_and_its_multipliers_apart():
    removed = torch.tensor(0.2, requires_grad=True)
    multipliers = torch.tensor([-3.0, 2.0], requires_grad=True)
    value = lagrangian(removed, 0.5, multipliers)
    assert value.item() == pytest.approx(-3.0 * -0.3 + 2.0 * 0.09)
    value.backward()
    assert removed.grad.item() == pytest.approx(-3.0 + 2 * 2.0 * -0.3)
    assert multipliers.grad.tolist() == pytest.approx([-0.3, 0.09])


def test_the_gradient_of_the_expected_ratio_is_that_of_its_formula():
    location = 0.7
    leaf = torch.tensor([location], requires_grad=True)
    expected_parameters(keep_probability(leaf), torch.tensor([40.0])).backward()
    probability = 1 / (1 + math.exp(-(location - 2 / 3 * math.log(0.1 / 1.1))))
    assert leaf.grad.item() == pytest.approx(40 * probability * (1 - probability))


def test_the_target_rises_to_the_ratio_and_stays_there():
    linear = [target_at(step, 40, 0.5, 0.5, "linear") for step in range(40)]
    assert linear[:3] == pytest.approx([0.0, 0.025, 0.05])
    assert linear[20:] == [0.5] * 20
    cubic = [target_at(step, 40, 0.5, 0.5, "cubic") for step in range(40)]
    assert all(a <= b for a, b in pairwise(cubic))
    assert cubic[10] == pytest.approx(0.5 * (1 - 0.5**3))
    assert target_at(0, 40, 0.5, 0.0, "linear") == 0.5


def learning(model, structure=None, *, steps=40, ratio=0.5, **options):
    criterion = Compresso(**options).build(seed=3)
    criterion.attach(model, structure or describe(model))
    criterion.begin(steps, ratio)
    return criterion


def backward(model, ids=IDS):
    model.train()
    sequence_losses(model, ids).mean().backward()


def test_the_gradient_of_the_gates_is_that_of_a_model_with_gates_in_its_weights():
    model = tiny_model("llama").train()
    gates = LearnedGates(model, describe(model))
    values = {name: torch.rand(count) + 0.2 for name, count in gates.num_groups().items()}
    gates.set(values, values)
    for part in IDS.split(2):  # two micro-batches
        (sequence_losses(model, part).sum() / len(IDS)).backward()
    taken = gates.take()
    gates.remove()

    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    parameters = {}
    for layer in range(2):
        for kind, name in (("heads", "self_attn.o_proj"), ("channels", "mlp.down_proj")):
            weight = model.get_submodule(f"model.layers.{layer}.{name}").weight
            gate = leaves[f"layers.{layer}.{kind}"]
            columns = gate.repeat_interleave(weight.shape[1] // len(gate))
            parameters[f"model.layers.{layer}.{name}.weight"] = weight.detach() * columns
    logits = torch.func.functional_call(model, parameters, (), {"input_ids": IDS}).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(taken[name], leaf.grad, rtol=1e-4, atol=1e-6)


def test_a_step_follows_the_gradient_of_loss_and_lagrangian_together():
    model = with_lora(tiny_model("llama"))
    criterion = learning(model, warmup=0.0, initial_drop=0.5)
    with torch.no_grad():
        criterion.multipliers.copy_(torch.tensor([-2.0, 5.0]))
    start = criterion.log_alpha_G.detach().clone()
    uniform = criterion._uniform()
    backward(model)
    gradients = torch.cat([gate._sampled.grad for gate in criterion._gates._gates.values()])

    leaf = start.clone().requires_grad_()
    probabilities = torch.sigmoid(leaf - 2 / 3 * math.log(0.1 / 1.1)).double()
    prunable = criterion._structure.prunable_parameters
    excess = (criterion._parameters_G * (1 - probabilities)).sum() / prunable - 0.5
    concrete = torch.sigmoid((torch.logit(uniform) + leaf) / (2 / 3)) * 1.2 - 0.1
    ((concrete.clamp(0, 1) * gradients).sum() + -2.0 * excess + 5.0 * excess**2).backward()

    seen = {}
    criterion._optimizer.register_step_pre_hook(
        lambda *_: seen.update(alpha=criterion.log_alpha_G.grad.clone(), multipliers=criterion.multipliers.grad.clone())
    )
    criterion.learn()
    criterion.detach()
    torch.testing.assert_close(seen["alpha"], leaf.grad, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(seen["multipliers"], torch.stack([excess, excess**2]).float().detach())


def test_the_expected_ratio_comes_to_the_target():
    model = with_lora(tiny_model("llama"))
    criterion = learning(model, steps=300, ratio=0.4, learning_rate=0.2, multiplier_learning_rate=0.05)
    for _ in range(300):
        backward(model)
        criterion.learn()
    criterion.detach()
    assert criterion.expected_ratio().item() == pytest.approx(0.4, abs=0.05)


def test_groups_that_do_nothing_get_the_lowest_scores():
    model = with_lora(tiny_model("llama"))
    useless = [1, 5, 6, 11, 17, 20]
    with torch.no_grad():
        for layer in range(2):
            base = model.get_base_model().model.layers[layer].mlp.down_proj.base_layer.weight
            base.mul_(100.0)
            base[:, useless] = 0.0
            model.get_base_model().model.layers[layer].mlp.down_proj.lora_B["default"].weight.zero_()
    structure = describe(model, ("channels",))
    criterion = learning(model, structure, steps=150, ratio=0.25, learning_rate=0.05, multiplier_learning_rate=0.05)
    with torch.no_grad():
        teacher = model.eval()(input_ids=IDS).logits.softmax(-1)
    for _ in range(150):
        logits = model.train()(input_ids=IDS).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), teacher.flatten(0, 1)).backward()
        criterion.learn()
    scores = criterion.scores(Plan.full(structure))
    criterion.detach()
    for values in scores.values():
        assert sorted(values.argsort()[: len(useless)].tolist()) == useless


def test_nothing_is_learnt_from_a_step_that_is_not_usable():
    model = with_lora(tiny_model("llama"))
    criterion = learning(model)
    before = criterion.log_alpha_G.detach().clone()
    backward(model)
    criterion.learn(usable=False)
    assert torch.equal(criterion.log_alpha_G, before)
    next(iter(model.parameters())).data.fill_(float("nan"))
    backward(model)
    criterion.learn()
    assert torch.equal(criterion.log_alpha_G, before)
    criterion.detach()


def test_the_sample_stays_the_same_over_a_step_and_changes_with_the_next_one():
    model = with_lora(tiny_model("llama")).train()
    criterion = learning(model, initial_drop=0.5)
    first, again = (sequence_losses(model, IDS).detach() for _ in range(2))
    criterion.learn(usable=False)
    after = sequence_losses(model, IDS).detach()
    criterion.detach()
    assert torch.equal(first, again)
    assert not torch.allclose(first, after)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_repeats_the_same_gates(reentrant):
    def gradients(checkpointing):
        model = with_lora(tiny_model("llama")).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        criterion = learning(model, initial_drop=0.5)
        backward(model)
        taken = criterion._gates.take()
        criterion.detach()
        return torch.cat(list(taken.values()))

    torch.testing.assert_close(gradients(True), gradients(False), rtol=1e-4, atol=1e-7)


def test_what_was_learnt_is_restored_whole():
    model = with_lora(tiny_model("llama"))
    one = learning(model)
    for _ in range(3):
        backward(model)
        one.learn()
    saved = {name: value.clone() for name, value in one.state().items()}
    for _ in range(2):
        backward(model)
        one.learn()
    one.detach()
    other = learning(model)
    other.restore(saved)
    for _ in range(2):
        backward(model)
        other.learn()
    other.detach()
    assert torch.equal(one.log_alpha_G, other.log_alpha_G)
    assert torch.equal(one.multipliers, other.multipliers)


def test_layers_that_are_protected_have_no_gates_and_the_highest_scores():
    model = tiny_model("llama")
    structure = describe(model, None, (0,))
    criterion = learning(model, structure)
    scores = criterion.scores(Plan.full(structure))
    assert set(criterion.gates()) == {"layers.1.heads", "layers.1.channels"}
    criterion.detach()
    assert scores["layers.0.channels"].min() > scores["layers.1.channels"].max()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": 0.0}, "compresso.learning_rate is 0.0"),
        ({"multiplier_learning_rate": -1.0}, "compresso.multiplier_learning_rate is -1.0"),
        ({"warmup": 1.5}, "compresso.warmup is 1.5"),
        ({"ramp": "step"}, "choose one of linear, cubic"),
        ({"initial_drop": 0.0}, "compresso.initial_drop is 0.0"),
        ({"prompt": " "}, "prompt is empty"),
    ],
)
def test_wrong_options_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        Compresso(**wrong)


def test_experts_are_refused():
    structure = describe(tiny_model("llama"))
    of_experts = replace(structure.dimensions[1], consumer=replace(structure.dimensions[1].consumer, stacked=True))
    with pytest.raises(ValueError, match=r"layers\.0\.channels .* is not of that type. Leave channels out"):
        check_gateable(replace(structure, dimensions=(of_experts,)))


@pytest.mark.parametrize("kind", ["blocks", "hidden"])
def test_what_spans_the_blocks_is_refused(kind):
    with pytest.raises(ValueError, match=f"{kind} .* is not of that type. Leave {kind} out"):
        check_gateable(describe(tiny_model("llama"), [kind]))


def test_options_survive_a_saved_configuration():
    config = PruningConfig(criterion="compresso", compresso=Compresso(ramp="cubic", prompt="default"))
    assert PruningConfig(**config.flat()) == config
