from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.models import FAMILIES, PROJECTIONS, projections, tiny_model, token_ids, with_lora
from tests.zoo import ROWS
from torch import nn

from loraprune.architectures import spec_for
from loraprune.calibration.block_by_block import TOKENS_PER_BATCH, LayerwisePass, WholeModelPass, equal_length_batches
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

SEQUENCES = [token_ids(1, length, seed=length)[0] for length in (9, 4, 13, 9, 1)]

# Windows shorter than the sequences, in some of the layers or in all of them.
VARIANTS = {
    **{family: (family, {}) for family in FAMILIES},
    "mistral, sliding window": ("mistral", {"sliding_window": 3}),
    "qwen2, one sliding layer": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 3,
            "max_window_layers": 1,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "qwen3, one sliding layer": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}
EVERY_VARIANT = pytest.mark.parametrize(("family", "changes"), VARIANTS.values(), ids=VARIANTS.keys())


def states_of_the_model(model, layer):
    """By running the whole model on one sequence at a time: what enters a decoder block, or the final norm."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    module = base.model.layers[layer] if layer < len(base.model.layers) else base.model.norm
    seen = []
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).detach()), with_kwargs=True
    )
    for sequence in SEQUENCES:
        with torch.no_grad():
            model(input_ids=sequence[None], use_cache=False)
    handle.remove()
    return {len(states[0]): states[0] for states in seen}


def moment_of_the_model(model, module):
    """By running the whole model: the mean over all tokens of the outer product of a layer's inputs."""
    inputs = []
    handle = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0].detach().double().numpy()))
    for sequence in SEQUENCES:
        with torch.no_grad():
            model(input_ids=sequence[None], use_cache=False)
    handle.remove()
    rows = np.concatenate(inputs)
    return sum(np.outer(row, row) for row in rows) / len(rows)


def consumer_names(structure, layer):
    return [dimension.consumer.module for dimension in structure.of_layer(layer)]


@EVERY_VARIANT
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_after_all_blocks_the_hidden_states_are_those_that_enter_the_final_norm(family, changes, attention):
    model = with_lora(tiny_model(family, attention=attention, **changes))
    layerwise = LayerwisePass(model, describe(model), SEQUENCES)
    for layer in range(3):
        expected = states_of_the_model(model, layer)
        for calls in layerwise._calls:
            for states in calls.hidden:
                torch.testing.assert_close(states, expected[len(states)], rtol=0, atol=1e-5)
        if layer < 2:
            layerwise.advance()
    assert layerwise.layer == 2


def test_the_sliding_window_is_felt(model):
    # Otherwise the tests with windows would say nothing.
    family, changes = VARIANTS["qwen2, one sliding layer"]
    wide = {**changes, "layer_types": ["full_attention"] * 2}
    states = [states_of_the_model(tiny_model(family, **values), 2)[13] for values in (changes, wide)]
    assert (states[0] - states[1]).abs().max() > 1e-2


@EVERY_VARIANT
def test_the_second_moment_is_that_of_the_inputs_in_the_whole_model(family, changes):
    model = with_lora(tiny_model(family, **changes))
    structure = describe(model)
    layerwise = LayerwisePass(model, structure, SEQUENCES)
    for layer in range(2):
        for name in consumer_names(structure, layer):
            expected = moment_of_the_model(model, model.get_base_model().get_submodule(name))
            actual = layerwise.features(name, moment=True).moment
            assert actual.dtype == torch.float32
            np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        layerwise.advance()


def test_the_second_moment_follows_a_cut_in_the_same_block(model, structure):
    layerwise = LayerwisePass(model, structure, SEQUENCES)
    heads, channels = consumer_names(structure, 0)
    before = layerwise.features(channels, moment=True).moment
    full = Plan.full(structure)
    slice_(model, structure, full, full.keep({"layers.0.heads": [2]}))
    after = layerwise.features(channels, moment=True).moment
    expected = moment_of_the_model(model, projections(model, 0)["down_proj"])
    np.testing.assert_allclose(after.numpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert (after - before).abs().max() > 1e-2
    assert layerwise.features(heads, moment=True).moment.shape == (8, 8)


def test_a_block_is_left_as_soon_as_the_consumer_is_reached(model, structure):
    layerwise = LayerwisePass(model, structure, SEQUENCES)
    reached = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: reached.append("ffn"))
    layerwise.features("model.layers.0.self_attn.o_proj", moment=True)
    assert reached == []
    layerwise.features("model.layers.0.mlp.down_proj", moment=True)
    assert reached


def test_a_layer_that_the_current_block_does_not_run_is_an_error(model, structure):
    layerwise = LayerwisePass(model, structure, SEQUENCES)
    with pytest.raises(RuntimeError, match=r"model\.layers\.1\.mlp\.down_proj was not reached by the calibration data"):
        layerwise.features("model.layers.1.mlp.down_proj", moment=True)


def test_the_model_is_left_without_hooks_and_with_its_own_blocks(model, structure):
    blocks = list(model.model.layers)
    layerwise = LayerwisePass(model, structure, SEQUENCES)
    layerwise.features("model.layers.0.mlp.down_proj", moment=True)
    assert list(model.model.layers) == blocks
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_blocks_come_back_when_the_first_pass_fails(model, structure):
    blocks = list(model.model.layers)
    with pytest.raises(IndexError):
        LayerwisePass(model, structure, [torch.tensor([10_000])])
    assert list(model.model.layers) == blocks


def test_no_graph_is_kept(model, structure):
    layerwise = LayerwisePass(model, structure, SEQUENCES)
    assert not layerwise.features("model.layers.0.mlp.down_proj", moment=True).moment.requires_grad
    layerwise.advance()
    assert not any(calls.hidden.requires_grad for calls in layerwise._calls)


def test_a_calibration_set_needs_a_sequence(model, structure):
    with pytest.raises(ValueError, match="at least one sequence"):
        LayerwisePass(model, structure, [])


def test_batches_hold_every_sequence_once_and_only_equal_lengths():
    batches = equal_length_batches(SEQUENCES)
    assert [tuple(batch.shape) for batch in batches] == [(1, 13), (2, 9), (1, 4), (1, 1)]
    flat = sorted(row.tolist() for batch in batches for row in batch)
    assert flat == sorted(sequence.tolist() for sequence in SEQUENCES)


def test_batches_stay_within_the_number_of_tokens():
    long = [torch.zeros(TOKENS_PER_BATCH // 2, dtype=torch.long)] * 3
    too_long = [torch.zeros(TOKENS_PER_BATCH + 1, dtype=torch.long)] * 2
    batches = equal_length_batches(long + too_long)
    assert [len(batch) for batch in batches] == [1, 1, 2, 1]


def layer_names(layer):
    return [f"model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}" for name in PROJECTIONS]


@pytest.mark.parametrize("whole", [False, True], ids=["layer by layer", "whole model"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_statistics_of_several_layers_are_those_of_the_inputs_in_the_whole_model(family, whole):
    model = tiny_model(family)
    calibration = WholeModelPass(model, SEQUENCES) if whole else LayerwisePass(model, describe(model), SEQUENCES)
    for layer in range(2):
        found = calibration.features_of(layer_names(layer), moment=True)
        for name in layer_names(layer):
            expected = moment_of_the_model(model, model.get_submodule(name))
            moment = found[name].moment.numpy()
            np.testing.assert_allclose(moment, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
            np.testing.assert_allclose(found[name].mean_square, np.diag(expected), rtol=1e-4, atol=1e-6)
            assert found[name].rows == sum(map(len, SEQUENCES))
        q, k, v, o, gate, up, down = (found[name] for name in layer_names(layer))
        assert q is k is v
        assert gate is up
        assert len({id(statistics) for statistics in (q, o, gate, down)}) == 4
        calibration.advance()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_several_layers_at_once_are_the_same_as_one_after_the_other(model, structure):
    layerwise = LayerwisePass(model, structure, SEQUENCES)
    found = layerwise.features_of(layer_names(0), moment=True)
    for name in layer_names(0):
        alone = layerwise.features(name, moment=True)
        torch.testing.assert_close(found[name].moment, alone.moment)
        torch.testing.assert_close(found[name].mean, alone.mean)
        assert found[name].rows == alone.rows


def test_layers_that_the_current_block_does_not_run_have_no_entry(model, structure):
    layerwise = LayerwisePass(model, structure, SEQUENCES)
    names = [*layer_names(0), *layer_names(1)]
    assert list(layerwise.features_of(names, moment=False)) == layer_names(0)
    layerwise.advance()
    assert list(layerwise.features_of(names, moment=False)) == layer_names(1)


def test_second_moments_are_gathered_on_demand_only(model, structure):
    found = LayerwisePass(model, structure, SEQUENCES).features_of(layer_names(0), moment=False)
    assert found["model.layers.0.mlp.down_proj"].norms.shape == (24,)
    with pytest.raises(RuntimeError, match="not requested"):
        _ = found["model.layers.0.mlp.down_proj"].moment


# Computing elsewhere than where the weights are.

ELSEWHERE = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", ELSEWHERE, ids=str)
def test_a_pass_that_computes_on_a_device_gives_the_same_and_leaves_the_model_at_home(device):
    models = [tiny_model("qwen3", **VARIANTS["qwen3, one sliding layer"][1]) for _ in range(2)]
    passes = [
        LayerwisePass(models[0], describe(models[0]), SEQUENCES),
        LayerwisePass(models[1], describe(models[1]), SEQUENCES, device),
    ]
    for layer in range(2):
        one, other = (layerwise.features_of(layer_names(layer), moment=True) for layerwise in passes)
        for name in layer_names(layer):
            assert other[name].moment.device.type == device.type
            torch.testing.assert_close(one[name].moment, other[name].moment.cpu(), rtol=1e-4, atol=1e-4)
        for layerwise in passes:
            layerwise.advance()
    for one, other in zip(passes[0]._calls, passes[1]._calls, strict=True):
        torch.testing.assert_close(one.hidden, other.hidden, rtol=1e-4, atol=1e-4)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert other.device.type == "cpu"
        assert torch.equal(one, other)


DECODERS = [row for row in ROWS if spec_for(row.config()).decoder is not None]


@pytest.mark.parametrize("row", DECODERS, ids=lambda row: row.name)
def test_one_block_and_all_that_it_is_called_with_are_on_the_device_and_nothing_else(row):
    # Tensors on "meta" have no values, so that one of them and one of another device cannot be computed with.
    model = row.model()
    model.set_experts_implementation("batched_mm")  # the default is known there in 16 bits only
    structure = describe(model)
    layerwise = LayerwisePass(model, structure, list(row.inputs()["input_ids"]), torch.device("meta"))
    for calls, run in zip(layerwise._calls, layerwise._runs(), strict=True):
        output = run()
        assert output.device.type == "meta"
        assert output.shape == calls.hidden.shape
        assert calls.hidden.device.type == "cpu"
    first = f"{structure.blocks[0]}."
    for name, parameter in model.named_parameters():
        assert parameter.device.type == ("meta" if name.startswith(first) else "cpu"), name


def test_each_block_goes_to_the_device_when_it_is_its_turn_and_home_again_afterwards(model, structure):
    home, device = torch.device("cpu"), torch.device("cpu", 0)
    moves = []
    for layer, block in enumerate(model.model.layers):

        def moved(to, layer=layer, block=block):
            moves.append((layer, to))
            return nn.Module.to(block, to)

        block.to = moved
    layerwise = LayerwisePass(model, structure, SEQUENCES, device)
    layerwise.features_of(layer_names(0), moment=False)
    assert set(moves) == {(0, device)}
    layerwise.advance()
    assert moves[-1] == (0, home)
    moves.clear()
    layerwise.advance()
    assert moves[-1] == (1, home)
    assert set(moves) == {(1, device), (1, home)}
