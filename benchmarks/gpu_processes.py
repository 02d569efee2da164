"""Whether runs in several processes work on a device, and give what one process gives; called by gpu.py."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from loraprune.data.demo import demo_model

STEP = 8  # sequences in a step, however many processes there are
TRAINING = ("--max-steps", "12", "--max-length", "64", "--logging-steps", "4", "--save-strategy", "no", "--lora-r", "8")
CUTS = ("--cuts", "2", "--prune-start", "0.2", "--prune-end", "0.6", "--ratio", "0.5")
MEASURED = ("--eval-sequences", "16", "--no-latency", "--no-report")
LORA_STREAM = ("--criterion", "lora", "--repair", "stream")
RUNS: dict[str, tuple[str, ...]] = {
    "prune, ddp": ("prune", *TRAINING, *CUTS, *MEASURED),
    "prune, fsdp2": ("prune", "--fsdp", "2", *TRAINING, *CUTS, *MEASURED),
    "prune lora + stream, fsdp2": ("prune", "--fsdp", "2", *LORA_STREAM, *TRAINING, *CUTS, *MEASURED),
    "recover, fsdp2": ("recover", "--fsdp", "2", *TRAINING, *MEASURED[:2], "--no-report"),
    "oneshot": ("oneshot", "--ratio", "0.4", "--calibration-sequences", "16", "--max-length", "64", *MEASURED),
}
"""Commands without model, data and output; those of one process leave ``--fsdp`` out."""


def _prepare(folder: Path, device: str) -> None:
    """A model with random weights, the bundled model's tokenizer, and rows of random words."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=4, **sizes)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    draw = random.Random(1)
    words = ("the", "old", "river", "runs", "past", "a", "mill", "and", "over", "stones")
    rows = (" ".join(draw.choice(words) for _ in range(60)) for _ in range(300))
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))


def _ran(command: tuple[str, ...], folder: Path, name: str, processes: int) -> dict[str, Any]:
    """Perplexity, widths and seconds of a run in so many processes; or what went wrong."""
    verb, *options = command
    if processes == 1 and "--fsdp" in options:
        del options[options.index("--fsdp") : options.index("--fsdp") + 2]
    if verb != "oneshot":
        options += ["--per-device-train-batch-size", str(STEP // processes)]
    launch = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    )
    out = folder / f"{name} {processes}"
    files = [str(folder / "model"), "--data", str(folder / "rows.jsonl"), "-o", str(out)]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *launch, "-m", "loraprune", verb, *files, *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "rror" in line]
        return {"error": (lines or ["no message"])[0][:200]}
    metrics = json.loads((out / "pruning.json").read_text())["metrics"]
    widths = (metrics.get("pruning") or {}).get("widths")
    return {"perplexity": metrics["pruned"]["perplexity"], "widths": widths, "seconds": seconds}


def try_processes(device: str, processes: int) -> int:
    """Print a line for each run; returns 1 if one broke, or is not what one process gives."""
    if STEP % processes:
        raise SystemExit(f"{STEP} sequences in a step cannot be shared by {processes} processes. Take 2, 4 or 8.")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="loraprune-") as scratch:
        folder = Path(scratch)
        _prepare(folder, device)
        for name, command in RUNS.items():
            alone, together = (_ran(command, folder, name, number) for number in (1, processes))
            verdict, detail = _compared(alone, together, 0.05 if device == "cuda" else 1e-3)
            failed += verdict == "FAIL"
            print(f"{verdict:5} {name:28} {detail}", flush=True)
    return int(failed > 0)


def _compared(alone: dict[str, Any], together: dict[str, Any], tolerance: float) -> tuple[str, str]:
    """``pass`` or ``FAIL``, and the reason; rounding in 16 bits may let other groups go, not other widths."""
    for where, found in (("one process", alone), ("several processes", together)):
        if "error" in found:
            return "FAIL", f"{where}: {found['error']}"
    one, other = alone["perplexity"], together["perplexity"]
    detail = f"perplexity {one:.4g} and {other:.4g}, {alone['seconds']:.0f} s and {together['seconds']:.0f} s"
    if alone["widths"] != together["widths"]:
        return "FAIL", f"other widths; {detail}"
    return ("pass" if abs(one - other) <= tolerance * one else "FAIL"), detail
