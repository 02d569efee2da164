"""What pruning costs and saves: a training step and a forward pass, as ratios from one run.

    python benchmarks/step.py

Times a step of plain LoRA tuning, with the gates of ``fisher`` and with ``lora``'s scores, in turns on one model;
then cuts the model to half and times plain LoRA on dense and pruned in turns; then the forward pass of both with the
adapter merged. Peak memory is that of all live tensors during one step.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
from forward_pass import forward_latency
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from loraprune.checkpoint.save import finish
from loraprune.measure.benchmark.timing import Times, in_turns
from loraprune.measure.benchmark.training_step import TrainingStep, Work
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.group_run import GroupRun

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build(options: argparse.Namespace) -> nn.Module:
    """A Llama of about 50 million parameters, nearly all of them in its blocks, with LoRA."""
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(options.device)
    if options.bf16:
        model = model.to(torch.bfloat16)
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM"))


def cut_in_half(model: nn.Module, batch: torch.Tensor) -> GroupRun:
    """Cut half of every dimension, as the first step of a run would."""
    run = GroupRun.of(model, PruningConfig(allocation="uniform", repair="none", cuts=1))
    run.begin(model, 1)
    model(input_ids=batch, labels=batch).loss.backward()
    run.observe()
    run.cut_if_due(1)
    run.end()
    return run


def ratio_line(label: str, times: dict[str, Times], base: str, name: str) -> str:
    """``label: 1.02x (0.512 s against 0.502 s)``, from medians."""
    a, b = times[name].median, times[base].median
    pairs = times[name].over(times[base])
    return f"{label:58} {a / b:6.3f}x  (median of pairs {pairs:.3f}x; {a:.3f} s against {b:.3f} s)"


def timed(
    steps: dict[str, TrainingStep], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Times]:
    """Seconds of a step, in turns."""
    contenders = {name: step.contender() for name, step in steps.items()}
    return in_turns(contenders, repeats=repeats, warmup=2, clock=clock)


def step_variants(model: nn.Module, work: Work) -> dict[str, TrainingStep]:
    """Steps of plain LoRA and of tuning with the criteria that read every step, all on one model."""
    return {"plain": TrainingStep(model, work)} | {
        name: TrainingStep(model, work, criterion=PruningConfig(criterion=name, repair="none"))
        for name in ("fisher", "lora")
    }


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="bf16 weights and autocast")
    options = parser.parse_args()
    model = build(options)
    batch = torch.randint(1024, (options.batch_size, options.length), device=options.device)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(
        f"{model.get_base_model().num_parameters():,} parameters, {options.batch_size}x{options.length} tokens, "
        f"{name}, {torch.get_num_threads()} threads, {'bf16' if options.bf16 else 'fp32'}",
        flush=True,
    )

    work = Work(
        {"input_ids": batch, "labels": batch, "use_cache": False}, autocast=torch.bfloat16 if options.bf16 else None
    )
    variants = step_variants(model, work)
    times = timed(variants, options.repeats)
    memory = {label: step.peak_bytes() for label, step in variants.items()}
    for label in ("fisher", "lora"):
        print(ratio_line(f"step with {label} / plain LoRA", times, "plain", label))
        share = memory[label] / memory["plain"]
        megabytes = f"{memory[label] / 1e6:.1f} MB against {memory['plain'] / 1e6:.1f} MB"
        print(f"{'   peak memory':58} {share:6.3f}x  ({megabytes})")

    pruned = copy.deepcopy(model)
    run = cut_in_half(pruned, batch)
    steps = timed({"dense": TrainingStep(model, work), "pruned": TrainingStep(pruned, work)}, options.repeats)
    print(ratio_line("plain LoRA step, cut to 50 % / dense", steps, "dense", "pruned"))

    merged = {"dense": model.merge_and_unload(), "pruned": finish(pruned, run.structure, run.plan)}
    forward: Callable[..., dict[str, float]] = forward_latency
    seconds = forward(merged, batch_size=options.batch_size, tokens=options.length, repeats=options.repeats)
    share = seconds["pruned"] / seconds["dense"]
    print(
        f"{'forward pass, merged, cut to 50 % / dense':58} {share:6.3f}x  "
        f"({seconds['pruned']:.3f} s against {seconds['dense']:.3f} s)"
    )


if __name__ == "__main__":
    main()
