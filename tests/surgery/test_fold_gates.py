"""Gates folded into the layers behind them."""

from __future__ import annotations

import torch
from tests.models import logits_of, projections, tiny_model, token_ids, with_lora

from loraprune.importance.evidence.learned_gates import LearnedGates
from loraprune.structure.describe import describe
from loraprune.surgery.fold_gates import fold_gates_

IDS = token_ids(2, 9)


def test_a_folded_model_is_the_gated_one():
    adapted = with_lora(tiny_model("llama")).eval()
    structure = describe(adapted)
    gates = LearnedGates(adapted, structure)
    values = {name: torch.rand(count) for name, count in gates.num_groups().items()}
    gates.set(values, values)
    gated = logits_of(adapted, IDS)
    gates.remove()
    assert not torch.allclose(logits_of(adapted, IDS), gated, atol=1e-3)
    fold_gates_(adapted, structure, values)
    torch.testing.assert_close(logits_of(adapted, IDS), gated, rtol=0, atol=1e-5)


def test_open_gates_change_no_weight_and_the_adapter_stays():
    adapted = with_lora(tiny_model("llama"))
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    fold_gates_(adapted, describe(adapted), {"layers.0.channels": torch.tensor([0.5, 1.0] * 12)})
    consumer = projections(adapted, 0)["down_proj"].base_layer.weight
    changed = [name for name, value in adapted.state_dict().items() if not torch.equal(value, before[name])]
    assert len(changed) == 1
    assert torch.equal(consumer[:, 1::2], before[changed[0]][:, 1::2])
