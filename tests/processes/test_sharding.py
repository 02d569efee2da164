"""Models of every family, shared out among two processes, are cut as those that each process has whole."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tests.processes.test_in_parallel import LAUNCH, ROOT, environment
from tests.zoo import ROWS
from transformers import AutoModelForCausalLM

from loraprune import PruningConfig, RunOptions, describe
from loraprune.processes.sharding import apart, is_shard, is_sharded, whole, whole_weights
from loraprune.recipes.steps.sharded import check_shareable, settle_sharing, settle_strategy

NAMES = [row.name for row in ROWS if row.auto is AutoModelForCausalLM]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("shared")
    script = [str(ROOT / "tests/processes/shared_out.py"), str(folder / "found"), str(folder), *NAMES]
    done = subprocess.run([*LAUNCH, *script], capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [json.loads(Path(f"{folder}/found.{rank}").read_text()) for rank in range(2)]


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_shared_out_model_is_cut_and_merged_like_a_whole_one(name: str, found: list[dict[str, Any]]) -> None:
    alone = found[0][name]["alone"]
    for rank in found:
        shared = rank[name]["shared"]
        assert shared["share"] == pytest.approx(0.5, abs=0.01)
        assert shared["sharded"]
        assert shared["left_over"] == 0, "of the weights before the cut"
        assert not shared["config"], "the result says nothing of processes"
        for value in ("before", "after", "loaded", "gradients", "merged"):
            assert shared[value] == pytest.approx(alone[value], rel=1e-5)
    assert found[0][name]["shared"]["whole"] == pytest.approx(alone["whole"], rel=1e-5)
    assert "whole" not in found[1][name]["shared"]


@pytest.mark.full
@pytest.mark.slow
def test_what_is_changed_while_it_is_open_stays(found: list[dict[str, Any]]) -> None:
    for rank in found:
        opened_twice = rank["opened"]
        assert opened_twice["inside"]
        assert opened_twice["sharded"]
        assert opened_twice["values"] == [3.0]


def test_a_plain_model_is_left_alone() -> None:
    layer = torch.nn.Linear(3, 2)
    weight = layer.weight
    with apart(layer), whole_weights(layer):
        assert layer.weight is weight
    assert layer.weight is weight
    assert whole(weight) is weight
    assert not is_shard(weight)
    assert not is_sharded(layer)


# What does not go with it, said before anything is loaded.


def source(**values: Any) -> Any:
    shapes = SimpleNamespace(fsdp_plan={"layers.*": "free_full_weight"})
    config = SimpleNamespace(model_type="odd")
    usual = {"loaded": None, "adapter": None, "packed": False, "shapes": shapes, "config": config}
    return SimpleNamespace(**{**usual, **values})


class Own:
    name = "own"
    every_step = comparable = True

    def attach(self, model: Any, structure: Any) -> None: ...

    def scores(self, plan: Any) -> None: ...

    def detach(self) -> None: ...


@pytest.mark.parametrize(
    ("options", "of_source", "task", "pruning", "message"),
    [
        ({}, {}, "seq2seq", {}, "only causal language models"),
        ({}, {"loaded": object()}, "causal-lm", {}, "Pass the name of the checkpoint"),
        ({}, {"adapter": object()}, "causal-lm", {}, "this one is an adapter"),
        ({"quantization": "torchao-int8"}, {}, "causal-lm", {}, "this one is quantized"),
        ({}, {"shapes": SimpleNamespace(fsdp_plan={})}, "causal-lm", {}, "sharding of the model type 'odd'"),
        ({}, {}, "causal-lm", {"criterion": "pst"}, "would mask sharded weights"),
        ({}, {}, "causal-lm", {"prune_start": 0.0, "cuts": 1}, "Cut first .loraprune oneshot"),
        ({"unrecovered": True}, {}, "causal-lm", {}, "Leave --measure-unrecovered out"),
        ({"speedup": 1.5}, {}, "causal-lm", {}, "Use --ratio or --widths"),
        ({}, {}, "causal-lm", {"criterion": Own()}, "a criterion of your own"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_shared_out_is_refused(
    options: Any, of_source: Any, task: str, pruning: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = (RunOptions(fsdp=2, **options), source(**of_source), SimpleNamespace(name=task), PruningConfig(**pruning))
    with pytest.raises(ValueError, match="this run has one process"):
        settle_sharing(*given)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        settle_sharing(*given)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"target_modules": ["q_proj", "lm_head"]}, "names the embedding or the head"),
        ({"target_modules": r".*embed_tokens"}, "names the embedding or the head"),
    ],
    ids=str,
)
def test_an_adapter_that_is_more_than_plain_lora_is_refused(lora: Any, message: str) -> None:
    shapes = next(row for row in ROWS if row.name == "llama").model()
    rest = (RunOptions(fsdp=2), describe(shapes))
    check_shareable(*rest, LoraConfig(target_modules=["q_proj"]), PruningConfig(), shapes)
    with pytest.raises(ValueError, match=message):
        check_shareable(*rest, LoraConfig(**{"target_modules": ["q_proj"], **lora}), PruningConfig(), shapes)
    check_shareable(RunOptions(), describe(shapes), LoraConfig(**lora), PruningConfig(), shapes)


@pytest.mark.parametrize(("name", "message"), [("mixtral", "mixtures of experts"), ("bloom", "Use --repair none")])
def test_a_model_that_cannot_be_cut_in_parts_is_refused(name: str, message: str) -> None:
    shapes = next(row for row in ROWS if row.name == name).model()
    with pytest.raises(ValueError, match=message):
        check_shareable(RunOptions(fsdp=2), describe(shapes), LoraConfig(), PruningConfig(), shapes)


def test_what_can_be_shared_out_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    task: Any = SimpleNamespace(name="causal-lm")
    assert not settle_sharing(RunOptions(fsdp=2), source(), task, PruningConfig()).latency
    assert settle_sharing(RunOptions(), source(), task, PruningConfig()).latency


def test_the_configuration_of_accelerate_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle_strategy(RunOptions()).fsdp is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("LORAPRUNE_USE_FSDP", "")
    with pytest.raises(ValueError, match=r"FSDP, version 1\. Set fsdp_version: 2"):
        settle_strategy(RunOptions())
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert settle_strategy(RunOptions()).fsdp == 2
    assert "ACCELERATE_USE_FSDP" not in os.environ, "accelerate would wrap the model, too"
    assert settle_strategy(RunOptions()).fsdp == 2, "as in the first run"
