from __future__ import annotations

import re

import pytest
from peft import PeftModel, get_peft_model
from tests.models import PROJECTIONS, tiny_model
from tests.tasks.models import tiny_bert, tiny_convnext, tiny_roberta, tiny_t5, tiny_vit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from loraprune import describe
from loraprune.tasks.lora import LoraOptions, adaptable_layers, default_rank, head_modules, lora_config, target_modules
from loraprune.tasks.registry import task_of_model

GPT2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=16, n_positions=16))
MODELS = {
    "llama": tiny_model(),
    "gpt2": GPT2,
    "vit": tiny_vit(),
    "convnext": tiny_convnext(),
    "bert": tiny_bert(),
    "roberta": tiny_roberta(),
    "t5": tiny_t5(),
}
BERT_LAYERS = {"query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"}


def adapted_layers(model: PeftModel) -> set[str]:
    return {name for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")}


def adapt(model: PreTrainedModel, options: LoraOptions) -> PeftModel:
    task = task_of_model(model, "AutoModelForCausalLM")
    return get_peft_model(model, lora_config(options, describe(model), model, task))


@pytest.mark.filterwarnings("error::UserWarning:peft")
@pytest.mark.parametrize("family", MODELS)
def test_every_layer_of_a_group_is_adapted_and_none_outside_the_blocks(family: str) -> None:
    model = MODELS[family]
    expected = adaptable_layers(describe(model), model)
    blocks = describe(model).blocks
    assert all(name.startswith(blocks) for name in expected)
    adapted = adapt(model, LoraOptions())
    assert adapted_layers(adapted) == expected
    adapted.unload()


def test_names_that_mean_the_same_everywhere_stay_short() -> None:
    model = MODELS["llama"]
    config = lora_config(LoraOptions(), describe(model), model, task_of_model(model, "AutoModelForCausalLM"))
    assert set(config.target_modules) == set(PROJECTIONS)
    assert config.modules_to_save is None


def test_attention_is_tuned_also_where_only_channels_are_pruned() -> None:
    model = tiny_bert()
    assert describe(model).kinds == ("channels",)
    found = {name.partition("layer.0.")[2] for name in adapted_layers(adapt(model, LoraOptions())) if "layer.0" in name}
    assert {name.removeprefix("attention.self.") for name in found} == BERT_LAYERS


def test_layers_can_be_named_by_the_end_of_their_paths() -> None:
    model = tiny_bert()
    adapted = adapted_layers(adapt(model, LoraOptions(target_modules=["attention.output.dense"])))
    assert adapted == {f"bert.encoder.layer.{i}.attention.output.dense" for i in range(2)}


def test_an_ambiguous_name_becomes_an_expression_of_the_full_names() -> None:
    chosen = {f"model.layers.{i}.out.dense" for i in range(12)}
    names = {*chosen, "model.pooler.dense", "model.layers.0.in.dense"}
    found = target_modules(["dense"], chosen, names)
    assert found == r"model\.layers\.\d+\.out\.dense"
    some = {"model.layers.0.out.dense", "model.layers.10.out.dense"}
    exact = target_modules(["dense"], some, names)
    assert isinstance(exact, str)
    assert {name for name in names if re.fullmatch(exact, name)} == some


@pytest.mark.parametrize("family", MODELS)
def test_the_head_is_what_lies_behind_the_base_model(family: str) -> None:
    expected = {"vit", "convnext", "bert", "roberta"}
    model = MODELS[family]
    if family in expected:
        assert head_modules(model) == ["classifier"]
    adapted = adapt(model, LoraOptions())
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad and "lora" not in name}
    assert bool(trained) is (family in expected)
    assert all(name.startswith("base_model.model.classifier.modules_to_save") for name in trained)
    adapted.unload()


def test_transposed_layers_are_told_to_peft() -> None:
    task = task_of_model(GPT2, "AutoModelForCausalLM")
    assert lora_config(LoraOptions(), describe(GPT2), GPT2, task).fan_in_fan_out is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "lora_r is 0"),
        ({"dropout": 1.0}, r"lora_dropout is 1\.0"),
        ({"experts": True, "dropout": 0.1}, "cannot be adapted with dropout"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraOptions(**options)


def test_experts_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="A bert model has no stacked experts"):
        adapt(tiny_bert(), LoraOptions(experts=True))


@pytest.mark.parametrize(
    ("hidden_size", "rank"), [(16, 8), (64, 16), (128, 32), (288, 64), (576, 64), (4096, 64), (96, 16)]
)
def test_the_rank_grows_with_a_small_model_and_stays_at_64(hidden_size: int, rank: int) -> None:
    assert default_rank(hidden_size) == rank


def test_a_rank_that_was_given_is_taken() -> None:
    model = tiny_model("llama", hidden_size=128, intermediate_size=128)
    task = task_of_model(model, "AutoModelForCausalLM")
    assert lora_config(LoraOptions(), describe(model), model, task).r == 32
    assert lora_config(LoraOptions(r=4), describe(model), model, task).r == 4
