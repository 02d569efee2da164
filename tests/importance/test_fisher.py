from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from peft.helpers import disable_input_dtype_casting
from tests.models import FAMILIES, logits_of, projections, sequence_losses, tiny_model, token_ids, with_lora

from loraprune.importance.fisher import FisherCriterion
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

IDS = token_ids(4, 9)


def consumers(model):
    """The consumer of every prunable dimension, and the features that a group takes of its input."""
    found = {}
    for layer in range(model.config.num_hidden_layers):
        linears = projections(model, layer)
        found[f"layers.{layer}.heads"] = (linears["o_proj"], linears["o_proj"].in_features // 4)
        found[f"layers.{layer}.channels"] = (linears["down_proj"], 1)
    return found


def squared_gate_gradients(model, ids):
    """By autograd: a gate of ones on every group, one sequence at a time."""
    total = {}
    for sequence in ids:
        gates, handles = {}, []
        for name, (module, size) in consumers(model).items():
            gate = gates[name] = torch.ones(module.in_features // size, requires_grad=True)
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, args, gate=gate, size=size: (args[0] * gate.repeat_interleave(size),)
                )
            )
        gradients = torch.autograd.grad(sequence_losses(model, sequence[None]).sum(), list(gates.values()))
        for handle in handles:
            handle.remove()
        for name, gradient in zip(gates, gradients, strict=True):
            total[name] = total.get(name, 0) + gradient.square() / len(ids)
    return total


@contextmanager
def attached(model):
    structure, criterion = describe(model), FisherCriterion()
    criterion.attach(model, structure)
    try:
        yield lambda: criterion.scores(Plan.full(structure))
    finally:
        criterion.detach()


def fisher_scores(model, batches=(IDS,)):
    with attached(model) as scores:
        for ids in batches:
            sequence_losses(model, ids).sum().backward()
        return scores()


def assert_same_scores(actual, expected, rtol=1e-4):
    assert set(actual) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(actual[name], values, rtol=rtol, atol=rtol * values.max().item(), msg=name)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_scores_are_the_mean_squared_gradients_of_explicit_gates(family, attention):
    model = with_lora(tiny_model(family, attention=attention, head_dim=6))
    expected = squared_gate_gradients(model, IDS)
    assert expected["layers.0.heads"].shape == (4,)
    assert expected["layers.0.channels"].shape == (24,)
    assert_same_scores(fisher_scores(model), expected)


@pytest.mark.parametrize("sizes", [(4,), (2, 2), (1, 3), (1, 1, 1, 1)])
def test_the_split_into_micro_batches_does_not_matter(model, sizes):
    adapted = with_lora(model)
    assert_same_scores(fisher_scores(adapted, IDS.split(sizes)), squared_gate_gradients(adapted, IDS))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_does_not_matter(model, use_reentrant):
    adapted = with_lora(model)
    expected = squared_gate_gradients(adapted, IDS)
    adapted.enable_input_require_grads()
    adapted.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    adapted.train()
    runs = []
    model.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: runs.append("forward"))
    assert_same_scores(fisher_scores(adapted), expected)
    assert len(runs) == 2  # it was recomputed


def test_the_scores_need_no_gradient_before_the_consumers(model):
    adapted = with_lora(model, target_modules=["o_proj", "down_proj"])
    assert_same_scores(fisher_scores(adapted), squared_gate_gradients(adapted, IDS))


def test_the_scores_need_no_trained_parameter_at_all(model):
    model.requires_grad_(False)
    assert_same_scores(fisher_scores(model), squared_gate_gradients(model, IDS))


def test_under_autocast_the_scores_are_near_those_of_32_bits(model):
    adapted = with_lora(model)
    expected = squared_gate_gradients(adapted, IDS)
    with torch.autocast("cpu", torch.bfloat16):
        actual = fisher_scores(adapted)
    for name, values in expected.items():
        assert actual[name].dtype == torch.float32
        assert (actual[name] - values).norm() < 0.1 * values.norm(), name


def test_a_sliced_model_gives_scores_of_the_groups_that_stay(model, structure):
    adapted = with_lora(model)
    plan = Plan.full(structure).keep({"layers.0.heads": [1, 3], "layers.1.channels": [0, 7, 9]})
    criterion = FisherCriterion()
    criterion.attach(adapted, structure)
    slice_(adapted, structure, Plan.full(structure), plan)  # the gates stay on through a cut
    sequence_losses(adapted, IDS).sum().backward()
    scores = criterion.scores(plan)
    assert {name: len(values) for name, values in scores.items()} == {
        "layers.0.heads": 2,
        "layers.0.channels": 24,
        "layers.1.heads": 4,
        "layers.1.channels": 3,
    }
    criterion.detach()


def test_there_are_no_scores_without_a_backward_pass(model):
    with attached(model) as scores:
        assert scores() is None
        sequence_losses(model, IDS).sum().backward()
        assert scores() is not None
        assert scores() is None


def test_evaluation_between_steps_adds_nothing(model):
    expected = fisher_scores(model)
    with attached(model) as scores:
        sequence_losses(model, IDS).sum().backward()
        logits_of(model, token_ids(seed=5))
        assert_same_scores(scores(), expected, rtol=1e-6)


def test_scores_are_refused_before_the_gates_are_on(structure):
    with pytest.raises(RuntimeError, match="not attached"):
        FisherCriterion().scores(Plan.full(structure))


PRECISIONS = pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16 autocast"])


def logits_and_gradients(model, autocast):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=IDS, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), IDS.flatten())
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


@PRECISIONS
def test_the_gates_change_no_bit_of_logits_and_gradients(model, autocast):
    adapted = with_lora(model)
    logits, gradients = logits_and_gradients(adapted, autocast)
    with attached(adapted) as scores:
        gated_logits, gated_gradients = logits_and_gradients(adapted, autocast)
        assert scores() is not None
    assert torch.equal(gated_logits, logits)
    assert gated_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gated_gradients[name], gradient), name


def saved_storages(model, autocast):
    """Sizes of the distinct storages that a forward pass keeps for the backward pass."""
    saved = []

    def keep(tensor):
        saved.append(tensor)  # alive until the end, so that no address is used twice
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        loss = sequence_losses(model, IDS).sum()
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    loss.backward()
    return Counter(sizes.values())


@PRECISIONS
def test_the_gates_keep_no_activation_that_lora_does_not_keep(model, autocast):
    adapted = with_lora(model).train()
    without = saved_storages(adapted, autocast)
    with attached(adapted) as scores:
        assert saved_storages(adapted, autocast) == without
        assert scores() is not None
    # Both dimensions' inputs are there in 16 or 32 bits, each in its own storage: the counts say something.
    width = 2 if autocast else 4
    assert without[IDS.numel() * 24 * width] >= 2
    assert without[IDS.numel() * 32 * width] >= 2


def test_after_detaching_no_hook_and_no_setting_is_left(model):
    adapted = with_lora(model)
    with attached(adapted), torch.autocast("cpu", torch.bfloat16):
        logits_of(adapted, IDS)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in adapted.modules())
    for module, _ in consumers(adapted).values():
        assert module.cast_input_dtype_enabled is True


def test_casting_that_was_switched_off_stays_off(model):
    adapted = with_lora(model)
    with disable_input_dtype_casting(adapted):
        with attached(adapted):
            logits_of(adapted, IDS)
            inside = [module.cast_input_dtype_enabled for module, _ in consumers(adapted).values()]
        after = [module.cast_input_dtype_enabled for module, _ in consumers(adapted).values()]
    assert not any(inside)
    assert not any(after)


def test_a_criterion_can_be_detached_twice_and_attached_again(model):
    criterion, structure = FisherCriterion(), describe(model)
    criterion.detach()
    for _ in range(2):
        criterion.attach(model, structure)
        sequence_losses(model, IDS).sum().backward()
        assert criterion.scores(Plan.full(structure)) is not None
        criterion.detach()
        criterion.detach()
