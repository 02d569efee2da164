"""Figures of training for ``benchmarks/guard.py``: a step with scores, a step of a run, a whole run with cuts."""

from __future__ import annotations

import argparse
import json
import keyword
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from guard_record import Figures, Measured
from peft import LoraConfig, get_peft_model
from step import TARGETS, build, step_variants, timed
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

import loraprune
from loraprune import PruningConfig, RunOptions
from loraprune.data.demo import demo_model
from loraprune.measure.benchmark.timing import Call, Times, TurnTaker, in_turns
from loraprune.measure.benchmark.training_step import TrainingStep, Work

BATCH, TOKENS = 4, 256
QUIET = RunOptions(eval_sequences=0, latency=False, report=False)


def prepare_run(folder: Path, options: argparse.Namespace, rows: int = 512) -> tuple[Path, Path]:
    """A Llama with random weights and the bundled model's tokenizer, and rows of random words longer than a batch's."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    hidden = options.hidden
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    draw = random.Random(1)
    with (folder / "rows.jsonl").open("w") as file:
        for _ in range(rows):
            file.write(json.dumps({"text": " ".join(draw.choice(keyword.kwlist) for _ in range(TOKENS))}) + "\n")
    return folder / "model", folder / "rows.jsonl"


def step_with_scores(options: argparse.Namespace, folder: Path) -> Figures:
    """A training step with the scores of ``fisher`` and ``lora`` beside one of plain LoRA: CPU time, peak memory.

    What a step with scores keeps is of one block, so that memory is measured on four times as many blocks.
    """
    batch = torch.randint(1024, (BATCH, TOKENS))
    work = Work({"input_ids": batch, "labels": batch, "use_cache": False})
    few, many = (argparse.Namespace(layers=layers, device="cpu", bf16=False) for layers in (4, 16))
    times = timed(step_variants(build(few), work), options.repeats, time.process_time)
    memory = {name: step.peak_bytes() for name, step in step_variants(build(many), work).items()}
    return {f"step-{name}": Measured.ratio(times[name], times["plain"]) for name in ("fisher", "lora")} | {
        f"memory-{name}": Measured.of(memory[name], memory["plain"]) for name in ("fisher", "lora")
    }


class _BesideSteps(TrainerCallback):
    """Takes the CPU time of each step of a Trainer, and of another call after it."""

    def __init__(self, beside: Call) -> None:
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self._beside = beside
        self._since: float | None = None

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        if self._since is not None:
            self.ours.append(time.process_time() - self._since)
        start = time.process_time()
        self._beside()
        self._since = time.process_time()
        if self.ours:
            self.theirs.append(self._since - start)

    def ratio(self) -> Measured:
        """Steps of the Trainer over those of the other call, without the last one, after which a run cuts."""
        return Measured.ratio(Times(tuple(self.ours[:-1])), Times(tuple(self.theirs[:-1])))


def step_of_run(options: argparse.Namespace, folder: Path) -> Figures:
    """A step of ``loraprune prune`` before the first cut, with Trainer, checks, scores and logs, beside a bare loop.

    The bare loop is a forward and a backward pass, clipping and AdamW with peft's LoRA on another model. One of its
    steps runs after each step of the Trainer. Batches have the same size. A plain SFTTrainer is measured beside the
    same loop, which tells what trl and transformers cost from what this package adds.
    """
    model, rows = prepare_run(folder / "step", options)
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    bare = get_peft_model(AutoModelForCausalLM.from_pretrained(model), adapter)
    batch = torch.randint(1, bare.config.vocab_size, (BATCH, TOKENS))
    given = {"input_ids": batch, "attention_mask": torch.ones_like(batch), "labels": batch, "use_cache": False}
    loop = TrainingStep(bare, Work(given))
    steps = 2 * options.repeats + 2
    cuts = PruningConfig(ratio=0.5, prune_start=1.0, prune_end=1.0, cuts=1, repair="none")
    ours, theirs = _BesideSteps(loop.step), _BesideSteps(loop.step)
    _trained(model, rows, cuts, steps, adapter, [ours])
    settings = SFTConfig(
        **_arguments(steps), output_dir=str(folder), report_to="none", logging_steps=5, bf16=False, disable_tqdm=True
    )
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        args=settings,
        train_dataset=load_dataset("json", data_files=str(rows), split="train", cache_dir=str(folder)),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=adapter,
        callbacks=[theirs],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    found = ours.ratio()
    return {"step-run": found, "step-run-trl": Measured.of(found.value, theirs.ratio().value)}


def run_with_cuts(options: argparse.Namespace, folder: Path) -> Figures:
    """A whole run that cuts tensors while it trains, beside one that multiplies by zeros to the end."""
    model, rows = prepare_run(folder / "cuts", options)
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")

    def contender(apply: str) -> TurnTaker:
        cuts = PruningConfig(ratio=0.5, prune_start=0.1, prune_end=0.3, cuts=3, repair="none", apply=apply)

        @contextmanager
        def turn() -> Iterator[Call]:
            yield lambda: _trained(model, rows, cuts, options.steps, adapter, [])

        return TurnTaker(turn=turn, device=torch.device("cpu"))

    contenders = {apply: contender(apply) for apply in ("slice", "mask")}
    times = in_turns(contenders, repeats=options.rounds, warmup=0, clock=time.process_time)
    return {"run-cuts": Measured.ratio(times["slice"], times["mask"])}


def _trained(
    model: Path, rows: Path, cuts: PruningConfig, steps: int, adapter: LoraConfig, callbacks: list[Any]
) -> None:
    training = _arguments(steps)
    loraprune.prune(model, rows, cuts, training=training, lora=adapter, options=QUIET, callbacks=callbacks)


def _arguments(steps: int) -> dict[str, Any]:
    return {
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        "max_length": TOKENS,
        "save_strategy": "no",
        "use_cpu": True,
        "gradient_checkpointing": False,
    }


Part = Callable[[argparse.Namespace, Path], Figures]
"""A measurement: options and a scratch folder in, figures out."""
