from __future__ import annotations

import pytest
from tests.tasks.models import tiny_bert, tiny_convnext, tiny_t5, tiny_vit
from transformers import (
    AutoConfig,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from loraprune.checkpoint.load import auto_class_of, meta_model
from loraprune.tasks.registry import TASKS, TaskError, task_for, task_of_config, task_of_model


@pytest.mark.parametrize(
    ("class_name", "task"),
    [
        ("LlamaForCausalLM", "causal-lm"),
        ("GPT2LMHeadModel", "causal-lm"),
        ("T5ForConditionalGeneration", "text-to-text"),
        ("ViTForImageClassification", "image-classification"),
        ("DeiTForImageClassificationWithTeacher", "image-classification"),
        ("PrunedConvNextForImageClassification", "image-classification"),
        ("RobertaForSequenceClassification", "text-classification"),
        ("LlamaForSequenceClassification", "text-classification"),
    ],
)
def test_the_class_that_a_config_names_decides(class_name: str, task: str) -> None:
    config = PretrainedConfig(architectures=[class_name])
    assert task_of_config(config, "AutoModelForCausalLM").name == task


@pytest.mark.parametrize(
    ("model", "task"),
    [
        (tiny_vit(), "image-classification"),
        (tiny_convnext(), "image-classification"),
        (tiny_bert(), "text-classification"),
        (tiny_t5(), "text-to-text"),
    ],
)
def test_the_class_of_a_loaded_model_decides(model: PreTrainedModel, task: str) -> None:
    model.config.architectures = None
    assert task_of_model(model, "AutoModelForCausalLM").name == task
    assert task_of_model(type("Own", (type(model),), {})(model.config), "AutoModelForCausalLM").name == task


def test_without_a_class_the_family_decides() -> None:
    for task in TASKS:
        assert task_of_config(PretrainedConfig(), task.auto_class) is task
        assert task_of_config(PretrainedConfig(architectures=["MyOwnModel"]), task.auto_class) is task


def test_a_class_of_no_task_is_refused_with_the_tasks_there_are() -> None:
    with pytest.raises(
        TaskError, match=r"a BertForMaskedLM.*text-classification \(AutoModelForSequenceClassif"
    ) as caught:
        task_of_config(PretrainedConfig(architectures=["BertForMaskedLM"]), "AutoModelForMaskedLM")
    for task in TASKS:
        assert task.auto_class in str(caught.value)
    model = BertForMaskedLM(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(TaskError, match="a BertForMaskedLM"):
        task_of_model(model, "AutoModelForMaskedLM")


def test_a_family_of_no_task_is_refused() -> None:
    with pytest.raises(TaskError, match="AutoModelForMaskedLM loads cannot be tuned"):
        task_for([], "AutoModelForMaskedLM")


def test_a_meta_model_is_of_the_class_that_the_config_names() -> None:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=16,
        architectures=["LlamaForSequenceClassification"],
    )  # fmt: skip
    assert auto_class_of(config) == "AutoModelForSequenceClassification"
    assert type(meta_model(config)) is LlamaForSequenceClassification
    config.architectures = None
    assert auto_class_of(config) == "AutoModelForCausalLM"


def test_every_measure_of_a_task_can_be_written_in_a_card() -> None:
    from loraprune.tasks.task import CARD_FORMATS

    for task in TASKS:
        keys = [measure.key for measure in task.measures]
        assert len(keys) == len(set(keys))
        assert any(measure.of_quality and measure.card for measure in task.measures)
        for measure in task.measures:
            assert measure.card is None or measure.unit in CARD_FORMATS


def test_an_architecture_that_only_masks_words_can_still_be_inspected() -> None:
    config = AutoConfig.for_model("bert", vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    config.architectures = ["BertForMaskedLM"]
    assert type(meta_model(config)) is BertForMaskedLM


def test_a_family_with_two_classes_for_a_task_needs_no_class_in_its_config() -> None:
    config = AutoConfig.for_model(
        "deit", hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    assert config.architectures is None
    assert type(meta_model(config, "AutoModelForImageClassification")).__name__ == "DeiTForImageClassification"
    assert config.architectures is None
