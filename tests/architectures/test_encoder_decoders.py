"""What holds for encoder-decoders besides the contract of all architectures."""

from __future__ import annotations

import pytest
import torch
from tests.zoo import ROWS

from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

T5 = [row for row in ROWS if row.config().is_encoder_decoder]
BY_NAME = {row.name: row for row in ROWS}


@pytest.mark.parametrize("row", T5, ids=lambda row: row.name)
@torch.no_grad()
def test_a_cache_and_padding_of_the_source_change_nothing_that_the_sliced_model_writes(row) -> None:
    model = row.model()
    structure = describe(model)
    full = Plan.full(structure)
    slice_(model, structure, full, full.keep({d.name: range(1, d.num_groups, 2) for d in structure}))
    ids = row.inputs()["input_ids"]
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    written = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **options)
    cached = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=True, **options)
    padded = torch.cat([ids, torch.zeros_like(ids[:, :3])], 1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(ids[:, :3])], 1)
    with_padding = model.generate(padded, attention_mask=mask, use_cache=True, **options)
    assert torch.equal(cached, written)
    assert torch.equal(with_padding, written)


def test_the_heads_of_a_stack_are_tied_and_those_of_the_attention_between_stacks_are_not() -> None:
    structure = describe(BY_NAME["t5"].model())
    tied = {dimension.name: dimension.tied for dimension in structure.of_kind("heads")}
    assert tied == {
        "encoder.0.heads": "encoder.heads",
        "encoder.1.heads": "encoder.heads",
        "decoder.0.heads": "decoder.heads",
        "decoder.0.cross_heads": None,
        "decoder.1.heads": "decoder.heads",
        "decoder.1.cross_heads": None,
    }


def test_the_position_bias_of_the_first_block_shrinks_with_its_heads() -> None:
    structure = describe(BY_NAME["t5"].model())
    for stack in ("encoder", "decoder"):
        first, second = (d for d in structure if d.tied == f"{stack}.heads")
        biases = [member for member in first.members if member.module.endswith("relative_attention_bias")]
        assert [member.segments for member in biases] == [(1,)]
        assert len(second.members) == len(first.members) - 1
