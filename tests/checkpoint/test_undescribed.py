from __future__ import annotations

import pytest
from transformers import ElectraConfig, PretrainedConfig

from loraprune.checkpoint.undescribed import look_at

SIZES = {
    "embedding_size": 32,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


def electra(**changes: object) -> ElectraConfig:
    return ElectraConfig(vocab_size=40, **{**SIZES, **changes})


@pytest.mark.parametrize(
    "name", ["ElectraForMaskedLM", "ElectraForSequenceClassification", "ElectraModel", "ElectraForCausalLM"]
)
def test_the_model_is_the_one_that_the_config_names(name: str) -> None:
    seen = look_at(electra(architectures=[name]))
    assert seen.model_class == name
    prefix = "" if name == "ElectraModel" else "electra."
    assert [stack.path for stack in seen.stacks] == [f"{prefix}encoder.layer"]


def test_a_config_that_names_none_or_one_that_no_class_makes_gets_the_first_that_there_is() -> None:
    assert look_at(electra()).model_class == "ElectraForCausalLM"
    assert look_at(electra(architectures=["ElectraForSomethingElse"])).model_class == "ElectraForCausalLM"


def test_looking_leaves_the_config_as_it_was() -> None:
    config = electra()
    before = config.to_dict()
    look_at(config)
    assert config.to_dict() == before


def test_a_config_of_which_no_class_makes_a_model_is_refused() -> None:
    class Nobody(PretrainedConfig):
        model_type = "nobody-s"

    with pytest.raises(ValueError, match="'nobody-s', but none of these classes makes such a model: Auto"):
        look_at(Nobody())


def test_a_config_that_its_class_refuses_is_refused_with_its_reason() -> None:
    with pytest.raises(ValueError, match="No model can be made from this config: ZeroDivisionError"):
        look_at(electra(num_attention_heads=0))
