"""What the command line refuses is refused from Python, too, before weights are loaded; nothing given is changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from peft import LoraConfig
from transformers import PreTrainedModel, TrainingArguments
from trl import SFTConfig

import loraprune
from loraprune import PruningConfig, RunOptions
from loraprune.cli.recipe_files import command_of, published
from loraprune.tasks.training_rules import RANGES, REMEDIES

QUICK = {"max_steps": 2, "max_length": 32, "per_device_train_batch_size": 4}
Refused = Callable[..., str]


@pytest.fixture
def refused(checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs a recipe that must be refused before weights are loaded, and returns what it says."""

    def load(*_: object, **__: object) -> NoReturn:
        raise AssertionError("Weights are loaded.")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", load)

    def call(recipe: str = "prune", config: Any = None, **given: Any) -> str:
        further = (config,) if config is not None else ()
        with pytest.raises(ValueError, match=r".+") as caught:
            getattr(loraprune, recipe)(
                str(checkpoint), str(data), *further, options=RunOptions(output=tmp_path / "out"), **given
            )
        assert list(tmp_path.iterdir()) == []
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return call


class TestTraining:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"push_to_hub": True}, "push_to_hub is not a training argument of a run.*push_to_hub=NAME"),
            ({"hub_model_id": "me/x"}, "hub_model_id"),
            ({"output_dir": "x"}, "output_dir"),
            ({"deepspeed": {"a": 1}}, "deepspeed"),
            ({"load_best_model_at_end": True}, "load_best_model_at_end"),
            ({"resume_from_checkpoint": "x"}, "Say --resume"),
            ({"eval_strategy": "steps"}, "eval_strategy"),
            ({"packing": True}, "packing"),
            ({"fp16": True}, "fp16"),
            ({"save_strategy": "best"}, "save_strategy is 'best'"),
            ({"learning_rate": "1e-4"}, "learning_rate is '1e-4'; it must be a number"),
            ({"learning_rate": None}, "learning_rate is None"),
            ({"max_steps": 2.5}, "max_steps is 2.5; it must be a whole number"),
            ({"max_steps": True}, "max_steps is True; it must be a whole number"),
            ({"gradient_checkpointing": "yes"}, "gradient_checkpointing is 'yes'; it must be True or False"),
            ({"weight_decay": float("inf")}, "weight_decay is inf"),
            ({"optim": "nothing"}, "nothing"),
            ({"learnig_rate": 1}, "no training option 'learnig_rate'. Did you mean 'learning_rate'"),
            ({"lr_scheduler_type": "cosine_with_min_lr"}, "'cosine_with_min_lr', which cannot be used"),
        ],
    )
    @pytest.mark.parametrize("recipe", ["prune", "recover"])
    def test_a_wrong_argument_is_refused(self, refused: Refused, recipe: str, given: Any, message: str) -> None:
        assert re.search(message, refused(recipe, training=given))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"push_to_hub": True}, "push_to_hub"),
            ({"save_only_model": True}, "save_only_model"),
            ({"adam_beta1": 2.0}, "adam_beta1 is 2.0"),
            ({"seed": -1}, "seed is -1"),
        ],
    )
    def test_so_is_that_of_an_object(self, refused: Refused, tmp_path: Path, given: Any, message: str) -> None:
        arguments = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **given)
        assert message in refused(training=arguments)

    def test_values_that_are_the_defaults_may_be_said(self, checkpoint: Path, data: Path) -> None:
        said = {"eval_strategy": "no", "packing": False, "push_to_hub": False, "deepspeed": None}
        options = RunOptions(latency=False, report=False, eval_sequences=0)
        config = PruningConfig(ratio=0.3, cuts=1, calibration_sequences=4)
        assert loraprune.prune(str(checkpoint), str(data), config, training=QUICK | said, options=options).model

    def test_the_tables_name_arguments(self) -> None:
        known = {*SFTConfig.__dataclass_fields__, *TrainingArguments.__dataclass_fields__}
        assert {*REMEDIES, *RANGES} <= known


class TestLora:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"lora_bias": True}, "LoraConfig has lora_bias=True: the adapter could not be merged"),
            ({"layer_replication": [(0, 2), (1, 2)]}, "LoraConfig has layer_replication"),
            ({"inference_mode": True}, "LoraConfig has inference_mode=True"),
            ({"megatron_config": {"a": 1}}, "LoraConfig has megatron_config"),
            ({"alora_invocation_tokens": [1]}, "LoraConfig has alora_invocation_tokens"),
            ({"use_dora": True}, "LoraConfig has use_dora=True"),
            ({"init_lora_weights": "corda"}, "init_lora_weights='corda'"),
            ({"init_lora_weights": "eva"}, "init_lora_weights='eva'"),
            ({"lora_alpha": -1}, "lora_alpha is -1"),
            ({"lora_alpha": 1.5}, "lora_alpha is 1.5; it must be a whole number"),
            ({"r": 100_000_000}, "lora_r is 100000000"),
            ({"lora_dropout": 2.0}, "lora_dropout is 2.0"),
            ({"target_modules": ["nothing"]}, "target_modules nothing"),
        ],
        ids=str,
    )
    def test_what_a_run_cannot_follow_is_refused(self, refused: Refused, fields: Any, message: str) -> None:
        assert message in refused(lora=LoraConfig(**{"target_modules": ["q_proj"], **fields}))

    def test_what_is_given_stays_as_it_is(self, checkpoint: Path, data: Path) -> None:
        lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
        before = lora.to_dict()
        options = RunOptions(latency=False, report=False, eval_sequences=0)
        config = PruningConfig(ratio=0.3, cuts=1, calibration_sequences=4)
        loraprune.prune(str(checkpoint), str(data), config, training=QUICK, lora=lora, options=options)
        assert lora.to_dict() == before

    def test_dora_goes_where_nothing_reads_its_weight(self, checkpoint: Path, data: Path) -> None:
        lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], use_dora=True)
        options = RunOptions(latency=False, report=False, eval_sequences=0)
        config = PruningConfig(ratio=0.3, cuts=1, repair="none")
        assert loraprune.prune(str(checkpoint), str(data), config, training=QUICK, lora=lora, options=options).model


def test_each_published_recipe_says_the_command_that_it_is_for() -> None:
    commands = {command_of(path.read_text(encoding="utf-8")) for path in published().values()}
    assert commands == {"loraprune prune", "loraprune oneshot", "loraprune recover"}
