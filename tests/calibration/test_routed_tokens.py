from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.models import token_ids
from tests.zoo.experts import ROWS
from tests.zoo.row import adapted, structure_of

from loraprune.calibration.block_by_block import LayerwisePass
from loraprune.calibration.routed_tokens import RoutedTokens
from loraprune.layers.unwrap import base_layer, base_model

CALIBRATION = [token_ids(1, length, seed=length)[0] for length in (30, 21, 30)]
EVERY_FAMILY = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
WITH_AND_WITHOUT_LORA = pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])


def first_experts(model, structure):
    """The stacked experts of the first block that has some, their name and the index of the block."""
    d = next(d for d in structure if d.consumer.stacked)
    return base_model(model).get_submodule(d.consumer.module), d.consumer.module, d.layer


def captured_calls(model, module):
    calls = []
    handle = base_layer(module).register_forward_pre_hook(lambda _, args: calls.append(args))
    with torch.no_grad():
        for sequence in CALIBRATION:
            model(input_ids=sequence[None], use_cache=False)
    handle.remove()
    return calls


def made(row, lora):
    """A model, one without adapters that computes the same, and its structure."""
    model = row.model()
    structure = structure_of(model, ("expert_channels",))
    if not lora:
        return model, model, structure
    plain = adapted(row.model(), structure).merge_and_unload()
    return adapted(model, structure), plain, structure


def tokens_of(model, structure):
    _, name, layer = first_experts(model, structure)
    layerwise = LayerwisePass(model, structure, CALIBRATION)
    for _ in range(layer):
        layerwise.advance()
    return layerwise.routed_tokens(name)


def rows_by_hand(experts, calls, expert):
    """Token by token: what enters an expert, what enters its down projection, and the weights of the routing."""
    entering, inside, routing = [], [], []
    for hidden, index, weights in calls:
        for token in range(len(hidden)):
            for column in range(index.shape[1]):
                if index[token, column] == expert:
                    gate, up = (experts.gate_up_proj[expert] @ hidden[token]).chunk(2)
                    entering.append(hidden[token])
                    inside.append(F.silu(gate) * up)
                    routing.append(weights[token, column])
    return torch.stack(entering).double(), torch.stack(inside).double(), torch.stack(routing).double()


def assert_statistics(found, rows):
    assert found.rows == len(rows)
    torch.testing.assert_close(found.mean.double(), rows.mean(0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.mean_square.double(), rows.square().mean(0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.moment.double(), rows.T @ rows / len(rows), rtol=1e-3, atol=1e-4)


@EVERY_FAMILY
@WITH_AND_WITHOUT_LORA
@torch.no_grad()
def test_statistics_are_of_the_tokens_that_are_routed_to_the_expert(row, lora):
    model, plain, structure = made(row, lora)
    tokens = tokens_of(model, structure)
    module = first_experts(model, structure)[0]
    experts = first_experts(plain, structure)[0]
    calls = captured_calls(plain, experts)
    for expert in (0, 3):
        entering, inside, routing = rows_by_hand(experts, calls, expert)
        assert_statistics(tokens.features(module, "gate_up_proj", expert, moment=True), entering)
        assert_statistics(tokens.features(module, "down_proj", expert, moment=True), inside)
        assert_statistics(tokens.weighted_features(module, expert, moment=True), inside * routing[:, None])


def test_an_expert_that_gets_no_token_has_no_statistics():
    experts = ROWS[0].model().model.layers[0].mlp.experts
    tokens = RoutedTokens([(torch.randn(3, 32), torch.tensor([[0], [2], [2]]), torch.ones(3, 1))])
    for expert, rows in enumerate((1, None, 2, None)):
        found = [
            tokens.features(experts, "gate_up_proj", expert, moment=True),
            tokens.features(experts, "down_proj", expert, moment=False),
            tokens.weighted_features(experts, expert, moment=False),
        ]
        assert [each and each.rows for each in found] == [rows] * 3


def test_the_second_moment_is_gathered_on_request():
    experts = ROWS[0].model().model.layers[0].mlp.experts
    tokens = RoutedTokens([(torch.randn(3, 32), torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1))])
    for found in (
        tokens.features(experts, "down_proj", 0, moment=False),
        tokens.weighted_features(experts, 0, moment=False),
    ):
        assert found.mean.shape == (32,)
        with pytest.raises(RuntimeError, match="second moment was not requested"):
            _ = found.moment


@WITH_AND_WITHOUT_LORA
def test_looking_changes_nothing(lora):
    model, _, structure = made(ROWS[0], lora)
    before = [parameter.clone() for parameter in model.parameters()]
    module = first_experts(model, structure)[0]
    tokens = tokens_of(model, structure)
    found = [tokens.weighted_features(module, 1, moment=True).moment for _ in range(2)]
    assert torch.equal(*found)
    assert not found[0].requires_grad
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))


def test_half_precision_is_gathered_in_32_bits():
    row = ROWS[0]
    model = row.model().to(torch.bfloat16)
    structure = structure_of(model, ("expert_channels",))
    found = tokens_of(model, structure).weighted_features(first_experts(model, structure)[0], 0, moment=True)
    assert found.moment.dtype == torch.float32
    full = tokens_of(model.float(), structure).weighted_features(first_experts(model, structure)[0], 0, moment=True)
    assert (found.moment - full.moment).norm() < 0.1 * full.moment.norm()
