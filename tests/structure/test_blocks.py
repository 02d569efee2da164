from __future__ import annotations

import copy

import pytest
import torch
from tests.models import logits_of, sequence_losses, tiny_config, tiny_model, token_ids, with_lora
from tests.zoo import ROWS
from tests.zoo.row import Row, logits
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from loraprune.allocation.allocate import allocate, check_reachable, ratio_for_parameters
from loraprune.checkpoint.save import finish
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.structure.widths import legal_widths
from loraprune.surgery.config_widths import write_widths_
from loraprune.surgery.masking import masked
from loraprune.surgery.slicing import slice_

NAME = "layers.blocks"
IDS = token_ids()


def deep_model(**changes):
    return tiny_model(num_hidden_layers=4, **changes)


def blocks_of(model, keep_layers=()):
    return describe(model, ("blocks",), keep_layers)


def keep(structure, *blocks):
    return Plan.full(structure).keep({NAME: blocks})


def has_blocks(row: Row) -> bool:
    return "blocks" in describe(row.model()).whole


ALIKE = [row for row in ROWS if has_blocks(row)]


def test_the_groups_are_whole_blocks_and_never_the_default(model, structure):
    assert structure.kinds == ("heads", "channels")
    assert structure.whole[0] == "blocks"
    (blocks,) = blocks_of(model)
    assert blocks.num_groups == 2
    assert blocks.parameters_per_group == sum(p.numel() for p in model.model.layers[1].parameters())
    assert blocks_of(with_lora(model)).dimensions == (blocks,)


def test_of_the_decoders_only_those_lack_the_dimension_whose_blocks_differ_or_depend_on_each_other():
    decoders = {row.name for row in ROWS if row.auto is AutoModelForCausalLM}
    lacking = {"gpt2, untied", "gpt_neo", "bloom", "mpt", "qwen2_moe", "deepseek_v2", "deepseek_v3"}
    assert decoders - {row.name for row in ALIKE} == lacking


@pytest.mark.parametrize("row", ALIKE, ids=lambda row: row.name)
@torch.no_grad()
def test_a_sliced_model_computes_what_the_masked_one_does_and_loads_as_the_stock_class(row, tmp_path):
    model, inputs = row.model(attention=row.attentions[-1]), row.inputs()
    structure = blocks_of(model)
    plan = Plan.full(structure).keep({structure.dimensions[0].name: [1]})
    with masked(model, structure, plan):
        expected = logits(model, inputs)
    slice_(model, structure, Plan.full(structure), plan)
    torch.testing.assert_close(logits(model, inputs), expected, rtol=0, atol=1e-5)
    finish(model, structure, plan).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=row.attentions[-1])
    assert type(loaded) is type(model)
    assert loaded.config.num_hidden_layers == 1
    torch.testing.assert_close(logits(loaded, inputs), expected, rtol=0, atol=1e-5)


def test_a_masked_block_hands_on_what_came_in():
    model = deep_model()
    structure = blocks_of(model)
    seen = {}
    for number in (1, 2):
        model.model.layers[number].register_forward_pre_hook(
            lambda module, args, number=number: seen.__setitem__(number, args[0])
        )
    with masked(model, structure, keep(structure, 0, 2, 3)):
        logits_of(model, IDS)
    assert torch.equal(seen[1], seen[2])
    assert not any(block._forward_hooks for block in model.model.layers)


@torch.no_grad()
def test_blocks_are_numbered_anew_so_that_the_cache_has_no_gap():
    model = deep_model()
    structure = blocks_of(model)
    slice_(model, structure, Plan.full(structure), keep(structure, 1, 3))
    assert [block.self_attn.layer_idx for block in model.model.layers] == [0, 1]
    cached = model.generate(IDS, max_new_tokens=4, do_sample=False, use_cache=True)
    assert torch.equal(cached, model.generate(IDS, max_new_tokens=4, do_sample=False, use_cache=False))


@torch.no_grad()
def test_lists_of_the_config_lose_the_entries_of_blocks_that_go():
    types = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    model = deep_model(family="qwen3", use_sliding_window=True, sliding_window=4, layer_types=types)
    structure = blocks_of(model)
    plan = keep(structure, 2, 3)
    config = copy.deepcopy(model.config)
    slice_(model, structure, Plan.full(structure), plan)
    write_widths_(config, structure, plan)
    for written in (model.config, config, finish(model, structure, plan).config):
        assert written.layer_types == types[2:]
        assert written.num_hidden_layers == 2


@torch.no_grad()
def test_merged_equals_unmerged():
    model = with_lora(deep_model())
    structure = blocks_of(model)
    plan = keep(structure, 0, 3)
    slice_(model, structure, Plan.full(structure), plan)
    expected = logits_of(model, IDS)
    torch.testing.assert_close(logits_of(finish(model, structure, plan), IDS), expected, rtol=0, atol=1e-5)


def test_the_optimizer_forgets_adapters_of_blocks_that_go_and_goes_on_with_the_others():
    model = with_lora(deep_model()).train()
    structure = blocks_of(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)

    def step():
        optimizer.zero_grad()
        sequence_losses(model, IDS).mean().backward()
        optimizer.step()

    step()
    stays = model.get_base_model().model.layers[2].self_attn.q_proj.lora_A["default"].weight
    moment = optimizer.state[stays]["exp_avg"].clone()
    slice_(model, structure, Plan.full(structure), keep(structure, 2), optimizer)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in trained}
    assert {id(p) for p in optimizer.state} == {id(p) for p in trained}
    assert torch.equal(optimizer.state[stays]["exp_avg"], moment)
    before = stays.detach().clone()
    step()
    assert not torch.equal(stays, before)


class TestAllocation:
    def scores(self, *values):
        return {NAME: torch.tensor(values)}

    @pytest.mark.parametrize("allocation", ["uniform", "balanced", "global"])
    @pytest.mark.parametrize(("ratio", "kept"), [(0.25, 3), (0.3, 3), (0.4, 2), (0.5, 2), (0.75, 1)])
    def test_every_allocation_keeps_the_most_important_blocks_nearest_to_the_ratio(self, allocation, ratio, kept):
        structure = blocks_of(deep_model())
        scores, order = self.scores(0.1, 4.0, 3.0, 2.0), [1, 2, 3, 0]
        plan = allocate(structure, Plan.full(structure), scores, ratio, legal_widths(structure), allocation)
        assert plan.kept[NAME] == tuple(sorted(order[:kept]))
        assert abs(plan.ratio(structure) - ratio) <= 0.125

    @pytest.mark.parametrize("allocation", ["uniform", "balanced", "global"])
    def test_blocks_to_be_kept_stay_whatever_their_scores_and_in_every_cut(self, allocation):
        structure = blocks_of(deep_model(), keep_layers=(0, -1))
        legal, plan = legal_widths(structure), Plan.full(structure)
        plan = allocate(structure, plan, self.scores(0.0, 3.0, 2.0, 0.0), 0.25, legal, allocation, final_ratio=0.5)
        assert plan.kept[NAME] == (0, 1, 3)
        plan = allocate(structure, plan, self.scores(0.0, 3.0, 0.0), 0.5, legal, allocation)
        assert plan.kept[NAME] == (0, 3)

    @pytest.mark.parametrize(("keep_layers", "ratio"), [((), 0.9), ((0, 1, 2), 0.5)])
    def test_a_ratio_that_leaves_too_few_blocks_is_refused(self, keep_layers, ratio):
        structure = blocks_of(deep_model(), keep_layers)
        with pytest.raises(ValueError, match=r"removes too much: with at least . block"):
            check_reachable(structure, ratio, legal_widths(structure))

    def test_a_target_in_parameters_is_met_to_half_a_block(self):
        structure = blocks_of(deep_model())
        (blocks,) = structure
        target = structure.num_parameters - 2 * blocks.parameters_per_group
        ratio = ratio_for_parameters(structure, target)
        plan = allocate(
            structure, Plan.full(structure), self.scores(1.0, 2.0, 3.0, 4.0), ratio, legal_widths(structure)
        )
        assert structure.num_parameters - plan.removed_parameters(structure) == target


class TestRefusals:
    def refuses(self, model, message, kinds=("blocks",)):
        with pytest.raises(ValueError, match=message):
            describe(model, kinds)

    def test_other_kinds_beside_it(self, model):
        self.refuses(model, "pruned alone. Leave out channels", ("blocks", "channels"))

    def test_a_model_of_one_block(self):
        self.refuses(tiny_model(num_hidden_layers=1), "only one block")

    def test_blocks_that_depend_on_their_number(self):
        config = GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=20, scale_attn_by_inverse_layer_idx=True)
        self.refuses(GPT2LMHeadModel(config), "scale_attn_by_inverse_layer_idx")

    def test_blocks_that_differ(self):
        (row,) = (row for row in ROWS if row.name == "qwen2_moe")
        self.refuses(row.model(), "model.layers.1 and model.layers.0 have different parameters")

    def test_a_config_of_ours(self, model, structure):
        plan = Plan.full(structure).keep({"layers.0.channels": range(8)})
        slice_(model, structure, Plan.full(structure), plan)
        self.refuses(finish(model, structure, plan), "modeling file")

    def test_a_config_that_says_another_number(self, model):
        model.config.num_hidden_layers = 3
        self.refuses(model, "does not state the number of its blocks")


def test_a_fresh_config_is_written_whole():
    config = tiny_config(num_hidden_layers=4)
    structure = blocks_of(deep_model())
    write_widths_(config, structure, keep(structure, 0, 1, 3))
    assert config.num_hidden_layers == 3
