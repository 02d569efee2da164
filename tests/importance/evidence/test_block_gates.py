from __future__ import annotations

import pytest
import torch
from tests.models import sequence_losses, tiny_model, token_ids, with_lora

from loraprune.importance.evidence.gates import GateProbes
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

IDS = token_ids(4, 9)


def blocks_of(model):
    return describe(model, ("blocks",))


def explicit(model, ids=IDS):
    """Mean over sequences of the squared gradient of ``g`` in ``x + g·(block(x) − x)``, by autograd."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    gates = torch.ones(len(base.model.layers), requires_grad=True)

    def gate(number):
        return lambda module, args, output: args[0] + gates[number] * (output - args[0])

    handles = [block.register_forward_hook(gate(number)) for number, block in enumerate(base.model.layers)]
    squares = [torch.autograd.grad(sequence_losses(model, row[None])[0], gates)[0].square() for row in ids]
    for handle in handles:
        handle.remove()
    return torch.stack(squares).mean(0)


def measured(model, batches, structure=None):
    probes = GateProbes(model, structure or blocks_of(model))
    for batch in batches:
        sequence_losses(model, batch).sum().backward()
    found = probes.take()["layers.blocks"]
    probes.remove()
    return found


@pytest.mark.parametrize("sizes", [(4,), (1, 3)])
@pytest.mark.parametrize("lora", [False, True])
def test_the_score_is_the_squared_gradient_of_a_gate_on_what_a_block_adds(sizes, lora):
    model = tiny_model(num_hidden_layers=3)
    model = with_lora(model) if lora else model.requires_grad_(False)
    torch.testing.assert_close(measured(model, IDS.split(sizes)), explicit(model), rtol=1e-4, atol=1e-7)


def test_recomputed_activations_give_the_same():
    model = with_lora(tiny_model(num_hidden_layers=3))
    expected = explicit(model)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    torch.testing.assert_close(measured(model, [IDS]), expected, rtol=1e-4, atol=1e-7)


def test_after_a_cut_the_gates_go_on_with_the_blocks_that_are_left():
    model = with_lora(tiny_model(num_hidden_layers=3))
    structure = blocks_of(model)
    probes = GateProbes(model, structure)
    sequence_losses(model, IDS).sum().backward()
    full = Plan.full(structure)
    slice_(model, structure, full, full.keep({"layers.blocks": [0, 2]}))
    probes.take()
    sequence_losses(model, IDS).sum().backward()
    found = probes.take()["layers.blocks"]
    probes.remove()
    torch.testing.assert_close(found, explicit(model), rtol=1e-4, atol=1e-7)
    # As of a model that was cut before the gates came on: what a resumed run sees.
    torch.testing.assert_close(measured(model, [IDS], structure), found)


def test_without_a_backward_pass_there_is_nothing():
    probes = GateProbes(tiny_model(), blocks_of(tiny_model()))
    assert probes.take() == {}
