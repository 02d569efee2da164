"""Mixtures of experts through the whole joint recipe: trl adds their load-balancing loss and rewrites their configs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import BOS, EOS, VOCABULARY, tiny_tokenizer
from tests.finished_run import QUICK
from tests.thinned import thinned
from transformers import (
    AutoModelForCausalLM,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from loraprune import PruneResult, PruningConfig, RunOptions, prune

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": None,
}
CONFIGS = {
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=8, intermediate_size=32),
    "olmoe": OlmoeConfig(**SHAPE, num_experts=8, intermediate_size=32),
    "qwen2_moe": Qwen2MoeConfig(
        **SHAPE, num_experts=8, moe_intermediate_size=32, shared_expert_intermediate_size=32, intermediate_size=32
    ),
    "qwen3_moe": Qwen3MoeConfig(**SHAPE, num_experts=8, moe_intermediate_size=32, head_dim=4, intermediate_size=32),
}
IDS = torch.arange(2, 20)[None]


def mixture(family: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[family]))


def run(model: PreTrainedModel, data: Path, config: PruningConfig, **changes: Any) -> PruneResult:
    training = {**QUICK, **changes.pop("training", {})}
    return prune(
        model,
        str(data),
        config,
        training=training,
        tokenizer=tiny_tokenizer(),
        options=RunOptions(latency=False, eval_sequences=4, **changes),
    )


@pytest.mark.parametrize("allocation", thinned(["balanced", "uniform", "global"]))
@pytest.mark.parametrize(
    ("family", "kinds"),
    thinned(
        [
            pytest.param(family, kinds, id=f"{family}-{name}")
            for name, kinds in (("default", None), ("experts", ("experts",)))
            for family in CONFIGS
        ],
        len(CONFIGS) + 1,
    ),
)
def test_a_mixture_is_pruned_saved_and_loaded(
    family: str, kinds: Any, allocation: str, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    config = PruningConfig(ratio=0.25, dimensions=kinds, allocation=allocation, calibration_sequences=8)
    result = run(mixture(family), data, config, output=out)
    assert result.plan.ratio(result.structure) > 0.1
    loaded = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        expected, found = result.model(input_ids=IDS), loaded(input_ids=IDS, labels=IDS)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
    assert torch.isfinite(found.loss)


@pytest.mark.parametrize("family", thinned(CONFIGS))
def test_the_config_differs_from_the_dense_one_in_widths_alone(family: str, data: Path) -> None:
    before = mixture(family).config.to_dict()
    result = run(mixture(family), data, PruningConfig(ratio=0.25, calibration_sequences=8))
    after = result.model.config.to_dict()
    changed = {name for name in before if after.get(name) != before[name]}
    widths = {name for dimension in result.structure for name in dimension.config or {}}
    assert changed <= widths | {"head_dim", "dtype", "architectures", "transformers_version"}
    assert changed & widths


def test_experts_that_differ_from_layer_to_layer_run_after_loading(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = PruningConfig(ratio=0.2, dimensions=("experts",), keep_layers=(1,), repair="none", apply="mask")
    model = mixture("qwen3_moe")
    model.config.output_router_logits = True
    result = run(model, data, config, output=out)
    assert len(set(result.plan.counts(result.structure, "experts"))) == 2
    loaded = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        assert torch.isfinite(loaded(input_ids=IDS, labels=IDS).loss)


def test_a_load_balancing_loss_beside_whole_experts_is_refused_before_any_work(data: Path) -> None:
    config = PruningConfig(ratio=0.25, dimensions=("experts",))
    with pytest.raises(ValueError, match=r"router-aux-loss-coef is 0\.01, and the load-balancing loss does not work"):
        run(mixture("mixtral"), data, config, training={"router_aux_loss_coef": 0.01})
