"""The options of ``loraprune bench``, declared once; their names are the fields of ``BenchConfig``."""

from __future__ import annotations

import argparse
from pathlib import Path

from loraprune.cli.numbers import names
from loraprune.cli.options import SWITCH, Option, option

GROUPS: dict[str, tuple[Option, ...]] = {
    "what is measured": (
        option("profile", "bench", "inference: prefill and decoding; training: a step of plain LoRA, of each "
               "criterion, with masks and with slices (inference)"),
        option("tokens", "bench", "tokens of a sequence (2048, in training 512, or the context if that is shorter)",
               type=int),
        option("batch_size", "bench", "sequences or images of a pass (1)", type=int),
        option("decode_batch", "bench", "sequences that are decoded at once (1 8)", type=int, nargs="+", metavar="N"),
        option("decoding", "call", "measure decoding (on)", **SWITCH),
        option("new_tokens", "bench", "tokens that a timed run decodes for each sequence (16)", type=int),
        option("repeats", "bench", "timed passes, runs or steps of each model (100, in training 20)", type=int),
        option("warmup", "bench", "passes, runs or steps before them (10, in training 2)", type=int),
    ),
    "where and how": (
        option("device", "bench", "cpu, cuda or cuda:N (the first accelerator, or the CPU)"),
        option("threads", "bench", "CPU threads (torch's own number)", type=int),
        option("dtype", "bench", "float32, bfloat16 or float16 (the first model's own; on a CPU float32)"),
        option("attn_implementation", "bench", "sdpa, eager, flash_attention_2, ... (each model's own)"),
        option("one_at_a_time", "bench", "load one model after the other, for want of memory; they take no turns (off)",
               **SWITCH),
        option("seed", "bench", "of random input and weights (42)", type=int),
    ),
    "models": (
        option("against_base", "bench", "first the dense shapes that the model was pruned from, with random weights; "
               "their config is enough (off)", **SWITCH),
        option("base", "bench", "base of an adapter, or of --against-base, in place of the one that the folder names"),
        option("trust_remote_code", "bench", "run code that a checkpoint brings (off)", **SWITCH),
        option("revision", "bench", "branch, tag or commit of a hub checkpoint"),
    ),
    "of the profile training": (
        option("criteria", "bench", "criteria to time, such as fisher,lora (all that score groups)", type=names),
        option("ratio", "bench", "sparsity ratio of masks and slices (0.5)", type=float),
        option("accumulation", "bench", "passes in a step (1)", type=int),
        option("bf16", "bench", "bf16 autocast (on where an accelerator has it)", **SWITCH),
        option("gradient_checkpointing", "bench", "compute activations again (on on an accelerator)", **SWITCH),
        option("quantization", "bench", "bnb-8bit, bnb-4bit or torchao-int8 base (none)"),
        option("lora_r", "bench", "rank of LoRA (8)", type=int),
        option("offload_grads", "bench", "of taylor: gradients are kept in the machine's memory (off)", **SWITCH),
    ),
    "what comes out": (
        option("output", "call", "file for all figures with their raw times", type=Path, metavar="FILE.json"),
        option("quiet", "call", "results only", **SWITCH),
    ),
}  # fmt: skip

OPTIONS: dict[str, Option] = {item.name: item for group in GROUPS.values() for item in group}


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    """Add models and options, without defaults: those stand beside ``BenchConfig``."""
    parser.add_argument("models", nargs="*", metavar="MODEL", help="folders or hub names of checkpoints or adapters; "
                        "the first is what the others are compared with")  # fmt: skip
    for title, options in GROUPS.items():
        group = parser.add_argument_group(title)
        for item in options:
            short = [f"-{item.name[0]}"] if item.name in ("output", "quiet") else []
            group.add_argument(
                *short, item.flag, dest=item.name, default=argparse.SUPPRESS, help=item.help, **item.extra
            )
