from __future__ import annotations

import pytest
import torch
from tests.zoo.experts import ROWS
from tests.zoo.row import adapted, logits, randomize_, structure_of
from torch import nn
from transformers import AutoModelForCausalLM, MixtralConfig
from transformers.integrations.moe import use_experts_implementation

from loraprune.layers.experts import ExpertTap, routed
from loraprune.layers.unwrap import base_layer

EVERY_FAMILY = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


class _Experts(nn.Module):
    """Four experts of every make that transformers' interface knows; their own forward pass is the interface's."""

    def __init__(self, config):
        super().__init__()
        self.num_experts, self.act_fn = 4, nn.SiLU()
        self.post_expert_norm = nn.LayerNorm(16)

    def forward(self, hidden_states, top_k_index, top_k_weights):
        raise AssertionError("the interface has implementations of its own")


def make_experts(implementation: str, **make: bool) -> nn.Module:
    config = MixtralConfig()
    config._experts_implementation = implementation
    experts = use_experts_implementation(type("_Variant", (_Experts,), {}), **make)(config)
    up, down = ("gate_up_proj", 16) if experts.has_gate else ("up_proj", 8), ("down_proj", 16)
    for (name, outputs), inputs in ((up, 16), (down, 8)):
        shape = (4, inputs, outputs) if experts.is_transposed else (4, outputs, inputs)
        setattr(experts, name, nn.Parameter(torch.empty(shape)))
        if experts.has_bias:
            setattr(experts, f"{name}_bias", nn.Parameter(torch.empty(4, outputs)))
    randomize_(experts, 0)
    return experts


def experts_of(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith("mlp.experts")]


def nothing(tokens):
    return lambda hidden, expert, of_expert: hidden


def routing(tokens: int = 7, k: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    index = torch.rand(tokens, 4, generator=generator).topk(k).indices
    return torch.randn(tokens, 16, generator=generator), index, torch.rand(tokens, k, generator=generator)


@pytest.mark.parametrize("implementation", ["batched_mm", "grouped_mm"])
@pytest.mark.parametrize(
    "make",
    [
        {},
        {"is_transposed": True},
        {"has_bias": True},
        {"is_transposed": True, "has_bias": True},
        {"has_gate": False},
        {"has_post_expert_norm": True},
    ],
    ids=lambda make: ", ".join(make) or "plain",
)
def test_a_tapped_forward_pass_computes_what_every_make_of_experts_computes(make, implementation):
    experts = make_experts(implementation, **make)
    inputs = routing()
    expected = experts(*inputs)
    ExpertTap(experts, nothing)
    torch.testing.assert_close(experts(*inputs), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@EVERY_FAMILY
def test_taps_that_change_nothing_change_no_logits_and_no_gradients(row, lora):
    model = row.model()
    model = adapted(model, structure_of(model, None)) if lora else model
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run():
        output = logits(model, row.inputs())
        return output, torch.autograd.grad(output.square().mean(), parameters, allow_unused=True)

    expected, gradients = run()
    taps = [ExpertTap(module, nothing) for module in experts_of(model)]
    actual, others = run()
    for tap in taps:
        tap.remove()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(others, gradients, rtol=1e-3, atol=1e-6)


def test_a_tap_sees_every_token_at_every_expert_that_it_is_routed_to():
    experts, (hidden, index, weights) = make_experts("eager"), routing()
    seen = []

    def start(tokens):
        assert tokens == len(hidden)

        def tap(inside, expert, of_expert):
            assert inside.shape == (len(of_expert), 8)
            seen.extend((token, expert) for token in of_expert.tolist())
            return inside

        return tap

    ExpertTap(experts, start)
    experts(hidden, index, weights)
    assert sorted(seen) == sorted((token, expert) for token in range(7) for expert in index[token].tolist())


def test_what_a_tap_returns_goes_into_the_down_projection():
    experts, (hidden, index, weights) = make_experts("eager"), routing()
    channels = torch.tensor([0, 3, 4])

    def start(tokens):
        return lambda inside, expert, of_expert: inside.index_fill(1, channels, 0.0) if expert == 2 else inside

    with torch.no_grad():
        tap = ExpertTap(experts, start)
        actual = experts(hidden, index, weights)
        tap.remove()
        experts.config._experts_implementation = "batched_mm"
        experts.down_proj[2][:, channels] = 0.0
        torch.testing.assert_close(actual, experts(hidden, index, weights))


def test_the_last_tap_to_go_gives_the_module_its_own_forward_pass_back():
    experts, inputs, seen = make_experts("batched_mm"), routing(), []

    def noting(name):
        return lambda tokens: seen.append(name) or (lambda hidden, expert, of_expert: hidden)

    first, second = ExpertTap(experts, noting("first")), ExpertTap(experts, noting("second"))
    experts(*inputs)
    first.remove()
    first.remove()  # once more does nothing
    experts(*inputs)
    second.remove()
    experts(*inputs)
    assert seen == ["first", "second", "second"]
    assert "forward" not in vars(experts)


def test_indices_beyond_the_experts_are_routed_nowhere():
    index = torch.tensor([[0, 4], [3, 0], [4, 4]])
    found = {expert: (tokens.tolist(), columns.tolist()) for expert, tokens, columns in routed(index, 4)}
    assert found == {0: ([0, 1], [0, 1]), 3: ([1], [0])}


def test_a_module_of_another_make_is_refused():
    with pytest.raises(TypeError, match="Linear does not have the layout of stacked experts in transformers"):
        ExpertTap(nn.Linear(2, 2), nothing)


def test_the_module_under_all_of_pefts_wrappers_is_tapped():
    row = ROWS[0]
    model = adapted(row.model(), structure_of(row.model(), None))
    outermost = model.get_base_model().model.layers[0].mlp.experts
    assert base_layer(outermost) is not outermost.base_layer  # one wrapper for each of the two parameters
    seen = []
    ExpertTap(outermost, lambda tokens: seen.append(tokens) or (lambda hidden, expert, of_expert: hidden))
    logits(model, row.inputs())
    assert seen == [row.inputs()["input_ids"].numel()]


def test_experts_run_on_half_precision():
    config = ROWS[0].config()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    randomize_(model, 0)
    expected = logits(model, ROWS[0].inputs())
    for module in experts_of(model):
        ExpertTap(module, nothing)
    actual = logits(model, ROWS[0].inputs())
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected, rtol=0.1, atol=0.1)
