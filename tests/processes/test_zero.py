"""Runs that DeepSpeed trains in two processes do what one process does, and what it cannot train is refused."""

from __future__ import annotations

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.checkpoints import tiny_checkpoint, write_texts
from tests.processes import scenarios
from tests.processes.test_in_parallel import LAUNCH, ROOT, environment

import loraprune
from loraprune import PruningConfig, RunOptions
from loraprune.recipes.steps import zero

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")

SHARED_OUT = {"stage": 3, "stage3_param_persistence_threshold": 0}
JOBS: dict[str, dict[str, Any]] = {
    "ZeRO-1, cut first": {"name": "osscar first", "zero": {"stage": 1}},
    "ZeRO-2": {"name": "recover", "zero": {"stage": 2}},
    "ZeRO-3": {"name": "recover", "zero": SHARED_OUT},
    "ZeRO-3, recomputing": {"name": "recover", "zero": SHARED_OUT, "training": {"gradient_checkpointing": True}},
    "ZeRO-3, small weights whole": {"name": "recover", "zero": {"stage": 3}},
    "ZeRO-3 on the CPU": {
        "name": "recover",
        "zero": {**SHARED_OUT, "offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}},
    },
    "ZeRO-3, following": {"name": "recover", "zero": SHARED_OUT, "options": {"distill": 0.5}},
    "without training": {"name": "oneshot", "zero": {"stage": 3}},
}
FAMILIES = ("llama", "llama with biases, tied", "gpt2", "opt", "falcon with alibi")


def launched(script: str, *arguments: str) -> None:
    command = [*LAUNCH, str(ROOT / "tests/processes" / script), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**environment(), "DS_ACCELERATOR": "cpu"}, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def model_and_texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("zero")
    model = tiny_checkpoint(folder / "deep", num_hidden_layers=3)
    return str(model), str(write_texts(folder / "texts.jsonl", count=120))


def with_teacher(job: dict[str, Any], model: str) -> dict[str, Any]:
    options = dict(job.get("options", {}))
    return {**job, "options": {**options, "teacher": model} if "distill" in options else options}


@pytest.fixture(scope="module")
def of_two(model_and_texts: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    model, texts = model_and_texts
    folder = tmp_path_factory.mktemp("found")
    jobs = [with_teacher(job, model) for job in JOBS.values()]
    written = {"name": "recover", "zero": SHARED_OUT, "options": {"output": str(folder / "out"), "save_adapter": True}}
    launched("zero.py", model, texts, str(folder / "found"), *map(json.dumps, [*jobs, written]))
    found = [json.loads(Path(f"{folder}/found.{rank}").read_text()) for rank in range(2)]
    return [{**dict(zip(JOBS, rank, strict=False)), "written": folder / "out"} for rank in found]


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_deepspeed_trains_as_one_process_does(
    name: str, of_two: list[dict[str, Any]], model_and_texts: tuple[str, str]
) -> None:
    job = with_teacher(JOBS[name], model_and_texts[0])
    alone = scenarios.run(job["name"], *model_and_texts, processes=1, **job["options"])
    for place, together in enumerate(rank[name] for rank in of_two):
        assert "error" not in together
        assert together["plan"] == alone["plan"]
        assert together["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert together["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-4)
        shared = job["zero"]["stage"] == 3 and job["name"] == "recover"
        assert together["logits"] == ([] if place > 0 and shared else pytest.approx(alone["logits"], abs=1e-3))
        if job["name"] != "oneshot":
            assert together["engine"] == "DeepSpeedEngine"
            assert (together["whole"] == 0) == ("stage3_param_persistence_threshold" in job["zero"])


@needs_deepspeed
@pytest.mark.slow
def test_the_checkpoint_of_zero3_is_a_plain_one(of_two: list[dict[str, Any]]) -> None:
    from transformers import AutoModelForCausalLM

    out = of_two[0]["written"]
    AutoModelForCausalLM.from_pretrained(out)
    assert (out / "adapter" / "adapter_model.safetensors").exists()
    assert not out.with_name("out.run").exists()
    assert json.loads((out / "pruning.json").read_text())["settings"]["training"]["zero_stage"] == 3


@needs_deepspeed
@pytest.mark.slow
def test_a_model_comes_back_from_deepspeed_as_it_went_but_for_the_step(tmp_path: Path) -> None:
    launched("kept.py", str(tmp_path / "found"), str(tmp_path), *FAMILIES)
    for rank in range(2):
        found = json.loads(Path(f"{tmp_path}/found.{rank}").read_text())
        for name in FAMILIES:
            alone, kept = found[name]["alone"], found[name]["kept"]
            assert kept["whole"] == 0, "of the blocks' weights, between forward and backward pass"
            assert kept["restored"]
            for value in ("before", "after", "sum"):
                assert kept[value] == pytest.approx(alone[value], rel=1e-5)
        assert found[FAMILIES[0]]["kept"]["left_over"] == 0, "bytes of whole weights that the engine remembers"


# What does not go with it, said before anything is loaded.


@pytest.fixture
def of_an_accelerate_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes on GPUs, with DeepSpeed."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", zero._ASKED: "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(zero, "find_spec", lambda name: object())
    monkeypatch.setattr(zero, "_accelerated", lambda: True)


@pytest.mark.usefixtures("of_an_accelerate_configuration")
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_needs_a_package_processes_and_gpus(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))
    found = zero.zero_config()
    assert found is not None
    assert found["zero_optimization"]["stage"] == stage
    monkeypatch.setattr(zero, "_accelerated", lambda: False)
    with pytest.raises(ValueError, match=r"accelerate does not support on a CPU.*--fsdp 2"):
        zero.zero_config()
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(ValueError, match=r"needs several processes.*--fsdp 2"):
        zero.zero_config()
    monkeypatch.setattr(zero, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"is not installed.*--fsdp 2"):
        zero.zero_config()
    monkeypatch.setenv(zero._ASKED, "false")
    assert zero.zero_config() is None


@pytest.mark.usefixtures("of_an_accelerate_configuration")
def test_a_configuration_file_of_deepspeed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deepspeed.json"
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    path.write_text(json.dumps({"train_batch_size": 64, "fp16": {"enabled": True}, "zero_optimization": {"stage": 2}}))
    found = zero.zero_config()
    assert found is not None
    assert found["zero_optimization"]["stage"] == 2
    assert found["train_batch_size"] == "auto"
    assert "fp16" not in found
    path.write_text(json.dumps({"zero_optimization": {"stage": 0}}))
    with pytest.raises(ValueError, match=r"zero_stage to 0\. Set it to 1, 2 or 3"):
        zero.zero_config()


def settled(stage: int, *, options: Any = None, pruning: Any = None, training: Any = None) -> RunOptions:
    config = {"zero_optimization": {"stage": stage}}
    source: Any = SimpleNamespace(packed=False)
    given = {"ratio": 0.0, "repair": "none"} if pruning is None else pruning
    return zero.settle_zero(
        config, RunOptions(**(options or {})), source, PruningConfig(**given), {} if training is None else training
    )


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pruning": {}}, "a run cannot cut during training|Cut with oneshot, and run recover"),
        ({"pruning": {"criterion": "pst"}}, "'pst' does not work"),
        ({"options": {"output": "out", "resume": True}}, "Leave out --resume"),
        ({"options": {"output": "out", "keep_run": True}}, "Leave out --keep-run"),
        ({"options": {"eval_steps": 2}}, "Leave out --eval-steps"),
        ({"options": {"quantization": "torchao-int8"}}, "a quantized base"),
        ({"training": SimpleNamespace()}, "Pass a mapping"),
    ],
    ids=str,
)
def test_what_deepspeed_cannot_train_is_refused(stage: int, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"With DeepSpeed, .*({message}).*--fsdp 2"):
        settled(stage, **given)


def test_zero3_shares_out_the_weights_and_the_others_keep_them_whole() -> None:
    assert settled(3).fsdp == 2
    assert settled(2).fsdp is None
    first = {"prune_start": 0.0, "cuts": 1}
    assert settled(1, pruning=first).fsdp is None
    with pytest.raises(ValueError, match="Cut with oneshot, and run recover"):
        settled(3, pruning=first)
    with pytest.raises(ValueError, match="ZeRO-2 keeps the weights whole"):
        settled(2, options={"fsdp": 2})


def test_a_run_says_so_before_it_loads_anything(
    model_and_texts: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(zero._ASKED, "true")
    with pytest.raises(ValueError, match="The accelerate configuration asks for DeepSpeed"):
        loraprune.recover(*model_and_texts, options=RunOptions(output=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []
