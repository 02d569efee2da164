from __future__ import annotations

import copy

import pytest
import torch
from tests.models import logits_of, projections, randomize_, tiny_model, token_ids, with_lora
from tests.pruning.criteria import pruned_without_training
from tests.zoo import ROWS
from tests.zoo.plans import uniform_plan
from tests.zoo.row import adapted, logits, structure_of
from transformers import AutoModelForCausalLM

from loraprune.allocation.target import Target
from loraprune.calibration.block_by_block import LayerwisePass, WholeModelPass
from loraprune.checkpoint.save import finish
from loraprune.layers.axes import weight_oi
from loraprune.layers.unwrap import base_layer, base_model
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.bias import bias_switches, compensate_, give_biases_
from loraprune.surgery.refit import cut_and_repair_
from loraprune.surgery.repairs import Bias, repair_of
from loraprune.surgery.slicing import slice_, slice_dimension_

pytestmark = pytest.mark.usefixtures("enough_tokens")

CALIBRATION = [token_ids(1, length, seed=length)[0] for length in (40, 33, 40, 50)]
BY_NAME = {row.name: row for row in ROWS}

# What has to be switched on; of rows that are not named, the consumers have biases already.
SWITCHED = {
    "llama": ["attention_bias", "mlp_bias"],
    "llama with as many KV heads": ["attention_bias", "mlp_bias"],
    "smollm3": ["attention_bias", "mlp_bias"],
    "starcoder2 without biases": ["use_bias"],
    "opt with norms behind, without biases": ["enable_bias"],
    "falcon with one KV head": ["bias"],
    "falcon, new": ["bias"],
    "falcon with alibi": ["bias"],
}
# Rows whose stock class has no bias there, with the first consumer that lacks one.
REFUSED = {
    "mistral": "model.layers.0.self_attn.o_proj",
    "ministral": "model.layers.0.self_attn.o_proj",
    "ministral3": "model.layers.0.self_attn.o_proj",
    "qwen2": "model.layers.0.self_attn.o_proj",
    "phi3": "model.layers.0.self_attn.o_proj",
    "phi3 with long rope": "model.layers.0.mlp.down_proj",
    "qwen3": "model.layers.0.mlp.down_proj",
    "gemma": "model.layers.0.mlp.down_proj",
    "gemma with biases": "model.layers.0.mlp.down_proj",
    "gemma2": "model.layers.0.mlp.down_proj",
    "gemma3_text": "model.layers.0.mlp.down_proj",
    "olmo2": "model.layers.0.mlp.down_proj",
    "olmo2 with biases": "model.layers.0.mlp.down_proj",
    "cohere": "model.layers.0.mlp.down_proj",
    "cohere with norms": "model.layers.0.mlp.down_proj",
    "stablelm": "model.layers.0.mlp.down_proj",
    "stablelm with norms": "model.layers.0.mlp.down_proj",
    "mpt": "transformer.blocks.0.ffn.down_proj",
    "mpt with six heads": "transformer.blocks.0.ffn.down_proj",
    "t5": "encoder.block.0.layer.0.SelfAttention.o",
    "t5, gated and untied": "encoder.block.0.layer.0.SelfAttention.o",
    "mt5": "encoder.block.0.layer.0.SelfAttention.o",
}
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3")
BIASED = [name for name in BY_NAME if name not in (*SWITCHED, *REFUSED, *MIXTURES)]


def made(name, kinds=None):
    model = BY_NAME[name].model()
    return model, structure_of(model, kinds)


@pytest.mark.parametrize("name", SWITCHED)
def test_these_families_get_biases_by_switches_of_their_config(name):
    assert bias_switches(*made(name)) == SWITCHED[name]


@pytest.mark.parametrize("name", BIASED)
def test_these_families_have_biases_and_are_left_alone(name):
    model, structure = made(name)
    assert bias_switches(model, structure) == []
    names, config = [key for key, _ in model.named_parameters()], model.config.to_dict()
    give_biases_(model, structure)
    assert [key for key, _ in model.named_parameters()] == names
    assert model.config.to_dict() == config


@pytest.mark.parametrize("name", REFUSED)
def test_these_families_are_refused_with_the_consumer_and_the_way_out(name):
    model, structure = made(name)
    before = model.config.to_dict()
    pattern = rf"bias on {REFUSED[name]}, .* {structure.spec.model_type} models .*--repair refit or none.*--dimensions"
    for refuse in (bias_switches, give_biases_):
        with pytest.raises(ValueError, match=pattern):
            refuse(model, structure)
    assert model.config.to_dict() == before


@pytest.mark.parametrize("kinds", [None, ("experts",)])
@pytest.mark.parametrize("name", MIXTURES)
def test_experts_are_refused_with_the_way_out(name, kinds):
    with pytest.raises(ValueError, match=r"Experts cannot be repaired by their biases\. Choose --repair refit"):
        bias_switches(*made(name, kinds))


@pytest.mark.parametrize("name", ["qwen3", "gemma", "olmo2", "cohere", "qwen3_moe"])
def test_heads_alone_can_have_biases_where_the_attention_can(name):
    assert bias_switches(*made(name, ("heads",))) == ["attention_bias"]


def test_the_refusal_names_the_kinds_that_are_left_without(model):
    with pytest.raises(ValueError, match=r"leave out the channels"):
        bias_switches(*made("gemma"))
    with pytest.raises(ValueError, match=r"leave out the heads, channels"):
        bias_switches(*made("mistral"))


def test_a_protected_layer_needs_no_bias():
    model = BY_NAME["gptj"].model()
    structure = describe(model, ("heads", "channels"), keep_layers=[0])
    with pytest.raises(ValueError, match=r"bias on transformer\.h\.1\.attn\.out_proj"):
        bias_switches(model, structure)


def test_a_model_without_weights_tells_as_well():
    config = BY_NAME["llama"].config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert bias_switches(model, describe(model)) == ["attention_bias", "mlp_bias"]
    assert not model.config.attention_bias


def random_biases_(model):
    """Values that would be missed if they were lost."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(".bias"):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(key))))


@pytest.mark.parametrize("name", SWITCHED)
def test_biases_of_zeros_change_nothing(name):
    row = BY_NAME[name]
    model, structure = made(name)
    before = logits(model, row.inputs())
    give_biases_(model, structure)
    assert torch.equal(logits(model, row.inputs()), before)
    for d in structure:
        bias = model.get_submodule(d.consumer.module).bias
        assert isinstance(bias, torch.nn.Parameter)
        assert not bias.any()
        assert bias.shape == (model.config.hidden_size,)
    assert bias_switches(model, structure) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_new_biases_have_the_dtype_of_the_model(dtype):
    model = tiny_model(dtype=dtype)
    give_biases_(model, describe(model))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("name", SWITCHED)
@pytest.mark.parametrize("values", ["zeros", "random"])
def test_the_stock_class_loads_the_model_with_its_biases(name, values, tmp_path):
    row = BY_NAME[name]
    model, structure = made(name)
    give_biases_(model, structure)
    if values == "random":
        random_biases_(model)
    model.save_pretrained(tmp_path)
    loaded, info = row.auto.from_pretrained(tmp_path, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded.eval(), row.inputs()), logits(model, row.inputs()))


@pytest.mark.parametrize("name", ["llama", "smollm3", "starcoder2 without biases", "falcon, new", "gpt2"])
def test_a_model_that_was_cut_with_biases_is_saved_as_a_stock_checkpoint(name, tmp_path):
    row = BY_NAME[name]
    model = row.model()
    give_biases_(model, describe(model))
    structure = describe(model)
    target = Target(ratio=0.4, allocation="uniform")
    result = pruned_without_training(model, structure, "flap", CALIBRATION, target=target, repair="bias")
    expected = logits(model, row.inputs())
    for d in structure:
        assert model.get_submodule(d.consumer.module).bias.abs().min() > 0
    finished = finish(model, structure, result.plan)
    torch.testing.assert_close(logits(finished, row.inputs()), expected)
    finished.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    torch.testing.assert_close(logits(loaded, row.inputs()), expected)
    assert type(loaded).__module__.startswith("transformers.")


TOKENS = [{"input_ids": sequence[None], "use_cache": False} for sequence in CALIBRATION]


@torch.no_grad()
def outputs_of(model, module, batches=TOKENS):
    """What a layer gives on the calibration data, in 64 bits."""
    outputs = []
    layer = base_model(model).get_submodule(module)
    handle = layer.register_forward_hook(lambda _, args, output: outputs.append(output.flatten(0, -2)))
    for batch in batches:
        model(**batch)
    handle.remove()
    return torch.cat(outputs).double()


BIASED_MODELS = {
    "llama": ("llama", None),
    "smollm3": ("smollm3", None),
    "gpt2": ("gpt2", ("heads", "channels")),
    "opt": ("opt", ("heads", "channels")),
    "nemotron": ("nemotron", ("query_heads", "channels")),
}


def with_biases(case, *, lora=False):
    """A model whose consumers have biases of zeros, or such as it came with; with an adapter on them all, too."""
    name, kinds = BIASED_MODELS[case]
    model = BY_NAME[name].model()
    give_biases_(model, structure_of(model, kinds))
    structure = structure_of(model, kinds)
    return (adapted(model, structure) if lora else model), structure


def bias_of(model, d):
    return base_layer(base_model(model).get_submodule(d.consumer.module)).bias.detach().clone()


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("whole", [False, True], ids=["by blocks", "whole"])
@pytest.mark.parametrize("case", BIASED_MODELS)
def test_the_mean_output_of_a_consumer_outlives_the_cut(case, whole, lora):
    model, structure = with_biases(case, lora=lora)
    d = structure.dimensions[0]
    positions = uniform_plan(structure).kept[d.name]
    before = outputs_of(model, d.consumer.module)
    plain = copy.deepcopy(model)
    calibration = WholeModelPass(model, CALIBRATION) if whole else LayerwisePass(model, structure, CALIBRATION)
    length = weight_oi(base_layer(base_model(model).get_submodule(d.consumer.module))).shape[1]
    kept = d.consumer.positions(torch.tensor(positions), d.num_groups, length)
    compensate_(model, d, kept, calibration)
    for each in (model, plain):
        slice_dimension_(each, d, positions, d.num_groups)
    after = outputs_of(model, d.consumer.module)
    torch.testing.assert_close(after.mean(0), before.mean(0), rtol=1e-5, atol=1e-5)
    assert (outputs_of(plain, d.consumer.module).mean(0) - before.mean(0)).abs().max() > 1e-2


def cut_by_hand(model, structure, plan, batches):
    """One dimension after the other: what a cut takes from the mean output of its consumer goes into the bias."""
    for d in structure:
        wanted = outputs_of(model, d.consumer.module, batches).mean(0)
        slice_dimension_(model, d, plan.kept[d.name], d.num_groups)
        missing = wanted - outputs_of(model, d.consumer.module, batches).mean(0)
        assert missing.abs().max() > 1e-3
        base_layer(base_model(model).get_submodule(d.consumer.module)).bias.data += missing.float()


def assert_same_parameters(model, other):
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_a_cut_with_biases_compensates_every_consumer_on_the_model_as_it_was_cut_so_far(case, lora):
    model, structure = with_biases(case, lora=lora)
    by_hand, plan = copy.deepcopy(model), uniform_plan(structure)
    cut_and_repair_(model, structure, Plan.full(structure), plan, calibration=CALIBRATION, repair=Bias())
    cut_by_hand(by_hand, structure, plan, TOKENS)
    assert_same_parameters(model, by_hand)


@pytest.mark.parametrize(
    ("name", "kinds"), [("vit", ("heads", "channels")), ("bert", ("heads", "channels")), ("bloom", ("channels",))]
)
def test_so_does_a_cut_of_all_blocks_at_once(name, kinds):
    model, structure = made(name, kinds)
    by_hand, plan, batch = copy.deepcopy(model), uniform_plan(structure), BY_NAME[name].inputs()
    cut_and_repair_(model, structure, Plan.full(structure), plan, calibration=[batch], repair=Bias())
    cut_by_hand(by_hand, structure, plan, [batch])
    assert_same_parameters(model, by_hand)


@pytest.mark.parametrize("case", ["gpt2", "opt"])
def test_a_bias_that_was_there_is_added_to(case):
    model, structure = with_biases(case)
    shifted = copy.deepcopy(model)
    d = structure.dimensions[0]
    with torch.no_grad():
        base_layer(shifted.get_submodule(d.consumer.module)).bias.add_(5.0)
    assert bias_of(model, d).any()
    added = []
    for each in (model, shifted):
        before = bias_of(each, d)
        compensate_(each, d, torch.tensor([0, 1, 2]), LayerwisePass(each, structure, CALIBRATION))
        added.append(bias_of(each, d) - before)
    torch.testing.assert_close(added[0], added[1], rtol=1e-4, atol=1e-5)
    assert added[0].abs().max() > 1e-3


def test_nothing_is_added_where_nothing_goes():
    model, structure = with_biases("llama")
    d = structure.dimensions[0]
    compensate_(model, d, torch.arange(32), LayerwisePass(model, structure, CALIBRATION))
    assert not bias_of(model, d).any()


@pytest.mark.parametrize("repair", ["bias", "refit"])
def test_a_repair_takes_base_and_adapter_together(repair):
    """With and without the adapter merged, the repaired models compute the same."""
    model = tiny_model()
    give_biases_(model, describe(model))
    randomize_(model, 3)
    structure = describe(model)
    lora = with_lora(model)
    merged = copy.deepcopy(lora).merge_and_unload()
    plan = uniform_plan(structure)
    for each in (lora, merged):
        cut_and_repair_(each, structure, Plan.full(structure), plan, calibration=CALIBRATION, repair=repair_of(repair))
    torch.testing.assert_close(logits_of(lora, token_ids()), logits_of(merged, token_ids()), rtol=1e-3, atol=1e-3)
    consumers = [projections(each, 1)["down_proj"] for each in (lora, merged)]
    torch.testing.assert_close(base_layer(consumers[0]).bias, consumers[1].bias, rtol=1e-3, atol=1e-4)


def test_a_model_that_was_cut_before_gets_biases_of_its_own_lengths() -> None:
    model = tiny_model("llama")
    structure = describe(model)
    full = Plan.full(structure)
    slice_(model, structure, full, full.keep({d.name: [0, 1] for d in structure if d.layer == 0}))
    finished = finish(model, structure, full.keep({d.name: [0, 1] for d in structure if d.layer == 0}))
    give_biases_(finished, describe(finished))
    for name, module in finished.named_modules():
        if isinstance(module, torch.nn.Linear) and "layers" in name:
            assert module.bias.shape == module.weight.shape[:1], name
    logits_of(finished, token_ids())
