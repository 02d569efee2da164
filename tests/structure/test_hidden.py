from __future__ import annotations

import itertools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.models import logits_of, sequence_losses, tiny_model, token_ids, with_lora
from tests.zoo import ROWS
from tests.zoo.row import Row, logits
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from loraprune.allocation.allocate import allocate
from loraprune.checkpoint.save import finish
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.structure.widths import legal_widths
from loraprune.surgery.masking import masked
from loraprune.surgery.slicing import slice_

IDS = token_ids()
KEPT = tuple(channel for channel in range(32) if channel % 4)


def hidden_of(model):
    return describe(model, ("hidden",))


def cut_(model, kept=KEPT):
    structure = hidden_of(model)
    plan = Plan.full(structure).keep({"hidden": kept})
    slice_(model, structure, Plan.full(structure), plan)
    return structure, plan


def has_hidden(row: Row) -> bool:
    return "hidden" in describe(row.model()).whole


WITH_STREAM = [row for row in ROWS if has_hidden(row)]


def test_these_families_have_the_dimension():
    names = {row.config().model_type for row in WITH_STREAM}
    assert names == {"llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "smollm3", "granite", "phi3"}


@pytest.mark.parametrize("row", WITH_STREAM, ids=lambda row: row.name)
@torch.no_grad()
def test_a_sliced_model_computes_what_the_masked_one_does_and_loads_as_the_stock_class(row, tmp_path):
    model, inputs = row.model(attention=row.attentions[-1]), row.inputs()
    structure = hidden_of(model)
    plan = Plan.full(structure).keep({"hidden": KEPT})
    dense = logits(model, inputs)
    with masked(model, structure, plan):
        expected = logits(model, inputs)
    assert (dense - expected).abs().max() > 0.01
    assert torch.equal(logits(model, inputs), dense)
    slice_(model, structure, Plan.full(structure), plan)
    torch.testing.assert_close(logits(model, inputs), expected, rtol=0, atol=1e-5)
    finish(model, structure, plan).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=row.attentions[-1])
    assert type(loaded) is type(model)
    assert loaded.config.hidden_size == len(KEPT)
    assert loaded.num_parameters() == structure.num_parameters - plan.removed_parameters(structure)
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


def test_up_to_the_epsilon_of_norms_a_mask_is_what_zeroed_writers_are():
    model = tiny_model(tie_word_embeddings=True, rms_norm_eps=0.0)
    structure = hidden_of(model)
    with masked(model, structure, Plan.full(structure).keep({"hidden": KEPT})):
        expected = logits_of(model, IDS)
    gone = [channel for channel in range(32) if channel not in KEPT]
    with torch.no_grad():
        model.model.embed_tokens.weight[:, gone] = 0.0
        for block in model.model.layers:
            block.self_attn.o_proj.weight[gone] = 0.0
            block.mlp.down_proj.weight[gone] = 0.0
    torch.testing.assert_close(logits_of(model, IDS), expected, rtol=0, atol=1e-5)


def test_tied_embeddings_are_cut_once_and_stay_tied():
    model = tiny_model(tie_word_embeddings=True)
    cut_(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (model.lm_head.in_features, model.model.embed_tokens.embedding_dim) == (24, 24)


@torch.no_grad()
def test_merged_equals_unmerged():
    model = with_lora(tiny_model(tie_word_embeddings=True))
    structure, plan = cut_(model)
    expected = logits_of(model, IDS)
    torch.testing.assert_close(logits_of(finish(model, structure, plan), IDS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_small_cuts_scale_the_norms_as_one_large_cut_does(dtype):
    at_once, step_by_step = (tiny_model("mistral", hidden_size=512).to(dtype) for _ in range(2))
    structure = hidden_of(at_once)
    full = Plan.full(structure)
    plans = [full, *(full.keep({"hidden": range(kept)}) for kept in range(510, 255, -2))]
    slice_(at_once, structure, plans[0], plans[-1])
    for before, after in itertools.pairwise(plans):
        slice_(step_by_step, structure, before, after)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(step_by_step.model.norm.weight, at_once.model.norm.weight, rtol=step, atol=0)


def test_heads_keep_their_width():
    model = tiny_model("mistral")
    model.config.head_dim = None  # from now on hidden size / heads
    structure, plan = cut_(model)
    finished = finish(model, structure, plan)
    assert (finished.config.hidden_size, finished.config.head_dim) == (24, 4)


def test_training_goes_on_with_the_optimizers_state():
    model = with_lora(tiny_model()).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sequence_losses(model, IDS).mean().backward()
    optimizer.step()
    structure = hidden_of(model)
    factor = model.get_base_model().model.layers[0].self_attn.q_proj.lora_A["default"].weight
    moment = optimizer.state[factor]["exp_avg"][:, list(KEPT)].clone()
    slice_(model, structure, Plan.full(structure), Plan.full(structure).keep({"hidden": KEPT}), optimizer)
    assert torch.equal(optimizer.state[factor]["exp_avg"], moment)
    optimizer.zero_grad()
    sequence_losses(model, IDS).mean().backward()
    optimizer.step()


def test_a_classifiers_head_reads_the_stream_too():
    config = tiny_model().config
    config.num_labels, config.pad_token_id = 3, 0
    model = AutoModelForSequenceClassification.from_config(config).eval()
    cut_(model)
    assert model.score.in_features == 24
    assert model(input_ids=IDS).logits.shape == (3, 3)


@pytest.mark.parametrize("allocation", ["uniform", "balanced", "global"])
def test_every_allocation_keeps_the_most_important_channels_in_a_width_that_heads_divide(allocation):
    structure = hidden_of(tiny_model())
    scores = {"hidden": torch.arange(32.0)}
    plan = allocate(structure, Plan.full(structure), scores, 0.3, legal_widths(structure), allocation)
    assert plan.kept["hidden"] == tuple(range(8, 32))
    free = hidden_of(tiny_model("mistral"))
    assert allocate(free, Plan.full(free), scores, 0.3, legal_widths(free), allocation).count("hidden") == 22


class TestRefusals:
    @pytest.mark.parametrize("name", ["gemma", "olmo2", "phi3 with long rope", "gpt2", "opt", "mixtral"])
    def test_families_whose_norms_or_scales_depend_on_all_channels(self, name):
        (row,) = (row for row in ROWS if row.name == name)
        with pytest.raises(ValueError, match=r"'hidden' of this .* cannot be pruned"):
            describe(row.model(), ("hidden",))

    @pytest.mark.parametrize(
        ("adapted", "tied", "message"),
        [
            ({"target_modules": ["q_proj", "embed_tokens"]}, False, "embed_tokens has an adapter.*from target_modules"),
            ({"target_modules": ["q_proj", "lm_head"]}, True, "lm_head has an adapter.*from target_modules"),
            (
                {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
                False,
                "embed_tokens is trained as a whole; remove it from modules_to_save",
            ),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`", "ignore:Model with `tie_word_embeddings")
    def test_adapters_on_embeddings(self, adapted, tied, message):
        model = get_peft_model(tiny_model(tie_word_embeddings=tied), LoraConfig(r=2, **adapted))
        with pytest.raises(ValueError, match=message):
            hidden_of(model)

    def test_an_adapter_on_a_head_of_its_own_is_cut_with_it(self):
        model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
        cut_(model)
        assert model.get_base_model().lm_head.lora_A["default"].weight.shape == (2, 24)
        assert torch.isfinite(logits_of(model, IDS)).all()

    def test_other_kinds_beside_it(self, model):
        with pytest.raises(ValueError, match=r"pruned alone\. Leave out heads"):
            describe(model, ("hidden", "heads"))

    def test_layers_to_be_kept(self, model):
        with pytest.raises(ValueError, match="none can be kept"):
            describe(model, ("hidden",), (0,))
