"""Parts of a block that no longer change, and the runs that their stored outputs save."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.models import tiny_model, token_ids
from tests.thinned import thinned
from tests.zoo import ROWS, Row
from torch import nn

from loraprune.architectures import spec_for
from loraprune.calibration.block_by_block import LayerwisePass
from loraprune.calibration.finished_parts import recorded, replayed
from loraprune.layers.unwrap import eval_mode
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.refit import cut_and_repair_
from loraprune.surgery.repairs import repair_of

# So short that the weights of eager attention are no larger than the hidden states.
SEQUENCES = [token_ids(1, length, seed=seed)[0] for seed, length in enumerate((4, 3, 4, 1))]
NAMES = ("llama", "falcon, new", "gpt_neox", "phi", "qwen2_moe", "gpt2", "cohere", "bloom")
ROWS_OF_DECODERS = sorted(
    (row for row in ROWS if spec_for(row.config()).decoder is not None), key=lambda row: row.name not in NAMES
)
EVERY_ROW = pytest.mark.parametrize("row", thinned(ROWS_OF_DECODERS, len(NAMES)), ids=lambda row: row.name)


def finished(layerwise: LayerwisePass, structure: Any) -> set[str]:
    """Look at each consumer of the current block, and finish it; the parts whose outputs are stored then."""
    dimensions = list(structure.of_layer(layerwise.layer))
    while dimensions:
        dimension = dimensions.pop(0)
        name = dimension.consumer.module
        if dimension.of_experts:
            layerwise.routed_tokens(name)
        else:
            layerwise.features(name, moment=False)
        layerwise.finish(name, {member.module for other in dimensions for member in other.all_members})
    stored = {frozenset(calls.finished) for calls in layerwise._calls}
    assert len(stored) == 1
    return set(next(iter(stored)))


@EVERY_ROW
@torch.no_grad()
def test_hidden_states_behind_reused_parts_are_those_of_a_plain_run_bit_for_bit(row: Row) -> None:
    model = row.model(attention=row.attentions[-1])
    structure = describe(model)
    with eval_mode(model):
        plain, reusing = (LayerwisePass(model, structure, SEQUENCES) for _ in range(2))
        for block in structure.blocks:
            stored = finished(reusing, structure)
            assert stored or len(structure.of_layer(0)) < 2
            called: list[str] = []
            handles = [
                child.register_forward_pre_hook(lambda *_, called=called: called.append("inside"))
                for part in stored
                for child in model.get_submodule(f"{block}.{part}").children()
            ]
            reusing.advance()
            assert not called
            for handle in handles:
                handle.remove()
            plain.advance()
            for one, other in zip(plain._calls, reusing._calls, strict=True):
                assert torch.equal(one.hidden, other.hidden)
                assert not other.finished
    assert not any("forward" in module.__dict__ for module in model.modules())


@EVERY_ROW
@pytest.mark.parametrize("repair", ["stream", "refit"])
def test_a_cut_is_the_same_bits_whether_parts_are_reused_or_not(
    row: Row, repair: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = row.model(attention=row.attentions[-1])
    structure = describe(dense)
    full = Plan.full(structure)
    halved = {d.name: range(0, d.num_groups, 2) for d in structure if d.num_groups > 1}
    models = [copy.deepcopy(dense) for _ in range(2)]
    for model in models:
        settings = {"calibration": SEQUENCES, "repair": repair_of(repair)}
        cut_and_repair_(model, structure, full, full.keep(halved), **settings)
        monkeypatch.setattr(LayerwisePass, "finish", lambda *_: None)
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_part_with_a_layer_that_will_change_runs_again() -> None:
    model = tiny_model()
    structure = describe(model)
    layerwise = LayerwisePass(model, structure, SEQUENCES)
    heads, channels = (dimension.consumer.module for dimension in structure.of_layer(0))
    layerwise.finish(heads, ["model.layers.0.self_attn.q_proj"])
    layerwise.features(channels, moment=False)
    assert not any(calls.finished for calls in layerwise._calls)
    layerwise.finish(heads, ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"])
    layerwise.features(channels, moment=False)
    assert all(calls.finished for calls in layerwise._calls)
    layerwise.leave_out()
    assert not any(calls.finished for calls in layerwise._calls)


@pytest.mark.parametrize(("attention", "stored"), [("sdpa", True), ("eager", False)])
def test_weights_of_attention_that_outgrow_the_hidden_states_are_not_stored(attention: str, stored: bool) -> None:
    model = tiny_model(attention=attention)
    structure = describe(model)
    layerwise = LayerwisePass(model, structure, [token_ids(1, 60)[0]])
    heads, channels = (dimension.consumer.module for dimension in structure.of_layer(0))
    layerwise.finish(heads)
    layerwise.features(channels, moment=False)
    assert bool(layerwise._calls[0].finished) == stored


@torch.no_grad()
def test_a_device_that_computes_gives_the_same_bits() -> None:
    model = tiny_model(attention="sdpa")
    structure = describe(model)
    # Another name of the same place, so that blocks and outputs are moved.
    plain, moving = (LayerwisePass(model, structure, SEQUENCES, device) for device in (None, torch.device("cpu", 0)))
    for _ in structure.blocks:
        assert finished(moving, structure) == {"self_attn"}
        plain.advance()
        moving.advance()
        for one, other in zip(plain._calls, moving._calls, strict=True):
            assert torch.equal(one.hidden, other.hidden)


# On a block of a few lines.


class Twice(nn.Module):
    """A block whose part returns what a test says."""

    def __init__(self, output: Any = None) -> None:
        super().__init__()
        self.part = nn.Identity()
        self.output = output

    def forward(self, times: int) -> None:
        for _ in range(times):
            self.part(self.output)


@pytest.mark.parametrize(
    ("output", "times", "stored"),
    [
        (torch.ones(2, 3), 1, True),
        ((torch.ones(2, 3), None), 1, True),
        ((torch.ones(2, 3), torch.ones(2)), 1, False),  # eight values
        ((torch.ones(2, 3), "more"), 1, False),
        ({"hidden": torch.ones(2, 3)}, 1, False),
        (torch.ones(2, 3), 2, False),
        (torch.ones(2, 3), 0, False),
    ],
)
def test_small_outputs_of_parts_that_run_once_are_stored(output: Any, times: int, stored: bool) -> None:
    block, outputs = Twice(output), {"part": "of another run"}
    with recorded(block, ["part"], outputs, 7):
        block(times)
    assert bool(outputs) == stored
    assert not block.part._forward_hooks


def test_outputs_are_kept_in_one_place_and_used_in_another() -> None:
    block, outputs = Twice((torch.ones(2, 3), None)), {}
    with recorded(block, ["part"], outputs, 6, torch.device("meta")):
        block(1)
    assert outputs["part"][0].device.type == "meta"
    with replayed(block, {"part": (torch.ones(2, 3), None)}, torch.device("meta")):
        output = block.part(torch.ones(2, 3))
    assert output[0].device.type == "meta"
    assert output[1] is None


def test_a_copy_is_stored() -> None:
    block, outputs = Twice(torch.ones(2, 3)), {}
    with recorded(block, ["part"], outputs, 6):
        block(1)
    block.output.zero_()
    assert torch.equal(outputs["part"], torch.ones(2, 3))


def test_a_stored_output_is_used_once_and_a_forward_of_the_parts_own_comes_back() -> None:
    block = Twice()
    block.part.forward = lambda value: value + 1  # as accelerate sets one
    own, outputs = block.part.forward, {"part": torch.ones(1)}
    with replayed(block, outputs):
        assert [float(block.part(torch.full((1,), 4.0))) for _ in range(2)] == [1.0, 5.0]
        assert not outputs
    assert block.part.forward is own
    with pytest.raises(KeyError), replayed(block, {"part": torch.ones(1)}):
        raise KeyError
    assert block.part.forward is own
