"""Does ``global`` (widths that differ from layer to layer) beat one width for all layers, and at what latency?

    python benchmarks/allocation.py --out build/allocation.jsonl

Prunes the bundled model with each allocation at several ratios and seeds; prints perplexity, parameters and the time of
a forward pass as a ratio to the dense model's, measured in turns in one process. Then it reads both questions off the
curves: perplexity at the same parameters, and at the same latency (the other allocations interpolated linearly
between their own points). Finished rows are read back from ``--out``, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch
from forward_pass import forward_latency
from transformers import AutoModelForCausalLM

import loraprune
from loraprune import PruningConfig, RunOptions
from loraprune.data.demo import demo_data, demo_model
from loraprune.tasks.options import LoraOptions

ALLOCATIONS = ("balanced", "uniform", "global")


def run_one(
    allocation: str, ratio: float, seed: int, options: argparse.Namespace, data: tuple[Path, Path]
) -> dict[str, Any]:
    """One run; its result as plain values."""
    started = time.time()
    result = loraprune.prune(
        str(options.model or demo_model()),
        str(data[0]),
        PruningConfig(ratio=ratio, allocation=allocation),
        training={
            "max_steps": options.max_steps,
            "per_device_train_batch_size": 16,
            "max_length": 128,
            "learning_rate": 2e-3,
            "warmup_steps": 0,  # as in the published table
            "seed": seed,
        },
        lora=LoraOptions(r=8),
        options=RunOptions(eval_data=str(data[1]), eval_sequences=options.eval_sequences, latency=False),
    )
    dense = AutoModelForCausalLM.from_pretrained(options.model or demo_model(), dtype=torch.float32)
    pruned = copy.deepcopy(result.model).float()
    seconds = forward_latency({"dense": dense, "pruned": pruned}, tokens=options.tokens, repeats=options.repeats)
    structure, plan = result.structure, result.plan
    return {
        "allocation": allocation,
        "ratio": ratio,
        "seed": seed,
        "max_steps": options.max_steps,
        "reached": result.metrics["pruning"]["ratio"],
        "parameters": result.model.num_parameters(),
        "perplexity": result.metrics["pruned"]["perplexity"],
        "dense_perplexity": result.metrics["dense"]["perplexity"],
        "latency": seconds["pruned"] / seconds["dense"],
        "widths": {kind: list(plan.counts(structure, kind)) for kind in structure.kinds},
        "seconds": time.time() - started,
    }


def at_latency(points: list[tuple[float, float]], latency: float) -> float | None:
    """Perplexity of a curve of (latency, perplexity) at a latency; None outside of it."""
    ordered = sorted(points)
    for (x0, y0), (x1, y1) in itertools.pairwise(ordered):
        if x0 <= latency <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (latency - x0) / (x1 - x0)
    return None


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds, with the range."""
    lines = ["| allocation | ratio | perplexity (range) | forward pass / dense |", "|---|---|---|---|"]
    curves: dict[str, list[tuple[float, float]]] = {}
    keys = sorted(
        {(row["ratio"], row["allocation"]) for row in rows}, key=lambda key: (key[0], ALLOCATIONS.index(key[1]))
    )
    for ratio, allocation in keys:
        own = [row for row in rows if (row["ratio"], row["allocation"]) == (ratio, allocation)]
        values = [row["perplexity"] for row in own]
        latency = statistics.mean(row["latency"] for row in own)
        curves.setdefault(allocation, []).append((latency, statistics.mean(values)))
        lines.append(
            f"| {allocation} | {ratio:.0%} | {statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f}, "
            f"{len(own)} seeds) | {latency:.3f} |"
        )
    lines.append("")
    for allocation, points in curves.items():
        for latency, perplexity in sorted(points):
            others = {other: at_latency(curve, latency) for other, curve in curves.items() if other != allocation}
            found = ", ".join(f"{other} {value:.2f}" for other, value in others.items() if value is not None)
            if found:
                lines.append(f"At {latency:.3f} of the dense latency: {allocation} {perplexity:.2f}; {found}.")
    return "\n".join(lines)


def main() -> None:
    """Run what is not done yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint whose text is that of the bundled model (the bundled model)")
    parser.add_argument("--out", type=Path, default=Path("build/allocation.jsonl"))
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--allocations", nargs="+", default=list(ALLOCATIONS), choices=ALLOCATIONS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--max-steps", type=int, default=100)
    parser.add_argument("--eval-sequences", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    data = demo_data(options.out.parent / "demo-text")
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    for seed in options.seeds:
        for ratio in options.ratios:
            for allocation in options.allocations:
                key = (allocation, ratio, seed, options.max_steps)
                if any((r["allocation"], r["ratio"], r["seed"], r["max_steps"]) == key for r in rows):
                    continue
                row = run_one(allocation, ratio, seed, options, data)
                rows.append(row)
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(
                    f"{allocation} {ratio} seed {seed}: {row['perplexity']:.2f}, {row['latency']:.3f} of dense, "
                    f"{row['widths']} ({row['seconds']:.0f} s)",
                    flush=True,
                )
    print(table([row for row in rows if row["max_steps"] == options.max_steps]))


if __name__ == "__main__":
    main()
