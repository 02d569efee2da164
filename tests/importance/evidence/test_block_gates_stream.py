from __future__ import annotations

import pytest
import torch
from tests.models import sequence_losses, tiny_model, token_ids, with_lora

from loraprune.importance.evidence.gates import GateProbes
from loraprune.structure.describe import describe

IDS = token_ids(4, 9)
FAMILIES = {"llama": {}, "qwen3, tied": {"family": "qwen3", "tie_word_embeddings": True}}


def explicit(model, ids=IDS):
    """Mean over sequences of the squared gradient of a gate that multiplies a channel of all that is written."""
    base = model.get_base_model()
    gates = torch.ones(base.config.hidden_size, requires_grad=True)
    writers = [base.model.embed_tokens]
    writers += [layer for block in base.model.layers for layer in (block.self_attn.o_proj, block.mlp.down_proj)]
    handles = [writer.register_forward_hook(lambda module, args, output: output * gates) for writer in writers]
    squares = [torch.autograd.grad(sequence_losses(model, row[None])[0], gates)[0].square() for row in ids]
    for handle in handles:
        handle.remove()
    return torch.stack(squares).mean(0)


def measured(model, batches):
    probes = GateProbes(model, describe(model, ("hidden",)))
    for batch in batches:
        sequence_losses(model, batch).sum().backward()
    found = probes.take()["hidden"]
    assert probes.take() == {}
    probes.remove()
    return found


@pytest.mark.parametrize("changes", FAMILIES.values(), ids=FAMILIES.keys())
@pytest.mark.parametrize("sizes", [(4,), (1, 3)])
def test_the_score_is_the_squared_gradient_of_a_gate_on_all_that_is_written_to_a_channel(changes, sizes):
    model = with_lora(tiny_model(**changes))
    torch.testing.assert_close(measured(model, IDS.split(sizes)), explicit(model), rtol=1e-4, atol=1e-7)


def test_the_gradient_is_the_slope_of_the_loss():
    model = with_lora(tiny_model(dtype=torch.float64))
    base, step = model.get_base_model(), 1e-2  # norms compute in 32 bits
    row = IDS[:1]
    writers = [base.model.embed_tokens]
    writers += [layer for block in base.model.layers for layer in (block.self_attn.o_proj, block.mlp.down_proj)]
    scale = torch.ones(base.config.hidden_size, dtype=torch.float64)

    def loss_with(gate):
        scale[3] = gate
        handles = [writer.register_forward_hook(lambda module, args, output: output * scale) for writer in writers]
        with torch.no_grad():
            loss = sequence_losses(model, row)[0].item()
        for handle in handles:
            handle.remove()
        return loss

    slope = (loss_with(1 + step) - loss_with(1 - step)) / (2 * step)
    assert measured(model, [row])[3].item() == pytest.approx(slope**2, rel=1e-2)


def test_recomputed_activations_give_the_same():
    model = with_lora(tiny_model())
    expected = explicit(model)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    torch.testing.assert_close(measured(model, [IDS]), expected, rtol=1e-4, atol=1e-7)
